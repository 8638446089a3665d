"""`lowpeft recipes`: a table of all recipes, or one of them in full."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .. import tables
from ..recipes import (
    RecipeRow,
    counts,
    load_recipe,
    overview,
    overview_row,
    recipe_header,
    recipe_to_dict,
    write_toml,
)
from .common import new_command
from .help import wrapped
from .output import emit


def add_to(commands: Any) -> None:
    """Add the command to the parser."""
    sub = new_command(
        commands,
        "recipes",
        run,
        "show all recipes and what they train, or one of them as a file to start from",
        "lowpeft recipes",
        "lowpeft recipes lora > my-recipe.toml",
        "lowpeft recipes --json",
    )
    sub.add_argument("recipe", nargs="?", help="show this recipe in full: a name, or a path to a .toml recipe")


def run(options: argparse.Namespace) -> None:
    """Print the table, or one recipe."""
    recipe = None if options.recipe is None else load_recipe(options.recipe)
    rows = overview() if recipe is None else (overview_row(recipe),)
    if recipe is None:
        text = f"{_table(rows)}\n\n{_notes()}"
    else:
        text = "\n".join([*_header(options.recipe, rows[0]), write_toml(recipe_to_dict(recipe)).rstrip()])
    emit(options, {"recipes": rows}, text)


def _table(rows: Sequence[RecipeRow]) -> str:
    """Return the table, with the places, the summary and the paper of each recipe below its row."""
    networks = tuple(counts()["networks"])
    header = ("recipe", "adapters", *networks, "merge", "data")
    cells = [header]
    for row in rows:
        shares = (str(row.shares.get(network, tables.NOTHING)) for network in networks)
        cells.append(
            (
                row.name,
                ", ".join(row.adapters) or tables.NOTHING,
                *shares,
                *_answers(row).values(),
            )
        )
    heading, *lines = tables.text(cells).splitlines()
    texts = (f"  {'; '.join(row.where)}: {row.summary}{f' ({row.paper})' * bool(row.paper)}" for row in rows)
    return "\n".join([heading, *(f"{line}\n{wrapped(text)}" for line, text in zip(lines, texts, strict=True))])


def _answers(row: RecipeRow) -> dict[str, str]:
    """Return whether a recipe can be merged, and whether it needs data."""
    merge = tables.NOTHING if row.mergeable is None else "yes" if row.mergeable else "no"
    return {"merge": merge, "data": "yes" if row.needs_data else "no"}


def _header(recipe: str, row: RecipeRow) -> list[str]:
    """Return the comments at the beginning of a recipe's file, followed by what the table says of it."""
    shares = {name: f"{share.trained:,} of {share.of:,} parameters, {share}" for name, share in row.shares.items()}
    facts = {"where": "; ".join(row.where), **shares, **_answers(row)}
    comments = recipe_header(recipe)
    return [*comments, *["#"] * bool(comments), *(f"# {name:<10} {text}" for name, text in facts.items())]


def _notes() -> str:
    made = counts()
    of = " and ".join(f"{name} ({count:,} parameters)" for name, count in made["networks"].items())
    counted = f"Counted by `{made['command']}` on {made['date']}; {tables.NOTHING} for a recipe that was not counted."
    notes = (
        f"Shares: what the recipe trains, before calibration, over what the network has: {of}. {counted}",
        "merge: the change can be written into the weights. data: the initial values are learned from data.",
        "lowpeft plan RECIPE --weights FILE counts for your own network.",
        "lowpeft recipes RECIPE shows one recipe in full, as a file from which to make your own.",
    )
    return "\n".join(map(wrapped, notes))
