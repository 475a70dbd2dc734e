"""By which mean and deviation the images were normalised that weights were trained on, and how far that is known."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from ssl_vit.errors import UserError

Colour = tuple[float, float, float]

Normalised = tuple[Colour, Colour]  # mean and deviation

IMAGENET: Normalised = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OF_IMAGENET = {
    *(
        "DINO",
        "iBOT",
        "EsViT",
        "DINOv2",
        "DINOv3",
        "EUPE",
        "MoBY",
        "MoCo v3",
        "MAE",
        "DETReg",
        "DETR or Deformable DETR",
    ),
    "torchvision",
}
"""Layouts whose authors normalise images with ImageNet's mean and deviation, whatever timm says of the architecture."""
OF_TIMM = {"BEiT", "BEiT, pretrained", "TIPSv2"}
"""Layouts whose authors normalise images as timm says of their architectures."""


class Colours(NamedTuple):
    """The mean and deviation of images in [0, 1], who says so, and whether that is more than the usual."""

    mean: Colour
    std: Colour
    why: str
    known: bool = True

    def __str__(self) -> str:
        """Say it in a line, and where it is a guess, how to set it."""
        set_it = "" if self.known else "; set others with --mean R,G,B --std R,G,B"
        return f"normalised with mean {_text(self.mean)} and deviation {_text(self.std)}: {self.why}{set_it}"


def as_colour(value: str | Sequence[float], name: str) -> Colour:
    """Read a mean or a deviation that the user gives: three numbers, or a text of them with commas between.

    name: "mean" or "std". UserError for anything else.

    >>> as_colour("0.5,0.5,0.5", "mean")
    (0.5, 0.5, 0.5)
    """
    try:
        red, green, blue = map(float, value.split(",") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        raise UserError(f"--{name} {value}: expected three numbers, as in 0.5,0.5,0.5") from None
    for number in (red, green, blue):
        if not (math.isfinite(number) and 0 <= number <= 1) or (name == "std" and number == 0):
            least = "above 0" if name == "std" else "0"
            raise UserError(
                f"--{name}: {number:g} is out of range; expected {least} to 1, of images in [0, 1]; divide values for "
                "pixels of 0 to 255 by 255"
            )
    return red, green, blue


_OF_ONE = re.compile(r"tipsv2")
"""Parts of names of architectures that one author's weights alone have, so that timm's values are that author's."""


def usual(name: str, own: Normalised, published: Collection[Normalised], classifier: bool) -> Colours:
    """What to take where a file doesn't say it.

    name: the architecture; own: its mean and deviation in timm; published: those of all its weights that timm knows;
    classifier: whether the file has one, as supervised training leaves it. Weights without a classifier are most often
    self-supervised, with ImageNet's values.
    """
    if _OF_ONE.search(name):
        return Colours(*own, f"as the only weights of {name} are")
    if own == IMAGENET or not published:
        return Colours(*own, f"as {name} usually is")
    about = "a guess, as the file does not say it: "
    if classifier:
        return Colours(*own, f"{about}as timm's {name}, while DINO, MAE and DeiT use {_text(IMAGENET[0])}", known=False)
    timms = f"while timm's {name} uses {_text(own[0])}"
    return Colours(*IMAGENET, f"{about}ImageNet's, as DINO, MAE and DeiT use, {timms}", known=False)


def _text(colour: Colour) -> str:
    return ",".join(f"{value:g}" for value in colour)
