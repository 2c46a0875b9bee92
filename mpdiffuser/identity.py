"""What a training depends on. A folder that holds another training is refused, never overwritten.

An identity is a dict of everything that the outcome depends on: the dataset's checksum, the options that the model may
use, the training settings, the model's configuration. A resume compares it with the one in the checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from mpdiffuser.errors import InputError
from mpdiffuser.files import read_json


def check_run(folder: Path, identity: dict[str, Any]) -> None:
    """Raises InputError if a folder holds a run whose identity differs in one of these keys. Reads, never writes."""
    last = folder / "last"
    state = folder / last.read_text(errors="replace").strip() / "state" / "trainer.json" if last.exists() else last
    if state.is_file() and state != last:
        found = read_json(state).get("identity")
        known = {key: found.get(key) for key in identity} if isinstance(found, dict) else {}
        refuse_other(folder, known, plain(identity))


def refuse_other(folder: Path, found: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises InputError unless the two identities are the same."""
    different = differences(found, identity)
    if different:
        raise InputError(
            f"{folder}: holds a run with other settings ({'; '.join(different)}); choose another output_dir="
        )


def plain(value: Any) -> Any:
    """An object after a round trip through JSON, without diffusers' own entries."""
    return {k: v for k, v in json.loads(json.dumps(value)).items() if not k.startswith("_")}


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two nested objects differ, a phrase each: "key: OLD there, NEW now"."""
    result = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            result += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            result.append(f"{prefix}{key}: {a} there, {b} now")
    return result
