"""A region prior turns an image into boxes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ssl_vit.errors import UserError

Pixels = NDArray[np.uint8]  # [H, W, 3]
Boxes = NDArray[np.float32]  # [n, 4] left, top, right, bottom, fractions of the image


@dataclass(frozen=True)
class Prior(ABC):
    """A prior says where objects may be in an image, as a function of the image, its index and the settings alone.

    The work is split in two: ``look`` runs in the processes that read the images, ``boxes`` in the one that asked, for
    many images at once, as a network wants them. A prior without a network does everything in ``look``.
    """

    count: int = 30  # at most so many boxes an image

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError(f"the region prior {self.name!r} was asked for {self.count} boxes; set count to 1 or more")

    @property
    def side(self) -> int | None:
        """The image must be so large on its shorter side, in pixels; None where that doesn't matter."""
        return None

    def settings(self) -> dict[str, Any]:
        """The boxes of an image depend on these settings."""
        return {"prior": self.name, **asdict(self)}

    @abstractmethod
    def look(self, image: Pixels, index: int) -> NDArray[Any]:
        """Return what ``boxes`` needs of an image [H, W, 3]: where it is not overridden, the boxes themselves."""

    def boxes(self, looked: Sequence[NDArray[Any]]) -> list[Boxes]:
        """Return the boxes of several images, best first, at most `count` each."""
        return list(looked)

    def __call__(self, image: Pixels, index: int = 0) -> Boxes:
        """The boxes of one image [H, W, 3] as float32 [n, 4]: fractions of its width and height, best first."""
        return self.boxes([self.look(image, index)])[0]
