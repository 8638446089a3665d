"""Experiments: tables of papers as data, with one row per network that is adapted. `reproduce` runs them.

An experiment is a TOML file (the bundled ones are beside this module):

    schema = 1
    name = "backbones"
    summary = "one line"
    metric = "PSNR in dB / SSIM, mean of both views"
    protocol = "asteisr"                # protocol of lowpeft's measurements; default `literature`
    source = "arXiv 2407.03598, its table of pre-trained networks"
    notes = ["a remark for readers of the table"]        # optional

    [[printed]]                         # a line of the paper's table, in its order; only the name is required
    name = "IPT"
    trained_m = 0                       # trained parameters in millions
    hours = 0                           # training time
    memory_gb = 0                       # training memory
    note = "a remark for readers of this line"
    figures.flickr1024 = { mean = [23.68, 0.7366] }  # for each test set, `left` or `mean` or both: [dB, SSIM]

    [[row]]
    name = "ipt"
    family = "ipt"                      # or, for a network without a family: architecture = "DRCT"
    scale = 4
    weights = "IPT_sr4.pt"              # file name used by the network's authors
    recipe = "stereo"                   # a bundled recipe, or a file's path relative to the working folder
    trained = 11995776                  # parameters that the recipe trains on this network; optional

    [row.overrides]                     # fields of the recipe's adapters, as in `recipes.override`
    logit_scale = 1.0

    [row.training]                      # fields of TrainSettings that differ from the recipe's
    crop_width_px = 192

    [row.paper]                         # the printed lines that this row is compared with; each is optional
    frozen = "IPT"
    adapted = "IPT with adapters"
    ensemble = "IPT with adapters, self-ensemble"

A printed line that no row names is shown in the table beside the rows, and is not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ...errors import PlanError, did_you_mean
from ...families import families
from ...recipes import (
    Recipe,
    TrainSettings,
    changed_settings,
    check_keys,
    check_schema,
    load_recipe,
    override,
    plain_values,
    read_toml,
    toml_names,
)
from ...restoration.metrics import LITERATURE, PROTOCOLS
from .printed import Paper, Printed, paper_of_row, printed_lines

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network and the recipe that adapts it.

    Attributes:
        name: Name of the row, unique in the experiment, and usable as a file name.
        family: Name of the network's registered family; None for a network without one, which has an `architecture`.
        scale: Output sides divided by input sides.
        weights: Name under which the network's authors publish the checkpoint file.
        recipe: Recipe with the row's overrides and training settings applied.
        architecture: Architecture of a network without a family, as `load_backbone` names it; otherwise None.
        summary: One line for people.
        trained: Number of parameters that the recipe trains on this network, counted with lowpeft; None if not given.
        paper: Printed lines that the row is compared with.
    """

    name: str
    family: str | None
    scale: int
    weights: str
    recipe: Recipe
    architecture: str | None = None
    summary: str = ""
    trained: int | None = None
    paper: Paper = dataclasses.field(default_factory=Paper)

    @property
    def network(self) -> str:
        """Name of the family, or of the architecture for a network without a family."""
        return self.family or self.architecture or ""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A paper's table as data.

    Attributes:
        name: Name of the experiment.
        summary: One line for people.
        metric: Description of the figures: metric, unit, views.
        protocol: Protocol of lowpeft's measurements, one of `metrics.PROTOCOLS` for two views.
        source: Publication and table that print the figures.
        rows: Rows in the order of the file.
        printed: The paper's lines, in its order.
        notes: Remarks for readers of the table, a sentence or more each.
    """

    name: str
    summary: str
    metric: str
    source: str
    rows: tuple[Row, ...]
    printed: tuple[Printed, ...] = ()
    notes: tuple[str, ...] = ()
    protocol: str = LITERATURE.name

    @property
    def test_sets(self) -> tuple[str, ...]:
        """Names of the test sets that the lines have scores on, in their order."""
        return tuple(dict.fromkeys(figures.test_set for line in self.printed for figures in line.figures))

    @property
    def only_printed(self) -> tuple[Printed, ...]:
        """Lines of the paper that no row is compared with."""
        named = {line.name for row in self.rows for line in row.paper.lines}
        return tuple(line for line in self.printed if line.name not in named)


_PLAIN = {**dict.fromkeys(("name", "summary", "metric", "source"), (str, None)), "protocol": (str, LITERATURE.name)}
_PLAIN_OF_ROW = {
    **dict.fromkeys(("name", "weights", "recipe"), (str, None)),
    "summary": (str, ""),
}
_NETWORK = ("family", "architecture")


def bundled_experiments() -> tuple[str, ...]:
    """Return the names of the bundled experiments."""
    return toml_names(resources.files(__package__))


def load_experiment(name_or_path: str | Path) -> Experiment:
    """Load an experiment from a bundled name or the path of a TOML file.

    Raises:
        PlanError: The name or file does not exist, or the file is not a valid experiment; every problem is listed.
    """
    table, origin = read_toml(name_or_path, resources.files(__package__), what="experiment")
    return experiment_from_dict(table, origin=origin)


def experiment_from_dict(table: Mapping[str, Any], *, origin: str = "the experiment") -> Experiment:
    """Build an experiment from the plain values of a TOML file.

    Raises:
        PlanError: Keys are unknown or missing, the schema is another one, there are no rows, two rows have the same
            name, a family or recipe does not exist, or settings do not fit the recipe; all are listed.
    """
    if not isinstance(table, Mapping):
        raise PlanError(f"{origin} is a {type(table).__name__}, not a table")
    problems: list[str] = []
    check_schema(table, SCHEMA, problems)
    check_keys(table, ("schema", *_PLAIN, "notes", "printed", "row"), "the experiment", problems)
    values = plain_values(table, _PLAIN, problems)
    notes = table.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) and note for note in notes):
        problems.append(f"notes must be a list of texts, not {notes!r}")
    known = [name for name, protocol in PROTOCOLS.items() if protocol.views == 2]
    if (protocol := values["protocol"]) not in known:
        near = did_you_mean(str(protocol), known)
        problems.append(f"protocol must be one of two views, {' or '.join(known)}, not {protocol!r}{near}")
    lines = printed_lines(table.get("printed", []), problems)
    rows = _rows(table.get("row"), lines, problems)
    if problems:
        raise PlanError(f"{origin} is not an experiment that lowpeft can use:", problems=problems)
    return Experiment(**values, rows=rows, printed=tuple(lines.values()), notes=tuple(notes))


def _rows(tables: object, lines: Mapping[str, Printed], problems: list[str]) -> tuple[Row, ...]:
    if not isinstance(tables, list) or not tables:
        problems.append("there is no [[row]] table")
        return ()
    rows: list[Row] = []
    names: list[object] = []
    for number, table in enumerate(tables, start=1):
        found: list[str] = []
        row = _row(table, lines, found)
        if row is not None:
            rows.append(row)
        name = table.get("name") if isinstance(table, Mapping) else None
        if name is not None and name in names:
            found.append("another row has this name")
        names.append(name)
        problems += [f"row {number}{'' if name is None else f' ({name!r})'}: {problem}" for problem in found]
    return tuple(rows)


def _row(table: object, lines: Mapping[str, Printed], problems: list[str]) -> Row | None:
    """Return the row; or append to `problems` and return None."""
    if not isinstance(table, Mapping):
        problems.append(f"a row must be a table, not {table!r}")
        return None
    known = (*_PLAIN_OF_ROW, *_NETWORK, "scale", "trained", "overrides", "training", "paper")
    check_keys(table, known, "the row", problems)
    values = plain_values(table, _PLAIN_OF_ROW, problems)
    problems += [
        f"{key} must be the name of a file, without folders, not {values[key]!r}"
        for key in ("name", "weights")
        if isinstance(values[key], str) and not _is_file_name(values[key])
    ]
    kind_of_network = _kind_of_network(table, problems)
    scale = _whole("scale", table.get("scale"), problems)
    trained = _whole("trained", table["trained"], problems) if "trained" in table else None
    recipe = _recipe(values["recipe"], table, problems)
    paper = paper_of_row(table.get("paper", {}), lines, problems)
    if recipe is not None and not problems:
        crop = (recipe.training.crop_height_px, recipe.training.crop_width_px)
        if any(side % scale for side in crop):
            problems.append(f"a crop of {crop[0]}x{crop[1]} HR px cannot be scaled down by {scale}")
    if recipe is None or problems:
        return None
    return Row(**{**values, "recipe": recipe}, **kind_of_network, scale=scale, trained=trained, paper=paper)


def _kind_of_network(table: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """Return a row's family and architecture; one of them is None."""
    given = {key: table[key] for key in _NETWORK if key in table}
    if len(given) != 1 or not all(isinstance(value, str) and value for value in given.values()):
        problems.append(
            "a row names the network's family, or its architecture if it is of none: "
            f"there must be one of the two, a text, not {given}"
        )
    known = [family.name for family in families()]
    family = given.get("family")
    if isinstance(family, str) and family not in known:
        near = did_you_mean(family, known)
        problems.append(f"no family {family!r}; known: {', '.join(known)}{near}")
    return dict.fromkeys(_NETWORK) | given


def _whole(key: str, value: object, problems: list[str]) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    problems.append(f"{key} must be a whole number of at least 1, not {value!r}")
    return 1


def _is_file_name(text: str) -> bool:
    return text not in ("", "..") and Path(text).name == text


def _recipe(name: object, table: Mapping[str, Any], problems: list[str]) -> Recipe | None:
    """Return the row's recipe with its overrides and training settings applied; None if the recipe does not exist."""
    recipe = None
    if isinstance(name, str):
        try:
            recipe = load_recipe(name)
        except PlanError as error:
            problems.append(str(error))
    overrides = table.get("overrides", {})
    if not isinstance(overrides, Mapping):
        problems.append(f"[overrides] must be a table, not {overrides!r}")
    elif recipe is not None:
        try:
            recipe = override(recipe, overrides)
        except PlanError as error:
            problems += error.problems
    settings = changed_settings(recipe.training if recipe else TrainSettings(), table.get("training", {}), problems)
    return dataclasses.replace(recipe, training=settings) if recipe else None
