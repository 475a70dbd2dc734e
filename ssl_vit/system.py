"""What one system has and another lacks: locks on files, the end of a process, memory. Needs no torch.

Linux and macOS have POSIX's calls. On Windows, psutil knows of processes and memory, and locks are the C library's.
"""

from __future__ import annotations

import errno
import os
import sys

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]  # looked at by every function below

_BEHIND = 1 << 30  # bytes: where Windows locks one, far behind what a file says, which so can still be read


def lock(descriptor: int) -> None:
    """Take an open file's lock, which is let go of when the file is closed or the process ends.

    Raises:
        OSError: EACCES or EAGAIN where another process has it; ENOLCK and the like where there are no locks.
    """
    if fcntl is not None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    try:
        import msvcrt
    except ImportError:
        raise OSError(errno.ENOLCK, "this system has no locks") from None
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _BEHIND, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)


def lives(pid: int) -> bool:
    """Whether a process of this machine is there, also one of another user."""
    if os.name == "nt":  # where signal 0 would end it
        import psutil

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def most_memory() -> int:
    """The most bytes of memory that this process has held."""
    if resource is None:
        import psutil

        held = psutil.Process().memory_info()
        return int(getattr(held, "peak_wset", held.rss))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def machine_memory() -> int:
    """The bytes of memory that this machine has."""
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    import psutil

    return int(psutil.virtual_memory().total)


def soft_and_hard_limit(name: str) -> tuple[int, int] | None:
    """A limit of POSIX, "RLIMIT_AS" or "RLIMIT_NOFILE", as it is and as it may become; None: there is none.

    A soft one that is -1 is unlimited.
    """
    if resource is None:
        return None
    soft, hard = resource.getrlimit(getattr(resource, name))
    endless = resource.RLIM_INFINITY
    return -1 if soft == endless else soft, -1 if hard == endless else hard
