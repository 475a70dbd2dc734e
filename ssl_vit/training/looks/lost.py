"""What a step read that could not be taken: the images' names and their views, kept so that it can be done again."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import torch

from ssl_vit.data.bad import printable
from ssl_vit.data.batch import Batch
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.files import write_atomically
from ssl_vit.training.looks.look import Look
from ssl_vit.training.step import Learner, Outcome

log = logging.getLogger("ssl_vit")

FOLDER = "lost_steps"
MOST = 10  # steps of a run that are kept
_SHOWN = 3  # names in the log


class LostSteps(Look):
    """RUN/lost_steps/step-N-rank-R.json names the images of a lost step, and .pt has the views that it read of them."""

    def __init__(self, run: Path, source: Source) -> None:
        self._folder, self._source = run / FOLDER, source

    def begin(self, learner: Learner, start: int) -> None:
        """Know which process this is; a loss scaler loses steps until it has found its scale, which is no fault."""
        self._rank, self._scaled = learner.fabric.global_rank, learner.scaler is not None

    def after_step(self, outcome: Outcome) -> None:
        """Keep what a lost step read, or at least say it."""
        batch, step = outcome.lost, outcome.progress.step
        if not isinstance(batch, Batch) or (self._scaled and math.isfinite(outcome.loss)):
            return
        names = [printable(self._source.name(index)) for index in batch.index.tolist()]
        shown = ", ".join(names[:_SHOWN]) + f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN)
        path = self._folder / f"step-{step:09d}-rank-{self._rank}.json"
        try:
            kept = self._keep(path, batch, names)
        except OSError as error:
            kept = f"; its views can't be kept ({error})"
        log.warning("step %d read %s%s", step, shown, kept)

    def _keep(self, path: Path, batch: Batch, names: list[str]) -> str:
        self._folder.mkdir(exist_ok=True)
        if len(list(self._folder.glob(f"*-rank-{self._rank}.json"))) >= MOST:
            return ""
        views = {"index": batch.index, "pixels": batch.pixels, "values": batch.values, "boxes": batch.boxes}
        write_atomically(path.with_suffix(".pt"), lambda staged: torch.save(views, staged))
        write_atomically(path, lambda staged: staged.write_text(json.dumps({"images": names}, indent=2) + "\n"))
        return f": their names and views are kept in {path} and .pt; ssl_vit.replay_step does the step again"


def lost_batch(run: Path, step: int, rank: int, plan: ViewPlan) -> Batch:
    """What a rank read for a lost step; UserError where it was not kept."""
    path = run / FOLDER / f"step-{step:09d}-rank-{rank}.pt"
    if not path.is_file():
        kept = ", ".join(sorted(each.stem for each in path.parent.glob("*.pt"))) or "none"
        raise UserError(f"{path}: not there; expected a step that was lost and kept ({kept})")
    found = torch.load(path, map_location="cpu", weights_only=True)
    return Batch(plan, found["pixels"], found["values"], found["index"], [], found["boxes"])
