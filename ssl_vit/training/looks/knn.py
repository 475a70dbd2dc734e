"""k-NN of the weights that would be exported, as they are learnt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ssl_vit.eval.protocol import Protocol
from ssl_vit.training.looks.look import Look
from ssl_vit.training.looks.metrics import KNN, Metrics
from ssl_vit.training.step import Learner, Outcome

log = logging.getLogger("ssl_vit")


class OnlineKnn(Look):
    """Scores at the start, every so many steps and at the end, on rank 0; the others wait at their next collective."""

    def __init__(
        self, metrics: Metrics | None, every: int, score: Callable[[Any], tuple[dict[str, float], Protocol]]
    ) -> None:
        self._metrics, self._every, self._score = metrics, every, score

    def begin(self, learner: Learner, start: int) -> None:
        """Before the first step of all: what the random start is worth."""
        self._learner = learner
        if start == 0:
            self._run(0)

    def after_step(self, outcome: Outcome) -> None:
        """Score where it is time."""
        done = outcome.progress.step + 1
        if done % self._every == 0 or done == outcome.progress.total:
            self._run(done)

    def _run(self, step: int) -> None:
        backbone = self._learner.whole().exported()
        if self._metrics is None:
            return
        started = time.monotonic()
        scores, protocol = self._score(backbone)
        row: dict[str, Any] = {f"{KNN}{k}": value for k, value in scores.items()}
        self._metrics.write(step, row | {"protocol": protocol.as_dict()})
        log.info(
            "step %d, k-NN top-1: %s (%.0f s, protocol %s)",
            step,
            ", ".join(f"k={k} {v:.1f}" for k, v in scores.items()),
            time.monotonic() - started,
            protocol.hash,
        )
