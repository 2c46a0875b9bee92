"""Configuration: Hydra files in `configs/`, checked before anything runs, with errors that a user can act on."""

import difflib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mpdiffuser.errors import InputError


def configured(name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorator for an entry point: configuration `name` with the command line's overrides, and errors in one line.

    `--help` prints the whole configuration; `debug=true` shrinks everything to seconds (the list `debug_overrides`).
    """

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                if {"-h", "--help"} & set(sys.argv[1:]):
                    print(_help(name))
                    return
                main(load(name, sys.argv[1:]))
            except (InputError, OSError) as error:  # the system's errors say what is wrong with which file
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)

        return run

    return decorate


def load(name: str, overrides: list[str]) -> DictConfig:
    """Compose configuration `name` with overrides such as `sampler.steps=6`.

    Raises:
        InputError: for an unknown option or a value of the wrong type, naming the option, what was found, and what is
            allowed.
    """
    base = _compose(name, [])
    for override in overrides:
        if override[:1] in ("+", "~"):
            raise InputError(
                f"{override}: options are neither added nor removed; set one as name=value; --help lists all"
            )
    overrides = [part for override in overrides for part in _suite(override)]
    config = _compose(name, overrides, base)
    if config.get("debug"):
        config = _compose(name, [*base.debug_overrides, *overrides], base)
    try:
        OmegaConf.resolve(config)
        missing = sorted(OmegaConf.missing_keys(config))
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"configuration: {' '.join(str(error).split())}") from error
    if missing:
        raise InputError(f"{missing[0]}: must be given, as {missing[0]}=...; --help tells more")
    leaves = dict(_leaves(config))
    for key, usual in _leaves(base):
        section = next((k for k in leaves if key.startswith(f"{k}.")), None)
        if section:
            raise InputError(f"{section}: holds several options, such as {key}; found {leaves[section]!r}")
        if key in leaves:
            _check_type(key, usual, leaves[key])
    return config


def settings(section: DictConfig) -> dict[str, Any]:
    """A section as plain Python."""
    plain = OmegaConf.to_container(section, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _suite(override: str) -> list[str]:
    """task=d4rl/hopper-medium-v2 is the suite's file configs/task/d4rl.yaml, and the name of the task within it."""
    suite, slash, name = override.removeprefix("task=").partition("/")
    return [f"task={suite}", f"task.name={name}"] if override.startswith("task=") and slash else [override]


def _compose(name: str, overrides: list[str], base: DictConfig | None = None) -> DictConfig:
    try:
        with initialize_config_module("configs", version_base=None):
            return compose(name, overrides)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise InputError(_explain(error, overrides, base)) from error


def _explain(error: Exception, overrides: list[str], base: DictConfig | None) -> str:
    """Hydra's words, and for an unknown option the names that come near."""
    message = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    known = [key for key, _ in _leaves(base)] if base is not None else []
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key and "not in struct" in message + str(error.__cause__) and f"'{key}'" in message:
            near = difflib.get_close_matches(key, known, 3, 0.4) or [k for k in known if "." not in k]
            return f"{key}: no such option (found {override!r}); nearest: {', '.join(near)}; --help lists all"
    return message


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in config:
        if OmegaConf.is_interpolation(config, key) or OmegaConf.is_missing(config, key):
            continue
        value = config[key]
        if isinstance(value, DictConfig):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_type(key: str, usual: Any, found: Any) -> None:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", ListConfig: "a list"}
    kind = next((k for k in kinds if isinstance(usual, k)), None)
    if kind is None:
        return
    fits = isinstance(found, int | float) and math.isfinite(found) if kind is float else isinstance(found, kind)
    if not fits or (isinstance(found, bool) and kind is not bool):
        raise InputError(f"{key}: must be {kinds[kind]} (such as {usual!r}), found {found!r}")


def _help(name: str) -> str:
    entry = Path(sys.argv[0]).name
    return (
        f"Usage: {entry} [option=value ...], for example {entry} debug=true\n\n"
        f"Options and their values now (configs/{name}.yaml; a group such as task takes a file name of its folder):\n\n"
        f"{OmegaConf.to_yaml(_compose(name, []))}"
    )
