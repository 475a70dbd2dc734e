"""Docstrings as the site shows them: examples as code wherever they stand, names without their role.

An extension of griffe's: https://mkdocstrings.github.io/griffe/guide/users/extending/.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^|\n)((?:>>>.*\n?)(?:.+(?:\n|$))*)")
_ROLE = re.compile(r":\w+:(`[^`]+`)")


class Docstrings(griffe.Extension):
    """Each example, to the next empty line, is fenced; :func:`name` is `name`."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change what is shown of an object."""
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, _ROLE.sub(r"\1", obj.docstring.value))


def _fenced(match: re.Match[str]) -> str:
    return f"\n```pycon\n{match.group(1).rstrip()}\n```\n"
