"""Files and folders that appear whole or not at all, their checksums, and locks that let one process at a time work."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ssl_vit import system
from ssl_vit.errors import UserError

PARTIAL = ".partial"  # how the name ends of a file or folder that is still being written

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of a disk that takes nothing more
_PLACE = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EIO, errno.ESTALE)
_LONGEST = 255  # bytes of a file's name
_CUT = 32  # characters, each of at most four bytes, that are left of a name that would become too long
_POLL = 0.2  # seconds between two looks at a lock that another process has

_log = logging.getLogger("ssl_vit")


def disk_problem(error: BaseException | None) -> str:
    """What is wrong with the disk, if that is behind an error, whichever library has raised it; "" if it isn't."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return f"{error.filename or 'a file'} can't be written: {error.strerror}"
        told = next((os.strerror(number) for number in _DISK if os.strerror(number) in str(error)), "")
        if told:
            return f"a file can't be written: {told}"
        error = error.__cause__ or error.__context__
    return ""


def place_problem(error: BaseException) -> str:
    """What stands where a file or a folder should be, or keeps us from it; "" where that is not behind an error."""
    named = isinstance(error, OSError) and error.errno in _PLACE and error.filename is not None
    return f"{os.fsdecode(error.filename)}: {error.strerror}" if named else ""  # type: ignore[attr-defined]


def room(folder: Path) -> int | None:
    """Bytes that are free on the disk of a folder; None where its file system doesn't say."""
    found = shutil.disk_usage(folder)
    return found.free if found.total else None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file in one moment: ``write`` fills a path beside it, which is synced and renamed over ``path``.

    A reader, a kill or a full disk never leaves half a file: the old one stays until the new one is complete.
    """
    staged = _beside(path)
    try:
        write(staged)
        with staged.open("rb+") as file:
            os.fsync(file.fileno())
        staged.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say of which file it has no room
        raise
    finally:
        staged.unlink(missing_ok=True)
    _sync(path.parent)


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Replace a file in one moment, as ``write_atomically`` does, where ``write`` wants an open file."""

    def fill(staged: Path) -> None:
        with staged.open("wb") as file:
            write(file)

    write_atomically(path, fill)


@contextmanager
def new_folder(folder: Path | str) -> Iterator[Path]:
    """A staging folder that becomes ``folder`` when the block ends well, and vanishes when it doesn't.

    Raises:
        UserError: ``folder`` exists.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already and is never overwritten; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(folder)
    staging.mkdir()
    try:
        yield staging
        for path in [*staging.iterdir(), staging]:
            _sync(path)
        staging.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # gone already when all went well


def _beside(path: Path) -> Path:
    tail = f".{os.getpid()}{PARTIAL}"
    fits = len(os.fsencode(path.name)) + len(tail) < _LONGEST
    return path.with_name(f".{path.name if fits else path.name[:_CUT]}{tail}")


def _sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk; Windows opens no folders, and sees to them itself."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """The hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def alone(lock: Path, what: str, *, wait: bool = True) -> Iterator[None]:
    """Inside, no other process holds this lock, and its file says who does: "pid 12 on host"; afterwards it is empty.

    One that is killed lets go of it, and its workers never have it. A file system that knows no locks goes by what the
    file says. what: is for messages; wait: until the other has ended, or raise UserError at once.
    """
    with lock.open("a+", encoding="utf-8", errors="replace") as file:
        spoken = False
        while (other := _in_the_way(file, lock, what)) is not None:
            if not wait:
                raise UserError(
                    f"{what}: another process is at work there ({other}); wait until it has ended, or stop it"
                )
            if not spoken:
                _log.info("%s: another process is at work there (%s); waiting until it has ended", what, other)
            spoken = True
            time.sleep(_POLL)
        if (last := _holder(file)) and last[1] != socket.gethostname():
            _log.warning(
                "%s: pid %d on %s was at work there and never said that it ended; see to it that it has", what, *last
            )
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _in_the_way(file: TextIO, lock: Path, what: str) -> str | None:
    """Who has the lock; None: this process, from now on."""
    try:
        system.lock(file.fileno())
    except OSError as error:
        holder = _holder(file)
        name = "pid {} on {}".format(*holder) if holder else "it has not said which"
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return name
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        if holder and _may_live(*holder):
            return f"{name}; this file system has no locks: if that process has ended, delete {lock}"
        _log.warning("%s: its file system has no locks; see to it that one process at a time works there", what)
    return None


def _holder(file: TextIO) -> tuple[int, str] | None:
    """The process and the host that a lock's file names."""
    file.seek(0)
    words = file.read(1000).split()
    return (int(words[1]), words[3]) if len(words) == 4 and words[1].isdecimal() else None


def _may_live(pid: int, host: str) -> bool:
    """Whether a process may still be at work; of another host's nothing is known."""
    if host != socket.gethostname():
        return True
    return system.lives(pid) and pid != os.getpid()
