"""A run is measured before its first step and after its last; one that began with trained weights also in between."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.eval.did_it_help import Helped, Measured, compare_with_start, did_it_help, not_known, standing
from ssl_vit.eval.yardstick import Score, Yardstick
from ssl_vit.training.looks.look import Look
from ssl_vit.training.looks.metrics import Metrics
from ssl_vit.training.step import Learner, Outcome

log = logging.getLogger("ssl_vit")

WATCH = "watch/"  # what stands before a score's name in its line of the metrics


class Watch(Look):
    """Measures features on the first rank, keeps the best weights, and ends a run that stays below its start.

    yardstick: makes what measures, in the first process alone; None in the others. every: steps between two looks; 0
    where there are none but at the start and the end, and nothing is kept. patience: so many looks in a row that find
    the run worse than its start end it; 0 for never. advice: what to change then.
    """

    name = "watch"

    def __init__(
        self,
        metrics: Metrics | None,
        yardstick: Callable[[], Yardstick | None] | None,
        every: int = 0,
        patience: int = 0,
        advice: str = "",
    ) -> None:
        self._metrics, self._make, self._every = metrics, yardstick, every
        self._patience, self._advice = patience, advice
        self._yardstick: Yardstick | None = None
        self._start: Score | None = None
        self._last: tuple[int, Score] | None = None
        self._best: tuple[int, Score, dict[str, Tensor]] | None = None
        self._looks = self._below = 0  # looks, and of these the last that were worse than the start

    def begin(self, learner: Learner, start: int) -> None:
        """Before the first step of all: what the features are worth that it begins with."""
        self._learner = learner
        self._yardstick = self._make() if self._make is not None else None
        if start == 0:
            self._look(0)

    def after_step(self, outcome: Outcome) -> None:
        """Measure where it is time."""
        done = outcome.progress.step + 1
        if done == outcome.progress.total or (self._every and done % self._every == 0):
            self._look(done)

    def state(self) -> dict[str, Any]:
        """The scores, and the best weights."""
        if self._start is None:
            return {"over": self.over}
        found: dict[str, Any] = {"over": self.over, "start": self._start.state()}
        found |= {"looks": self._looks, "below": self._below}
        if self._last is not None:
            found["last"] = [self._last[0], self._last[1].state()]
        if self._best is not None:
            found["best"] = [self._best[0], self._best[1].state(), self._best[2]]
        return found

    def restore_state(self, state: dict[str, Any]) -> None:
        """Go on with them."""
        self.over = state["over"]
        if self._make is None or "start" not in state:
            return
        self._start, self._looks, self._below = Score.of_state(state["start"]), state["looks"], state["below"]
        if "last" in state:
            self._last = state["last"][0], Score.of_state(state["last"][1])
        if "best" in state:
            step, score, weights = state["best"]
            self._best = step, Score.of_state(score), weights

    def best(self, last: AdaptedBackbone) -> AdaptedBackbone | None:
        """A copy of the exported backbone with the best weights; None where those are the last ones."""
        if self._best is None or self._last is None or self._best[0] == self._last[0]:
            return None
        found = deepcopy(last)
        found.model.load_state_dict(self._best[2])
        return found

    def helped(
        self, backbone: Backbone, step: int, at_random: Callable[[], Backbone] | None, frozen: str = ""
    ) -> Helped | None:
        """The answer of the whole run; None where it has no images to measure on.

        backbone, step: what was learnt, where that was not measured yet. at_random: makes the same network with random
        weights, where it began with others. frozen: the method, where its backbone does not learn.
        """
        if (measure := self._yardstick) is None:
            return None
        if self._last is None or self._last[0] != step:
            self._last = step, measure.score(backbone)
        if self._start is None:
            return not_known(measure.what, self._last[1])
        best_step, best, _ = self._best or (0, None, None)
        random_score = measure.score(at_random()) if at_random is not None else None
        return did_it_help(
            Measured(
                measure.what,
                self._start,
                self._last[1],
                step,
                best,
                best_step,
                self._looks,
                random_score,
                measure.score_pixels(),
                frozen,
            )
        )

    def _look(self, step: int) -> None:
        backbone = self._learner.whole().exported()
        if self._yardstick is not None:
            self._measure(step, backbone)
        if self._every and step:
            self.over = self._learner.fabric.broadcast(self.over)

    def _measure(self, step: int, backbone: Backbone) -> None:
        assert self._yardstick is not None
        score = self._yardstick.score(backbone)
        if self._metrics is not None:
            self._metrics.write(step, {WATCH + name: value for name, value in score.values.items()})
        if step == 0:
            self._start = score
        self._last = step, score
        start = self._start
        if not self._every or start is None:
            return
        if step:
            self._looks += 1
            self._mind(step, score, start)
        if self._best is None or standing(score, start) >= standing(self._best[1], start):
            self._best = step, score, _weights_of(backbone)

    def _mind(self, step: int, score: Score, start: Score) -> None:
        """Say it, and end a run that has been worse than its start for long."""
        now = ", ".join(f"{name} {value:.1f} (start {start.values[name]:.1f})" for name, value in score.values.items())
        log.info("step %d, %s", step, now)
        worse = compare_with_start(score, start)[0] == "hurt" or not all(map(math.isfinite, score.values.values()))
        self._below = self._below + 1 if worse else 0
        if self._patience and self._below >= self._patience:
            self.over = (
                f"stopped at step {step}: at {self._below} looks in a row the features were worse than those of the "
                f"weights that it began with ({now}); export/ gets the best. {self._advice}"
            )


def _weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """A copy of an exported backbone's weights, in the computer's memory."""
    assert isinstance(backbone, AdaptedBackbone)  # the one adapter
    return {name: each.detach().cpu().clone() for name, each in backbone.model.state_dict().items()}
