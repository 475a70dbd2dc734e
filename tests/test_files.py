"""One process at a time, where the file system can tell."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssl_vit.errors import UserError
from ssl_vit.files import alone, write_atomically
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


def test_the_lock_says_whose_it_is_and_is_empty_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with alone(lock, "run"):
        mine = f"pid {os.getpid()} on {socket.gethostname()}"
        script = (
            "import sys, pathlib; from ssl_vit.files import alone; alone(pathlib.Path(sys.argv[1]), 'run', wait=False)"
        )
        line = [sys.executable, "-c", script + ".__enter__()", str(lock)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert f"run: another process is at work there ({mine}); wait" in done.stderr
        assert lock.read_text() == mine + "\n", "the one that was refused has left it as it was"
    assert lock.read_text() == ""


def test_the_lock_of_a_process_that_is_gone_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its file still names it; without locks that is all there is to go by, and another host's may be at work."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    lock, here = tmp_path / ".lock", socket.gethostname()
    lock.write_text(f"pid {ended.pid} on {here}\n")
    with alone(lock, "run", wait=False):
        assert lock.read_text() == f"pid {os.getpid()} on {here}\n"
    lock.write_text("pid 1 on elsewhere\n")
    with alone(lock, "run", wait=False):
        assert "run: pid 1 on elsewhere was at work there" in caplog.text
    no_locks(monkeypatch, errno.ENOLCK)
    lock.write_text(f"pid {ended.pid} on {here}\n")
    with alone(lock, "run", wait=False):
        pass
    for holder in (f"pid {os.getppid()} on {here}", "pid 1 on elsewhere"):
        lock.write_text(holder + "\n")
        refused = pytest.raises(UserError, match=f"{holder}; .* if that process has ended, delete {lock}")
        with refused, alone(lock, "run", wait=False):
            pass
        assert lock.read_text() == holder + "\n"


@pytest.mark.parametrize("name", ["a" * 255, "ü" * 127])
def test_a_file_may_have_the_longest_of_names(name: str, tmp_path: Path) -> None:
    write_atomically(tmp_path / name, lambda path: path.write_text("whole"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
