"""The other processes of the same run: which one this is, and what becomes of it when another is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import DistError

from ssl_vit.errors import RunFailed, StoppedError, UserError
from ssl_vit.terminal import tell

_ANSWER = 5  # seconds in which ranks that are left say so
_GRACE = 4 * _ANSWER  # seconds in which the first rank ends by itself where another has

_children: list[subprocess.Popen[Any]] = []  # the ranks that this process has started


def rank() -> int:
    """This process's place among all, as Lightning reads it from the environment."""
    return int(getattr(rank_zero_only, "rank", None) or 0)


def check_startable(devices: int) -> None:
    """UserError where Lightning would have to start this program again, once a device, and there is no such file."""
    started = {"LOCAL_RANK", "SLURM_PROCID"} & os.environ.keys()
    if devices > 1 and not started and sys.modules["__main__"].__spec__ is None and not os.path.isfile(sys.argv[0]):
        raise UserError(
            f"{devices} devices: the program is started once more for each of them, and this one is no file; write it "
            "to a file and run that, or set train.devices to 1"
        )


def same_images(fabric: Fabric, fingerprint: Mapping[str, int | str]) -> None:
    """RunFailed where the processes of a run have found different images: each learns from a part of the same order.

    Called on all ranks together, so that all of them end.
    """
    if fabric.world_size == 1:
        return
    found: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, dict(fingerprint))
    other = next((number for number, its in enumerate(found) if its != found[0]), None)
    if other is not None:
        raise RunFailed(
            f"the processes of this run have different images (0: {found[0]}, {other}: {found[other]}); give every "
            "machine the same ones, and choose or shuffle a dataset with the same seed in every process"
        )


def lost_rank(error: RuntimeError, minutes: float) -> RunFailed | None:
    """What to tell the user if this is a collective's error about another process that is gone or gives no answer.

    minutes: how long was waited for it. Those that are left tell each other so, and who doesn't is the one. The first
    says which, and the others end without a word, unless it is the first.
    """
    if not (isinstance(error, DistError) or "gloo/transport" in str(error)):
        return None
    lost = _lost(rank(), torch.distributed.get_world_size())
    if lost is None:
        time.sleep(_ANSWER)  # for the first one to say it, before it sees that this one has ended
        raise SystemExit(RunFailed.exit_code)
    names = f"rank {' and '.join(map(str, lost))}" if lost else "one that answers again by now"
    if "timed out" in str(error).lower():
        how = f"no answer for {minutes:g} minutes; if it was only slow, raise train.timeout"
    else:
        how = "often because memory ran out; its own error, if it had one, is above"
    failure = RunFailed(f"another process of this run was lost: {names} ({how}); go on with --resume")
    if lost == [0] and _is_child():
        tell(f"ssl-vit: error: {failure}")
        os.kill(os.getppid(), getattr(signal, "SIGKILL", signal.SIGTERM))  # it would stay, with its lock and its memory
        os._exit(RunFailed.exit_code)
    return failure


def _lost(me: int, world: int) -> list[int] | None:
    """The ranks that don't say that they have lost others; None where the first one says who they are.

    A thread asks, as a call to the store of a process that was stopped never comes back.
    """
    found: list[list[int] | None] = []
    asking = Thread(target=lambda: found.append(_ask(me, world)), daemon=True)
    asking.start()
    asking.join(3 * _ANSWER)
    return found[0] if found else [0]


def _ask(me: int, world: int) -> list[int] | None:
    store, key = torch.distributed.distributed_c10d._get_default_store(), "ssl_vit/lost/{}".format
    try:
        store.set(key(me), "")
        if me > 0:
            return None if _within(2 * _ANSWER, lambda: store.check([key("said")])) else [0]
        lost = [*range(1, world)]

        def found() -> bool:
            """Whether all have answered, or it is known which has ended."""
            ended = [number for number, child in enumerate(_children, 1) if child.poll()]
            lost[:] = ended or [other for other in lost if not store.check([key(other)])]
            return bool(ended) or not lost

        _within(_ANSWER, found)
        store.set(key("said"), "")
        return lost
    except RuntimeError:  # the store was the first one's
        return [0]


def _within(seconds: float, happened: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _is_child() -> bool:
    """Whether the first rank has started this process."""
    external = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys()
    return rank() > 0 and not external and os.environ.get("NODE_RANK", "0") == "0"


def watch(child_processes: list[subprocess.Popen[Any]]) -> None:
    """End this process, the first of its machine, some time after one that it has started was lost, and say which.

    In place of Lightning's observer, which kills it without a word, even while it says what has happened or saves.
    """
    _children[:] = child_processes
    Thread(target=_observe, args=(child_processes,), daemon=True).start()


def _observe(children: list[subprocess.Popen[Any]]) -> None:
    ended: dict[int, int] = {}
    while not ended:
        time.sleep(1)
        codes = {number: child.poll() for number, child in enumerate(children, rank() + 1)}
        ended = {number: code for number, code in codes.items() if code}
        if all(code == 0 for code in codes.values()):
            return
    number, code = next(iter(ended.items()))
    time.sleep(_GRACE * (6 if code == StoppedError.exit_code else 1))  # the first one may have Slurm to ask
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    tell(f"ssl-vit: error: another process of this run was lost: rank {number} ({how}); go on with --resume")
    for child in children:
        child.kill()
    os._exit(RunFailed.exit_code)
