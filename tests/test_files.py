"""One process at a time, where the file system can tell."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from ssl_vit.files import alone
from tests.runs import wait_for


def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    lock, inside, over = tmp_path / ".lock", tmp_path / "inside", tmp_path / "over"
    child = os.fork()
    if child == 0:
        try:
            with alone(lock, "boxes"):
                inside.touch()
                time.sleep(0.3)
                over.touch()
        finally:
            os._exit(0)
    wait_for(inside.exists)
    with alone(lock, "boxes"):
        assert over.exists()
    os.waitpid(child, 0)


def no_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_a_file_system_without_locks_goes_without_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    no_locks(monkeypatch, errno.ENOLCK)
    inside = False
    with alone(tmp_path / ".lock", "run", wait=False):
        inside = True
    assert inside
    assert "run: its file system has no locks" in caplog.text


def test_other_errors_are_not_taken_for_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"), alone(tmp_path / ".lock", "run", wait=False):
        pass
