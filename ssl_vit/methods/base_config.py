"""What every section of a configuration is made of, and the base of a method's own. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ssl_vit.data.plan import ViewPlan

T = TypeVar("T")

Auto: TypeAlias = T | Literal["auto"]
"""A setting that is resolved once, before the run, from the architecture, the data and the devices."""

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1]:
        raise ValueError("two numbers with 0 < low ≤ high ≤ 1")
    return scale


# YAML has lists and no tuples, so the outer type alone is lax; its numbers stay strict.
Scale = Annotated[tuple[Fraction, Fraction], Field(strict=False), AfterValidator(_ordered)]
"""(low, high) fractions of an image's area."""

Colour = Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)]
"""Red, green and blue, of images in [0, 1]."""


class Section(BaseModel):
    """A frozen group of settings: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class Situation:
    """What a method's recipe may depend on when a setting is "auto"."""

    images: int
    image_size: int  # side of a global crop, pixels
    batch_size: int  # images a step, over all devices
    kind: str  # of backbone: "transformer", "convolutional", "mlp", "hybrid"
    any_size: bool  # whether the backbone takes crops of other sizes
    multiple: int  # which those sizes must be multiples of, pixels
    drops_paths: bool  # whether the backbone has stochastic depth


Choices = dict[str, tuple[object, str]]
"""key ("optim.lr") to the value chosen and the reason, in a few words."""


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

    def choose(self, given: Situation) -> Choices:
        """The recipe: a value and a reason for every setting of the method and of the optimiser that is "auto"."""
        raise NotImplementedError

    def views(self, image_size: int) -> ViewPlan:
        """What each image is turned into, for global crops of ``image_size`` pixels."""
        raise NotImplementedError


def settled(value: T | Literal["auto"]) -> T:
    """The value of a setting that has been resolved; ValueError where it is still "auto".

    >>> settled(8)
    8
    """
    if value == "auto":
        raise ValueError('a setting is still "auto"; resolve the configuration first')
    return value
