r"""Pattern syntax of lowpeft: globs over dotted paths.

    layers.*.conv          `*` is one path component (or a part of one: `fc*`)
    layers.**.qkv          `**` is any number of components, including zero
    re:layers\.[02]\..*    a regular expression that must match the whole path
    !**.conv_last          a leading `!` excludes
    stage=0                the first stage of the network (never block 0 of every stage)
    stage=1:4 block=-1     slices and negative numbers work as in Python, lists are `stage=0,2`;
                           `block=-1` is the last block of each stage

A sequence of patterns selects their union without the paths that a `!` pattern matches; the order does not matter.
Every pattern must match something.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

from ..errors import PlanError

Patterns = str | Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """Item that a pattern can select: a dotted path and, if known, the numbers of its stage and block."""

    path: str
    within: tuple[str, ...] = ()
    """Further paths that select it, e.g. its parent modules if naming one selects everything inside."""
    stage: int | None = None
    block: int | None = None
    by_name: bool = False
    """True if only a pattern that names a path of `within` selects it: no place, and no pattern that ends with `*`."""


C = TypeVar("C", bound=Candidate)


def around(path: str) -> tuple[str, ...]:
    """Return the paths of the enclosing modules, outermost first; e.g. "a", "a.b" for "a.b.weight"."""
    parts = path.split(".")
    return tuple(".".join(parts[:i]) for i in range(1, len(parts)))


def as_tuple(patterns: Patterns) -> tuple[str, ...]:
    """Return one pattern or a sequence of patterns as a tuple."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


@lru_cache(maxsize=1024)
def compile_pattern(pattern: str) -> re.Pattern[str]:
    r"""Return the regular expression for `pattern` (without `!`); for a glob, it matches "." + path.

    E.g. `layers.*.conv` becomes `\.layers\.[^.]*\.conv`, and `**.conv` becomes `(?:\.[^.]+)*\.conv`.

    Raises:
        PlanError: The pattern has an empty component, or its regular expression is invalid.
    """
    if pattern.startswith("re:"):
        expression = pattern[3:]
    elif all(parts := pattern.split(".")):
        expression = "".join(r"(?:\.[^.]+)*" if part == "**" else r"\." + _component(part) for part in parts)
    else:
        raise PlanError(f"pattern {pattern!r} has an empty path component; write e.g. 'layers.*.conv'")
    try:
        return re.compile(expression)
    except re.error as error:
        raise PlanError(f"pattern {pattern!r} is not valid: {error}") from error


SET = r"\[!?[^\]]+\]"
WILD = re.compile(rf"(\*|\?|{SET})")


def _component(part: str) -> str:
    wild = {"*": "[^.]*", "?": "[^.]"}
    pieces = WILD.split(part)
    return "".join(wild.get(p) or (_set(p) if re.fullmatch(SET, p) else re.escape(p)) for p in pieces)


def _set(piece: str) -> str:
    """Return the expression for `[abc]`, `[a-z]` or `[!abc]`: one character, never a dot; all else is literal."""
    negated, inside = ("^", piece[2:-1]) if piece.startswith("[!") else ("", piece[1:-1])
    return rf"(?!\.)[{negated}" + re.sub(r"([\\\[\^&|~])", r"\\\1", inside) + "]"


def literals(pattern: str) -> set[str]:
    """Return the components that every path matching `pattern` (without `!`) has: those without wildcards.

    Raises like `compile_pattern`.
    """
    compile_pattern(pattern)
    return set() if pattern.startswith("re:") else {part for part in pattern.split(".") if not WILD.search(part)}


def matcher(pattern: str) -> Callable[[str], bool]:
    """Return a function that tests whether `pattern` (without `!`) matches a path. Raises like `compile_pattern`."""
    expression, prefix = compile_pattern(pattern), "" if pattern.startswith("re:") else "."
    return lambda path: expression.fullmatch(prefix + path) is not None


def matches(pattern: str, path: str) -> bool:
    """Return whether `pattern` (without `!`) matches `path`."""
    return matcher(pattern)(path)


def select(patterns: Patterns, candidates: Iterable[C], *, what: str) -> tuple[C, ...]:
    """Return the candidates that the patterns select, in the order of the candidates.

    Args:
        patterns: One pattern or several. If all are `!` patterns, selection starts from all candidates.
        candidates: Items to select from.
        what: Plural noun for the candidates in error messages, e.g. `modules`.

    Raises:
        PlanError: A pattern matches nothing (all such patterns are listed, with the nearest paths), or no candidate is
            left.
    """
    pool = tuple(candidates)
    wanted = as_tuple(patterns)
    if not wanted:
        raise PlanError(f"no pattern was given for the {what}; give at least one")
    counts = _counts(pool)
    chosen: set[int] = set() if any(not p.startswith("!") for p in wanted) else set(range(len(pool)))
    excluded: set[int] = set()
    problems = []
    for pattern in wanted:
        test = _matcher(pattern.removeprefix("!"), counts)
        hits = {i for i, c in enumerate(pool) if test(c)}
        if not hits:
            problems.append(f"{pattern!r} matches none of the {len(pool)} {what}{_nearest(pattern, pool)}")
        (excluded if pattern.startswith("!") else chosen).update(hits)
    if problems:
        some = f"{len(problems)} of {len(wanted)} patterns match" if len(wanted) > 1 else "this pattern matches"
        raise PlanError(f"{some} nothing:", problems=problems)
    kept = chosen - excluded
    if not kept:
        raise PlanError(f"the patterns {list(wanted)} exclude all {len(pool)} {what}; remove a '!' pattern")
    return tuple(c for i, c in enumerate(pool) if i in kept)


def _counts(pool: Sequence[Candidate]) -> dict[int | None, int]:
    """Return the number of blocks by stage and, under None, the number of stages."""
    counts: dict[int | None, int] = {None: 1 + max((c.stage for c in pool if c.stage is not None), default=-1)}
    for candidate in pool:
        if candidate.stage is not None and candidate.block is not None:
            counts[candidate.stage] = max(counts.get(candidate.stage, 0), candidate.block + 1)
    return counts


def _matcher(pattern: str, counts: Mapping[int | None, int]) -> Callable[[Candidate], bool]:
    if not re.match(r"(stage|block)=", pattern):
        test, names = matcher(pattern), pattern.rpartition(".")[2] not in ("*", "**")
        return lambda c: any(map(test, c.within)) and names if c.by_name else any(map(test, (c.path, *c.within)))
    chosen: dict[str, str] = {}
    for term in pattern.split():
        match = re.fullmatch(r"(stage|block)=([-0-9:,]+)", term)
        if match is None or match[1] in chosen:
            raise PlanError(f"cannot read place {pattern!r}; write 'stage=0', 'stage=1:4 block=-1' or 'stage=0,2'")
        chosen[match[1]] = match[2]
        _numbers(match[2], counts[None], pattern)  # raises if the numbers cannot be parsed
    stages = _numbers(chosen["stage"], counts[None], pattern) if "stage" in chosen else None
    # Negative numbers count from the end of each candidate's stage: with depths 2, 2, 6, 2 `block=-1` is four blocks.
    blocks = {s: _numbers(chosen["block"], n, pattern) for s, n in counts.items()} if "block" in chosen else None

    def test_place(candidate: Candidate) -> bool:
        if candidate.by_name:
            return False
        if stages is not None and candidate.stage not in stages:
            return False
        return blocks is None or candidate.block in blocks.get(candidate.stage, frozenset())

    return test_place


def _numbers(text: str, count: int, pattern: str) -> frozenset[int]:
    numbers: set[int] = set()
    try:
        for item in text.split(","):
            if ":" in item:
                bounds = [int(b) if b else None for b in item.split(":")]
                numbers.update(range(count)[slice(*bounds)])
            else:
                numbers.add(int(item) + (count if int(item) < 0 else 0))
    except (ValueError, TypeError) as error:
        raise PlanError(f"cannot read the numbers of place {pattern!r}: {error}") from error
    return frozenset(numbers)


def _nearest(pattern: str, pool: Sequence[Candidate]) -> str:
    """Return the nearest paths as text, with numbers written as `*`, so that a path is listed once, not per layer."""
    if re.match(r"!?(stage|block)=", pattern):
        stages = sorted({c.stage for c in pool if c.stage is not None})
        return f" (stages here: {stages[0]}..{stages[-1]})" if stages else " (this network has no named stages)"
    known = (path for c in pool for path in (c.path, *c.within))
    paths = dict.fromkeys(".".join("*" if p.isdigit() else p for p in path.split(".")) for path in known)
    literal = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", pattern.removeprefix("!").removeprefix("re:"))
    near = difflib.get_close_matches(literal, list(paths), n=3, cutoff=0.5)
    if not near:
        tails = {p.rsplit(".", 1)[-1]: p for p in paths}
        hits = difflib.get_close_matches(literal.rsplit(".", 1)[-1], list(tails), n=3, cutoff=0.5)
        near = [tails[t] for t in hits]
    return f" (nearest: {', '.join(map(repr, near))})" if near else ""
