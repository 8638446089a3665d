"""Where are the stages, blocks, attention and MLPs of a network of no known family? Determined from a run of a copy.

1. Batches of two images of several sizes are tried until the network runs (`examples.py`, `Trial.observations`).
2. In that run the calls of all modules are recorded, with the layouts of their outputs (`observing.py`).
3. Siblings (members of a ModuleList or Sequential, or attributes numbered like `block_1`, `block_2`) form a *sequence*
   if each is called once, its input and output have the same shape, and it keeps the batch (`units.py`). A container
   that is never called itself (a ModuleList of ModuleLists) counts as a unit, from the input of its first to the output
   of its last module.
4. The stages are chosen among the sequences (`_stages`):
   a. U-shape: several sequences of blocks, none inside another, at sizes that differ by powers of two, contain more
      than half of the parameters together. Each sequence is a stage.
   b. Otherwise one outermost sequence contains more than half of the parameters (30 % if it is the only one). Each of
      its members is a stage.
   c. Otherwise the stages are siblings that change the size (as in a Swin Transformer or a ResNet).
5. Children of the blocks with the name of an attention or an MLP are places if a second run shows that their outputs
   are added to other features (`additions.py`).

If 4 fails, the next size is tried, at most three. If all fail, an error lists the candidates, with which
`planning/ready_calls.py` makes a call that names modules: a guess could be wrong unnoticed.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from torch import nn

from ...errors import PlanError
from ...families import TOKENS, plain_attention
from ...ports.attachment import Attachment, Spot
from ...ports.base import base_modules, original_class
from ...ports.layouts import Layout, Size
from ...ports.patterns import around
from .observing import Observation, Observed, token_layout
from .trial import Trial
from .units import Sequence, Unit, levels_of, outermost, scaled_siblings, siblings, units_of

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
    """Find the places of a network of no known family: `stage`, and those of attention and MLP.

    `stage` is the output of each stage. If every block has a child with the name of an attention (an MLP) whose output
    is added to other features, `attention` (`mlp`) is that output; `parallel_attention` (`parallel`) reads its input.
    Without such an attention, `attention` and `parallel_attention` are those of the whole block, or of each stage if
    the stages have no blocks. Blocks without children of such names are one branch: `mlp` is `attention` there, and
    `parallel` is `parallel_attention`. `tokens` are plain attention modules, if every block has one
    (`families.plain_attention`).

    Raises:
        PlanError: The network does not run, or its stages are ambiguous or missing (`NoStagesError`).
    """
    return trial.first(lambda observed: _probed(trial, observed))


def _probed(trial: Trial, observed: Observed) -> Probed:
    """Return the places that one observed run shows."""
    images = observed.example.images
    stages, beside = _stages(dict(base_modules(trial.root)), observed)
    blocks = [block for stage in stages for block in stage.blocks]
    attention, mlp, one_branch = _branches(trial, observed, blocks)
    outputs, inputs = _ends(blocks, attention, mlp, one_branch)
    inputs = {name: children for name, children in inputs.items() if _keep_shape(children, observed)}
    places: dict[str, list[Spot]] = {"stage": [], **{name: [] for name in (*outputs, *inputs)}}
    containers: dict[str, tuple[int | None, int | None]] = {}
    for i, stage in enumerate(stages):
        places["stage"].append(spot_at(stage.output.out, stage.output.last, images, stage=i))
        for j, block in enumerate(stage.blocks):
            containers.setdefault(block.path, (i, j))
            at = functools.partial(spot_at, images=images, stage=i, block=j)
            for name, children in (*outputs.items(), *inputs.items()):
                for path in children[block.path]:
                    places[name].append(at(path, observed.modules[path], reads_input=name in inputs))
    if tokens := _token_spots(trial, observed, stages):
        places[TOKENS] = tokens
    for i, stage in enumerate(stages):  # after the blocks, because a stage may be a block itself
        containers.setdefault(stage.path, (i, None))
    return Probed({name: tuple(spots) for name, spots in places.items()}, containers, beside)


def _token_spots(trial: Trial, observed: Observed, stages: list[Stage]) -> list[Spot]:
    """Return the plain attention modules inside the blocks; none if a block has none.

    Each is called once, and its batch is that of the images: attention in windows would need one gate for each image's
    windows. Inside torch's fused layers, modules are not called.
    """
    images, spots = observed.example.images, list[Spot]()
    for i, stage in enumerate(stages):
        for j, block in enumerate(stage.blocks):
            inside = _attentions(trial, observed, block, images)
            if not inside:
                return []
            spots += [replace(spot, stage=i, block=j) for spot in inside]
    return spots


def _is_masked(attention: nn.Module, given: list[Any]) -> bool:
    """Return whether attention is called with more than tokens; `need_weights` of torch's module does not count."""
    tensors = [each for each in given if each is not True]
    if isinstance(attention, nn.MultiheadAttention):
        return len(tensors) > 3
    return len(tensors) > 1 or len(given) > len(tensors)


def _attentions(trial: Trial, observed: Observed, block: Unit, images: int) -> list[Spot]:
    found: list[Spot] = []
    for path, module in base_modules(block.module):
        at = f"{block.path}.{path}" if path else block.path
        seen = observed.modules.get(at)
        if seen is None or seen.calls != 1 or any(has_fused_path(m) for m in _enclosing(block.module, path)):
            continue
        forward = plain_attention(trial.twin.get_submodule(at))
        batch = 0 if getattr(module, "batch_first", True) else 1
        if forward is None or seen.shape is None or len(seen.shape) != 3 or seen.shape[batch] != images:
            continue
        if _is_masked(module, observed.given(at)):
            continue
        attachment = Attachment(form="block", block=forward.name, port=TOKENS)
        found.append(Spot(path=at, attachment=attachment, shape=(seen.shape[-1],)))
    return found


def _enclosing(root: nn.Module, path: str) -> list[nn.Module]:
    return [root, *(root.get_submodule(p) for p in around(path))]


def _ends(
    blocks: list[Unit], attention: Children, mlp: Children, one_branch: bool
) -> tuple[dict[str, Children], dict[str, Children]]:
    """Return the modules by place and block: for places at their output, and for places that read their input.

    Without attention children, the block stands for the attention, and with `one_branch` for the MLP too.
    """
    whole = {block.path: [block.out] for block in blocks}
    called = whole if all(block.out == block.path for block in blocks) else {}
    outputs = {"attention": attention or whole, "mlp": mlp or (whole if one_branch else {})}
    inputs = {"parallel_attention": attention or called, "parallel": mlp or (called if one_branch else {})}
    return ({name: c for name, c in some.items() if c} for some in (outputs, inputs))  # type: ignore[return-value]


def _keep_shape(children: Children, observed: Observed) -> bool:
    """Return whether each module gives the shape that it takes: an adapter beside it reads one, adds to the other."""
    seen = [observed.modules[path] for paths in children.values() for path in paths]
    return all(each.input_shape in (None, each.shape) for each in seen)


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
    layout = seen.layout or token_layout(seen.shape or (), images) or Layout.WLC
    source: Literal["input", "output"] = "input" if reads_input else "output"
    attachment = Attachment(form="output", layout=layout, source=source, item=seen.item, square=seen.is_square)
    return Spot(path=path, stage=stage, block=block, attachment=attachment, shape=(seen.channels,))


# --- stages ---------------------------------------------------------------------------------------------------------


def _stages(modules: dict[str, nn.Module], observed: Observed) -> tuple[list[Stage], tuple[str, ...]]:
    """Return the stages, and the sequences beside them (see `Probed`).

    Raises:
        NoStagesError: No rule gives stages.
    """
    pixels = observed.example.first.shape[-3] if observed.example.size is not None else 0
    # A module whose output has as few channels as the image is a whole network, not a stage.
    units = [u for u in units_of(modules, observed) if u.last.shape is None or u.last.channels > pixels]
    total = sum(p.numel() for p in modules[""].parameters())
    sequences = siblings(units)
    outer = outermost(sequences)
    body = max(outer, key=lambda s: s.parameters, default=None)
    levels = levels_of(units, outer, WORTH_A_STAGE * total)
    scaled = [s for s in outermost(scaled_siblings(units)) if s.parameters >= WORTH_A_STAGE * total]
    a_pair = len({s.size for s in levels}) == 2
    only_body = a_pair and body is not None and body.parameters > MOST_OF_A_PAIR * total
    if _is_u_shape(levels, total) and not only_body:
        chosen = levels
        parts = [(s.units[0].parent if len(s.units) > 1 else s.units[0].path, s.units) for s in levels]
    elif body is not None and body.parameters > (MOST if len(outer) > 1 else MOST_ALONE) * total:
        chosen = [body]
        parts = [(u.path, (u,)) for u in body.units]
    elif _is_u_shape(scaled, total):
        chosen = scaled
        members = sorted((u for s in scaled for u in s.units), key=lambda u: u.first.order)
        parts = [(u.path, (u,)) for u in members]
    else:
        raise _no_stages(modules, observed, units, outer, total)
    stages = [
        Stage(path=path, output=members[-1], blocks=tuple(b for u in members for b in _blocks(u, sequences)))
        for path, members in parts
    ]
    outside = [s for s in outer if not any(c.holds(u) or u in c.units for c in chosen for u in s.units)]
    return stages, tuple(str(s) for s in outside if s.parameters >= WORTH_NAMING * total)


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


def _blocks(stage: Unit, sequences: list[Sequence]) -> tuple[Unit, ...]:
    """Return the blocks of a stage: its largest sequence of composite modules, if over half of its parameters.

    If there is no such sequence, the stage itself is the only block.
    """
    inside = [s for s in sequences if all(u.is_inside(stage) and u.has_children for u in s.units)]
    best = max(outermost(inside), key=lambda s: s.parameters, default=None)
    return best.units if best is not None and 2 * best.parameters > stage.parameters else (stage,)


# --- attention and MLP children --------------------------------------------------------------------------------------

Children = dict[str, list[str]]
"""Paths of children of one sort by the path of their block."""


def _branches(trial: Trial, observed: Observed, blocks: list[Unit]) -> tuple[Children, Children, bool]:
    """Return the attention and MLP children by block, if added to other features; empty if a block has none.

    The last value is True if no block has a child with the name of either.
    """

    def in_all_blocks(children: Children) -> Children:
        return children if all(children.values()) else {}

    named = [in_all_blocks({b.path: _named(name, b, observed) for b in blocks}) for name in (ATTENTION, MLP)]
    paths = [path for children in named for of_block in children.values() for path in of_block]
    if not paths:
        return {}, {}, True
    added = trial.additions(observed.example, paths)
    attention, mlp = ({block: [p for p in of if p in added] for block, of in children.items()} for children in named)
    return in_all_blocks(attention), in_all_blocks(mlp), False


def _named(name: re.Pattern[str], block: Unit, observed: Observed) -> list[str]:
    """Return the children of a block with a matching name and weights, called once, whose output has its channels."""
    if has_fused_path(block.module):
        return []
    paths = []
    for child, module in block.module.named_children():
        path = f"{block.path}.{child}"
        seen = observed.modules.get(path)
        if not name.search(child.lower()) or "norm" in child or seen is None or seen.calls != 1:
            continue
        weights = any(p.dim() > 1 for p in module.parameters())
        features = seen.shape is not None and len(seen.shape) in (3, 4) and not seen.is_ambiguous
        if weights and features and seen.channels == block.last.channels:
            paths.append(path)
    return paths


def has_fused_path(module: nn.Module) -> bool:
    """Return whether a module is a batch-first nn.TransformerEncoderLayer: its forward may not call its children."""
    fused = original_class(module).forward is nn.TransformerEncoderLayer.forward
    return fused and bool(module.self_attn.batch_first)  # type: ignore[union-attr]


# --- errors ----------------------------------------------------------------------------------------------------------


def _no_stages(
    modules: dict[str, nn.Module], observed: Observed, units: list[Unit], outer: list[Sequence], total: int
) -> NoStagesError:
    several = max(outermost(siblings(units, ambiguous=True)), key=lambda s: s.parameters, default=None)
    if several is not None and 2 * several.parameters > total:
        sample = several.units[0]
        error = NoStagesError(
            f"this network belongs to no known family, and the modules that could be its stages ({sample.path} …) "
            f"return {len(sample.last.alike)} tensors of one shape; name one of them with item="
        )
        error.targets = (tuple(u.out for u in several.units),)
        error.items = sample.last.alike
        return error
    large = [s for s in sorted(outer, key=lambda s: -s.parameters) if s.parameters >= WORTH_A_STAGE * total]
    found = "no sequence of stages (numbered siblings, each called once, with features of one shape in and out)"
    if large:
        what = "one sequence that could be its stages, but it contains"
        if len(large) > 1:
            what = "several sequences that could be its stages, but each contains"
        found = f"{what} too few of its {total:,} parameters"
    error = NoStagesError(
        f"this network belongs to no known family, and a test run found {found}", problems=[*map(str, large)]
    )
    members = [u.out for u in large[0].units] if large and large[0].parameters >= WORTH_NAMING * total else None
    choices = (members, _largest(modules, observed, total), [s.units[-1].out for s in large])
    error.targets = tuple(tuple(paths) for paths in choices if paths is not None)
    return error


def _largest(modules: dict[str, nn.Module], observed: Observed, total: int, inside: str = "") -> tuple[str, ...]:
    """Return the paths of the largest parts of a network that give features, in the order of execution."""
    lead = f"{inside}." if inside else ""
    children = [p for p in modules if p.startswith(lead) and p != inside and p.count(".") == lead.count(".")]
    big = [p for p in children if sum(w.numel() for w in modules[p].parameters()) >= WORTH_NAMING_ALONE * total]
    found: list[str] = []
    for path in big:
        seen = observed.modules.get(path)
        gives = seen is not None and seen.is_features and not seen.is_ambiguous
        parts = () if gives and len(big) > 1 else _largest(modules, observed, total, path)
        found += parts or ([path] if gives else [])
    return tuple(sorted(found, key=lambda p: observed.modules[p].order))
