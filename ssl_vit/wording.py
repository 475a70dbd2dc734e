"""Typed settings in words: what a type takes, and every mistake as one line: key, expected, found, and where."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ssl_vit.settings import MayBeAuto
from ssl_vit.spelling import closeness

KeyPath = tuple[str, ...]

MAX_LINES = 50
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def expected(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in plain words.

    >>> expected(Annotated[int, FieldInfo(ge=1), MayBeAuto()])
    'an integer ≥ 1 or auto'
    """
    metadata = list(metadata)
    if MayBeAuto() in metadata:
        metadata.remove(MayBeAuto())
        return f"{expected(annotation, metadata)} or auto"
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(inside[0], [*inside[1:], *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(expected(each) for each in inside)
    if origin is Literal:
        return " or ".join(map(str, inside))
    rules = [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]
    filled = "non-empty " if any(hasattr(rule, "min_length") for rule in rules) else ""
    if origin is tuple:
        return f"{filled}[{', '.join('…' if each is ... else expected(each) for each in inside)}]"
    if annotation not in _NAMES:
        return "keys and values" if origin is dict else "a section of keys"
    bounds = [f"{sign} {getattr(rule, name)}" for rule in rules for name, sign in _SIGNS.items() if hasattr(rule, name)]
    return f"{filled}{_NAMES[annotation]} {' and '.join(bounds)}".rstrip()


def mistake_lines(
    error: ValidationError,
    keys: Mapping[KeyPath, FieldInfo],
    tree: Mapping[str, Any],
    origins: Mapping[KeyPath, str],
    whole: str = "a configuration",
) -> list[str]:
    """One line for each key that is wrong.

    keys: all that there are; tree: what was given; origins: where each key of the tree is from; whole: what has keys.
    """
    wrong: dict[KeyPath, Any] = {}
    for detail in error.errors(include_url=False):
        path = _key_path(detail, keys)
        if path not in wrong or detail["type"] == "value_error":  # of a union's branches, the most telling
            wrong[path] = detail
    lines = []
    for path, detail in list(wrong.items())[:MAX_LINES]:
        where = f" ({origins[path]})" if path in origins else ""
        lines.append(f"{'.'.join(path)}: {_what(path, detail, keys, tree, whole)}{where}")
    if len(wrong) > MAX_LINES:
        lines.append(f"… and {len(wrong) - MAX_LINES} more mistakes")
    return lines


def _key_path(detail: Any, keys: Mapping[KeyPath, FieldInfo]) -> KeyPath:
    """The key that an error is about: pydantic's location also names the branch of a union and the item of a list."""
    location = tuple(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return location
    length = max(n for n in range(1, len(location) + 1) if location[:n] in keys)
    inside_dict = get_origin(keys[location[:length]].annotation) is dict
    return location[: length + 1] if inside_dict else location[:length]


def _what(path: KeyPath, detail: Any, keys: Mapping[KeyPath, FieldInfo], tree: Mapping[str, Any], whole: str) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown key; {_nearest(path, list(keys), whole)}"
    if detail["type"] == "unknown_name":
        return str(detail["msg"])
    if detail["type"] == "value_error":
        wanted = str(detail["ctx"]["error"])
    elif path in keys:
        wanted = expected(keys[path].annotation, keys[path].metadata)
    else:  # an entry of backbone.args
        wanted = expected(get_args(keys[path[:-1]].annotation)[1])
    value: Any = tree
    for key in path:
        if key not in value:
            return f"missing; expected {wanted}: {' '.join((keys[path].description or '').split())}"
        value = value[key]
    return f"expected {wanted}, got {_show(value)}{_nearest_word(keys, path, value)}"


def _nearest_word(keys: Mapping[KeyPath, FieldInfo], path: KeyPath, value: Any) -> str:
    """What may have been meant, where text is not among the words that a setting takes (or a list of them)."""
    known = list(_words(keys[path].annotation)) if path in keys and isinstance(value, str) else []
    for word in str(value).split(",") if known else []:
        if word not in known and (near := difflib.get_close_matches(word, known, n=1)):
            return f"; did you mean {near[0]}?"
    return ""


def _words(annotation: Any) -> Iterator[str]:
    for part in get_args(annotation):
        if get_origin(annotation) is not Literal:
            yield from _words(part)
        elif isinstance(part, str):
            yield part


def _nearest(path: KeyPath, keys: list[KeyPath], whole: str) -> str:
    def nearness(key: KeyPath) -> float:
        same_section = 0.1 if key[:-1] == path[:-1] else 0.0
        if key[-1] == "".join(word[:1] for word in path[-1].lower().split("_")):  # learning_rate is lr
            return 1.0 + same_section
        return closeness(path[-1].lower(), key[-1]) + same_section

    if tuple(path[-1].split(".")) in keys:
        *section, name = path[-1].split(".")
        return f"write {name} on a line of its own, indented, under {'.'.join(section)}:"
    best = max(keys, key=nearness)
    if nearness(best) >= 0.65:
        return f"did you mean {'.'.join(best)}?"
    siblings = ", ".join(key[-1] for key in keys if key[:-1] == path[:-1])
    return f"{'.'.join(path[:-1]) or whole} has {siblings}"


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "keys and values"
    plain = {None: "nothing", True: "true", False: "false"}
    text = plain[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
