"""The health of a run, checked every so many steps: vital signs, and a verdict where it changes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean as mean
from typing import Any

import torch

from ssl_vit.methods.method import Method
from ssl_vit.training.health import Verdict, Vitals, diagnose, feature_std, rank_me
from ssl_vit.training.looks.look import Look
from ssl_vit.training.looks.metrics import Metrics
from ssl_vit.training.step import Learner, Outcome

log = logging.getLogger("ssl_vit")

HEALTH_ROWS = 2048  # images whose features a check looks at


class Checkup(Look):
    """Each rank looks at its own images; rank 0, which has metrics, speaks."""

    name = "health"

    def __init__(self, metrics: Metrics | None, every: int, advice: Mapping[str, str]) -> None:
        self._metrics, self._every, self._advice = metrics, every, advice
        self._seen = torch.empty(0)  # [N, D] features of the newest images
        self._losses: list[float] = []  # since the last check
        self._parts: dict[str, list[float]] = {}  # likewise
        self.history: list[Vitals] = []
        self.verdict: Verdict | None = None

    def begin(self, learner: Learner, start: int) -> None:
        """Know the method, whose outputs are judged."""
        self._method, self._warmup = learner.method, learner.warmup

    def after_step(self, outcome: Outcome) -> None:
        """Note the step, and check where it is time."""
        given, done = outcome.given, outcome.progress.step + 1
        if given.embedding is not None:
            new = given.embedding.detach().float()
            self._seen = torch.cat([self._seen.to(new.device), new])[-HEALTH_ROWS:]
        if math.isfinite(outcome.loss):
            self._losses.append(outcome.loss)
            for name, value in given.parts.items():
                self._parts.setdefault(name, []).append(float(value))
        if done % self._every == 0 or done == outcome.progress.total:
            self._check(done)

    def state(self) -> dict[str, Any]:
        """Kept in the checkpoint, so that a resumed run comes to the same verdicts."""
        history = [asdict(vitals) for vitals in self.history]
        return {"seen": self._seen, "losses": self._losses, "parts": self._parts, "history": history}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._seen, self._losses, self._parts = (state[key] for key in ("seen", "losses", "parts"))
        self.history = [Vitals(**vitals) for vitals in state["history"]]
        self.verdict = diagnose(self.history, self._advice) if self.history else None

    def _check(self, step: int) -> None:
        self.history.append(self._vitals(step, self._method))
        self._losses.clear()
        self._parts.clear()
        before, self.verdict = self.verdict, diagnose(self.history, self._advice)
        if self._metrics is None:
            return
        row = {"health": self.verdict.kind} | asdict(self.history[-1]) | {"step": step}
        self._metrics.write(step, row)
        if before is None or before.kind != self.verdict.kind:
            bad = self.verdict.kind not in ("warming up", "learning")
            level = logging.WARNING if bad else logging.INFO
            log.log(level, "step %d, %s. %s", step, self.verdict.kind, self.verdict.sentence)

    def _vitals(self, step: int, method: Method) -> Vitals:
        """What was measured since the check before."""
        parts = {name: mean(values) for name, values in self._parts.items()}
        heads = [name for name in method.heads if f"{name}_loss" in parts]
        return Vitals(
            step,
            self._warmup,
            mean(self._losses) if self._losses else float("nan"),
            method.uniform_loss,
            feature_std(self._seen),
            rank_me(self._seen),
            method.prototypes,
            {name: (parts[f"{name}_loss"], parts[f"{name}_entropy"]) for name in heads},
            parts.get("blind_loss", None if method.heads else method.uniform_loss),
            method.remark(parts) if parts else "",
        )
