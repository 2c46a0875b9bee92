"""Identities of training runs. A run never overwrites a folder that has a run with another identity.

An identity is a dict of everything that the result depends on: the dataset's checksum, the options that the model may
use, the training settings, and the model's configuration. A resumed run compares its identity with the checkpoint's.
"""

import json
import re
from pathlib import Path
from typing import Any

from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json

OF_MODEL = ("train", "model")  # entries of an identity that `Trainer` adds


def check_run(folder: Path, identity: dict[str, Any]) -> None:
    """Raise InputError if a folder has a run of another identity, its settings and its model aside.

    Nothing is written.
    """
    last = folder / "last"
    state = folder / last.read_text(errors="replace").strip() / "state" / "trainer.json" if last.exists() else last
    if state.is_file() and state != last:
        found = read_json(state).get("identity")
        known = {k: v for k, v in found.items() if k not in OF_MODEL} if isinstance(found, dict) else {}
        refuse_other(folder, known, plain(identity))


def refuse_other(folder: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise InputError unless the two identities are equal."""
    # an option is called as on the command line
    different = [re.sub(r"^((?:\w+\.)*?)options\.", r"\1", phrase) for phrase in differences(found, identity)]
    if different:
        raise InputError(
            f"{folder}: holds a run with other settings ({'; '.join(different)}); choose another output_dir="
        )


def plain(value: Any) -> Any:
    """Return an object after a round trip through JSON, without diffusers' own entries (keys that start with "_")."""
    return {k: v for k, v in json.loads(json.dumps(value)).items() if not k.startswith("_")}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one phrase for each difference of two nested objects: "key: OLD there, NEW now"."""
    result = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            result += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            there, now = ("null" if value is None else value for value in (a, b))  # as on the command line
            result.append(f"{prefix}{key}: {there} there, {now} now")
    return result
