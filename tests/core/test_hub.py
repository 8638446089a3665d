"""The Hub, through the real client and a Hub on this machine: what is sent and read, and what every fault becomes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import local_hub
import lowpeft
from local_hub import Fault, Hub
from lowpeft import AdapterError, LoRAConfig, PlanError, SpatialConfig
from lowpeft.core.files.contents import CARD, CONFIG, FILES, TENSORS
from lowpeft.core.files.hub import client, pulling, pushing
from lowpeft.core.files.hub.pulling import adapters_of, pull
from tiers import by_default

pytestmark = [
    pytest.mark.usefixtures("no_figures"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the client, at uploads by LFS
]

HERE = "owner/name"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 3, 1, 1)).eval()


def adapted(value: float = 0.5, seed: int = 0) -> nn.Module:
    model = lowpeft.adapt(network(seed), LoRAConfig(target="**", rank=2))
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.fill_(value)
    return model


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def values_of(model: nn.Module) -> set[float]:
    return {value for tensor in lowpeft.adapter_state_dict(model).values() for value in tensor.unique().tolist()}


def asked(hub: Hub, word: str) -> list[str]:
    return [request["asked"] for request in hub.requests if word in request["asked"]]


# --- Pushing
def test_what_is_pushed_is_the_adapter_and_loads_again(hub: Hub) -> None:
    model = adapted()
    url = lowpeft.push_to_hub(model, HERE, facts={"data": "Flickr1024"})
    commit = hub.repositories[HERE].branches["main"]
    assert url == f"{hub.url}/{HERE}/commit/{commit}"
    assert {*hub.files(HERE)} == {*FILES, ".gitattributes"}
    assert len(asked(hub, "/commit/")) == 1
    loaded = lowpeft.load_adapter(network(), HERE)
    assert same(lowpeft.adapter_state_dict(loaded), lowpeft.adapter_state_dict(model))
    assert f"from the Hub repository {HERE} at {commit}" in str(lowpeft.summary(loaded))
    assert lowpeft.read_adapter(pull(HERE).folder).facts == {"data": "Flickr1024"}


def test_the_card_loads_from_the_repository(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    card = hub.files(HERE)[CARD].decode()
    assert f'lowpeft.load_adapter(backbone, "{HERE}")' in card
    assert "library_name: lowpeft" in card
    assert lowpeft.read_adapter(pull(HERE).folder).base.weights in card


def test_a_branch_is_made_and_written(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE, revision="v2", commit_message="second")
    assert TENSORS in hub.files(HERE, "v2")
    assert TENSORS not in hub.files(HERE)
    assert values_of(lowpeft.load_adapter(network(), HERE, revision="v2")) == {0.5}
    (request,) = (request for request in hub.requests if "/commit/v2" in request["asked"])
    assert b'"summary": "second"' in request["body"]


def test_adapters_share_a_repository_in_folders(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(0.25), HERE, subfolder="x4/noise")
    lowpeft.push_to_hub(adapted(0.75), HERE, subfolder="x4/jpeg")
    assert adapters_of(HERE) == ["x4/jpeg", "x4/noise"]
    assert values_of(lowpeft.load_adapter(network(), HERE, subfolder="x4/noise")) == {0.25}
    with pytest.raises(
        AdapterError, match=r"'owner/name' has no adapter; there are some in x4/jpeg, x4/noise: subfolder="
    ):
        lowpeft.load_adapter(network(), HERE)


def test_a_pull_request_leaves_the_branch_alone(hub: Hub) -> None:
    hub.put(HERE, {"README.md": b"# somebody's\n"})
    url = lowpeft.push_to_hub(adapted(), HERE, subfolder="mine", create_pr=True)
    assert url == f"{hub.url}/{HERE}/discussions/1"
    assert {*hub.files(HERE)} == {"README.md"}
    assert f"mine/{TENSORS}" in hub.files(HERE, "refs/pr/1")


def test_a_dry_run_asks_nobody_and_says_what_would_be_sent(hub: Hub) -> None:
    said = lowpeft.push_to_hub(adapted(), HERE, subfolder="x4", dry_run=True)
    assert said.splitlines()[0] == "would be pushed to the folder 'x4' of 'owner/name', main:"
    assert [f"x4/{name}" in said for name in FILES] == [True] * 3
    assert hub.requests == []


@pytest.mark.parametrize("subfolder", ["", "/x4", "../x4", "a/../b", "a\0b", "*"])
def test_a_folder_outside_the_repository_is_refused(subfolder: str, hub: Hub) -> None:
    with pytest.raises(AdapterError, match="subfolder"):
        lowpeft.push_to_hub(adapted(), HERE, subfolder=subfolder)
    with pytest.raises(AdapterError, match="subfolder"):
        lowpeft.load_adapter(network(), HERE, subfolder=subfolder)
    assert hub.requests == []


def test_a_token_that_may_only_write_pushes_to_what_is_there(hub: Hub) -> None:
    hub.put(HERE, {})
    hub.faults = [Fault("POST /api/repos/create", local_hub.status(403))]
    lowpeft.push_to_hub(adapted(), HERE)
    assert TENSORS in hub.files(HERE)


def test_a_card_that_lowpeft_wrote_is_replaced(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE, facts={"dB": 1})
    lowpeft.push_to_hub(adapted(0.25), HERE, facts={"dB": 2})
    assert "| dB | 2 |" in hub.files(HERE)[CARD].decode()


def test_a_card_that_somebody_edited_is_not_touched_unasked(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    edited = hub.files(HERE)[CARD] + b"\nOur paper.\n"
    hub.put(HERE, {**hub.files(HERE), CARD: edited})
    with pytest.raises(AdapterError, match=r"'owner/name'.*edited_card='keep'"):
        lowpeft.push_to_hub(adapted(0.25), HERE)
    assert values_of(lowpeft.load_adapter(network(), HERE)) == {0.5}
    lowpeft.push_to_hub(adapted(0.25), HERE, edited_card="keep")
    assert values_of(lowpeft.load_adapter(network(), HERE)) == {0.25}
    assert hub.files(HERE)[CARD] == edited
    lowpeft.push_to_hub(adapted(), HERE, edited_card="replace")
    assert b"Our paper" not in hub.files(HERE)[CARD]


@pytest.mark.parametrize("config", [None, b"{}", b"no json"])
def test_a_card_beside_no_config_of_ours_is_somebody_elses(config: bytes | None, hub: Hub) -> None:
    before = hub.put(HERE, {CARD: b"# A project\n", **({} if config is None else {CONFIG: config})})
    with pytest.raises(AdapterError, match="edited_card='keep'"):
        lowpeft.push_to_hub(adapted(), HERE)
    assert hub.repositories[HERE].branches["main"] == before


def test_an_adapter_of_another_base_is_not_overwritten_unasked(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    with pytest.raises(AdapterError, match=r"made for another base \(Sequential\).*overwrite=True.*subfolder="):
        lowpeft.push_to_hub(adapted(seed=1), HERE)
    lowpeft.push_to_hub(adapted(seed=1), HERE, overwrite=True)
    assert values_of(lowpeft.load_adapter(network(1), HERE)) == {0.5}


def test_two_pushers_of_other_folders_lose_nothing(hub: Hub) -> None:
    hub.put(HERE, {})
    pushes = [
        threading.Thread(target=lowpeft.push_to_hub, args=(adapted(n / 8), HERE), kwargs={"subfolder": f"a{n}"})
        for n in range(4)
    ]
    for push in pushes:
        push.start()
    for push in pushes:
        push.join()
    assert adapters_of(HERE) == ["a0", "a1", "a2", "a3"]


def test_what_another_pusher_wrote_meanwhile_is_not_overwritten(hub: Hub, tmp_path: Path) -> None:
    lowpeft.push_to_hub(adapted(0.25), HERE)
    others = lowpeft.save_adapter(adapted(0.75), tmp_path / "name")
    theirs = {name: (others / name).read_bytes() for name in FILES}

    def meanwhile(handler: local_hub.Handler) -> None:
        with hub.lock:
            hub.put(HERE, {**hub.files(HERE), **theirs})
        local_hub.status(412)(handler)

    hub.faults = [Fault("POST .*/commit/", meanwhile, times=1)]
    with pytest.raises(AdapterError, match="someone else wrote there meanwhile"):
        lowpeft.push_to_hub(adapted(0.5), HERE)
    assert values_of(lowpeft.load_adapter(network(), HERE)) == {0.75}


def test_an_adapter_that_cannot_be_saved_sends_nothing(hub: Hub) -> None:
    with pytest.raises(AdapterError, match="NaN"):
        lowpeft.push_to_hub(adapted(float("nan")), HERE)
    with pytest.raises(PlanError):
        lowpeft.push_to_hub(network(), HERE)
    assert hub.requests == []


def test_one_of_several_adapters_is_chosen_by_name(hub: Hub) -> None:
    model = adapted()
    lowpeft.adapt(model, SpatialConfig(target="0", reduction=2), name="other")
    with pytest.raises(PlanError, match="other"):
        lowpeft.push_to_hub(model, HERE)
    lowpeft.push_to_hub(model, HERE, name="other")
    assert lowpeft.read_adapter(pull(HERE).folder).recipe.name == "spatial"


# --- Reading
def test_nothing_but_the_adapter_is_fetched(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    more = {"evil.py": b"raise SystemExit", "pytorch_model.bin": b"\x80", f"x4/{TENSORS}": b""}
    hub.put(HERE, {**hub.files(HERE), **more})
    hub.requests.clear()
    folder = pull(HERE).folder
    assert {path.name for path in folder.iterdir()} == {*FILES}
    assert not asked(hub, "evil.py") + asked(hub, "pytorch_model.bin")


def test_the_revision_is_resolved_once(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    commit = hub.repositories[HERE].branches["main"]
    hub.requests.clear()
    assert pull(HERE).commit == commit
    assert all(f"/resolve/{commit}/" in request for request in asked(hub, "/resolve/") if CONFIG not in request)


def test_the_cache_serves_where_the_hub_does_not(hub: Hub, tmp_path: Path) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    lowpeft.load_adapter(network(), HERE)
    hub.faults = [Fault(".", local_hub.status(503))]
    assert values_of(lowpeft.load_adapter(network(), HERE)) == {0.5}
    hub.requests.clear()
    assert values_of(lowpeft.load_adapter(network(), HERE, local_files_only=True)) == {0.5}
    assert hub.requests == []
    with pytest.raises(AdapterError, match="cannot be read"):
        lowpeft.load_adapter(network(), HERE, local_files_only=True, cache_dir=tmp_path / "empty")


def test_a_folder_named_like_a_repository_wins(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lowpeft.save_adapter(adapted(), tmp_path / HERE)
    monkeypatch.chdir(tmp_path)
    assert values_of(lowpeft.load_adapter(network(), HERE)) == {0.5}
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["no-such-branch", "a\0b", "../x", "a" * 500])
def test_a_revision_that_is_not_there_is_an_adapter_error(revision: str, hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    with pytest.raises(AdapterError, match="'owner/name' cannot be read"):
        lowpeft.load_adapter(network(), HERE, revision=revision)


@pytest.mark.parametrize("name", ["owner/..", "owner/a?b", "owner/a#b", "owner/a%2Fb", "http:/x", "owner/" + "a" * 300])
def test_what_is_no_name_of_a_repository_never_leaves_this_machine(name: str, hub: Hub) -> None:
    with pytest.raises(AdapterError):
        lowpeft.load_adapter(network(), name)
    assert hub.requests == []


# --- Faults
FAULTS = {
    "bad request": local_hub.status(400),
    "no token": local_hub.status(401, "Invalid credentials in Authorization header"),
    "forbidden": local_hub.status(403, "You need to accept the terms"),
    "not found": local_hub.status(404),
    "too many requests": local_hub.status(429),
    "server error": local_hub.status(500),
    "unavailable": local_hub.status(503),
    "dropped": local_hub.dropped,
    "captive portal": local_hub.captive,
    "redirect loop": local_hub.looped,
}
WHERE = {"info": "GET /api/models/owner/name", "headers": r"HEAD .*/resolve/", "contents": r"GET .*/resolve/"}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("fault", by_default(["no token", "captive portal"], FAULTS))
def test_a_fault_while_reading_is_one_error_and_the_next_try_works(fault: str, where: str, hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    hub.faults = [Fault(WHERE[where], FAULTS[fault])]
    with pytest.raises(AdapterError, match="the Hub repository 'owner/name' cannot be read: ") as caught:
        lowpeft.load_adapter(network(), HERE)
    assert len(str(caught.value)) < 1000
    hub.faults = []
    assert values_of(lowpeft.load_adapter(network(), HERE)) == {0.5}


@pytest.mark.parametrize(
    ("limit", "path"), [("CONFIG", CONFIG), ("TENSOR", TENSORS), ("PICTURE", CARD)], ids=["config", "tensors", "card"]
)
def test_a_file_that_is_too_large_is_refused_before_it_is_fetched(
    limit: str, path: str, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    hub.requests.clear()
    monkeypatch.setattr(pulling, f"MOST_{limit}_BYTES", 100)
    with pytest.raises(AdapterError, match=rf"{path} of 'owner/name' has [\d,]+ bytes; at most 100 are fetched"):
        lowpeft.load_adapter(network(), HERE)
    assert not [request for request in hub.requests if request["asked"].endswith(path)]


@pytest.mark.parametrize("fault", ["cut", "other content"])
def test_a_damaged_download_never_becomes_an_adapter(fault: str, hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    act = {"cut": local_hub.cut, "other content": local_hub.other_content}[fault]
    hub.faults = [Fault(rf"GET .*/resolve/.*/{TENSORS}", act)]
    with pytest.raises(AdapterError):
        lowpeft.load_adapter(network(), HERE)


@pytest.mark.parametrize(
    "step", ["repos/create", "GET /api/models", "paths-info", "preupload", "batch", "PUT", "/commit/"]
)
@pytest.mark.parametrize(
    "fault",
    by_default(["captive portal"], ["forbidden", "server error", "dropped", "captive portal", "redirect loop"]),
)
def test_a_fault_while_pushing_is_one_error_and_nothing_is_half_written(fault: str, step: str, hub: Hub) -> None:
    before = hub.put(HERE, {})
    if (fault, step) in {("forbidden", "repos/create"), ("captive portal", "PUT")}:
        pytest.skip("no fault: the repository is there, or the answer to an upload says nothing")
    hub.faults = [Fault(step, FAULTS[fault])]
    with pytest.raises(AdapterError, match="the adapter was not pushed to 'owner/name': "):
        lowpeft.push_to_hub(adapted(), HERE)
    assert hub.repositories[HERE].branches["main"] == before
    hub.faults = []
    lowpeft.push_to_hub(adapted(), HERE)
    assert values_of(lowpeft.load_adapter(network(), HERE)) == {0.5}


def test_a_fault_that_passes_is_tried_again(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    hub.faults = [Fault("GET .*/resolve/", local_hub.status(503), times=2)]
    assert values_of(lowpeft.load_adapter(network(), HERE)) == {0.5}


def test_a_silent_server_is_not_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (client, pulling, pushing):
        monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    hub.faults = [Fault(".", local_hub.silent(2))]
    for call in (lambda: lowpeft.push_to_hub(adapted(), HERE), lambda: lowpeft.load_adapter(network(), HERE)):
        with pytest.raises(AdapterError):
            call()


def test_the_hubs_advice_is_shown(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    hub.faults = [Fault(".", FAULTS["forbidden"])]
    with pytest.raises(AdapterError, match="You need to accept the terms"):
        lowpeft.push_to_hub(adapted(), HERE)


# --- The token
def test_the_token_goes_nowhere_else(hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lowpeft.push_to_hub(adapted(), HERE, token=hub.token)
    with local_hub.running() as other:
        hub.faults = [
            Fault(rf"GET .*/resolve/.*/{TENSORS}", lambda h: h.send(302, b"", {"Location": f"{other.url}/cdn"}))
        ]
        with pytest.raises(AdapterError) as caught:
            lowpeft.load_adapter(network(), HERE, token=hub.token)
        assert other.requests
        assert [request["token"] for request in other.requests] == [""] * len(other.requests)
    out, err = capfd.readouterr()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert hub.token not in out + err + str(caught.value)
    assert not any(hub.token.encode() in data for data in (*written, *(r["body"] for r in hub.requests)))


def test_a_token_in_a_message_is_hidden(hub: Hub) -> None:
    hub.faults = [Fault(".", local_hub.status(403, "token hf_secretsecret of hf_secret may not"))]
    with pytest.raises(AdapterError) as caught:
        lowpeft.push_to_hub(adapted(), HERE, token="hf_secret")
    assert "hf_secret" not in str(caught.value)


# --- As users have it
@pytest.mark.slow
def test_another_process_finds_the_hub_by_its_environment(hub: Hub, tmp_path: Path) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    code = "import sys\nfrom lowpeft.core.files.hub.pulling import pull\nprint(pull('owner/name').commit)"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [hub.repositories[HERE].branches["main"]]


def test_without_a_network_a_push_and_a_load_are_adapter_errors() -> None:
    with pytest.raises(AdapterError, match="'owner/name'"):
        lowpeft.push_to_hub(adapted(), HERE, token="hf_none")
    with pytest.raises(AdapterError, match="'owner/name'"):
        lowpeft.load_adapter(network(), HERE)
