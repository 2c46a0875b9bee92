"""The installed command: mpdiffuser COMMAND [option=value ...]"""

import difflib
import importlib
import sys

from mpdiffuser.commands import entry_point
from mpdiffuser.errors import InputError

LAUNCH = "for several processes: accelerate launch --no_python mpdiffuser"
COMMANDS = {  # name -> module whose `main` runs the command, summary
    "train-vision": ("train_vision", f"train from pixels ({LAUNCH} train-vision ...)"),
    "train-state": ("train_state", f"train from states ({LAUNCH} train-state ...)"),
    "evaluate": ("evaluation.command", "evaluate a pipeline in closed loop"),
    "compare": ("evaluation.runs", "compare finished runs: tables over seeds and options, and a figure"),
    "adapt": ("evaluation.adapt", "adapt a pipeline to a changed robot, from play data"),
    "collect": ("envs.collect_command", "collect a dataset of pixels"),
    "datasets": ("envs.datasets.__main__", "list, show, convert and download datasets"),
    "doctor": ("envs.doctor", "what works on this machine, and how to mend the rest"),
    "export": ("mpdiffuser.export", "write the whole policy as one ONNX or OpenVINO graph"),
    "serve": ("mpdiffuser.serve", "answer observations over a socket, of several robots at once"),
    "probe": ("vision.probe", "measure what latents keep of the true state"),
}


def usage() -> str:
    """Return the text of `mpdiffuser --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(["usage: mpdiffuser COMMAND ..., where COMMAND --help tells its options\n", *lines])


@entry_point
def main() -> int | None:
    """Run the command that is the first argument, and return its exit status.

    Raises:
        InputError: for an unknown command.
    """
    word, *rest = sys.argv[1:] or ["--help"]
    if word in ("-h", "--help"):
        print(usage())
        return 0
    if word == "--version":
        from mpdiffuser import __version__

        print(__version__)
        return 0
    if word not in COMMANDS:
        near = difflib.get_close_matches(word, COMMANDS, 1, 0)
        raise InputError(f"{word}: no such command; nearest: {near[0]}; all: {', '.join(COMMANDS)}")
    sys.argv = [f"mpdiffuser {word}", *rest]
    return importlib.import_module(COMMANDS[word][0]).main()


if __name__ == "__main__":
    sys.exit(main())
