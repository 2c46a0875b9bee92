"""What the experiments' commands and pages share: options, the line that names the machine, tables in Markdown."""

import argparse
import datetime
from collections.abc import Iterable, Sequence
from pathlib import Path

from mpdiffuser.machine import available_cores, cpu_name

DOCS = Path(__file__).parent.parent / "docs"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Options of a command; its help begins with the module's text `doc`."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def run_options(parser: argparse.ArgumentParser, name: str, command: str, seeds: Sequence[int] = (0, 1)) -> None:
    """Add --seeds, --folder, --page and --set, of an experiment that trains with a command such as train_state.py."""
    parser.add_argument("--seeds", nargs="*", type=int, default=[*seeds], help="of the training and of drawn data")
    parser.add_argument("--folder", type=Path, default=Path("results") / name, help="of data and runs")
    parser.add_argument("--page", type=Path, default=DOCS / f"{name}.md")
    parser.add_argument("--set", nargs="*", default=[], help=f"options of {command}, such as horizon=32")


def training_options(args: argparse.Namespace) -> list[str]:
    """The options of a training command that --data-dir and --set give."""
    return [*([f"data_dir={args.data_dir}"] if args.data_dir else []), *args.set]


def written_by(name: str, cores: str = "shared cores", measured_on: str | None = None) -> str:
    """The beginning of a page: the command, the day and the machine.

    Args:
        measured_on: the processors of results from several machines; None: this machine's processor.
    """
    today, cpus = datetime.date.today(), f"; measured on {measured_on}" if measured_on else f", {cpu_name()}"
    return f"Written by `python -m experiments.{name}` on {today}{cpus}, {available_cores()} {cores}"


def row(cells: Iterable[object]) -> str:
    """A row of a table in Markdown, with its line end."""
    return f"| {' | '.join(map(str, cells))} |\n"


def table(columns: Sequence[object], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    return row(columns) + "|---" * len(columns) + "|\n" + "".join(map(row, rows))
