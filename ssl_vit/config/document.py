"""The YAML is small and strict: data alone, every line known, nothing that can surprise, hang or import.

Read from the parser's events, so that anchors, aliases, tags, duplicate keys and deep nesting are refused
before anything is built. Plain scalars follow YAML 1.2's core schema (1e-3 is a number, ``no`` is text).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ssl_vit.errors import ConfigError

KeyPath = tuple[str, ...]
Leaf = tuple[KeyPath, Any, int]
"""A key, its value (an empty mapping counts as one) and its line, from 1."""

MAX_BYTES = 2**20
MAX_DEPTH = 8
MAX_ITEMS = 10_000

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_NOT_FINITE = {".nan", ".inf", "+.inf", "-.inf"}
_INTEGER = re.compile(r"[-+]?[0-9]{1,4000}")  # Python itself refuses to read more than 4300 digits
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")


def read_file(path: Path) -> list[Leaf]:
    """Read the leaves of a YAML file; ConfigError names the file and the line."""
    return read_text(_text(path), str(path))


def read_text(text: str, name: str) -> list[Leaf]:
    """Read the leaves of YAML text; ``name`` says where it is from.

    >>> read_text("optim: {lr: 1e-3}", "run.yaml")
    [(('optim', 'lr'), 0.001, 1)]
    """
    if tab := re.search(r"^ *\t\s*[^\s#]", text, re.MULTILINE):
        raise ConfigError([f"{name} line {text.count(chr(10), 0, tab.start()) + 1}: a tab; indent with spaces"])
    try:
        return _Reader(text, name).leaves()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError([f"{name} line {line}: not YAML: {error.problem or error.context}"]) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError([f"{name}: not text: character {error.character!r} at {error.position}"]) from error


def scalar(text: str) -> Any:
    """Return what unquoted YAML text stands for.

    >>> [scalar(word) for word in ("3", "1e-3", "true", "no", "null")]
    [3, 0.001, True, 'no', None]
    """
    word = text.lower()
    if word in _WORDS:
        return _WORDS[word]
    if word in _NOT_FINITE:
        return float(word.replace(".", ""))
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def dump_tree(tree: dict[str, Any]) -> str:
    """Write YAML that :func:`read_text` reads back to the same values; keys stay in order, lists on one line."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text


def _text(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe or a device could block or never end
            raise ConfigError([f"{path}: {'not a regular file' if path.exists() else 'no such file'}"])
        if (size := path.stat().st_size) > MAX_BYTES:
            raise ConfigError([f"{path}: {size} bytes; a configuration has at most {MAX_BYTES}"])
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{path}: can't be read: {error.strerror}"]) from error
    if b"\0" in data:
        raise ConfigError([f"{path}: not UTF-8 text (UTF-16?); save it as UTF-8"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8"]) from error


class _Reader:
    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.SafeLoader)
        self.found: list[Leaf] = []
        self.items = 0

    def leaves(self) -> list[Leaf]:
        next(self.events)  # the stream's start
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return []
        root = next(self.events)
        if isinstance(root, yaml.ScalarEvent) and root.value == "":  # a document of comments alone
            return []
        if not isinstance(root, yaml.MappingStartEvent):
            self.refuse(root, "expected keys and values, as in 'train:'")
        self.mapping(root, ())
        next(self.events)  # the document's end
        if not isinstance(more := next(self.events), yaml.StreamEndEvent):
            self.refuse(more, "a second document; a configuration is one")
        return self.found

    def mapping(self, start: yaml.Event, path: KeyPath) -> None:
        self.check(start, len(path))
        seen: set[str] = set()
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            self.check(event, len(path))
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse(event, "a key must be one word")
            if event.value in seen:
                self.refuse(event, f"{'.'.join((*path, event.value))} is given twice")
            seen.add(event.value)
            value = next(self.events)
            if isinstance(value, yaml.MappingStartEvent):
                self.mapping(value, (*path, event.value))
            else:
                item = self.value(value, len(path) + 1)
                self.found.append(((*path, event.value), item, _line(event)))
        if not seen and path:
            self.found.append((path, {}, _line(start)))

    def value(self, event: yaml.Event, depth: int) -> Any:
        self.check(event, depth)
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else scalar(event.value)
        if isinstance(event, yaml.MappingStartEvent):
            self.refuse(event, "keys inside a list")
        items = []
        while not isinstance(item := next(self.events), yaml.SequenceEndEvent):
            items.append(self.value(item, depth + 1))
        return items

    def check(self, event: yaml.Event, depth: int) -> None:
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:  # an alias is an event with an anchor
            self.refuse(event, "anchors and aliases (& and *) are not allowed; write the value out")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            self.refuse(event, f"tags ({event.tag}) are not allowed; write the plain value")
        self.items += 1
        if depth > MAX_DEPTH or self.items > MAX_ITEMS:
            self.refuse(event, f"more than a configuration holds ({MAX_DEPTH} levels, {MAX_ITEMS} keys and values)")

    def refuse(self, event: yaml.Event, what: str) -> NoReturn:
        raise ConfigError([f"{self.name} line {_line(event)}: {what}"])


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


class _Dumper(yaml.SafeDumper):
    """Quotes text that :func:`scalar` or YAML 1.1 would take for something else, and writes no anchors."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        tag: str = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]  # PyYAML's stubs lack it
        if kind is yaml.ScalarNode and implicit[0] and tag.endswith(":str") and not isinstance(scalar(value), str):
            return "tag:yaml.org,2002:float"  # 1e-3, a number since YAML 1.2
        return tag

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(  # PyYAML loses odd line breaks but in double quotes
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"'
    ),
)
_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
