"""Recipes: TOML to a frozen, validated `Recipe`, before torch is imported."""

from ldmkit.recipe.load import RecipeFile, check_components, find_recipe, load_recipe
from ldmkit.recipe.sections import Recipe, component_tables

__all__ = [
    "Recipe",
    "RecipeFile",
    "check_components",
    "component_tables",
    "find_recipe",
    "load_recipe",
]
