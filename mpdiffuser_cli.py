"""The installed command: mpdiffuser COMMAND [option=value ...]"""

import importlib
import sys

COMMANDS = {
    "train-vision": (
        "train_vision",
        "main",
        "train from pixels (for several processes: accelerate launch -m train_vision)",
    ),
    "train-state": (
        "train_state",
        "main",
        "train from states (for several processes: accelerate launch -m train_state)",
    ),
    "evaluate": ("evaluation.command", "main", "evaluate a pipeline in closed loop"),
    "collect": ("envs.collect", "command", "collect a dataset of pixels"),
    "datasets": ("envs.datasets.__main__", "command", "list, show, convert and download datasets"),
    "doctor": ("envs.doctor", "command", "what works on this machine, and how to mend the rest"),
    "export": ("mpdiffuser.export", "main", "write a pipeline's networks as ONNX or OpenVINO graphs"),
    "probe": ("vision.probe", "command", "measure what latents keep of the true state"),
}


def usage() -> str:
    """Return the text of `mpdiffuser --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {summary}" for name, (_, _, summary) in COMMANDS.items()]
    return "\n".join(["usage: mpdiffuser COMMAND ..., where COMMAND --help tells its options\n", *lines])


def main() -> None:
    """Run the command that the first word names."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    if words[0] == "--version":
        from mpdiffuser import __version__

        print(__version__)
        return
    if words[0] not in COMMANDS:
        sys.exit(f"error: {words[0]}: no such command\n{usage()}")
    module, function, _ = COMMANDS[words[0]]
    sys.argv = [f"mpdiffuser {words[0]}", *words[1:]]
    sys.exit(getattr(importlib.import_module(module), function)())


if __name__ == "__main__":
    main()
