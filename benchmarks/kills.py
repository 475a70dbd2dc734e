"""Kills real runs with SIGKILL, resumes them, and compares what they end with, to the bit, with a run nobody killed.

    python benchmarks/kills.py [--kills 100] [--minutes 30] [--seed 0] [--only vit-1 …]

Four runs of 6 steps, which save after every second: a ViT and a network with batch norm, each in one process and in
two. Half of the kills come at random moments; the others are aimed by Python's audit events: just before (or up to
10 ms after) one of the operations on files by which a run reads the headers of its images ("scan"), writes its folder
("folder"), saves ("save"), exports ("export") or deletes an older run ("overwrite"). Of two processes one or both are
killed, and the other has to end by itself. Whoever types the same command with --resume, or, where there is nothing to
resume yet, the same command again, has to get there. It ends by itself; the exit code is 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: it has to compute alike in all runs
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

from tests import runs

SHORT = {"train__epochs": 2, "train__checkpoint_every": 2, "health__knn_every": 1.0, "data__kernels": "torch"}
RESNET = {"backbone__name": "resnet10t", "backbone__args": "{channels: [8, 8, 8, 8], stem_width: 8}"}
NETWORKS: dict[str, dict[str, object]] = {"vit": {}, "resnet": RESNET | {"backbone__drop_path": 0.0}}
KINDS = [f"{network}-{processes}" for processes in (1, 2) for network in NETWORKS]
PLACES = ("random", "save", "random", "export", "random", "overwrite", "random", "scan", "random", "folder")
LONG = 120.0  # seconds without any work after which a run counts as hung, and a tenth of those that any may take
ALONE = 120.0  # seconds within which a process has to follow the one that was killed


class Aim(NamedTuple):
    """The operation on files before which a process kills itself, counted within a place."""

    place: str
    number: int
    delay: float  # seconds after it


class Watch:
    """An audit hook that counts a run's operations on files by place, and carries out an aim."""

    def __init__(self, data: Path, out: Path, aim: Aim | None) -> None:
        self.data, self.out, self.aim, self.process = f"{data}/", f"{out}/", aim, os.getpid()
        self.counts: collections.Counter[str] = collections.Counter()
        self.begun = False  # the run's own first file is there: what is deleted from here on is its own

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        if os.getpid() != self.process or not isinstance(args[0], (str, bytes, os.PathLike)):
            return
        place = self._place(event, self._path(event, args))
        if place is None:
            return
        self.counts[place] += 1
        if self.aim is not None and (place, self.counts[place]) == self.aim[:2]:
            if self.aim.delay:
                threading.Timer(self.aim.delay, os.kill, (self.process, signal.SIGKILL)).start()
            else:
                os.kill(self.process, signal.SIGKILL)

    def _path(self, event: str, args: tuple[Any, ...]) -> str:
        path = os.fsdecode(args[0])
        folder = args[-1] if event in ("os.remove", "os.rmdir") else -1
        if isinstance(folder, int) and folder >= 0:  # rmtree deletes relative to an open folder
            with suppress(OSError):
                return os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        return os.path.abspath(path)

    def _place(self, event: str, path: str) -> str | None:
        if event == "open" and path.startswith(self.data):
            return "scan"
        if not f"{path}/".startswith(self.out):
            return None
        inside = path[len(self.out) :]
        self.begun |= event == "open" and inside in ("data.json", "config.yaml")
        if not self.begun and event in ("os.remove", "os.rmdir", "shutil.rmtree", "os.rename"):
            return "overwrite"
        return "save" if inside.startswith("checkpoints") else "export" if "export" in inside else "folder"


def child(argv: list[str], log: str, environment: dict[str, str], watched: tuple[Path, Path, Aim | None]) -> None:
    """Run a command as a process of its own: what it prints goes to the log, what it did to files to LOG.counts."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from ssl_vit.cli import main

    multiprocessing.set_start_method("fork", force=True)  # as in a run of its own: else its workers import all anew
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # read before the environment was changed
    watch = Watch(*watched)
    if not rank_zero_only.rank:
        sys.addaudithook(watch)
    code = 1
    try:
        code = main(argv)
    finally:
        if watch.aim is None and not rank_zero_only.rank:
            Path(f"{log}.counts").write_text(json.dumps(watch.counts))
    sys.exit(code)


class Run:
    """One command, in one process or in two that find each other as torchrun's do."""

    def __init__(self, argv: list[str], kind: str, data: Path, out: Path, log: Path, aim: Aim | None = None) -> None:
        world = int(kind[-1])
        self.log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
        shared |= {"TORCHELASTIC_RUN_ID": "kills", "LOCAL_WORLD_SIZE": str(world)}
        self.ranks: list[ForkServerProcess] = []
        for rank in range(world):
            mine = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
            args = (argv, str(log), mine, (data, out, aim))
            self.ranks.append(runs.process_of(child, *args))

    def wait(self, seconds: float = LONG) -> bool:
        """Whether all processes have ended in time."""
        return self._within(seconds, all)

    def one_ended(self) -> bool:
        """Whether one of the processes has ended in time."""
        return self._within(LONG, any)

    def _within(self, seconds: float, of_them: Callable[[Iterable[bool]], bool]) -> bool:
        """Whether they ended before so many seconds without work: on a machine that others use, work takes long."""
        last, since, end = -1, time.monotonic(), time.monotonic() + 10 * seconds
        while not (ended := of_them(rank.exitcode is not None for rank in self.ranks)):
            time.sleep(0.02)
            now = time.monotonic()
            if (worked := self._worked()) > last + 10:  # hundredths of a second
                last, since = worked, now
            if now > since + seconds or now > end:
                break
        return ended

    def _worked(self) -> int:
        """The processors' time of all its processes, in ticks."""
        total = 0
        for rank in self.ranks:
            with suppress(OSError):
                fields = Path(f"/proc/{rank.pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(map(int, fields[11:15]))
        return total

    def killed(self) -> bool:
        return any(rank.exitcode == -signal.SIGKILL for rank in self.ranks)

    def end(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.join()

    def left_behind(self) -> int:
        """Processes that read images and outlive theirs by more than ten seconds."""
        end = time.monotonic() + 10
        while (left := self._writing()) and time.monotonic() < end:
            time.sleep(0.05)
        for process in left:
            with suppress(OSError):
                os.kill(int(process.name), signal.SIGKILL)
        return len(left)

    def _writing(self) -> list[Path]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "fd" / "2").samefile(self.log):
                    found.append(process)
        return found


class Whole(NamedTuple):
    """A run that nobody killed."""

    out: Path
    seconds: float
    counts: dict[str, int]


class Kills:
    """All runs and what became of them."""

    def __init__(self, folder: Path, kinds: list[str], kills: int, minutes: float, seed: int) -> None:
        self.folder, self.kills, self.end = folder, kills, time.monotonic() + 60 * minutes
        self.data, self.draw, self.numbers = folder / "images", random.Random(seed), itertools.count(1)
        pictures(self.data)
        self.killed: collections.Counter[str] = collections.Counter()  # by kind and place
        self.late = 0  # the run had ended before its kill
        self.ended = 0  # processes of a run that had not found each other when one was killed
        self.compared = 0
        self.made_good = 0  # kills after which the run got to the same weights
        self.faults: list[str] = []
        self.runs = 0
        self.older = self.folder / "older"  # what --overwrite deletes
        self.whole = {kind: self._whole(kind) for kind in kinds}

    def command(self, kind: str, out: Path, *more: str) -> list[str]:
        network, world = kind.split("-")
        return runs.command(self.data, out, *more, **(SHORT | NETWORKS[network] | {"train__devices": int(world)}))

    def _whole(self, kind: str) -> Whole:
        out, log = self.folder / f"whole-{kind}", self.folder / f"whole-{kind}.log"
        start = time.monotonic()
        run = Run(self.command(kind, out), kind, self.data, out, log)
        if not run.wait() or any(rank.exitcode for rank in run.ranks):
            run.end()
            raise SystemExit(f"{kind}: the run that nobody kills fails:\n{log.read_text()}")
        if not self.older.exists():
            shutil.copytree(out, self.older)
            shutil.copytree(out / "export", self.older / "checkpoints" / "parts.ckpt")  # a folder, as of a sharded run
        counts = json.loads(Path(f"{log}.counts").read_text())
        print(f"{kind}: {time.monotonic() - start:.1f} s, operations on files: {counts}", flush=True)
        return Whole(out, time.monotonic() - start, counts)

    def chains(self) -> None:
        """Kill and resume, each run up to three times, until there were enough kills or the time is up."""
        for kind, place in zip(itertools.cycle(self.whole), _rotated(len(self.whole)), strict=False):
            if self.killed.total() >= self.kills or time.monotonic() > self.end:
                return
            number = next(self.numbers)
            self._chain(kind, place, self.folder / f"run-{number}", self.folder / f"run-{number}.log")

    def _chain(self, kind: str, place: str, out: Path, log: Path) -> None:
        self.runs += 1
        again = ["--overwrite"] if place == "overwrite" else []
        if again:
            shutil.copytree(self.older, out)
        argv, faults, before = self.command(kind, out, *again), len(self.faults), self.killed.total()
        for turn in range(min(self.draw.randint(1, 3), self.kills - before)):
            at = place if turn == 0 else self.draw.choice(("random", "save", "export"))
            killed = self._kill(argv, kind, at, out, log)
            argv = self._next(kind, out, again)
            if not killed:
                break
        if self._finish(argv, kind, out, log):
            self.made_good += self.killed.total() - before
        if len(self.faults) == faults:
            shutil.rmtree(out)
            for file in (log, Path(f"{log}.counts")):
                file.unlink(missing_ok=True)
        else:
            print(f"FAULT {self.faults[-1]} ({place}; {out}, {log})", flush=True)

    def _next(self, kind: str, out: Path, again: list[str]) -> list[str]:
        """What one types after a kill: --resume where there is a run, else the same once more."""
        begun = (out / "config.yaml").exists() and not again
        return self.command(kind, out, *(["--resume"] if begun else again))

    def _kill(self, argv: list[str], kind: str, place: str, out: Path, log: Path) -> bool:
        """Start and kill; whether it was killed before it ended."""
        whole = self.whole[kind]
        counts = whole.counts | {"overwrite": 40, "random": 1}
        delay = self.draw.choice((0.0, self.draw.uniform(0, 0.01)))
        aim = None if place == "random" else Aim(place, self.draw.randint(1, counts[place]), delay)
        started, run = time.time(), Run(argv, kind, self.data, out, log, aim)
        if aim is None:
            time.sleep(self.draw.uniform(0, whole.seconds))
            victims = run.ranks if len(run.ranks) == 1 else self.draw.choice([run.ranks, run.ranks[:1], run.ranks[1:]])
            for victim in victims:
                victim.kill()
        if not run.one_ended():
            self.faults.append(f"{kind}: hung for more than {LONG:.0f} s")
        elif not run.wait(ALONE):
            metrics = out / "metrics.jsonl"
            if metrics.exists() and metrics.stat().st_mtime > started:
                self.faults.append(f"{kind}: a process outlived the one that was killed by more than {ALONE:.0f} s")
            else:  # it looks for one that has not come yet: torchrun ends it
                self.ended += 1
        killed = run.killed()
        run.end()
        if left := run.left_behind():
            self.faults.append(f"{kind}: {left} processes were left behind")
        if killed:
            self.killed[f"{kind} {place}"] += 1
            return True
        self.late += 1
        return False

    def _finish(self, argv: list[str], kind: str, out: Path, log: Path) -> bool:
        """Go on with the run to its end; whether it got to the weights of the run that nobody killed."""
        run = Run(argv, kind, self.data, out, log)
        run.one_ended()
        ended = any(rank.exitcode for rank in run.ranks) or run.wait()  # torchrun ends the others where one fails
        codes = [rank.exitcode for rank in run.ranks if rank.exitcode]
        run.end()
        if not ended:
            self.faults.append(f"{kind}: the last run hung")
        elif codes:
            said = log.read_text().splitlines()
            self.faults.append(f"{kind}: {' '.join(argv[-1:])} ends with {codes}: {said[-1] if said else ''}")
        else:
            self.compared += 1
            self.faults += [f"{kind}: {fault}" for fault in differences(self.whole[kind].out, out)]
        run.left_behind()
        return ended and not codes and runs.weights(out) == runs.weights(self.whole[kind].out)

    def told(self) -> str:
        """The figures."""
        by_place: collections.Counter[str] = collections.Counter()
        by_kind: collections.Counter[str] = collections.Counter()
        for key, number in self.killed.items():
            kind, place = key.split()
            by_place[place] += number
            by_kind[kind] += number
        lines = [
            f"{self.killed.total()} kills of {self.runs} runs; {self.late} more came after the run's end",
            f"{self.made_good} of {self.killed.total()} kills were made good: the same weights in the end, to the bit",
            f"{self.ended} times a process was ended that still looked for the killed one, as torchrun does",
            "by place: " + ", ".join(f"{place} {number}" for place, number in by_place.most_common()),
            "by run: " + ", ".join(f"{kind} {number}" for kind, number in by_kind.most_common()),
            f"{self.compared} runs were finished and compared with one that nobody killed: weights, metrics, files",
            f"{len(self.faults)} faults",
            *(f"  {fault}" for fault in self.faults),
        ]
        return "\n".join(lines)


def _rotated(kinds: int) -> itertools.chain[str]:
    """Places so that every kind of run meets every place, however many kinds there are."""
    return itertools.chain.from_iterable(itertools.repeat(place, kinds) for place in itertools.cycle(PLACES))


def differences(whole: Path, out: Path) -> list[str]:
    """What differs between two finished runs: weights to the bit, metrics to the last digit, names of files."""
    found = []
    if runs.weights(out) != runs.weights(whole):
        found.append("other weights")
    if runs.rows(out) != runs.rows(whole):
        found.append("other metrics")
    names, expected = (files_of(folder) for folder in (out, whole))
    if names != expected:
        found.append(f"other files: {sorted(names ^ expected)}")
    return found


def files_of(folder: Path) -> set[str]:
    """Everything below a folder but what TensorBoard has, which begins a file each time."""
    found = (path.relative_to(folder) for path in folder.rglob("*"))
    return {path.as_posix() for path in found if path.parts[0] != "tensorboard"}


def pictures(folder: Path, number: int = 24) -> None:
    """Small noisy pictures, a file each."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for index in range(number):
        height, width = draw.integers(36, 80, 2)
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{index:03}.png")


def main() -> int:
    """Kill, resume, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=30.0, help="no run is started after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="NETWORK-PROCESSES")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    kills = Kills(folder, args.only, args.kills, args.minutes, args.seed)
    kills.chains()
    print(kills.told())
    if not kills.faults:
        shutil.rmtree(folder)
    return 1 if kills.faults else 0


if __name__ == "__main__":
    sys.exit(main())
