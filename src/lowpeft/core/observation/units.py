"""Candidates for stages and blocks: units (modules or containers with features in and out) and sequences of units."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ...ports.layouts import Layout, Size
from ..attachment.specialise import original_class
from .observing import Observation, Observed

MOST_SHRUNK_PX = 16
"""Largest difference of input and output sides, in pixels, that counts as the same size (unpadded convolutions)."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A module, or a container that is never called, with observations of its input and output.

    Attributes:
        path: Path of the module or container.
        out: Path of the module whose output is the unit's.
        first, last: Observations of the first and the last module in it.
        parameters: Number of parameters.
    """

    path: str
    out: str
    first: Observation
    last: Observation
    parameters: int

    @property
    def keeps_shape(self) -> bool:
        """True if input and output have the same shape, apart from pixels that unpadded convolutions cut off."""
        before, after = self.first.input_shape, self.last.shape
        return before == after or self.shrinks

    @property
    def shrinks(self) -> bool:
        """True if it keeps the channels but cuts some pixels off a map, at most `MOST_SHRUNK_PX` of each side."""
        before, after = self.first.input_shape, self.last.shape
        if before is None or after is None or self.last.layout is not Layout.NCHW or len(before) != 4:
            return False
        cut = [b - a for b, a in zip(before[2:], after[2:], strict=True)]
        return before[:2] == after[:2] and before != after and all(0 <= c <= MOST_SHRUNK_PX for c in cut)

    @property
    def is_features(self) -> bool:
        """True if its output has features of each image: maps, or tokens (whose rows and columns may be unknown)."""
        seen = self.last
        if seen.shape is None:
            return False
        return seen.layout is not None or seen.is_tokens


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """Siblings that could be the stages of a network, or the blocks of one."""

    units: tuple[Unit, ...]

    @property
    def parameters(self) -> int:
        return sum(u.parameters for u in self.units)

    @property
    def order(self) -> int:
        """Rank of its first call, from 0; sequences are sorted by it."""
        return self.units[0].first.order

    @property
    def size(self) -> Size | None:
        return self.units[-1].last.size

    def holds(self, path: str) -> bool:
        """Return whether a module is inside one of the units."""
        return any(path.startswith(u.path + ".") for u in self.units)

    def __str__(self) -> str:
        sample = self.units[0].last
        shape = "x".join(map(str, sample.shape or ()))
        return (
            f"{self.units[0].path} … {self.units[-1].path}: {len(self.units)} of {shape} "
            f"({sample.layout or 'tokens'}), {self.parameters:,} parameters"
        )


def units_of(modules: dict[str, nn.Module], observed: Observed) -> dict[str, Unit]:
    """Return units by path, innermost first: modules that are called once, and uncalled containers of such modules."""
    found: dict[str, Unit] = {}
    children: dict[str, list[str]] = {}
    for path in modules:
        children.setdefault(path.rpartition(".")[0], []).append(path)
    for path in sorted(filter(None, modules), key=lambda p: -p.count(".")):
        count = sum(p.numel() for p in modules[path].parameters())
        seen = observed.modules.get(path)
        if seen is not None:
            if seen.calls == 1:
                found[path] = Unit(path=path, out=path, first=seen, last=seen, parameters=count)
            continue
        inside = sorted((found[c] for c in children.get(path, ()) if c in found), key=lambda u: u.first.order)
        once = all(observed.modules[c].calls == 1 for c in children.get(path, ()) if c in observed.modules)
        if inside and once:
            first, last = inside[0], inside[-1]
            found[path] = Unit(path=path, out=last.out, first=first.first, last=last.last, parameters=count)
    return found


def siblings(
    units: Iterable[Unit], modules: dict[str, nn.Module], *, scaled: bool = False, ambiguous: bool = False
) -> list[Sequence]:
    """Return sequences of numbered siblings of the same shape or, with `scaled`, of different sizes and channels.

    Units with several output tensors of the same shape are returned only with `ambiguous`, which leaves out all others.
    """
    groups: dict[tuple[object, ...], list[Unit]] = {}
    runs: dict[tuple[object, ...], tuple[object, int]] = {}
    for unit in sorted(units, key=lambda u: u.first.order):
        parent, _, name = unit.path.rpartition(".")
        is_leaf = not any(modules[unit.path].children())
        if unit.last.is_ambiguous is not ambiguous or not unit.is_features or not re.search(r"\d", name):
            continue
        if is_leaf and not name.isdigit():  # e.g. conv1, conv2 of a residual block
            continue
        key: tuple[object, ...] = (parent, re.sub(r"\d+", "#", name))
        if scaled:
            if unit.last.layout is None or is_leaf:
                continue
        elif not unit.keeps_shape:
            runs[key] = (None, runs.get(key, (None, 0))[1])
            continue
        else:
            # A run ends when the shape changes: the first and last level of a U-shape have the same shape, but others
            # run between them, so they are not one sequence.
            shape = unit.last.shape if not unit.shrinks else unit.last.channels
            before, run = runs.get(key, (None, 0))
            runs[key] = (shape, run + (shape != before))
            key = (*key, runs[key], original_class(modules[unit.path]), unit.last.item, unit.last.layout)
        groups.setdefault(key, []).append(unit)
    return [Sequence(units=tuple(g)) for g in groups.values() if len(g) > 1 and any(u.parameters for u in g)]


def outermost(found: list[Sequence]) -> list[Sequence]:
    """Return the sequences that are not inside another one, in the order of execution."""
    kept = [s for s in found if not any(o is not s and all(o.holds(u.path) for u in s.units) for o in found)]
    return sorted(kept, key=lambda s: s.order)


def levels_of(units: list[Unit], modules: dict[str, nn.Module], outer: list[Sequence], least: float) -> list[Sequence]:
    """Return candidates for the levels of a U-shape: consecutive blocks of the same class and shape, in one parent.

    A level may have a single block. The class is the one with the most parameters. Sequences of blocks of other classes
    also count if they have more than `least` parameters.
    """
    blocks = [u for u in units if u.keeps_shape and u.is_features and not u.last.is_ambiguous and _is_block(u, modules)]
    by_class: dict[type, list[Unit]] = {}
    for unit in blocks:
        same = by_class.setdefault(original_class(modules[unit.path]), [])
        if not any(unit.path.startswith(u.path + ".") for u in same):
            same.append(unit)
    main = max(by_class.values(), key=lambda us: sum(u.parameters for u in us), default=[])
    groups: list[list[Unit]] = []
    for unit in main:
        last = groups[-1][-1] if groups else None
        here = unit.path.rpartition(".")[0], unit.last.shape
        if last is not None and here == (last.path.rpartition(".")[0], last.last.shape):
            groups[-1].append(unit)
        else:
            groups.append([unit])
    levels = [Sequence(units=tuple(g)) for g in groups]
    mine = Sequence(units=tuple(main)) if main else None
    for other in outer:
        paths = [u.path for u in other.units]
        apart = mine is not None and not any(mine.holds(p) or p in {u.path for u in main} for p in paths)
        apart = apart and not any(other.holds(u.path) for u in main)
        if apart and other.parameters > least and all(_is_block(u, modules) for u in other.units):
            levels.append(other)
    return sorted(levels, key=lambda s: s.order)


def _is_block(unit: Unit, modules: dict[str, nn.Module]) -> bool:
    """Return whether a unit is a module with children and a forward of its own, not a Sequential or a container."""
    module = modules[unit.path]
    is_container = unit.path != unit.out or original_class(module).forward is nn.Sequential.forward
    return any(module.children()) and not is_container
