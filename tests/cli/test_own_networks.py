"""`--network MODULE:FUNCTION`: networks of one's own in every command that takes a network."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lowpeft
from lowpeft.backbones.own import Factory
from lowpeft.cli import main, parser
from lowpeft.cli.common import backbone
from lowpeft.demo import demo_backbone
from lowpeft.restoration.images import write_image
from tiers import by_default

pytestmark = pytest.mark.usefixtures("no_curves")

CODE = """
import torch
from torch import nn

import lowpeft


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1), nn.GELU(), nn.Conv2d(dim, dim, 3, 1, 1))

    def forward(self, x):
        return x + self.body(x)


class Net(nn.Module):
    def __init__(self, dim, scale):
        super().__init__()
        self.head = nn.Conv2d(3, dim, 3, 1, 1)
        self.avg = nn.Conv2d(dim, dim, 1)
        self.stages = nn.ModuleList(Block(dim) for _ in range(3))
        self.tail = nn.Sequential(nn.Conv2d(dim, 3 * scale**2, 3, 1, 1), nn.PixelShuffle(scale))

    def forward(self, x):
        x = self.avg(self.head(x))
        for stage in self.stages:
            x = stage(x)
        return self.tail(x)


def make_secret(dim=8, scale=2):
    return Net(dim, scale)


def make_pooled():
    pooled = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, 192, 1), nn.PixelShuffle(4), nn.PixelShuffle(2))
    return nn.Sequential(nn.Conv2d(3, 3, 3, 1, 1), *pooled)


def make_backbone(dim=8):
    return lowpeft.describe(Net(dim, 2), value_range=(0, 255))


def needs(dim, depths):
    return Net(dim, 2)


def fails():
    raise OSError("no licence server")


def gives_text():
    return "a network"


SHARED = Net(8, 2)


def shared():
    return SHARED


def loaded():
    net = Net(8, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.1)
    return net


def changes_torch():
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    return Net(8, 2).float()


def leaves():
    raise SystemExit(3)


async def later():
    return Net(8, 2)


NUMBER = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a module of networks."""
    (tmp_path / "privatenets.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("import not_there_at_all\n")
    (tmp_path / "stops.py").write_text("raise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("privatenets", "broken", "stops"):
        sys.modules.pop(name, None)


def network(dim: int = 8) -> torch.nn.Module:
    """A network of the module with random weights."""
    import privatenets

    made: torch.nn.Module = privatenets.make_secret(dim=dim)
    return made


OWN = ["--network", "privatenets:make_secret"]


def test_every_command_with_weights_has_the_option() -> None:
    (action,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    options = {name: set(sub._option_string_actions) for name, sub in action.choices.items()}
    without = {name for name, has in options.items() if "--weights" in has and "--network" not in has}
    assert without == {"reproduce"}  # its --weights is a folder of the checkpoints of the paper's rows


def test_plan_and_methods_run_on_an_own_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "lora", *OWN, "--network-set", "dim=4"]) == 0
    assert "4x4x3x3" in capsys.readouterr().out
    assert main(["methods", *OWN, "--no-memory", "--json"]) == 0
    assert any(row["trained"] for row in json.loads(capsys.readouterr().out)["methods"])


def test_facts_are_measured_or_given(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    base = Factory(name="privatenets:make_secret", arguments={"scale": 3}).load(facts={"value_range": [0, 255]})
    assert (base.scale, base.value_range, base.channels, base.module.training) == (3, (0.0, 255.0), 3, False)
    assert Factory(name="privatenets:make_backbone").load().value_range == (0.0, 255.0)
    again = Factory(name="privatenets:make_secret", arguments={"scale": 3}).load()
    assert torch.equal(again.module.head.weight, base.module.head.weight)  # of the same seed


def test_facts_can_be_given_for_any_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = parser().parse_args(["plan", "lora", "--weights", "demo", "--network-fact", "value_range=[0,255]"])
    assert backbone(options).value_range == (0.0, 255.0)


@pytest.mark.parametrize(
    ("fact", "says"),
    [
        ("scale=4", "scale=4, but the network's scale is 2"),
        ("channels=1", "channels=1, but it runs on 3 channels"),
        ("size_multiple=2", "size_multiple=2, but the network fails on .*; size_multiple: 4 px, measured"),
        ("fixed_px=30", "fixed_px=30, but the network fails on 30x30 px"),
    ],
)
def test_facts_that_a_run_contradicts_are_refused(fact: str, says: str, folder: Path) -> None:
    options = ["plan", "lora", "--network", "privatenets:make_pooled", "--network-fact"]
    with pytest.raises(lowpeft.LowpeftError, match="contradicts") as caught:
        backbone(parser().parse_args([*options, fact]))
    assert re.match(says, caught.value.problems[0])


def test_facts_that_a_run_confirms_or_cannot_tell_count(folder: Path) -> None:
    facts = ["scale=2", "channels=3", "size_multiple=8", "min_px=8", "value_range=[0,255]", "strips=false"]
    given = [text for fact in facts for text in ("--network-fact", fact)]
    base = backbone(parser().parse_args(["plan", "lora", "--network", "privatenets:make_pooled", *given]))
    assert (base.size_multiple, base.min_px, base.strips) == (8, 8, False)
    base = backbone(parser().parse_args(["plan", "lora", "--network", "privatenets:make_pooled", *given[:2]]))
    assert (base.scale, base.size_multiple) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--network", "demo"], "'demo' MODULE:FUNCTION --weights"),
        (["--network", "not_there:make"], "'not_there' current folder PYTHONPATH"),
        (["--network", "broken:make"], "broken not_there_at_all broken.py"),
        (["--network", "stops:make"], "stops SystemExit"),
        (["--network", "privatenets:make_secre"], "privatenets.py 'make_secret'"),
        (["--network", "privatenets:NUMBER"], "int not function"),
        (["--network", "privatenets:SHARED"], "Net not function"),
        (["--network", "privatenets:needs"], "dim, depths --network-set dim="),
        ([*OWN, "--network-set", "dims=4"], "'dims' 'dim'"),
        ([*OWN, "--network-set", 'dim="a"'], 'make_secret(dim="a") TypeError'),
        ([*OWN, "--network-set", "dim"], "--network-set 'dim' FIELD=VALUE"),
        ([*OWN, "--network-fact", "scal=4"], "'scal' 'scale' value_range"),
        ([*OWN, "--network-fact", "scale=0"], "scale"),
        (["--network", "privatenets:fails"], "OSError licence privatenets.py"),
        (["--network", "privatenets:gives_text"], "str torch.nn.Module"),
        ([*OWN, "--task", "sr_x4"], "--task"),
        ([*OWN, "--raw-weights"], "--raw-weights"),
        ([*OWN, "--weights", "demo"], "demo"),
        ([*OWN, "--weights", "none.pth"], "none.pth"),
        (["--weights", "demo", "--network-set", "dim=4"], "--network-set --network"),
        (["--weights", "demo", "--network-fact", "scal=4"], "'scal' 'scale'"),
        ([], "--weights --network"),
    ],
)
def test_errors_name_what_is_wrong(
    arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "lora", *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith("lowpeft plan: ")
    assert [word for word in words.split() if word not in message] == []
    assert "Traceback" not in message


# --- Weights of a file
def saved(folder: Path, wrap: str) -> torch.nn.Module:
    """A network whose tensors are written to `own.pth`, in the form of a trainer."""
    sys.path.insert(0, str(folder))
    torch.manual_seed(5)
    made = network()
    state = made.state_dict()
    other = {key: tensor + 1 for key, tensor in state.items()}
    content = {
        "bare": state,
        "params": {"params": state, "iter": 3},
        "ema": {"params": other, "params_ema": state},
        "parallel": {"state_dict": {f"module.{key}": tensor for key, tensor in state.items()}},
        "lightning": {"state_dict": {f"model.{k}": t for k, t in state.items()} | {"loss.weight": torch.ones(3)}},
        "masks": {**state, "stages.0.attn_mask": torch.zeros(4, 16, 16)},
    }[wrap]
    torch.save(content, folder / "own.pth")
    return made


@pytest.mark.parametrize("wrap", ["bare", "params", "ema", "parallel", "lightning", "masks"])
def test_a_file_is_loaded_into_the_network(wrap: str, folder: Path) -> None:
    """The layer `avg` is no average."""
    made = saved(folder, wrap)
    base = lowpeft.load_backbone("own.pth", network=network())
    assert all(torch.equal(t, base.module.state_dict()[k]) for k, t in made.state_dict().items())
    assert base.scale == 2
    assert any("EMA" in note for note in base.notes) is (wrap == "ema")


def test_raw_weights_are_taken_on_request(folder: Path) -> None:
    made = saved(folder, "ema")
    base = lowpeft.load_backbone("own.pth", network=network(), weights="raw")
    assert torch.equal(base.module.head.bias, made.head.bias + 1)


def test_other_tensors_are_listed_and_the_network_stays(folder: Path) -> None:
    made = saved(folder, "bare")
    state = made.state_dict() | {f"more.{n}": torch.zeros(1) for n in range(99)}
    del state["head.bias"]
    torch.save(state | {"head.weight": torch.zeros(8, 3, 5, 5)}, "other.pth")
    target = network()
    before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
    with pytest.raises(lowpeft.LowpeftError, match=r"other\.pth cannot be loaded into Net") as caught:
        lowpeft.load_backbone("other.pth", network=target)
    problems = caught.value.problems
    assert "missing: head.bias" in problems
    assert "of another shape: head.weight: 8x3x5x5 for 8x3x3x3" in problems
    assert "unexpected: … and 79 more" in problems
    assert len(problems) < 30
    assert all(torch.equal(before[key], tensor) for key, tensor in target.state_dict().items())


# --- The whole
@pytest.mark.parametrize("recipe", by_default(["lora", "scratch"], ["lora", "spatial", "full", "scratch"]))
def test_recipes_train_on_an_own_network_and_its_result_is_measured(
    recipe: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(folder, "params")
    (folder / "photos").mkdir()
    image = (255 * torch.rand(3, 48, 64, generator=torch.Generator().manual_seed(0))).to(torch.uint8)
    write_image(image, folder / "photos" / "one.png")
    base = [*OWN, "--weights", "own.pth", "--device", "cpu"]
    train = ["train", recipe, *base, "--images", "photos", "--steps", "1", "--batch", "1", "--crop", "24", "24"]
    merged = recipe in ("lora", "full")
    assert main([*train, "--out", "out", *["--merge"] * merged]) == 0
    measure = ["evaluate", *OWN, "--data", "photos", "--protocol", "single-image", "--device", "cpu"]
    written = {}
    if recipe != "scratch":
        assert main([*measure, "--weights", "own.pth", "--adapter", "out", "--out", "adapted"]) == 0
        written["adapted"] = json.loads(Path("adapted/report.json").read_text())
    if merged or recipe == "scratch":
        assert main([*measure, "--weights", "out/network.safetensors", "--out", "merged"]) == 0
        written["merged"] = json.loads(Path("merged/report.json").read_text())
    for report in written.values():
        assert "privatenets:make_secret" in json.dumps(report)
    capsys.readouterr()


def test_scratch_builds_the_network_anew_under_the_seed(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    from lowpeft.restoration.training import build_model

    recipe = lowpeft.recipes.load_recipe("scratch")
    recipe = dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=1))
    backbones = [Factory(name="privatenets:make_secret").load() for _ in range(2)]
    before = backbones[0].module.head.weight.clone()
    first, second = (build_model(base, recipe).module.head.weight for base in backbones)
    assert torch.equal(first, second)
    assert not torch.equal(first, before)
    with pytest.raises(lowpeft.PlanError, match="the same network each time"):
        build_model(Factory(name="privatenets:shared").load(), recipe)
    with pytest.raises(lowpeft.PlanError, match="the same weights under every seed"):
        build_model(Factory(name="privatenets:loaded").load(), recipe)


def test_a_function_changes_nothing_of_torch(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    Factory(name="privatenets:changes_torch").load()
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    for name, says in {"leaves": "SystemExit", "later": "returned a coroutine"}.items():
        with pytest.raises(lowpeft.LowpeftError, match=says):
            Factory(name=f"privatenets:{name}").load()


def test_averaged_weights_alone_that_do_not_fit_are_listed(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    torch.save({"params_ema": network(9).state_dict()}, "average.pth")
    with pytest.raises(lowpeft.LowpeftError, match=r"average\.pth cannot be loaded into Net") as caught:
        lowpeft.load_backbone("average.pth", network=network())
    assert "of another shape: head.weight: 9x3x3x3 for 8x3x3x3" in caught.value.problems


# --- What files say
def snippet(folder: Path) -> str:
    """The Python block of an adapter's card."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return str(code)


def run_snippet(folder: Path) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(snippet(folder), names)
    return names


def run_filled_in(folder: Path, place: str, filled_in: torch.nn.Module) -> dict[str, object]:
    """Run the card's code with the network in the place that its reader fills in; the other lines as they are."""
    assert snippet(folder).count(place) == snippet(folder).count("...") == 1
    names: dict[str, object] = {"given": filled_in}
    exec(snippet(folder).replace(place, place.partition("...")[0] + "given"), names)
    return names


@pytest.mark.parametrize("with_file", [True, False])
def test_the_card_shows_how_the_network_is_made_and_no_other_file_does(with_file: bool, folder: Path) -> None:
    saved(folder, "ema")
    factory = Factory(name="privatenets:make_secret", arguments={"dim": 8})
    base = factory.load("own.pth" if with_file else None, facts={"value_range": [0, 255]})
    lowpeft.save_adapter(lowpeft.adapt(base, "spatial"), "mine")
    assert "from privatenets import make_secret\n" in snippet(folder / "mine")
    loading = 'lowpeft.load_backbone("own.pth", network=make_secret(dim=8))' if with_file else "make_secret(dim=8)"
    assert f"backbone = lowpeft.describe({loading}, value_range=[0, 255])" in snippet(folder / "mine")
    with safe_open("mine/adapter_model.safetensors", framework="pt") as file:
        texts = [json.dumps(file.metadata()), Path("mine/adapter_config.json").read_text()]
    assert [word for word in ("privatenets", "make_secret") for text in texts if word in text] == []
    torch.manual_seed(0)  # that of a network without a file
    restored = run_snippet(folder / "mine")["restored"]
    assert isinstance(restored, torch.Tensor)
    assert restored.shape == (3, 96, 128)


@pytest.mark.parametrize("recipe", by_default(["stereo"], ["stereo", "lora"]))
def test_the_card_of_the_demo_runs_as_it_stands(recipe: str, folder: Path) -> None:
    lowpeft.save_adapter(lowpeft.adapt(demo_backbone(), recipe), "mine")
    assert {"left_sr" if recipe == "stereo" else "restored"} <= run_snippet(folder / "mine").keys()


def test_the_card_of_a_checkpoint_names_the_file_and_how_it_was_opened(folder: Path) -> None:
    torch.save({"params": demo_backbone().module.state_dict()}, "HAT x2.pth")
    base = lowpeft.describe(lowpeft.load_backbone(folder / "HAT x2.pth"), strips=False)
    lowpeft.save_adapter(lowpeft.adapt(base, "spatial"), "mine")
    line = 'backbone = lowpeft.describe(lowpeft.load_backbone("HAT x2.pth"), strips=False)'
    assert line in snippet(folder / "mine")
    assert "restored" in run_snippet(folder / "mine")


def test_the_card_of_a_bare_module_says_which_network_belongs_there(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    own = network()
    lowpeft.save_adapter(lowpeft.adapt(own, "lora"), "mine")
    lowpeft.restore(own)
    place = "backbone = ...  # fill in: your Net, with its weights (checksums below)"
    assert place in snippet(folder / "mine")
    assert "restored" in run_filled_in(folder / "mine", place, own)


def test_the_card_of_a_network_with_a_file_says_which_network_belongs_there(folder: Path) -> None:
    saved(folder, "ema")
    base = lowpeft.load_backbone("own.pth", network=network())
    lowpeft.save_adapter(lowpeft.adapt(lowpeft.describe(base, value_range=(0, 255)), "stereo"), "mine")
    place = "network = ...  # fill in: your Net, before its weights are loaded"
    assert 'lowpeft.load_backbone("own.pth", network=network)' in snippet(folder / "mine")
    assert "left_sr" in run_filled_in(folder / "mine", place, network())
