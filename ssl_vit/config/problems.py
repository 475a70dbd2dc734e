"""Every key of a configuration, and every mistake in one as a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ssl_vit.config.document import KeyPath
from ssl_vit.config.schema import DEFAULT_METHOD, RunConfig
from ssl_vit.methods import config_class
from ssl_vit.registry import UnknownName
from ssl_vit.wording import mistake_lines


def known_keys(method: str = DEFAULT_METHOD) -> dict[KeyPath, FieldInfo]:
    """List every key of a run with this method, sections before what is in them."""
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


def takes_text(field: FieldInfo) -> bool:
    """Tell whether a field takes any text, so that what is typed for it must not be read as a number."""

    def parts(annotation: Any) -> list[Any]:
        found = [part for each in get_args(annotation) for part in parts(each)]
        return [annotation, *found] if get_origin(annotation) is not Literal else []

    return str in parts(field.annotation)


def mistakes(error: ValidationError, tree: Mapping[str, Any], origins: Mapping[KeyPath, str]) -> list[str]:
    """Write one line for each key that is wrong; ``origins`` says where each key of ``tree`` is from."""
    method = tree.get("method")
    keys = known_keys(str(method.get("name", DEFAULT_METHOD)) if isinstance(method, dict) else DEFAULT_METHOD)
    return mistake_lines(error, keys, tree, origins)
