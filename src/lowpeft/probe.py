"""Finding the stages of a network of no known family, by running it once on a small input.

Siblings of one class (members of a ModuleList or Sequential, or attributes numbered like `block_1`, `block_2`) are a
sequence of stages when each is called once, takes and gives features of one same shape, and keeps the batch. Of the
sequences that are not inside another one, the network's stages are the only one, or the one that holds more than half
of the parameters. Anything else is refused with the candidates listed: a guess would be silent and wrong.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .errors import PlanError
from .facts import Facts
from .families import FoundPlace, Place, base_modules
from .layouts import Layout, Size, find_size, square_size
from .running import in_force
from .settings import Setting
from .slots import Slot, switches_of

Model = TypeVar("Model", bound=nn.Module)

PROBE_SIZES_PX: tuple[Size, ...] = ((32, 48), (64, 128), (48, 48), (64, 64), (24, 24), (128, 256), (256, 256))
"""Tried in this order: sides differ where the network allows it, so that rows and columns can be told apart."""
BATCH = 2
MOST_RUNS = 3
"""After so many runs that tell nothing, a larger image will not tell more."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one module did while the network ran once.

    Attributes:
        calls: How often it was called.
        shape: Of its output (or the first tensor of a tuple output), None if there was none.
        item: The index of that tensor in a tuple output.
        input_shape: Of its first tensor argument.
        layout: Of the output, None if it could not be told.
        size: Height and width of the output, in positions.
    """

    calls: int
    shape: tuple[int, ...] | None
    item: int | None
    input_shape: tuple[int, ...] | None
    layout: Layout | None
    size: Size | None

    @property
    def channels(self) -> int:
        """Number of channels; the last dimension where the layout is unknown."""
        if self.shape is None:
            raise PlanError("a module without a tensor output has no channels")
        return self.shape[self.layout.channel_dim if self.layout else -1]


def copy_of(model: Model) -> Model:
    """A deep copy of a network, adapted or not, that can be run and changed while others use the original.

    Raises:
        PlanError: The network cannot be copied.
    """
    # Tensors that are attributes and results of an operation (weight_norm's `weight`) cannot be copied as they are.
    held = [v for m in model.modules() for v in m.__dict__.values() if isinstance(v, Tensor) and v.requires_grad]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in held if not t.is_leaf})
    except Exception as error:
        raise PlanError(f"{type(model).__name__} cannot be copied, so that it cannot be tried out: {error}") from error


def copy_in_force(model: Model) -> Model:
    """As `copy_of`; the copy's default is the setting that is in force here for the original.

    Raises:
        PlanError: The network cannot be copied.
    """
    copied = copy_of(model)
    for module, other in zip(model.modules(), copied.modules(), strict=True):
        if isinstance(module, Slot) and isinstance(other, Slot):
            switches_of(other).default = in_force(switches_of(module))
    return copied


def twin_of(root: nn.Module) -> nn.Module:
    """A copy of a network in eval mode and without adapters' effect.

    Networks that rewrite weights when they run (SPAN) or count calls do that to the copy.

    Raises:
        PlanError: The network cannot be copied.
    """
    twin = copy_of(root)
    for module in twin.modules():
        module.training = False
        if isinstance(module, Slot):
            switches_of(module).default = Setting({})
    return twin


def examples(root: nn.Module, *, batch: int = BATCH, facts: Facts | None = None) -> Iterator[Tensor]:
    """Random image batches (values 0..1) to try the network on: channel counts and sizes that are usual.

    Args:
        root: The network.
        batch: Number of images.
        facts: Facts that are known: they tell the channels, and which sides the network takes.

    Raises:
        PlanError: The network has no floating-point parameters, so nothing says which dtype and device it takes.
    """
    tensor = next((p for p in root.parameters() if p.is_floating_point()), None)
    if tensor is None:
        raise PlanError("the network has no floating-point parameters")
    generator = torch.Generator().manual_seed(0)
    first = next((m for m in root.modules() if isinstance(m, nn.Conv2d)), None)
    usual = dict.fromkeys(([first.in_channels] if first is not None else []) + [3, 1, 4])
    sizes = PROBE_SIZES_PX
    if facts is not None and facts.input_channels is not None:
        usual = {facts.input_channels: None}
    if facts is not None and facts.fixed_px is not None:
        sizes = ((facts.fixed_px, facts.fixed_px),)
    elif facts is not None:
        sizes = tuple(dict.fromkeys(facts.sides_for(height, width) for height, width in sizes))
    for channels in usual:
        for height, width in sizes:
            yield torch.rand(batch, channels, height, width, generator=generator).to(tensor.device, tensor.dtype)


Found = TypeVar("Found")


def first_that_works(root: nn.Module, use: Callable[[nn.Module, Tensor], Found], facts: Facts | None = None) -> Found:
    """What `use` gives for a twin of the network and the first example on which it runs and `use` raises no PlanError.

    Raises:
        PlanError: The network runs on no example (every failure is listed), or `use` refuses `MOST_RUNS` of them.
    """
    twin = twin_of(root)
    refusals: list[PlanError] = []
    failures: list[str] = []
    for example in examples(root, facts=facts):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                return use(twin, example)
        except PlanError as error:
            refusals.append(error)
        except Exception as error:  # noqa: BLE001  (whatever the user's network raises means: not this size)
            text = (str(error).splitlines() or [""])[0]
            failures.append(f"{tuple(example.shape)}: {type(error).__name__}: {text[:100]}")
        if len(refusals) == MOST_RUNS:
            break
    if refusals:
        raise refusals[-1]
    raise PlanError("the network did not run on any of the example inputs tried:", problems=failures)


Call = tuple[Any, tuple[Any, ...]]
"""The output and the arguments of one call, tensors replaced by their shapes."""


def observe(root: nn.Module, example: Tensor) -> dict[str, Observation]:
    """Run the network once on `example` and record what every module of the base did."""
    modules = dict(base_modules(root))
    calls: dict[str, list[Call]] = {}

    def hook(path: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.setdefault(path, []).append((_shapes(output), tuple(map(_shapes, (*args, *kwargs.values())))))

        return record

    handles = [m.register_forward_hook(hook(p), with_kwargs=True) for p, m in modules.items() if p]
    try:
        root(example)
    finally:
        for handle in handles:
            handle.remove()
    maps = {
        c[0][0].shape[2:]
        for path, c in calls.items()
        if isinstance(modules[path], nn.Conv2d) and isinstance(c[0][0], _Shape) and c[0][0].shape[0] == BATCH
    }
    return {path: _observation(c, {(h, w) for h, w in maps} or {example.shape[2:]}) for path, c in calls.items()}


@dataclass(frozen=True)
class _Shape:
    """Stands for a tensor, so that recording a run does not keep its features alive."""

    shape: tuple[int, ...]


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape))
    return tuple(map(_shapes, value)) if isinstance(value, (tuple, list)) else value


def _observation(calls: list[Call], maps: set[tuple[int, ...]]) -> Observation:
    output, arguments = calls[0]
    item = None
    if isinstance(output, tuple):
        item = next((i for i, v in enumerate(output) if isinstance(v, _Shape)), None)
        output = None if item is None else output[item]
    shape = output.shape if isinstance(output, _Shape) else None
    layout, size = tell_layout(shape, arguments, maps) if shape else (None, None)
    return Observation(
        calls=len(calls),
        shape=shape,
        item=item,
        input_shape=next((a.shape for a in arguments if isinstance(a, _Shape)), None),
        layout=layout,
        size=size,
    )


def tell_layout(
    shape: tuple[int, ...], arguments: tuple[Any, ...], maps: set[tuple[int, ...]]
) -> tuple[Layout | None, Size | None]:
    """The layout of a feature tensor of a batch of `BATCH` images, (None, None) if it cannot be told.

    Args:
        shape: Of the tensor.
        arguments: What its module was called with; tokens need a height and width among them, or a square grid.
        maps: The sides of the feature maps that the network's convolutions gave.
    """
    if len(shape) == 4 and shape[0] == BATCH:
        nchw, nhwc = shape[2:] in maps, shape[1:3] in maps
        if nchw != nhwc:
            return (Layout.NCHW, (shape[2], shape[3])) if nchw else (Layout.NHWC, (shape[1], shape[2]))
    if len(shape) == 3 and (shape[0] == BATCH) != (shape[1] == BATCH):
        layout, tokens = (Layout.NLC, shape[1]) if shape[0] == BATCH else (Layout.LNC, shape[0])
        square = all(h == w for h, w in maps)
        size = find_size(arguments, tokens) or (square_size(tokens) if square else None)
        if size is not None:
            return layout, size
    return None, None


def tokens_layout(shape: tuple[int, ...]) -> Layout:
    """The layout of a feature tensor whose rows cannot be told, from a batch of `BATCH` images."""
    if len(shape) == 3 and (shape[0] == BATCH) != (shape[1] == BATCH):
        return Layout.NLC if shape[0] == BATCH else Layout.LNC
    return Layout.WLC


# --- stages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Sibling modules that could be the stages of a network."""

    paths: tuple[str, ...]
    sample: Observation
    parameters: int

    def __str__(self) -> str:
        shape = "x".join(map(str, self.sample.shape or ()))
        return (
            f"{self.paths[0]} … {self.paths[-1]}: {len(self.paths)} of {shape} ({self.sample.layout}), "
            f"{self.parameters:,} parameters"
        )


def probe_places(root: nn.Module, facts: Facts | None = None) -> dict[str, tuple[FoundPlace, ...]]:
    """The places `stage` and `attention` of a network of no known family.

    `stage` is each stage's output; `attention` is the output of each block inside the stages where the stages hold
    such blocks, and of the stages themselves where they do not.

    Raises:
        PlanError: The network does not run, or its stages are not unambiguous; the candidates are shown.
    """
    return first_that_works(root, lambda twin, example: _places(root, observe(twin, example)), facts)


def _places(root: nn.Module, observed: dict[str, Observation]) -> dict[str, tuple[FoundPlace, ...]]:
    modules = dict(base_modules(root))
    found = _sequences(modules, observed)
    outer = [s for s in found if not any(_inside(s, other) for other in found)]
    stages = _only_or_largest(outer, modules[""])
    inner = [_blocks(path, modules, found) for path in stages.paths]
    stage_places = tuple(_place("stage", path, observed[path], stage=i) for i, path in enumerate(stages.paths))
    if any(blocks is None for blocks in inner):
        blocks = tuple(_place("attention", path, observed[path], stage=i) for i, path in enumerate(stages.paths))
    else:
        blocks = tuple(
            _place("attention", path, observed[path], stage=i, block=j)
            for i, sequence in enumerate(inner)
            if sequence is not None
            for j, path in enumerate(sequence.paths)
        )
    return {"stage": stage_places, "attention": blocks}


def _sequences(modules: dict[str, nn.Module], observed: dict[str, Observation]) -> list[Sequence]:
    groups: dict[tuple[object, ...], list[str]] = {}
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        seen = observed.get(path)
        if seen is not None and _is_stage(seen) and re.search(r"\d", name):
            key = (parent, re.sub(r"\d+", "#", name), type(module), seen.shape, seen.item, seen.layout)
            groups.setdefault(key, []).append(path)
    found = []
    for paths in groups.values():
        count = sum(p.numel() for path in paths for p in modules[path].parameters())
        if len(paths) > 1 and count:
            found.append(Sequence(paths=tuple(paths), sample=observed[paths[0]], parameters=count))
    return found


def _is_stage(seen: Observation) -> bool:
    return seen.calls == 1 and seen.layout is not None and seen.shape == seen.input_shape


def _inside(one: Sequence, other: Sequence) -> bool:
    return any(_below(one, path) for path in other.paths)


def _below(one: Sequence, path: str) -> bool:
    return one.paths[0].startswith(path + ".")


def _blocks(stage: str, modules: dict[str, nn.Module], found: list[Sequence]) -> Sequence | None:
    """The blocks inside a stage: a sequence of composite modules that holds more than half of its parameters."""
    total = sum(p.numel() for p in modules[stage].parameters())
    composite = [s for s in found if _below(s, stage) and all(any(modules[p].children()) for p in s.paths)]
    outer = [s for s in composite if not any(_inside(s, other) for other in composite)]
    best = max(outer, key=lambda s: s.parameters, default=None)
    return best if best is not None and 2 * best.parameters > total else None


def _only_or_largest(outer: list[Sequence], root: nn.Module) -> Sequence:
    advice = (
        "name the sites yourself: `lowpeft.wrap_stereo(model, target='body.*')`, say, with patterns of module paths"
    )
    if not outer:
        raise PlanError(
            "this network is of no known family, and running it showed no sequence of stages (siblings of one class, "
            f"each called once, with features of one shape in and out); {advice}"
        )
    total = sum(p.numel() for p in root.parameters())
    best = max(outer, key=lambda s: s.parameters)
    if len(outer) > 1 and 2 * best.parameters <= total:
        raise PlanError(
            "this network is of no known family, and running it showed several sequences that could be its stages, "
            f"none with more than half of its {total:,} parameters; {advice}:",
            problems=[str(s) for s in sorted(outer, key=lambda s: -s.parameters)],
        )
    return best


def _place(name: str, path: str, seen: Observation, *, stage: int, block: int | None = None) -> FoundPlace:
    layout = seen.layout or Layout.WLC
    place = Place(name=name, path=path, channels="", layout=layout, item=seen.item, square=layout.is_tokens)
    return FoundPlace(
        path=path,
        stage=stage,
        block=block,
        place=place,
        channels=seen.channels,
        stage_path=path if block is None else None,
        block_path=path if block is not None else None,
    )
