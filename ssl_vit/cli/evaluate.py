"""``ssl-vit eval`` and ``ssl-vit embed``: weights and images become scores, or a file of features."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from ssl_vit.cli.examples import of_kind
from ssl_vit.cli.parser import (
    Parser,
    add_outside_links,
    add_weights,
    bring_in_plugins,
    heard,
    images,
    new_file,
    one_or_several,
    say,
)
from ssl_vit.eval.kind import FeatureKind, Options, ReadoutOptions, ScoreKind, as_typed
from ssl_vit.eval.kinds import kind_class, list_kinds
from ssl_vit.wording import expected

FIGURES = {
    "robustness": "ssl_vit.report.robustness",
    "anomaly": "ssl_vit.report.anomaly",
    "detection": "ssl_vit.report.detection",
    "segmentation": "ssl_vit.report.segmentation",
    "sharpness": "ssl_vit.report.sharpness",
    "budget": "ssl_vit.report.budget",
}  # kinds that are drawn, by a function ``figure`` of the result


def evaluate(argv: list[str]) -> None:
    """Score weights on images: k-NN, linear, robustness and others."""
    if not argv or argv[0] in ("-h", "--help"):
        listed = [f"  {name:16}{kind_class(name).__doc__}" for name in list_kinds()]
        epilog = "\n".join(["kinds:", *listed, "", "`ssl-vit eval KIND --help` lists its settings."])
        parser = Parser("eval", str(evaluate.__doc__), epilog)
        parser.add_argument("kind", metavar="KIND", help="how to score, see below")
        parser.parse(argv)
    name, *rest = argv
    kind = kind_class(name)
    args = vars(_parser(kind).parse(rest))
    figure = args.pop("figure", None)
    settings = _settings(args, kind, f"eval {name}")
    bring_in_plugins()
    from ssl_vit.eval import api

    with heard():
        result = api.evaluate(name, args.pop("weights"), **args, **settings)
    if figure is not None:
        from ssl_vit.report.figures import save_figure

        save_figure(importlib.import_module(FIGURES[name]).figure(result), figure)
    say(json.dumps({key: value for key, value in result.items() if key not in kind.unprinted}, indent=2))


def embed(argv: list[str]) -> None:
    """Write the feature vector of every image of a folder to a file."""
    parser = Parser("embed", str(embed.__doc__))
    add_weights(parser)
    parser.add_argument("data", metavar="DATA", nargs="+", type=images, help="images, as for pretrain")
    add_outside_links(parser)
    words = "the file to write: .npz, .npy, .safetensors or .parquet"
    parser.add_argument("--out", type=new_file, metavar="FILE", required=True, help=words)
    words = "the vectors of all patches instead of one an image: float16 [N, h, w, D] in a .npy"
    parser.add_argument("--patches", action="store_true", help=words)
    _add_options(parser, ReadoutOptions)
    args = vars(parser.parse(argv))
    settings = _settings(args, ReadoutOptions, "embed")
    bring_in_plugins()
    from ssl_vit.eval import embed as script

    with heard():
        data = one_or_several(args.pop("data"))
        made = script.embed(args.pop("weights"), data, args.pop("out"), **args, **settings)
    say(str(made))


def _parser(kind: type[ScoreKind]) -> Parser:
    """The flags of a kind of score, made from its class."""
    parser = Parser(f"eval {kind.name}", str(kind.__doc__), examples=of_kind(kind.name, kind.folders))
    add_weights(parser)
    for folder, words in kind.folders.items():
        parser.add_argument(f"--{folder}", type=images, metavar="DIR", required=True, help=words)
    add_outside_links(parser)
    _add_options(parser, kind)
    if issubclass(kind, FeatureKind):
        parser.add_argument("--features", type=Path, metavar="DIR", help="keep the features there, and go on with them")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the result there too")
    if kind.name in FIGURES:
        parser.add_argument("--figure", type=new_file, metavar="FILE", help="draw the result there, a .png")
    return parser


def _add_options(parser: Parser, options: type[Options]) -> None:
    """A flag for every setting, which takes any text: the model reads and checks it."""
    for name, field in options.settings().items():
        about = " ".join((field.description or "").split())
        takes = expected(field.annotation, field.metadata)
        words = f"{about} Takes {takes}; default {as_typed(field.default) or 'none'}."
        letter = "N" if "integer" in takes else "X" if "number" in takes else "NAME"
        metavar = f"{letter},…" if isinstance(field.default, tuple) else letter
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, dest=name, metavar=metavar, default=argparse.SUPPRESS, help=words.replace("%", "%%"))


def _settings(args: dict[str, Any], options: type[Options], command: str) -> dict[str, Any]:
    """The values of all settings, checked; those that were typed are taken out of the arguments."""
    typed = {name: args.pop(name) for name in options.settings() if name in args}
    return options.of(typed, command).values()
