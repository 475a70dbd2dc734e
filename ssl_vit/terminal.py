"""What is said to people: it outlives its reader, who may close the pipe (``2>&1 | head``) or the terminal."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a text, on stderr unless another stream is given; where nobody reads that any more, nothing happens."""
    stream = stream or sys.stderr
    try:
        print(text, file=stream, flush=True)
    except OSError:
        silence(stream)


def silence(stream: Any) -> None:
    """Send to nowhere what else is written to a stream, what it still holds too: the interpreter's last flush works."""
    with suppress(OSError, ValueError):  # it has no file, or is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Lasting:
    """A stream that outlives its reader, for those that write to it by themselves."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or do as if."""
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        """Flush, or do as if."""
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)


@contextmanager
def lasting() -> Iterator[None]:
    """Inside, both of the process's streams outlive their readers, whoever writes to them."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, Lasting(before[0])), cast(TextIO, Lasting(before[1]))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def open_closed_streams() -> None:
    """Let the standard streams that this process was started without (``2>&-``, some schedulers) lead nowhere.

    Else whatever file is opened next gets the number of one, with all that libraries print into it.
    """
    for name in ("stdin", "stdout", "stderr"):  # in this order, the lowest number that is free is the stream's own
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115  # stays open
            setattr(sys, name, nowhere)


_quiet = False


@contextmanager
def hushed(quiet: bool = True) -> Iterator[None]:
    """Inside, nothing is said on stderr but warnings and errors, where it is to be quiet."""
    global _quiet
    before, _quiet = _quiet, quiet
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Whether nothing is to be said but warnings and errors."""
    return _quiet


def is_plain() -> bool:
    """Whether what is said stays as it is, line by line, though a terminal could do more (https://no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def spoken() -> logging.Handler:
    """A handler that says on stderr what is logged."""
    handler = logging.StreamHandler(Lasting(sys.stderr))
    handler.setLevel(logging.WARNING if _quiet else logging.NOTSET)
    return handler


class LogFile(logging.FileHandler):
    """A log that goes without its file where that can't be written any more, and says so once."""

    _told = False

    def close(self) -> None:
        """Close the file; what it could not take has been said elsewhere."""
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging calls it so
        """Say what is wrong with the file; other mistakes are shown as logging does it."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            tell(f"{self.baseFilename} can't be written ({error.strerror}): what follows is only said here")
