"""The table of recipes: bundled TOML files, and recipes that were registered."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from ..errors import PlanError
from ..kinds import KINDS, AdapterConfig
from ..registry import Registry
from .recipe import Recipe, recipe_from_dict
from .toml_files import read_toml, toml_header, toml_names

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
        raise PlanError(f"recipe {recipe.name!r} is bundled with lowpeft; give yours another name")
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
    if isinstance(recipe, str) and recipe in KINDS and recipe not in bundled():
        config = KINDS[recipe].config.__name__
        raise PlanError(f"{recipe!r} is a kind without a recipe of its name: pass a config, {config}(…), instead")
    if isinstance(recipe, (str, Path)):
        table, origin = read_toml(recipe, resources.files(__package__), what="recipe", others=tuple(RECIPES))
        return recipe_from_dict(table, origin=origin)
    configs = tuple(recipe) if isinstance(recipe, (list, tuple)) else ()
    if not configs or not all(isinstance(c, AdapterConfig) for c in configs):
        raise PlanError(f"a recipe must be a name, a path, a Recipe or adapter configs, not {recipe!r}")
    return Recipe(name="+".join(dict.fromkeys(c.kind for c in configs)), adapters=configs)


def recipe_header(recipe: str | Path) -> tuple[str, ...]:
    """Return the comment lines at the beginning of a recipe's file; none for a registered recipe.

    Args:
        recipe: Name or path that `load_recipe` takes.
    """
    registered = isinstance(recipe, str) and recipe in RECIPES
    return () if registered else toml_header(recipe, resources.files(__package__))
