"""The health of a run, checked every so many steps: vital signs, and a verdict where it changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from statistics import fmean as mean
from typing import Any

import torch
from torch import Tensor

from ssl_vit.methods.method import Method
from ssl_vit.training.health import Verdict, Vitals, diagnose, feature_std, rank_me
from ssl_vit.training.looks.look import Look
from ssl_vit.training.looks.metrics import Metrics
from ssl_vit.training.separation import HeldBack, distance, own_view_share
from ssl_vit.training.step import Learner, Outcome

log = logging.getLogger("ssl_vit")

HEALTH_ROWS = 2048  # images whose features a check looks at


class Checkup(Look):
    """Each rank looks at its own images; rank 0, which has metrics, speaks."""

    name = "health"

    def __init__(
        self, metrics: Metrics | None, every: int, advice: Mapping[str, str], held_back: HeldBack | None = None
    ) -> None:
        self._metrics, self._every, self._advice, self._held_back = metrics, every, advice, held_back
        self._start: Tensor | None = None  # [2, N, D] features of the views that are held back, before the first step
        self._seen = torch.empty(0)  # [N, D] features of the newest images
        self._losses: list[float] = []  # since the last check
        self._parts: dict[str, list[float]] = {}  # likewise
        self._noted: dict[str, Tensor] = {}  # likewise, counts
        self._say: dict[str, Callable[[Tensor], str]] = {}  # what is said of them
        self.history: list[Vitals] = []
        self.verdict: Verdict | None = None

    def begin(self, learner: Learner, start: int) -> None:
        """Know the method, whose outputs are judged, and what its features are at the start."""
        self._learner, self._method, self._warmup = learner, learner.method, learner.warmup
        if start == 0:
            self._start = self._look()

    def after_step(self, outcome: Outcome) -> None:
        """Note the step, and check where it is time."""
        given, done = outcome.given, outcome.progress.step + 1
        if given.embedding is not None and outcome.taken:
            new = given.embedding.detach().float()
            self._seen = torch.cat([self._seen.to(new.device), new])[-HEALTH_ROWS:]
        if outcome.taken:
            self._losses.append(outcome.loss)
            for name, value in given.parts.items():
                self._parts.setdefault(name, []).append(float(value))
            for name, (counts, self._say[name]) in outcome.noted.items():
                self._noted[name] = self._noted[name].to(counts.device) + counts if name in self._noted else counts
        if done % self._every == 0 or done == outcome.progress.total:
            self._check(done)

    def state(self) -> dict[str, Any]:
        """Kept in the checkpoint, so that a resumed run comes to the same verdicts."""
        history = [asdict(vitals) for vitals in self.history]
        state = {"seen": self._seen, "losses": self._losses, "parts": self._parts, "history": history}
        state |= {"noted": dict(self._noted)} if self._noted else {}
        return state if self._start is None else state | {"start": self._start}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._seen, self._losses, self._parts = (state[key] for key in ("seen", "losses", "parts"))
        self._start = state.get("start")  # older checkpoints have none
        self._noted = state.get("noted", {})
        self.history = [Vitals(**vitals) for vitals in state["history"]]
        self.verdict = diagnose(self.history, self._advice) if self.history else None

    def _check(self, step: int) -> None:
        self.history.append(self._vitals(step, self._method))
        self._losses.clear()
        self._parts.clear()
        self._noted.clear()
        before, self.verdict = self.verdict, diagnose(self.history, self._advice)
        if self._metrics is None:
            return
        said = {"health": self.verdict.kind, "verdict": self.verdict.sentence}
        row = said | asdict(self.history[-1]) | {"step": step}
        self._metrics.write(step, row)
        if before is None or before.kind != self.verdict.kind:
            bad = self.verdict.kind not in ("warming up", "learning")
            level = logging.WARNING if bad else logging.INFO
            log.log(level, "step %d, %s. %s", step, self.verdict.kind, self.verdict.sentence)

    def _look(self) -> Tensor | None:
        """What the exported network makes of the views that are held back; all ranks look together."""
        if self._held_back is None or self._method.frozen:
            return None
        train = self._learner.config.train
        exported = self._learner.whole().exported()
        with self._learner.fabric.autocast():
            return self._held_back.features(exported, train.batch_size // (train.devices * train.nodes))

    def _separation(self) -> dict[str, Any]:
        now = self._look()
        if now is None:
            return {}
        start, views = self._start, now.shape[0] * now.shape[1]
        then = (
            {}
            if start is None or start.shape != now.shape
            else {"own_view_start": own_view_share(start), "moved": distance(now, start)}
        )
        return {"views": views, "own_view": own_view_share(now)} | then

    def _told(self) -> list[str]:
        """What the network's counts say."""
        return [self._say[name](counts) for name, counts in self._noted.items() if name in self._say]

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
            " ".join(said for said in ((method.remark(parts) if parts else ""), *self._told()) if said),
            **self._separation(),
        )
