"""What typed settings are made of, those of a run as those of a score. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import core_schema

T = TypeVar("T")


@dataclass(frozen=True)
class MayBeAuto:
    """A mark on a type: its settings also take the word "auto", until the configuration is resolved."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.union_schema([core_schema.literal_schema([AUTO]), handler(source)])


AUTO: Any = "auto"
"""What a setting is until ``run.plan`` decides it."""

Auto: TypeAlias = Annotated[T, MayBeAuto()]
"""A setting that is decided once, before the run, from the architecture, the data and the devices; a T from then on."""

MAX_BAD = 0.05  # of the images may be unreadable, where nothing else is asked for

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A frozen group of settings: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def undecided(self) -> list[str]:
        """The names of the settings that are still "auto"."""
        fields = type(self).model_fields.items()
        return [key for key, field in fields if MayBeAuto() in field.metadata and getattr(self, key) == AUTO]
