"""The files that could not be read: each named once, counted, listed in a file."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from ssl_vit.data.source import Source
from ssl_vit.errors import RunFailed, UserError

BadFiles = list[tuple[str, str]]  # (name in the source, reason)

_log = logging.getLogger("ssl_vit.data")
_SHOWN = 5  # names in an error
_REPLACED = "another image takes its place"


class BadList:
    """The list logs each bad file once and appends it to a file, a JSON object a line; what that holds counts too.

    total: files in the source; max_bad: the share of them that may be bad, else RunFailed; setting: what raises it.
    """

    def __init__(
        self,
        total: int,
        max_bad: float,
        path: Path | None = None,
        consequence: str = _REPLACED,
        setting: str = "data.max_bad",
    ) -> None:
        self.total, self.max_bad, self.path = total, max_bad, path
        self.consequence, self.setting = consequence, setting
        self.files: dict[str, str] = {}
        if path is not None and path.exists():
            self.files = _read(path)

    def note(self, bad: BadFiles) -> None:
        """Record the bad files of a batch; RunFailed where they have become too many."""
        for name, reason in bad:
            if name in self.files:
                continue
            self.files[name] = reason
            _log.warning("%s could not be read (%s); %s", printable(name), reason, self.consequence)
            if self.path is not None:
                _add_line(self.path, json.dumps({"file": name, "reason": reason}))
        if len(self.files) > self.max_bad * self.total:
            share = len(self.files) / self.total
            raise self.failure(
                f"{len(self.files)} of {self.total} images ({share:.1%}) could not be read, "
                f"more than the {self.max_bad:.1%} that max_bad allows"
            )

    def failure(self, problem: str) -> RunFailed:
        """Make the error that says the problem, and names the first bad files and the list of all."""
        shown = ", ".join(f"{printable(name)} ({reason})" for name, reason in list(self.files.items())[:_SHOWN])
        listed = f"; all are listed in {self.path}" if self.path is not None else ""
        return RunFailed(f"{problem}: {shown}{listed}; mend or remove them, or raise {self.setting}")


def _add_line(path: Path, line: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")
    except OSError as error:
        raise RunFailed(f"{path} can't be written ({error.strerror}); free some space on its disk") from error


def note_damage(source: Source, max_bad: float) -> None:
    """Warn of archives of which a part can't be read; RunFailed where that is more than the share `max_bad`."""
    for text in source.damage:
        _log.warning("%s; what follows in that archive is left out", printable(text))
    if source.lost > max_bad:
        raise RunFailed(
            f"{source.root}: {source.lost:.1%} of the archives can't be read, more than the {max_bad:.1%} that max_bad "
            f"allows: {printable('; '.join(source.damage[:_SHOWN]))}; mend or remove them, or raise data.max_bad"
        )


def _read(path: Path) -> dict[str, str]:
    files = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            entry = json.loads(line)
            files[entry["file"]] = entry["reason"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{path}, line {number}: expected {{"file": …, "reason": …}}; remove the line') from error
    return files


def printable(name: str) -> str:
    r"""Write a file's name on one line and in valid text, whatever bytes it has.

    >>> printable("caf\udce9\n.jpg")
    'caf\\xe9\\x0a.jpg'
    >>> printable("\ud800.jpg")  # as JSON may have it
    '\\ud800.jpg'
    """
    name = "".join(f"\\u{ord(c):04x}" if "\ud800" <= c < "\udc80" or "\udcff" < c <= "\udfff" else c for c in name)
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
