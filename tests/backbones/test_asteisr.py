"""Networks in the layout of ASteISR's authors: taken apart, run with either mask, refused where they are not such."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lowpeft
from local_hub import in_place_of_the_hub
from lowpeft import AdapterError, LoRAConfig, LowpeftError, PlanError, SpatialConfig, StereoModel, convert_asteisr
from lowpeft.backbones.asteisr import ADAPTER, WEIGHTS, Converted
from lowpeft.cli import main, parser
from lowpeft.core.files.contents import CONFIG
from lowpeft.core.files.hub.pulling import pull
from lowpeft.core.operations.injection import install_forwards
from lowpeft.families import register_block_forward
from lowpeft.families.hat import MASKS, PUBLISHED_MASK
from states import assert_same_tensors, authors_outputs, randomise_adapters, tensors
from tiers import by_default
from zoo import build

Pair = tuple[Tensor, Tensor]
pytestmark = pytest.mark.usefixtures("no_trial_of_the_batch")
every_mask = pytest.mark.parametrize("mask", MASKS)

NAMES = {
    ".spatial_attention.fc1.": ".S_Adapter.D_fc1.",
    ".spatial_attention.fc2.": ".S_Adapter.D_fc2.",
    ".conv.stereo.beta": ".stereo_adapter.beta",
    ".conv.stereo.gamma": ".stereo_adapter.gamma",
    ".conv.stereo.norm_left.": ".stereo_adapter.norm_l.",
    ".conv.stereo.norm_right.": ".stereo_adapter.norm_r.",
    ".conv.stereo.query_left.": ".stereo_adapter.l_proj1.",
    ".conv.stereo.query_right.": ".stereo_adapter.r_proj1.",
    ".conv.stereo.value_left.": ".stereo_adapter.l_proj2.",
    ".conv.stereo.value_right.": ".stereo_adapter.r_proj2.",
}
"""A part of each name of ours, and of the authors'."""


def theirs(key: str, tensor: Tensor) -> tuple[str, Tensor]:
    """An adapter's tensor as the authors have it: the stereo adapter is made of 1x1 convolutions."""
    (ours,) = (part for part in NAMES if part in key)
    name = key.replace(ours, NAMES[ours])
    if name.endswith(("beta", "gamma")):
        return name, tensor.reshape(1, -1, 1, 1)
    return name, tensor[:, :, None, None] if "_proj" in name and tensor.dim() == 2 else tensor


def tiny() -> StereoModel:
    """HAT with ASteISR's adapters, filled with random numbers, and attention that is not nearly even."""
    root = build("hat")
    with torch.no_grad():
        for block in (m for name, m in root.named_modules() if name.endswith(".attn")):
            block.qkv.weight.mul_(4.0)
    return randomise_adapters(lowpeft.adapt(root, "stereo"))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A tiny network as the authors would save it."""
    model = tiny()
    adapters = dict(theirs(*item) for item in lowpeft.adapter_state_dict(model).items())
    return lowpeft.restore(copy.deepcopy(model)).state_dict() | adapters


@pytest.fixture(scope="module")
def network(state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("asteisr") / "network.pth"
    torch.save({"params": state}, path)
    return path


@pytest.fixture(scope="module")
def converted(network: Path, state: dict[str, Tensor]) -> dict[str, Converted]:
    """Once from the file, once from what training code may make of it, into a folder that is there."""
    wrapped, empty = network.with_name("wrapped.pth"), network.with_name("empty")
    torch.save({"params_ema": {f"module.{key}": tensor for key, tensor in state.items()}}, wrapped)
    empty.mkdir()
    return {
        "hat": convert_asteisr(wrapped, empty),
        "published": convert_asteisr(network, network.with_name("published"), mask="published"),
    }


def opened(found: Converted) -> StereoModel:
    model = lowpeft.load_adapter(lowpeft.load_backbone(found.weights), found.adapter)
    assert isinstance(model, StereoModel)
    return model


@pytest.fixture(scope="module")
def pair() -> Pair:
    """Two scenes; 8x12 positions are windows that a shift wraps around."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 8, 12, generator=generator), torch.rand(2, 3, 8, 12, generator=generator)


@torch.no_grad()
def run(model: nn.Module, pair: Pair) -> Tensor:
    return torch.stack(model(*pair), 1)


def mask_everywhere(model: StereoModel, size: tuple[int, int]) -> None:
    """What the published code does, done from outside: attention of unshifted blocks gets the mask too."""
    root = model.backbone

    def give_mask(attention: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        return args, {**kwargs, "mask": root.calculate_mask(size, torch.float32)}

    for name, block in root.named_modules():
        if name.endswith(("blocks.0", "blocks.1")) and not block.shift_size:
            block.attn.register_forward_pre_hook(give_mask, with_kwargs=True)


# --- The authors' network --------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def published() -> Path:
    """The folder with a network in the authors' layout and its outputs; skipped where it is not there."""
    return authors_outputs("asteisr")


@pytest.mark.parametrize(
    ("mask", "reference"),
    by_default([("published", "as_published")], [("published", "as_published"), (None, "mask_in_shifted_blocks_only")]),
)
def test_the_authors_network_gives_their_outputs(
    mask: str | None, reference: str, published: Path, tmp_path: Path
) -> None:
    options = {} if mask is None else {"mask": mask}
    model = opened(convert_asteisr(published / "network.pth", tmp_path / "out", **options)).double()
    expected = load_file(published / "reference.safetensors")
    left, right = expected["input"].double().chunk(2, dim=1)
    with torch.no_grad():
        found = torch.cat(model(left, right), dim=1)
    assert (found - expected[reference]).abs().max().item() < 1e-5
    others = expected.keys() - {"input", reference}
    assert all((found - expected[other]).abs().max().item() > 1e-2 for other in others)


# --- What is written -------------------------------------------------------------------------------------------------


def test_converted_adapters_are_those_that_were_renamed(converted: dict[str, Converted], pair: Pair) -> None:
    model, source = opened(converted["hat"]), tiny()
    assert_same_tensors(lowpeft.adapter_state_dict(model), lowpeft.adapter_state_dict(source))
    assert torch.equal(run(model, pair), run(source, pair))


def test_the_published_mask_is_used_in_every_block(converted: dict[str, Converted], pair: Pair) -> None:
    model, source = opened(converted["published"]), tiny()
    plain = run(source, pair)
    mask_everywhere(source, (8, 12))
    expected = run(source, pair)
    assert (expected - plain).abs().max() > 1e-4
    assert torch.equal(run(model, pair), expected)


def test_both_masks_have_the_same_tensors(converted: dict[str, Converted], state: dict[str, Tensor]) -> None:
    files = [load_file(found.weights) for found in converted.values()]
    assert_same_tensors(files[0], files[1])
    assert files[0].keys() == {key for key in state if "dapter" not in key}
    adapters = [lowpeft.read_adapter(found.adapter) for found in converted.values()]
    assert_same_tensors(adapters[0].tensors, adapters[1].tensors)
    assert [adapter.facts["attention mask"] for adapter in adapters] == list(MASKS)
    assert [path.name for path in converted["hat"]] == [WEIGHTS, ADAPTER]


# --- The mask lives and goes with its adapter ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of the Hub's client
def test_saving_loading_copying_and_pushing_keep_the_mask(
    converted: dict[str, Converted], pair: Pair, tmp_path: Path
) -> None:
    weights, adapter = converted["published"]
    model = opened(converted["published"])
    expected = run(model, pair)
    again = lowpeft.save_adapter(model, tmp_path / "again")
    with in_place_of_the_hub(tmp_path / "cache"):
        lowpeft.push_to_hub(model, "owner/name")
        pulled = pull("owner/name").folder
    for folder in (again, pulled):
        assert lowpeft.read_adapter(folder).sites == lowpeft.read_adapter(adapter).sites
        assert torch.equal(run(opened(Converted(weights, folder)), pair), expected)
    assert torch.equal(run(copy.deepcopy(model), pair), expected)
    lowpeft.rename(model, "default", "authors")
    assert torch.equal(run(model, pair), expected)


@every_mask
def test_switched_off_and_restored_it_is_hat_bit_for_bit(
    mask: str, converted: dict[str, Converted], pair: Pair
) -> None:
    plain = lowpeft.load_backbone(converted[mask].weights).module
    left, _ = pair
    with torch.no_grad():
        expected = plain(left)
        model = opened(converted[mask])
        before = tensors(model.backbone)
        with lowpeft.disabled(model):
            assert torch.equal(model.backbone(left), expected)
        root = lowpeft.restore(model)
        assert torch.equal(root(left), expected)
    assert {type(m) for m in root.modules()} == {type(m) for m in plain.modules()}
    assert_same_tensors(tensors(root), before)


def test_a_scene_at_strength_0_is_hat_beside_one_with_the_published_mask(
    converted: dict[str, Converted], pair: Pair
) -> None:
    model = opened(converted["published"])
    first, second = ([view[i : i + 1] for view in pair] for i in range(2))
    with lowpeft.disabled(model):
        off = run(model, (first[0], first[1]))
    on = run(model, (second[0], second[1]))
    with lowpeft.using(model, {"default": [0.0, 1.0]}):
        found = run(model, pair)
    assert torch.equal(found, torch.cat([off, on]))


def test_adapters_for_different_masks_are_refused_beside_each_other(
    converted: dict[str, Converted], pair: Pair
) -> None:
    model = opened(converted["hat"])
    expected = run(model, pair)
    with pytest.raises(PlanError, match=r"layers\.0\..*'b'.*hat\.hab_published_mask.*'default'.*hat\.hab\b"):
        lowpeft.load_adapter(model, converted["published"].adapter, name="b")
    assert lowpeft.list_adapters(model) == ["default"]
    assert torch.equal(run(model, pair), expected)


def test_beside_the_published_mask_new_adapters_in_blocks_are_refused_and_those_on_weights_are_not(
    converted: dict[str, Converted], pair: Pair
) -> None:
    model = opened(converted["published"])
    expected = run(model, pair)
    with pytest.raises(PlanError, match=r"hat\.hab\b.*'default'.*hat\.hab_published_mask"):
        lowpeft.adapt(model, SpatialConfig(), name="b")
    assert torch.equal(run(model, pair), expected)
    lowpeft.adapt(model, LoRAConfig(target="**.qkv", rank=2), name="c")
    assert torch.equal(run(model, pair), expected)
    lowpeft.delete(model, "c")
    lowpeft.load_adapter(model, converted["published"].adapter, name="twin")
    with lowpeft.using(model, {"twin": 1.0}):
        assert torch.equal(run(model, pair), expected)


def test_a_forward_that_is_installed_for_another_mask_is_refused(converted: dict[str, Converted]) -> None:
    path = "layers.0.residual_group.blocks.0"
    model = opened(converted["published"])
    with pytest.raises(PlanError, match=r"hat\.hab_published_mask.*hat\.hab\b"):
        install_forwards(model, {path: MASKS["hat"]})
    root = lowpeft.load_backbone(converted["hat"].weights).module
    install_forwards(root, {path: MASKS["hat"]})
    with pytest.raises(PlanError, match=r"installed.*hat\.hab\b"):
        lowpeft.load_adapter(root, converted["published"].adapter)


def test_a_variant_needs_the_ports_of_its_block(registries: None) -> None:
    with pytest.raises(PlanError, match=r"'hat\.hab'"):
        register_block_forward(replace(PUBLISHED_MASK, name="hat.other", ports=frozenset({"attention"})))
    with pytest.raises(PlanError, match=r"did you mean 'hat\.hab'"):
        register_block_forward(replace(PUBLISHED_MASK, name="hat.other", variant_of="hat.hba"))


# --- Refusals, which leave everything as it was ----------------------------------------------------------------------

FC1 = "layers.0.residual_group.blocks.1.S_Adapter.D_fc1.weight"


def changed(**changes: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """A change of a state dict; `None` takes a tensor out."""

    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in (state | changes).items() if tensor is not None}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: {k: t for k, t in state.items() if "dapter" not in k}, ["has no adapters", "load_backbone"]),
        (lambda state: {"a.weight": torch.zeros(2)}, ["has no adapters", "none of its 1 tensors"]),
        (
            changed(**{"layers.0.extra.weight": torch.zeros(2), "extra": torch.zeros(2)}),
            ["unknown: layers.0.extra.weight", "unknown: extra"],
        ),
        (
            changed(
                **{
                    FC1: None,
                    "layers.0.stereo_adapter.beta": torch.zeros(1, 12, 1, 1),
                    "layers.1.stereo_adapter.l_proj3.bias": torch.zeros(12),
                    "layers.1.stereo_adapter.gamma": torch.zeros(1, 11, 1, 1),
                }
            ),
            [
                f"missing: {FC1}",
                "unknown: layers.0.stereo_adapter.beta",
                "unknown: layers.1.stereo_adapter.l_proj3.bias",
                "layers.1.stereo_adapter.gamma has shape (1, 11, 1, 1), which does not fit (12,)",
            ],
        ),
        (changed(**{FC1: torch.full((3, 12), torch.nan)}), ["NaN or infinity"]),
        (changed(**{"conv_first.weight": None}), ["missing: conv_first.weight"]),
        (
            lambda state: build("swinir").state_dict() | {FC1: state[FC1]},
            ["is a SwinIR, not a HAT"],
        ),
    ],
    ids=["plain", "nothing", "extra", "adapters", "nan", "missing", "swinir"],
)
def test_other_networks_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    words: list[str],
    state: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    torch.save(change(state), tmp_path / "network.pth")
    with pytest.raises(AdapterError) as caught:
        convert_asteisr(tmp_path / "network.pth", tmp_path / "folder" / "out")
    assert [each for each in words if each not in str(caught.value)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["network.pth"]


def test_a_folder_that_holds_something_is_refused_and_kept(network: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(AdapterError, match="exists and is not an empty folder"):
            convert_asteisr(network, out)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("notes.txt", "mine")]


@pytest.mark.parametrize("how", ["empty", "link", "here"])
def test_an_empty_folder_is_filled(how: str, network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    folder.mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    found = convert_asteisr(network, {"empty": folder, "link": tmp_path / "link", "here": "."}[how])
    assert opened(found).backbone is not None
    assert sorted(path.name for path in folder.iterdir()) == sorted((WEIGHTS, ADAPTER))
    assert folder.stat().st_mode & 0o777 == 0o700


def test_averaged_weights_are_taken_and_said_and_raw_ones_on_request(
    state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = {key: tensor + 1 if key == FC1 else tensor for key, tensor in state.items()}
    torch.save({"params": raw, "params_ema": state}, tmp_path / "both.pth")
    for options, words, added in (
        ((), "the averaged ones (EMA), under params_ema", 0),
        (("--raw-weights",), "the raw ones", 1),
    ):
        out = tmp_path / f"out{added}"
        assert main(["convert", "asteisr", str(tmp_path / "both.pth"), "--out", str(out), *options]) == 0
        assert f"weights: {words}" in capsys.readouterr().out
        saved = lowpeft.read_adapter(out / ADAPTER)
        assert saved.facts["weights"].startswith(words)
        (fc1,) = (
            t for key, t in saved.tensors.items() if "layers.0.residual_group.blocks.1" in key and "fc1.weight" in key
        )
        assert torch.equal(fc1.flatten(), (state[FC1] + added).flatten())


def test_opening_such_a_network_as_it_is_says_what_to_do(network: Path) -> None:
    with pytest.raises(LowpeftError, match="lowpeft convert asteisr FILE --out FOLDER"):
        lowpeft.load_backbone(network)


def test_a_conversion_that_cannot_be_written_leaves_nothing(
    network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("lowpeft.backbones.asteisr.save_file", full)
    with pytest.raises(AdapterError, match=r"cannot write to .*out: no space left"):
        convert_asteisr(network, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000], ids=["NUL", "long"])
def test_a_path_that_no_file_can_have_is_refused(name: str, network: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError):
        convert_asteisr(network, tmp_path / name)
    with pytest.raises(LowpeftError):
        convert_asteisr(tmp_path / name, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_mask_is_refused_with_the_nearest(network: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"hat, published, .*\(did you mean 'published'"):
        convert_asteisr(network, tmp_path / "out", mask="publishd")


# --- On the command line ---------------------------------------------------------------------------------------------


def test_the_command_converts_and_shows_commands_that_parse(
    network: Path, converted: dict[str, Converted], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "an out"
    assert main(["convert", "asteisr", str(network), "--out", str(out), "--mask", "published"]) == 0
    shown = capsys.readouterr().out
    assert "HAT (hat): x2" in shown
    assert "attention mask: published" in shown
    commands = [shlex.split(line.strip()) for line in shown.splitlines() if line.startswith("  lowpeft ")]
    assert [words[1] for words in commands] == ["evaluate", "reproduce"]
    for words in commands:
        options = parser().parse_args(words[1:])
        assert (options.weights, options.adapter) == (str(out / WEIGHTS), str(out / ADAPTER))
    assert (out / ADAPTER / CONFIG).read_text() == (converted["published"].adapter / CONFIG).read_text()
    assert main(["convert", "asteisr", str(network), "--out", str(out)]) == 2
    assert "not an empty folder" in capsys.readouterr().err
