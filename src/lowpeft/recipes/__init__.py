"""Recipes: the adapters to attach, their targets, and the training settings, as data."""

from .overriding import override
from .overview import RecipeRow, Share, counts, overview, overview_row
from .recipe import (
    Recipe,
    changed_settings,
    config_from_dict,
    config_to_dict,
    recipe_from_dict,
    recipe_to_dict,
    settings_to_dict,
)
from .settings import TrainSettings
from .table import RECIPES, bundled, load_recipe, recipe_header, register_recipe, unregister_recipe
from .toml_files import check_keys, check_schema, plain_values, read_toml, toml_names, write_toml

__all__ = [
    "RECIPES",
    "Recipe",
    "RecipeRow",
    "Share",
    "TrainSettings",
    "bundled",
    "changed_settings",
    "check_keys",
    "check_schema",
    "config_from_dict",
    "config_to_dict",
    "counts",
    "load_recipe",
    "override",
    "overview",
    "overview_row",
    "plain_values",
    "read_toml",
    "recipe_from_dict",
    "recipe_header",
    "recipe_to_dict",
    "register_recipe",
    "settings_to_dict",
    "toml_names",
    "unregister_recipe",
    "write_toml",
]
