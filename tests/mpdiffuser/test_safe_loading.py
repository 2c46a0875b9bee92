"""Pipeline folders of strangers: nothing in them is executed, nothing leads elsewhere, nothing fills the memory."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpdiffuser.errors import InputError
from mpdiffuser.files import write_manifest
from mpdiffuser.methods.cloning import CloningPolicy
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.record import TRUE_STATE, Actions, Observation, Record
from mpdiffuser.safe_loading import FORMAT_VERSION, load_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROGRAM = "import pathlib; pathlib.Path(__file__).with_name('executed').touch()"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.fixture(scope="module")
def whole(make_folder, tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("whole") / "pipeline")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "pipeline")


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def pickled(folder: Path) -> None:
    (folder / "planner" / WEIGHTS).unlink()
    torch.save(Bomb(folder.parent / "executed"), folder / "planner" / "diffusion_pytorch_model.bin")


def pickle_named_safetensors(folder: Path) -> None:
    (folder / "planner" / WEIGHTS).write_bytes(pickle.dumps(Bomb(folder.parent / "executed")))


def program(folder: Path, name: str) -> None:
    (folder / name).write_text(PROGRAM)


def linked(folder: Path, name: str, target: Path) -> None:
    if (folder / name).is_dir():
        (folder / name).rename(target)
    else:
        (folder / name).replace(target)
    (folder / name).symlink_to(target)


def custom_component(folder: Path) -> None:
    """diffusers takes a component's class from a .py file in its folder."""
    program(folder / "planner", "mine.py")
    edit(folder / "model_index.json", planner=["mine", "Planner"])


def reshaped(folder: Path) -> None:
    file = folder / "latents" / WEIGHTS
    save_file({key: torch.zeros(5) for key in load_file(file)}, file)


def adapted(dim: int) -> dict[str, Any]:
    return {"matrix": [[float(i == j) for j in range(dim)] for i in range(dim)], "bias": [0.0] * dim}


def recorded(state_dim: int, action_dim: int) -> dict[str, Any]:
    """Info with the record of states and actions of these dimensions."""
    observations = {"observations": Observation(TRUE_STATE, (state_dim,))} if state_dim else {}
    return {"record": Record(observations, Actions.unit(action_dim)).to_json()}


HOSTILE: list[tuple[Callable[[Path], Any], str]] = [
    (pickled, r"diffusion_pytorch_model\.bin: not a file of a pipeline; remove it"),
    (pickle_named_safetensors, r"planner/diffusion_pytorch_model\.safetensors: not a safetensors file"),
    (
        lambda f: edit(f / "model_index.json", planner=["os", "system"]),
        r"planner: must be mpdiffuser\S+ Planner, found",
    ),
    (
        lambda f: edit(f / "model_index.json", extra=["os", "system"]),
        r"extra: must be no component of a pipeline",
    ),
    (lambda f: edit(f / "model_index.json", planner=["mpdiffuser.models.ranker", "Ranker"]), r"planner: must be"),
    (lambda f: edit(f / "model_index.json", planner=[None, None]), r"planner/\S+: not a file of a pipeline"),
    (lambda f: edit(f / "model_index.json", latents=[None, None]), r"latents: must be"),
    (lambda f: edit(f / "model_index.json", encoder=["../../x", "X"]), r"encoder: must be vision.encoder IdentityEnc"),
    (lambda f: edit(f / "model_index.json", _class_name=["pipeline", "X"]), r"_class_name must be MPDiffuserPipeline"),
    (lambda f: edit(f / "model_index.json", info=[1]), r"info must be an object"),
    (lambda f: edit(f / "model_index.json", info={"record": {"shape": 3}}), r"info\.record: not a record of a dataset"),
    (lambda f: edit(f / "model_index.json", info=recorded(0, 2)), r"info\.record: observations: must not be empty"),
    (
        lambda f: edit(f / "model_index.json", info=recorded(3, 2) | {"adaptation": {"map": adapted(3)}}),
        r"info\.adaptation: must be of 2 actions, found 3",
    ),
    (lambda f: edit(f / "model_index.json", info=recorded(3, 2) | {"adaptation": 7}), r"adaptation: not an action map"),
    (lambda f: edit(f / "model_index.json", info=recorded(3, 3)), r"do not fit each other.*record\.action_dim': 3"),
    (lambda f: edit(f / "model_index.json", info=recorded(4, 2)), r"do not fit each other.*record\.latent_dim': 4"),
    (custom_component, r"planner: must be mpdiffuser\S+ Planner, found"),
    (lambda f: program(f, "pipeline.py"), r"pipeline\.py: not a file of a pipeline; remove it"),
    (
        lambda f: program(f / "ranker", "mpdiffuser.models.ranker.py"),
        r"ranker\.py: not a file of a pipeline",
    ),
    (lambda f: linked(f, f"ranker/{WEIGHTS}", f.parent / "elsewhere"), r"ranker/\S+: a link"),
    (lambda f: linked(f, "ranker", f.parent / "elsewhere"), r"ranker: a link"),
    (lambda f: edit(f / "planner" / "config.json", _class_name="Dynamics"), r"_class_name must be Planner, found 'Dyn"),
    (lambda f: edit(f / "planner" / "config.json", width=10**12), r"config\.json: holds 1000000000000, beyond"),
    (lambda f: edit(f / "planner" / "config.json", width=10**400), r"config\.json: holds 10{79}, beyond"),
    (lambda f: edit(f / "planner" / "config.json", dropout=float("nan")), r"config\.json: holds nan, beyond"),
    (lambda f: edit(f / "planner" / "config.json", width=80_000), r"must have shape \[160000\], found"),
    (lambda f: edit(f / "planner" / "config.json", multipliers=[1] * 1000), r"longer than 100"),
    (lambda f: edit(f / "planner" / "config.json", horizon="${x}"), r"no Planner can be made of it"),
    (lambda f: edit(f / "planner" / "config.json", auto_map={"AutoModel": "x.py"}), r"no Planner can be made of it"),
    (reshaped, r"latents/\S+: high: must have shape \[3\], found \[5\]"),
    (lambda f: program(f / "cloning", "mine.py"), r"cloning/mine\.py: not a file of a pipeline"),
    (lambda f: (f / "cloning" / WEIGHTS).rename(f / "cloning" / "pytorch_model.bin"), r"cloning/\S+: missing"),
    (
        lambda f: (f / "cloning" / "more").mkdir() or program(f / "cloning" / "more", "x.json"),
        r"more/x\.json: not a fi",
    ),
    (lambda f: linked(f, "cloning", f.parent / "elsewhere"), r"cloning: a link"),
    (lambda f: edit(f / "model_index.json", sampler_defaults=None), r"sampler_defaults: "),
    (
        lambda f: edit(f / "model_index.json", sampler_defaults={"steps": 0}),
        r"sampler\.steps: must be at least 1",
    ),
    (lambda f: edit(f / "model_index.json", sampler_defaults={"steps": 10**9}), r"holds 1000000000, beyond"),
    (
        lambda f: edit(f / "model_index.json", sampler_defaults={"steps": "4"}),
        r"sampler_defaults: steps must be",
    ),
    (
        lambda f: edit(f / "model_index.json", sampler_defaults={"guidance": "much"}),
        r"sampler_defaults: guidance must be",
    ),
    (
        lambda f: edit(f / "model_index.json", sampler_defaults={"temperature": True}),
        r"sampler_defaults: temperature must be",
    ),
    (lambda f: edit(f / "model_index.json", sampler_defaults={"candidates": 5000}), r"candidates must be at most 1000"),
    (lambda f: edit(f / "model_index.json", info={"cost_limits": [float("inf")]}), r"info\.cost_limits must be"),
    (lambda f: edit(f / "model_index.json", info={"back_end": 3}), r"info\.back_end must be a text"),
    (lambda f: edit(f / "model_index.json", sampler_defaults={"run": "x"}), r"sampler_defaults: .*'run'"),
    (lambda f: edit(f / "model_index.json", sampler_defaults={"safe_action": ["9"]}), r"sampler\.safe_action: must be"),
]


@pytest.mark.parametrize(("spoil", "words"), HOSTILE)
def test_what_a_stranger_may_send(folder: Path, spoil: Callable[[Path], Any], words: str) -> None:
    """With a manifest that fits, which a stranger can write too."""
    spoil(folder)
    if not any(path.is_symlink() for path in folder.rglob("*")):
        write_manifest(folder)
    with pytest.raises(InputError, match=words):
        MPDiffuserPipeline.from_pretrained(folder)
    assert not list(folder.parent.rglob("executed"))


def test_a_folder_that_is_not_there_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"someone/pipeline: not a pipeline folder"):
        MPDiffuserPipeline.from_pretrained("someone/pipeline")


@pytest.mark.slow
def test_an_older_folder_can_be_taken_on_trust(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json is missing.*python -m mpdiffuser\.safe_loading FOLDER"):
        MPDiffuserPipeline.from_pretrained(folder)
    command = [sys.executable, "-m", "mpdiffuser.safe_loading", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert MPDiffuserPipeline.from_pretrained(folder).planner.config["horizon"] == 8


@pytest.mark.parametrize("found", [None, 2, 6, 8, "7", "x" * 5000])
def test_a_folder_of_another_format(folder: Path, found: Any) -> None:
    """What was found, what this program reads, and what to do."""
    file = folder / "model_index.json"
    assert json.loads(file.read_text())["format_version"] == FORMAT_VERSION == 7
    edit(file, format_version=found)
    write_manifest(folder)
    words = (
        rf"model_index\.json: format_version {str(found)[:80]} found, this program reads 7; train the pipeline again"
    )
    with pytest.raises(InputError, match=words) as caught:
        MPDiffuserPipeline.from_pretrained(folder)
    assert len(str(caught.value)) < 500


def test_a_folder_of_before_there_were_formats(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index["format_version"]
    (folder / "model_index.json").write_text(json.dumps(index))
    write_manifest(folder)
    with pytest.raises(InputError, match=r"format_version None found, this program reads 7"):
        MPDiffuserPipeline.from_pretrained(folder)


DIMS = {"latent_dim": 3, "action_dim": 2}


def test_a_model_beside_the_pipeline(folder: Path) -> None:
    loaded = load_model(folder / "cloning", CloningPolicy, DIMS)
    assert isinstance(loaded, CloningPolicy) and not loaded.training
    kept = load_file(folder / "cloning" / WEIGHTS)
    assert all(torch.equal(value, kept[key]) for key, value in loaded.state_dict().items())


def weights_of_another_size(folder: Path) -> None:
    save_file({key: value[..., :1].clone() for key, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "config.json").write_text("{}"), r"cloning/config\.json: _class_name must be CloningPolicy"),
        (lambda f: edit(f / "config.json", _class_name="Ranker"), r"_class_name must be CloningPolicy, found 'Ranker'"),
        (lambda f: edit(f / "config.json", hidden=10**12), r"config\.json: holds 1000000000000, beyond"),
        (lambda f: edit(f / "config.json", hidden="9"), r"no CloningPolicy can be made of it"),
        (lambda f: edit(f / "config.json", more=1), r"no CloningPolicy can be made of it"),
        (lambda f: (f / WEIGHTS).write_bytes(pickle.dumps(Bomb(f.parents[1] / "executed"))), r"not a safetensors file"),
        (lambda f: (f / WEIGHTS).unlink(), r"cloning/\S+: not a safetensors file"),
        (weights_of_another_size, r"must have shape \[\d+(, \d+)?\], found"),
        (shutil.rmtree, r"cloning: no such model; train the method that needs it"),
    ],
)
def test_a_strangers_model_beside_the_pipeline(folder: Path, spoil: Callable[[Path], Any], words: str) -> None:
    """Checked when the method that needs it loads it."""
    spoil(folder / "cloning")
    with pytest.raises(InputError, match=words):
        load_model(folder / "cloning", CloningPolicy, DIMS)
    assert not list(folder.parent.rglob("executed"))


@pytest.mark.parametrize("dims", [{"latent_dim": 4, "action_dim": 2}, {"latent_dim": 3, "action_dim": 1}])
def test_a_model_of_another_pipeline(folder: Path, dims: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"cloning: (latent|action)_dim must be \d, as in the pipeline, found \d"):
        load_model(folder / "cloning", CloningPolicy, dims)


FRESH = """
import sys
assert not [name for name in sys.modules if name.split(".")[0] in ("vision", "envs", "evaluation", "mpdiffuser")]
from mpdiffuser import Controller, MPDiffuserPipeline
pipeline = MPDiffuserPipeline.from_pretrained(sys.argv[1])
print(type(pipeline.encoder).__module__, Controller(pipeline).act(__import__("numpy").zeros((1, 3), "float32")).shape)
"""


@pytest.mark.slow
def test_a_pipeline_loads_without_its_encoders_package_being_imported_first(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", FRESH, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent)
    assert (done.returncode, done.stdout) == (0, "vision.encoder (1, 2)\n"), done.stderr[-2000:]
