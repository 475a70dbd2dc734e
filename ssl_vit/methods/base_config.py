"""What every section of a configuration is made of, and the base of a method's own. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.errors import UserError
from ssl_vit.settings import (
    AUTO,
    Auto,
    Count,
    CountOrZero,
    Fraction,
    Momentum,
    NonNegative,
    Part,
    Positive,
    Section,
)

__all__ = [  # with the types of settings, so that a method's file finds all it needs here
    "AUTO",
    "SMALL",
    "TINY",
    "Auto",
    "Change",
    "Choices",
    "Colour",
    "Count",
    "CountOrZero",
    "Fraction",
    "MaskedConfig",
    "MethodConfig",
    "Momentum",
    "NonNegative",
    "Part",
    "Positive",
    "Scale",
    "Section",
    "Situation",
    "TwoViewConfig",
    "optimiser_choices",
    "small_set_momentum",
    "small_set_rate",
    "two_views",
]


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1]:
        raise ValueError("two numbers with 0 < low ≤ high ≤ 1")
    return scale


# YAML has lists and no tuples, so the outer type alone is lax; its numbers stay strict.
Scale = Annotated[tuple[Fraction, Fraction], Field(strict=False), AfterValidator(_ordered)]
"""(low, high) fractions of an image's area."""

Colour = Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)]
"""Red, green and blue, of images in [0, 1]."""


@dataclass(frozen=True)
class Situation:
    """What a method's recipe may depend on when a setting is "auto"."""

    images: int
    epochs: int
    steps: int  # of the whole run
    image_size: int  # side of a global crop, pixels
    batch_size: int  # images a step, over all devices
    dim: int  # length of the backbone's feature vector
    kind: str  # of backbone: "transformer", "convolutional", "mlp", "hybrid"
    any_size: bool  # whether the backbone takes crops of other sizes
    multiple: int  # which those sizes must be multiples of, pixels
    smallest: int = field(default=1, kw_only=True)  # of those sizes, pixels
    drops_paths: bool  # whether the backbone has stochastic depth
    grid: tuple[int, int]  # its rows and columns of patches of a global crop
    parts: int = 1  # in which a step's images are seen, one after the other
    layers: Callable[[], int] = field(default=lambda: 1, kw_only=True, compare=False)  # of the backbone, as timm counts
    weights: str | None = None  # whose file the network begins with; None where it begins with random numbers
    own: bool = False  # whether that file is a run's of ours, and not another's
    products: bool = False  # whether small products are trained beside those weights, and not they (LoRA)


@dataclass(frozen=True)
class Change:
    """A setting to change where a run went wrong; said only where it changes something."""

    how: Literal["lower", "raise", "set"]
    key: str  # "optim.lr"
    to: object = None  # the value, of "set"
    when: tuple[str, object] | None = None  # another key and the value with which this one has a say


Choices = dict[str, tuple[object, str]]
"""key ("optim.lr") to the value chosen and the reason, in a few words."""

SMALL = 20_000  # images below which a recipe made for the 1.28 million of ImageNet is adapted
TINY = 96  # pixels below which one made for 224 is


def small_set_rate(given: Situation) -> tuple[float, str]:
    """A learning rate of AdamW for few images; the linear rules, made for batches of thousands, give far less."""
    lr = 1e-3 * 128 / given.dim * math.sqrt(given.batch_size / 128)
    return float(f"{lr:.2g}"), "small set: 1e-3 for width 128 and batch 128, less for wider networks"


def small_set_momentum(given: Situation, official: float) -> tuple[float, str]:
    """A teacher's momentum for few steps: one that lasts as long as the run would stay where it began."""
    momentum = min(official, max(0.9, round(1 - 75 / given.steps, 4)))
    return momentum, f"{given.steps} steps: the shorter the run, the quicker the teacher"


class MethodConfig(Section):
    """A method's hyper-parameters: ``ssl_vit/methods/NAME_config.py`` holds one ``Config(MethodConfig)``.

    Every field's docstring says its unit and its source.
    """

    name: str
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str]
    """What the method does, in one sentence."""
    needs: ClassVar[str]
    """What it asks of the backbone and of the data."""
    choose_when: ClassVar[str]
    """When to prefer it to the others."""
    clip_per_tensor: ClassVar[bool] = False
    """Whether optim.clip bounds the gradient of each tensor, or of all together."""
    masks: ClassVar[bool] = False
    """Whether the method hides patches, for which the backbone then learns a token."""
    advice: ClassVar[Mapping[str, Sequence[Change | str] | str]] = {
        "constant-output collapse": (
            Change("lower", "optim.lr"),
            Change("raise", "optim.warmup_epochs"),
            Change("raise", "train.batch_size"),
        ),
        "not learning yet": (Change("raise", "train.epochs"), Change("raise", "optim.lr")),
    }
    """What to change where a run is found to be in such a state: the kind of verdict to settings, and words of the
    method's own; what the run's settings leave no room for is not said."""

    keeps_backbone: ClassVar[bool] = False
    """Whether the backbone stays as it comes, and only what is beside it learns."""
    plain_only: ClassVar[str | None] = None
    """What other backbones are, where the method needs a plain transformer; None where it takes any."""

    def choose(self, given: Situation) -> Choices:
        """The recipe: a value and a reason for every setting of the method and of the optimiser that is "auto"."""
        raise NotImplementedError

    def check(self, given: Situation) -> None:
        """UserError where the settings, all resolved, can't work in this situation; called before images are read."""

    def views(self, image_size: int) -> ViewPlan:
        """What each image is turned into, for global crops of ``image_size`` pixels."""
        raise NotImplementedError

    def spans(self) -> dict[str, float]:
        """Epochs that each phase at the start lasts, by the key that sets it; a run must be longer than each."""
        return {}

    def teacher_momentum(self) -> float | None:
        """The teacher's share of itself at the start, which a cosine takes to 1; None where there is no teacher."""
        return None


def optimiser_choices(
    given: Situation,
    why: str,
    *,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    lr: tuple[float, int],
    min_lr: float = 0.0,
    weight_decay: float,
    warmup_epochs: float,
    clip: float = 0.0,
    drop_path: float = 0.0,
    beta2: float = 0.999,
) -> Choices:
    """A published recipe for an optimiser with constant weight decay.

    lr: (rate, batch) of the paper, scaled linearly to the batch of the run; min_lr: as a share of that.
    warmup_epochs: of 300; a short run keeps their share, but at least a tenth.
    Small sets get another rate and all their paths, unless the network is convolutional.
    """
    warmup = min(warmup_epochs, max(warmup_epochs / 300, 0.1) * given.epochs)
    rate = lr[0] * given.batch_size / lr[1]
    scaled = (rate, f"{lr[0]:g} x batch / {lr[1]}, {why}")
    paths = (drop_path, why)
    if drop_path > 0 and not given.drops_paths:
        paths = 0.0, "this backbone has no such paths"
    if given.images < SMALL and given.kind != "convolutional":
        scaled = small_set_rate(given)
        paths = 0.0, "small set: few steps, nothing to regularise yet"
        rate = scaled[0]
    return {
        "optim.optimizer": (optimizer, why),
        "optim.lr": scaled,
        "optim.beta2": (beta2, why),
        "optim.min_lr": (rate * min_lr, why),
        "optim.weight_decay": (weight_decay, why),
        "optim.weight_decay_end": (weight_decay, why),
        "optim.warmup_epochs": (warmup, why if warmup == warmup_epochs else f"{warmup_epochs:g} of 300 epochs, {why}"),
        "optim.clip": (clip, why),
        "backbone.drop_path": paths,
    }


def two_views(
    image_size: int, scale: tuple[float, float], flip: float = 0.5, interpolation: str = "bicubic"
) -> tuple[View, View]:
    """BYOL's two crops and their colours (2006.07733), which later methods kept; one is blurred, one solarised.

    The blur, up to 2 pixels on crops of 224, keeps its proportion to smaller ones.

    >>> [(view.name, view.blur_p, view.solarize_p) for view in two_views(224, (0.08, 1.0))]
    [('global1', 1.0, 0.0), ('global2', 0.1, 0.2)]
    """
    first = View(
        name="global1",
        count=1,
        size=image_size,
        scale=scale,
        interpolation=interpolation,
        flip_p=flip,
        jitter=(0.4, 0.4, 0.2, 0.1),
        jitter_p=0.8,
        gray_p=0.2,
        blur_p=1.0,
        blur_sigma=(0.1 * image_size / 224, 2.0 * image_size / 224),
    )
    return first, replace(first, name="global2", blur_p=0.1, solarize_p=0.2)


class TwoViewConfig(MethodConfig):
    """What BYOL (2006.07733), MoCo v3 (2104.02057) and MoBY (2105.04553) have in common; "papers" are these three."""

    interpolation: ClassVar[str] = "bilinear"
    """How crops are resized."""

    hidden_dim: Count = 4096
    """Width of the hidden layers of projector and predictor (papers: 4096)."""
    out_dim: Count = 256
    """Length of what projector and predictor give (papers: 256)."""
    momentum: Auto[Momentum] = AUTO
    """The teacher's share of itself at each step, at the start; a cosine takes it to 1.0
    (papers: 0.99 up to 300 epochs; BYOL over 1000: 0.996)."""
    scale: Auto[Scale] = AUTO
    """Share of the image's area that a crop covers, low and high (papers: 0.08 to 1)."""
    flip: Fraction = 0.5
    """Share of crops that are mirrored; 0 where left and right differ, as in text (papers: 0.5)."""

    def common_choices(self, given: Situation) -> Choices:
        """The published momentum and crops; for few images a quicker teacher, for small ones larger crops."""
        choices: Choices = {"method.momentum": (0.99, "papers"), "method.scale": ((0.08, 1.0), "papers")}
        if given.images < SMALL:
            choices["method.momentum"] = small_set_momentum(given, 0.99)
        if given.image_size < TINY:
            choices["method.scale"] = ((0.4, 1.0), "less of so small an image shows nothing")
        return choices

    def check(self, given: Situation) -> None:
        """Batch norm and contrast compare images with each other."""
        if given.batch_size < 2 * given.parts:
            raise UserError(
                f"train.batch_size: {self.name} compares images with each other; set at least {2 * given.parts}"
            )

    def teacher_momentum(self) -> float | None:
        """That of the settings."""
        return self.momentum

    def views(self, image_size: int) -> ViewPlan:
        """BYOL's two views of ``image_size`` pixels."""
        return ViewPlan(two_views(image_size, self.scale, self.flip, self.interpolation))


class MaskedConfig(MethodConfig):
    """What methods have in common that predict, from one crop, what is hidden in it."""

    mask_ratio: Part
    scale: Scale = (0.08, 1.0)
    """Share of the image's area that the crop covers, low and high."""
    flip: Fraction = 0.5
    """Share of crops that are mirrored; 0 where left and right differ, as in text."""
    colours: ClassVar[tuple[float, float, float, float] | None] = None
    """By how much brightness, contrast, saturation and hue are changed."""

    def check(self, given: Situation) -> None:
        """Something must be hidden, and something seen."""
        (rows, columns), size = given.grid, given.image_size
        if rows * columns == 1:
            raise UserError(
                f"backbone.name: at {size} pixels its grid is a single patch, of which {self.name} can't hide a part; "
                "raise backbone.image_size, or choose a backbone with a finer grid"
            )
        least = 1 / (rows * columns)
        if not least <= self.mask_ratio <= 1 - least:
            raise UserError(
                f"method.mask_ratio: {self.mask_ratio:.3g} of {rows} x {columns} patches, the grid at {size} pixels, "
                f"does not hide one patch and leave one; set {least:.3g} to {1 - least:.3g}"
            )

    def views(self, image_size: int) -> ViewPlan:
        """One crop of ``image_size`` pixels."""
        view = View("image", 1, image_size, scale=self.scale, flip_p=self.flip)
        return ViewPlan((replace(view, jitter=self.colours, jitter_p=1.0) if self.colours else view,))
