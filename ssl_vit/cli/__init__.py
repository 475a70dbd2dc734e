"""``ssl-vit …``: one function a command, each a thin call of the public API, imported only when it is needed."""

from __future__ import annotations

import dataclasses
import fnmatch
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ssl_vit import __version__
from ssl_vit.cli.parser import Parser, existing, nearest, new, new_file, one_of, say
from ssl_vit.config import FLAGS, RunConfig, check_data, check_out, dump, load_config
from ssl_vit.config.problems import expected, known_keys, takes_text
from ssl_vit.config.schema import DEFAULT_METHOD
from ssl_vit.errors import UserError
from ssl_vit.export import TARGETS
from ssl_vit.methods import config_class, list_methods

if TYPE_CHECKING:
    from ssl_vit.backbones.registry import BackboneRow

METAVARS = {"--method": "NAME", "--backbone": "NAME", "--val": "DIR", "--precision": "P"}  # the others take a number


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 the run failed, 2 usage or configuration, 143 stopped and resumable."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without "≥" must not end a run
            stream.reconfigure(errors="backslashreplace")
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(*(f"ssl-vit: error: {line}" for line in str(error).splitlines()), sep="\n", file=sys.stderr)
        return error.exit_code
    return 0


def _dispatch(argv: list[str]) -> None:
    if not argv:
        raise UserError(f"no command; one of {', '.join(COMMANDS)}; see ssl-vit --help")
    name, *rest = argv
    if name == "--version":
        say(f"ssl-vit {__version__}")
    elif name in ("-h", "--help"):
        say("usage: ssl-vit COMMAND …\n")
        say("\n".join(f"  {command:10}{function.__doc__}" for command, function in COMMANDS.items()))
        say("\n`ssl-vit COMMAND --help` says more; `ssl-vit --version` prints the version.")
    elif name in COMMANDS:
        COMMANDS[name](rest)
    else:
        raise UserError(f"unknown command {name!r}; {nearest(name, list(COMMANDS))}; see ssl-vit --help")


def pretrain(argv: list[str]) -> None:
    """Pretrain a backbone on a folder of images without labels."""
    parser = Parser("pretrain", str(pretrain.__doc__), _settings(argv))
    keys = known_keys()
    for flag, key in FLAGS.items():
        field = keys[tuple(key.split("."))]
        words = field.description or ""
        if not takes_text(field):
            words += f" ({expected(field.annotation, field.metadata)})"
        if flag.startswith("-"):
            parser.add_argument(flag, dest=key, metavar=METAVARS.get(flag, "N"), help=words)
        else:
            parser.add_argument(key, metavar=flag, help=words)
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder of the run; made by it")
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    parser.add_argument("--set", action="append", default=[], metavar="key.path=value", help="any setting listed below")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own settings")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in --out and start again")
    parser.add_argument("--print-config", action="store_true", help="print every setting, and why; train nothing")
    args = parser.parse(argv)

    if args.out is None and (args.resume or not args.print_config):
        parser.error("--out RUN is required")
    other_rank = os.environ.get("LOCAL_RANK", "0") != "0"  # it finds the run that the first one has just made
    if args.out is not None and not args.print_config and not other_rank:
        check_out(args.out, resume=args.resume, overwrite=args.overwrite)
    files = [args.out / "config.yaml", *args.config] if args.resume else args.config
    given = {key: value for key in FLAGS.values() if (value := vars(args)[key]) is not None}
    config = load_config(files, args.set, given)
    check_data(config)
    if args.print_config:
        _print_config(config)
        return
    from ssl_vit import experiment

    say(str(experiment.pretrain(config, args.out, resume=args.resume, overwrite=args.overwrite)))


def evaluate(argv: list[str]) -> None:
    """Score features on labelled images, by k-NN or a linear classifier."""
    parser = Parser("eval", str(evaluate.__doc__))
    parser.add_argument("kind", metavar="knn|linear", type=one_of("knn", "linear"), help="how to score")
    _add_weights(parser)
    parser.add_argument("--train", type=existing, metavar="DIR", required=True, help="labelled images to learn from")
    parser.add_argument("--val", type=existing, metavar="DIR", required=True, help="labelled images to score on")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the result there too")
    args = parser.parse(argv)
    from ssl_vit.eval import api

    result = api.evaluate(
        args.kind, args.weights, train=args.train, val=args.val, backbone=args.backbone, json=args.json
    )
    say(json.dumps(result, indent=2))


def export(argv: list[str]) -> None:
    """Hand a run's weights on, in the layout of the library that loads them."""
    parser = Parser("export", str(export.__doc__))
    parser.add_argument("run", metavar="RUN", type=existing, help="folder of a run")
    parser.add_argument("--to", default="timm", metavar="LIBRARY", help=f"what is to load them: {', '.join(TARGETS)}")
    parser.add_argument("--out", type=new, metavar="DIR", help="folder for the weights (RUN/export-LIBRARY)")
    args = parser.parse(argv)
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
    parser.add_argument("weights", metavar="FILE", type=existing, help="a file of weights, or a folder with one")
    args = parser.parse(argv)
    from ssl_vit.checkpoints import inspection

    say(str(inspection.inspect(args.weights)))


def embed(argv: list[str]) -> None:
    """Write the feature vector of every image of a folder to a file."""
    parser = Parser("embed", str(embed.__doc__))
    _add_weights(parser)
    parser.add_argument("data", metavar="DATA", type=existing, help="folder of images")
    parser.add_argument("--out", type=new_file, metavar="FILE", required=True, help="the .npz file to write")
    args = parser.parse(argv)
    from ssl_vit.eval import api

    say(str(api.embed(args.weights, args.data, args.out, backbone=args.backbone)))


def list_names(argv: list[str]) -> None:
    """List the backbones or the methods that there are."""
    parser = Parser("list", str(list_names.__doc__))
    kinds = ("backbones", "methods")
    parser.add_argument("kind", metavar="|".join(kinds), type=one_of(*kinds), help="what to list")
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="a shell pattern, as in '*swin*'")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse(argv)
    if args.kind == "methods":
        facts = ("idea", "needs", "choose_when")
        rows = shown = [
            {"name": name} | {fact: getattr(config_class(name), fact) for fact in facts}
            for name in fnmatch.filter(list_methods(), args.pattern)
        ]
    else:
        from ssl_vit.backbones import list_backbones

        found = list_backbones(args.pattern)
        rows, shown = [dataclasses.asdict(row) for row in found], [_backbone_line(row) for row in found]
    if not rows:
        raise UserError(f"no {args.kind} match {args.pattern!r}; expected a shell pattern, as in '*swin*'")
    say(json.dumps(rows, indent=2) if args.json else _table(shown, sys.stdout))


def demo(argv: list[str]) -> None:
    """Pretrain, score and export on a small bundled data set, in minutes on a CPU."""
    parser = Parser("demo", str(demo.__doc__))
    parser.add_argument("--out", type=new, metavar="DIR", default="ssl-vit-demo", help="folder to make (ssl-vit-demo)")
    args = parser.parse(argv)
    from ssl_vit import demo as script

    script.demo(args.out)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "pretrain": pretrain,
    "eval": evaluate,
    "export": export,
    "inspect": inspect,
    "embed": embed,
    "list": list_names,
    "demo": demo,
}


def _add_weights(parser: Parser) -> None:
    parser.add_argument("weights", metavar="RUN|WEIGHTS", type=existing, help="folder of a run, or a file of weights")
    parser.add_argument("--backbone", metavar="NAME", help="the network, where a file of weights doesn't say it")


def _settings(argv: list[str]) -> str:
    """Every setting of the schema, with those of the method that the command line chooses."""
    chosen = re.search(r"--method[= ](\S+)", " ".join(argv))
    lines = ["settings, for --config FILE and --set key.path=value:"]
    for path, field in known_keys(chosen[1] if chosen else DEFAULT_METHOD).items():
        if len(path) > 1:
            default = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
            lines.append(f"  {'.'.join(path)}: {expected(field.annotation, field.metadata)} ({default})")
            text = " ".join((field.description or "").split())
            lines += textwrap.wrap(text, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _print_config(config: RunConfig) -> None:
    """The resolved configuration on stdout; where each value is from, and how to change it, on stderr."""
    from ssl_vit import experiment

    resolved, reasons = experiment.resolve(config)
    titles = ("key", "value", "why", "how to override")
    print(_table([dict(zip(titles, reason, strict=True)) for reason in reasons], sys.stderr), file=sys.stderr)
    say(dump(resolved).rstrip())


def _backbone_line(row: BackboneRow) -> dict[str, Any]:
    """A line of the table; what needs the network built is there only where few were asked for."""
    line: dict[str, Any] = {"name": row.name, "family": row.family, "kind": row.kind}
    if row.info:
        height, width = row.info.size
        line |= {
            "parameters": f"{row.info.parameters:,}",
            "features": row.info.dim,
            "stride": row.info.stages[-1].stride,
        }
        line["pixels"] = f"{height}x{width}" + (" or others" if row.info.any_size else "")
    return line


def _table(rows: Sequence[dict[str, Any]], stream: IO[str]) -> str:
    """Rows under the names of their keys; as wide as they need to be where no one is looking."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    text = io.StringIO()
    width = None if stream.isatty() else 10_000
    Console(file=text, width=width, markup=False, emoji=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())
