"""The training loop, top to bottom: batch, step, looks, checkpoint, stop.

What a step does is in :mod:`ssl_vit.training.step`, what looks at a run in :mod:`ssl_vit.training.looks`. Launching,
devices, precision and the sharing of a model are Lightning Fabric's; the order of things is ours. Steps are counted,
epochs never: a resumed run goes on at the step of its checkpoint, with the batch that would have come.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

from ssl_vit.data.batch import Batch
from ssl_vit.errors import RunFailed
from ssl_vit.training.advice import after_divergence
from ssl_vit.training.checkpoint import Checkpoints
from ssl_vit.training.looks.look import Look
from ssl_vit.training.step import Learner, Outcome, take_step
from ssl_vit.training.stop import StopSignals

log = logging.getLogger("ssl_vit")

GIVE_UP = 10  # steps in a row whose loss or gradient is not finite


def train(
    learner: Learner,
    batches: Iterable[Batch],
    looks: Sequence[Look],
    checkpoints: Checkpoints,
    stop: StopSignals,
    start: int = 0,
) -> int:
    """Train to the last step, or until a signal or a look asks to stop; the number of steps done, all of them saved.

    learner: what is trained, already at step ``start``. batches: those of step ``start`` and after. looks: called after
    each step in this order, on every rank; none of them changes what is trained. stop: checked on all ranks together.

    Raises RunFailed where no step was possible for ten in a row, or the weights are not finite when they are saved.
    """
    done, lost = start, 0
    try:
        for look in looks:
            look.begin(learner, start)
        with stop.listening():
            for step, batch in enumerate(() if reason_to_end(looks) else batches, start):
                for look in looks:
                    look.before_step(step)
                outcome = take_step(learner, batch, step)
                lost = 0 if outcome.taken else lost + 1
                done = step + 1
                for look in looks:
                    look.after_step(outcome)
                _mind(outcome, lost, learner, checkpoints)
                told, over = stop.asked(learner.fabric), bool(reason_to_end(looks))
                if told.save or over or checkpoints.due(done, learner.total):
                    checkpoints.save(learner, looks, done)
                if told.stop or over:
                    break
    finally:
        for look in looks:
            look.end()
    return done


def reason_to_end(looks: Sequence[Look]) -> str:
    """What a look says why the run should end before its last step; "" where it is to go on."""
    return next((look.over for look in looks if look.over), "")


def _mind(outcome: Outcome, lost: int, learner: Learner, checkpoints: Checkpoints) -> None:
    """Say that a step was lost; RunFailed where too many were, and the newest checkpoint is from before them."""
    if outcome.taken:
        return
    step, what = outcome.progress.step, "gradient" if math.isfinite(outcome.loss) else "loss"
    log.warning("step %d: the %s is not finite, the step was not taken", step, what)
    if lost >= GIVE_UP:
        raise RunFailed(
            f"diverged: {GIVE_UP} steps in a row without a finite loss and gradient, up to step {step}; "
            f"{after_divergence(learner.config, checkpoints.newest())}"
        )
