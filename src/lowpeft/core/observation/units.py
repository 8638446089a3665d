"""Which modules could be stages or blocks? Units (modules or containers with features in and out) and their sequences.

E.g. `stages.0` to `stages.3`, each called once with features of one shape in and out, are a sequence of four units.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from torch import nn

from ...ports.base import original_class
from ...ports.layouts import Layout, Size
from .observing import Observation, Observed

MOST_SHRUNK_PX = 16
"""Largest difference of input and output sides, in pixels, that counts as the same size (unpadded convolutions)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Unit:
    """A module, or a container that is never called, with observations of its input and output.

    Attributes:
        path: Path of the module or container.
        module: The module or container.
        out: Path of the module whose output is the unit's.
        first, last: Observations of the first and the last module in it.
        parameters: Number of parameters.
    """

    path: str
    module: nn.Module
    out: str
    first: Observation
    last: Observation
    parameters: int

    @property
    def parent(self) -> str:
        """Path of the module around it."""
        return self.path.rpartition(".")[0]

    def is_inside(self, other: Unit) -> bool:
        """Return whether its module is inside another unit's."""
        return self.path.startswith(other.path + ".")

    @property
    def has_children(self) -> bool:
        """True if its module has submodules."""
        return any(self.module.children())

    @property
    def is_block(self) -> bool:
        """True if it is a module with children and a forward of its own, not a Sequential or a container."""
        is_container = self.path != self.out or original_class(self.module).forward is nn.Sequential.forward
        return self.has_children and not is_container

    @property
    def shape_kept(self) -> object:
        """Shape of input and output, if it is the same, or the channels if it `shrinks`; None if the shapes differ."""
        same = self.last.shape if self.first.input_shape == self.last.shape else None
        return self.last.channels if self.shrinks else same

    @property
    def shrinks(self) -> bool:
        """True if it keeps the channels but cuts some pixels off a map, at most `MOST_SHRUNK_PX` of each side."""
        before, after = self.first.input_shape, self.last.shape
        if before is None or after is None or self.last.layout is not Layout.NCHW or len(before) != 4:
            return False
        cut = [b - a for b, a in zip(before[2:], after[2:], strict=True)]
        return before[:2] == after[:2] and before != after and all(0 <= c <= MOST_SHRUNK_PX for c in cut)


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

    def holds(self, unit: Unit) -> bool:
        """Return whether a unit is inside one of these units."""
        return any(unit.is_inside(u) for u in self.units)

    def __str__(self) -> str:
        sample = self.units[0].last
        shape = "x".join(map(str, sample.shape or ()))
        return (
            f"{self.units[0].path} … {self.units[-1].path}: {len(self.units)} of {shape} "
            f"({sample.layout or 'tokens'}), {self.parameters:,} parameters"
        )


def units_of(modules: dict[str, nn.Module], observed: Observed) -> list[Unit]:
    """Return modules that are called once, and uncalled containers of such modules, in the order of execution."""
    units: dict[str, Unit] = {}
    children: dict[str, list[str]] = {}
    for path in modules:
        children.setdefault(path.rpartition(".")[0], []).append(path)
    for path in sorted(filter(None, modules), key=lambda p: -p.count(".")):  # innermost first
        count = sum(p.numel() for p in modules[path].parameters())
        seen = observed.modules.get(path)
        called = [c for c in children.get(path, ()) if c in observed.modules]
        inside = sorted((units[c] for c in children.get(path, ()) if c in units), key=lambda u: u.first.order)
        if seen is not None and seen.calls == 1:
            out, first, last = path, seen, seen
        elif seen is None and inside and all(observed.modules[c].calls == 1 for c in called):
            out, first, last = inside[-1].out, inside[0].first, inside[-1].last
        else:
            continue
        units[path] = Unit(path=path, module=modules[path], out=out, first=first, last=last, parameters=count)
    return sorted(units.values(), key=lambda u: u.first.order)


# --- sequences -------------------------------------------------------------------------------------------------------


def siblings(units: Iterable[Unit], *, ambiguous: bool = False) -> list[Sequence]:
    """Return sequences of numbered siblings of one class and shape.

    A sequence ends where the shape changes: the first and last level of a U-shape have the same shape, but others run
    between them.

    Args:
        units: Units in the order of execution.
        ambiguous: True for units with several output tensors of the same shape only, False for all others only.
    """
    groups: dict[object, list[Unit]] = {}
    for key, members in _numbered(u for u in units if u.last.is_ambiguous is ambiguous).items():
        for run, (shape, same) in enumerate(groupby(members, key=lambda u: u.shape_kept)):
            for unit in same if shape is not None else ():
                kind = original_class(unit.module), unit.last.item, unit.last.layout
                groups.setdefault((key, run, kind), []).append(unit)
    return _sequences(groups.values())


def scaled_siblings(units: Iterable[Unit]) -> list[Sequence]:
    """Return sequences of numbered siblings that may differ in size and channels, from units in order of execution."""
    maps = (u for u in units if u.last.layout is not None and u.has_children and not u.last.is_ambiguous)
    return _sequences(_numbered(maps).values())


def _numbered(units: Iterable[Unit]) -> dict[tuple[str, str], list[Unit]]:
    """Group units whose names differ in numbers only: `layers.0` and `layers.1`, or `block_1` and `block_2`."""
    groups: dict[tuple[str, str], list[Unit]] = {}
    for unit in units:
        name = unit.path.rpartition(".")[2]
        is_numbered = re.search(r"\d", name) and (unit.has_children or name.isdigit())  # not conv1, conv2 of a block
        if is_numbered and unit.last.is_features:
            groups.setdefault((unit.parent, re.sub(r"\d+", "#", name)), []).append(unit)
    return groups


def _sequences(groups: Iterable[list[Unit]]) -> list[Sequence]:
    return [Sequence(units=tuple(g)) for g in groups if len(g) > 1 and any(u.parameters for u in g)]


def outermost(sequences: list[Sequence]) -> list[Sequence]:
    """Return the sequences that are not inside another one, in the order of execution."""
    kept = [s for s in sequences if not any(o is not s and all(map(o.holds, s.units)) for o in sequences)]
    return sorted(kept, key=lambda s: s.order)


def levels_of(units: list[Unit], outer: list[Sequence], least: float) -> list[Sequence]:
    """Return candidates for the levels of a U-shape: consecutive blocks of the same class and shape, in one parent.

    A level may have a single block. The class is the one with the most parameters. Sequences of blocks of other classes
    (`outer`) also count if they have more than `least` parameters.
    """
    by_class: dict[type, list[Unit]] = {}
    for unit in units:
        if unit.is_block and unit.shape_kept is not None and unit.last.is_features and not unit.last.is_ambiguous:
            same = by_class.setdefault(original_class(unit.module), [])
            if not any(map(unit.is_inside, same)):
                same.append(unit)
    main = max(by_class.values(), key=lambda us: sum(u.parameters for u in us), default=[])
    levels = [Sequence(units=tuple(g)) for _, g in groupby(main, key=lambda u: (u.parent, u.last.shape))]
    for other in outer:
        overlaps = any(a is b or a.is_inside(b) or b.is_inside(a) for a in main for b in other.units)
        if main and not overlaps and other.parameters > least and all(u.is_block for u in other.units):
            levels.append(other)
    return sorted(levels, key=lambda s: s.order)
