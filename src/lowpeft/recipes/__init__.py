"""Recipes: the adapters to attach, their targets, and the training settings. A recipe is data, never code.

A recipe is a TOML file (the bundled ones are in this package's folder) or a `Recipe` object:

    schema = 1
    name = "stereo"
    summary = "one line"

    [[adapter]]
    kind = "spatial"        # then the fields of that kind's config
    reduction = 4

    [training]              # fields of TrainSettings
    steps = 200000

A recipe with `from_scratch = true` has no adapters: the whole network is trained from newly initialised weights.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from ..errors import PlanError, did_you_mean
from ..kinds import AdapterConfig, get_kind
from ..registry import Registry
from .settings import TrainSettings

__all__ = [
    "Recipe",
    "TrainSettings",
    "bundled",
    "changed_settings",
    "check_keys",
    "check_schema",
    "config_from_dict",
    "config_to_dict",
    "load_recipe",
    "override",
    "plain_values",
    "read_toml",
    "recipe_from_dict",
    "recipe_to_dict",
    "settings_to_dict",
    "toml_names",
]

SCHEMA = 1

_WORDS: dict[type, str] = {str: "a string", bool: "true or false"}
_PLAIN = {
    "name": (str, None),
    "summary": (str, ""),
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
        freeze_statistics: True to keep the whole base in eval mode under `.train()` (BatchNorm statistics, DropPath,
            dropout).
        from_scratch: True to train all weights of the network, newly initialised, without adapters.
        training: Training settings.
    """

    name: str
    adapters: tuple[AdapterConfig, ...]
    summary: str = ""
    freeze_statistics: bool = True
    from_scratch: bool = False
    training: TrainSettings = dataclasses.field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        """Raise if a from-scratch recipe has adapters.

        Raises:
            PlanError: `from_scratch` is set and `adapters` is not empty.
        """
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
            raise PlanError(f"the adapters of recipe {self.name!r} mix {' and '.join(map(str, counts))} views")
        return counts[0] if counts else 1


RECIPES: Registry[Recipe] = Registry("recipe", error=PlanError)
"""Registered recipes; the bundled files are not among them."""


def bundled() -> tuple[str, ...]:
    """Return the names of the recipes that come with lowpeft."""
    return toml_names(resources.files(__package__))


def register_recipe(recipe: Recipe) -> Recipe:
    """Register a recipe in this process; `adapt(model, name)` then finds it by its name.

    Raises:
        PlanError: A bundled or registered recipe has this name.
    """
    if recipe.name in bundled():
        raise PlanError(f"the recipe {recipe.name!r} comes with lowpeft; give yours another name")
    RECIPES.register(recipe)
    return recipe


def unregister_recipe(name: str) -> Recipe:
    """Remove a registered recipe.

    Raises:
        PlanError: The recipe is not registered.
    """
    return RECIPES.unregister(name)


def load_recipe(recipe: str | Path | Recipe | AdapterConfig | Sequence[AdapterConfig]) -> Recipe:
    """Return a recipe from a bundled or registered name, a path to a TOML file, or config objects.

    Raises:
        PlanError: The name or file does not exist, or the file is not a valid recipe; every problem is listed.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, AdapterConfig):
        return Recipe(name=recipe.kind, adapters=(recipe,))
    if isinstance(recipe, str) and recipe in RECIPES:
        return RECIPES[recipe]
    if isinstance(recipe, (str, Path)):
        return _read(recipe)
    configs = tuple(recipe) if isinstance(recipe, (list, tuple)) else ()
    if not configs or not all(isinstance(c, AdapterConfig) for c in configs):
        raise PlanError(f"a recipe is a name, a path, a Recipe or adapter configs, not {recipe!r}")
    return Recipe(name="+".join(dict.fromkeys(c.kind for c in configs)), adapters=configs)


def _read(recipe: str | Path) -> Recipe:
    table, origin = read_toml(recipe, resources.files(__package__), what="recipe", others=tuple(RECIPES))
    return recipe_from_dict(table, origin=origin)


def toml_names(folder: Traversable) -> tuple[str, ...]:
    """Return the names of the TOML files in a folder, sorted, without `.toml`."""
    return tuple(sorted(p.name.removesuffix(".toml") for p in folder.iterdir() if p.name.endswith(".toml")))


def read_toml(
    name_or_path: str | Path, folder: Traversable, *, what: str, others: tuple[str, ...] = ()
) -> tuple[dict[str, Any], str]:
    """Read a TOML file. Return its table, and the file's description for error messages.

    Args:
        name_or_path: Name of a file in `folder`, without `.toml`, or path of a file anywhere.
        folder: Folder of the bundled files.
        what: Noun for such a file in error messages, e.g. `recipe`.
        others: Further names that error messages list as known.

    Raises:
        PlanError: The name or file does not exist, or the file is not TOML.
    """
    path, known = Path(name_or_path), toml_names(folder)
    if isinstance(name_or_path, str) and name_or_path in known:
        text, origin = folder.joinpath(f"{name_or_path}.toml").read_bytes(), f"bundled {what} {name_or_path!r}"
    elif path.suffix == ".toml" and path.is_file():
        text, origin = path.read_bytes(), str(path)
    else:
        raise PlanError(
            f"no {what} {str(name_or_path)!r}: neither a file ending in .toml nor one of {', '.join(known + others)}"
            + did_you_mean(str(name_or_path), known + others)
        )
    try:
        return tomllib.loads(text.decode()), origin
    except (UnicodeDecodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        raise PlanError(f"{origin} is not TOML: {error}") from error


def recipe_from_dict(table: Mapping[str, Any], *, origin: str = "the recipe") -> Recipe:
    """Return a recipe from the plain values of a TOML or JSON file.

    Args:
        table: Values of the file.
        origin: Description of the file for error messages.

    Raises:
        PlanError: Keys are unknown or missing, the schema differs, or a config rejects values; all are listed.
    """
    if not isinstance(table, Mapping):
        raise PlanError(f"{origin} is a {type(table).__name__}, not a table")
    problems: list[str] = []
    check_schema(table, SCHEMA, problems)
    check_keys(table, ("schema", *_PLAIN, "adapter", "training"), "the recipe", problems)
    values = plain_values(table, _PLAIN, problems)
    if values["from_scratch"] is True:
        configs: tuple[AdapterConfig, ...] = ()
        if table.get("adapter"):
            problems.append("with from_scratch = true there can be no [[adapter]] table")
    else:
        configs = _configs(table.get("adapter"), problems)
    settings = changed_settings(TrainSettings(), table.get("training", {}), problems)
    if problems:
        raise PlanError(f"{origin} is not a recipe that lowpeft can use:", problems=problems)
    return Recipe(**values, adapters=configs, training=settings)


def _configs(rows: object, problems: list[str]) -> tuple[AdapterConfig, ...]:
    configs = []
    if not isinstance(rows, list) or not rows:
        problems.append("there is no [[adapter]] table")
        return ()
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


def check_schema(table: Mapping[str, Any], schema: int, problems: list[str]) -> None:
    """Append to `problems` if the table's `schema` is not this one."""
    if type(table.get("schema")) is not int or table["schema"] != schema:
        problems.append(f"schema is {table.get('schema')!r}, this version of lowpeft reads {schema}")


def check_keys(table: Mapping[str, Any], known: Sequence[str], where: str, problems: list[str]) -> None:
    """Append every unknown key to `problems`, with the nearest known ones."""
    problems += [f"{where} has an unknown key {k!r}{did_you_mean(k, known)}" for k in table if k not in known]


def plain_values(
    table: Mapping[str, Any], fields: Mapping[str, tuple[type, Any]], problems: list[str]
) -> dict[str, Any]:
    """Return every field's value in the table, by field name.

    Args:
        table: Values by name.
        fields: Type and default of each field, by name. A field with the default None is required.
        problems: List of error messages; a value that is missing or of another type is appended.
    """
    values = {key: table.get(key, default) for key, (_, default) in fields.items()}
    problems += [
        f"{key} must be {_WORDS[kind]}, not {values[key]!r}"
        for key, (kind, _) in fields.items()
        if not isinstance(values[key], kind)
    ]
    return values


def config_from_dict(row: Mapping[str, Any]) -> AdapterConfig:
    """Return an adapter config from plain values with a `kind` key; the inverse of `config_to_dict`.

    Raises:
        PlanError: The kind is missing or unknown, a field is unknown, or the config rejects a value.
    """
    if not isinstance(row, Mapping):
        raise PlanError(f"an adapter must be a table, not {row!r}")
    if "kind" not in row:
        raise PlanError(f"an adapter table has no 'kind': {dict(row)}")
    if not isinstance(row["kind"], str):
        raise PlanError(f"kind must be a string, not {row['kind']!r}")
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
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(settings).items()}


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the plain values of a recipe; `recipe_from_dict` turns them back into an equal recipe."""
    return {
        "schema": SCHEMA,
        "name": recipe.name,
        "summary": recipe.summary,
        "freeze_statistics": recipe.freeze_statistics,
        "from_scratch": recipe.from_scratch,
        "adapter": [config_to_dict(a) for a in recipe.adapters],
        "training": settings_to_dict(recipe.training),
    }


_OF_THE_RECIPE = ("train_also", "freeze_statistics")


def override(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some fields changed.

    Args:
        recipe: Recipe to start from.
        overrides: Changes by key. A key is a field of exactly one of the recipe's adapters (`every=1`), a kind with a
            mapping of its fields (`spatial={"reduction": 8}`), `train_also` with patterns, which adds a `full` adapter
            on these modules, or the recipe's own `freeze_statistics`.

    Raises:
        PlanError: A key is unknown, several adapters have that field, or a value is rejected; all problems are listed.
    """
    adapters, problems = list(recipe.adapters), []
    frozen = overrides.get("freeze_statistics", recipe.freeze_statistics)
    if not isinstance(frozen, bool):
        problems.append(f"freeze_statistics must be true or false, not {frozen!r}")
    for key, value in overrides.items():
        try:
            if key == "freeze_statistics":
                continue
            if key == "train_also":
                adapters.append(get_kind("full").config(target=value))
                continue
            index, fields = _addressed(adapters, key, value)
            adapters[index] = dataclasses.replace(adapters[index], **fields)
        except PlanError as error:
            problems.append(str(error))
    if problems:
        raise PlanError(f"cannot change recipe {recipe.name!r} like this:", problems=problems)
    return dataclasses.replace(recipe, adapters=tuple(adapters), freeze_statistics=frozen)


def _addressed(adapters: Sequence[AdapterConfig], key: str, value: object) -> tuple[int, dict[str, Any]]:
    """Return the index of the adapter that an override changes, and the changed fields."""
    of_kind = [i for i, a in enumerate(adapters) if a.kind == key]
    if of_kind:
        if not isinstance(value, Mapping):
            raise PlanError(f"{key!r} is an adapter of the recipe; give a table of its fields, not {value!r}")
        if len(of_kind) > 1:
            raise PlanError(f"the recipe has {len(of_kind)} {key} adapters; change the recipe itself")
        known = get_kind(key).fields
        unknown = [f"{f!r}{did_you_mean(f, known)}" for f in value if f not in known]
        if unknown:
            raise PlanError(f"the {key} adapter has no field {', '.join(unknown)}")
        return of_kind[0], dict(value)
    hits = [i for i, a in enumerate(adapters) if key in get_kind(a.kind).fields]
    if len(hits) == 1:
        return hits[0], {key: value}
    if hits:
        kinds = [adapters[i].kind for i in hits]
        raise PlanError(
            f"{key!r} is a field of several adapters ({', '.join(kinds)}); say which: {kinds[0]}={{{key!r}: …}}"
        )
    names = {f for a in adapters for f in get_kind(a.kind).fields} | {a.kind for a in adapters} | {*_OF_THE_RECIPE}
    raise PlanError(
        f"no adapter of the recipe has {key!r}{did_you_mean(key, names)}; known: {', '.join(sorted(names))}"
    )
