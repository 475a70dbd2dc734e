"""What happens around the steps: checkpoints, the log, health, k-NN, stopping when asked."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean as mean
from types import FrameType
from typing import Any

import torch
from lightning import Callback, Trainer

from ssl_vit.eval.protocol import Protocol
from ssl_vit.files import write_atomically
from ssl_vit.methods.method import Method
from ssl_vit.training.checkpoint import checkpoint_path, prune
from ssl_vit.training.health import Verdict, Vitals, diagnose, feature_std, rank_me
from ssl_vit.training.module import Pretraining

log = logging.getLogger("ssl_vit")

HEALTH_ROWS = 2048  # images whose features a check looks at
_KNN = "knn/"  # what stands before k in a line of scores


class Metrics(Callback):
    """A line of ``metrics.jsonl`` for every step, the same to TensorBoard every tenth; others add events."""

    def __init__(self, folder: Path, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        _drop_steps_from(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board: SummaryWriter | None = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """One line a step."""
        module: Pretraining = pl_module
        assert module.last is not None
        row = {"loss": module.loss, "lr": module.learning_rate(), "grad_norm": module.grad_norm}
        row |= {name: float(value) for name, value in module.last.parts.items()}
        self.write(module.progress.step, row)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Add a line; numbers also go to TensorBoard."""
        self._file.write(json.dumps({"step": step} | {k: _plain(v) for k, v in row.items()}) + "\n")
        self._file.flush()
        if self._board is None or (step % 10 and "grad_norm" in row):
            return
        group = "health/" if "health" in row else ""  # whose loss is a mean over steps
        try:
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(group + name, value, step)
        except OSError as error:
            log.warning("TensorBoard can't be written (%s): going on without it", error)
            self._board = None

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_steps_from(path: Path, step: int) -> None:
    """Steps that a killed run wrote after its last checkpoint will be done again, and half a line is none."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = "".join(line + "\n" for line in lines if _was_done(json.loads(line), step))
        write_atomically(path, lambda staged: staged.write_text(kept, encoding="utf-8"))


def _was_done(row: dict[str, Any], step: int) -> bool:
    """A step's own line has the number of steps before it; a check's or a score's has the number of steps done."""
    return bool(row["step"] < step or (row["step"] == step > 0 and "grad_norm" not in row))


class Checkpoints(Callback):
    """A checkpoint every so many steps and at the end."""

    def __init__(self, folder: Path, every: int) -> None:
        self._folder, self._every, self._saved = folder, every, -1

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """On all ranks together."""
        if trainer.global_step % self._every == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save now, if that was not done at this step, then drop what is older than the last two."""
        if self._saved == trainer.global_step:
            return
        self._saved = trainer.global_step
        path = checkpoint_path(self._folder, self._saved)
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            prune(self._folder, path)


class StopOnSignal(Callback):
    """SIGTERM and Ctrl-C: finish the step, save, stop. A second one stops at once."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints, self._before = checkpoints, dict[int, Any]()
        self.received: signal.Signals | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """After Lightning has set its own handlers, which save nothing."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        log.warning("%s: finishing this step, then saving; once more stops at once", self.received.name)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """All ranks stop at the same step, whichever of them was told."""
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        self.received = self.received or signal.SIGTERM
        self._checkpoints.save(trainer)
        trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Give the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class Health(Callback):
    """Every so many steps: vital signs, and a verdict where it changes."""

    def __init__(self, metrics: Metrics | None, every: int, warmup: int, advice: Mapping[str, str]) -> None:
        self._metrics, self._every, self._warmup, self._advice = metrics, every, warmup, advice
        self._seen = torch.empty(0)  # [N, D] features of the newest images
        self._losses: list[float] = []  # since the last check
        self._parts: dict[str, list[float]] = {}  # likewise
        self.history: list[Vitals] = []
        self.verdict: Verdict | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Each rank looks at its own images; rank 0 speaks."""
        module: Pretraining = pl_module
        assert module.last is not None
        if module.last.embedding is not None:
            new = module.last.embedding.detach().float()
            self._seen = torch.cat([self._seen.to(new.device), new])[-HEALTH_ROWS:]
        if math.isfinite(module.loss):
            self._losses.append(module.loss)
            for name, value in module.last.parts.items():
                self._parts.setdefault(name, []).append(float(value))
        step = trainer.global_step
        if step % self._every == 0 or step == trainer.max_steps:
            self._check(step, module.method)

    def state_dict(self) -> dict[str, Any]:
        """Kept in the checkpoint, so that a resumed run comes to the same verdicts."""
        history = [asdict(vitals) for vitals in self.history]
        return {"seen": self._seen, "losses": self._losses, "parts": self._parts, "history": history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where the checkpoint was written."""
        self._seen, self._losses, self._parts = (state_dict[key] for key in ("seen", "losses", "parts"))
        self.history = [Vitals(**vitals) for vitals in state_dict["history"]]
        self.verdict = diagnose(self.history, self._advice) if self.history else None

    def _check(self, step: int, method: Method) -> None:
        parts = {name: mean(values) for name, values in self._parts.items()}
        self.history.append(
            Vitals(
                step,
                self._warmup,
                mean(self._losses) if self._losses else float("nan"),
                method.uniform_loss,
                feature_std(self._seen),
                rank_me(self._seen),
                method.prototypes,
                {
                    name: (parts[f"{name}_loss"], parts[f"{name}_entropy"])
                    for name in method.heads
                    if f"{name}_loss" in parts
                },
                parts.get("blind_loss", None if method.heads else method.uniform_loss),
                method.remark(parts) if parts else "",
            )
        )
        vitals = self.history[-1]
        self._losses.clear()
        self._parts.clear()
        before, self.verdict = self.verdict, diagnose(self.history, self._advice)
        if self._metrics is None:
            return
        self._metrics.write(step, {"health": self.verdict.kind} | asdict(vitals) | {"step": step})
        if before is None or before.kind != self.verdict.kind:
            bad = self.verdict.kind not in ("warming up", "learning")
            log.log(
                logging.WARNING if bad else logging.INFO,
                "step %d, %s. %s",
                step,
                self.verdict.kind,
                self.verdict.sentence,
            )


class OnlineKnn(Callback):
    """k-NN of the weights that would be exported, at the start, every so many steps and at the end, on rank 0."""

    def __init__(
        self, metrics: Metrics | None, every: int, score: Callable[[Any], tuple[dict[str, float], Protocol]]
    ) -> None:
        self._metrics, self._every, self._score = metrics, every, score

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Before the first step: what the random start is worth."""
        if trainer.global_step == 0:
            self._run(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The other ranks wait at their next collective."""
        step = trainer.global_step
        if step % self._every == 0 or step == trainer.max_steps:
            self._run(trainer, pl_module)

    def _run(self, trainer: Trainer, module: Pretraining) -> None:
        if self._metrics is None:
            return
        started = time.monotonic()
        scores, protocol = self._score(module.method.exported())
        row: dict[str, Any] = {f"{_KNN}{k}": value for k, value in scores.items()}
        self._metrics.write(trainer.global_step, row | {"protocol": protocol.as_dict()})
        log.info(
            "step %d, k-NN top-1: %s (%.0f s, protocol %s)",
            trainer.global_step,
            ", ".join(f"k={k} {v:.1f}" for k, v in scores.items()),
            time.monotonic() - started,
            protocol.hash,
        )


def last_knn(metrics: Path) -> dict[str, Any]:
    """The newest score in ``metrics.jsonl``: top-1 in percent by k, and its protocol; empty where there is none."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if _KNN in line]
    if not rows:
        return {}
    top1 = {key.removeprefix(_KNN): value for key, value in rows[-1].items() if key.startswith(_KNN)}
    return {"k-NN top-1 in percent, by k": top1, "protocol": rows[-1]["protocol"]}
