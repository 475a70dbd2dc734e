"""Everything that changes a process as a whole, and how each of it is switched off. Needs no torch.

In the process that calls ``pretrain`` or ``bench``:

- freed memory is kept until the process ends, pieces of up to 1 GB (``SSL_VIT_KEEP_MEMORY=0``: left to the C library).

In the ranks that a run starts, one for each device but the first:

- Linux kills them when the first one dies (``SSL_VIT_DIE_TOGETHER=0``: they end by themselves, or hang).

In the processes that read images (``data.workers=0``: there are none):

- they leave the group of processes that Ctrl-C reaches, and signals to the whole job are the main process's to handle
  (``SSL_VIT_OWN_GROUP=0``: they stay in it, and a signal ends them);
- they end within two seconds of the main process (``SSL_VIT_WATCH_MAIN=0``: as torch and Python end them);
- torch has one thread, and Pillow's warnings of odd files are not printed: the run names what can't be read. The
  command line leaves them unsaid too.

While a run is under way, SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are its own too: see ``ssl_vit.training.stop``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from types import TracebackType

from ssl_vit.system import lives

STOPS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]
"""The signals that end a run: of schedulers, of Ctrl-C, of a terminal that was closed."""
NOTICES = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
"""The signals that announce it, which schedulers send some time before they take a machine away."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
_KEPT = 1 << 30  # bytes, of one piece
_ONCE_KEPT = 1 << 25  # the most that glibc took before 2.35
_PDEATHSIG = 1  # of prctl


def wanted(effect: str) -> bool:
    """Whether an effect is not switched off by ``SSL_VIT_EFFECT=0`` in the environment."""
    return os.environ.get(f"SSL_VIT_{effect}") != "0"


def keep_memory() -> None:
    """Let what is freed stay with the process: the next step takes it again, and new pages cost 3 % of a step on a CPU.

    It lasts until the process ends, and only glibc has such a setting. ``SSL_VIT_KEEP_MEMORY=0`` leaves the C library
    as it is.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" and wanted("KEEP_MEMORY") else None
    if libc is not None and hasattr(libc, "mallopt"):
        if not libc.mallopt(_MMAP_THRESHOLD, _KEPT):
            libc.mallopt(_MMAP_THRESHOLD, _ONCE_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)


def die_with_parent() -> None:
    """Have Linux kill this process when its parent dies, so that a rank that a run has started never outlives it.

    Nothing is done under torchrun or Slurm, which end their processes themselves, nor with ``SSL_VIT_DIE_TOGETHER=0``.
    """
    launched = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys()
    if sys.platform == "linux" and not launched and wanted("DIE_TOGETHER"):
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def leave_pillow_unsaid() -> None:
    """Don't print Pillow's warnings, an image and process at a time, of tags that are wrong and the like."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def notices_wait() -> Iterator[None]:
    """Inside, a notice does not end this process, as it would while nobody listens."""
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in NOTICES} if mine else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def is_other_rank() -> bool:
    """Whether this process was started as one of several, and not as the first; Lightning looks in the same order."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
    return next((os.environ[name] for name in names if name in os.environ), "0") != "0"


def start_worker(main: int, _: int) -> None:
    """Make this process a reader of images for the process `main`: one thread, a group of its own, and it ends with it.

    Ctrl-C and signals to the run's group, or to each of its processes, are the main process's to handle, which finishes
    its step first. Torch ends a worker with its parent; where that is a forkserver, it would outlive a killed main
    process.
    """
    import torch  # the worker has it; a configuration error must not wait for it

    if wanted("OWN_GROUP"):
        if hasattr(os, "setpgid"):
            os.setpgid(0, 0)
        for number in (*STOPS, *NOTICES):
            signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    leave_pillow_unsaid()
    sys.excepthook = _says
    if wanted("WATCH_MAIN"):
        Thread(target=_end_with, args=(main,), daemon=True).start()


def _says(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Print an error of a thread that hands images over, unless the main process has gone in the midst of it."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, where)


def _end_with(main: int) -> None:
    while lives(main):
        time.sleep(2)
    os._exit(1)
