"""YAML files, ``--set`` and flags become one :class:`RunConfig`, and YAML again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ssl_vit import plugins
from ssl_vit.config.document import KeyPath, dump_tree, read_file, read_text, scalar
from ssl_vit.config.problems import known_keys, mistakes, takes_text
from ssl_vit.config.schema import DEFAULT_METHOD, RunConfig, as_minutes
from ssl_vit.errors import ConfigError
from ssl_vit.registry import METHODS

FLAGS = {
    "DATA": "data.path",
    "--method": "method.name",
    "--backbone": "backbone.name",
    "--weights": "backbone.weights",
    "--epochs": "train.epochs",
    "--time": "train.time",
    "--batch-size": "train.batch_size",
    "--val": "data.val",
    "--outside-links": "data.outside_links",
    "--seed": "train.seed",
    "--devices": "train.devices",
    "--workers": "data.workers",
    "--precision": "train.precision",
}
"""The keys that have a flag of their own on the command line."""
_LENGTHS = ("time", "epochs", "steps")  # of section train
RETIRED: dict[KeyPath, tuple[Any, str]] = {
    ("data", "augment"): ("exact", "colours are always exact now; with the extra numba they are as quick"),
}
"""Keys that older versions wrote into config.yaml: the only value that is still taken, and left out, as it says what is
always done now; and what any other value is answered with."""


def load_config(
    files: Iterable[str | Path] = (), sets: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> RunConfig:
    """Build the configuration that all sources give: files merge left to right, then ``sets``, then ``flags`` win.

    ``sets`` are "key.path=value" with the value in YAML; ``flags`` map keys ("train.epochs") to values, text being
    read as on the command line. Plugins that are in use are imported last and noted in it; what a file lists under
    ``plugins`` must be among them, unchanged. ConfigError lists all mistakes at once, one a line.

    >>> load_config(sets=["optim.lr=1e-3"], flags={"data.path": "images"}).optim.lr
    0.001
    """
    layers = _Layers()
    for file in files:
        layers.add_file(Path(file))
    layers.begin_own()
    for text in sets:
        layers.add_set(text)
    for key, value in (flags or {}).items():
        layers.add_flag(key, value)
    layers.keep_own_rate()
    layers.keep_own_length()
    if layers.problems:
        raise ConfigError(layers.problems)
    if layers.is_foreign():
        # What is wrong elsewhere is said at once: to read her method's section, a user's file must be imported.
        rest = {key: value for key, value in layers.tree.items() if key != "method"}
        layers.check_plugins(_validated(rest, layers.origins))
    config = _validated(layers.tree, layers.origins)
    used = plugins.recorded(config.method.name, config.backbone.name)
    return config.model_copy(update={"plugins": used})


def _validated(tree: Mapping[str, Any], origins: Mapping[KeyPath, str]) -> RunConfig:
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(mistakes(error, tree, origins)) from error


def dump(config: RunConfig) -> str:
    """Write YAML that :func:`load_config` reads back to an equal configuration, always the same bytes."""
    return dump_tree(config.model_dump(mode="json"))


class _Layers:
    """Values put over one another, each key remembering where it is from."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {"data": {}}  # so that a missing data.path is named as that
        self.origins: dict[KeyPath, str] = {}
        self.problems: list[str] = []
        self._layer, self._layers = (
            0,
            dict[KeyPath, int](),
        )  # which file a key is from, by its place; then the user's own

    def begin_own(self) -> None:
        """What comes now is the user's own, over all files."""
        self._layer += 1

    def keep_own_rate(self) -> None:
        """A rate that is put over a recipe's is meant as it is, whatever batch the recipe's was made for."""
        optim = self.tree.get("optim")
        made_at = self._layers.get(("optim", "lr_batch"), self._layer)
        if not isinstance(optim, dict) or made_at == self._layer:
            return
        if self._layers.get(("optim", "lr"), 0) > made_at:
            optim["lr_batch"] = None
        elif self._layers.get(("optim", "min_lr"), 0) > made_at:
            train = self.tree.get("train")
            numbers = optim["min_lr"], optim["lr_batch"], train.get("batch_size") if isinstance(train, dict) else None
            if all(isinstance(each, int | float) and each > 0 for each in numbers):
                end, made_for, batch = numbers
                optim["min_lr"] = end * made_for / batch  # which scaling takes back

    def keep_own_length(self) -> None:
        """A time that is put over a file's epochs decides them anew, and epochs over a file's time stand without it.

        Both at once can't be asked for; a run's own file has both, with the speed that it has measured.
        """
        train = self.tree.get("train")
        if not isinstance(train, dict) or train.get("time") is None:
            return
        put = {key: self._layers[path] for key in _LENGTHS if (path := ("train", key)) in self._layers}
        given = [key for key in ("epochs", "steps") if key in put and train[key] not in (None, "auto")]
        last = max((put[key] for key in given), default=-1)
        if last > put["time"]:
            self._drop("time", "step_seconds")
            if put.get("steps", last) < last:
                self._drop("steps")
        elif last < put["time"]:
            self._drop("epochs", "steps", "step_seconds")
        elif train.get("step_seconds") is None:
            names = " and ".join(f"train.{key} ({self.origins['train', key]})" for key in (given[0], "time"))
            self.problems.append(f"{names} both say how long the run is; give one of them: the time chooses the epochs")

    def _drop(self, *keys: str) -> None:
        for key in keys:
            self.tree["train"].pop(key, None)

    def add_file(self, path: Path) -> None:
        self._layer += 1
        try:
            for key, value, line in read_file(path):
                self.put(key, value, f"{path} line {line}")
        except ConfigError as error:
            self.problems += error.problems

    def add_set(self, text: str) -> None:
        name, equals, value = text.partition("=")
        path = tuple(name.strip().split("."))
        if not equals or not all(path):
            self.problems.append(f"--set {text}: expected key.path=value, as in --set train.epochs=100")
            return
        try:
            for leaf, item, _ in read_text(f"value: {value}", f"--set {text}"):
                self.put((*path, *leaf[1:]), item, f"--set {text}")
        except ConfigError as error:
            self.problems += error.problems

    def add_flag(self, key: str, value: Any) -> None:
        path = tuple(key.split("."))
        field = known_keys().get(path)
        if isinstance(value, str) and not (field and takes_text(field)):
            value = scalar(value)
        names = {key: flag for flag, key in FLAGS.items()}
        self.put(path, value, names.get(key, key))

    def is_foreign(self) -> bool:
        """Whether the method may be a plugin's, or a file lists plugins."""
        method = self.tree.get("method")
        name = method.get("name", DEFAULT_METHOD) if isinstance(method, dict) else DEFAULT_METHOD
        return "plugins" in self.tree or (isinstance(name, str) and not METHODS.at_hand(name))

    def check_plugins(self, config: RunConfig) -> None:
        """ConfigError where a plugin that a file lists isn't in use, or has changed."""
        origins = {path[1]: origin for path, origin in self.origins.items() if path[0] == "plugins" and len(path) > 1}
        if found := plugins.problems(config.plugins, origins):
            raise ConfigError(found)

    def put(self, path: KeyPath, value: Any, origin: str) -> None:
        """Put a value over what was there; a scalar where a section belongs stays, for the schema to refuse."""
        if path in RETIRED:
            accepted, instead = RETIRED[path]
            if value != accepted:
                self.problems.append(f"{'.'.join(path)}: no longer a setting; {instead}; remove it ({origin})")
            return
        section: Any = self.tree
        for depth, key in enumerate(path[:-1], start=1):
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                return
            self.origins.setdefault(path[:depth], origin)
        if value == {} and isinstance(section.get(path[-1]), dict):
            return  # an empty section changes nothing
        if path == ("train", "time") and path in self._layers and as_minutes(value) == section.get("time"):
            return  # asked for again, as where a run is resumed by the command that began it
        section[path[-1]] = value
        self.origins[path] = origin
        self._layers[path] = self._layer
