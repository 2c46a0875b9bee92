"""Defaults of the configuration that classes and methods declare, in place of files in `configs/`."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import ListConfig

from mpdiffuser.methods import METHODS, recipes_of
from mpdiffuser.methods.mpdiffuser import MPDiffuser
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.sampler import SamplerConfig


def register() -> dict[str, tuple[type, bool]]:
    """Register the defaults from the code in Hydra's store, as if they were files in configs/.

    Returns:
        The type of each option of the section `sampler`, and whether it may be null.
    """
    store = ConfigStore.instance().store
    store(group="sampler", name="default", node=asdict(SamplerConfig()))
    store(group="sampler", name="saved", node=dict.fromkeys(asdict(SamplerConfig())))
    set_by_data = {"self", "latent_dim", "action_dim", "horizon", "condition_dim", "goal_dim", "goal_entries"}
    set_by_data |= {"discount", "costs"}
    for group, name, kind in (
        ("planner", "small", Planner),
        ("dynamics", "small", Dynamics),
        ("ranker", "default", Ranker),
    ):
        parameters = inspect.signature(kind).parameters.items()
        node = {key: each.default for key, each in parameters if key not in set_by_data}
        store(group=group, name=name, node=node)
    sections = {name: dict(method.settings) for name, method in METHODS.items() if method.settings}
    store(group="baselines", name="default", node=sections)
    recipes = recipes_of(METHODS).values()
    training = {r.section or r.name: dict(r.train) for r in recipes if r.train is not None}
    store(group="train", name="methods", node=training)
    for name, method in METHODS.items():
        methods = [each for each in METHODS if each in (name, *method.evaluated_with)]
        node = {"evaluation": {"methods": methods}, "suffix": "" if name == MPDiffuser.name else f"-{name}"}
        store(group="method", name=name, node=node, package="_global_")
    node = {"evaluation": {"methods": list(METHODS)}, "suffix": "-all"}
    store(group="method", name="all", node=node, package="_global_")
    return dict(map(_sampler_option, get_type_hints(SamplerConfig).items()))


def _sampler_option(item: tuple[str, Any]) -> tuple[str, tuple[type, bool]]:
    """Return an option of the section `sampler` for `register`, from a field of `SamplerConfig` and its hint."""
    name, hint = item
    kind = ListConfig if get_origin(hint) is Sequence else next(each for each in (*get_args(hint), hint) if each)
    return f"sampler.{name}", (kind, type(None) in get_args(hint))
