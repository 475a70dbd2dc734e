"""``ssl-vit export`` and ``ssl-vit inspect``: weights out, and what a file of weights is."""

from __future__ import annotations

from ssl_vit.cli.parser import Parser, bring_in_plugins, existing, new, say, weights
from ssl_vit.export import TARGETS


def export(argv: list[str]) -> None:
    """Hand a run's weights on, in the layout of the library that loads them."""
    parser = Parser("export", str(export.__doc__))
    parser.add_argument("run", metavar="RUN", type=existing, help="folder of a run")
    parser.add_argument("--to", default="timm", metavar="LIBRARY", help=f"what is to load them: {', '.join(TARGETS)}")
    parser.add_argument("--out", type=new, metavar="DIR", help="folder for the weights (RUN/export-LIBRARY)")
    args = parser.parse(argv)
    bring_in_plugins()
    from ssl_vit.export import api

    result = api.export(args.run, to=args.to, out=args.out)
    if result.max_difference is None:
        say(f"{result.folder}: names checked for {result.consumer}, not loaded")
    else:
        say(f"{result.folder}: verified in {result.consumer}, outputs within {result.max_difference:.1g} of the run's")
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
