"""What is said of an adapter, its card, and a base and its adapter by one name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save
from torch import nn

import lowpeft
from local_hub import Hub
from lowpeft import About, AdapterError, LoRAConfig, Result
from lowpeft.backbones.own import Factory
from lowpeft.core.files.card import making_in, model_card
from lowpeft.core.files.contents import CARD, CONFIG, FILES, TENSORS, parsed, tensors_digest
from lowpeft.core.files.hub.pulling import pull
from lowpeft.core.files.results import DIGEST
from lowpeft.demo import demo_backbone
from training_runs import edt

pytestmark = [
    pytest.mark.usefixtures("no_figures"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),  # of the client, at uploads by LFS
]

PICTURE = b"\x89PNG\r\n\x1a\n and more"
HERE, BASE = "owner/name", "owner/base"
MEASURED = Result(
    data="Kodak24",
    degraded="made by noise:25",
    protocol="rgb: whole images",
    means={"frozen": {"PSNR": 27.5642, "SSIM": 0.71}, "adapted": {"PSNR": 31.6105, "SSIM": 0.8712, "other": 1.0}},
    scenes=2,
    verdict="adapted: better",
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 3, 3, 1, 1)).eval()


def adapted(base: Any = None) -> nn.Module:
    model = lowpeft.adapt(network() if base is None else base, LoRAConfig(target="**", rank=2))
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.fill_(0.5)
    return model


def front(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def run_snippet(card: str) -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


# --- What is said
def test_what_is_said_is_in_the_config_and_on_the_card(tmp_path: Path) -> None:
    (tmp_path / "some.PNG").write_bytes(PICTURE)
    about = About(
        summary="noise of colour photographs",
        license="cc-by-nc-4.0",
        base_model="owner/base/weights/net.safetensors@v2",
        datasets=("BSDS500", "KITTI 2015"),
        results=(MEASURED,),
        picture=tmp_path / "some.PNG",
    )
    folder = lowpeft.save_adapter(adapted(), tmp_path / "a", about=about)
    assert (folder / "picture.png").read_bytes() == PICTURE
    said = lowpeft.read_adapter(folder).about
    assert said == About(**{**vars(about), "picture": "picture.png"})
    assert said.base_file is not None
    assert vars(said.base_file) == {"repo_id": BASE, "path": "weights/net.safetensors", "revision": "v2"}
    card = (folder / CARD).read_text()
    found = front(card)
    assert (found["license"], found["base_model"], found["datasets"]) == ("cc-by-nc-4.0", BASE, ["BSDS500"])
    assert found["metrics"] == ["psnr", "ssim"]
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"] == {"name": "Kodak24", "type": "kodak24", "args": {"images": "made by noise:25"}}
    assert result["metrics"] == [
        {"type": "psnr", "value": 31.6105, "name": "PSNR"},
        {"type": "ssim", "value": 0.8712, "name": "SSIM"},
    ]
    assert "## Results on Kodak24, 2 scenes\n\nmade by noise:25; rgb: whole images\n\nadapted: better\n" in card
    assert "|  | PSNR | SSIM | other |\n|---|---|---|---|\n| frozen | 27.56 | 0.7100 |  |\n" in card
    assert "| adapted | 31.61 | 0.8712 | 1.0000 |\n" in card
    assert "| data sets | BSDS500, KITTI 2015 |\n" in card
    assert "![Results](picture.png)" in card
    assert "`owner/base/weights/net.safetensors@v2` on the Hub" in card


def test_nothing_is_said_unasked(tmp_path: Path) -> None:
    folder = lowpeft.save_adapter(adapted(), tmp_path)
    assert json.loads((folder / CONFIG).read_text())["about"] == {}
    assert {"license", "base_model", "datasets", "metrics", "model-index"} & front(
        (folder / CARD).read_text()
    ).keys() == set()
    assert "## Training" not in (folder / CARD).read_text()


@pytest.mark.parametrize(
    ("facts", "scale", "tags"),
    [
        ({"degraded by": "noise:25"}, 1, {"denoising"}),
        ({"degraded by": "blur:1.2,jpeg:30"}, 1, {"deblurring", "jpeg-artifact-removal"}),
        ({"degraded by": "down:4,noise:25"}, 4, {"super-resolution", "x4"}),
        ({}, 1, set()),
    ],
)
def test_the_tags_say_the_task(facts: dict[str, str], scale: int, tags: set[str], tmp_path: Path) -> None:
    layers = [nn.Conv2d(3, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale)]
    model = adapted(lowpeft.describe(nn.Sequential(*layers).eval(), scale=scale))
    card = (lowpeft.save_adapter(model, tmp_path, facts=facts) / CARD).read_text()
    assert {*front(card)["tags"]} == {"lowpeft", "image-restoration", "lora", *tags}


def test_settings_of_training_are_shown_where_lowpeft_trained(tmp_path: Path) -> None:
    card = (lowpeft.save_adapter(adapted(), tmp_path, facts={"training": "3 steps"}) / CARD).read_text()
    assert "## Training\n" in card
    assert "| peak learning rate | 0.0005 |\n" in card


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"license": "Apache 2.0"}, "license must be an identifier"),
        ({"license": ""}, "license must be a text"),
        ({"license": 3}, "license must be a text"),
        ({"base_model": "a/b/c@.."}, "base_model must be owner/name/path"),
        ({"base_model": "a/b/c@../x"}, "base_model must be owner/name/path"),
        ({"base_model": "a/b/c@-x"}, "base_model must be owner/name/path"),
        ({"datasets": 5}, "datasets of an adapter are a list"),
        ({"results": None}, "results of an adapter are a list"),
        ({"picture": 5}, "picture of an adapter is a path"),
        ({"base_model": "../net.pth"}, "base_model must be owner/name/path"),
        ({"base_model": "net.pth"}, "base_model must be owner/name/path"),
        ({"base_model": "owner/name/../../x"}, "base_model must be owner/name/path"),
        ({"base_model": "file:///etc/passwd"}, "base_model must be owner/name/path"),
        ({"base_model": "https://x.y/a b"}, "base_model must be owner/name/path"),
        ({"datasets": ("a\nb",)}, r"datasets\[0\] must be a text"),
        ({"datasets": ("a",) * 101}, "at most 100 datasets"),
        ({"results": ({},)}, "results must be"),
        ({"picture": "a.svg"}, "picture must be a file that ends in"),
        ({"license": "a" * 1001}, "license must be a text of 1 to 1,000"),
    ],
)
def test_what_cannot_be_said_is_refused(said: dict[str, Any], words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        About(**said)


@pytest.mark.parametrize(
    "means", [{"adapted": {"PSNR": float("nan")}}, {"adapted": {"PSNR": True}}, {"": {"PSNR": 1.0}}, {"a": {"": 1.0}}]
)
def test_a_result_has_finite_figures_and_names(means: dict[str, dict[str, float]]) -> None:
    with pytest.raises(AdapterError):
        Result(data="x", degraded="y", protocol="z", means=means)


def test_a_picture_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="there is no picture at"):
        lowpeft.save_adapter(adapted(), tmp_path / "a", about=About(picture=tmp_path / "none.png"))
    assert not (tmp_path / "a").exists()


# --- What was measured
def report(folder: Path, **content: Any) -> Path:
    methods = [
        {"method": name, "mean": {**means, "LPIPS": "inf"}, "scenes": {"a": {}, "b": {}}}
        for name, means in MEASURED.means.items()
    ]
    whole = {
        "protocol": MEASURED.protocol,
        "data": "Kodak24",
        "degraded images": "made by noise:25",
        "methods": methods,
        "gains": [{"verdict": MEASURED.verdict}],
    }
    (folder / "report.json").write_text(json.dumps({**whole, **content}))
    return folder


def test_the_report_of_an_evaluation_becomes_a_result(tmp_path: Path) -> None:
    assert lowpeft.results_of(report(tmp_path)) == (MEASURED,)
    (found,) = lowpeft.results_of(tmp_path / "report.json", "Kodak, cut")
    assert found == replace(MEASURED, data="Kodak, cut")


def test_the_report_of_another_adapter_is_refused(hub: Hub, tmp_path: Path) -> None:
    model = adapted()
    digest = tensors_digest(lowpeft.adapter_state_dict(model))
    right, wrong = (lowpeft.results_of(report(tmp_path, **{DIGEST: each})) for each in (digest, "1234"))
    folder = lowpeft.save_adapter(model, tmp_path / "a", about=About(results=right))
    for call in (
        lambda: lowpeft.save_adapter(model, folder, about=About(results=wrong)),
        lambda: lowpeft.push_to_hub(model, HERE, about=About(results=wrong)),
        lambda: lowpeft.push_to_hub(folder, HERE, about=About(results=wrong)),
    ):
        with pytest.raises(AdapterError, match="the results are about another adapter"):
            call()
    assert lowpeft.read_adapter(folder).about.results == right
    assert hub.requests == []


@pytest.mark.parametrize(
    "content",
    [
        {"methods": None},
        {"methods": [{"method": "frozen", "mean": {"PSNR": 1.0}}]},
        {"methods": [{"method": "adapted", "mean": {}}]},
        {"methods": [3]},
        {"data": "two\nlines"},
        {"methods": [{"method": "adapted", "mean": {"PSNR": 10**400}}]},
    ],
)
def test_what_is_no_report_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"report\.json is no report of `lowpeft evaluate"):
        lowpeft.results_of(report(tmp_path, **content))


# --- A folder is pushed
def test_a_saved_folder_is_pushed_with_what_is_said_now(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "some.webp").write_bytes(PICTURE)
    first = About(license="mit", picture=tmp_path / "some.webp")
    folder = lowpeft.save_adapter(adapted(), tmp_path / "a", facts={"data": "Kodak"}, about=first)
    lowpeft.push_to_hub(folder, HERE, subfolder="x/y")
    sent = {name.removeprefix("x/y/"): data for name, data in hub.files(HERE).items() if name.startswith("x/y/")}
    assert sent.keys() == {*FILES, "picture.webp"}
    assert sent[TENSORS] == (folder / TENSORS).read_bytes()
    assert 'lowpeft.load_adapter(backbone, "owner/name", subfolder="x/y")' in sent[CARD].decode()
    assert front(sent[CARD].decode())["license"] == "mit"
    with pytest.warns(UserWarning, match="kept: picture picture.webp"):
        lowpeft.push_to_hub(str(folder), HERE, subfolder="x/y", about=About(license="apache-2.0"), facts={})
    assert front(hub.files(HERE)[f"x/y/{CARD}"].decode())["license"] == "apache-2.0"
    assert json.loads(hub.files(HERE)[f"x/y/{CONFIG}"])["facts"] == {}
    assert lowpeft.read_adapter(folder).about.license == "mit"


def test_the_card_of_a_pushed_folder_says_how_the_base_is_made(hub: Hub, tmp_path: Path) -> None:
    folder = lowpeft.save_adapter(lowpeft.adapt(demo_backbone(), "spatial"), tmp_path / "a")
    for _ in range(2):  # the second time, the card that is there is lowpeft's own
        lowpeft.push_to_hub(folder, HERE)
    assert run_snippet(hub.files(HERE)[CARD].decode())["restored"].shape == (3, 96, 128)
    (folder / CARD).unlink()
    assert "README.md" in lowpeft.push_to_hub(folder, HERE, dry_run=True)


def test_a_folder_has_one_adapter_and_the_newest_schema(hub: Hub, tmp_path: Path) -> None:
    folder = lowpeft.save_adapter(adapted(), tmp_path / "a")
    with pytest.raises(AdapterError, match="a folder has one"):
        lowpeft.push_to_hub(folder, HERE, name="other")
    with pytest.raises(AdapterError, match="there is no such folder"):
        lowpeft.push_to_hub(tmp_path / "none", HERE)
    old = Path(__file__).parent.parent / "fixtures" / "schema1" / "hat"
    with pytest.raises(AdapterError, match="of schema 1: load it, save it again"):
        lowpeft.push_to_hub(old, HERE)
    assert hub.requests == []


@pytest.mark.parametrize("place", [f"{BASE}/none.pth", "owner/none/net.pth", "owner/none"])
def test_a_base_that_is_not_there_is_not_written(place: str, hub: Hub) -> None:
    hub.put(BASE, {"net.pth": b""})
    with pytest.raises(AdapterError, match=f"names {place}, but the Hub has no such"):
        lowpeft.push_to_hub(adapted(), HERE, about=About(base_model=place))
    assert HERE not in hub.repositories


def test_a_second_push_keeps_what_was_said(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "some.png").write_bytes(PICTURE)
    model = adapted()
    result = replace(MEASURED, adapter=tensors_digest(lowpeft.adapter_state_dict(model)))
    first = About(license="mit", datasets=("BSDS500",), results=(result,), picture=tmp_path / "some.png")
    lowpeft.push_to_hub(model, HERE, about=first)
    kept = r"'owner/name' says already is kept: datasets .*, results, picture picture\.png"
    with pytest.warns(UserWarning, match=kept):
        lowpeft.push_to_hub(model, HERE, about=About(license="apache-2.0"))
    about = json.loads(hub.files(HERE)[CONFIG])["about"]
    assert about == {**about, "license": "apache-2.0", "datasets": ["BSDS500"], "picture": "picture.png"}
    assert "| adapted | 31.61" in hub.files(HERE)[CARD].decode()
    assert hub.files(HERE)["picture.png"] == PICTURE
    with torch.no_grad():
        for _, parameter in lowpeft.adapter_parameters(model):
            parameter.add_(1)
    with pytest.warns(UserWarning, match="kept: license apache-2"):
        lowpeft.push_to_hub(model, HERE)
    assert "results" not in json.loads(hub.files(HERE)[CONFIG])["about"]  # they were of other tensors
    assert lowpeft.read_adapter(pull(HERE).folder).about.license == "apache-2.0"
    lowpeft.push_to_hub(model, HERE, about=About(license="mit"), overwrite=True)
    assert json.loads(hub.files(HERE)[CONFIG])["about"] == {"license": "mit"}
    lowpeft.push_to_hub(adapted(network(seed=1)), HERE, overwrite=True)  # of another base
    assert json.loads(hub.files(HERE)[CONFIG])["about"] == {}


def test_a_repository_of_folders_has_a_card_of_its_own(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE, subfolder="a", about=About(license="mit"))
    card = hub.files(HERE)[CARD].decode()
    assert (front(card)["license"], "lowpeft" in front(card)["tags"]) == ("mit", True)
    assert "`lowpeft list owner/name`" in card
    lowpeft.push_to_hub(adapted(), HERE)  # it is lowpeft's own
    hub.put(HERE, {**hub.files(HERE), CARD: b"mine"})
    lowpeft.push_to_hub(adapted(), HERE, subfolder="b")
    assert hub.files(HERE)[CARD] == b"mine"


def test_a_forged_config_of_a_repository_is_checked_as_ones_own_words(hub: Hub) -> None:
    lowpeft.push_to_hub(adapted(), HERE)
    files = hub.files(HERE)
    config = json.loads(files[CONFIG])
    config["about"] = {"base_model": "gone/base/x.safetensors", "picture": "picture.webp"}
    hub.put(HERE, {**files, CONFIG: json.dumps(config).encode()})
    with (
        pytest.warns(UserWarning, match="kept: base_model gone/base"),
        pytest.raises(AdapterError, match="no such file"),
    ):
        lowpeft.push_to_hub(adapted(), HERE, edited_card="replace")
    config["about"] = {"picture": "picture.webp"}
    hub.put(HERE, {**files, CONFIG: json.dumps(config).encode()})
    lowpeft.push_to_hub(adapted(), HERE, edited_card="replace")
    assert json.loads(hub.files(HERE)[CONFIG])["about"] == {}


@pytest.mark.parametrize("repo_id", ["name", "a/b/c", "", 3])
def test_what_is_no_repository_is_refused(repo_id: Any, hub: Hub) -> None:
    with pytest.raises(AdapterError, match="a Hub repository is written owner/name"):
        lowpeft.push_to_hub(adapted(), repo_id)
    assert hub.requests == []


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.system('id')\n\nbackbone = make()",
        '\nbackbone = exec("x")',
        'from os import system\n\nbackbone = system("id")',
        'from mine import make\n\nbackbone = make("x")  # do that',
        'from mine import make\n\nbackbone = torch.hub.load("evil/x")',
        '\nbackbone = __import__("os").system("id")',
        "\nbackbone = [make() for _ in range(9)]",
        "\nbackbone = make(lambda: 0)",
        "\n<script>x</script>\n\nbackbone = make()",
    ],
)
def test_code_of_another_kind_is_not_taken_over(code: str) -> None:
    assert making_in(f"```python\nimport lowpeft\n{code}\nmodel = lowpeft.load_adapter(backbone)\n```") is None


def test_a_long_card_takes_no_time() -> None:
    assert making_in("import lowpeft\n" * 50_000) is None


def test_words_of_a_config_stay_words_on_the_card(tmp_path: Path) -> None:
    config = json.loads((lowpeft.save_adapter(adapted(), tmp_path) / CONFIG).read_text())
    config["base"]["weights"] = "`<img src=x>` [login](http://evil)"
    config["lowpeft"] = "9\n\n<iframe>"
    config["facts"] = {"a": "y\\|z", "b": "~~~", "c": "\\[x](http://evil)"}
    card = model_card(config, 0, '"x"')
    assert [word for word in ("<img", "<iframe", " [login]") if word in card] == []
    assert [word for word in (r"y\\\|z", r"\~\~\~", r"\\\[x]") if word not in card] == []


@pytest.mark.parametrize("facts", [{str(n): 1 for n in range(1001)}, {"x": "y" * 10_001}, {"y" * 10_001: 1}])
def test_facts_have_a_limit(facts: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="at most"):
        lowpeft.save_adapter(adapted(), tmp_path / "a", facts=facts)
    config = json.loads((lowpeft.save_adapter(adapted(), tmp_path / "b") / CONFIG).read_text())
    with pytest.raises(AdapterError, match="at most"):
        parsed({**config, "facts": facts}, "x")


@pytest.mark.parametrize("content", [b"text", b"", PICTURE + bytes(5 * 2**20)])
def test_what_is_no_picture_is_not_saved(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(AdapterError, match=r"picture"):
        lowpeft.save_adapter(adapted(), tmp_path / "a", about=About(picture=tmp_path / "a.png"))


# --- A base and its adapter
@pytest.fixture
def shared(hub: Hub, tmp_path: Path) -> Callable[..., nn.Module]:
    """A function that puts a base and an adapter for it on the Hub, and returns the adapted network."""

    def share(base_model: str | None = f"{BASE}/nets/hat-x2.safetensors") -> nn.Module:
        weights = demo_backbone().module.state_dict()
        hub.put(BASE, {"nets/hat-x2.safetensors": save({key: tensor.clone() for key, tensor in weights.items()})})
        file = tmp_path / "hat-x2.safetensors"
        file.write_bytes(hub.files(BASE)["nets/hat-x2.safetensors"])
        model = adapted(lowpeft.load_backbone(file))
        with pytest.MonkeyPatch.context() as patch:  # it may have been there when the adapter was pushed
            patch.setattr("lowpeft.core.files.hub.pushing._check_source", lambda api, about: None)
            lowpeft.push_to_hub(model, HERE, about=About(base_model=base_model))
        return model

    return share


def test_an_adapter_and_its_base_by_one_name(shared: Callable[..., nn.Module], hub: Hub) -> None:
    model, image = shared(), torch.rand(1, 3, 16, 16)
    names = run_snippet(hub.files(HERE)[CARD].decode())  # as it stands
    assert names["restored"].shape == (3, 96, 128)
    again = lowpeft.load_pretrained(HERE)
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(image), model(image))
    hub.faults.clear()
    hub.url = "http://127.0.0.1:9"
    lowpeft.load_pretrained(pull(HERE, local_files_only=True).folder, local_files_only=True)
    offline = lowpeft.load_pretrained(HERE, local_files_only=True)
    with torch.no_grad():
        assert torch.equal(offline(image), model(image))


def test_a_base_that_was_exchanged_is_refused(shared: Callable[..., nn.Module], hub: Hub) -> None:
    shared()
    weights = {key: tensor.clone() for key, tensor in demo_backbone().module.state_dict().items()}
    weights["conv_first.bias"] += 1
    hub.put(BASE, {"nets/hat-x2.safetensors": save(weights)})
    with pytest.raises(AdapterError, match="belongs to another base"):
        lowpeft.load_pretrained(HERE)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (None, "its config does not say where the weights of the base are"),
        ("https://example.org/net.pth", r"weights are at https://example\.org/net\.pth, which is only shown"),
        (BASE, "is a repository, and no file in it"),
        (f"{BASE}/none.pth", "'owner/base' cannot be read"),
        ("owner/none/net.pth", "'owner/none' cannot be read"),
    ],
)
def test_a_base_that_is_not_on_the_hub_is_named(
    place: str | None, words: str, shared: Callable[..., nn.Module], hub: Hub
) -> None:
    shared(place)
    before = len(hub.requests)
    with pytest.raises(AdapterError, match=words):
        lowpeft.load_pretrained(HERE)
    assert not [request for request in hub.requests[before:] if "example.org" in request["asked"]]


def test_the_card_of_a_network_of_ones_own_fetches_its_weights(hub: Hub, tmp_path: Path) -> None:
    hub.put(BASE, {"w/own.safetensors": save(edt().module.state_dict())})
    (tmp_path / "own.safetensors").write_bytes(save(edt().module.state_dict()))
    base = Factory(name="training_runs:edt").load(tmp_path / "own.safetensors")
    lowpeft.push_to_hub(lowpeft.adapt(base, "spatial"), HERE, about=About(base_model=f"{BASE}/w/own.safetensors"))
    card = hub.files(HERE)[CARD].decode()
    assert 'model = lowpeft.load_pretrained("owner/name", network=edt())' in card
    assert run_snippet(card)["restored"].shape == (3, 96, 128)
    lowpeft.push_to_hub(pull(HERE).folder, HERE)  # the card is lowpeft's own
    assert hub.files(HERE)[CARD].decode() == card


def test_a_network_of_ones_own_is_filled(hub: Hub) -> None:
    hub.put(BASE, {"own.safetensors": save(network().state_dict())})
    model = adapted()
    lowpeft.push_to_hub(model, HERE, about=About(base_model=f"{BASE}/own.safetensors"))
    with pytest.raises(AdapterError, match="a network of its author's own: build it, and give it as network="):
        lowpeft.load_pretrained(HERE)
    again = lowpeft.load_pretrained(HERE, network=network(seed=7))
    image = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(again(image), model(image))


def test_the_demo_needs_no_file(tmp_path: Path) -> None:
    folder = lowpeft.save_adapter(lowpeft.adapt(demo_backbone(), "spatial"), tmp_path / "a")
    assert lowpeft.list_adapters(lowpeft.load_pretrained(folder)) == ["default"]


@pytest.mark.parametrize("opening", [{"path": "/etc"}, {"weights": 3}, {"demo": "yes"}, [1], 3])
def test_a_base_is_opened_with_known_options_only(opening: object, tmp_path: Path) -> None:
    config = json.loads((lowpeft.save_adapter(adapted(), tmp_path) / CONFIG).read_text())
    with pytest.raises(AdapterError, match="is not what lowpeft writes"):
        parsed({**config, "opening": opening}, "x")
