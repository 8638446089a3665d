"""What was measured of networks, published and odd ones, and of attacks on adapter folders."""

from __future__ import annotations

import re
from typing import Any

from .base import made_by, results_of, table


def published() -> str:
    """Counts of published networks, from the results of a benchmark."""
    results = results_of("backbones")
    kinds = list(dict.fromkeys(kind for row in results["networks"] for kind in row["by_kind"]))
    trips = {row["name"]: row["loaded_equals_trained"] for row in results["round_trips"]}

    def row(each: Any) -> list[str]:
        trained = sum(each["by_kind"].values())
        counts = [f"{n:,}" for n in (each["frozen"], *(each["by_kind"].get(kind, 0) for kind in kinds), trained)]
        share = f"{100 * trained / each['frozen']:.2f} %"
        trip = {True: "bit-equal", False: "differs", None: ""}[trips.get(each["name"])]
        return [each["name"], f"`{each['family']}`", *counts, share, trip, each["source"]]

    header = ["network", "family", "frozen", *(f"`{kind}`" for kind in kinds), "trained", "share", "round trip"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    made = f"Recipe `{results['recipe']}`. Made by `{results['command']}` on {results['date']} ({versions})."
    return f"{table([*header, 'configuration'], map(row, results['networks']))}\n\n{made}"


def networks() -> str:
    """Which networks are adapted without naming a site, with the three recipes that people ask for first."""
    command = "python benchmarks/which_networks.py --official FOLDER --out benchmarks/results/networks.json"
    try:
        results = results_of("networks")
    except LookupError:
        return f"*Not measured yet: `{command}` writes this table.*"
    recipes = ("stereo", "spatial", "lora")
    rows = [
        [each["name"], each["source"], *(verdict_of(each.get("recipes", {}).get(r)) for r in recipes)]
        for each in results["networks"]
    ]
    header = ["network", "source", *(f"`{recipe}`" for recipe in recipes)]
    counts = "; ".join(
        f"`{r}`: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(results["totals"]["verdicts"][r].items()))
        for r in recipes
    )
    of = f"Of {results['totals']['networks']} networks: {counts}."
    return f"{table(header, rows)}\n\n{of} {made_by(results)}"


def verdict_of(result: Any) -> str:
    """What came of a recipe, in a few words."""
    if result is None:
        return "–"
    failed = [name for name, outcome in result.get("checks", {}).items() if outcome.startswith("failed")]
    sites = " + ".join(str(n) for n in result.get("sites", {}).values())
    words = {"adapts": f"✓ {sites}", "call": f"✓ {sites}, by the printed call", "refused": "refused"}
    said = words.get(result["verdict"], result["verdict"])
    if result["verdict"] in ("refused", "crashed"):
        told = result["reason"].removeprefix("this network is of no known family, and running it showed ")
        reason = re.split(r": |; | - |, |\. | \(", told)[0]
        said += f": {reason if len(reason) <= 80 else reason[:79] + '…'}"
    return said + (f" (**wrong**: {', '.join(failed)})" if failed else "")


def probing() -> str:
    """What planning costs, against a forward and against the weights."""
    results = results_of("probing")
    recipes = ("stereo", "spatial", "lora")

    def row(each: Any) -> list[str]:
        times = [f"{each[f'{recipe}: of a forward']:.1f}" for recipe in recipes]
        memory = f"{each['peak above the forward, of the weights']:.1f}"
        return [each["network"], each["planned as"], f"{each['parameters'] / 1e6:.1f} M", *times, memory]

    header = [
        "network",
        "planned as",
        "parameters",
        *(f"`{recipe}`, forwards" for recipe in recipes),
        "memory, weights",
    ]
    live = results["beside a running network"]
    beside = (
        f"Beside a thread that planned {live['plans']} times, {live['that differ']} of {live['forwards']} forwards of "
        "the same network differed by a bit."
    )
    return f"{table(header, map(row, results['networks']))}\n\n{beside} {made_by(results)}"


def attacks(results: Any) -> str:
    """What became of attacks on adapter folders, in lowpeft and in peft."""
    both = ("lowpeft", "peft")
    names = {
        "refused": "refused",
        "same": "the same adapter",
        "other": "another one, without a word",
        "warned": "another one, with a warning",
        "slow": "after more than 5 s",
        "whole": "whole",
    }

    def told(cell: dict[str, Any]) -> str:
        found = [f"{cell[name]} {text}" for name, text in names.items() if cell.get(name)]
        return ", ".join(found) + ("; the base was changed" if cell.get("base changed") else "")

    cells = results["attacks"].items()
    rows = [
        [name, str(each["lowpeft"].get("cases", each["lowpeft"].get("kills"))), *(told(each[n]) for n in both)]
        for name, each in cells
    ]
    errors = {n: sorted({error for _, each in cells for error in each[n].get("errors", ())}) for n in both}
    slowest, grown = (max(each["lowpeft"].get(key, 0) for _, each in cells) for key in ("slowest_s", "grown_mb"))
    said = (
        f"Every refusal of lowpeft is an `{'`, `'.join(errors['lowpeft'])}`; those of peft are "
        f"{', '.join(errors['peft'])}. The slowest answer of lowpeft took {slowest:g} s, and its process grew by "
        f"{grown} MB at most, with what writes the attack."
    )
    return f"{table(['attack', 'cases', 'lowpeft', 'peft'], rows)}\n\n{said}"
