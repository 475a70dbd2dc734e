"""argparse says here what to type, and printing outlives its reader."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

from ssl_vit import plugins
from ssl_vit.checkpoints.colours import as_colour
from ssl_vit.checkpoints.hub import is_hub_id
from ssl_vit.cli.examples import EXAMPLES, as_text
from ssl_vit.config.paths import check_images, check_new
from ssl_vit.errors import UserError
from ssl_vit.spelling import did_you_mean
from ssl_vit.terminal import silence, spoken

PLUGIN, QUIET = "--plugin", "--quiet"  # of every command


class Parser(argparse.ArgumentParser):
    """Every complaint of this argparse is one line that says what to type."""

    def __init__(
        self, command: str, description: str, epilog: str | None = None, examples: tuple[str, ...] = ()
    ) -> None:
        """examples: command lines; without, those of the command."""
        layout = argparse.RawDescriptionHelpFormatter
        shown = as_text(examples or EXAMPLES.get(command, ()))
        super().__init__(
            prog=f"ssl-vit {command}",
            description=description,
            epilog="\n\n".join(part for part in (shown, epilog) if part),
            formatter_class=layout,
            allow_abbrev=False,
        )
        words = "your own methods and backbones, a Python file or module; may be given several times"
        metavar = "FILE.py|MODULE"
        self.add_argument(PLUGIN, metavar=metavar, default=argparse.SUPPRESS, help=words)  # taken by without_plugins
        words = "say nothing but warnings, errors and the result"
        self.add_argument(QUIET, action="store_true", default=argparse.SUPPRESS, help=words)  # taken by without_quiet

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse the arguments; UserError with the nearest flag if one is unknown."""
        flags = ["--help", *re.findall(r"--[a-z][a-z0-9-]*", self.format_usage())]
        for word in itertools.takewhile(lambda word: word != "--", argv):
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in flags:
                self.error(f"unknown flag {flag}; {did_you_mean(flag, flags)}")
        return self.parse_intermixed_args(argv)  # so that a flag may stand between two DATA

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message in one line, and where to read more."""
        raise UserError(f"{message}; see {self.prog} --help")

    def print_help(self, file: Any = None) -> None:
        """Print the help on stdout."""
        say(self.format_help().rstrip())


def without_plugins(argv: list[str]) -> list[str]:
    """A command line without the plugins that it names, which are in use from here on and not yet imported.

    Raises:
        UserError: no such file or module, or none named.
    """
    words, rest = iter(argv), list[str]()
    for word in words:
        if word == "--":
            return [*rest, word, *words]
        flag, equals, value = word.partition("=")
        if flag != PLUGIN:
            rest.append(word)
        elif given := value if equals else next(words, ""):
            plugins.use([given])
        else:
            raise UserError(f"{PLUGIN}: expected a Python file or module after it")
    return rest


def without_quiet(argv: list[str]) -> tuple[list[str], bool]:
    """A command line without its ``--quiet``, and whether it was there."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [word for word in argv[:end] if word != QUIET] + argv[end:], QUIET in argv[:end]


def bring_in_plugins() -> None:
    """Import the plugins in use, and say each in one line on stderr; UserError where one can't be imported."""
    plugins.load()
    with heard():
        plugins.announce()


def add_weights(parser: Parser) -> None:
    """Add the arguments that name a network with its weights."""
    parser.add_argument("weights", metavar="RUN|WEIGHTS", type=weights, help="a run, a file of weights or a hub id")
    add_facts(parser)


def add_facts(parser: Parser) -> None:
    """Add the flags for what a file of weights may not say of itself."""
    parser.add_argument("--backbone", metavar="NAME", help="the network, where a file of weights doesn't say it")
    for name, words in (("mean", "mean"), ("std", "deviation")):
        about = f"{words} of the images that it was trained on, in [0, 1], where it doesn't say it"
        parser.add_argument(f"--{name}", type=partial(_colour, name), metavar="R,G,B", help=about)


def _colour(name: str, text: str) -> tuple[float, float, float]:
    try:
        return as_colour(text, name)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_outside_links(parser: Parser) -> None:
    """Add the flag for sets that were put together of links, as the setting of pretrain."""
    words = "follow links that lead out of the folder of images"
    parser.add_argument("--outside-links", action="store_true", default=argparse.SUPPRESS, help=words)


def one_or_several(given: list[str]) -> str | list[str]:
    """Return what was given for DATA: a text, and a list only where there are several."""
    return given[0] if len(given) == 1 else given


def existing(text: str) -> Path:
    """Check an argument that names a file or folder, and return its path."""
    if not os.path.exists(text):
        raise argparse.ArgumentTypeError(f"{text}: no such file or folder")
    return Path(text)


def images(text: str) -> str:
    """Check an argument that names images as for pretrain: a folder, a list, archives, a dataset."""
    try:
        check_images(text, "a folder of images, a list of them, archives or a dataset")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def weights(text: str) -> Path:
    """Check an argument that names weights: a file, a folder or a hub id."""
    return Path(text) if is_hub_id(text) else existing(text)


def new(text: str) -> Path:
    """Check an argument that names what is to be made, and return its path."""
    try:
        check_new(Path(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def new_file(text: str) -> Path:
    """Check an argument that names a file to be made in a folder that is there, and return its path."""
    path = new(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent}: no such folder; make it first")
    return path


def one_of(*names: str) -> Callable[[str], str]:
    """Make the type of an argument that is one of these words."""

    def check(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown {text!r}; {did_you_mean(text, list(names))}")
        return text

    return check


@contextmanager
def heard() -> Iterator[None]:
    """Show on stderr what is logged meanwhile."""
    log, handler = logging.getLogger("ssl_vit"), spoken()
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


_results: list[TextIO] = []  # where results go, as long as everything else goes to stderr


@contextmanager
def results_alone() -> Iterator[None]:
    """Leave stdout to :func:`say`: what a library prints meanwhile, from Python or below it, goes to stderr."""
    stream, kept = sys.stdout, None
    if stream is sys.__stdout__ and stream is not None and stream.fileno() == 1:
        stream.flush()
        kept = os.dup(1)
        encoding, errors = stream.encoding, stream.errors
        stream = os.fdopen(os.dup(kept), "w", encoding=encoding, errors=errors)
        with suppress(OSError):  # a process that was started without a stderr
            os.dup2(2, 1)
    _results.append(stream)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()
        if kept is not None:
            with suppress(BrokenPipeError):
                stream.close()
            os.dup2(kept, 1)
            os.close(kept)


def results() -> TextIO:
    """Return the stream that results go to."""
    return _results[-1] if _results else sys.stdout


def say(text: str) -> None:
    """Print a result on stdout; where the reader is gone (``| head``), the process ends quietly."""
    stream = results()
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)
        raise SystemExit(0) from None
