"""Output of the commands: progress on terminals and in log files, pipes that close early, terminals without Unicode."""

import builtins
import codecs
import contextlib
import io
import os
import select
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm.auto import tqdm

LINE_SECONDS = 30.0
CLOSED = 128 + 13  # what shells report of a program that SIGPIPE ended
PLAIN = {"±": "+-", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "·": "-", "→": "->", "²": "2", "µ": "u"} | {
    **dict.fromkeys("‘’", "'"),
    **dict.fromkeys("“”", '"'),
}


def progress(
    total: int | None = None,
    desc: str | None = None,
    initial: int = 0,
    unit: str = "it",
    unit_scale: bool = False,
    disable: bool = False,
    line_seconds: float = LINE_SECONDS,
) -> tqdm:
    """A tqdm bar on a terminal or in a notebook; elsewhere plain lines on stderr.

    Args:
        total: steps until the end, None = not known. initial: steps done before.
        unit: of a step. unit_scale: with k, M, G.
        disable: shows nothing.
        line_seconds: seconds between two lines, at least. One more line tells how it ended.
    """
    options: Any = {"total": total, "desc": desc, "initial": initial, "unit": unit, "unit_scale": unit_scale}
    if disable or sys.stderr.isatty() or hasattr(builtins, "get_ipython"):
        return tqdm(disable=disable, dynamic_ncols=True, mininterval=1, **options)
    return _Lines(line_seconds, **options)


class _Lines(tqdm):
    """Progress in a log file: whole lines, at most one every `seconds`, and one at the end."""

    def __init__(self, seconds: float, **options: Any) -> None:
        self.seconds, self.due, self.closed = seconds, time.monotonic() + seconds, False
        # every update asks `refresh`; smoothing 0: the rate is the average since the start
        super().__init__(mininterval=0, miniters=1, smoothing=0, delay=1e-9, **options)

    def refresh(self, *ignored: Any, **options: Any) -> None:
        with self.get_lock():
            if time.monotonic() >= self.due:
                self.due = time.monotonic() + self.seconds
                self._write()

    def close(self) -> None:
        if not self.closed:
            self.closed = self.disable = True
            self._decr_instances(self)
            self._write()

    def clear(self, *ignored: Any, **options: Any) -> None:
        """Nothing: a log keeps its lines."""

    def _write(self) -> None:
        self.fp.write(f"{self._line()}\n")
        self.fp.flush()

    def _line(self) -> str:
        facts = self.format_dict
        percentage, count = "", "{n_fmt}"
        if self.total:
            percentage, count = "{percentage:.0f}% ", "{n_fmt}/{total_fmt}"
        clock = "{elapsed}<{remaining}" if self.total else "{elapsed}"
        form = f"{percentage}{count} [{clock}, {{rate_fmt}}{{postfix}}]"
        text = self.format_meter(**facts | {"prefix": "", "ncols": None, "bar_format": form})
        title = self.desc.removesuffix(": ")
        return f"{title}: {text}" if title else text


@contextlib.contextmanager
def quiet_pipes() -> Iterator[None]:
    """For an entry point, as a context manager or decorator: `| head` ends it without a word, with status 141.

    That is the status of a program that SIGPIPE ended. Only a closed stdout or stderr counts: a pipe of the program's
    own that breaks raises as ever. From here on a character that the output's encoding lacks is written as ASCII
    ("±" as "+-"), or "?".
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_plain.__name__)
    try:
        yield
        sys.stdout.flush()
    except BaseException as error:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        for stream in closed:  # what is left in its buffer would raise again when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        if closed and _comes_of_a_pipe(error):
            raise SystemExit(CLOSED) from None
        raise


def _is_closed(stream: TextIO) -> bool:
    """Whether nobody reads the stream's pipe any more."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # not a file
        return False
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _comes_of_a_pipe(error: BaseException | None) -> bool:
    """Whether a BrokenPipeError is the error, or what it was raised from or during."""
    while error is not None and not isinstance(error, BrokenPipeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Error handler of codecs: characters that cannot be written, in ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end


codecs.register_error(_plain.__name__, _plain)
