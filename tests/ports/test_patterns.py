"""The pattern dialect: what each form means, the order of results, and that a pattern must match something."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lowpeft.errors import PlanError
from lowpeft.ports.patterns import Candidate, as_tuple, compile_pattern, matches, select
from reference import glob

# Four groups of three blocks, as in a small SwinIR.
NETWORK = (
    Candidate(path="conv_first"),
    *(
        candidate
        for s in range(4)
        for candidate in (
            *(
                Candidate(path=f"layers.{s}.blocks.{b}.{name}", stage=s, block=b)
                for b in range(3)
                for name in ("qkv", "fc1", "fc2")
            ),
            Candidate(path=f"layers.{s}.conv", stage=s),
        )
    ),
    Candidate(path="conv_last"),
)
PATHS = tuple(c.path for c in NETWORK)


def chosen(*patterns: str) -> list[str]:
    return [c.path for c in select(patterns, NETWORK, what="modules")]


# --- One pattern and one path
@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("conv_first", "conv_first"),
        ("layers.*.conv", "layers.0.conv"),
        ("layers.*.conv", "layers.10.conv"),
        ("layers.*.fc*", "layers.0.fc1"),
        ("layers.*.f*1", "layers.0.fc1"),
        ("layers.*.conv*", "layers.0.conv"),
        ("*", "conv_first"),
        ("**", "conv_first"),
        ("**", "layers.0.blocks.1.qkv"),
        ("**.qkv", "layers.0.blocks.1.qkv"),
        ("**.qkv", "qkv"),
        ("layers.**", "layers"),
        ("layers.**", "layers.0.conv"),
        ("layers.**.conv", "layers.conv"),
        ("layers.**.blocks.**.qkv", "layers.0.blocks.1.attn.qkv"),
        ("**.**", "a"),
        ("layers.?.conv", "layers.7.conv"),
        ("layers.[02].conv", "layers.2.conv"),
        ("layers.[1-3].conv", "layers.2.conv"),
        ("layers.[!02].conv", "layers.1.conv"),
        ("layers.1[0-2].conv", "layers.11.conv"),
        (r"re:layers\.[02]\..*", "layers.2.blocks.0.qkv"),
        ("re:.*(qkv|fc1)", "layers.2.blocks.0.fc1"),
        ("a+b", "a+b"),
        ("a[", "a["),
    ],
)
def test_a_pattern_means_a_path(pattern: str, path: str) -> None:
    assert matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("conv", "conv_first"),  # no prefix match
        ("first", "conv_first"),  # no suffix match: `upsample` is not `conv_before_upsample`
        ("conv", "layers.0.conv"),  # a pattern starts at the root
        ("layers.*.conv", "layers.conv"),  # `*` is one component, not none
        ("layers.*.conv", "layers.0.blocks.conv"),  # nor two
        ("layers.*", "layers.0.conv"),
        ("lay*conv", "layers.0.conv"),  # nor does it cross a dot within a component
        ("**.qkv", "layers.0.xqkv"),
        ("layers.**", "layers2.0"),
        ("layers.?.conv", "layers.10.conv"),
        ("layers?0", "layers.0"),  # `?` is not a dot
        ("layers.[02].conv", "layers.1.conv"),
        ("layers.[!02].conv", "layers.2.conv"),
        ("re:layers", "layers.0"),  # a regular expression must match the whole path
        ("re:0", "layers.0"),
        ("a.c", "abc"),  # outside `re:` a dot is a dot
        ("a+", "aa"),
        ("conv_first", "Conv_first"),
        ("conv_first", "conv_first\n"),
    ],
)
def test_a_pattern_does_not_mean_a_path(pattern: str, path: str) -> None:
    assert not matches(pattern, path)


@pytest.mark.parametrize("pattern", ["layers[!x]0", "layers[+-9]0"])
def test_a_set_of_characters_is_never_a_dot(pattern: str) -> None:
    assert not matches(pattern, "layers.0")


@pytest.mark.parametrize(("pattern", "path"), [("[^a]", "a"), (r"[\d]", "d"), ("[[]", "["), ("[a&&b]", "&")])
def test_characters_in_a_set_stand_for_themselves(pattern: str, path: str) -> None:
    assert matches(pattern, path)


# --- Bad patterns
@pytest.mark.parametrize("pattern", ["", ".", "a..b", ".a", "a.", "!", "!a..b", "!.a"])
def test_an_empty_component_is_refused(pattern: str) -> None:
    with pytest.raises(PlanError, match=re.escape(repr(pattern.removeprefix("!")))):
        chosen(pattern)


@pytest.mark.parametrize("pattern", ["re:(", "re:[a", "re:*", "!re:("])
def test_a_broken_regular_expression_is_refused(pattern: str) -> None:
    with pytest.raises(PlanError, match=re.escape(repr(pattern.removeprefix("!")))):
        chosen(pattern)


def test_a_set_that_runs_backwards_is_refused() -> None:
    with pytest.raises(PlanError, match=re.escape("'layers.[3-1].conv'")):
        chosen("layers.[3-1].conv")


@pytest.mark.parametrize(
    "pattern",
    [
        "stage=",
        "stage=a",
        "stage=1.5",
        "stage=--1",
        "stage=0,",
        "stage=,0",
        "stage=0 stage=1",
        "stage=0 block",
        "stage=0 layer=1",
        "stage=0:2:0",
        "stage=0:1:2:3",
        "block=0; stage=1",
        "stage=0,block=1",
    ],
)
def test_a_place_that_cannot_be_read_is_refused(pattern: str) -> None:
    with pytest.raises(PlanError, match=re.escape(repr(pattern))):
        chosen(pattern)


def test_no_pattern_at_all_is_refused() -> None:
    with pytest.raises(PlanError, match="modules"):
        chosen()


# --- Selecting
def test_one_pattern_may_stand_without_a_list() -> None:
    assert select("conv_last", NETWORK, what="modules") == (NETWORK[-1],)


def test_results_keep_the_order_of_the_network() -> None:
    assert chosen("conv_last", "layers.2.conv", "layers.0.conv", "conv_first") == [
        "conv_first",
        "layers.0.conv",
        "layers.2.conv",
        "conv_last",
    ]


def test_patterns_that_overlap_give_each_path_once() -> None:
    assert chosen("layers.*.conv", "**.conv", "layers.0.conv") == [f"layers.{s}.conv" for s in range(4)]


def test_an_exclusion_takes_away() -> None:
    assert chosen("layers.*.conv", "!layers.2.*") == ["layers.0.conv", "layers.1.conv", "layers.3.conv"]


def test_exclusions_alone_start_from_everything() -> None:
    assert chosen("!layers.**") == ["conv_first", "conv_last"]


def test_an_exclusion_holds_wherever_it_stands() -> None:
    assert chosen("!layers.2.*", "layers.*.conv") == chosen("layers.*.conv", "!layers.2.*")


def test_an_exclusion_may_be_a_regular_expression() -> None:
    assert chosen("!re:layers.*", "!re:.*_last") == ["conv_first"]


def test_an_exclusion_may_be_a_place() -> None:
    assert chosen("layers.*.conv", "!stage=1:") == ["layers.0.conv"]


def test_excluding_everything_is_refused() -> None:
    with pytest.raises(PlanError, match="42 modules"):
        chosen("conv_first", "!**")


def test_naming_a_module_selects_what_is_inside() -> None:
    pool = [
        Candidate(path="body.0.weight", within=("body", "body.0")),
        Candidate(path="tail.weight", within=("tail",)),
    ]
    assert select("body", pool, what="parameters") == (pool[0],)


def test_a_sequence_of_any_kind_becomes_a_tuple() -> None:
    assert (as_tuple("a"), as_tuple(["a", "b"])) == (("a",), ("a", "b"))


# --- Places
@pytest.mark.parametrize(
    ("pattern", "stages"),
    [
        ("stage=0", [0]),
        ("stage=-1", [3]),
        ("stage=-4", [0]),
        ("stage=1:3", [1, 2]),
        ("stage=1:", [1, 2, 3]),
        ("stage=:2", [0, 1]),
        ("stage=:", [0, 1, 2, 3]),
        ("stage=::2", [0, 2]),
        ("stage=1::2", [1, 3]),
        ("stage=::-3", [0, 3]),
        ("stage=-2:", [2, 3]),
        ("stage=0,2", [0, 2]),
        ("stage=3,0:2", [0, 1, 3]),
        ("stage=0,-1", [0, 3]),
        ("stage=2:99", [2, 3]),
        ("stage=0,99", [0]),
    ],
)
def test_stages_are_numbered_as_in_python(pattern: str, stages: list[int]) -> None:
    assert sorted({c.stage for c in select(pattern, NETWORK, what="modules")}) == stages


def test_a_stage_is_never_a_block() -> None:
    assert chosen("stage=1") == [p for p in PATHS if p.startswith("layers.1.")]


def test_a_block_alone_is_that_block_of_every_stage() -> None:
    assert chosen("block=-1") == [p for p in PATHS if ".blocks.2." in p]


@pytest.mark.parametrize("pattern", ["stage=1 block=0", "block=0 stage=1", "stage=1  block=0"])
def test_stage_and_block_together_are_one_block(pattern: str) -> None:
    assert chosen(pattern) == [f"layers.1.blocks.0.{n}" for n in ("qkv", "fc1", "fc2")]


@pytest.mark.parametrize("pattern", ["stage=4", "stage=-5", "stage=2:2", "block=3", "stage=0 block=7"])
def test_a_place_outside_the_network_is_refused(pattern: str) -> None:
    with pytest.raises(PlanError, match=rf"'{pattern}' .*42 modules .*0\.\.3"):
        chosen(pattern)


def test_a_place_in_a_network_without_stages_is_refused() -> None:
    with pytest.raises(PlanError, match=r"'stage=0' .*1 modules"):
        select("stage=0", [Candidate(path="conv")], what="modules")


@given(st.integers(-9, 9) | st.none(), st.integers(-9, 9) | st.none(), st.integers(-3, 3) | st.none())
def test_a_slice_is_pythons_slice(start: int | None, stop: int | None, step: int | None) -> None:
    expected = list(range(4))[start:stop:step] if step != 0 else []
    assume(expected)
    text = ":".join("" if n is None else str(n) for n in (start, stop, step))
    assert {c.stage for c in select(f"stage={text}", NETWORK, what="modules")} == set(expected)


# --- Patterns that match nothing
def test_one_typo_of_two_patterns_is_an_error() -> None:
    with pytest.raises(PlanError, match="1 of 2") as caught:
        chosen("layers.*.conv", "layers.*.blocks.*.qkw")
    assert len(caught.value.problems) == 1


def test_a_single_pattern_that_matches_nothing_is_not_counted() -> None:
    with pytest.raises(PlanError, match="this pattern matches nothing") as caught:
        chosen("layers.*.convv")
    assert len(caught.value.problems) == 1


def test_every_typo_is_listed() -> None:
    with pytest.raises(PlanError, match="2 of 3") as caught:
        chosen("layers.*.convv", "conv_first", "layers.*.blocks.*.qkw")
    assert [p.split("'")[1] for p in caught.value.problems] == ["layers.*.convv", "layers.*.blocks.*.qkw"]


def test_an_exclusion_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"'!layers\.9\.conv' .*42 modules"):
        chosen("layers.*.conv", "!layers.9.conv")


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("layers.*.convv", "'layers.*.conv'"),
        ("layers.9.conv", "'layers.*.conv'"),
        ("!layers.*.konv", "'layers.*.conv'"),
        ("layers.*.blocks.*.qkw", "'layers.*.blocks.*.qkv'"),
        ("conv_frist", "'conv_first'"),
        ("qkv", "'layers.*.blocks.*.qkv'"),  # right name, wrong place
    ],
)
def test_the_nearest_path_is_named_once(pattern: str, nearest: str) -> None:
    with pytest.raises(PlanError) as caught:
        chosen(pattern)
    (problem,) = caught.value.problems
    assert problem.count(nearest) == 1


def test_far_from_everything_no_path_is_suggested() -> None:
    with pytest.raises(PlanError) as caught:
        chosen("xyzzy")
    assert "nearest" not in str(caught.value)


def test_a_regular_expression_with_an_equals_sign_gets_paths_not_stages() -> None:
    with pytest.raises(PlanError) as caught:
        chosen("re:(?=layers)konv_first")
    assert "stages here" not in str(caught.value)


# --- Properties
component = st.text(alphabet="ab01_", min_size=1, max_size=4)
paths = st.lists(component, min_size=1, max_size=4).map(".".join)
piece = st.one_of(
    component, st.sampled_from(["*", "**", "?", "a*", "*b", "[ab]", "[!a]b", "[0-1]", "?*", "a?b", "*_*"])
)
globs = st.lists(piece, min_size=1, max_size=4).map(".".join)


@given(globs, paths)
@example("**.**.a", "a")
@example("a.**.a", "a")
@example("**.a.**", "b.a.b")
def test_the_dialect_is_that_of_the_slow_reference(pattern: str, path: str) -> None:
    assert matches(pattern, path) == glob.matches(pattern, path)


@given(paths, paths)
def test_a_literal_path_means_itself_only(one: str, other: str) -> None:
    assert matches(one, other) == (one == other)


@given(paths)
def test_two_stars_mean_every_path(path: str) -> None:
    assert matches("**", path)


@given(paths)
def test_stars_mean_paths_of_their_own_depth(path: str) -> None:
    depth = path.count(".") + 1
    assert [n for n in range(1, 6) if matches(".".join("*" * n), path)] == [depth]


@given(paths, st.data())
def test_a_path_with_components_starred_still_means_the_path(path: str, data: st.DataObject) -> None:
    parts = path.split(".")
    stars = data.draw(st.lists(st.sampled_from([None, "*", "**"]), min_size=len(parts), max_size=len(parts)))
    assert matches(".".join(s or p for s, p in zip(stars, parts, strict=True)), path)


@given(paths)
def test_an_escaped_path_is_its_own_regular_expression(path: str) -> None:
    assert compile_pattern("re:" + re.escape(path)).fullmatch(path)


@given(st.lists(paths, min_size=3, max_size=8, unique=True), st.integers(0, 3), st.sampled_from(["*", "**", "?*"]))
def test_a_pattern_and_its_exclusion_split_the_network(network: list[str], position: int, star: str) -> None:
    pool = [Candidate(path=p) for p in network]
    parts = network[0].split(".")
    pattern = ".".join(star if i == position else p for i, p in enumerate(parts))
    hits = [c for c in pool if glob.matches(pattern, c.path)]
    assume(len(hits) < len(pool))
    kept, dropped = select(pattern, pool, what="modules"), select(f"!{pattern}", pool, what="modules")
    assert (list(kept), list(dropped)) == (hits, [c for c in pool if c not in hits])


@given(st.lists(st.sampled_from(PATHS), min_size=1, max_size=6))
def test_a_union_is_the_union(wanted: list[str]) -> None:
    assert chosen(*wanted) == [p for p in PATHS if p in wanted]
