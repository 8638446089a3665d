"""`lowpeft push`, `pull` and `list`, through the real client and a Hub on this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save

import lowpeft
from local_hub import Hub
from lowpeft import About
from lowpeft.cli import main
from lowpeft.core.files.contents import CARD, CONFIG, FILES, TENSORS
from lowpeft.demo import demo_backbone, write_scenes
from lowpeft.restoration.images import write_image
from training_runs import edt

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the client, at uploads by LFS

HERE = "owner/name"
PICTURE = b"\x89PNG\r\n\x1a\n and more"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter for the demo network, pairs, and what the adapter was measured to give on them."""
    folder = tmp_path_factory.mktemp("sharing")
    write_scenes(folder / "pairs", range(1), size_px=(64, 128))
    for name, value in {"adapter": 0.0, "other": 0.01}.items():
        model = lowpeft.adapt(demo_backbone(), "spatial")
        with torch.no_grad():
            for _, parameter in lowpeft.adapter_parameters(model):
                parameter.add_(value)
        lowpeft.save_adapter(model, folder / name)
    measured = ["--weights", "demo", "--adapter", str(folder / "adapter"), "--data", str(folder / "pairs")]
    assert main(["evaluate", *measured, "--out", str(folder / "measured")]) == 0
    return folder


def said(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    return out + err


def test_push_list_info_and_pull(saved: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = [
        "--license",
        "mit",
        "--summary",
        "clean pairs",
        "--dataset",
        "a",
        "--dataset",
        "b",
        "--evaluation",
        str(saved / "measured"),
    ]
    assert main(["push", str(saved / "adapter"), HERE, "--subfolder", "x2", *card]) == 0
    assert f"{hub.url}/{HERE}/commit/" in said(capsys)
    front = yaml.safe_load(hub.files(HERE)[f"x2/{CARD}"].decode().split("---\n")[1])
    assert (front["license"], front["datasets"], front["metrics"]) == ("mit", ["a", "b"], ["psnr", "ssim"])
    hub.put(HERE, {**hub.files(HERE), CARD: b"---\ntags:\n- lowpeft\n- denoising\n---\n"})
    assert main(["list"]) == 0
    assert said(capsys).splitlines()[1].split() == [HERE, "7", "2026-11-28", "denoising"]
    assert main(["list", "--search", "nothing"]) == 0
    assert said(capsys) == "the Hub has none\n"
    assert main(["list", HERE]) == 0
    row = r"^x2 +spatial +HAT +mit +--adapter owner/name --subfolder x2$"
    assert re.search(row, said(capsys), re.MULTILINE)
    assert main(["info", HERE, "--subfolder", "x2"]) == 0
    unchecked = said(capsys).split("nothing checks it:")[1]
    assert [
        word for word in ("clean pairs", "licence", "mit", "a, b", "results on", "pairs") if word not in unchecked
    ] == []
    assert main(["pull", HERE, "--subfolder", "x2", "--out", str(tmp_path / "here")]) == 0
    assert {path.name for path in (tmp_path / "here").iterdir()} - {".saving.lock"} == {*FILES}
    for name in FILES:
        assert (tmp_path / "here" / name).read_bytes() == hub.files(HERE)[f"x2/{name}"]
    assert main(["list", str(tmp_path)]) == 0
    assert re.search(r"^here +spatial +HAT +6,800 *$", said(capsys), re.MULTILINE)


def test_pull_without_a_folder_says_where_it_is(saved: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    lowpeft.push_to_hub(saved / "adapter", HERE)
    capsys.readouterr()
    assert main(["pull", HERE, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (Path(figures["folder"]) / TENSORS).is_file()
    assert figures["commit"] == hub.repositories[HERE].branches["main"]


def test_a_licence_is_asked_for_once(saved: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(saved / "adapter"), HERE]) == 2
    assert "the licence is not known: --license ID" in said(capsys)
    assert hub.requests == []
    (tmp_path / "shown.png").write_bytes(PICTURE)
    about = About(license="mit", picture=tmp_path / "shown.png")
    model = lowpeft.adapt(demo_backbone(), "spatial")
    assert main(["push", str(lowpeft.save_adapter(model, tmp_path / "a", about=about)), HERE]) == 0
    assert json.loads(hub.files(HERE)[CONFIG])["about"] == {"license": "mit", "picture": "picture.png"}
    assert hub.files(HERE)["picture.png"] == PICTURE


def test_an_evaluation_of_another_adapter_is_refused(saved: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    about = ["--license", "mit", "--evaluation", str(saved / "measured" / "report.json")]
    assert main(["push", str(saved / "other"), HERE, *about]) == 2
    assert "the results are about another adapter" in said(capsys)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("push none owner/name --license mit", "there is no such folder"),
        ("push {saved}/adapter owner/a?b --license mit", "was not pushed to 'owner/a?b'"),
        ("push {saved}/adapter owner/name --license MIT!", "license must be an identifier"),
        ("push {saved}/adapter owner/name --license mit --picture none.png", "none.png"),
        ("pull owner/none", "'owner/none' cannot be read"),
        ("list --revision main", "--revision is for one repository"),
        ("list owner/name --search x", "--search is for the whole Hub"),
        ("list {saved} --revision main", "--revision: for Hub repositories only"),
        ("list nowhere", "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_done_is_one_error(
    command: str, words: str, saved: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command.format(saved=saved).split()) == 2
    assert words in said(capsys)
    assert hub.repositories == {}


def test_commands_take_the_base_that_the_adapter_names(
    saved: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {key: tensor.clone() for key, tensor in demo_backbone().module.state_dict().items()}
    hub.put("owner/base", {"hat.safetensors": save(weights)})
    (tmp_path / "hat.safetensors").write_bytes(save(weights))
    model = lowpeft.adapt(lowpeft.load_backbone(tmp_path / "hat.safetensors"), "spatial")
    lowpeft.push_to_hub(model, HERE, about=About(base_model="owner/base/hat.safetensors"))
    image = str(saved / "pairs" / "train_0000_L.png")
    assert main(["enhance", image, "--adapter", HERE, "--out", str(tmp_path / "out")]) == 0
    assert main(["enhance", image, "--adapter", str(saved / "adapter"), "--out", str(tmp_path / "demo")]) == 0
    one, other = ([*(tmp_path / name).rglob("*.png")] for name in ("out", "demo"))
    assert one[0].read_bytes() == other[0].read_bytes()
    lowpeft.push_to_hub(model, HERE, about=About(base_model="https://example.org/hat.pth"))
    capsys.readouterr()
    assert main(["enhance", image, "--adapter", HERE, "--out", str(tmp_path / "none")]) == 2
    assert re.search(r"at https://example\.org/hat\.pth, which is only shown.*; or give --weights", said(capsys))


def test_a_damaged_adapter_is_listed_as_such(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / TENSORS).write_bytes(b"nothing")
    assert main(["list", str(tmp_path)]) == 0
    assert "adapter_config.json missing" in said(capsys)


def test_a_pull_leaves_the_readers_own_readme_alone(
    saved: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lowpeft.push_to_hub(saved / "adapter", HERE)
    for name in ("README.md", TENSORS):  # another library's, perhaps
        (tmp_path / name).write_text("my thesis")
        assert main(["pull", HERE, "--out", str(tmp_path)]) == 2
        assert "is of no adapter, and would be overwritten" in said(capsys)
        assert (tmp_path / name).read_text() == "my thesis"


def test_a_pulled_picture_can_be_pushed_again(saved: Path, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "shown.png").write_bytes(PICTURE)
    lowpeft.push_to_hub(saved / "adapter", HERE, about=About(license="mit", picture=tmp_path / "shown.png"))
    assert main(["pull", HERE, "--out", str(tmp_path / "here")]) == 0
    assert (tmp_path / "here" / "picture.png").read_bytes() == PICTURE
    assert main(["push", str(tmp_path / "here"), "owner/other"]) == 0
    assert hub.files("owner/other")["picture.png"] == PICTURE


def test_names_in_a_repository_move_no_cursor(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2J $(touch x)"
    hub.put(HERE, {f"{evil}/{TENSORS}": b"", f"{evil}/{CONFIG}": b'{"recipe": {"name": "\\u001b[2J"}}'})
    assert main(["list", HERE]) == 0
    text = said(capsys)
    assert "\x1b" not in text
    assert "--subfolder '" in text


def test_an_adapter_of_an_own_network_brings_its_weights(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = save(edt().module.state_dict())
    hub.put("owner/base", {"w.safetensors": weights})
    (tmp_path / "w.safetensors").write_bytes(weights)
    model = lowpeft.adapt(lowpeft.load_backbone(tmp_path / "w.safetensors", network=edt()), "spatial")
    lowpeft.push_to_hub(model, HERE, about=About(base_model="owner/base/w.safetensors"))
    write_image(torch.zeros(3, 16, 16, dtype=torch.uint8), tmp_path / "a.png")
    command = ["enhance", str(tmp_path / "a.png"), "--adapter", HERE, "--out", str(tmp_path / "out")]
    assert main([*command, "--network", "training_runs:edt"]) == 0
    assert main(command) == 2
    assert "a network of its author's own" in said(capsys)


def test_a_pull_into_a_folder_with_an_adapter_replaces_it(saved: Path, hub: Hub, tmp_path: Path) -> None:
    lowpeft.push_to_hub(saved / "other", HERE)
    folder = lowpeft.save_adapter(lowpeft.adapt(demo_backbone(), "lora"), tmp_path / "a")
    assert main(["pull", HERE, "--out", str(folder)]) == 0
    assert lowpeft.read_adapter(folder).recipe.name == "spatial"
