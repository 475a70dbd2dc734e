"""``ssl-vit …``: a file for each command, a thin call of the public API, which is imported only when it is needed."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout

from ssl_vit import __version__, plugins
from ssl_vit.cli.bench import bench
from ssl_vit.cli.compare import compare
from ssl_vit.cli.compress import compress
from ssl_vit.cli.doctor import doctor
from ssl_vit.cli.evaluate import embed, evaluate
from ssl_vit.cli.export import export, inspect
from ssl_vit.cli.listing import list_names
from ssl_vit.cli.matrix import matrix
from ssl_vit.cli.pack import pack
from ssl_vit.cli.parser import PLUGIN, QUIET, Parser, new, results, results_alone, say, without_plugins, without_quiet
from ssl_vit.cli.pretrain import pretrain
from ssl_vit.cli.report import report
from ssl_vit.cli.sweep import sweep
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.files import disk_problem, place_problem
from ssl_vit.process import leave_pillow_unsaid
from ssl_vit.spelling import did_you_mean
from ssl_vit.terminal import hushed, lasting, tell

EXIT_CODES = """exit codes:
  0    done
  1    the run failed, or would: the last line says why
  2    a mistake in what was typed or set; nothing was begun
  130  Ctrl-C before there was anything to save
  143  stopped by a signal, and saved: --resume goes on"""
INTERRUPTED = 128 + 2  # as a shell says it of Ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 the run failed, 2 usage or configuration, 143 stopped and resumable,
    130 Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without "≥" must not end a run
            stream.reconfigure(errors="backslashreplace")
    leave_pillow_unsaid()
    try:
        words, quiet = without_quiet(list(sys.argv[1:] if argv is None else argv))
        with results_alone(), lasting(), hushed(quiet), plugins.withdrawn_after():
            _dispatch(without_plugins(words))
    except UserError as error:
        tell("\n".join(f"ssl-vit: error: {line}" for line in str(error).splitlines()))
        return error.exit_code
    except KeyboardInterrupt:
        tell("ssl-vit: error: stopped; nothing is half-written: give the same command again")
        return INTERRUPTED
    except Exception as error:
        if problem := disk_problem(error):
            tell(f"ssl-vit: error: {problem}; free some space there, or choose another place")
        elif problem := place_problem(error):
            tell(f"ssl-vit: error: {problem}; see to what is there, then give the same command again")
        else:
            raise
        return RunFailed.exit_code
    return 0


def _dispatch(argv: list[str]) -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("the folder that this was started in is gone; change into another one") from error
    if not argv:
        raise UserError(f"no command; one of {', '.join(COMMANDS)}; see ssl-vit --help")
    name, *rest = argv
    if name == "--version":
        say(f"ssl-vit {__version__}")
    elif name in ("-h", "--help"):
        say("usage: ssl-vit COMMAND …\n")
        say("\n".join(f"  {command:10}{function.__doc__}" for command, function in COMMANDS.items()))
        say(f"\nWith any command, {PLUGIN} FILE.py|MODULE brings in methods and backbones of your own.")
        say(f"{QUIET} says nothing but warnings, errors and the result.")
        say("`ssl-vit COMMAND --help` says more; `ssl-vit --version` prints the version.")
        say(f"\n{EXIT_CODES}")
    elif name in COMMANDS:
        COMMANDS[name](rest)
    else:
        raise UserError(f"unknown command {name!r}; {did_you_mean(name, COMMANDS)}; see ssl-vit --help")


def demo(argv: list[str]) -> None:
    """Pretrain, score and export on a small bundled data set, in minutes on a CPU."""
    parser = Parser("demo", str(demo.__doc__))
    parser.add_argument("--out", type=new, metavar="DIR", default="ssl-vit-demo", help="folder to make (ssl-vit-demo)")
    args = parser.parse(argv)
    from ssl_vit import demo as script

    with redirect_stdout(results()):
        script.demo(args.out)


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "pretrain": pretrain,
    "eval": evaluate,
    "compare": compare,
    "report": report,
    "compress": compress,
    "export": export,
    "inspect": inspect,
    "embed": embed,
    "pack": pack,
    "bench": bench,
    "doctor": doctor,
    "list": list_names,
    "matrix": matrix,
    "sweep": sweep,
    "demo": demo,
}
