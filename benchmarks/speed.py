"""How fast we are beside the peers: every row of the speed table that a CPU can answer, as a ratio in alternating runs.

    python benchmarks/speed.py [--rows NAME …] [--rounds 4] [--photos DIR] [--peers DIR] [--dino CHECKOUT] [--json FILE]

Every measurement is a fresh process on one thread; counted is CPU time, of workers too, so that other programs may run.
A round measures everything once, the next one in turns; a row is the median of the ratios of its rounds. Peers on PyPI
are installed into environments below --peers; official DINO (Apache-2.0) is run from a checkout: git clone
https://github.com/facebookresearch/dino. All are set to DINO's own recipe, see benchmarks/peers/recipe.py, and each
trains as its own command, loop or class does, logs and callbacks included. Without --photos, images are 500 x 375 parts
of scikit-learn's two sample photographs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import photographs
from peers.environments import interpreter

Found = dict[str, float]
Pairs = list[tuple[Found, Found]]
HERE = Path(__file__).parent
IMAGES = 384  # of which the longest measurement, of the data path, reads nearly all once
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
    what: str  # a kind of measurement, see peers/clock.py
    way: str
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
    "step-dino": Row("step, bf16", "step", BF16, "official DINO", 1.1, 1.3),
    "step-lightly": Row("step, bf16", "step", BF16, "lightly loop", 2.0, 2.4),
    "step-stable": Row("step, bf16", "step", BF16, "stable-pretraining", 1.3, 1.5),
    "step-fp32": Row("step, fp32", "step", FP32, "lightly-train", 1.05, 1.2),
    "memory": Row("step, bf16, net peak memory", "step", BF16, "lightly-train", 0.75, 0.6, "net_mb"),
    "data-dino": Row("data path, exact", "data", "exact", "official recipe", 4.0, 5.0),
    "data": Row("data path, exact", "data", "exact", "lightly-train", 1.5, 2.0),
    "decode": Row("decoding alone", "data", "decode", "bare Pillow", 0.85, 0.95),
    "run": Row("end to end, bf16, one worker", "run", BF16, "lightly-train", 1.3, 1.55),
    "update": Row("clip, optimiser, teacher, 27 M", "update", FP32, "official DINO", 3.0, 5.0),
    "regions": Row("EsViT's region loss, net memory", "region", "", "straightforward", 0.5, 0.25, "net_mb"),
}


@dataclass
class Round:
    """Measurements, each in a fresh process; rows share those that are the same."""

    photos: Path
    peers: Path
    dino: Path
    known: dict[tuple[str | Path, ...], Any] = field(default_factory=dict)

    def pair(self, row: Row, first: bool) -> tuple[Found, Found]:
        """Ours and the peer's, ours first or last."""
        order = ("ours", row.peer) if first else (row.peer, "ours")
        found = {whose: self.find(whose, row) for whose in order}
        return found["ours"], found[row.peer]

    def find(self, whose: str, row: Row) -> Any:
        """A measurement."""
        if row.what == "data":  # scripts of their own; this one measures all ways in turn
            words = ("--rounds", "1", "--json", "/dev/stdout", "--lightly-train")
            theirs = interpreter("lightly-train", self.peers)
            spent = self.run(sys.executable, HERE / "data.py", self.photos, *words, theirs)
            return {"ms": spent[row.way if whose == "ours" else row.peer][0]}
        if row.what == "region":
            which = "ours" if whose == "ours" else "plain"
            return self.run(sys.executable, HERE / "methods.py", "--one", "region", which)
        driver, environment = DRIVERS[whose]
        python = interpreter(environment, self.peers) if environment else sys.executable
        return self.run(python, HERE / "peers" / driver, row.what, row.way, self.photos, self.dino)

    def run(self, *line: str | Path) -> Any:
        """What a command prints."""
        if line not in self.known:
            home = self.peers / "home"  # whatever they keep for themselves
            home.mkdir(parents=True, exist_ok=True)
            quiet = {"OMP_NUM_THREADS": "1", "HOME": str(home), "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
            quiet["PYTHONPATH"] = str(HERE.parent)  # they run elsewhere
            result = subprocess.run(line, capture_output=True, text=True, env=os.environ | quiet, cwd=home)
            if result.returncode:
                raise SystemExit(f"{' '.join(map(str, line))}:\n{result.stderr[-3000:]}")
            printed = f"\n{result.stdout}"  # among other words of theirs
            self.known[line] = json.JSONDecoder().raw_decode(printed, printed.index("\n{") + 1)[0]
            told = f"{time.strftime('%H:%M')} {Path(line[1]).stem} {line[2]}: {self.known[line]}"
            print(told, file=sys.stderr, flush=True)  # the table takes a while
        return self.known[line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "ssl_vit" / "peers")
    parser.add_argument("--dino", type=Path, help="default: dino in the folder of the peers")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows, dino = {name: ROWS[name] for name in args.rows}, (args.dino or args.peers / "dino").resolve()
    if any(row.peer == "official DINO" for row in rows.values()) and not (dino / "main_dino.py").exists():
        raise SystemExit(f"{dino}: not there; git clone https://github.com/facebookresearch/dino {dino}")
    pairs: dict[str, Pairs] = {name: [] for name in rows}
    with tempfile.TemporaryDirectory() as folder:
        photos = copies(args.photos, Path(folder)) if args.photos else photographs(Path(folder), IMAGES)
        for number in range(args.rounds):
            once = Round(photos, args.peers.resolve(), dino)
            for name, row in rows.items():
                pairs[name].append(once.pair(row, first=number % 2 == 0))
            print(f"\nmedians of {number + 1} rounds; load {os.getloadavg()[1]:.1f}\n{HEAD}")
            table = {name: summed_up(row, pairs[name]) for name, row in rows.items()}
            if args.json:
                args.json.write_text(json.dumps(table, indent=1) + "\n")


def copies(photos: Path, folder: Path) -> Path:
    """As many JPEGs as the longest measurement reads."""
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    for number in range(IMAGES):
        shutil.copy(found[number % len(found)], folder / f"{number:03d}.jpg")
    return folder


HEAD = f"{'':31} {'against':18} {'ours':>8} {'theirs':>8}  {'ratio':>5} {'of rounds':>13}  must stretch"


def summed_up(row: Row, pairs: Pairs) -> dict[str, object]:
    """A row's medians, printed and returned; ms of CPU for a step of eight images, an image of the data path, or MB."""
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
