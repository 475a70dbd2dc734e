"""The boxes of many images lie in one memory-mapped file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.store import MISSING, STATE
from ssl_vit.errors import UserError
from ssl_vit.proposals.prior import Boxes

BOXES = "boxes.npy"


class Proposals:
    """``proposals[index]`` gives the boxes of an image of the source, float32 [n, 4], best first; see ``propose``.

    boxes: float32 [N, K, 4] of all images, memory-mapped; fractions of the image, zeros behind the last box. An image
    that could not be read has none. In another process the file is mapped again, not copied.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            rows, state = (np.load(self.folder / name, mmap_mode="r") for name in (BOXES, STATE))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: no folder of proposals ({error}); make one by propose()") from error
        missing = int((state == MISSING).sum())
        if missing:
            raise UserError(f"{self.folder}: {missing} of {len(state)} images have no proposals yet; finish propose()")
        self.boxes: NDArray[np.float32] = rows.reshape(len(rows), -1, 4)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> Boxes:
        slots = self.boxes[index]
        return np.array(slots[: int((slots[:, 2] > slots[:, 0]).sum())])

    def __reduce__(self) -> tuple[Any, ...]:
        return Proposals, (self.folder,)
