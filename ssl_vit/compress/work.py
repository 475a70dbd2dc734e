"""A piece of work in a folder, made of runs and of networks between them: each is there whole or made anew."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.config import RunConfig, load_config
from ssl_vit.config.paths import LOCK, check_new
from ssl_vit.data.sources import open_source
from ssl_vit.errors import StoppedError, UserError
from ssl_vit.export.api import hand_over
from ssl_vit.export.timm import CONFIG, read_config
from ssl_vit.files import alone, write_atomically
from ssl_vit.run.finish import LAST
from ssl_vit.run.folder import logged
from ssl_vit.run.plan import EPOCHS
from ssl_vit.run.pretrain import pretrain

SETTINGS = "compress.json"  # in the folder: what must be the same when it is gone on with
LOG = "compress.log"


def check_sets(sets: Sequence[str], ours: tuple[str, ...], what: str) -> None:
    """UserError where settings of the trainings are asked for that the work decides itself."""
    for text in sets:
        if text.startswith(ours):
            raise UserError(f"--set {text}: {what} sets {text.partition('=')[0]} itself; leave it out")


def usual_epochs(config: RunConfig, share: float) -> int:
    """A share of the epochs of a run on these images."""
    images = len(open_source(config.data.path, config.data.outside_links))
    return max(1, round(share * next(epochs for most, epochs in EPOCHS if images <= most)))


def says_length(config: RunConfig) -> bool:
    """Whether settings say how long a training is."""
    return not config.train.model_fields_set.isdisjoint(("epochs", "steps", "time"))


def last_of(run: Path) -> Path:
    """Where the last weights of a complete run are: better ones of an earlier step may stand in their place."""
    return run / LAST if (run / LAST).is_dir() else run / "export"


def description(run: Path | str) -> dict[str, Any]:
    """What an export says of its training; nothing of weights of others."""
    folders = (Path(run), Path(run) / "export")
    found = next((read_config(folder) for folder in folders if (folder / CONFIG).is_file()), {})
    said = found.get("ssl_vit")
    return dict(said) if isinstance(said, Mapping) else {}


class Work:
    """Work in a folder that nobody else is at; command: the words that began it."""

    def __init__(self, out: Path, command: Sequence[str]) -> None:
        self.out = out
        self._command = shlex.join(["ssl-vit", "compress", *command, "--out", str(out), "--resume"])

    @contextmanager
    def begun(self, asked: Mapping[str, Any], resume: bool) -> Iterator[None]:
        """Inside, the folder is there and ours; UserError where it is another's, or was begun with something else."""
        if not resume:
            check_new(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        with alone(self.out / LOCK, str(self.out), wait=False):
            path, text = self.out / SETTINGS, json.dumps(asked, indent=2) + "\n"
            if not path.exists():
                write_atomically(path, lambda staged: staged.write_text(text, encoding="utf-8"))
            self._check_same(asked, path)
            yield

    def _check_same(self, asked: Mapping[str, Any], path: Path) -> None:
        try:
            was = json.loads(path.read_bytes())
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); choose another --out") from error
        for key, value in json.loads(json.dumps(asked)).items():
            if was.get(key) != value:
                raise UserError(
                    f"{self.out}: was begun with {key} {was.get(key)}, and is asked for {value}; give the same, or "
                    "choose another --out"
                )

    def network(self, name: str, make: Callable[[], AdaptedBackbone], said: Mapping[str, Any]) -> None:
        """Write a network into a folder of its own, as timm loads it, if it isn't there; said: with its description."""
        if not (folder := self.out / name).exists():
            with logged(self.out / LOG):
                hand_over(make(), folder, "timm", said)

    def train(self, name: str, config: RunConfig) -> None:
        """A run in a folder of its own; one that was stopped goes on as it began."""
        folder = self.out / name
        kept = folder / "config.yaml"
        try:
            pretrain(load_config([kept]) if kept.is_file() else config, folder, resume=kept.is_file())
        except StoppedError as error:
            raise StoppedError(f"stopped in {folder}; go on with: {self._command}") from error
