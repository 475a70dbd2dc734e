"""Code of one's own, named by ``--plugin FILE.py|MODULE`` or ``plugins=[…]``. Needs no torch.

What a plugin is: a Python file or module whose decorators (``ssl_vit.registry``, timm's ``register_model``) register
methods and backbones. It is imported when its names are needed and at the latest before a run begins. A run keeps its
plugins in config.yaml, path and sha256 each; that alone never imports anything, it only says what must be named again.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ssl_vit.errors import UserError
from ssl_vit.registry import BACKBONES, METHODS, Entry, MethodEntry, Registry, add_source, said

log = logging.getLogger("ssl_vit")

REGISTRIES: tuple[Registry[Any], ...] = (METHODS, BACKBONES)
_TIMM = "timm.models._registry"


class Plugin:
    """A file or module of one's own; made without importing it.

    Raises:
        UserError: no such file or module.
    """

    def __init__(self, given: str) -> None:
        self.is_file = given.endswith(".py") or "/" in given
        self.file = _file(given) if self.is_file else _module_file(given)
        self.place = str(self.file) if self.is_file else given  # what config.yaml keeps
        self.module: ModuleType | None = None
        self.brought: set[str] = set()  # modules that came with it
        self.entries: list[tuple[Registry[Any], Entry]] = []
        self.in_timm: dict[str, Any] = {}  # what it registered in timm's registry: name to function
        self._read = ""  # sha256 of the file that was imported
        self._own = True  # False where the user has imported it herself

    @property
    def sha256(self) -> str:
        """Of the file, as it is now; of all files together where a method keeps its loss in another."""
        found = [_sha256(self.file), *map(_sha256, self._losses())]
        return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()

    def load(self) -> None:
        """Import it, unless that was done and the file is as it was.

        Raises:
            UserError: it can't be imported, registers nothing, or takes a name that is taken.
        """
        if self.module is not None and self._read == _sha256(self.file):
            for registry, entry in self.entries:
                if registry.entries.get(entry.name) is not entry:
                    registry.add(entry)
            _timm_entrypoints().update(self.in_timm)
            return
        before, modules = [dict(registry.entries) for registry in REGISTRIES], set(sys.modules)
        first, self._read = self.module is None, _sha256(self.file)
        self.module = self._imported(first)
        self.brought |= (set(sys.modules) - modules) | {self.module.__name__}
        self.entries = [
            (registry, entry)
            for registry, known in zip(REGISTRIES, before, strict=True)
            for name, entry in registry.entries.items()
            if (entry is not known.get(name) or self._is_of(entry))
            and name not in registry.inside
            and name not in registry.announced
        ]
        self.in_timm = _registered_in_timm(self.brought)
        if not self.entries and not self.in_timm:
            raise UserError(
                f"--plugin {self.place}: registers nothing; decorate a method or a backbone with register_method or "
                "register_backbone of ssl_vit.registry"
            )
        self._losses()

    def withdraw(self) -> None:
        """Take its names out of the registries again; :meth:`load` puts them back without importing anything."""
        if self._own:
            for registry, entry in self.entries:
                registry.entries.pop(entry.name, None)
            for name in self.in_timm:
                _timm_entrypoints().pop(name, None)

    def __str__(self) -> str:
        names = [f"{registry.kind} {entry.name}" for registry, entry in self.entries]
        names += [f"backbone {name}" for name in sorted(self.in_timm)]
        return f"plugin {self.place} (sha256 {self.sha256[:12]}): {', '.join(names)}"

    def _imported(self, first: bool) -> ModuleType:
        there = [m for m in list(sys.modules.values()) if _same(getattr(m, "__file__", None), self.file)]
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error" if first else "ignore", "Overwriting .* in registry", UserWarning)
                if there and first:
                    self._own = False
                    return there[0]
                if not self.is_file:
                    return importlib.import_module(self.place) if first else importlib.reload(there[0])
                return self._run()
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # whatever a stranger's file raises
            raise UserError(self._complaint(error)) from error

    def _complaint(self, error: BaseException) -> str:
        """Why it can't be imported, in one line."""
        found = re.match(r"Overwriting (\S+) in registry", str(error))  # by timm's register_model
        if found is None:
            return f"--plugin {self.place}: can't be imported: {said(error, self.file)}; mend it, or leave it out"
        module = _timm_entrypoints()[found[1]].__module__
        other = getattr(sys.modules.get(module), "__file__", module) if _is_foreign(module) else module
        return f"the backbone {found[1]!r} is taken: {self.file} and {other} register it; rename one, or leave one out"

    def _run(self) -> ModuleType:
        """The file as a module of its name; what lies beside it can be imported, as for a script."""
        name = self.file.stem if self.file.stem.isidentifier() else re.sub(r"\W", "_", f"_{self.file.stem}")
        if name in sys.modules and not _same(getattr(sys.modules[name], "__file__", None), self.file):
            name = f"{name}_{_sha256(self.file)[:8]}"  # somebody else's
        spec = importlib.util.spec_from_file_location(name, self.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        if str(self.file.parent) not in sys.path:
            sys.path.append(str(self.file.parent))
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def _losses(self) -> list[Path]:
        """The files of losses that its methods keep elsewhere; they are found without being imported."""
        return [file for _, entry in self.entries if isinstance(entry, MethodEntry) and (file := _loss_file(entry))]

    def _is_of(self, entry: Any) -> bool:
        return bool(entry.origin.file == self.file)


_in_use: dict[str, Plugin] = {}  # by place
_known: dict[str, Plugin] = {}  # all that this process has seen, so that none is imported twice


def use(given: Iterable[str]) -> None:
    """Let these files and modules be plugins from here on; they are imported when a name of theirs is needed.

    Raises:
        UserError: no such file or module.
    """
    for text in given:
        plugin = Plugin(text)
        _in_use[plugin.place] = _known.setdefault(plugin.place, plugin)


def load() -> None:
    """Import every plugin that is in use and isn't imported; UserError as :meth:`Plugin.load`."""
    for place, plugin in list(_in_use.items()):
        try:
            plugin.load()
        except UserError:
            del _in_use[place]  # so that the next call, after it has been mended, begins anew
            _known.pop(place, None)
            raise


add_source(load)


def in_use() -> list[Plugin]:
    """The plugins, in the order in which they were named."""
    return list(_in_use.values())


def announce() -> None:
    """Say in the log, a line each, which plugins are in use and what they registered."""
    for plugin in in_use():
        log.info("%s", plugin)


def flags() -> str:
    """What a command line needs so that the same plugins are in use: " --plugin my.py", or nothing."""
    return "".join(f" --plugin {shlex.quote(plugin.place)}" for plugin in in_use())


@contextmanager
def withdrawn_after() -> Iterator[None]:
    """Plugins named meanwhile are in use until the end: one command's don't serve the next one's."""
    before = dict(_in_use)
    try:
        yield
    finally:
        for place in _in_use.keys() - before.keys():
            _in_use.pop(place).withdraw()


def recorded(method: str, backbone: str) -> dict[str, str]:
    """What a run keeps: path or module, and sha256, of each plugin, and of files of the user's that were imported.

    method, backbone: names that the run uses; where somebody's own ``import`` has registered them, their file counts.
    """
    load()
    kept = {plugin.place: plugin.sha256 for plugin in in_use()}
    for registry, name in zip(REGISTRIES, (method, backbone), strict=True):
        entry = registry.entries.get(name)
        if entry is not None and _by_hand(registry, entry):
            kept[str(entry.origin.file)] = _sha256(entry.origin.file)
    return kept


def problems(kept: Mapping[str, Any], origin: Mapping[str, str]) -> list[str]:
    """What keeps a configuration that lists plugins from being used, one line each.

    kept: path or module, and sha256, as it lists them. origin: where in which file it does, by path or module.
    """
    lines = []
    for place, digest in kept.items():
        where = f" ({origin[place]})" if place in origin else ""
        now = _digests()
        if digest in now.values():
            continue
        near = next((known for known in now if Path(known).name == Path(place).name), None)
        lines.append(changed(near, digest, now[near]) + where if near else f"{missing(place)}{where}")
    return lines


def missing(place: str) -> str:
    """What to say where a plugin has to be named."""
    return (
        f"plugins: {place} is needed, and what a file says is never imported without your word; "
        f"add --plugin {place} (in Python: plugins=[{place!r}])"
    )


def changed(place: str, before: str, now: str) -> str:
    """What to say where a plugin is not what it was."""
    return (
        f"plugins: {place} has changed since the run began (its sha256 was {before[:12]}…, is {now[:12]}…); "
        "restore it, or begin a new run with a configuration that does not list it"
    )


def load_plugin(given: str) -> None:
    """Import a plugin, a file or module, and let it be in use from here on, as ``--plugin`` does.

    Raises:
        UserError: it isn't there, can't be imported, registers nothing, or takes a name that is taken.
    """
    use([given])
    load()


Source = dict[str, str | None]
"""Where a network is from that others can't build: "file" or "module" and "sha256"; or "package"."""


def source_of(module: str) -> Source | None:
    """Where a module of a network's is from, as config.json keeps it, without a path of this machine.

    None for timm's and ours, and where nobody can tell.
    """
    if not _is_foreign(module):
        return None
    for plugin in in_use():
        if module in plugin.brought:
            return {"file" if plugin.is_file else "module": Path(plugin.place).name, "sha256": plugin.sha256}
    for points in BACKBONES.announced.values():
        if points[0].dist and points[0].module.partition(".")[0] == module.partition(".")[0]:
            return {"package": points[0].dist.name}
    file = getattr(sys.modules.get(module), "__file__", None)
    return {"file": Path(file).name, "sha256": _sha256(Path(file))} if file else None


def title(source: Mapping[str, Any]) -> str:
    """What :func:`source_of` says, in words."""
    if package := source.get("package"):
        return f"the package {package}"
    place = source.get("file") or source.get("module")
    return f"the plugin {place}" if place else "a copy of the module that was given"


def import_line(module: str) -> str:
    """The Python that registers what a module does, wherever it is run on this machine."""
    for plugin in in_use():
        if module in plugin.brought:
            return f"import ssl_vit; ssl_vit.load_plugin({plugin.place!r})"
    return f"import {module}"


def is_same(source: Mapping[str, Any]) -> bool:
    """Whether what can build a network is as it was when :func:`source_of` gave this, as far as files show it."""
    return "sha256" not in source or source["sha256"] in _digests().values()


def require(source: Mapping[str, Any], name: str, holder: str) -> None:
    """Nothing, where what can build a network is at hand; that it has changed is said.

    source: as :func:`source_of` gave it. name: of the network; holder: the file of its weights.

    Raises:
        UserError: it isn't; which plugin to name.
    """
    load()
    what = f"{holder}: holds the backbone {name!r}"
    if package := source.get("package"):
        if name in BACKBONES.announced:
            return
        raise UserError(f"{what} of the package {package}, which is not installed; install it")
    place = source.get("file") or source.get("module")
    if place is None:
        if name in BACKBONES.entries:
            return
        raise UserError(
            f"{what}, a module that was given in Python; give it again by ssl_vit.as_backbone(…, name={name!r})"
        )
    if is_same(source):
        return
    near = next((known for known in _digests() if Path(known).name == place), None)
    if near is None:
        raise UserError(
            f"{what} of the plugin {place}, and a file of weights never imports code; add --plugin {place} (in Python: "
            f"ssl_vit.load_plugin({place!r}))"
        )
    log.warning("%s: the plugin %s has changed since the weights were written", holder, near)


def _digests() -> dict[str, str]:
    """sha256 by place, of all plugins in use and of the user's files that she has imported herself."""
    load()
    found = {plugin.place: plugin.sha256 for plugin in in_use()}
    by_hand = {
        entry.origin.file for registry in REGISTRIES for entry in registry.entries.values() if _by_hand(registry, entry)
    }
    withdrawn = {module for plugin in _known.values() if plugin.place not in _in_use for module in plugin.brought}
    for module in {function.__module__ for function in _timm_entrypoints().values()} - withdrawn:
        if _is_foreign(module) and (file := getattr(sys.modules.get(module), "__file__", None)):
            by_hand.add(Path(file).resolve())
    return found | {str(file): _sha256(file) for file in by_hand if str(file) not in found}


def _by_hand(registry: Registry[Any], entry: Entry) -> bool:
    """Whether a file that is no plugin registered it, by an import of the user's."""
    if entry.origin.file is None or entry.name in registry.inside or entry.name in registry.announced:
        return False
    return all(entry is not other for plugin in in_use() for _, other in plugin.entries)


def _file(given: str) -> Path:
    path = Path(given).expanduser()
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"--plugin {given}: {found}; expected a Python file, or the name of a module")
    if path.suffix != ".py":
        raise UserError(f"--plugin {given}: expected a Python file, whose name ends in .py, or the name of a module")
    return path.resolve()


def _module_file(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:  # of a package above it
        raise UserError(
            f"--plugin {name}: can't be found: {said(error)}; give the name of a module, or a file"
        ) from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise UserError(f"--plugin {name}: no such module; install it, or give a file, {name}.py")
    return Path(spec.origin).resolve()


def _loss_file(entry: MethodEntry) -> Path | None:
    """Where a method keeps its loss, if that is in another file.

    Raises:
        UserError: there is no such module.
    """
    if not isinstance(entry.loss, str):
        return None
    importlib.invalidate_caches()  # it may have been written a moment ago
    try:
        spec = importlib.util.find_spec(entry.loss.partition(":")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"{entry.origin}: loss={entry.loss!r}: no such module beside it; write it as 'module:Class'")
    return Path(spec.origin)


def _registered_in_timm(modules: set[str]) -> dict[str, Any]:
    """What these modules have registered in timm's registry, if timm has been imported at all."""
    return {
        name: function
        for name, function in _timm_entrypoints().items()
        if function.__module__ in modules and _is_foreign(function.__module__)
    }


def _timm_entrypoints() -> dict[str, Any]:
    """timm's own table of names, to look into and to take a plugin's out of again, for which timm has no function."""
    found: dict[str, Any] = getattr(sys.modules.get(_TIMM), "_model_entrypoints", {})
    return found


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] not in ("timm", "ssl_vit")


def _same(file: str | None, path: Path) -> bool:
    return file is not None and Path(file).name == path.name and Path(file).resolve() == path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
