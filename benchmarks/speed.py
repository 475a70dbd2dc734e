"""How fast we are beside the peers: every row of the speed table that a CPU can answer, as a ratio in alternating runs.

    python benchmarks/speed.py [--rows NAME …] [--rounds 4] [--photos DIR] [--peers DIR] [--dino CHECKOUT] [--json FILE]

Every measurement is a fresh process on one thread; counted is CPU time, of workers too, so that other programs may run.
In a round ours and the peer follow each other at once, in turns the one or the other first; a row is the median of the
ratios of its rounds. Peers on PyPI are installed into environments below --peers; official DINO (Apache-2.0) is run
from a checkout: git clone https://github.com/facebookresearch/dino. All are set to DINO's own recipe, see
benchmarks/peers/recipe.py, and each trains as its own command, loop or class does. Without --photos, images are 500 x
375 parts of scikit-learn's two sample photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from data import photographs
from peers.environments import interpreter

Found = dict[str, float]
Pairs = list[tuple[Found, Found]]
HERE = Path(__file__).parent
DRIVERS = {  # whose -> driver, environment
    "ours": ("ours.py", None),
    "lightly-train": ("lightly_train_pretrain.py", "lightly-train"),
    "lightly loop": ("lightly_loop.py", "lightly-train"),
    "stable-pretraining": ("stable_dino.py", "stable-pretraining"),
    "official DINO": ("official_dino.py", None),
}


@dataclass(frozen=True)
class Row:
    """Ours against a peer's: how many times quicker, or for memory, of which less is better, how much as a share."""

    title: str
    what: str  # a kind of measurement that drivers know, or another script's
    way: str  # precision
    peer: str
    must: float
    stretch: float
    key: str = "ms"

    def ratio(self, ours: Found, theirs: Found) -> float:
        """Of one round."""
        return ours[self.key] / theirs[self.key] if self.key == "net_mb" else theirs[self.key] / ours[self.key]

    def reaches(self, ratio: float, goal: float) -> bool:
        """Whether that is enough."""
        return ratio <= goal if self.key == "net_mb" else ratio >= goal


BF16, FP32 = "bf16-mixed", "32-true"
ROWS = {
    "step": Row("step, bf16", "step", BF16, "lightly-train", 1.35, 1.6),
    "memory": Row("step, bf16, net peak memory", "step", BF16, "lightly-train", 0.75, 0.6, "net_mb"),
    "step-dino": Row("step, bf16", "step", BF16, "official DINO", 1.1, 1.3),
    "step-lightly": Row("step, bf16", "step", BF16, "lightly loop", 2.0, 2.4),
    "step-stable": Row("step, bf16", "step", BF16, "stable-pretraining", 1.3, 1.5),
    "step-fp32": Row("step, fp32", "step", FP32, "lightly-train", 1.05, 1.2),
    "run": Row("end to end, bf16, one worker", "run", BF16, "lightly-train", 1.3, 1.55),
    "update": Row("clip, optimiser, teacher, 27 M", "update", FP32, "official DINO", 3.0, 5.0),
}


@dataclass(frozen=True)
class Bench:
    """Where everything is, and what has been measured."""

    photos: Path
    peers: Path
    dino: Path
    rounds: int
    known: dict[tuple[str, str, str], Pairs] = field(default_factory=dict)

    def pairs(self, row: Row) -> Pairs:
        """Ours and the peer's of every round; rows of the same measurement share them."""
        key = (row.what, row.way, row.peer)
        if key not in self.known:
            self.known[key] = [self.pair(row, number) for number in range(self.rounds)]
        return self.known[key]

    def pair(self, row: Row, number: int) -> tuple[Found, Found]:
        """Of one round, in turns the one or the other first."""
        order = ("ours", row.peer) if number % 2 == 0 else (row.peer, "ours")
        found = {whose: self.one(whose, row) for whose in order}
        return found["ours"], found[row.peer]

    def one(self, whose: str, row: Row) -> Found:
        """A measurement in a fresh process."""
        driver, environment = DRIVERS[whose]
        python = interpreter(environment, self.peers) if environment else sys.executable
        folder = self.dino if whose == "official DINO" else self.photos
        if whose == "official DINO" and not (folder / "main_dino.py").exists():
            raise SystemExit(f"{folder}: not there; git clone https://github.com/facebookresearch/dino {folder}")
        home = self.peers / "home"  # whatever they keep for themselves
        home.mkdir(parents=True, exist_ok=True)
        quiet = {"OMP_NUM_THREADS": "1", "HOME": str(home), "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
        line = [python, HERE / "peers" / driver, row.what, row.way, folder.resolve()]
        result = subprocess.run(line, capture_output=True, text=True, env=os.environ | quiet, cwd=home)
        if result.returncode:
            raise SystemExit(f"{whose}, {row.what}: {result.stderr[-3000:]}")
        found: Found = json.loads(next(line for line in result.stdout.splitlines() if line.startswith('{"ms"')))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "ssl_vit" / "peers")
    parser.add_argument("--dino", type=Path, help="default: dino in the folder of the peers")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    print(f"medians of {args.rounds} rounds; load {os.getloadavg()[1]:.1f}\n{HEAD}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        photos = args.photos or photographs(Path(folder))
        bench = Bench(photos, args.peers, args.dino or args.peers / "dino", args.rounds)
        table = {name: measured(ROWS[name], bench) for name in args.rows}
    print(f"load {os.getloadavg()[1]:.1f}")
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")


HEAD = f"{'':31} {'against':18} {'ours':>8} {'theirs':>8}  {'ratio':>5} {'of rounds':>13}  must stretch"


def measured(row: Row, bench: Bench) -> dict[str, object]:
    """A row's medians, told at once."""
    pairs = bench.pairs(row)
    ratios = sorted(row.ratio(*pair) for pair in pairs)
    ours, theirs = (statistics.median(pair[side][row.key] for pair in pairs) for side in (0, 1))
    ratio = statistics.median(ratios)
    said = "STRETCH" if row.reaches(ratio, row.stretch) else "holds" if row.reaches(ratio, row.must) else "MISSED"
    spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    figures = f"{ours:8.1f} {theirs:8.1f}  {ratio:5.2f} {spread:>13}  {row.must:4} {row.stretch:5}"
    print(f"{row.title:31} {row.peer:18} {figures}  {said}", flush=True)
    goal = {"must": row.must, "stretch": row.stretch, "holds": row.reaches(ratio, row.must)}
    return {"title": row.title, "peer": row.peer, "ratio": ratio, **goal, "unit": row.key, "rounds": pairs}


if __name__ == "__main__":
    main()
