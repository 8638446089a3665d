"""Finding the stages and blocks of a network of no known family, from what its modules do when it runs.

Siblings (members of a ModuleList or Sequential, or attributes numbered like `block_1`, `block_2`) are a *sequence* when
each is called once, takes and gives features of one shape, and keeps the batch. A container that is never called
itself (a ModuleList of ModuleLists) is a unit too, from the input of its first to the output of its last module.

In a U-shape, several sequences of blocks that lie in no other one, at sizes that differ by powers of two, hold more
than half of the parameters together: each is a stage. Elsewhere the stages are the members of the one outer sequence
that holds more than half, or 30 % where there is no other. Failing that, they are siblings that change the size
themselves (the stages of a Swin Transformer or a ResNet). Anything else is refused with the candidates and a call that
names them: a guess would be silent and wrong.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from ...errors import PlanError
from ...families import FoundPlace, Place
from ...ports.base import base_modules
from ...ports.layouts import Size
from ..attachment.specialise import original_class
from .observing import Observation, Observed, tokens_layout
from .trial import Trial
from .units import Sequence, Unit, levels_of, outermost, siblings, units_of

ATTENTION = re.compile(r"attn|attention|(^|_)(msa|mha|sa)($|_|\d)")
MLP = re.compile(r"mlp|ffn|feed_?forward|(^|_)ff($|_|\d)")

MOST, MOST_ALONE = 0.5, 0.3
"""The stages hold more than this share of the parameters: of several sequences, or where there is only one."""
MOST_OF_A_PAIR = 0.75
"""Where there are two sizes only, a sequence with more than this share is the body, and makes the stages alone."""
WORTH_A_STAGE = 0.01
"""What holds a smaller share of the parameters is no stage of a U-shape."""
UNPADDED = 0.33
"""So much of a side may differ from a power of two: convolutions without padding cut off pixels of small maps."""
WORTH_NAMING = 0.1
"""A refusal names a sequence that holds at least this share of the parameters, else the largest parts."""
WORTH_NAMING_ALONE = 0.05
"""Each of the largest parts holds at least this share."""


class NoStagesError(PlanError):
    """The stages of a network could not be told.

    Attributes:
        targets: Paths of modules that could be named instead, in the order in which they run; the best choice first.
        items: The elements of what these modules give that could be the features, where there are several.
    """

    targets: tuple[tuple[str, ...], ...] = ()
    items: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: where its output is, the module or container around it, and its blocks."""

    path: str
    output: Unit
    blocks: tuple[Unit, ...]


class Probed(NamedTuple):
    """What running a network showed.

    Attributes:
        places: By name.
        beside: The sequences of some weight that could be stages too and lie in none of the stages, for people.
    """

    places: dict[str, tuple[FoundPlace, ...]]
    beside: tuple[str, ...]


def probe_places(trial: Trial) -> Probed:
    """The places `stage`, `attention`, `mlp` and `parallel` of a network of no known family.

    `stage` is each stage's output. Where every block has a child by name of an attention (an MLP) whose output is added
    to other features, `attention` (`mlp`) is that output, and `parallel` stands beside the MLP. Otherwise `attention`
    is the output of each block, or of each stage where the stages hold no blocks.

    Raises:
        PlanError: The network does not run, or its stages are not unambiguous (`NoStagesError`).
    """
    return trial.first(lambda observed: _places(trial, observed))


def _places(trial: Trial, observed: Observed) -> Probed:
    modules = dict(base_modules(trial.root))
    images = observed.example.images
    stages, beside = _stages(modules, observed)
    found = {
        "stage": tuple(
            _place("stage", s.output.out, s.output.last, (i, None), (s.path, None), images)
            for i, s in enumerate(stages)
        )
    }
    blocks = [(i, j, unit, s.path) for i, s in enumerate(stages) for j, unit in enumerate(s.blocks)]
    attention, mlp = _branches(trial, observed, modules, [unit for _, _, unit, _ in blocks])
    for name, children in (("attention", attention), ("mlp", mlp), ("parallel", mlp)):
        if children:
            found[name] = tuple(
                _place(name, path, observed.modules[path], (i, j), (stage, unit.path), images)
                for i, j, unit, stage in blocks
                for path in children[unit.path]
            )
    if not attention:
        found["attention"] = tuple(
            _place("attention", unit.out, unit.last, (i, j), (stage, unit.path), images) for i, j, unit, stage in blocks
        )
    return Probed(found, beside)


def _place(
    name: str,
    path: str,
    seen: Observation,
    numbers: tuple[int, int | None],
    around: tuple[str, str | None],
    images: int,
) -> FoundPlace:
    """A place at a module's output, with the numbers and paths of the stage and the block around it."""
    return FoundPlace(
        path=path,
        stage=numbers[0],
        block=numbers[1],
        place=place_at(name, path, seen, images, reads_input=name == "parallel"),
        channels=seen.channels,
        stage_path=around[0],
        block_path=around[1],
    )


def place_at(name: str, path: str, seen: Observation, images: int, *, reads_input: bool = False) -> Place:
    """A place at a module's output, from what the module did.

    Args:
        name: Of the place.
        path: Of the module.
        seen: What it did.
        images: In the batch.
        reads_input: Whether the adapter reads the module's input.
    """
    layout = seen.layout or tokens_layout(seen.shape or (), images)
    source: Literal["input", "output"] = "input" if reads_input else "output"
    return Place(name=name, path=path, channels="", layout=layout, source=source, item=seen.item, square=seen.is_square)


# --- stages ---------------------------------------------------------------------------------------------------------


def _stages(modules: dict[str, nn.Module], observed: Observed) -> tuple[list[Stage], tuple[str, ...]]:
    """The stages, and what lies beside them (see `Probed`)."""
    pixels = observed.example.first.shape[-3] if observed.example.size is not None else 0
    # What gives as few channels as the image is a network by itself, and no stage of one.
    every = [u for u in units_of(modules, observed).values() if u.last.shape is None or u.last.channels > pixels]
    units = sorted(every, key=lambda u: u.first.order)
    total = sum(p.numel() for p in modules[""].parameters())
    found = siblings(units, modules)
    outer = outermost(found)
    levels = levels_of(units, modules, outer, WORTH_A_STAGE * total)
    best = max(outer, key=lambda s: s.parameters, default=None)
    a_pair = len({s.size for s in levels}) == 2  # a body and a few blocks behind its upsampling are no U-shape
    if _is_u_shape(levels, total) and not (a_pair and best is not None and best.parameters > MOST_OF_A_PAIR * total):
        stages = [
            Stage(
                path=s.units[0].path.rpartition(".")[0] if len(s.units) > 1 else s.units[0].path,
                output=s.units[-1],
                blocks=tuple(b for u in s.units for b in _blocks(u, modules, found)),
            )
            for s in levels
        ]
        return stages, _beside(outer, levels, total)
    share = MOST if len(outer) > 1 else MOST_ALONE
    if best is not None and best.parameters > share * total:
        stages = [Stage(path=u.path, output=u, blocks=_blocks(u, modules, found)) for u in best.units]
        return stages, _beside(outer, [best], total)
    scaled = [s for s in outermost(siblings(units, modules, scaled=True)) if s.parameters >= WORTH_A_STAGE * total]
    if _is_u_shape(scaled, total):
        members = sorted((u for s in scaled for u in s.units), key=lambda u: u.first.order)
        stages = [Stage(path=u.path, output=u, blocks=_blocks(u, modules, found)) for u in members]
        return stages, _beside(outer, scaled, total)
    raise _no_stages(modules, observed, units, outer, total)


def _beside(outer: list[Sequence], chosen: list[Sequence], total: int) -> tuple[str, ...]:
    """The sequences worth naming that lie in none of those that were chosen."""
    inside = [s for s in outer if any(c.holds(u.path) or u in c.units for c in chosen for u in s.units)]
    return tuple(str(s) for s in outer if s not in inside and s.parameters >= WORTH_NAMING * total)


def _is_u_shape(levels: list[Sequence], total: int) -> bool:
    """Whether sequences hold more than half of the parameters together, at sizes that are powers of two apart."""
    sizes = [u.last.size for s in levels for u in s.units]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or sum(s.parameters for s in levels) <= MOST * total:
        return False
    steps = {_halvings(max(known, key=lambda s: s[0]), size) for size in known}
    return None not in steps and len(steps) > 1


def _halvings(most: Size, size: Size) -> int | None:
    """How often both sides of the larger size are about halved to give the other; None where they are not."""
    steps = [math.log2(a / b) for a, b in zip(most, size, strict=True)]
    halvings = round(sum(steps) / 2)
    halved = [a / 2**halvings for a in most]
    return halvings if all(abs(a - b) <= UNPADDED * a for a, b in zip(halved, size, strict=True)) else None


def _blocks(stage: Unit, modules: dict[str, nn.Module], found: list[Sequence]) -> tuple[Unit, ...]:
    """The blocks inside a stage: the sequences of composite modules that hold more than half of its parameters.

    The stage itself where there are none.
    """
    inside = [s for s in found if all(u.path.startswith(stage.path + ".") for u in s.units)]
    composite = outermost([s for s in inside if all(any(modules[u.path].children()) for u in s.units)])
    best = max(composite, key=lambda s: s.parameters, default=None)
    return best.units if best is not None and 2 * best.parameters > stage.parameters else (stage,)


# --- attention and MLP children --------------------------------------------------------------------------------------

Children = dict[str, list[str]]


def _branches(
    trial: Trial, observed: Observed, modules: dict[str, nn.Module], blocks: list[Unit]
) -> tuple[Children, Children]:
    """The attention and the MLP children of every block that are added to other features; empty if one has none."""
    candidates: list[Children] = []
    for name in (ATTENTION, MLP):
        by_block = {b.path: _named(name, b, modules, observed) for b in blocks}
        candidates.append(by_block if all(by_block.values()) else {})
    paths = [p for by_block in candidates for found in by_block.values() for p in found]
    if not paths:
        return {}, {}
    added = trial.additions(observed.example, paths)
    kept = [{b: [p for p in found if p in added] for b, found in by_block.items()} for by_block in candidates]
    attention, mlp = (by_block if all(by_block.values()) else {} for by_block in kept)
    return attention, mlp


def _named(name: re.Pattern[str], unit: Unit, modules: dict[str, nn.Module], observed: Observed) -> list[str]:
    """The children of a block by names of that sort which give features once, of its channels, and hold weights."""
    block, found = unit.path, []
    if has_fused_path(modules[block]):
        return []
    for child, module in modules[block].named_children():
        seen = observed.modules.get(f"{block}.{child}")
        if not name.search(child.lower()) or "norm" in child or seen is None or seen.calls != 1:
            continue
        weights = any(p.dim() > 1 for p in module.parameters())
        features = seen.shape is not None and len(seen.shape) in (3, 4) and not seen.is_ambiguous
        if weights and features and seen.channels == unit.last.channels:
            found.append(f"{block}.{child}")
    return found


def has_fused_path(module: nn.Module) -> bool:
    """Whether a module has torch's own forward that reads the weights of its children instead of calling them."""
    fused = original_class(module).forward is nn.TransformerEncoderLayer.forward
    return fused and bool(module.self_attn.batch_first)  # type: ignore[union-attr]


# --- refusals --------------------------------------------------------------------------------------------------------


def _no_stages(
    modules: dict[str, nn.Module], observed: Observed, units: list[Unit], outer: list[Sequence], total: int
) -> NoStagesError:
    several = max(outermost(siblings(units, modules, ambiguous=True)), key=lambda s: s.parameters, default=None)
    if several is not None and 2 * several.parameters > total:
        error = NoStagesError(
            f"this network is of no known family, and what could be its stages ({several.units[0].path} …) gives "
            f"{len(several.units[0].last.alike)} tensors of one shape, of which one has to be named with item="
        )
        error.targets = (tuple(u.out for u in several.units),)
        error.items = several.units[0].last.alike
        return error
    rows = [s for s in sorted(outer, key=lambda s: -s.parameters) if s.parameters >= WORTH_A_STAGE * total]
    found = "no sequence of stages (numbered siblings, each called once, with features of one shape in and out)"
    if rows:
        what = "one sequence that could be" if len(rows) == 1 else "several sequences that could be"
        found = f"{what} its stages, but not with enough of its {total:,} parameters"
    error = NoStagesError(
        f"this network is of no known family, and running it showed {found}", problems=[*map(str, rows)]
    )
    best = [rows[0].units] if rows and rows[0].parameters >= WORTH_NAMING * total else []
    named = [tuple(u.out for u in units) for units in (*best, [s.units[-1] for s in rows])]
    error.targets = (*named[: len(best)], _largest(modules, observed, total), *named[len(best) :])
    return error


def _largest(modules: dict[str, nn.Module], observed: Observed, total: int, inside: str = "") -> tuple[str, ...]:
    """The largest parts of a network that give features, in the order in which they run: the best there is to name."""
    lead = f"{inside}." if inside else ""
    children = [p for p in modules if p.startswith(lead) and p != inside and p.count(".") == lead.count(".")]
    big = [p for p in children if sum(w.numel() for w in modules[p].parameters()) >= WORTH_NAMING_ALONE * total]
    found: list[str] = []
    for path in big:
        seen = observed.modules.get(path)
        gives = seen is not None and (seen.layout is not None or seen.is_tokens) and not seen.is_ambiguous
        parts = () if gives and len(big) > 1 else _largest(modules, observed, total, path)
        found += parts or ([path] if gives else [])
    return tuple(sorted(found, key=lambda p: observed.modules[p].order))
