"""What every section of a configuration is made of, and the base of a method's own. Needs no torch."""

from __future__ import annotations

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


class Section(BaseModel):
    """A frozen group of settings: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


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
