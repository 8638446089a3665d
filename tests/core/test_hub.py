"""Pushing an adapter: what is sent, that a person's model card stays, and that refusals send nothing."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn

import lowpeft
from lowpeft import AdapterError, LoRAConfig, PlanError, SpatialConfig
from lowpeft.core.files.contents import CARD, CONFIG, FILES, TENSORS
from one_hub import Hub

pytestmark = pytest.mark.usefixtures("no_figures")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 3, 1, 1)).eval()


def adapted() -> nn.Module:
    model = lowpeft.adapt(network(), LoRAConfig(target="**", rank=2))
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "repository")

    def api(token: str | None) -> Hub:
        found.token = token
        return found

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_is_pushed_is_the_adapter_and_loads_again(hub: Hub) -> None:
    model = adapted()
    assert lowpeft.push_to_hub(model, "owner/name", facts={"data": "Flickr1024"}) == "https://hub/commit/1"
    assert hub.sent == sorted(FILES)
    assert hub.calls["create_repo"] == ("owner/name", {"private": None})
    sent = hub.calls["upload_folder"]
    assert (sent["repo_id"], sent["revision"]) == ("owner/name", None)
    assert sent["commit_message"] == "lora adapter for Sequential"
    loaded = lowpeft.load_adapter(network(), hub.folder)
    assert same(lowpeft.adapter_state_dict(loaded), lowpeft.adapter_state_dict(model))
    assert lowpeft.read_adapter(hub.folder).facts == {"data": "Flickr1024"}


def test_the_card_loads_from_the_repository(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), "owner/name")
    card = (hub.folder / CARD).read_text()
    assert 'lowpeft.load_adapter(backbone, "owner/name")' in card
    assert "library_name: lowpeft" in card
    assert lowpeft.read_adapter(hub.folder).base.weights in card


def test_branch_privacy_message_and_token_are_passed_on(hub: Hub) -> None:
    options = {"revision": "v2", "private": True, "commit_message": "second", "token": "secret"}
    lowpeft.push_to_hub(adapted(), "owner/name", **options)
    assert hub.calls["create_repo"][1]["private"] is True
    assert hub.calls["create_branch"] == ("owner/name", {"branch": "v2", "exist_ok": True})
    assert (hub.calls["upload_folder"]["revision"], hub.calls["upload_folder"]["commit_message"]) == ("v2", "second")
    assert hub.token == "secret"
    assert all(b"secret" not in (hub.folder / name).read_bytes() for name in FILES)


def test_a_token_that_may_only_write_pushes_to_what_is_there(hub: Hub) -> None:
    hub.refuses = hub.answer(403)
    lowpeft.push_to_hub(adapted(), "owner/name")
    assert (hub.folder / TENSORS).exists()


def test_a_card_that_lowpeft_wrote_is_replaced(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), "owner/name", facts={"dB": 1})
    lowpeft.push_to_hub(adapted(), "owner/name", facts={"dB": 2})
    assert "| dB | 2 |" in (hub.folder / CARD).read_text()


def test_a_card_that_somebody_edited_is_not_touched_unasked(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), "owner/name")
    edited = (hub.folder / CARD).read_text() + "\nOur paper.\n"
    (hub.folder / CARD).write_text(edited)
    with pytest.raises(AdapterError, match=r"'owner/name'.*edited_card='keep'"):
        lowpeft.push_to_hub(adapted(), "owner/name", facts={"dB": 2})
    assert lowpeft.read_adapter(hub.folder).facts == {}
    lowpeft.push_to_hub(adapted(), "owner/name", facts={"dB": 2}, edited_card="keep")
    assert hub.sent == sorted((TENSORS, CONFIG))
    assert lowpeft.read_adapter(hub.folder).facts == {"dB": 2}
    assert (hub.folder / CARD).read_text() == edited
    lowpeft.push_to_hub(adapted(), "owner/name", edited_card="replace")
    assert "Our paper" not in (hub.folder / CARD).read_text()


@pytest.mark.parametrize("config", [None, "{}", "no json"])
def test_a_card_beside_no_config_of_ours_is_somebody_elses(config: str | None, hub: Hub) -> None:
    hub.folder.mkdir()
    (hub.folder / CARD).write_text("# A project\n")
    if config is not None:
        (hub.folder / CONFIG).write_text(config)
    with pytest.raises(AdapterError, match="edited_card='keep'"):
        lowpeft.push_to_hub(adapted(), "owner/name")
    assert "upload_folder" not in hub.calls


def test_an_adapter_that_cannot_be_saved_sends_nothing(hub: Hub) -> None:
    model = adapted()
    with torch.no_grad():
        next(p for _, p in lowpeft.adapter_parameters(model)).fill_(torch.nan)
    with pytest.raises(AdapterError, match="NaN"):
        lowpeft.push_to_hub(model, "owner/name")
    with pytest.raises(PlanError):
        lowpeft.push_to_hub(network(), "owner/name")
    assert hub.calls == {}


@pytest.mark.parametrize(
    "error",
    [HFValidationError("bad name"), ConnectionError("offline"), HfHubHTTPError.__bases__[0]("no route")],
    ids=repr,
)
def test_an_error_of_the_hub_is_an_adapter_error(error: Exception, hub: Hub) -> None:
    hub.refuses = error
    with pytest.raises(AdapterError, match=f"'owner/name': {error}"):
        lowpeft.push_to_hub(adapted(), "owner/name")


def test_a_refusal_of_the_hub_is_an_adapter_error(hub: Hub) -> None:
    hub.refuses = hub.answer(401)
    with pytest.raises(AdapterError, match="'owner/name': 401 it said"):
        lowpeft.push_to_hub(adapted(), "owner/name")


def test_one_of_several_adapters_is_chosen_by_name(hub: Hub) -> None:
    model = adapted()
    lowpeft.adapt(model, SpatialConfig(target="0", reduction=2), name="other")
    with pytest.raises(PlanError, match="other"):
        lowpeft.push_to_hub(model, "owner/name")
    lowpeft.push_to_hub(model, "owner/name", name="other")
    assert lowpeft.read_adapter(hub.folder).recipe.name == "spatial"


def test_without_a_network_a_push_is_an_adapter_error() -> None:
    with pytest.raises(AdapterError, match="'owner/name'"):
        lowpeft.push_to_hub(adapted(), "owner/name", token="hf_none")
