"""Configuration: Hydra files in `configs/` and defaults from the code, checked before anything runs.

Each default is defined once. The code defines the options of a class (`SamplerConfig`, `Planner`, `Dynamics`, `Ranker`)
and of a method (`mpdiffuser.methods`). The files define all other options.
"""

import contextlib
import difflib
import fnmatch
import functools
import importlib.resources
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mpdiffuser.console import quiet_pipes
from mpdiffuser.errors import InputError

KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", ListConfig: "a list"}
KEYS = ("observations", "frames", "actions", "rewards", "costs", "terminations", "truncations")  # of a flat file
SEVERAL = ("dataset", "dynamics_data")  # options that are a text or a list of texts
# options that are files or folders
PATHS = ("pipeline", "dataset", "dynamics_data", "data_dir", "data_root", "output_dir", "repeat")
# types of the options whose default is null
TEXTS = ("pipeline", "dataset", "dynamics_data", "data_dir", "output_dir", "repeat", "environment")
UNSET: dict[str, type] = dict.fromkeys(TEXTS, str)
UNSET |= dict.fromkeys((f"keys.{name}" for name in KEYS), str)
UNSET |= {"processes": int, "discount": float, "episode_seconds": float, "evaluation.parallel_controllers": int}
UNSET |= {"goal_entries": ListConfig, "cost_limits": ListConfig}
WITHOUT_DECLARED = ("collect",)  # configurations without such defaults: they need no torch and start faster
OWN = "--config-dir="
SEVERAL_RUNS = ("-m", "--multirun")
LARGEST, BRACKETS = 100_000, 1000  # limits for a file: bytes, and opening brackets
REFERENCES = 20  # ${...} in all files together; each can contain several others, so the resolved size is exponential


def configured(name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorator for an entry point: calls it with configuration `name` and the overrides of the command line.

    The entry point prints an error as one line and exits with status 2. `--help` prints the whole configuration.
    `--multirun` runs each combination of values (`mpdiffuser.sweep`). `debug=true` applies the list `debug_rules`, for
    a run of seconds. `--config-dir=FOLDER` adds a folder with the user's files, which Hydra searches before configs/.
    """

    def decorate(main: Callable[[DictConfig], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                with quiet_pipes():
                    if {"-h", "--help"} & set(sys.argv[1:]):
                        print(_help(name))
                        return
                    given = [word for word in sys.argv[1:] if word.startswith(OWN)]
                    overrides = [word for word in sys.argv[1:] if word not in (*given, *SEVERAL_RUNS)]
                    folder = Path(given[-1].removeprefix(OWN)) if given else None
                    if set(SEVERAL_RUNS) & set(sys.argv[1:]):
                        from mpdiffuser.sweep import sweep  # it imports this module

                        sys.exit(sweep(name, overrides, folder))
                    main(load(name, overrides, folder))
            except (InputError, OSError) as error:  # the system's errors name the file and the fault
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)

        return run

    return decorate


def load(name: str, overrides: list[str], folder: Path | None = None) -> DictConfig:
    """Compose configuration `name` with overrides such as `sampler.steps=6`.

    Args:
        name: file name in configs/, without .yaml.
        overrides: words OPTION=VALUE of the command line.
        folder: the user's files, with the layout of configs/. Hydra searches this folder first. The files can set
            only the options of configs/, with the same types.

    Raises:
        InputError: for an unknown or missing option or a value of the wrong type. The message names the option, the
            value and the allowed values. Also for a file that is not YAML.
    """
    if folder is not None:
        _check_files(folder)
    base = _base(name)
    overrides = [part for override in overrides for part in _task(_checked(override), folder)]
    config = _resolved(_compose(name, overrides, base, folder))
    if config.get("debug"):
        config = _resolved(_compose(name, [*_debug_overrides(config), *overrides], base, folder))
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise InputError(f"{missing[0]}: is missing; set it with {missing[0]}=...; --help lists all options")
    leaves, usual = dict(_leaves(config)), dict(_leaves(base))
    task = set(config.task) if isinstance(config.get("task"), DictConfig) else set()
    if "task" in base and task != set(base.task) and task in _kinds_of_task():  # a task of another kind
        usual = {key: value for key, value in usual.items() if not key.startswith("task.") or key == "task.name"}
        own = {f"task.{name}" for name in task}
        usual |= {key: value for key, value in leaves.items() if key in own - set(usual)}
    for key in usual:
        section = next((k for k in leaves if key.startswith(f"{k}.")), None)
        if section:
            raise InputError(f"{section}: is a section with several options, such as {key}; found {leaves[section]!r}")
        if key not in leaves:
            raise InputError(f"{key}: is missing in your files; its value in configs/ is {usual[key]!r}")
        _check_type(key, usual[key], leaves[key])
    for key in leaves:
        if key not in usual:
            raise InputError(f"{key}: no such option (found {leaves[key]!r}); {_nearest(key, usual)}")
    return config


def _debug_overrides(config: DictConfig) -> Iterator[str]:
    """Yield an override for each option that matches the pattern of a rule, such as train.*.steps=20."""
    leaves = dict(_leaves(config))
    for rule in OmegaConf.to_container(config, resolve=False)["debug_rules"]:  # type: ignore[index,call-overload]
        pattern, _, value = str(rule).partition("=")
        yield from (f"{key}={value}" for key in fnmatch.filter(leaves, pattern))


def _kinds_of_task() -> list[set[str]]:
    """Return the option names of each kind of task. A task has all options of exactly one kind."""
    files = importlib.resources.files("configs").joinpath("task").iterdir()
    found: list[set[str]] = []
    for file in files:
        options = set(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.name.endswith(".yaml") else set()
        if options and options not in found:
            found.append(options)
    return found


def _check_files(folder: Path) -> None:
    """Raise InputError for files that Hydra could not compose in a short time."""
    if not folder.is_dir():
        raise InputError(f"{OWN}{folder}: no such folder")
    references = 0
    for file in sorted([*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]):
        if not file.is_file() or file.stat().st_size > LARGEST:
            raise InputError(f"{file}: must be a file of at most {LARGEST:,} bytes")
        with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):  # `_compose` reports them
            text = file.read_text(encoding="utf-8")
            if text.count("[") + text.count("{") > BRACKETS:  # the parsing time is quadratic in their number
                raise InputError(f"{file}: must have at most {BRACKETS} opening brackets")
            references += text.count("${")
            if references > REFERENCES:
                raise InputError(f"{file}: the files must have at most {REFERENCES} references ${{...}} together")
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
                raise InputError(f"{file}: aliases (*name) are not allowed; write the value in full")


def settings(section: DictConfig) -> dict[str, Any]:
    """Convert a section to a dict of plain Python values."""
    plain = OmegaConf.to_container(section, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def flat(config: DictConfig) -> dict[str, Any]:
    """Return option -> value of all options, such as "sampler.steps". Lists are plain Python lists."""
    return {key: OmegaConf.to_container(v) if isinstance(v, ListConfig) else v for key, v in _leaves(config)}


def _checked(word: str) -> str:
    """Return a word of the command line as an override for Hydra.

    Raises:
        InputError: unless it is OPTION=VALUE, with one value that Hydra can read.
    """
    option, equals, _ = word.partition("=")
    if word[:1] in ("+", "~"):
        raise InputError(f"{word}: options cannot be added or removed; set one as name=value; --help lists all")
    if word[:1] == "-":
        raise InputError(
            f"{word}: no such flag; there are {OWN}FOLDER, --multirun and --help, and options as name=value"
        )
    if not option or not equals:
        raise InputError(f"{word!r}: must be name=value; --help lists all options")
    override = _quoted_path(word)
    try:
        several = OverridesParser.create().parse_override(override).is_sweep_override()
    except HydraException as error:
        reason = " ".join(str(error).split()).partition(" See https")[0]
        raise InputError(
            f"{option}: cannot read {word!r} ({reason}); quote special characters twice: \"{option}='TEXT'\""
        ) from error
    if several:
        raise InputError(
            f'{option}: must be one value, found {word!r}; a list is "{option}=[a,b]"; several runs: --multirun'
        )
    return override


def _quoted_path(override: str) -> str:
    """Quote the value of an option that is a path, so that Hydra takes characters such as = and , as they are.

    A leading ~ is the home folder, as in a shell. A value with Hydra's own quotes is not changed. Of a list, each path
    is quoted.
    """
    option, _, value = override.partition("=")
    if option not in PATHS or value in ("", "null"):
        return override
    if option in SEVERAL and value[0] == "[" and value[-1] == "]":
        return f"{option}=[{','.join(_quoted(part.strip()) for part in value[1:-1].split(','))}]"
    return f"{option}={_quoted(value)}"


def _quoted(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value
    return QuotedString(os.path.expanduser(value), Quote.single).with_quotes()


def _task(override: str, folder: Path | None) -> list[str]:
    """Split task=SUITE/NAME into task=SUITE, which selects configs/task/SUITE.yaml, and task.name=NAME.

    A task=NAME without a file NAME.yaml, in configs/ or in the user's folder, is taken as task=dm_control/NAME.
    """
    if not override.startswith("task="):
        return [override]
    suite, slash, name = override.removeprefix("task=").partition("/")
    places: list[Any] = [importlib.resources.files("configs"), *([folder] if folder else [])]
    if re.fullmatch(r"[a-zA-Z]\w*", suite) and not slash:
        if any((place / "task" / f"{suite}.yaml").is_file() for place in places):
            return [override]
        suite, slash, name = "dm_control", "/", suite
    return [f"task={suite}", f"task.name={name}"] if slash else [override]


@functools.cache
def _base(name: str) -> DictConfig:
    """Return the configuration without overrides; it must not be changed."""
    return _compose(name, [])


@functools.cache
def _declared() -> dict[str, tuple[type, bool]]:
    """Give Hydra the defaults that the code declares; return the types of the sampler's options (`register`)."""
    from mpdiffuser.declared import register

    return register()


def _compose(name: str, overrides: list[str], base: DictConfig | None = None, folder: Path | None = None) -> DictConfig:
    if name not in WITHOUT_DECLARED:
        _declared()
    _OwnFiles.folder = folder
    try:
        with initialize_config_module("configs", version_base=None):
            return compose(name, overrides)
    except Exception as error:  # Hydra, OmegaConf and YAML raise many types of exceptions
        raise InputError(_explain(error, overrides, base)) from error
    finally:
        _OwnFiles.folder = None


def _resolved(config: DictConfig) -> DictConfig:
    try:
        OmegaConf.resolve(config)
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"configuration: {' '.join(str(error).split())}") from error
    return config


class _OwnFiles(SearchPathPlugin):
    """Hydra plugin that adds a folder as the first entry of the search path."""

    folder: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.prepend("own files", f"file://{self.folder.absolute()}", "main")


Plugins.instance().register(_OwnFiles)


def _dataset_name(usual: str, *, _root_: DictConfig) -> str:
    """Return the name of the option `dataset`, without folders and suffix; without that option, `usual`."""
    found = _root_.get("dataset")
    if not found:
        return usual
    first = str(found[0] if isinstance(found, ListConfig) else found)
    name = first.rstrip("/").rpartition("/")[2].removesuffix(".npz").removesuffix(".hdf5")
    return re.sub(r"[^\w.-]", "_", name, flags=re.ASCII) or usual  # Hydra's overrides take no other letters


def _debug_chunk(usual: int, *, _root_: DictConfig) -> int:
    """Return `usual`; 1 with a stride, since only the first action of a plan is then executed."""
    return usual if _root_["stride"] == 1 else 1


OmegaConf.register_new_resolver("dataset_name", _dataset_name)
OmegaConf.register_new_resolver("debug_chunk", _debug_chunk)


def _explain(error: Exception, overrides: list[str], base: DictConfig | None) -> str:
    """Return the message of a Hydra error; for an unknown option, a message with the most similar names."""
    message = " ".join(str(error).split())[:2000]
    for override in overrides:
        key = override.partition("=")[0]
        if key and "not in struct" in message + str(error.__cause__) and f"'{key}'" in message:
            known = dict(_leaves(base)) if base is not None else {}
            return f"{key}: no such option (found {override!r}); {_nearest(key, known)}"
    if isinstance(error, RecursionError):
        return "configuration: circular references or too deep nesting"
    return message or f"configuration: {type(error).__name__}"


def _nearest(key: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, 3, 0.4) or [k for k in known if "." not in k]
    return f"nearest: {', '.join(near)}; --help lists all"


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (option, value). The value is None for an option that is missing or that refers to another option."""
    for key in config:
        known = not (OmegaConf.is_interpolation(config, key) or OmegaConf.is_missing(config, key))
        value = config[key] if known else None
        if isinstance(value, DictConfig):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _null_type(key: str) -> tuple[type | None, bool]:
    """Return the type of an option whose default is null, and whether it may be null where the default is not."""
    section, _, name = key.rpartition(".")
    samples = section == "sampler" or section.startswith("baselines.")
    return _declared().get(f"sampler.{name}", (None, False)) if samples else (UNSET.get(key), False)


def _check_type(key: str, usual: Any, found: Any) -> None:
    unset, optional = _null_type(key) if found is None or usual is None else (None, False)
    kind = next((k for k in KINDS if isinstance(usual, k)), None if found is None else unset)
    if kind is None or (found is None and optional):
        return
    if key in SEVERAL and isinstance(found, ListConfig):
        for number, part in enumerate(found):
            _check_type(f"{key}[{number}]", "a text", part)
        return
    fits = isinstance(found, int | float if kind is float else kind)
    if fits and kind is float:
        fits = abs(found) <= sys.float_info.max  # false for nan, and for integers that are too large for a float
    if not fits or (isinstance(found, bool) and kind is not bool):
        such = f"null or {KINDS[kind]}" if usual is None else f"{KINDS[kind]} (such as {usual!r})"
        raise InputError(f"{key}: must be {such}, found {found!r}")
    if kind is ListConfig and usual:
        for number, part in enumerate(found):
            _check_type(f"{key}[{number}]", usual[0], part)


def _groups(name: str) -> str:
    """Return the paragraph on the groups of a configuration that offer a choice; empty if there are none."""
    base, lines = _base(name), [""]
    with initialize_config_module("configs", version_base=None):
        loader = GlobalHydra.instance().config_loader()
        for group in ("method", *base):
            names = [each for each in loader.get_group_options(str(group)) if each not in ("base", "saved")]
            if len(names) > 1 and (group in base or "run" in base):
                lines.append(f"  {group}: {', '.join(names)}")
    return "\n".join(["Groups, each set as GROUP=NAME:", *lines, "", ""]) if lines[1:] else ""


def _help(name: str) -> str:
    entry = Path(sys.argv[0]).name
    return (
        f"Usage: {entry} [{OWN}FOLDER] [--multirun] [option=value ...], for example {entry} debug=true\n\n"
        f"{_groups(name)}"
        f"Options and their values now (comments: configs/{name}.yaml and the files that it names):\n\n"
        f"{OmegaConf.to_yaml(_compose(name, []))}"
    )
