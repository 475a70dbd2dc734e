"""``ssl-vit compress …``: a smaller network out of a big one, without labels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ssl_vit.backbones.spaces import SPACES
from ssl_vit.cli.parser import Parser, bring_in_plugins, images, new, one_of, one_or_several, say, weights
from ssl_vit.config.paths import check_new
from ssl_vit.errors import UserError
from ssl_vit.spelling import did_you_mean


def compress(argv: list[str]) -> None:
    """Make a network smaller without labels: prune it, cut zeros off, or search for a smaller one."""
    if not argv or argv[0] in ("-h", "--help"):
        listed = [f"  {name:8}{function.__doc__}" for name, function in WHAT.items()]
        more = "`ssl-vit compress WHAT --help` says more. Sparse training is a setting of pretrain: train.sparsity."
        parser = Parser("compress", str(compress.__doc__), "\n".join(["what:", *listed, "", more]))
        parser.add_argument("what", metavar="WHAT", help="see below")
        parser.parse(argv)
    name, *rest = argv
    if name not in WHAT:
        raise UserError(f"compress: unknown {name!r}; {did_you_mean(name, WHAT)}; see ssl-vit compress --help")
    WHAT[name](rest)


def prune(argv: list[str]) -> None:
    """Prune a plain ViT: train gates, cut what is weak off its layers, let it recover."""
    about = "Both trainings learn from the network as it was, and go on with --resume where they were stopped."
    parser = Parser("compress prune", f"{prune.__doc__}\n\n{about}")
    parser.add_argument("run", metavar="RUN|WEIGHTS", type=weights, help="a run, a file of weights or a hub id")
    parser.add_argument("data", metavar="DATA", nargs="+", type=images, help="images to learn from; no labels needed")
    words = "share of the inputs of all linear layers that is kept, above 0 and below 1 (0.5)"
    parser.add_argument("--keep", type=_share, default=0.5, metavar="SHARE", help=words)
    words = "epochs of recovery, a quarter of a run's without; gates are trained for half as many"
    parser.add_argument("--epochs", type=_count, metavar="N", help=words)
    _add_common(parser)
    args = parser.parse(argv)
    _check_out(args)
    bring_in_plugins()
    from ssl_vit.compress.prune import prune as run

    data = one_or_several(args.data)
    say(str(run(args.run, data, args.out, args.keep, epochs=args.epochs, sets=args.set, resume=args.resume)))


def shrink(argv: list[str]) -> None:
    """Cut heads and hidden units off that are 0, as train.sparse_units leaves them; it computes the same."""
    parser = Parser("compress shrink", str(shrink.__doc__))
    parser.add_argument("run", metavar="RUN|WEIGHTS", type=weights, help="a run, a file of weights or a hub id")
    parser.add_argument("--out", type=new, required=True, metavar="DIR", help="folder to make")
    args = parser.parse(argv)
    bring_in_plugins()
    from ssl_vit.compress.prune import shrink as run

    say(str(run(args.run, args.out)))


def search(argv: list[str]) -> None:
    """Search for a smaller network: train a supernet, let its members evolve under a limit, export the best."""
    parser = Parser("compress search", str(search.__doc__))
    parser.add_argument("data", metavar="DATA", nargs="+", type=images, help="images to learn from; no labels needed")
    words = f"what may be chosen from: {', '.join(SPACES)}"
    parser.add_argument("--space", type=one_of(*SPACES), required=True, metavar="NAME", help=words)
    words = "limit: millions of parameters, or milliseconds an image in batches of 32 on this machine"
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--parameters", type=_positive, metavar="M", help=words)
    limit.add_argument("--latency", type=_positive, metavar="MS", help=words)
    parser.add_argument("--method", metavar="NAME", help="what trains the supernet, chosen as for pretrain without")
    parser.add_argument("--epochs", type=_count, metavar="N", help="epochs of the supernet, as for pretrain")
    words = "score members by k-NN on these images, a sub-folder a class; without, by what needs no labels"
    parser.add_argument("--labelled", type=images, metavar="DIR", help=words)
    parser.add_argument("--population", type=_count, default=50, metavar="N", help="members a generation (50)")
    parser.add_argument("--generations", type=_count, default=20, metavar="N", help="generations after the first (20)")
    _add_common(parser)
    args = parser.parse(argv)
    _check_out(args)
    bring_in_plugins()
    from ssl_vit.compress.search import Limit
    from ssl_vit.compress.search import search as run

    limits, data = Limit(args.parameters, args.latency), one_or_several(args.data)
    named = ("method", "epochs", "labelled", "population", "generations", "resume")
    say(str(run(data, args.out, args.space, limits, sets=args.set, **{key: getattr(args, key) for key in named})))


def _add_common(parser: Parser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to make; its export is the result"
    )
    words = "any setting of its trainings, as ssl-vit pretrain --help lists them; may be given several times"
    parser.add_argument("--set", action="append", default=[], metavar="key.path=value", help=words)
    parser.add_argument("--resume", action="store_true", help="go on with what was begun in --out")


def _check_out(args: argparse.Namespace) -> None:
    """UserError where the folder is taken, or there is nothing to go on with."""
    if not args.resume:
        check_new(args.out)
    elif not args.out.is_dir():
        raise UserError(f"{args.out}: no such folder, so there is nothing to go on with; leave --resume out")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share above 0 and below 1, as 0.5")
    return share


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: expected a number above 0")
    return number


WHAT: dict[str, Callable[[list[str]], None]] = {"prune": prune, "shrink": shrink, "search": search}
