"""What a pipeline folder may hold. Checked before diffusers sees it, which would fetch a folder that is not there from
its hub, import the modules that model_index.json names, run .py files that it finds, and unpickle .bin files.

    python -m mpdiffuser.safe_loading FOLDER     write the manifest of a folder that you trust
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import torch
from safetensors import SafetensorError, safe_open

from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, check_manifest, read_json, write_manifest

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULE = ("mpdiffuser.schedule", "NoiseSchedule")
# component -> (module, class) that it may be; a program with an encoder of its own adds it
ALLOWED: dict[str, set[tuple[str, str]]] = {
    "encoder": {("vision.encoder", "PixelEncoder"), ("vision.encoder", "IdentityEncoder")},
    "decoder": {("vision.decoder", "Decoder")},
    "latents": {("mpdiffuser.models.normalizer", "Normalizer")},
    "actions": {("mpdiffuser.models.normalizer", "Normalizer")},
    "condition": {("mpdiffuser.models.normalizer", "Marginals")},
    "planner": {("mpdiffuser.models.denoisers", "Planner")},
    "dynamics": {("mpdiffuser.models.denoisers", "Dynamics")},
    "ranker": {("mpdiffuser.models.ranker", "Ranker")},
    "schedule": {SCHEDULE},
}
OPTIONAL = ("decoder", "condition", "planner", "dynamics", "ranker")
CLONING = ("mpdiffuser.models.cloning", "BehaviourCloning")
# models of other methods, which lie beside the components; besides cloning_within_..., for a cost limit
BESIDE: dict[str, tuple[str, str]] = {
    "cloning": CLONING,
    "iql": ("mpdiffuser.models.iql", "IQL"),
    "student": ("mpdiffuser.distillation", "Student"),
    "trajectory_planner": ("mpdiffuser.models.denoisers", "Planner"),
    "state_planner": ("mpdiffuser.models.denoisers", "StatePlanner"),
    "action_planner": ("mpdiffuser.models.denoisers", "ActionPlanner"),
    "clean_dynamics": ("mpdiffuser.models.denoisers", "CleanDynamics"),
    "inverse": ("mpdiffuser.models.inverse", "InverseDynamics"),
    "return_model": ("mpdiffuser.models.return_model", "ReturnModel"),
    "critic": ("mpdiffuser.models.ranker", "Ranker"),
    "logged_returns": ("mpdiffuser.models.normalizer", "Marginals"),
}
SAME = (
    "encoder.latent_dim latents.dim planner.latent_dim dynamics.latent_dim ranker.latent_dim decoder.latent_dim "
    "cloning.latent_dim student.latent_dim",
    "encoder.action_dim actions.dim planner.action_dim dynamics.action_dim ranker.action_dim cloning.action_dim "
    "student.action_dim",
    "planner.horizon dynamics.horizon student.horizon",
    "planner.condition_dim condition.dim student.condition_dim",
)
LARGEST = 100_000  # of any number in a configuration: no width, level or horizon of ours comes near
LONGEST = 100  # of any list or text in it
REMEDY = "get it anew; for a folder that you made and trust: python -m mpdiffuser.safe_loading FOLDER"


def check_pipeline(folder: Path) -> None:
    """That a folder is a whole pipeline of ours and nothing in it can execute, lead elsewhere, or fill the memory.

    Raises:
        InputError: naming the file or field, what was found and what is allowed.
    """
    if not (folder / "model_index.json").is_file():
        raise InputError(f"{folder}: not a pipeline folder (no model_index.json in it)")
    check_manifest(folder, REMEDY)
    classes = _components(folder / "model_index.json")
    beside = BESIDE | {path.name: CLONING for path in folder.glob("cloning_within_*")}
    classes |= {name: kind for name, kind in beside.items() if (folder / name).is_dir()}
    files = {f"{name}/{file}" for name, kind in classes.items() for file in _files(kind)}
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    found -= {"model_index.json", MANIFEST}
    for name in sorted(files ^ found):
        raise InputError(
            f"{folder / name}: {'missing' if name in files else 'no file of a pipeline of ours; remove it'}; {REMEDY}"
        )
    _check_agreement(folder, {name: check_component(folder / name, kind) for name, kind in classes.items()})


def _files(kind: tuple[str, str]) -> tuple[str, ...]:
    return ("schedule_config.json",) if kind == SCHEDULE else ("config.json", WEIGHTS)


def _components(file: Path) -> dict[str, tuple[str, str]]:
    """Component -> (module, class) in model_index.json, all of them allowed."""
    index = {key: value for key, value in read_json(file).items() if key != "_diffusers_version"}
    if index.pop("_class_name", None) != "MPDiffuserPipeline":
        raise InputError(f"{file}: _class_name must be MPDiffuserPipeline; {REMEDY}")
    _check_info(file, index.pop("info", None))
    classes = {}
    for name in sorted({*index, *ALLOWED}):
        value, allowed = index.get(name), ALLOWED.get(name, set())
        if name in OPTIONAL and value in (None, [None, None]):
            continue
        kind = tuple(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else ()
        if kind not in allowed:
            named = " or ".join(sorted(" ".join(pair) for pair in allowed)) or "no component of ours"
            raise InputError(f"{file}: {name[:80]}: must be {named}, found {str(value)[:80]}; {REMEDY}")
        classes[name] = (kind[0], kind[1])
    return classes


def _check_info(file: Path, info: Any) -> None:
    if not isinstance(info, dict):
        raise InputError(f"{file}: info must be an object; {REMEDY}")
    seen = info.get("observation", {"shape": [], "dtype": "uint8"})
    fits = isinstance(seen, dict) and seen.get("dtype") in ("uint8", "float32") and isinstance(seen.get("shape"), list)
    if not fits or not all(type(side) is int for side in seen["shape"]):
        raise InputError(f"{file}: info.observation must have a shape and a dtype, uint8 or float32, found {seen}")


def _check_agreement(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    """That all components are of the same latents, actions, targets and horizon."""
    for names in SAME:
        found = {}
        for name in names.split():
            component, _, key = name.partition(".")
            if component in configs:
                found[name] = configs[component].get(key)
        if len(set(map(repr, found.values()))) > 1:
            raise InputError(f"{folder}: its components do not fit each other: {found}; {REMEDY}")


def check_component(folder: Path, kind: tuple[str, str]) -> dict[str, Any]:
    """That the configuration builds what the weights are weights of, tried without memory for a single weight.

    Args:
        kind: the (module, class) that it must be.

    Returns:
        its configuration.

    Raises:
        InputError: naming the file, what was found and what is allowed.
    """
    module, name = kind
    file = folder / _files(kind)[0]
    config = read_json(file)
    if config.get("_class_name") != name:
        raise InputError(f"{file}: _class_name must be {name}, found {str(config.get('_class_name'))[:80]!r}; {REMEDY}")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    _check_sizes(file, config)
    try:
        made: Any = getattr(importlib.import_module(module), name)
        _check_types(made, config)
        with torch.device("cpu" if kind == SCHEDULE else "meta"):
            component = made(**config)
    except Exception as error:  # a stranger's values may fail anywhere
        raise InputError(f"{file}: no {name} can be made of it ({type(error).__name__}: {error}); {REMEDY}") from error
    if kind != SCHEDULE:
        _check_weights(folder / WEIGHTS, component)
    return config


def _check_types(made: Any, config: dict[str, Any]) -> None:
    """Raises TypeError unless the arguments are of the types that a constructor is declared with."""
    hints = get_type_hints(made.__init__)
    for key, value in config.items():
        hint = hints.get(key)
        fits: dict[Any, bool] = {
            int: type(value) is int,
            float: type(value) in (int, float),
            str: isinstance(value, str),
            bool: isinstance(value, bool),
            Sequence[int]: isinstance(value, list) and all(type(part) is int for part in value),
        }
        if not fits.get(hint, False):
            raise TypeError(f"{key[:80]}: must be {hint}, found {str(value)[:80]!r}")


def _check_sizes(where: Path, value: Any) -> None:
    if isinstance(value, dict | list | str) and len(value) > LONGEST:
        raise InputError(f"{where}: holds {str(value)[:80]}..., longer than {LONGEST}; {REMEDY}")
    if isinstance(value, int | float) and not abs(value) <= LARGEST:  # nor a number that is none
        raise InputError(f"{where}: holds {str(value)[:80]}, beyond {LARGEST:,}; {REMEDY}")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_sizes(where, part)


def _check_weights(file: Path, component: torch.nn.Module) -> None:
    wanted = {key: list(tensor.shape) for key, tensor in component.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as weights:
            found = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118  not a dict
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a safetensors file ({error}); {REMEDY}") from error
    for key in sorted({*wanted, *found}):
        if wanted.get(key) != found.get(key):
            raise InputError(
                f"{file}: {key[:80]}: must have shape {wanted.get(key, 'none, it is no weight of this')}, "
                f"found {found.get(key, 'none')}; {REMEDY}"
            )


def main() -> None:
    try:
        if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "model_index.json").is_file():
            raise InputError(f"usage: python -m mpdiffuser.safe_loading FOLDER (of a pipeline); found {sys.argv[1:]}")
        write_manifest(Path(sys.argv[1]))
        check_pipeline(Path(sys.argv[1]))
        print(f"{sys.argv[1]}: manifest written")
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
