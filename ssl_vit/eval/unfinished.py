"""A score of many runs that can be killed: what is done stays beside the result, until that is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_vit.errors import UserError
from ssl_vit.files import write_whole

MADE, DONE = "made.json", "done.json"


class Unfinished:
    """Results are kept by name, in a folder or, without one, in memory alone.

    made: all that the results depend on; UserError where the folder is of something else.
    """

    def __init__(self, folder: Path | None, made: Mapping[str, Any]) -> None:
        self._folder = folder
        self.done: dict[str, Any] = {}
        if folder is None:
            return
        if not (folder / MADE).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / MADE, made)
        before, now = _read(folder / MADE), json.loads(json.dumps(made))
        if before != now:
            other = next(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
            raise UserError(
                f"{folder}: an unfinished score with another {other} ({before.get(other)}, now {now.get(other)}); "
                "ask for the same again to go on with it, or remove the folder"
            )
        if (folder / DONE).is_file():
            self.done = _read(folder / DONE)

    def checkpoint(self, name: str) -> Path | None:
        """The file is where a run may keep its state while it is under way."""
        return None if self._folder is None else self._folder / f"{name}.ckpt"

    def finish(self, name: str, result: Any) -> None:
        """Note a result; the state of the run that made it is dropped."""
        self.done[name] = result
        if self._folder is not None:
            _write(self._folder / DONE, self.done)
            (self._folder / f"{name}.ckpt").unlink(missing_ok=True)


def folder_of(result: Path) -> Path:
    """The folder lies beside the file that the result will be written to."""
    return result.with_name(f"{result.name}.unfinished")


def remove(result: Path) -> None:
    """Remove the folder, once the result is written."""
    if folder_of(result).is_dir():
        shutil.rmtree(folder_of(result))


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove its folder and score again") from error
    return content


def _write(path: Path, content: Any) -> None:
    text = json.dumps(content)
    write_whole(path, lambda file: file.write(text.encode()))
