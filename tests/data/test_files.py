"""One process at a time, where the file system can tell."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from ssl_vit.data.files import alone
from tests.runs import wait_for


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    lock, inside, over = tmp_path / ".lock", tmp_path / "inside", tmp_path / "over"
    child = os.fork()
    if child == 0:
        with alone(lock, "boxes"):
            inside.touch()
            time.sleep(0.3)
            over.touch()
        os._exit(0)
    wait_for(inside.exists)
    with alone(lock, "boxes"):
        assert over.exists()
    os.waitpid(child, 0)


def test_a_file_system_without_locks_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with alone(tmp_path / ".lock", "run", wait=False):
        assert (tmp_path / ".lock").exists()
