"""What the paper's ablations find, as sums of figures, and whether figures of ours agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from lowpeft.paper.experiments import Experiment, Score
from lowpeft.paper.reproduce.job import MEAN
from lowpeft.paper.reproduce.table import FROZEN

AGREES, DIFFERS, WITHIN = "agrees", "differs", "within the spread"


@dataclass(frozen=True)
class Claim:
    """A finding.

    Attributes:
        says: It, in words.
        terms: Rows of ours with factors; the sum of factor times PSNR is above 0 where the finding holds. `frozen` is
            the network alone; where rows have networks of their own, `frozen, ROW`.
    """

    says: str
    terms: Mapping[str, int]


CLAIMS: Mapping[str, Sequence[Claim]] = {
    "finetuning": (
        Claim("Training from new weights is worse than the frozen network", {FROZEN: 1, "scratch": -1}),
        Claim("Full fine-tuning is worse than the frozen network", {FROZEN: 1, "full": -1}),
        Claim("Spatial adapters alone are no better than the frozen network", {FROZEN: 1, "spatial": -1}),
        Claim("Stereo adapters alone are better than the frozen network", {"stereo-only": 1, FROZEN: -1}),
        Claim("Stereo adapters alone are better than spatial ones alone", {"stereo-only": 1, "spatial": -1}),
        Claim("Both are better than stereo adapters alone", {"both": 1, "stereo-only": -1}),
        Claim("Both are better than full fine-tuning", {"both": 1, "full": -1}),
    ),
    "placement": (
        Claim("On attention is better than on attention and on the MLP, (a)", {"attention": 1, "both": -1}),
        Claim("On attention is better than beside attention and MLP, (b)", {"attention": 1, "parallel-both": -1}),
        Claim("(b) is better than (a)", {"parallel-both": 1, "both": -1}),
    ),
    "count": (
        Claim("One stereo adapter is better than none", {"1": 1, "0": -1}),
        Claim("After every second group is better than none", {"3": 1, "0": -1}),
        Claim("After every second group is better than one", {"3": 1, "1": -1}),
        Claim("After every group is better than after every second", {"6": 1, "3": -1}),
        Claim("It saturates: the second half adds less than the first", {"3": 2, "0": -1, "6": -1}),
    ),
    "pretraining": (
        Claim("Adapting helps the network of few clean images", {"kodak": 1, "frozen, kodak": -1}),
        Claim("Adapting helps the network of many images", {"bsds": 1, "frozen, bsds": -1}),
        Claim("Adapting helps the network of both", {"bsds-kodak": 1, "frozen, bsds-kodak": -1}),
        Claim("Frozen, few clean images are better than many", {"frozen, kodak": 1, "frozen, bsds": -1}),
        Claim("Adapted, many images are better than few clean ones", {"bsds": 1, "kodak": -1}),
        Claim("Adapted, both are better than few clean images", {"bsds-kodak": 1, "kodak": -1}),
        Claim("Adapted, both are better than many images", {"bsds-kodak": 1, "bsds": -1}),
    ),
}

COUNTERPARTS = {
    "count": {"1": "2", "3": "6", "6": "12"},
    "pretraining": {"kodak": "df2k", "bsds": "imagenet", "bsds-kodak": "imagenet-df2k"},
}
"""The bundled experiment's rows that rows of ours stand for, where their names differ."""


def verdict(values: Sequence[float]) -> str:
    """Of sums, one for each seed, above 0 where a finding holds: their mean against their standard deviation."""
    spread = stdev(values) if len(values) > 1 else 0.0
    if abs(fmean(values)) <= spread:
        return WITHIN
    return AGREES if fmean(values) > 0 else DIFFERS


def with_spread(values: Sequence[float], *, sign: str = "", digits: int = 3) -> str:
    """Mean and, of two or more, standard deviation."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.{digits}f}{spread}"


def directions(name: str, experiment: Experiment, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every claim, what the paper's figures give and what ours do, on each of our test sets.

    Args:
        name: Of the ablation.
        experiment: The paper's, with its figures.
        results: Ours, as ablations.py writes them.

    Returns:
        Of each claim: `says`, `paper_db` (None where the paper prints no figure of a row), and in `sets` of each test
        set `db`, one sum for each seed, and `verdict`.
    """
    rows = {row["row"]: row["outcomes"] for row in results["rows"]}
    sets = list(next(iter(rows.values()))[0]["figures"])

    def ours(claim: Claim, test_set: str) -> dict[str, Any]:
        seeds = min((len(rows[term]) for term in claim.terms if not term.startswith(FROZEN)), default=1)
        sums = [
            sum(
                factor * rows[term][0 if term.startswith(FROZEN) else seed]["figures"][test_set][MEAN]
                for term, factor in claim.terms.items()
            )
            for seed in range(seeds)
        ]
        return {"db": [round(value, 4) for value in sums], "verdict": verdict(sums)}

    return [
        {
            "says": claim.says,
            "paper_db": paper_db(claim, experiment, COUNTERPARTS.get(name, {})),
            "sets": {test_set: ours(claim, test_set) for test_set in sets},
        }
        for claim in CLAIMS[name]
    ]


def paper_db(claim: Claim, experiment: Experiment, counterparts: Mapping[str, str]) -> float | None:
    """The claim's sum of the paper's own figures, mean of both views; None where it prints none of a row."""
    rows = {row.name: row for row in experiment.rows}
    (test_set,) = experiment.test_sets

    def score(term: str) -> Score | None:
        of, _, network = term.partition(", ")
        ours = network if of == FROZEN else term
        paper = (rows[counterparts.get(ours, ours)] if ours else experiment.rows[0]).paper
        line = paper.frozen if of == FROZEN else paper.adapted
        return None if line is None else line.on(test_set).mean

    scores = {term: score(term) for term in claim.terms}
    if not all(scores.values()):
        return None
    return round(sum(factor * scores[term].db for term, factor in claim.terms.items()), 4)
