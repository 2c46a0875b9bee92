"""Pipeline folders of strangers: nothing in them is executed, nothing leads elsewhere, nothing fills the memory."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.reliability.fuzz import make_pipeline
from mpdiffuser.errors import InputError
from mpdiffuser.files import write_manifest
from mpdiffuser.pipeline import MPDiffuserPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
PROGRAM = "import pathlib; pathlib.Path(__file__).with_name('executed').touch()"


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_pipeline(tmp_path / "pipeline")
    return tmp_path / "pipeline"


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


HOSTILE: list[tuple[Callable[[Path], Any], str]] = [
    (pickled, r"diffusion_pytorch_model\.bin: no file of a pipeline of ours"),
    (pickle_named_safetensors, r"planner/diffusion_pytorch_model\.safetensors: not a safetensors file"),
    (
        lambda f: edit(f / "model_index.json", planner=["os", "system"]),
        r"planner: must be mpdiffuser\S+ Planner, found",
    ),
    (lambda f: edit(f / "model_index.json", extra=["os", "system"]), r"extra: must be no component of ours, found"),
    (lambda f: edit(f / "model_index.json", planner=["mpdiffuser.models.ranker", "Ranker"]), r"planner: must be"),
    (lambda f: edit(f / "model_index.json", planner=[None, None]), r"planner/\S+: no file of a pipeline"),
    (lambda f: edit(f / "model_index.json", latents=[None, None]), r"latents: must be"),
    (lambda f: edit(f / "model_index.json", encoder=["../../x", "X"]), r"encoder: must be vision.encoder IdentityEnc"),
    (lambda f: edit(f / "model_index.json", _class_name=["pipeline", "X"]), r"_class_name must be MPDiffuserPipeline"),
    (lambda f: edit(f / "model_index.json", info=[1]), r"info must be an object"),
    (lambda f: edit(f / "model_index.json", info={"observation": {"shape": 3}}), r"info\.observation must have"),
    (custom_component, r"planner: must be mpdiffuser\S+ Planner, found"),
    (lambda f: program(f, "pipeline.py"), r"pipeline\.py: no file of a pipeline of ours"),
    (lambda f: program(f / "ranker", "mpdiffuser.models.ranker.py"), r"ranker\.py: no file of a pipeline of ours"),
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
    (
        lambda f: (f / "cloning" / "config.json").write_text("{}"),
        r"cloning/config\.json: _class_name must be Behaviour",
    ),
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


def test_an_older_folder_can_be_taken_on_trust(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"manifest\.json is missing.*python -m mpdiffuser\.safe_loading FOLDER"):
        MPDiffuserPipeline.from_pretrained(folder)
    command = [sys.executable, "-m", "mpdiffuser.safe_loading", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert MPDiffuserPipeline.from_pretrained(folder).planner.config["horizon"] == 8
