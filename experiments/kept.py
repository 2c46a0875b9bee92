"""Measurements that take long, each kept in a file, so that a run that was cut off goes on."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpdiffuser.errors import InputError
from mpdiffuser.files import write_whole


def kept(file: Path, identity: dict[str, Any], measure: Callable[[], dict[str, Any]], option: str) -> dict[str, Any]:
    """What `measure` gives, with the identity and the date; from the file if it holds that already.

    Args:
        identity: of what was measured; JSON.
        option: the command's option that names the folder, for the error.

    Raises:
        InputError: if the file holds something else.
    """
    if file.exists():
        found = json.loads(file.read_text())
        if found["identity"] != identity:
            raise InputError(f"{file}: made with other settings; choose another {option}, or remove it")
        return found
    made = {"identity": identity, "date": str(datetime.date.today()), **measure()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(made))
    return json.loads(file.read_text())
