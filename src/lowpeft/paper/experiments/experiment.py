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
    scale = 4                           # shown only beside rows of this scale; default: beside all rows
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ... import checks
from ...errors import PlanError
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
from .printed import Paper, Printed, paper_of_row, printed_lines, read_tables

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

    def trained_with(self, training: Mapping[str, Any]) -> Row:
        """Return the row with some training settings of its recipe changed.

        Raises:
            PlanError: A setting does not exist or is out of range; all are listed.
        """
        problems: list[str] = []
        settings = changed_settings(self.recipe.training, training, problems)
        if problems:
            raise PlanError(f"row {self.name!r} cannot be trained with these settings:", problems=problems)
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, training=settings))


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

    def with_rows(self, rows: Sequence[Row]) -> Experiment:
        """Return the experiment with only these rows, without the printed lines of scales that none of them has."""
        scales = {None, *(row.scale for row in rows)}
        printed = tuple(line for line in self.printed if line.scale in scales)
        return dataclasses.replace(self, rows=tuple(rows), printed=printed)

    @property
    def only_printed(self) -> tuple[Printed, ...]:
        """Lines of the paper that no row is compared with."""
        named = {line.name for row in self.rows for line in row.paper.lines}
        return tuple(line for line in self.printed if line.name not in named)


_PLAIN = {**dict.fromkeys(("name", "summary", "metric", "source"), (str, None)), "protocol": (str, LITERATURE.name)}
_PLAIN_OF_ROW = {**dict.fromkeys(("name", "weights", "recipe"), (str, None)), "summary": (str, "")}
_OTHERS_OF_ROW = ("family", "architecture", "scale", "trained")


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
            name, a family or recipe does not exist, settings do not fit the recipe, or a row names a printed line of
            another scale; all are listed.
    """
    if not isinstance(table, Mapping):
        raise PlanError(f"{origin} is a {type(table).__name__}, not a table")
    problems: list[str] = []
    check_schema(table, SCHEMA, problems)
    check_keys(table, ("schema", *_PLAIN, "notes", "printed", "row"), "the experiment", problems)
    values = plain_values(table, _PLAIN, problems)
    notes = table.get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) and note for note in notes):
        problems.append(f"notes must be a list of non-empty strings, not {notes!r}")
    known = [name for name, protocol in PROTOCOLS.items() if protocol.views == 2]
    problems += checks.one_of("protocol", values["protocol"], known)
    lines = printed_lines(table.get("printed", []), problems)
    rows = _rows(table.get("row"), lines, problems)
    if problems:
        raise PlanError(f"{origin} is not an experiment that lowpeft can use:", problems=problems)
    return Experiment(**values, rows=rows, printed=tuple(lines.values()), notes=tuple(notes))


def _rows(tables: object, lines: Mapping[str, Printed], problems: list[str]) -> tuple[Row, ...]:
    if not isinstance(tables, list) or not tables:
        problems.append("[[row]] is missing; give one table for each row")
        return ()
    return tuple(read_tables(tables, lambda table, wrong: _row(table, lines, wrong), "row", problems))


def _row(table: Mapping[str, Any], lines: Mapping[str, Printed], problems: list[str]) -> Row | None:
    """Return the row; or append to `problems` and return None."""
    check_keys(table, (*_PLAIN_OF_ROW, *_OTHERS_OF_ROW, "overrides", "training", "paper"), "the row", problems)
    values = plain_values(table, _PLAIN_OF_ROW, problems)
    problems += [
        f"{key} must be a file name without folders, not {values[key]!r}"
        for key in ("name", "weights")
        if isinstance(values[key], str) and not _is_file_name(values[key])
    ]
    values |= {key: table.get(key) for key in _OTHERS_OF_ROW}
    networks = [values[key] for key in ("family", "architecture") if key in table]
    if len(networks) != 1 or not isinstance(networks[0], str) or not networks[0]:
        problems.append(f"a row needs either family or architecture, a non-empty string, not {networks or 'neither'}")
    if isinstance(values["family"], str):
        problems += checks.one_of("family", values["family"], [family.name for family in families()])
    problems += checks.whole("scale", values["scale"], least=1)
    if "trained" in table:
        problems += checks.whole("trained", values["trained"], least=1)
    recipe = _recipe(values["recipe"], table, problems)
    paper = paper_of_row(table.get("paper", {}), lines, problems)
    if recipe is None or problems:
        return None
    row = Row(**{**values, "recipe": recipe, "paper": paper})
    crop = (recipe.training.crop_height_px, recipe.training.crop_width_px)
    if any(side % row.scale for side in crop):
        problems.append(f"a crop of {crop[0]}x{crop[1]} HR px cannot be divided by the scale, {row.scale}")
    problems += [
        f"the printed line {line.name!r} has scale {line.scale}, but the row has scale {row.scale}"
        for line in paper.lines
        if line.scale not in (None, row.scale)
    ]
    return None if problems else row


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
