"""The methods that we compare with, each a small variation of the same parts; docs/methods.md tells what each is."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mpdiffuser.errors import InputError
from mpdiffuser.rivals.base import Rival
from mpdiffuser.rivals.d_mpc import DMPC
from mpdiffuser.rivals.decision_diffuser import DecisionDiffuser, SampleAndRank
from mpdiffuser.rivals.diffuser import Diffuser
from mpdiffuser.rivals.diffusion_policy import DiffusionPolicy
from mpdiffuser.sampler import SamplerConfig

RIVALS: dict[str, type[Rival]] = {
    "diffusion_policy": DiffusionPolicy,
    "diffuser": Diffuser,
    "decision_diffuser": DecisionDiffuser,
    "d_mpc": DMPC,
    "sample_and_rank": SampleAndRank,
}
# the models of each method that is trained, by the names of their folders
MODELS: dict[str, tuple[str, ...]] = {
    "cloning": ("cloning",),
    "iql": ("iql",),
    **{name: tuple(rival.roles.values()) for name, rival in RIVALS.items()},
    "planner": ("planner", "ranker"),
    "ours": ("planner", "dynamics", "ranker"),
    "distilled": ("planner", "dynamics", "ranker", "student"),
}


def models_of(methods: Iterable[str]) -> set[str]:
    """Names of all models that the methods need; others, such as random, need none."""
    return {model for method in methods for model in MODELS.get(method, ())}


def require_models(method: str, folder: Path) -> None:
    """Raises InputError unless a pipeline folder holds what the method needs."""
    missing = [model for model in MODELS.get(method, ()) if not (folder / model).is_dir()]
    if missing:
        raise InputError(
            f"evaluation.methods: {method} needs {', '.join(missing)}, which {folder} does not hold; "
            f"train with method={method}, or method=all"
        )


def rival_config(name: str, settings: dict[str, Any]) -> SamplerConfig:
    """How a rival draws its plans: the settings of its section, without the controller's chunk.

    Raises:
        InputError: for a value that cannot be.
    """
    try:
        drawing = {k: v for k, v in settings.items() if k != "chunk"}
        return SamplerConfig(**drawing | {"rank_temperature": 0.0} | RIVALS[name].fixed)  # the papers take the best
    except InputError as error:
        raise InputError(str(error).replace("sampler.", f"rivals.{name}.")) from error
