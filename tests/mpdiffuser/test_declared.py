"""Defaults of the configuration that the code declares."""

import inspect
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from omegaconf import ListConfig

from mpdiffuser.config import load, settings
from mpdiffuser.declared import register
from mpdiffuser.methods import METHODS
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.sampler import SamplerConfig


def test_the_types_of_the_samplers_options() -> None:
    types = register()
    assert set(types) == {f"sampler.{name}" for name in asdict(SamplerConfig())}
    some = {
        "steps": int,
        "temperature": float,
        "solver": str,
        "guidance_interval": ListConfig,
        "safe_action": ListConfig,
    }
    assert {name: types[f"sampler.{name}"][0] for name in some} == some
    assert [name for name in some if types[f"sampler.{name}"][1]] == ["steps"]  # that may be null


def test_options_have_the_defaults_of_their_classes() -> None:
    cfg = load("vision", [])
    assert SamplerConfig(**settings(cfg.sampler)) == SamplerConfig(guidance_interval=[0.0, 1.0], safe_action=[])
    for section, kind in (("planner", Planner), ("dynamics", Dynamics), ("ranker", Ranker)):
        parameters = inspect.signature(kind).parameters
        for name, value in settings(cfg[section]).items():
            default = parameters[name].default
            assert value == (list(default) if isinstance(default, tuple) else default)


def test_each_method_has_its_sections() -> None:
    cfg = load("state", ["method=all"])
    assert list(cfg.evaluation.methods) == list(METHODS)
    for name, method in METHODS.items():
        if method.settings:
            assert settings(cfg.baselines[name]) == dict(method.settings)
        for recipe in method.models:
            if recipe.train is not None:
                assert settings(cfg.train[recipe.section or recipe.name]) == dict(recipe.train)


def test_a_configuration_without_such_defaults_needs_no_torch() -> None:
    program = "import sys; from mpdiffuser.config import load; load('collect', []); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "False\n", done.stderr[-2000:]
