"""Detection of stages and blocks in a network of no known family, from its modules' inputs and outputs in a run.

Siblings (members of a ModuleList or Sequential, or attributes numbered like `block_1`, `block_2`) form a *sequence* if
each is called once, its input and output have the same shape, and it keeps the batch. A container that is never called
itself (a ModuleList of ModuleLists) counts as a unit from the input of its first to the output of its last module.

1. U-shape: several sequences of blocks, none inside another, at sizes that differ by powers of two, contain more than
   half of the parameters together. Each sequence is a stage.
2. Otherwise one outermost sequence contains more than half of the parameters (30 % if it is the only one). Each of its
   members is a stage.
3. Otherwise the stages are siblings that change the size (as in a Swin Transformer or a ResNet).

Any other network raises an error with the candidates and a call that names them: a guess could be wrong unnoticed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import nn

from ...errors import PlanError
from ...ports.attachment import Attachment, Spot
from ...ports.base import base_modules
from ...ports.layouts import Size
from ..attachment.specialise import original_class
from .observing import Observation, Observed, tokens_layout
from .trial import Trial
from .units import Sequence, Unit, levels_of, outermost, siblings, units_of

ATTENTION = re.compile(r"attn|attention|(^|_)(msa|mha|sa)($|_|\d)")
MLP = re.compile(r"mlp|ffn|feed_?forward|(^|_)ff($|_|\d)")

MOST, MOST_ALONE = 0.5, 0.3
"""Minimum shares of the parameters that the stages contain: with several sequences, and with only one."""
MOST_OF_A_PAIR = 0.75
"""With only two sizes, a sequence with more than this share of the parameters is the body; only its members are stages.

E.g. a body and a few blocks after its upsampling are not a U-shape.
"""
WORTH_A_STAGE = 0.01
"""Minimum share of the parameters for a stage of a U-shape."""
UNPADDED = 0.33
"""Tolerance for sides at powers of two, as a share of the side: unpadded convolutions cut off pixels of small maps."""
WORTH_NAMING = 0.1
"""Minimum share of the parameters for a sequence that errors and notes name; else errors name the largest parts."""
WORTH_NAMING_ALONE = 0.05
"""Minimum share of the parameters for each of the largest parts."""


class NoStagesError(PlanError):
    """Error for a network whose stages could not be determined.

    Attributes:
        targets: Choices of modules that could be named instead, best choice first; each has paths in the order of
            execution.
        items: Indices of the elements of the modules' outputs that could be the features, if there are several.
    """

    targets: tuple[tuple[str, ...], ...] = ()
    items: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: path of its module or container, the unit that gives its output, and its blocks."""

    path: str
    output: Unit
    blocks: tuple[Unit, ...]


class Probed(NamedTuple):
    """Result of the detection.

    Attributes:
        places: Places by name.
        containers: Numbers of stage and block by the path of the module that is the stage (block None) or the block.
        beside: Descriptions of sequences outside the stages that could be stages too, with at least `WORTH_NAMING` of
            the parameters.
    """

    places: dict[str, tuple[Spot, ...]]
    containers: dict[str, tuple[int | None, int | None]]
    beside: tuple[str, ...]


def probe_places(trial: Trial) -> Probed:
    """Find the places `stage`, `attention`, `mlp` and `parallel` of a network of no known family.

    `stage` is the output of each stage. If every block has a child with the name of an attention (an MLP) whose output
    is added to other features, `attention` (`mlp`) is that output; `parallel` reads the MLP's input. Without such an
    attention, `attention` is the output of each block, or of each stage if the stages have no blocks.

    Raises:
        PlanError: The network does not run, or its stages are ambiguous or missing (`NoStagesError`).
    """
    return trial.first(lambda observed: _places(trial, observed))


def _places(trial: Trial, observed: Observed) -> Probed:
    modules = dict(base_modules(trial.root))
    images = observed.example.images
    stages, beside = _stages(modules, observed)
    found = {"stage": tuple(spot_at(s.output.out, s.output.last, images, stage=i) for i, s in enumerate(stages))}
    blocks = [(i, j, unit) for i, s in enumerate(stages) for j, unit in enumerate(s.blocks)]
    attention, mlp = _branches(trial, observed, modules, [unit for _, _, unit in blocks])
    for name, children in (("attention", attention), ("mlp", mlp), ("parallel", mlp)):
        if children:
            found[name] = tuple(
                spot_at(path, observed.modules[path], images, stage=i, block=j, reads_input=name == "parallel")
                for i, j, unit in blocks
                for path in children[unit.path]
            )
    if not attention:
        found["attention"] = tuple(spot_at(unit.out, unit.last, images, stage=i, block=j) for i, j, unit in blocks)
    containers: dict[str, tuple[int | None, int | None]] = {}
    for i, j, unit in blocks:  # first, because a stage without blocks may be its own block
        containers.setdefault(unit.path, (i, j))
    for i, stage in enumerate(stages):
        containers.setdefault(stage.path, (i, None))
    return Probed(found, containers, beside)


def spot_at(
    path: str,
    seen: Observation,
    images: int,
    *,
    stage: int | None = None,
    block: int | None = None,
    reads_input: bool = False,
) -> Spot:
    """Return the spot at a module's output, from an observation of the module.

    Args:
        path: Path of the module.
        seen: Observation of the module.
        images: Number of images in the batch.
        stage: Number of the stage.
        block: Number of the block.
        reads_input: True if the adapter reads the module's input.
    """
    layout = seen.layout or tokens_layout(seen.shape or (), images)
    source: Literal["input", "output"] = "input" if reads_input else "output"
    attachment = Attachment(form="output", layout=layout, source=source, item=seen.item, square=seen.is_square)
    return Spot(path=path, stage=stage, block=block, attachment=attachment, shape=(seen.channels,))


# --- stages ---------------------------------------------------------------------------------------------------------


def _stages(modules: dict[str, nn.Module], observed: Observed) -> tuple[list[Stage], tuple[str, ...]]:
    """Return the stages, and the sequences beside them (see `Probed`)."""
    pixels = observed.example.first.shape[-3] if observed.example.size is not None else 0
    # A module whose output has as few channels as the image is a whole network, not a stage.
    every = [u for u in units_of(modules, observed).values() if u.last.shape is None or u.last.channels > pixels]
    units = sorted(every, key=lambda u: u.first.order)
    total = sum(p.numel() for p in modules[""].parameters())
    found = siblings(units, modules)
    outer = outermost(found)
    levels = levels_of(units, modules, outer, WORTH_A_STAGE * total)
    best = max(outer, key=lambda s: s.parameters, default=None)
    a_pair = len({s.size for s in levels}) == 2  # see MOST_OF_A_PAIR
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
    """Return the sequences of at least `WORTH_NAMING` of the parameters that are outside the chosen ones."""
    inside = [s for s in outer if any(c.holds(u.path) or u in c.units for c in chosen for u in s.units)]
    return tuple(str(s) for s in outer if s not in inside and s.parameters >= WORTH_NAMING * total)


def _is_u_shape(levels: list[Sequence], total: int) -> bool:
    """Return whether sequences, at sizes that differ by powers of two, contain over half of the parameters together."""
    sizes = [u.last.size for s in levels for u in s.units]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or sum(s.parameters for s in levels) <= MOST * total:
        return False
    steps = {_halvings(max(known, key=lambda s: s[0]), size) for size in known}
    return None not in steps and len(steps) > 1


def _halvings(most: Size, size: Size) -> int | None:
    """Return how many halvings of `most` give about `size`; None if no number does for both sides."""
    steps = [math.log2(a / b) for a, b in zip(most, size, strict=True)]
    halvings = round(sum(steps) / 2)
    halved = [a / 2**halvings for a in most]
    return halvings if all(abs(a - b) <= UNPADDED * a for a, b in zip(halved, size, strict=True)) else None


def _blocks(stage: Unit, modules: dict[str, nn.Module], found: list[Sequence]) -> tuple[Unit, ...]:
    """Return the blocks of a stage: its largest sequence of composite modules, if over half of its parameters.

    If there is no such sequence, the stage itself is the only block.
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
    """Return the attention and MLP children by block, if added to other features; empty if a block has none."""
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
    """Return the children of a block with a matching name and weights, called once, whose output has its channels."""
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
    """Return whether a module is a batch-first nn.TransformerEncoderLayer: its forward may not call its children."""
    fused = original_class(module).forward is nn.TransformerEncoderLayer.forward
    return fused and bool(module.self_attn.batch_first)  # type: ignore[union-attr]


# --- errors ----------------------------------------------------------------------------------------------------------


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
    """Return the paths of the largest parts of a network that give features, in the order of execution."""
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
