"""Opens files that chance has damaged: images, configurations, weights, annotations, archives; counts what goes wrong.

    python benchmarks/fuzz.py [--inputs 10000] [--minutes 30] [--only image …] [--seed 0]
    python benchmarks/fuzz.py --only image --input 1234        # one of them again, with its traceback

Each input is a function of its kind and number. It is opened in a process that may take 1 GB of memory beside what it
had: it is read, or refused in words (BadImage, UserError). Anything else is a fault: another exception, a process that
dies, more than ten seconds, an attempt to start a program or to reach the network. It ends by itself; the exit code is
1 where there was a fault.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

KINDS = ("image", "config", "weights", "coco", "voc", "yolo", "tar")
MEMORY = 2**30  # bytes that an input may take
LONG = 10.0  # seconds
_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "os.putenv")

_fork = multiprocessing.get_context("forkserver")
_fork.set_forkserver_preload(["benchmarks.fuzz_inputs"])


class Outcome(NamedTuple):
    """What became of an input."""

    word: str  # "read", "refused", or what went wrong, alike for alike causes
    seconds: float
    memory: float  # MB that it took at most


def made(kind: str, number: int, folder: Path) -> Path:
    """The file or folder of an input."""
    from benchmarks.fuzz_inputs import TARGETS

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return TARGETS[kind].make(Random(f"{kind} {number}"), folder)


def opened(kind: str, path: Path) -> str:
    """Open an input; "read" or "refused", or the exception as one word and the place in our code where it came from."""
    from benchmarks.fuzz_inputs import TARGETS

    try:
        TARGETS[kind].use(path)
    except TARGETS[kind].refusals as error:
        return "refused" if "\n" not in str(error) or kind == "config" else "a refusal of several lines"
    except BaseException as error:
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/ssl_vit/" in frame.filename]
        where = f"{ours[-1].filename.rpartition('/ssl_vit/')[2]}:{ours[-1].name}" if ours else "?"
        return f"{type(error).__name__} in {where}: {re.sub(r'[0-9]+', 'N', str(error))[:100]!r}"
    return "read"


def child(pipe: Connection, kind: str, folder: str) -> None:
    """Open inputs whose numbers come through the pipe, and send back what became of each."""
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    tried: list[str] = []
    sys.addaudithook(lambda event, args: tried.append(f"tries {event}{args[:1]}") if event in _FORBIDDEN else None)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # libtiff writes there
    made(kind, 0, Path(folder) / "input")  # the corpus, once
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + MEMORY, resource.RLIM_INFINITY))
    while True:
        number = pipe.recv()
        path = made(kind, number, Path(folder) / "input")
        tried.clear()
        Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
        before, start = _status("VmRSS"), time.monotonic()
        word = opened(kind, path)
        spent, memory = time.monotonic() - start, (_status("VmHWM") - before) / 1e6
        pipe.send(Outcome(tried[0] if tried else word, spent, memory))


def _status(name: str) -> int:
    """Bytes, as /proc has it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


class Tally:
    """What became of all inputs of a kind."""

    def __init__(self, kind: str) -> None:
        self.kind, self.words, self.first = kind, collections.Counter[str](), dict[str, int]()
        self.seconds, self.memory, self.slowest, self.largest = 0.0, 0.0, 0, 0

    def add(self, number: int, outcome: Outcome) -> None:
        word = outcome.word
        self.words[word] += 1
        if word not in ("read", "refused") and word not in self.first:
            self.first[word] = number
            print(f"FAULT {self.kind} --input {number}: {word}", flush=True)
        if outcome.seconds > self.seconds:
            self.seconds, self.slowest = outcome.seconds, number
        if outcome.memory > self.memory:
            self.memory, self.largest = outcome.memory, number

    def faults(self) -> int:
        return self.words.total() - self.words["read"] - self.words["refused"]

    def __str__(self) -> str:
        return (
            f"{self.kind:8} {self.words.total():6} inputs {self.words['read']:6} read {self.words['refused']:6} "
            f"refused {self.faults():4} faults   slowest {self.seconds:5.2f} s (--input {self.slowest})   "
            f"most memory {self.memory:6.0f} MB (--input {self.largest})"
        )


class Child:
    """A process that opens inputs, replaced where one kills or hangs it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.process = kind, folder, None

    def __call__(self, number: int) -> Outcome:
        if self.process is None:
            self._start()
        self.pipe.send(number)
        start = time.monotonic()
        if not self.pipe.poll(LONG + 5):
            return self._ended(f"hung for more than {LONG:.0f} s", start)
        try:
            outcome: Outcome = self.pipe.recv()
        except EOFError:
            self.process.join()
            return self._ended(f"the process died with {self.process.exitcode}", start)
        return (
            outcome if outcome.seconds < LONG else outcome._replace(word=f"took more than {LONG:.0f} s: {outcome.word}")
        )

    def _start(self) -> None:
        self.pipe, its = _fork.Pipe()
        self.process: Any = _fork.Process(
            target=child, args=(its, self.kind, str(self.folder / self.kind)), daemon=True
        )
        self.process.start()
        its.close()

    def _ended(self, word: str, start: float) -> Outcome:
        self.end()
        return Outcome(word, time.monotonic() - start, 0.0)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def fuzz(kinds: list[str], inputs: int, minutes: float, seed: int) -> list[Tally]:
    """Open so many inputs of all kinds together, in turn, until they are done or the time is up."""
    from benchmarks.fuzz_inputs import TARGETS

    folder, end = Path(tempfile.mkdtemp(prefix="fuzz-")), time.monotonic() + 60 * minutes
    tallies = [Tally(kind) for kind in kinds]
    shares = [TARGETS[kind].share for kind in kinds]
    counts = [round(inputs * share / sum(shares)) for share in shares]
    for tally, count, done in zip(tallies, counts, (sum(counts[: i + 1]) for i in range(len(counts))), strict=True):
        run = Child(tally.kind, folder)
        latest = end - 60 * minutes * (1 - done / sum(counts))  # each kind has its share of the time
        for number in range(seed, seed + count):
            if time.monotonic() > latest:
                break
            tally.add(number, run(number))
        run.end()
        print(tally, flush=True)
    shutil.rmtree(folder)
    return tallies


def again(kind: str, number: int) -> int:
    """Open one input here, and let what it raises be seen."""
    from benchmarks.fuzz_inputs import TARGETS

    path = made(kind, number, Path(tempfile.mkdtemp(prefix="fuzz-")) / "input")
    print(path)
    TARGETS[kind].use(path)
    return 0


def main() -> int:
    """Open inputs and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=30.0, help="no input is opened after so many")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="the number of the first input")
    parser.add_argument("--input", type=int, help="open this one alone, in this process")
    args = parser.parse_args()
    if args.input is not None:
        return again(args.only[0], args.input)
    tallies = fuzz(args.only, args.inputs, args.minutes, args.seed)
    faults = sum(tally.faults() for tally in tallies)
    hangs = sum(n for tally in tallies for word, n in tally.words.items() if "hung" in word or "took more" in word)
    total = sum(tally.words.total() for tally in tallies)
    print(f"{total} inputs, {faults} faults, of them {hangs} hangs; at most {max(t.memory for t in tallies):.0f} MB")
    for tally in tallies:
        for word, count in tally.words.most_common():
            if word not in ("read", "refused"):
                print(f"{count:5} {tally.kind} --input {tally.first[word]}: {word}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
