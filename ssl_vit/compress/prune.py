"""Pruning without labels (VTP, 2104.08500): gates are trained, what is weak is cut off, what is left recovers.

Both trainings are runs of their own, of distillation from the network as it was: the one loop, with its checkpoints,
so that a pruning that was stopped goes on exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.hub import is_hub_id
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.checkpoints.reader import digest
from ssl_vit.compress.shrink import left_of_gates, left_of_zeros, prunable, shrunk
from ssl_vit.compress.work import Work, check_sets, description, last_of, says_length, usual_epochs
from ssl_vit.config import RunConfig, check_data, load_config
from ssl_vit.config.paths import check_new
from ssl_vit.errors import UserError
from ssl_vit.eval.costs import Cost, cost_table, costs_of
from ssl_vit.eval.weights import pixels_of
from ssl_vit.export.api import ExportResult, export, hand_over

log = logging.getLogger("ssl_vit")

PENALTY = 1e-4  # VTP's, of the sum of all gates' sizes
RECOVERY, GATES = 1 / 4, 1 / 8  # of a run's epochs
WHOLE_RATE = ("optim.backbone_rate=1", "optim.layer_decay=1", "optim.heads_first=0", "health.patience=0")
"""A recipe from trained weights would leave them nearly as they are, which is not what pruning is for."""
OURS = ("method.name", "method.teacher", "backbone.", "data.path", "data.mean", "data.std", "train.devices")


@dataclass(frozen=True)
class Pruned:
    """What pruning leaves."""

    folder: Path
    exported: ExportResult
    costs: tuple[Cost, ...]  # of the network as it was and as it is

    def __str__(self) -> str:
        before, after = self.costs
        return (
            f"{self.folder}: {after.parameters / before.parameters:.0%} of the parameters, "
            f"{after.gmacs / before.gmacs:.0%} of the multiply-adds, "
            f"{before.ms['32'] / after.ms['32']:.2f} times as fast in batches of 32\n{cost_table(self.costs)}\n"
            f"Weights: {self.exported.folder}, {self.exported.check}. Load them with\n\n{self.exported.snippet}"
        )


def prune(
    run: Path | str,
    data: str | Sequence[str],
    out: Path | str,
    keep: float = 0.5,
    *,
    epochs: int | None = None,
    sets: Sequence[str] = (),
    resume: bool = False,
) -> Pruned:
    """Prune a plain ViT to a share of the inputs of its linear layers, and let it recover; no labels are needed.

    run: a run, or weights that ``ssl-vit inspect`` knows. data: images, as for ``pretrain``. out: a folder that does
    not exist yet, or with ``resume`` one that was begun; its ``export`` is the smaller network. keep: that share,
    above 0 and below 1. epochs: of recovery; gates are trained for half as many. sets: further settings of both
    trainings, "key.path=value".

    Raises:
        UserError: before an image is read, a share that is none, a network that can't be pruned, a wrong setting.
        RunFailed, StoppedError: as ``pretrain``.
    """
    check_keep(keep)
    check_sets(sets, OURS, "pruning")
    out, run = Path(out), str(run) if is_hub_id(run) else str(Path(run).absolute())
    first = _config(run, data, out / "gated", epochs and max(1, round(epochs * GATES / RECOVERY)), sets)
    last = _config(run, data, out / "pruned", epochs, sets)
    check_data(first, resume=True)  # whose weights are about to be made
    teacher = backbone_of_file(run)
    gated = prunable(teacher, PENALTY)
    words = ["prune", run, *([data] if isinstance(data, str) else data), "--keep", f"{keep:g}"]
    words += ["--epochs", str(epochs)] * (epochs is not None) + [word for text in sets for word in ("--set", text)]
    work = Work(out, words)
    asked = {"run": digest(run), "keep": keep, "epochs": epochs, "settings": list(sets)}
    said = {"pruned": {"keep": keep}}
    with work.begun(asked, resume):
        work.network("gated", lambda: gated, description(run))
        work.train("gates", _as_seen(first, GATES, run, teacher))
        work.network("pruned", partial(_cut, last_of(out / "gates"), keep), description(run) | said)
        work.train("recovery", _as_seen(last, RECOVERY, run, teacher))
        recovered = last_of(out / "recovery")
        work.network("export", partial(backbone_of_file, recovered), description(recovered) | said)
    return Pruned(out, export(out), costs_of([run, out / "export"]))


def _config(run: str, data: str | Sequence[str], weights: Path, epochs: int | None, sets: Sequence[str]) -> RunConfig:
    """The configuration of a training that begins with these weights; the teacher is the network as it was."""
    flags: dict[str, Any] = {
        "data.path": data,
        "method.name": "distill",
        "method.teacher": run,
        "backbone.weights": str(weights.absolute()),
        "train.devices": 1,
    }
    return load_config(sets=[*WHOLE_RATE, *sets], flags=flags | ({} if epochs is None else {"train.epochs": epochs}))


def _as_seen(config: RunConfig, share: float, run: str, teacher: AdaptedBackbone) -> RunConfig:
    """The same with images as the network has been given them, and for a share of a run's epochs if nobody said it."""
    pixels = pixels_of(run)
    values: dict[str, Any] = {"mean": teacher.info.mean, "std": teacher.info.std}
    data = config.data.model_copy(update=values | (pixels._asdict() if pixels is not None else {}))
    length = {} if says_length(config) else {"epochs": usual_epochs(config, share)}
    return config.model_copy(update={"data": data, "train": config.train.model_copy(update=length)})


def check_keep(keep: float) -> float:
    """UserError for a share that is not between 0 and 1."""
    if not 0 < keep < 1:
        raise UserError(f"--keep {keep:g}: expected the share of inputs to keep, above 0 and below 1, as 0.5")
    return keep


def shrink(run: Path | str, out: Path | str) -> Pruned:
    """Cut heads and hidden units off that are 0, as training sparse units leaves them; what it computes is the same.

    Raises:
        UserError: a network that can't be shrunk, or one in which nothing is 0.
    """
    whole, out = backbone_of_file(run), Path(out)
    check_new(out)
    same = prunable(whole)
    small = shrunk(same, left_of_zeros(same.model))
    if small.info.parameters == whole.info.parameters:
        raise UserError(f"{run}: no head and no hidden unit of it is 0, so that nothing can be cut off; see --help")
    exported = hand_over(small, out / "export", "timm", description(run))
    return Pruned(out, exported, costs_of([run, out / "export"]))


def _cut(gates: Path, keep: float) -> AdaptedBackbone:
    """What a threshold leaves of a network whose gates are trained."""
    trained = backbone_of_file(gates)
    left = left_of_gates(trained.model, keep)
    small = shrunk(trained, left)
    log.info("kept of each block, of heads x values, inputs of attention and MLP, hidden units:")
    for depth, each in enumerate(left):
        heads, values = each.values.shape
        log.info(
            "  %2d: %d x %d, %d and %d, %d",
            *(depth, heads, values, len(each.attn_inputs), len(each.mlp_inputs), len(each.hidden)),
        )
    return small
