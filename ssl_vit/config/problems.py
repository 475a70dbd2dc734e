"""Every mistake in a configuration as one line: the key, what was expected, what was found, and where."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ssl_vit.config.document import KeyPath
from ssl_vit.config.schema import DEFAULT_METHOD, RunConfig
from ssl_vit.methods import config_class
from ssl_vit.registry import UnknownName

MAX_LINES = 50
_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def known_keys(method: str = DEFAULT_METHOD) -> dict[KeyPath, FieldInfo]:
    """Every key of a run with this method, sections before what is in them."""
    try:
        settings = config_class(method)
    except UnknownName:
        settings = config_class(DEFAULT_METHOD)
    keys: dict[KeyPath, FieldInfo] = {}
    for section, field in RunConfig.model_fields.items():
        keys[section,] = field
        model: Any = settings if section == "method" else field.annotation
        keys |= {(section, key): inner for key, inner in getattr(model, "model_fields", {}).items()}
    return keys


def expected(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type in plain words.

    >>> expected(Annotated[int, FieldInfo(ge=1)] | Literal["auto"])
    'an integer ≥ 1 or auto'
    """
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return expected(inside[0], [*inside[1:], *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(expected(each) for each in inside)
    if origin is Literal:
        return " or ".join(map(str, inside))
    if origin is tuple:
        return f"[{', '.join('…' if each is ... else expected(each) for each in inside)}]"
    if annotation not in _NAMES:
        return "keys and values" if origin is dict else "a section of keys"
    rules = [rule for item in metadata for rule in (item.metadata if isinstance(item, FieldInfo) else [item])]
    bounds = [f"{sign} {getattr(rule, name)}" for rule in rules for name, sign in _SIGNS.items() if hasattr(rule, name)]
    filled = "non-empty " if any(hasattr(rule, "min_length") for rule in rules) else ""
    return f"{filled}{_NAMES[annotation]} {' and '.join(bounds)}".rstrip()


def takes_text(field: FieldInfo) -> bool:
    """Whether a field takes any text, so that what is typed for it must not be read as a number."""

    def parts(annotation: Any) -> list[Any]:
        found = [part for each in get_args(annotation) for part in parts(each)]
        return [annotation, *found] if get_origin(annotation) is not Literal else []

    return str in parts(field.annotation)


def describe(error: ValidationError, tree: Mapping[str, Any], origins: Mapping[KeyPath, str]) -> list[str]:
    """One line for each key that is wrong; ``origins`` says where each key of ``tree`` is from."""
    method = tree.get("method")
    keys = known_keys(str(method.get("name", DEFAULT_METHOD)) if isinstance(method, dict) else DEFAULT_METHOD)
    wrong: dict[KeyPath, Any] = {}
    for detail in error.errors(include_url=False):
        path = _key_path(detail, keys)
        if path not in wrong or detail["type"] == "value_error":  # of a union's branches, the most telling
            wrong[path] = detail
    lines = []
    for path, detail in list(wrong.items())[:MAX_LINES]:
        where = f" ({origins[path]})" if path in origins else ""
        lines.append(f"{'.'.join(path)}: {_what(path, detail, keys, tree)}{where}")
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


def _what(path: KeyPath, detail: Any, keys: Mapping[KeyPath, FieldInfo], tree: Mapping[str, Any]) -> str:
    if detail["type"] == "extra_forbidden":
        return f"unknown key; {_nearest(path, list(keys))}"
    if detail["type"] == "unknown_method":
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
    return f"expected {wanted}, got {_show(value)}"


def _nearest(path: KeyPath, keys: list[KeyPath]) -> str:
    def closeness(key: KeyPath) -> float:
        same_section = 0.1 if key[:-1] == path[:-1] else 0.0
        if key[-1] == "".join(word[:1] for word in path[-1].lower().split("_")):  # learning_rate is lr
            return 1.0 + same_section
        return difflib.SequenceMatcher(None, path[-1].lower(), key[-1]).ratio() + same_section

    if tuple(path[-1].split(".")) in keys:
        *section, name = path[-1].split(".")
        return f"write {name} on a line of its own, indented, under {'.'.join(section)}:"
    best = max(keys, key=closeness)
    if closeness(best) >= 0.65:
        return f"did you mean {'.'.join(best)}?"
    siblings = ", ".join(key[-1] for key in keys if key[:-1] == path[:-1])
    return f"{'.'.join(path[:-1]) or 'a configuration'} has {siblings}"


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "keys and values"
    plain = {None: "nothing", True: "true", False: "false"}
    text = plain[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
