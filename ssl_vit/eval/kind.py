"""What a kind of score is: its settings, checked alike from Python and from the command line. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.fields import FieldInfo

from ssl_vit.errors import ConfigError
from ssl_vit.settings import MAX_BAD, Fraction, Section
from ssl_vit.wording import KeyPath, mistake_lines

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome

T = TypeVar("T")

TRAIN = {"train": "labelled images to learn from"}
VAL = {"val": "labelled images to score on"}


def number(value: Any) -> Any:
    """A text becomes the number that it stands for; all else comes back as it is, for the type to accept or refuse.

    >>> number("3"), number("1e-3"), number("auto"), number(3)
    (3, 0.001, 'auto', 3)
    """
    for read in (int, float) if isinstance(value, str) else ():
        try:
            return read(value)
        except ValueError:
            continue
    return value


def listed(value: Any) -> Any:
    """A text becomes its items between commas, none for an empty one; a lone number becomes a list of one.

    >>> listed("1,5"), listed(""), listed(5), listed((1, 5))
    (('1', '5'), (), (5,), (1, 5))
    """
    if isinstance(value, str):
        return tuple(value.split(",")) if value else ()
    return (value,) if isinstance(value, int | float) else value


def last_layers(value: Any) -> Any:
    """The text "last4" becomes the last four layers, counted from the end; all else is read as any list is.

    >>> last_layers("last2"), last_layers("8,10")
    ((-2, -1), ('8', '10'))
    """
    found = re.fullmatch("last([1-9][0-9]{0,2})", value) if isinstance(value, str) else None
    return tuple(range(-int(found[1]), 0)) if found else listed(value)


Number = Annotated[T, BeforeValidator(number)]
"""A number, or text that says it: ``Number[Count]``."""
Several = Annotated[tuple[Number[T], ...], Field(strict=False), BeforeValidator(listed)]
"""A tuple or list of numbers or words, or text with commas between them: ``Several[Count]``."""
AtLeastOne = Annotated[Several[T], Field(min_length=1)]
"""As ``Several``, and not empty."""
Layers = Annotated[tuple[Number[int], ...], Field(strict=False, min_length=1), BeforeValidator(last_layers)]
"""As ``AtLeastOne[int]``, or "last4"."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Options(Section):
    """Options are settings that text may be given for, as on the command line."""

    @classmethod
    def of(cls, given: Mapping[str, Any], command: str, others: Iterable[str] = ()) -> Self:
        """The settings get these values, checked; the rest have their defaults.

        given: values by name, typed or as text. command: what the lines of an error begin with, as "eval knn".
        others: names that are known beside the settings', for "did you mean".

        Raises:
            ConfigError: a line for each value that is wrong and each name that is unknown.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            known = cls.settings() | {name: FieldInfo() for name in others}
            keys = dict[KeyPath, FieldInfo](((name,), field) for name, field in known.items())
            typed = {name: as_typed(value) for name, value in given.items()}
            lines = mistake_lines(error, keys, typed, {}, whole=command)
            raise ConfigError([f"{command}: {line}" for line in lines]) from error

    @classmethod
    def settings(cls) -> dict[str, FieldInfo]:
        """The fields are given by name, a class's own ones before those of its bases."""
        fields = cls.model_fields
        own = [name for name in fields if name in cls.__annotations__]
        return {name: fields[name] for name in [*own, *(name for name in fields if name not in own)]}

    def values(self) -> dict[str, Any]:
        """The values are given by name, typed as Python has them."""
        return {name: getattr(self, name) for name in self.settings()}


def as_typed(value: Any) -> str:
    """A value becomes the text that one would type for it on the command line.

    >>> as_typed((0.07, 1.0)), as_typed("auto"), as_typed(5)
    ('0.07,1', 'auto', '5')
    """
    if isinstance(value, tuple | list):
        return ",".join(map(as_typed, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class ReadoutOptions(Options):
    """These settings say which numbers of a frozen network are the features of an image."""

    layers: Layers = (-1,)
    """Layers whose features are taken, side by side: last4, or numbers from 0 or, negative, from the end."""
    pooling: Literal["model", "class", "mean", "class+mean"] = "model"
    """How a layer becomes a vector: as the model's own head has it, the class token, the mean of the patches, or both
    of these."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the network's forward pass."""


class ScoreKind(Options):
    """A kind of score is a class, whose fields are its settings, in a file of its own.

    The first line of the class's docstring is its help. Every field has a default, and a docstring that says its unit
    and its source.
    """

    name: ClassVar[str]
    """What it is called; ``ssl_vit.eval.kinds.register_kind`` sets it."""
    folders: ClassVar[Mapping[str, str]] = TRAIN | VAL
    """The images it reads: the name of the flag to what is in there."""
    unprinted: ClassVar[tuple[str, ...]] = ()
    """Parts of the result that are for the picture and are not printed."""

    def score(self, job: Job) -> Outcome:
        """Score the job's weights on its images. What needs torch is imported when this is called."""
        raise NotImplementedError


class FeatureKind(ReadoutOptions, ScoreKind):
    """A score of this kind is made on the features of a frozen network."""

    seed: Number[Seed] = 0
    """Seed of whatever is drawn at random."""
    max_bad: Number[Fraction] = MAX_BAD
    """Share of a folder's images that may be unreadable; they are named and left out."""
