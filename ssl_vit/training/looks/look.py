"""The contract of everything that looks at a run now and then."""

from __future__ import annotations

from typing import Any

from ssl_vit.training.step import Learner, Outcome


class Look:
    """Called by the loop at known places, on every rank; what it keeps over a resume is its state."""

    name: str = ""
    """Under which its state lies in a checkpoint; "" for those that have none."""
    over: str = ""
    """Why the run is to end before its last step, the same on every rank; "" as long as it is to go on."""

    def begin(self, learner: Learner, start: int) -> None:
        """Before the first step that this process takes, which is number ``start``."""

    def before_step(self, step: int) -> None:
        """The batch is there."""

    def after_step(self, outcome: Outcome) -> None:
        """A step is done; ``outcome.progress.step + 1`` are, in all."""

    def end(self) -> None:
        """After the last step, and where a run ends by an error."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs to say the same: tensors and plain values."""
        return {}

    def restore_state(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
