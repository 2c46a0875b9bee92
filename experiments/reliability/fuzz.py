"""Fuzz: files and options spoilt at random give a clear error or a correct load; never another exception, a hang or an
endless allocation.

Each target makes something good, and reads it again after a mutation: bytes flipped, cut, doubled or replaced, a value
in JSON made huge, negative or of another type, an entry taken out, a file removed, emptied or replaced by a link. A
read has 10 seconds of the processor and 4 GB, in a fork.
"""

import copy
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.reliability.kills import episodes_of
from mpdiffuser.config import load
from mpdiffuser.controller import Controller
from mpdiffuser.episodes import Episodes
from mpdiffuser.errors import InputError
from mpdiffuser.files import MANIFEST, write_manifest
from mpdiffuser.models.cloning import BehaviourCloning
from mpdiffuser.models.denoisers import Dynamics, Planner
from mpdiffuser.models.normalizer import Marginals, Normalizer
from mpdiffuser.models.ranker import Ranker
from mpdiffuser.pipeline import MPDiffuserPipeline
from mpdiffuser.sampler import SamplerConfig
from mpdiffuser.schedule import NoiseSchedule
from vision.encoder import IdentityEncoder

SECONDS, MEMORY = 10, 4 * 2**30
STRANGE: list[Any] = [-1, 0, 1, 7, 10**6, 10**12, 10**400, 1.5, 1e308, "", "x" * 200, "../..", "/etc/passwd", "os"]
STRANGE += [None, True, [], {}, [[]], {"a": 1}, [10**12], ["os", "system"], float("nan"), float("inf")]
WORDS = [
    "null",
    "true",
    "-1",
    "0",
    "1e309",
    "nan",
    "[]",
    "[1,2",
    "{}",
    "{a: 1}",
    "''",
    "x",
    "../x",
    "${seed}",
    "${oc.env:HOME}",
]
WORDS += [
    "99999999999999999999",
    "${nothing}",
    "${horizon}",
    "${evaluation}",
    "1,2",
    "!!python/object/apply:os.system [id]",
    "\x00",
    "é",
    "a=b",
    "${",
]


def small_pipeline() -> MPDiffuserPipeline:
    """An untrained pipeline on states: latents of 3, actions of 2."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(latent_dim=3, action_dim=2, horizon=8, width=8, multipliers=(1, 2), embedding=16)
    info = {"task": "none", "data": "none", "observation": {"shape": [3], "dtype": "float32"}}
    parts = (IdentityEncoder(3, 2), Normalizer(3), Normalizer(2), Marginals(1), Planner(**sizes), Dynamics(**sizes))
    return MPDiffuserPipeline(*parts, Ranker(3, 2, hidden=16), NoiseSchedule(20), info=info)


def make_pipeline(folder: Path) -> None:
    pipeline = small_pipeline()
    BehaviourCloning(3, 2, hidden=16).save_pretrained(folder / "cloning")
    pipeline.save_pretrained(folder)


def read_pipeline(folder: Path) -> None:
    """As a stranger's, who can write a manifest too."""
    if (folder / MANIFEST).exists():
        write_manifest(folder)
    read_damaged_pipeline(folder)


def read_damaged_pipeline(folder: Path) -> None:
    controller = Controller(MPDiffuserPipeline.from_pretrained(folder), SamplerConfig(steps=2, candidates=2))
    actions = controller.act(np.zeros((1, 3), np.float32))
    assert np.isfinite(actions).all() and np.abs(actions).max() <= 1


def make_episodes(folder: Path) -> None:
    shutil.rmtree(folder)
    episodes_of(count=3, steps=5, frame_size=8).save(folder)


def read_episodes(folder: Path) -> None:
    found = Episodes.load(folder)
    assert np.isfinite(found["observations"]).all() and found.lengths.min() > 0 and found.checksum()


TARGETS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "episodes": (make_episodes, read_episodes),
    "pipeline": (make_pipeline, read_pipeline),
    "damaged pipeline": (make_pipeline, read_damaged_pipeline),
}


def mutate(folder: Path, chance: random.Random) -> str:
    """Spoil one thing in a folder; says what."""
    file = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    how = chance.choice(["bytes", "bytes", "json", "json", "file"])
    if how == "json" and file.suffix != ".json":
        file = chance.choice(sorted(folder.rglob("*.json")))
    spoil = {"bytes": _bytes, "json": _json, "file": _file}[how]
    return f"{file.relative_to(folder)}: {spoil(file, chance)}"


def _bytes(file: Path, chance: random.Random) -> str:
    data = bytearray(file.read_bytes())
    place = chance.randrange(min(len(data), chance.choice([16, 200, len(data)]))) if data else 0
    kind = chance.choice(["flip", "cut", "double", "zero", "insert"])
    if kind == "flip" and data:
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "double":
        data += bytes(data)
    elif kind == "zero":
        data[place : place + 8] = bytes(chance.choice([0, 255]) for _ in range(8))
    else:
        data[place:place] = chance.randbytes(chance.randint(1, 40))
    file.write_bytes(data)
    return f"{kind} at {place}"


def _json(file: Path, chance: random.Random) -> str:
    try:
        data = json.loads(file.read_text())
    except ValueError:
        return _bytes(file, chance)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, part in items:
            places.append((value, key))
            walk(part)

    walk(data)
    if not places:
        return _bytes(file, chance)
    holder, key = chance.choice(places)
    value = copy.deepcopy(chance.choice(STRANGE))
    if chance.random() < 0.2:
        del holder[key]
        what = f"{key} taken out"
    elif isinstance(holder, dict) and chance.random() < 0.2:
        holder[str(value)[:50]] = holder.pop(key)
        what = f"{key} called {str(value)[:50]}"
    else:
        holder[key] = value
        what = f"{key} becomes {str(value)[:60]}"
    file.write_text(json.dumps(data))
    return what


def _file(file: Path, chance: random.Random) -> str:
    kind = chance.choice(["remove", "empty", "link", "folder", "pickle", "program", "swap", "deep"])
    if kind == "program":
        (file.parent / "pipeline.py").write_text("raise SystemExit('executed')")
    elif kind == "pickle":
        file.with_name("diffusion_pytorch_model.bin").write_bytes(pickle.dumps({}))
    elif kind == "swap":
        other = chance.choice(sorted(path for path in file.parent.iterdir() if path.is_file()))
        shutil.copy(other, file) if other != file else file.unlink()
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "deep":
        file.write_text("[" * 100_000)
    else:
        file.unlink()
    if kind == "link":
        file.symlink_to("/etc/passwd")
    if kind == "folder":
        file.mkdir()
    return kind


def option(chance: random.Random, names: list[str]) -> list[str]:
    """Overrides of a configuration, some of them wrong."""
    words = []
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(names)
        if chance.random() < 0.2:
            place = chance.randrange(len(name))
            name = name[:place] + chance.choice(["", ".", "x", "[", "\\", " "]) + name[place + 1 :]
        words.append(
            chance.choice(["{}={}", "{}={}", "{}={}", "{}{}", "+{}={}", "~{}{}"]).format(name, chance.choice(WORDS))
        )
    return words


def read_options(overrides: list[str]) -> None:
    load("state", overrides)


def attempt(read: Callable[[Any], None], what: Any) -> str:
    """What came of it, in a fork: "refused", "loaded", or what should not be."""
    readable, writable = os.pipe()
    child = os.fork()
    if not child:
        os.close(readable)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.dup2(2, 1)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(20 * SECONDS)  # for one that waits and does not work
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        try:
            read(what)
            outcome = "loaded"
        except InputError as error:
            outcome = "refused" if len(str(error)) < 4000 else f"an endless message: {str(error)[:200]}"
        except BaseException:
            outcome = traceback.format_exc()[-3000:]
        os.write(writable, outcome.encode())
        os._exit(0)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        outcome = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return outcome if status == 0 else f"ended by signal {-status}: a hang or too much memory"


def fuzz(name: str, count: int, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Try so many mutations of a target; what came of them, and those that came out wrong."""
    chance = random.Random(f"{name} {seed}")
    result: dict[str, Any] = {"target": name, "tried": 0, "refused": 0, "loaded": 0, "wrong": []}
    good, spoilt = folder / "good", folder / "spoilt"
    if name == "options":
        names = sorted(_names(load("state", [])))
    else:
        good.mkdir(parents=True)
        TARGETS[name][0](good)
    for _ in range(count):
        if name == "options":
            words = option(chance, names)
            outcome, what = attempt(read_options, words), str(words)
        else:
            shutil.copytree(good, spoilt, symlinks=True)
            what = mutate(spoilt, chance)
            outcome = attempt(TARGETS[name][1], spoilt)
            shutil.rmtree(spoilt)
        result["tried"] += 1
        if outcome in ("refused", "loaded"):
            result[outcome] += 1
        else:
            result["wrong"].append(f"{what}\n{outcome}")
            print(f"{name}: {what}\n{outcome}", file=sys.stderr)
    return result


def _names(config: Any, prefix: str = "") -> list[str]:
    names = []
    for key in config:
        names.append(f"{prefix}{key}")
        if hasattr(config._get_node(key), "items"):
            names += _names(config._get_node(key), f"{prefix}{key}.")
    return names
