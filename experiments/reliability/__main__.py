"""The drills' command: python -m experiments.reliability kills training --count 200"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from experiments import pages
from experiments.reliability.fuzz import TARGETS, fuzz
from experiments.reliability.kills import JOBS, drill
from experiments.reliability.live import soak_runner, soak_server
from experiments.reliability.soak import soak

SOAKS: dict[str, Callable[[float, str | None], dict[str, Any]]] = {
    "controller": soak,
    "runner": soak_runner,
    "server": soak_server,
}


def main() -> None:
    parser = pages.parser(__doc__)
    parser.prog = "python -m experiments.reliability"
    commands = parser.add_subparsers(dest="command", required=True)
    kills = commands.add_parser("kills", help="kill jobs at random moments; they must end with the same files")
    kills.add_argument("jobs", nargs="*", help=f"default: all of {', '.join(JOBS)}")
    mutations = commands.add_parser("fuzz", help="damage files and options; each must be refused or load")
    mutations.add_argument("targets", nargs="*", help=f"default: all of {', '.join([*TARGETS, 'options'])}")
    for command, count in ((kills, 100), (mutations, 1000)):
        command.add_argument("--count", type=int, default=count, help="trials of each (default: %(default)s)")
        command.add_argument("--seed", type=int, default=0)
    long = commands.add_parser("soak", help="run a controller, a runner or a server for long; nothing must grow")
    long.add_argument("what", nargs="?", default="controller", choices=list(SOAKS), help="default: %(default)s")
    long.add_argument("--minutes", type=float, default=60)
    long.add_argument("--pipeline", help="a folder; default: a small untrained pipeline")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "soak":
        print(json.dumps(SOAKS[options.what](options.minutes, options.pipeline)))
        return
    known = JOBS if options.command == "kills" else [*TARGETS, "options"]
    names = getattr(options, "jobs", None) or getattr(options, "targets", None) or list(known)
    if set(names) - set(known):
        sys.exit(f"error: must be of {', '.join(known)}; found {', '.join(names)}")
    wrong = 0
    for name in names:
        folder, began = Path(tempfile.mkdtemp(prefix="reliability_")), time.perf_counter()
        if options.command == "kills":
            result = drill(JOBS[name], folder, options.count, options.seed)
        else:
            result = fuzz(name, options.count, folder, options.seed)
            wrong += len(result["wrong"])
        print(json.dumps({**result, "seconds": round(time.perf_counter() - began)}), flush=True)
        shutil.rmtree(folder)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
