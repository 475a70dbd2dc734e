"""A checkpoint is whole or not there: kills, damage, full disks, files that want to run code."""

from __future__ import annotations

import os
import pickle
import random
import resource
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from ssl_vit.errors import RunFailed
from ssl_vit.training.checkpoint import (
    KEEP,
    checkpoint_path,
    checksum_of,
    newest_checkpoint,
    prune,
    read_checkpoint,
    write_checkpoint,
)
from tests.runs import wait_for

pytestmark = pytest.mark.fault


def save(folder: Path, step: int, megabytes: float = 0.001) -> Path:
    """A checkpoint all of whose values are its step."""
    weights = torch.full((int(megabytes * 2**18),), float(step))
    write_checkpoint({"step": step, "weights": weights}, checkpoint_path(folder, step))
    return checkpoint_path(folder, step)


def load(path: Path | None) -> int:
    """Its step, once every value has been looked at."""
    assert path is not None
    checkpoint = read_checkpoint(path)
    assert (checkpoint["weights"] == checkpoint["step"]).all()
    return int(checkpoint["step"])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def changed(folder: Path, before: set[str]) -> bool:
    return names(folder) != before


def save_for_ever(folder: Path, first: int) -> None:
    torch.set_num_threads(1)  # a forked process has lost the threads of its parent
    try:
        for step in range(first, 10**6):
            prune(folder, save(folder, step, megabytes=2))
    finally:
        os._exit(1)


def test_kill_9_at_any_moment_leaves_a_whole_one(tmp_path: Path) -> None:
    """Twelve kills at random moments of a process that does nothing but save; it goes on where it was killed."""
    moments, newest, caught_writing = random.Random(0), 0, 0
    save(tmp_path, 0)
    for kill in range(12):
        before, started = names(tmp_path), time.monotonic()
        child = os.fork()
        if child == 0:
            save_for_ever(tmp_path, newest + 1)  # never comes back
        if kill % 2 == 0:
            wait_for(checksum_of(checkpoint_path(tmp_path, newest + 2)).exists)  # a kill may have left the one before
            pace = time.monotonic() - started  # of this machine, as busy as it is
        else:
            wait_for(partial(changed, tmp_path, before))
        time.sleep(moments.uniform(0, 2) * pace)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        caught_writing += any(tmp_path.glob(".*"))
        last, newest = newest, load(newest_checkpoint(tmp_path))
        assert newest > last or (kill % 2 and newest == last)
    assert caught_writing > 0
    prune(tmp_path, save(tmp_path, newest + 1))
    assert len(list(tmp_path.iterdir())) == 2 * KEEP  # with their checksums; nothing half-written is left


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose_the_checksum(path: Path) -> None:
    checksum_of(path).unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, cut, empty, lose_the_checksum])
def test_a_damaged_one_is_named_and_passed_over(damage, tmp_path, caplog) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    damage(checkpoint_path(tmp_path, 10))
    assert load(newest_checkpoint(tmp_path)) == 5
    assert "step-000000010.ckpt is damaged" in caplog.text
    assert "step-000000005.ckpt is damaged" not in caplog.text
    damage(checkpoint_path(tmp_path, 5))
    with pytest.raises(RunFailed, match="none of the 2 checkpoints is whole; start again with --overwrite"):
        newest_checkpoint(tmp_path)


def test_the_two_newest_are_kept_and_what_is_later_is_damaged(tmp_path: Path) -> None:
    """Step 20 was damaged, and the run went on from 15."""
    for step in (10, 15, 20):
        save(tmp_path, step)
    prune(tmp_path, save(tmp_path, 18))
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"step-000000015.ckpt", "step-000000018.ckpt"}
    assert load(newest_checkpoint(tmp_path)) == 18


def test_a_kill_between_the_first_one_and_its_checksum_costs_nothing(tmp_path: Path, caplog) -> None:
    path = save(tmp_path, 5)
    lose_the_checksum(path)
    assert load(newest_checkpoint(tmp_path)) == 5
    assert "killed before its checksum was written" in caplog.text
    flip_a_bit(path)
    with pytest.raises(RunFailed, match="none of the 1 checkpoints is whole"):
        newest_checkpoint(tmp_path)


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("room", [0, 1_000, 700_000])
def test_a_full_disk_leaves_the_old_one_and_the_run_goes_on(room, tmp_path, caplog) -> None:
    """The same name saved again, a megabyte, in a process whose files may not grow beyond ``room`` bytes."""
    path = save(tmp_path, 7)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        write_checkpoint({"weights": torch.zeros(2**18)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"{path} could not be saved (File too large)" in caplog.text
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert load(newest_checkpoint(tmp_path)) == 7


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the environment asks torch for it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, mark = tmp_path / "step-000000001.ckpt", tmp_path / "mark"
    torch.save({"state_dict": Bomb(mark)}, path)
    with pytest.raises(pickle.UnpicklingError):
        read_checkpoint(path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the bomb is live"
