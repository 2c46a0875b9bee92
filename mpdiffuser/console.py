"""Output of the commands: progress bars, progress lines in log files, closed pipes, terminals without Unicode."""

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
CLOSED = 128 + 13  # exit status of a program that SIGPIPE ends
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
    """Return a tqdm bar on a terminal or in a notebook, and plain lines on stderr elsewhere.

    Args:
        total: number of steps; None: not known.
        desc: title of the bar.
        initial: number of steps that are already done.
        unit: name of a step.
        unit_scale: whether large numbers are printed with k, M, G.
        disable: whether nothing is printed.
        line_seconds: smallest time between two lines, in seconds. `close` prints one more line.
    """
    options: Any = {"total": total, "desc": desc, "initial": initial, "unit": unit, "unit_scale": unit_scale}
    if disable or sys.stderr.isatty() or hasattr(builtins, "get_ipython"):
        return tqdm(disable=disable, dynamic_ncols=True, mininterval=1, **options)
    return _Lines(line_seconds, **options)


class _Lines(tqdm):
    """Progress in a log file: at most one line every `seconds`, and one line at the end."""

    def __init__(self, seconds: float, **options: Any) -> None:
        self.seconds, self.due, self.closed = seconds, time.monotonic() + seconds, False
        # every update calls `refresh`; smoothing 0: the rate is the average since the start
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
        """Do nothing, since a log file keeps its lines."""

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
    """Context manager or decorator for an entry point. After `| head` closes the pipe, it exits with status 141.

    The exit prints no message; 141 is the status of a program that SIGPIPE ends. This applies only to a closed stdout
    or stderr. Errors of other pipes are raised. stdout and stderr also get an error handler: it replaces a character
    that the output's encoding does not have by ASCII ("±" by "+-") or by "?".
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_plain.__name__)
    try:
        yield
        sys.stdout.flush()
    except BaseException as error:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        for stream in closed:  # Python would raise again at exit when it flushes the buffer
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        if closed and _comes_of_a_pipe(error):
            raise SystemExit(CLOSED) from None
        raise


def _is_closed(stream: TextIO) -> bool:
    """Whether the reading end of the stream's pipe is closed."""
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # not a file
        return False
    poll = select.poll()
    poll.register(number, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _comes_of_a_pipe(error: BaseException | None) -> bool:
    """Whether the error, or an error in its chain of causes and contexts, is a BrokenPipeError."""
    while error is not None and not isinstance(error, BrokenPipeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Error handler for codecs: replaces characters that cannot be encoded by ASCII."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end


codecs.register_error(_plain.__name__, _plain)
