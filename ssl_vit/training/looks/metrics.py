"""``metrics.jsonl`` and TensorBoard."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssl_vit.errors import RunFailed
from ssl_vit.files import write_atomically
from ssl_vit.training.looks.look import Look
from ssl_vit.training.looks.tracker import Told
from ssl_vit.training.step import Outcome

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger("ssl_vit")

KNN = "knn/"  # what stands before k in a line of scores
PENALTY = "penalty/"  # what stands before a penalty's name in the line of a step
NOTED = "noted/"  # likewise before the name of counts


class Metrics(Look):
    """A line of ``metrics.jsonl`` for every step, the same to TensorBoard every tenth; other looks add lines.

    A run goes on without TensorBoard where that can't be written, but never without its metrics. A tracker, where there
    is one, is told what TensorBoard is.
    """

    def __init__(self, folder: Path, start_step: int, tracker: Told | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = folder / "metrics.jsonl"
        _drop_steps_from(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board: SummaryWriter | None = None
        self._tracker = tracker
        with self._without_board():
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step)

    def after_step(self, outcome: Outcome) -> None:
        """One line a step."""
        row: dict[str, Any] = {"loss": outcome.loss, "lr": outcome.lr, "grad_norm": outcome.grad_norm}
        row |= {name: float(value) for name, value in outcome.given.parts.items()}
        row |= {PENALTY + name: float(value) for name, value in outcome.penalties.items()}
        row |= {NOTED + name: noted.counts.tolist() for name, noted in outcome.noted.items()}
        self.write(outcome.progress.step, row)

    def write(self, step: int, row: dict[str, Any]) -> None:
        """Add a line; numbers also go to TensorBoard. RunFailed where the line can't be written."""
        try:
            self._file.write(json.dumps({"step": step} | {k: _plain(v) for k, v in row.items()}) + "\n")
            self._file.flush()
        except OSError as error:
            told = f"{self._path} can't be written ({error.strerror})"
            raise RunFailed(f"{told}; free some space on its disk, then go on with --resume") from error
        if step % 10 and "grad_norm" in row:
            return
        group = "health/" if "health" in row else ""  # whose loss is a mean over steps
        if self._tracker is not None:
            self._tracker.numbers({group + name: value for name, value in row.items() if _tellable(value)}, step)
        if self._board is None:
            return
        with self._without_board():
            for name, value in row.items():
                if isinstance(value, float):
                    self._board.add_scalar(group + name, value, step)

    def show(self, name: str, picture: NDArray[np.uint8], step: int) -> None:
        """Show a picture [H, W, 3] on TensorBoard, and to the tracker."""
        if self._tracker is not None:
            self._tracker.picture(name, picture, step)
        if self._board is not None:
            with self._without_board():
                self._board.add_image(name, picture, step, dataformats="HWC")

    def end(self) -> None:
        """Close the files."""
        if self._tracker is not None:
            self._tracker.end()
        with suppress(OSError):  # what could not be written has been said
            self._file.close()
        if self._board is not None:
            with self._without_board():
                self._board.close()

    @contextmanager
    def _without_board(self) -> Iterator[None]:
        """Go on without TensorBoard where it fails inside, with errors of its own and often at a later call."""
        try:
            yield
        except Exception as error:
            log.warning("TensorBoard can't be written (%s): going on without it", error)
            self._board = None


def _tellable(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_steps_from(path: Path, step: int) -> None:
    """Steps that a killed run wrote after its last checkpoint will be done again, and half a line is none."""
    if path.exists():
        kept = "".join(json.dumps(row) + "\n" for row in read_rows(path) if _was_done(row, step))
        write_atomically(path, lambda staged: staged.write_text(kept, encoding="utf-8"))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; what is no line of ours, as on a full disk, is left out and counted."""
    rows, broken = [], 0
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            broken += 1
    if broken:
        log.warning("%s: %d lines can't be read and are left out", path, broken)
    return rows


def _was_done(row: dict[str, Any], step: int) -> bool:
    """A step's own line has the number of steps before it; a check's or a score's has the number of steps done."""
    return bool(row["step"] < step or (row["step"] == step > 0 and "grad_norm" not in row))


def last_knn(metrics: Path, step: int | None = None) -> dict[str, Any]:
    """The newest score in ``metrics.jsonl``: top-1 in percent by k, and its protocol; empty where there is none.

    step: of the weights that were scored; None for the newest.
    """
    rows = [row for row in read_rows(metrics) if any(key.startswith(KNN) for key in row)] if metrics.exists() else []
    rows = [row for row in rows if step in (None, row["step"])]
    if not rows:
        return {}
    top1 = {key.removeprefix(KNN): value for key, value in rows[-1].items() if key.startswith(KNN)}
    return {"k-NN top-1 in percent, by k": top1, "protocol": rows[-1].get("protocol")}
