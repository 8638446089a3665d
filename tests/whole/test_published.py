"""Published networks at full size: their parameters, the adapters' parameters, and the round trip, as the docs say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from unittest import mock

import pytest

import backbones
from published import NETWORKS, Network

RESULTS = json.loads((Path(backbones.__file__).parent / "results" / "backbones.json").read_text(encoding="utf-8"))
COUNTS = {row["name"]: row for row in RESULTS["networks"]}
TRIPS = {row["name"]: row for row in RESULTS["round_trips"]}
BIT_EQUAL = ("new_equals_base", "step_changes_output", "loaded_equals_trained")

# arXiv 2407.03598 for HAT-L (its table: 1.18 M and 0.78 M); the others follow from channels, blocks and groups.
ADAPTERS = {
    "HAT-L x4": (1_182_600, 788_400),
    "HAT x4": (591_300, 394_200),
    "SwinIR-M x4": (591_300, 394_200),
    "EDT-B x4": (591_300, 394_200),
    "Swin2SR x2 (transformers)": (591_300, 394_200),
    "IPT x4": (3_998_592, 7_997_184),
}


def name_of(row: Network) -> str:
    return row.name


# The large ones are built once in the default tier, and that of transformers, which takes longest, in no case.
LATER = re.compile(r".*\(transformers\)|(HAT-L|EDT-L|HAT|HAT-S) x(2|3|2x3x4)|(swin|Swin2SR|SwinIR).*")


@pytest.mark.parametrize(
    "row",
    [pytest.param(r, marks=[pytest.mark.slow] * bool(LATER.fullmatch(r.name))) for r in NETWORKS],
    ids=name_of,
)
@pytest.mark.slow
def test_counts_are_the_published_ones_and_those_of_the_results(row: Network) -> None:
    with mock.patch("lowpeft.core.planning.plan.mixes_images", return_value=False):  # two forwards, which count nothing
        found = backbones.counts(row)
    assert (found["family"], found["frozen"]) == (row.family, row.parameters)
    assert found == COUNTS[row.name]


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_have_the_expected_numbers_of_parameters(name: str) -> None:
    assert COUNTS[name]["by_kind"] == dict(zip(("spatial", "stereo"), ADAPTERS[name], strict=True))


def test_results_hold_every_row_and_no_other() -> None:
    assert list(COUNTS) == [row.name for row in NETWORKS]
    assert list(TRIPS) == [row.name for row in backbones.ROUND_TRIPS]


@pytest.mark.parametrize("row", backbones.ROUND_TRIPS, ids=name_of)
def test_recorded_round_trips_went_well(row: Network) -> None:
    recorded = TRIPS[row.name]
    assert all(recorded[key] for key in BIT_EQUAL)
    assert recorded["frozen"] == row.parameters
    assert recorded["by_kind"] == COUNTS.get(row.name, recorded)["by_kind"]


@pytest.mark.slow
@pytest.mark.parametrize("row", backbones.ROUND_TRIPS, ids=name_of)
def test_adapt_step_save_load_is_equal(row: Network) -> None:
    found = backbones.round_trip(row)
    assert [key for key in BIT_EQUAL if not found[key]] == []
    assert (found["frozen"], found["by_kind"]) == (row.parameters, TRIPS[row.name]["by_kind"])
