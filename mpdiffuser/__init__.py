"""Control by model-predictive diffusion, from pixels and from states."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpdiffuser.controller import Controller
    from mpdiffuser.pipeline import MPDiffuserPipeline
    from mpdiffuser.sampler import SamplerConfig

__version__ = "0.2.0"
__all__ = ["Controller", "MPDiffuserPipeline", "SamplerConfig", "__version__"]

_HOMES = {"Controller": "controller", "MPDiffuserPipeline": "pipeline", "SamplerConfig": "sampler"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the simulators' processes, which need no torch, do not load it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
