"""``ssl-vit eval`` and ``ssl-vit embed``: weights and images become scores, or a file of features."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_vit.cli.parser import Parser, add_weights, bring_in_plugins, heard, images, nearest, new_file, one_of, say
from ssl_vit.errors import UserError
from ssl_vit.eval.kinds import KINDS, POOLINGS, PRECISIONS, Option, layers

FIGURES = {
    "robustness": "ssl_vit.report.robustness",
    "detection": "ssl_vit.report.detection",
}  # kinds that are drawn, by a function ``figure`` of the result


def evaluate(argv: list[str]) -> None:
    """Score weights on images: k-NN, linear, robustness and others."""
    listed = "\n".join(["kinds:", *(f"  {name:16}{kind.help}" for name, kind in KINDS.items())])
    if not argv or argv[0] in ("-h", "--help"):
        parser = Parser("eval", str(evaluate.__doc__), listed + "\n\n`ssl-vit eval KIND --help` lists its settings.")
        parser.add_argument("kind", metavar="KIND", help="how to score, see below")
        parser.parse(argv)
    name, *rest = argv
    if name not in KINDS:
        raise UserError(f"unknown score {name!r}; {nearest(name, list(KINDS))}; see ssl-vit eval --help")
    kind = KINDS[name]
    parser = Parser(f"eval {name}", kind.help)
    add_weights(parser)
    for folder, words in kind.folders.items():
        parser.add_argument(f"--{folder}", type=images, metavar="DIR", required=True, help=words)
    for option, setting in kind.options.items():
        _add_option(parser, option, setting)
    if kind.reads_features:
        _add_readout(parser)
        parser.add_argument("--seed", type=int, metavar="N", default=0, help="of whatever is drawn (0)")
        parser.add_argument("--features", type=Path, metavar="DIR", help="keep the features there, and go on with them")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the result there too")
    if name in FIGURES:
        parser.add_argument("--figure", type=new_file, metavar="FILE", help="draw the result there, a .png")
    args = vars(parser.parse(rest))
    figure = args.pop("figure", None)
    bring_in_plugins()
    from ssl_vit.eval import api

    with heard():
        result = api.evaluate(name, args.pop("weights"), **args)
    if figure is not None:
        from ssl_vit.report.figures import save

        save(importlib.import_module(FIGURES[name]).figure(result), figure)
    say(json.dumps({key: value for key, value in result.items() if key not in kind.quiet}, indent=2))


def embed(argv: list[str]) -> None:
    """Write the feature vector of every image of a folder to a file."""
    parser = Parser("embed", str(embed.__doc__))
    add_weights(parser)
    parser.add_argument("data", metavar="DATA", type=images, help="images, as for pretrain")
    words = "the file to write: .npz, .npy, .safetensors or .parquet"
    parser.add_argument("--out", type=new_file, metavar="FILE", required=True, help=words)
    _add_readout(parser)
    args = vars(parser.parse(argv))
    bring_in_plugins()
    from ssl_vit.eval import embed as script

    say(str(script.embed(args.pop("weights"), args.pop("data"), args.pop("out"), **args)))


def _add_option(parser: Parser, name: str, option: Option) -> None:
    words = f"{option.help} ({_shown(option.default)})"
    flag = f"--{name.replace('_', '-')}"
    parser.add_argument(flag, dest=name, type=_read(option.parse), default=option.default, metavar="X", help=words)


def _add_readout(parser: Parser) -> None:
    words = "features of these layers: last4, or numbers from 0, N,N,… (last1)"
    parser.add_argument("--layers", type=_read(layers), default=(-1,), metavar="L", help=words)
    words = f"how a layer becomes a vector: {', '.join(POOLINGS)} (model)"
    parser.add_argument("--pooling", type=one_of(*POOLINGS), default="model", metavar="P", help=words)
    words = f"of the network: {', '.join(PRECISIONS)} (float32)"
    parser.add_argument("--precision", type=one_of(*PRECISIONS), default="float32", metavar="P", help=words)


def _read(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser of text whose ValueError argparse turns into one line."""

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None

    return read


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
