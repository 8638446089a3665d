"""Recipes: the adapters to attach, their targets, and the training settings. A recipe is data, never code.

A recipe is a TOML file (the bundled ones are in this package's folder) or a `Recipe` object:

    schema = 1
    name = "stereo"
    summary = "one line"
    paper = "Method, arXiv number"

    [[adapter]]
    kind = "spatial"        # then the fields of that kind's config
    reduction = 4

    [training]              # fields of TrainSettings
    steps = 200000

A recipe with `from_scratch = true` has no adapters: the whole network is trained from newly initialised weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PlanError
from ..kinds import AdapterConfig, get_kind
from .budget import Budget, parameters_of
from .settings import TrainSettings
from .toml_files import check_keys, check_schema, plain_values

SCHEMA = 1

_PLAIN = {
    "name": (str, None),
    "summary": (str, ""),
    "paper": (str, ""),
    "freeze_statistics": (bool, True),
    "from_scratch": (bool, False),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Set of adapters that are attached, trained, saved and removed together.

    Attributes:
        name: Name of the recipe.
        adapters: One config per kind and target; the config's type chooses the code.
        summary: One-line description.
        paper: Name and arXiv number of the paper that the method is from; empty if there is none.
        freeze_statistics: True to keep the whole base in eval mode under `.train()` (BatchNorm statistics, DropPath,
            dropout).
        from_scratch: True to train all weights of the network, newly initialised, without adapters.
        budget: Parameters that the adapters may train, as a share ("1%") or a number; planning chooses the size of the
            adapter that comes nearest. None for the sizes in `adapters`.
        training: Training settings.
    """

    name: str
    adapters: tuple[AdapterConfig, ...]
    summary: str = ""
    paper: str = ""
    freeze_statistics: bool = True
    from_scratch: bool = False
    budget: Budget | None = None
    training: TrainSettings = dataclasses.field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        """Raise if a from-scratch recipe has adapters, or the budget is invalid.

        Raises:
            PlanError: `from_scratch` is set and `adapters` is not empty, or the budget is neither share nor number.
        """
        if self.budget is not None:
            parameters_of(self.budget, 1)
        if self.from_scratch and self.adapters:
            raise PlanError(f"recipe {self.name!r} trains from scratch, so it can have no adapters")

    @property
    def views(self) -> int:
        """Number of views of a scene that the adapters mix; 1 for single images.

        Raises:
            PlanError: The adapters mix different numbers of views.
        """
        counts = sorted({a.views for a in self.adapters} - {1})
        if len(counts) > 1:
            listed = " and ".join(map(str, counts))
            raise PlanError(f"the adapters of recipe {self.name!r} must mix the same number of views, not {listed}")
        return counts[0] if counts else 1


def recipe_from_dict(table: Mapping[str, Any], *, origin: str = "the recipe") -> Recipe:
    """Return a recipe from the plain values of a TOML or JSON file.

    Args:
        table: Values of the file.
        origin: Description of the file for error messages.

    Raises:
        PlanError: Keys are unknown or missing, the schema differs, or a config rejects values; all are listed.
    """
    if not isinstance(table, Mapping):
        raise PlanError(f"{origin} must be a table, not {table!r}")
    problems: list[str] = []
    check_schema(table, SCHEMA, problems)
    check_keys(table, ("schema", *_PLAIN, "budget", "adapter", "training"), "the recipe", problems)
    values: dict[str, Any] = plain_values(table, _PLAIN, problems)
    values["budget"] = _budget(table.get("budget"), problems)
    if values["from_scratch"] is True:
        configs: tuple[AdapterConfig, ...] = ()
        if table.get("adapter"):
            problems.append("with from_scratch = true, remove the [[adapter]] tables")
    else:
        configs = _configs(table.get("adapter"), problems)
    settings = changed_settings(TrainSettings(), table.get("training", {}), problems)
    if problems:
        raise PlanError(f"{origin} is not a valid recipe:", problems=problems)
    return Recipe(**values, adapters=configs, training=settings)


def _budget(value: Any, problems: list[str]) -> Budget | None:
    try:
        return None if value is None or not parameters_of(value, 1) else value
    except PlanError as error:
        problems.append(str(error))
        return None


def _configs(rows: object, problems: list[str]) -> tuple[AdapterConfig, ...]:
    if not isinstance(rows, list) or not rows:
        problems.append(f"[[adapter]] must be one or more tables, not {rows!r}")
        return ()
    configs = []
    for row in rows:
        try:
            configs.append(config_from_dict(row))
        except PlanError as error:
            problems.append(str(error))
    return tuple(configs)


def changed_settings(settings: TrainSettings, training: object, problems: list[str]) -> TrainSettings:
    """Return the settings changed by the fields of a `[training]` table; append errors in the table to `problems`."""
    if not isinstance(training, Mapping):
        problems.append(f"[training] must be a table, not {training!r}")
        return settings
    known = [f.name for f in dataclasses.fields(TrainSettings)]
    check_keys(training, known, "[training]", problems)
    try:
        return dataclasses.replace(settings, **{k: v for k, v in training.items() if k in known})
    except PlanError as error:
        problems += error.problems
        return settings


def config_from_dict(row: Mapping[str, Any]) -> AdapterConfig:
    """Return an adapter config from plain values with a `kind` key; the inverse of `config_to_dict`.

    Raises:
        PlanError: The kind is missing or unknown, a field is unknown, or the config rejects a value.
    """
    if not isinstance(row, Mapping) or not isinstance(row.get("kind"), str):
        raise PlanError(f"an adapter must be a table with the string 'kind', not {row!r}")
    kind = get_kind(row["kind"])
    problems: list[str] = []
    fields = {k: v for k, v in row.items() if k != "kind"}
    check_keys(fields, kind.fields, f"the {kind.name} adapter", problems)
    if problems:
        raise PlanError("; ".join(problems))
    return kind.config(**fields)


def config_to_dict(config: AdapterConfig) -> dict[str, Any]:
    """Return the plain values of a config, its kind first."""
    return {"kind": config.kind, **{k: _plain(v) for k, v in dataclasses.asdict(config).items()}}


def _plain(value: object) -> object:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def settings_to_dict(settings: TrainSettings) -> dict[str, Any]:
    """Return the plain values of training settings, as in a `[training]` table."""
    return {k: _plain(v) for k, v in dataclasses.asdict(settings).items()}


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the plain values of a recipe; `recipe_from_dict` turns them back into an equal recipe."""
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "summary": recipe.summary,
        "paper": recipe.paper,
        "freeze_statistics": recipe.freeze_statistics,
        "from_scratch": recipe.from_scratch,
        **({} if recipe.budget is None else {"budget": recipe.budget}),
        "adapter": [config_to_dict(a) for a in recipe.adapters],
        "training": settings_to_dict(recipe.training),
    }
