"""Our EDT: the authors' keys, counts and outputs; any size; one task or several; what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import lowpeft
from lowpeft import LowpeftError
from lowpeft.backbones.networks import EDT, EDTConfig
from lowpeft.backbones.networks.edt_config import TASKS
from lowpeft.backbones.networks.edt_parts import Block
from lowpeft.core.padding import pad_to_multiple
from states import assert_same_tensors, authors_outputs

FIXTURES = ("edt_t_x2", "edt_b_x4", "edt_b_x2x3x4", "edt_l_x2", "edt_b_dn15")
ONE, SEVERAL = ("sr_x2",), ("sr_x2", "sr_x3")


def tiny_config(tasks: tuple[str, ...] = ONE, **changes: Any) -> EDTConfig:
    return EDTConfig(tasks=tasks, **{"features": 4, "dim": 16, "heads": 2, "depths": (2, 2), "image_px": 24, **changes})


def tiny(tasks: tuple[str, ...] = ONE, **changes: Any) -> EDT:
    return EDT(tiny_config(tasks, **changes)).eval()


def tiny_with_weights_of(network: nn.Module, tasks: tuple[str, ...]) -> EDT:
    """A network for some of another's tasks; that one may have adapters, which are left out."""
    part = tiny(tasks)
    part.load_state_dict({key: network.state_dict()[key] for key in part.state_dict()})
    return part


def readable_config(tasks: tuple[str, ...] = ("sr_x4",), **changes: Any) -> EDTConfig:
    """The smallest that can be read back from its tensors: as wide as a published one, and with its masks."""
    return tiny_config(tasks, **{"dim": 60, "heads": 6, "image_px": 48, **changes})


def on_meta(config: EDTConfig) -> EDT:
    with torch.device("meta"):
        return EDT(config).eval()


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def without_masks(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if "attn_mask" not in key}


# --- The authors' networks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def edt_fixtures() -> Path:
    """The folder with outputs of the authors' networks, which lies beside the repository; skipped without it."""
    return authors_outputs("edt")


@pytest.fixture(scope="session")
def listings(edt_fixtures: Path) -> dict[str, Any]:
    """Of each network: `config`, `parameters`, and `state_dict` with shape and kind of every entry."""
    return json.loads((edt_fixtures / "state_dicts.json").read_text(encoding="utf-8"))


every_fixture = pytest.mark.parametrize("name", FIXTURES)


def listed_config(listing: dict[str, Any]) -> EDTConfig:
    """The authors' configuration in our words."""
    theirs = listing["config"]
    (heads,) = set(theirs["NUM_HEADS"])
    tasks = [f"sr_x{scale}" for scale in theirs["SCALES"]]
    tasks += [f"dn_g{level}" for level in theirs["NOISE_LEVELS"]] + [f"dr_{level}" for level in theirs["RAIN_LEVELS"]]
    return EDTConfig(
        tasks=tuple(tasks),
        features=theirs["NUM_FEAT"],
        dim=theirs["EMBED_DIM"],
        depths=tuple(theirs["DEPTHS"]),
        heads=heads,
        mlp_ratio=theirs["MLP_RATIO"],
        direct=theirs["UPSAMPLER"] == "pixelshuffledirect",
        window=tuple(theirs["WINDOW_SIZE"]),
        image_px=theirs["IMAGE_SIZE"],
    )


@torch.no_grad()
def fill(network: nn.Module) -> None:
    """The weights that the authors' networks had; the rule is the fixtures' README's."""
    for key, parameter in network.named_parameters():
        steps = torch.arange(parameter.numel(), dtype=torch.float64)
        values = torch.sin(0.7311 * steps + zlib.crc32(key.encode()) % 1000)
        if parameter.dim() > 1:
            values = values * 1.2 / parameter[0].numel() ** 0.5
        else:
            values = 1 + 0.1 * values if key.endswith("weight") else 0.05 * values
        parameter.copy_(values.view(parameter.shape))


@every_fixture
def test_keys_shapes_and_kinds_are_the_authors(name: str, listings: dict[str, Any]) -> None:
    network = on_meta(listed_config(listings[name]))
    parameters = dict(network.named_parameters())
    found = [
        (key, list(t.shape), "parameter" if key in parameters else "buffer") for key, t in network.state_dict().items()
    ]
    assert found == [(key, entry["shape"], entry["kind"]) for key, entry in listings[name]["state_dict"].items()]
    assert count(network) == listings[name]["parameters"]


@every_fixture
def test_the_keys_tell_the_configuration(name: str, listings: dict[str, Any]) -> None:
    listed = listings[name]["state_dict"]
    state = {key: torch.empty(entry["shape"], device="meta") for key, entry in listed.items()}
    assert EDTConfig.from_state_dict(state) == listed_config(listings[name])


# The keys of every fixture are compared in the default tier; the passes of the larger ones take up to six seconds each.
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != FIXTURES[0])) for n in FIXTURES])
@torch.no_grad()
def test_the_output_is_the_authors(name: str, listings: dict[str, Any], edt_fixtures: Path) -> None:
    """In float64, so that only the rounding of the authors' own pass in float32 is between the two."""
    network = EDT(listed_config(listings[name])).eval()
    fill(network)
    tensors = load_file(edt_fixtures / f"{name}.safetensors")
    found = network.double()([tensors.pop("input").double()] * len(network.config.tasks))
    assert tensors.keys() == {f"output_{i}" for i in range(len(found))}
    for i, output in enumerate(found):
        wanted = tensors[f"output_{i}"]
        torch.testing.assert_close(output.float(), wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


X2, X3, X4, X2X3X4, DN = ("sr_x2",), ("sr_x3",), ("sr_x4",), ("sr_x2", "sr_x3", "sr_x4"), ("dn_g15",)
PUBLISHED = {
    "T": {X2: 916_924, X3: 919_099, X4: 922_144, X2X3X4: 1_137_537, DN: 923_939},
    "S": {X2: 4_230_323, X3: 4_276_563, X4: 4_267_315, X2X3X4: 5_076_201, DN: 4_226_611},
    "B": {X2: 11_479_355, X3: 11_663_995, X4: 11_627_067, X2X3X4: 14_576_937, DN: 11_503_163},
    "L": {X2: 39_927_395, X3: 40_665_315, X4: 40_517_731, X2X3X4: 51_193_161, DN: 40_176_739},
}


@pytest.mark.parametrize(
    ("size", "tasks", "parameters"), [(size, tasks, n) for size, row in PUBLISHED.items() for tasks, n in row.items()]
)
@pytest.mark.slow
def test_a_published_network_has_the_authors_number_of_parameters(
    size: str, tasks: tuple[str, ...], parameters: int
) -> None:
    assert count(on_meta(EDTConfig.published(size, tasks))) == parameters


def test_the_default_is_edt_b_for_x4() -> None:
    assert EDTConfig() == EDTConfig.published("b")


# --- Reading state dicts ---------------------------------------------------------------------------------------------

READABLE = [
    readable_config(),
    readable_config(direct=True),
    readable_config(("sr_x3",), dim=120, depths=(1, 3)),
    readable_config(("sr_x2", "dn_g25", "dr_H"), features=2, mlp_ratio=3),
    readable_config(("dr_L",), dim=240, heads=8),
]


@pytest.mark.parametrize("config", READABLE, ids=lambda c: "+".join(c.tasks))
def test_a_configuration_is_read_back(config: EDTConfig) -> None:
    assert EDTConfig.from_state_dict(on_meta(config).state_dict()) == config


@pytest.mark.parametrize("config", READABLE[:2], ids=["steps", "direct"])
@pytest.mark.parametrize("strip", [dict, without_masks])
@torch.no_grad()
def test_a_network_is_read_back_bit_by_bit(config: EDTConfig, strip: Callable[[object], dict[str, Tensor]]) -> None:
    network, x = EDT(config).eval(), torch.rand(1, 3, 24, 24)
    twin = EDT.from_state_dict(strip(network.state_dict())).eval()
    assert_same_tensors(twin.state_dict(), network.state_dict())
    assert torch.equal(twin(x), network(x))


@pytest.mark.parametrize("twin_of", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["copy", "pickle"])
@torch.no_grad()
def test_a_twin_computes_the_same(twin_of: Callable[[EDT], EDT]) -> None:
    network, x = tiny(), torch.rand(1, 3, 24, 24)
    twin = twin_of(network)
    assert twin.config == network.config
    assert torch.equal(twin(x), network(x))


def test_all_that_is_wrong_with_a_state_dict_is_in_one_error() -> None:
    state = on_meta(readable_config()).state_dict()
    del state["body.norm.bias"], state["tail_sr_x4.3.bias"]
    state["body.layers.0.conv.weight"] = state["body.conv_after_body.weight"]
    state["body.conv_after_body.bias"] = torch.zeros(3)
    with pytest.raises(LowpeftError) as refusal:
        EDT.from_state_dict(state)
    assert refusal.value.problems == (
        "missing: body.norm.bias",
        "missing: tail_sr_x4.3.bias",
        "unknown: body.layers.0.conv.weight",
        "body.conv_after_body.bias has shape (3,), the network needs (60,)",
    )


@pytest.mark.parametrize("group", ["body.layers.0.residual_group.blocks.1.", "body.layers.1."])
def test_missing_blocks_are_named(group: str) -> None:
    state = on_meta(readable_config(depths=(3, 2, 2))).state_dict()
    gone = [key for key in state if key.startswith(group)]
    with pytest.raises(LowpeftError) as refusal:
        EDT.from_state_dict({key: tensor for key, tensor in state.items() if key not in gone})
    found = {problem.removeprefix("missing: ") for problem in refusal.value.problems}
    assert found
    assert found <= set(gone)


FC1 = "body.layers.0.residual_group.blocks.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"body.norm.weight": None, FC1: None}, f"missing: body.norm.weight, {FC1}"),
        ({"head_sr_x4.0.weight": None}, "missing: head_sr_x4.0.weight"),
        ({"body.norm.weight": (16,)}, r"16 channels, .*\(60, 120, 180, 240\)"),
        ({"body.norm.weight": ()}, "0 channels"),
        ({"head_sr_x4.0.weight": (0, 3, 3, 3)}, "features .* not 0"),
        ({FC1: (30, 60)}, r"fc1.weight .*\(30, 60\).*\(60, 60\)"),
    ],
)
def test_a_state_dict_that_tells_no_configuration_is_refused(
    changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    state = on_meta(readable_config()).state_dict()
    for key, shape in changes.items():
        if shape is None:
            del state[key]
        else:
            state[key] = torch.empty(shape, device="meta")
    with pytest.raises(LowpeftError, match=message):
        EDT.from_state_dict(state)


def test_a_state_dict_without_a_head_is_refused_with_the_known_tasks() -> None:
    state = on_meta(readable_config()).state_dict()
    with pytest.raises(LowpeftError, match=f"missing: .*{', '.join(TASKS)}"):
        EDT.from_state_dict({key: tensor for key, tensor in state.items() if not key.startswith("head_")})


# --- Configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"tasks": ("sr_x5",)}, [r"'sr_x5' \(did you mean"]),
        ({"tasks": ()}, ["tasks must be"]),
        ({"tasks": ("sr_x2", "sr_x2")}, ["tasks must be"]),
        ({"tasks": ("sr_x4", "sr_x2")}, [r"in this order, not \('sr_x4', 'sr_x2'\)"]),
        ({"dim": 18}, ["dim 18 .* 2 heads"]),
        ({"image_px": 30}, ["image_px 30"]),
        ({"window": (5, 24)}, [r"\(5, 24\)"]),
        (
            {"tasks": ("sr_x5", "dn_15"), "dim": 18, "image_px": 30},
            ["'sr_x5'", r"'dn_15' \(did you mean 'dn_g15'", "dim 18", "image_px 30"],
        ),
    ],
)
def test_what_cannot_be_built_is_refused(changes: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(LowpeftError) as refusal:
        tiny_config(**changes)
    pairs = zip(problems, refusal.value.problems, strict=True)
    assert all(re.search(wanted, problem) for wanted, problem in pairs)


@pytest.mark.parametrize(
    "changes",
    [{"depths": ()}, {"depths": (2, 0)}, {"heads": 0}, {"features": 2.5}, {"dim": True}, {"window": (0, 24)}],
    ids=str,
)
def test_numbers_that_are_not_whole_or_below_1_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(LowpeftError) as refusal:
        tiny_config(**changes)
    assert [problem.split()[0] for problem in refusal.value.problems] == list(changes)


def test_an_unknown_size_is_answered_with_the_published_ones() -> None:
    with pytest.raises(LowpeftError, match="T, S, B, L, not 'XL'"):
        EDTConfig.published("XL")


# --- Images and tasks ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_network_for_one_task_gives_a_tensor_for_a_tensor_and_a_list_for_a_list() -> None:
    network, x = tiny(), torch.rand(1, 3, 24, 24)
    (listed,) = network([x])
    assert torch.equal(network(x), listed)


@torch.no_grad()
def test_a_network_for_several_tasks_is_that_many_networks() -> None:
    network = tiny(SEVERAL)
    images = [torch.rand(1, 3, 24, 24), torch.rand(2, 3, 24, 48)]
    outputs = network(images)
    assert isinstance(outputs, list)
    for task, image, output in zip(SEVERAL, images, outputs, strict=True):
        assert torch.equal(output, tiny_with_weights_of(network, (task,))(image))


@torch.no_grad()
def test_one_image_can_be_for_all_tasks() -> None:
    network, x = tiny(SEVERAL), torch.rand(1, 3, 24, 24)
    for shared, own in zip(network(x), network([x, x]), strict=True):
        assert torch.equal(shared, own)


@pytest.mark.parametrize("images", [0, 1, 3])
def test_another_number_of_images_than_tasks_is_refused(images: int) -> None:
    with pytest.raises(LowpeftError, match=rf"sr_x2, sr_x3\), and got {images}$"):
        on_meta(tiny_config(SEVERAL))([torch.rand(1, 3, 24, 24, device="meta")] * images)


@pytest.mark.parametrize("shape", [(1, 1, 24, 24), (1, 4, 24, 24), (3, 24, 24), (1, 2, 3, 24, 24)])
def test_what_is_no_batch_of_rgb_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(LowpeftError, match="takes RGB images N,3,H,W"):
        on_meta(tiny_config())(torch.empty(shape, device="meta"))


@torch.no_grad()
def test_a_stereo_model_on_several_tasks_gives_a_list_for_each_view() -> None:
    model = lowpeft.adapt(tiny(SEVERAL), "stereo")
    plain = tiny_with_weights_of(model.backbone, SEVERAL)
    left, right = torch.rand(2, 2, 3, 24, 24)
    for view, outputs in zip((left, right), model(left, right), strict=True):
        assert isinstance(outputs, list)
        for output, wanted in zip(outputs, plain(view), strict=True):
            torch.testing.assert_close(output, wanted, rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    network = tiny(("sr_x3", "dn_g50"), direct=True)
    outputs = network(torch.rand(1, 3, 24, 24))
    torch.cat([(o * torch.randn_like(o)).flatten() for o in outputs]).mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(("task", "direct"), [("sr_x4", False), ("sr_x3", True), ("dn_g15", False)])
@torch.no_grad()
def test_a_silent_tail_leaves_the_image_itself_enlarged(task: str, direct: bool) -> None:
    network, x = tiny((task,), direct=direct), torch.rand(1, 3, 24, 24)
    last = [m for m in network.get_submodule(f"tail_{task}").modules() if isinstance(m, nn.Conv2d)][-1]
    for parameter in last.parameters():
        parameter.zero_()
    enlarged = F.interpolate(x, scale_factor=EDT.scale(task), mode="bilinear")
    torch.testing.assert_close(network(x), enlarged, rtol=0, atol=1e-6)


# --- Any size --------------------------------------------------------------------------------------------------------

SIZES = [
    # task, size of the image, size that its head sees
    ("sr_x4", (24, 48), (24, 48)),
    ("sr_x4", (1, 1), (24, 24)),
    ("sr_x3", (5, 7), (24, 24)),
    ("sr_x2", (25, 23), (48, 24)),
    ("dn_g15", (96, 192), (96, 192)),
    ("dn_g15", (5, 97), (96, 192)),
    ("dr_L", (24, 24), (96, 96)),
]


@pytest.mark.parametrize(("task", "size", "seen"), SIZES)
def test_an_image_is_padded_as_much_as_its_task_needs_and_cut_back(
    task: str, size: tuple[int, int], seen: tuple[int, int]
) -> None:
    network, shapes = on_meta(tiny_config((task,))), []
    network.get_submodule(f"head_{task}").register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[-2:]))
    output = network(torch.empty(2, 3, *size, device="meta"))
    assert shapes == [seen]
    assert output.shape == (2, 3, *(EDT.scale(task) * side for side in size))


@pytest.mark.parametrize(
    ("tasks", "multiple"), [(("sr_x2",), 24), (("sr_x4", "dn_g15"), 96), (("dr_L",), 96), (("sr_x2", "sr_x3"), 24)]
)
def test_images_of_this_multiple_are_not_padded_for_any_task(tasks: tuple[str, ...], multiple: int) -> None:
    assert on_meta(tiny_config(tasks)).size_multiple == multiple


@pytest.mark.parametrize("size", [(17, 30), (5, 30), (1, 1)])
@torch.no_grad()
def test_the_output_is_that_of_the_padded_image(size: tuple[int, int]) -> None:
    network, x = tiny(), torch.rand(2, 3, *size)
    down, right = -size[0] % 24, -size[1] % 24
    reflected = min(down, size[0] - 1), min(right, size[1] - 1)
    padded = F.pad(x, (0, reflected[1], 0, reflected[0]), mode="reflect")
    padded = F.pad(padded, (0, right - reflected[1], 0, down - reflected[0]), mode="replicate")
    assert torch.equal(network(x), network(padded)[..., : 2 * size[0], : 2 * size[1]])
    torch.testing.assert_close(network(x), torch.cat([network(image) for image in x.split(1)]), rtol=0, atol=1e-6)


def test_padding_changes_only_what_is_missing() -> None:
    image = torch.rand(1, 3, 24, 48)
    assert pad_to_multiple(image, 24) is image
    assert pad_to_multiple(image, 24, at_least=48).shape == (1, 3, 48, 48)
    assert torch.equal(pad_to_multiple(image, 32)[..., :24, :48], image)


# --- Masks and windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strip", [dict, without_masks])
@pytest.mark.parametrize("size", [(24, 24), (48, 48), (24, 48)])
@torch.no_grad()
def test_masks_of_another_size_or_none_load_and_change_nothing(
    size: tuple[int, int], strip: Callable[[object], dict[str, Tensor]]
) -> None:
    small, large = tiny(image_px=24), tiny(image_px=48)
    large.load_state_dict(strip(small.state_dict()))
    assert_same_tensors(dict(large.named_buffers()), dict(tiny(image_px=48).named_buffers()))
    x = torch.rand(1, 3, *size)
    assert torch.equal(large(x), small(x))


def test_masks_where_no_window_is_shifted_are_refused() -> None:
    network, key = tiny(), "body.layers.0.residual_group.blocks.0.attn_mask_h"
    with pytest.raises(RuntimeError, match=f'Unexpected key.*"{key}"'):
        network.load_state_dict({**network.state_dict(), key: torch.zeros(4, 144, 144)})


@pytest.mark.parametrize(
    ("shifted", "boxes"),
    [
        (False, [(slice(18, 24), slice(0, 24)), (slice(0, 24), slice(18, 24))]),
        (True, [(slice(21, 27), slice(12, 36)), (slice(12, 36), slice(21, 27))]),
    ],
)
@torch.no_grad()
def test_a_pixel_reaches_its_two_windows_and_what_the_mlp_sees_of_them(
    shifted: bool, boxes: list[tuple[slice, slice]]
) -> None:
    """Row 23, column 23 is the corner of four windows; only shifted ones go beyond. The MLP's convolution is 5x5."""
    block = Block(tiny_config(image_px=48), shifted=shifted).double()
    for parameter in block.parameters():
        parameter.normal_(std=0.3)
    before = torch.randn(1, 48, 48, 16, dtype=torch.float64)
    after = before.clone()
    after[0, 23, 23] = torch.randn(16)
    reached = torch.zeros(1, 48, 48)
    for rows, columns in boxes:
        reached[0, rows, columns] = 1
    changed = (block(before.flatten(1, 2), (48, 48)) != block(after.flatten(1, 2), (48, 48))).any(-1)
    assert torch.equal(changed.view(1, 48, 48), F.max_pool2d(reached, 5, 1, 2) > 0)


# The exporter warns of its own inner workings.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_an_exported_network_takes_batches_and_sizes_of_its_own() -> None:
    network = tiny()
    batch, height, width = (torch.export.Dim(name, min=2, max=4) for name in ("batch", "height", "width"))
    dynamic = {0: batch, 2: 24 * height, 3: 24 * width}
    exported = torch.export.export(network, (torch.rand(2, 3, 48, 72),), dynamic_shapes=(dynamic,)).module()
    x = torch.rand(3, 3, 72, 96)
    torch.testing.assert_close(exported(x), network(x), rtol=0, atol=1e-6)
