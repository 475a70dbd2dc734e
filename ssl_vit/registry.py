"""The one registry: whatever has a name, ours and everyone's, comes in by the same door. Needs no torch.

A name is found in three ways: inside this package by its file, in an installed package by its entry point, and by
``--plugin``. Nothing is imported before its name is used.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, Protocol, TypeVar, get_args

from ssl_vit.errors import UserError

if TYPE_CHECKING:
    from ssl_vit.methods.base_config import MethodConfig
    from ssl_vit.methods.method import Method

PACKAGE = Path(__file__).parent


class UnknownName(UserError):
    """A name that nobody has registered."""


@dataclass(frozen=True)
class Origin:
    """Where a name was registered."""

    module: str
    thing: str  # the class or function that was decorated
    file: Path | None  # None where it was typed into an interpreter
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}" if self.file else f"{self.module}.{self.thing}"

    def again(self, other: Origin) -> bool:
        """Whether the same class or function was registered once more: its file or notebook cell was run again."""
        return self.thing == other.thing and (self.file or self.module) == (other.file or other.module)


class Entry(Protocol):
    """What a registry keeps of each name."""

    @property
    def name(self) -> str:
        """The name."""

    @property
    def origin(self) -> Origin:
        """Where it was registered."""


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """All names of one kind of thing.

    kind: what it is called in messages. inside: where this package keeps its own, and how their file names end.
    Installed packages announce theirs by entry points of the group ``ssl_vit.{kind}s``.
    """

    def __init__(self, kind: str, inside: str | None = None, suffix: str = "") -> None:
        self.kind, self.group = kind, f"ssl_vit.{kind}s"
        self.entries: dict[str, E] = {}
        self._inside, self._suffix = inside, suffix

    @cached_property
    def inside(self) -> dict[str, str]:
        """This package's own names, each with its module, by the names of files."""
        if self._inside is None:
            return {}
        files = [module.name for module in pkgutil.iter_modules([str(PACKAGE / self._inside)])]
        names = [file.removesuffix(self._suffix) for file in files if file.endswith(self._suffix)]
        return {name: f"ssl_vit.{self._inside}.{name}{self._suffix}" for name in names if name != "base"}

    @cached_property
    def announced(self) -> dict[str, list[EntryPoint]]:
        """Names that installed packages announce; known from their metadata alone."""
        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        return found

    def names(self) -> list[str]:
        """Every name, sorted; files that ``--plugin`` names are imported for it, installed packages are not."""
        load_sources()
        return sorted({*self.inside, *self.entries, *self.announced})

    def at_hand(self, name: str) -> bool:
        """Whether a name is known without importing what is not ours."""
        return name in self.inside or name in self.entries

    def package_of(self, name: str) -> str | None:
        """The installed package that announces a name, where it takes importing that to know more."""
        return None if self.at_hand(name) or name not in self.announced else _package(self.announced[name][0])

    def find(self, name: str) -> E:
        """The entry of a name, whose file is imported if it hasn't been.

        Raises:
            UnknownName: nobody has registered it; with the nearest name.
            UserError: several have, or what was to register it can't be imported.
        """
        if name in self.announced and (name in self.inside or len(self.announced[name]) > 1):
            self._refuse(name, " and ".join([*self._of_ours(name), *map(_package, self.announced[name])]))
        if name not in self.entries and name in self.inside:
            importlib.import_module(self.inside[name])
        if name not in self.entries:
            load_sources()
        if name not in self.entries and name in self.announced:
            self.import_announced(name)
            if name not in self.entries:
                self.refuse_empty(name)
        if name not in self.entries:
            raise UnknownName(f"unknown {self.kind} {name!r}; {self.hint(name)}")
        return self.entries[name]

    def hint(self, name: str) -> str:
        """What to type instead of a name that isn't there."""
        return spelt(name, self.names())

    def add(self, entry: E) -> None:
        """Register; UserError, naming both, where the name is somebody else's."""
        name, origin = entry.name, entry.origin
        before = self.entries.get(name)
        ours, package = self.inside.get(name), origin.module.partition(".")[0]
        others = [point for point in self.announced.get(name, []) if point.module.partition(".")[0] != package]
        if before is not None and not before.origin.again(origin):
            self._refuse(name, f"{origin} and {before.origin}")
        if ours not in (None, origin.module):
            self._refuse(name, f"{origin} and {ours}")
        if others:
            self._refuse(name, f"{origin} and {_package(others[0])}")
        self.entries[name] = entry

    def _of_ours(self, name: str) -> list[str]:
        return [self.inside[name]] if name in self.inside else []

    def _refuse(self, name: str, both: str) -> NoReturn:
        raise UserError(f"the {self.kind} {name!r} is taken: {both} register it; rename one, or leave one out")

    def import_announced(self, name: str) -> None:
        """Import what an installed package announces; UserError where that fails."""
        try:
            self.announced[name][0].load()
        except UserError:
            raise
        except Exception as error:  # whatever a stranger's package raises
            package = _package(self.announced[name][0])
            raise UserError(
                f"{package} can't be imported for the {self.kind} {name!r}: {said(error)}; mend or remove it"
            ) from error

    def refuse_empty(self, name: str) -> NoReturn:
        """UserError for a package that has not registered what it announces."""
        raise UserError(
            f"{_package(self.announced[name][0])} announces the {self.kind} {name!r} and does not register it when it "
            "is imported; mend or remove it"
        )


def _package(point: EntryPoint) -> str:
    """An entry point and the package that it is of."""
    dist = f"the package {point.dist.name} {point.dist.version}" if point.dist else "a package"
    return f"{dist} (entry point {point.value})"


def spelt(word: str, known: Iterable[str]) -> str:
    """What to type instead of a word that isn't known.

    >>> spelt("dina", ["dino", "mae"])
    'did you mean dino?'
    """
    near = difflib.get_close_matches(word, names := sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(names) or 'none'}"


def said(error: BaseException, file: Path | None = None) -> str:
    """An exception in one line: where in the file it was, its type and its message."""
    lines, traceback = list[int](), error.__traceback__
    while traceback is not None:
        if file is not None and traceback.tb_frame.f_code.co_filename == str(file):
            lines.append(traceback.tb_lineno)
        traceback = traceback.tb_next
    if isinstance(error, SyntaxError) and error.lineno is not None and error.filename == str(file):
        lines, message = [error.lineno], error.msg
    else:
        message = " ".join(str(error).split())
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {message}"


_sources: list[Callable[[], None]] = []  # what ``--plugin`` names is imported by these


def add_source(load: Callable[[], None]) -> None:
    """Have this called when a name is needed that isn't at hand; it imports what registers names, once."""
    _sources.append(load)


def load_sources() -> None:
    """Import whatever was named by ``--plugin`` and hasn't been imported."""
    for load in _sources:
        load()


@dataclass(frozen=True)
class MethodEntry:
    """A method: its configuration, and the class of its loss or, where that is in another file, "module:Class"."""

    name: str
    config: type[MethodConfig]
    loss: type[Method] | str
    origin: Origin


METHODS: Registry[MethodEntry] = Registry("method", "methods", "_config")

T = TypeVar("T", bound=type)


def register_method(
    name: str, *, config: type[MethodConfig] | None = None, loss: str | None = None
) -> Callable[[T], T]:
    """Register a self-supervised method under a name, as a decorator.

    In one file it stands on the ``Method`` and says its ``MethodConfig``; so torch is imported with the configuration::

        @register_method("vicreg", config=Config)
        class VICReg(Method): ...

    In two it stands on the configuration, which then needs no torch, and says where the loss is::

        @register_method("vicreg", loss="my_vicreg_loss:VICReg")
        class Config(MethodConfig): ...

    Raises:
        UserError: the name is taken; both files are named.
    """
    if (config is None) == (loss is None):
        raise TypeError("register_method: give config=Config on a Method, or loss='module:Class' on a MethodConfig")
    frame = sys._getframe(1)

    def register(thing: T) -> T:
        entry = MethodEntry(name, config or thing, loss or thing, _origin(frame, thing))
        METHODS.add(entry)
        return thing

    return register


NetworkKind = Literal["transformer", "convolutional", "mlp", "hybrid"]
"""What a network mixes its tokens with; recipes depend on it."""

_FAMILIES: dict[str, NetworkKind] = {}  # module to the kind of all that it registers in timm's registry


def declare_kind(module: str, kind: NetworkKind) -> None:
    """Say what kind of network a family is whose names are registered in timm's registry.

    module: the family's ``__name__``. Without it the kind is guessed from the layers, and the guess is said.
    """
    _FAMILIES[module] = _known_kind(kind)


def declared_kind(module: str) -> NetworkKind | None:
    """What a module has declared, or None."""
    return _FAMILIES.get(module)


Colour = tuple[float, float, float]  # red, green, blue of images in [0, 1]


@dataclass(frozen=True)
class Declared:
    """What a network of any making gives for normalised images [B, 3, H, W], as its author declares it."""

    kind: NetworkKind
    dim: int  # D
    stride: int  # s, pixels per cell of the last map
    gives: Literal["map", "tokens"] = "map"  # [B, D, H/s, W/s] or [B, prefix + H/s * W/s, D]
    prefix: int = 0  # tokens in front that are no patch
    stages: tuple[tuple[int, int], ...] = ()  # (channels, stride) of each where it gives a list of maps, finest first
    image_size: int = 224  # pixels a side that it is built for
    mean: Colour = (0.485, 0.456, 0.406)  # of images, ImageNet's, where a run's own aren't known
    std: Colour = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        _known_kind(self.kind)
        if self.gives not in ("map", "tokens"):
            raise UserError(f"gives={self.gives!r}: expected 'map' or 'tokens'")
        if self.stages and (self.gives == "tokens" or self.stages[-1] != (self.dim, self.stride)):
            raise UserError(
                f"stages={self.stages}: expected (channels, stride) of maps, finest first, and of the last one "
                f"({self.dim}, {self.stride}), which dim and stride say"
            )


@dataclass(frozen=True)
class BackboneEntry:
    """A network that timm need not know: what builds it, and what it gives."""

    name: str
    build: Callable[..., Any]  # of keyword arguments; gives a torch.nn.Module
    declared: Declared
    origin: Origin


BACKBONES: Registry[BackboneEntry] = Registry("backbone")

F = TypeVar("F", bound=Callable[..., Any])


def register_backbone(name: str, *, kind: NetworkKind, dim: int, stride: int, **declared: Any) -> Callable[[F], F]:
    """Register what builds a network, a function or an ``nn.Module`` class, under a name, as a decorator.

    kind, dim, stride and declared are the fields of :class:`Declared`, the network's shape::

        @register_backbone("my_net", kind="convolutional", dim=64, stride=8)
        class MyNet(nn.Module): ...  # forward: images [B, 3, H, W] -> map [B, 64, H/8, W/8]

    It is built with ``backbone.args``, and with ``img_size`` and ``drop_path_rate`` where it takes them. A model by
    timm's conventions is better registered by timm's ``register_model``, with its kind by :func:`declare_kind`.

    Raises:
        UserError: the name is taken, both files are named; or what is declared makes no sense.
    """
    frame, shape = sys._getframe(1), Declared(kind, dim, stride, **declared)

    def register(build: F) -> F:
        BACKBONES.add(BackboneEntry(name, build, shape, _origin(frame, build)))
        return build

    return register


def _known_kind(kind: NetworkKind) -> NetworkKind:
    if kind not in get_args(NetworkKind):
        raise UserError(f"kind={kind!r}: expected one of {', '.join(get_args(NetworkKind))}")
    return kind


def _origin(frame: Any, thing: Any) -> Origin:
    """Where a decorator is being called."""
    file = Path(frame.f_code.co_filename)
    module = str(frame.f_globals.get("__name__", "__main__"))
    return Origin(module, thing.__qualname__, file.resolve() if file.is_file() else None, frame.f_lineno)
