"""``ssl-vit list``: the backbones and the methods that there are."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from typing import TYPE_CHECKING, Any

from ssl_vit.backbones.taxonomy import PLACES
from ssl_vit.cli.parser import Parser, one_of, results, say
from ssl_vit.cli.tables import aligned
from ssl_vit.errors import UserError
from ssl_vit.methods import config_class, list_methods
from ssl_vit.registry import METHODS

if TYPE_CHECKING:
    from ssl_vit.backbones.registry import BackboneRow


def list_names(argv: list[str]) -> None:
    """List the backbones or the methods that there are."""
    parser = Parser("list", str(list_names.__doc__))
    kinds = ("backbones", "methods")
    parser.add_argument("kind", metavar="|".join(kinds), type=one_of(*kinds), help="what to list")
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="a shell pattern, as in '*swin*'")
    words = "backbones that mix their tokens so alone: " + ", ".join(PLACES)
    parser.add_argument("--mixer", metavar="PLACE", type=one_of(*PLACES), help=words)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse(argv)
    if args.kind == "methods":
        if args.mixer:
            raise UserError("list methods: --mixer is of backbones; leave it out")
        rows = shown = [_method_line(name, args.pattern) for name in fnmatch.filter(list_methods(), args.pattern)]
    else:
        from ssl_vit.backbones import list_backbones

        found = list_backbones(args.pattern, args.mixer)
        rows, shown = [dataclasses.asdict(row) for row in found], [_backbone_line(row) for row in found]
    if not rows:
        alone = f" and mix their tokens by {args.mixer}" if args.mixer else ""
        raise UserError(f"no {args.kind} match {args.pattern!r}{alone}; expected a shell pattern, as in '*swin*'")
    say(json.dumps(rows, indent=2) if args.json else aligned(shown, results()))


def _method_line(name: str, pattern: str) -> dict[str, Any]:
    """What a method says of itself; an installed package is imported only where its method is asked for by name."""
    facts, package = ("idea", "needs", "choose_when"), METHODS.package_of(name)
    if package is not None and name != pattern:
        return {"name": name} | dict.fromkeys(facts) | {"idea": f"of {package}; ssl-vit list methods {name} says more"}
    config = config_class(name)
    return {"name": name} | {fact: getattr(config, fact) for fact in facts}


def _backbone_line(row: BackboneRow) -> dict[str, Any]:
    """A line of the table; what needs the network built is there only where few were asked for."""
    line: dict[str, Any] = {"name": row.name, "family": row.family, "kind": row.kind}
    line["parameters"] = "" if row.parameters is None else f"{row.parameters:,}"
    if row.info:
        height, width = row.info.size
        line |= {"features": row.info.dim, "stride": row.info.stages[-1].stride}
        line["pixels"] = f"{height}x{width}" + (" or others" if row.info.any_size else "")
    line["mixer"] = ", ".join(row.mixer)
    line["paper"] = row.paper
    return line
