"""argparse says here what to type, and printing outlives its reader."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ssl_vit import plugins
from ssl_vit.checkpoints.hub import is_hub_id
from ssl_vit.config.paths import check_images, check_new
from ssl_vit.errors import UserError
from ssl_vit.spelling import did_you_mean
from ssl_vit.terminal import silence, spoken

PLUGIN = "--plugin"  # of every command


class Parser(argparse.ArgumentParser):
    """Every complaint of this argparse is one line that says what to type."""

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog=f"ssl-vit {command}",
            description=description,
            epilog=epilog,
            formatter_class=layout,
            allow_abbrev=False,
        )
        words = "your own methods and backbones, a Python file or module; may be given several times"
        metavar = "FILE.py|MODULE"
        self.add_argument(PLUGIN, metavar=metavar, default=argparse.SUPPRESS, help=words)  # taken by without_plugins

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse the arguments; UserError with the nearest flag if one is unknown."""
        flags = ["--help", *re.findall(r"--[a-z][a-z-]*", self.format_usage())]
        for word in itertools.takewhile(lambda word: word != "--", argv):
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in flags:
                self.error(f"unknown flag {flag}; {did_you_mean(flag, flags)}")
        return self.parse_args(argv)

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


def bring_in_plugins() -> None:
    """Import the plugins in use, and say each in one line on stderr; UserError where one can't be imported."""
    plugins.load()
    with heard():
        plugins.announce()


def add_weights(parser: Parser) -> None:
    """Add the arguments that name a network with its weights."""
    parser.add_argument("weights", metavar="RUN|WEIGHTS", type=weights, help="a run, a file of weights or a hub id")
    parser.add_argument("--backbone", metavar="NAME", help="the network, where a file of weights doesn't say it")


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


def say(text: str) -> None:
    """Print a text; where the reader is gone (``| head``), the process ends quietly."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        silence(sys.stdout)
        raise SystemExit(0) from None
