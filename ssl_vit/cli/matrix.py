"""``ssl-vit matrix`` shows which method pretrains which family of backbones."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections import Counter

from ssl_vit.cli.parser import Parser, say
from ssl_vit.cli.tables import aligned
from ssl_vit.errors import UserError
from ssl_vit.methods import config_class, list_methods
from ssl_vit.registry import METHODS


def matrix(argv: list[str]) -> None:
    """Show which method pretrains which family of backbones, or why not."""
    parser = Parser("matrix", str(matrix.__doc__))
    parser.add_argument(
        "pattern",
        metavar="PATTERN",
        nargs="?",
        default="*",
        help="of families or names, as in '*swin*'",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse(argv)
    from ssl_vit.backbones import list_backbones
    from ssl_vit.backbones.anatomy import PLAIN_FAMILIES

    packages = {name: package for name in list_methods() if (package := METHODS.package_of(name))}
    reasons = {name: config_class(name).plain_only for name in list_methods() if name not in packages}
    backbones = list_backbones()
    found = [row for row in backbones if fnmatch.fnmatch(row.family, args.pattern)]
    found = found or [row for row in backbones if fnmatch.fnmatch(row.name, args.pattern)]
    models = Counter(row.family for row in found)
    rows: list[dict[str, object]] = [
        {"family": family, "models": models[family]}
        | {name: reason if reason and family not in PLAIN_FAMILIES else None for name, reason in reasons.items()}
        for family in sorted(models)
    ]
    if not rows:
        raise UserError(
            f"no family of backbones matches {args.pattern!r}, and no name; expected a shell pattern, as in '*swin*'"
        )
    if args.json:
        say(json.dumps(rows, indent=2))
        return
    marked = {name: f"({number})" for number, name in enumerate((n for n in reasons if reasons[n]), start=1)}
    shown = [{key: _cell(key, value, marked) for key, value in row.items()} for row in rows]
    say(aligned(shown, sys.stdout))
    for name, mark in marked.items():
        if any(row[name] for row in rows):
            say(f"{mark} not with {name}: it is {reasons[name]}")
    for name, package in packages.items():
        say(f"not shown: {name}, of {package}; ssl-vit list methods {name} says what it needs")


def _cell(key: str, value: object, marked: dict[str, str]) -> object:
    """A tick where nothing stands against it, else the number of the reason."""
    if key in ("family", "models"):
        return value
    return "✓" if value is None else marked[key]
