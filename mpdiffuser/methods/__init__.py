"""All methods. A method is one class in one file of this folder (`mpdiffuser.methods.base`).

A new file adds a method.
"""

import importlib
import pkgutil
from collections.abc import Iterable, Sequence

from mpdiffuser.methods.base import Baseline, Method, Planning, Setup
from mpdiffuser.recipe import Recipe, TrainingData


def _found() -> dict[str, type[Method]]:
    """Return name -> class of all methods in this folder, in the order of tables."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    classes = {
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Method) and "name" in vars(each)
    }
    return {each.name: each for each in sorted(classes, key=lambda each: (each.order, each.name))}


TAKEN = ("encoder", "decoder", "latents", "actions", "condition", "schedule")  # names of a pipeline's components
METHODS = _found()


def recipes_of(methods: Iterable[str], limits: Sequence[float] = ()) -> dict[str, Recipe]:
    """Return name -> recipe of all models that the methods need, with MPDiffuser's models first.

    Args:
        methods: names of the methods.
        limits: the cost limits of an episode that the methods get.
    """
    wanted = set(methods)
    chosen = [method for name, method in reversed(METHODS.items()) if name in wanted]
    found: dict[str, Recipe] = {}
    for recipe in (recipe for method in chosen for recipe in method.recipes(limits)):
        other = found.setdefault(recipe.name, recipe)
        if (other.kind, other.section) != (recipe.kind, recipe.section) or recipe.name in TAKEN:
            raise AssertionError(f"{recipe.name}: another model has this name; choose another in its Recipe")
    return found


__all__ = ["METHODS", "Baseline", "Method", "Planning", "Recipe", "Setup", "TrainingData", "recipes_of"]
