"""``ssl-vit pretrain``: flags, files and ``--set`` become one configuration, and that a run."""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from ssl_vit.cli.parser import Parser, one_or_several, say
from ssl_vit.cli.tables import aligned
from ssl_vit.config import FLAGS, RunConfig, check_data, check_out, dump, load_config
from ssl_vit.config.paths import check_method, is_requeued
from ssl_vit.config.problems import known_keys, takes_text
from ssl_vit.config.schema import DEFAULT_METHOD
from ssl_vit.errors import StoppedError
from ssl_vit.process import is_other_rank, notices_wait
from ssl_vit.terminal import tell
from ssl_vit.wording import expected

METAVARS = {
    "--method": "NAME",
    "--backbone": "NAME",
    "--weights": "FILE",
    "--val": "DIR",
    "--precision": "P",
    "--time": "TIME",
}
# The others take a number.


def pretrain(argv: list[str]) -> None:
    """Pretrain a backbone on a folder of images without labels."""
    begun = time.monotonic()
    parser = _parser(argv)
    args = parser.parse(argv)
    if "allow_data_change" in args and not args.resume:
        parser.error("--allow-data-change goes with --resume")
    if args.out is None and (args.resume or not args.print_config):
        parser.error("--out RUN is required")
    resume, other_rank = args.resume, is_other_rank()  # which finds the run that the first one has just made
    if args.out is not None and other_rank:
        resume = resume or is_requeued(args.out)
    elif args.out is not None and not args.print_config:
        resume = check_out(args.out, resume=resume, overwrite=args.overwrite)
    files = [args.out / "config.yaml", *args.config] if resume else args.config
    given = {key: value for key in FLAGS.values() if (value := vars(args)[key]) is not None}
    if resume:
        sets = dict(text.split("=", 1) for text in args.set if "=" in text)
        check_method(args.out, given.get("method.name", sets.get("method.name")))
    given[FLAGS["DATA"]] = one_or_several(given[FLAGS["DATA"]])
    config = load_config(files, args.set, given)
    check_data(config, resume=resume)
    if args.print_config:
        _print_config(config)
        return
    with notices_wait():
        from ssl_vit.run import pretrain as run

        try:
            allowed: dict[str, Any] = {"allow_data_change": True} if "allow_data_change" in args else {}
            if config.train.time is not None:
                allowed["begun"] = begun
            done = run.pretrain(config, args.out, resume=resume, overwrite=args.overwrite and not resume, **allowed)
        except StoppedError as error:
            if other_rank:  # the first one says it
                raise SystemExit(error.exit_code) from None
            raise
    if not other_rank:
        say(json.dumps(done.as_dict(), indent=2) if args.json else str(done))


def _parser(argv: list[str]) -> Parser:
    """A flag for each setting that has one, and how the settings come together."""
    asked = {"-h", "--help"} & set(argv)  # else the method's file, which may be a plugin's, isn't needed yet
    parser = Parser("pretrain", str(pretrain.__doc__), _settings(argv) if asked else None)
    _add_flags(parser)
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder of the run; made by it")
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML; later files win")
    parser.add_argument("--set", action="append", default=[], metavar="key.path=value", help="any setting listed below")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out, with its own settings")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in --out and start again")
    words = "with --resume: go on though the images are not what they were when the run began"
    parser.add_argument("--allow-data-change", action="store_true", default=argparse.SUPPRESS, help=words)
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of words")
    parser.add_argument("--print-config", action="store_true", help="print every setting, and why; train nothing")
    return parser


def _add_flags(parser: Parser) -> None:
    """Those that stand for a key of the configuration."""
    keys = known_keys()
    for flag, key in FLAGS.items():
        field = keys[tuple(key.split("."))]
        words = field.description or ""
        if not takes_text(field):
            words += f" ({expected(field.annotation, field.metadata)})"
        if field.annotation is bool:
            parser.add_argument(flag, dest=key, action="store_const", const=True, help=field.description)
        elif flag.startswith("-"):
            parser.add_argument(flag, dest=key, metavar=METAVARS.get(flag, "N"), help=words)
        else:
            parser.add_argument(key, metavar=flag, nargs="+", help=words)


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
    from ssl_vit.run.plan import resolve

    resolved, reasons = resolve(config)
    titles = ("key", "value", "why", "how to override")
    tell(aligned([dict(zip(titles, reason, strict=True)) for reason in reasons], sys.stderr))
    say(dump(resolved).rstrip())
