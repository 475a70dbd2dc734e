"""Datasets by name, as "hf:owner/name,split=train", and those that a program hands over. Imports nothing heavy: it is
asked before anything is read.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any, NamedTuple, Protocol

from ssl_vit.errors import UserError

_PREFIX = "hf:"
_OBJECT = "python:"  # what a configuration says of an object, instead of a path


class Dataset(Protocol):
    """The items of a map-style dataset are PIL images, or tuples that begin with one."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Any:
        """One of them."""


Images = str | os.PathLike[str] | Dataset  # what ``sources.open_source`` can open; also a list of the first two


class DatasetName(NamedTuple):
    """The name is of a dataset that the library `datasets` can load; None lets it choose, where there is one choice."""

    path: str  # owner/name on the Hugging Face hub, or a folder
    config: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        said = [f",{key}={value}" for key, value in self._asdict().items() if key != "path" and value is not None]
        return f"{_PREFIX}{self.path}{''.join(said)}"


def is_dataset(path: str) -> bool:
    """Tell whether a text names a dataset, and no file.

    >>> is_dataset("hf:zh-plus/tiny-imagenet"), is_dataset("photos")
    (True, False)
    """
    return path.startswith(_PREFIX)


def parse(text: str) -> DatasetName:
    """Split a name into its parts; UserError for one that is not spelt so, or without the library.

    >>> parse("hf:owner/name,split=test,column=img")
    DatasetName(path='owner/name', config=None, split='test', column='img', revision=None)
    """
    path, *choices = text.removeprefix(_PREFIX).split(",")
    known = DatasetName._fields[1:]
    chosen = dict[str, str]()
    for choice in choices:
        key, _, value = choice.partition("=")
        if key not in known or not value or key in chosen:
            raise UserError(
                f"{text}: {choice!r} is not understood; choose by {'=…, '.join(known)}=…, each at most once"
            )
        chosen[key] = value
    if not path:
        raise UserError(f"{text}: names no dataset; write hf:owner/name or hf:folder, then ,split=train if need be")
    require_library(text)
    return DatasetName(path, **chosen)


def require_library(text: str) -> None:
    """Raise UserError, which names the extra, where `datasets` is not installed."""
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{text}: reading it needs the library datasets; pip install 'ssl_vit[datasets]'")


def several(images: Images) -> list[str] | None:
    """List the texts where images are given as several of them; None where they are given otherwise.

    >>> several(("a", "b")), several("a"), several([1])
    (['a', 'b'], None, None)
    """
    if isinstance(images, (list, tuple)) and images and all(isinstance(each, (str, os.PathLike)) for each in images):
        return [os.fspath(each) for each in images]
    return None


def images_name(images: Images) -> str:
    """Name images in a text: the path, or for an object its class.

    >>> images_name("photos"), images_name([1])
    ('photos', 'python:builtins.list')
    """
    if isinstance(images, (str, os.PathLike)):
        return os.fspath(images)
    if (texts := several(images)) is not None:
        return ", ".join(texts)
    return f"{_OBJECT}{type(images).__module__}.{type(images).__qualname__}"


def is_object(text: str) -> bool:
    """Tell whether a text stands for an object."""
    return text.startswith(_OBJECT)


def refuse_object(text: str) -> None:
    """Raise UserError for a text that stands for an object, which only its program has."""
    if is_object(text):
        raise UserError(
            f"{text}: a dataset that a Python program handed over; go on in that program, with the same datasets: "
            "ssl_vit.pretrain(dataset, out, val=…, resume=True)"
        )
