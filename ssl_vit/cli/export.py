"""``ssl-vit export`` and ``ssl-vit inspect``: weights out, and what a file of weights is."""

from __future__ import annotations

from ssl_vit.cli.parser import Parser, add_weights, bring_in_plugins, heard, images, new, say, weights
from ssl_vit.export import TARGETS


def export(argv: list[str]) -> None:
    """Hand weights on, a run's or others', in the layout of the library that loads them."""
    parser = Parser("export", str(export.__doc__))
    add_weights(parser)
    parser.add_argument("--to", default="timm", metavar="LIBRARY", help=f"what is to load them: {', '.join(TARGETS)}")
    parser.add_argument("--out", type=new, metavar="DIR", help="folder for the weights (RUN/export-LIBRARY)")
    words = "with --to onnx: write the graph in 8 bits too, calibrated on these images"
    parser.add_argument("--int8", type=images, metavar="IMAGES", help=words)
    args = parser.parse(argv)
    bring_in_plugins()
    from ssl_vit.export import api

    with heard():
        result = api.export(
            args.weights,
            to=args.to,
            out=args.out,
            backbone=args.backbone,
            mean=args.mean,
            std=args.std,
            int8=args.int8,
        )
    say(f"{result.folder}: {result.check}")
    say(result.snippet)


def inspect(argv: list[str]) -> None:
    """Say what a file of weights is: whose, of which architecture, and what in it is no backbone."""
    parser = Parser("inspect", str(inspect.__doc__))
    parser.add_argument(
        "weights", metavar="FILE", type=weights, help="a file of weights, a folder with one, or a hub id"
    )
    args = parser.parse(argv)
    from ssl_vit.checkpoints import inspection

    say(str(inspection.inspect(args.weights)))
