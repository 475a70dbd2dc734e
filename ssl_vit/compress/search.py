"""Search for a smaller network (AutoFormer, 2107.00651; GLiT, 2107.02960) without labels, or scored by k-NN.

A supernet is trained by any method, a run of its own; then evolution looks for its best member under a limit, of which
every score is written down as it is known. The winner keeps its part of the supernet's weights.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssl_vit import device
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.registry import create_backbone
from ssl_vit.backbones.spaces import Genes, Space, space_of
from ssl_vit.backbones.supernet import extracted, filled, part
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.compress.evolution import best, evolve
from ssl_vit.compress.judge import Judge, calibrated
from ssl_vit.compress.work import LOG, Work, check_sets, description
from ssl_vit.config import RunConfig, check_data, load_config
from ssl_vit.errors import UserError
from ssl_vit.eval.costs import Cost, cost_table, costs_of
from ssl_vit.export.api import ExportResult, export
from ssl_vit.run.folder import logged

log = logging.getLogger("ssl_vit")

OURS = ("backbone.name", "backbone.weights", "data.path", "train.devices", "train.space", "train.compile")
SCORES = "evolution.jsonl"
BATCH, PASSES = 32, 5  # images, of which an image's share of the time counts; passes, of which the middle one does


class Limit(NamedTuple):
    """What a member may cost at most; one of the two."""

    parameters: float | None = None  # millions
    latency: float | None = None  # milliseconds an image in batches of 32, on this machine

    def __str__(self) -> str:
        return f"{self.parameters:g} M parameters" if self.parameters is not None else f"{self.latency:g} ms an image"


@dataclass(frozen=True)
class Found:
    """What a search leaves."""

    folder: Path
    member: str  # in words
    score: float
    scored: int  # members
    exported: ExportResult
    costs: tuple[Cost, ...]  # of the largest member and the winner

    def __str__(self) -> str:
        return (
            f"{self.folder}: of {self.scored} members scored the best has {self.score:.2f}: {self.member}\n"
            f"{cost_table(self.costs)}\n"
            f"Weights: {self.exported.folder}, {self.exported.check}. Load them with\n\n{self.exported.snippet}"
        )


def search(
    data: str | Sequence[str],
    out: Path | str,
    space: str,
    limit: Limit,
    *,
    method: str | None = None,
    epochs: int | None = None,
    labelled: str | None = None,
    population: int = 50,
    generations: int = 20,
    sets: Sequence[str] = (),
    resume: bool = False,
) -> Found:
    """Train a supernet and find its best member under a limit.

    data: images, as for ``pretrain``. out: a folder that does not exist yet, or with ``resume`` one that was begun;
    its ``export`` is the winner. method: of the supernet, chosen as for ``pretrain`` without. labelled: images in
    folders of classes, by whose k-NN members are scored; else without labels. sets: further settings of the training.

    Raises:
        UserError: before an image is read, an unknown space, one without a member under the limit, a wrong setting.
        RunFailed, StoppedError: as ``pretrain``.
    """
    chosen = space_of(space)
    check_sets(sets, OURS, "a search")
    config = _config(data, chosen, method, epochs, sets)
    check_data(config)
    _check_smallest(chosen, config, limit)
    out = Path(out)
    words = ["search", *([data] if isinstance(data, str) else data), "--space", space]
    words += _flags(limit, method, epochs, labelled, population, generations)
    work = Work(out, [*words, *(word for text in sets for word in ("--set", text))])
    asked: dict[str, Any] = {
        "space": space,
        "limit": limit._asdict(),
        "method": method,
        "epochs": epochs,
        "labelled": labelled,
    }
    asked |= {"population": population, "generations": generations, "settings": list(sets)}
    with work.begun(asked, resume):
        work.train("supernet", config)
        supernet = backbone_of_file(out / "supernet").eval()
        with logged(out / LOG):
            judge = Judge.of(supernet, out / "supernet", config, labelled)
            scored = _evolved(chosen, supernet, judge, limit, out / SCORES, (population, generations))
        (winner,) = best(scored, 1)
        said = description(out / "supernet") | {
            "searched": {"space": space, "limit": str(limit), "scored by": judge.name, "score": scored[winner]}
        }
        make = partial(_winner, chosen, winner, supernet, judge)
        work.network("export", make, said)
    costs = costs_of([out / "supernet", out / "export"])
    return Found(out, chosen.describe(winner), scored[winner], len(scored), export(out), costs)


def _winner(space: Space, genes: Genes, supernet: AdaptedBackbone, judge: Judge) -> AdaptedBackbone:
    return calibrated(extracted(space, genes, supernet), judge.plain)


def _flags(limit: Limit, method: str | None, epochs: int | None, labelled: str | None, *counts: int) -> list[str]:
    named = {
        "--parameters": limit.parameters,
        "--latency": limit.latency,
        "--method": method,
        "--epochs": epochs,
        "--labelled": labelled,
        "--population": counts[0],
        "--generations": counts[1],
    }
    return [word for flag, value in named.items() if value is not None for word in (flag, f"{value}")]


def _config(
    data: str | Sequence[str], space: Space, method: str | None, epochs: int | None, sets: Sequence[str]
) -> RunConfig:
    """The configuration of the supernet's training."""
    flags: dict[str, Any] = {
        "data.path": data,
        "backbone.name": space.backbone,
        "train.space": space.name,
        "train.devices": 1,
        "train.compile": False,
    }
    flags |= {f"backbone.args.{key}": value for key, value in space.args(space.largest).items()}
    flags |= {"method.name": method} if method is not None else {}
    flags |= {"train.epochs": epochs} if epochs is not None else {}
    return load_config(sets=sets, flags=flags)


def _check_smallest(space: Space, config: RunConfig, limit: Limit) -> None:
    """UserError where not even the smallest member is under the limit; of the smallest images, if nobody says them."""
    size = config.backbone.image_size if isinstance(config.backbone.image_size, int) else 32
    args = dict(config.backbone.args) | space.args(space.smallest)
    least = create_backbone(space.backbone, image_size=size, model_args=args)
    if limit.parameters is not None:
        cost, unit = least.info.parameters / 1e6, "M parameters"
    else:
        cost, unit = milliseconds(least.eval()), "ms an image"
    if cost > (limit.parameters if limit.parameters is not None else limit.latency or 0.0):
        raise UserError(
            f"--space {space.name}: no member is under {limit}, as its smallest has {cost:.3g} {unit}; allow more, or "
            "choose a smaller space"
        )


def milliseconds(network: AdaptedBackbone) -> float:
    """An image's share of the time that a batch of 32 takes here."""
    used, spent = device.the_device(), list[float]()
    images = torch.zeros(BATCH, 3, *network.info.size, device=used)
    network.to(used)
    with torch.inference_mode():
        for _ in range(PASSES + 1):
            start = time.perf_counter()
            network(images)
            device.wait()
            spent.append(time.perf_counter() - start)
    return 1000 * statistics.median(spent[1:]) / BATCH


def _evolved(
    space: Space, supernet: AdaptedBackbone, judge: Judge, limit: Limit, path: Path, counts: tuple[int, int]
) -> dict[Genes, float]:
    """Every member that was scored; those that a file has from before it was stopped are not scored again."""
    known = _Known(path)

    def fits(genes: Genes) -> bool:
        if limit.parameters is not None:
            return parameters(space, genes, supernet) <= 1e6 * limit.parameters
        assert limit.latency is not None
        if genes not in known.latency:
            known.keep(genes, "ms", milliseconds(filled(space, genes, supernet)))
        return known.latency[genes] <= limit.latency

    found: dict[Genes, float] = {}
    for genes, note in evolve(space, *counts, 0, fits):
        if genes not in known.scores:
            known.keep(genes, "score", judge.score(filled(space, genes, supernet)))
        found[genes] = known.scores[genes]
        note(found[genes])
        if len(found) % counts[0] == 0:
            (winner,) = best(found, 1)
            log.info("%d members scored by %s, the best has %.2f", len(found), judge.name, found[winner])
    if not found:
        raise UserError(f"--space {space.name}: none of the members tried is under {limit}; allow more")
    return found


def parameters(space: Space, genes: Genes, supernet: AdaptedBackbone) -> int:
    """How many parameters a member has."""
    found = (part(space, genes, name, weight.to("meta")) for name, weight in supernet.named_parameters())
    return sum(weight.numel() for weight in found if weight is not None)


class _Known:
    """A file of what was measured, a line each, of which a kill can cut off the last."""

    def __init__(self, path: Path) -> None:
        self.path, self.scores, self.latency = path, dict[Genes, float](), dict[Genes, float]()
        rows = list(_rows(path))
        for row in rows:
            self._note(tuple(row["genes"]), row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def _note(self, genes: Genes, row: dict[str, Any]) -> None:
        for key, where in (("score", self.scores), ("ms", self.latency)):
            if key in row:
                where[genes] = row[key]

    def keep(self, genes: Genes, key: str, value: float) -> None:
        """Write down what a member has."""
        row = {"genes": list(genes), key: value}
        self._note(genes, row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file up to the first that is not whole."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not line.endswith("\n") or not isinstance(row, dict) or "genes" not in row:
            return
        yield row
