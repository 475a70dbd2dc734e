"""Disks that are full, before a run and in the midst of it: a real file system that is too small, and one line."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ssl_vit import cli
from ssl_vit.cli import main
from ssl_vit.data.sources import open_source
from ssl_vit.data.store import Store
from ssl_vit.run import finish
from ssl_vit.training.looks.metrics import Metrics
from tests.runs import command, losses

pytestmark = pytest.mark.fault


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.getuid() or subprocess.run(line, check=False, capture_output=True).returncode:
            pytest.skip("only root can mount a disk, and not in every container")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def fill(disk: Path) -> None:
    """Leave not a byte."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    """The error at the end of what was said, which has no traceback."""
    said = capfd.readouterr().err
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("ssl-vit: error: ")]
    assert errors == said.splitlines()[-1:]
    return errors[0]


def at_step(monkeypatch: pytest.MonkeyPatch, happens: dict[int, Callable[[], None]]) -> None:
    """Things happen before the metrics of steps are written."""
    write = Metrics.write

    def eventful(metrics: Metrics, step: int, row: dict[str, Any]) -> None:
        if "grad_norm" in row and step in happens:
            happens[step]()
        write(metrics, step, row)

    monkeypatch.setattr(Metrics, "write", eventful)


def test_a_disk_without_room_is_said_before_the_first_step(
    disk: Callable[[str], Path], pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = disk("1m") / "run"
    assert main(command(pictures / "train", out, data__workers=0)) == 1
    assert (
        f"{out / 'checkpoints'}: its disk has 1 MB free, but 2 checkpoints, the export and the logs take"
        in one_line(capfd)
    )
    assert losses(out) == []


@pytest.mark.parametrize("what", ["metrics", "first checkpoint", "export"])
def test_a_disk_that_becomes_full_ends_the_run_in_one_line(
    what: str,
    disk: Callable[[str], Path],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    small = disk("6m")
    out, every = small / "run", {"metrics": 100, "first checkpoint": 2, "export": 6}[what]
    argv = command(
        pictures / "train",
        out,
        data__workers=0,
        train__epochs=5 if what == "metrics" else 1,
        train__checkpoint_every=every,
    )
    with monkeypatch.context() as patch:
        if what == "export":
            hand_over = finish.hand_over
            patch.setattr(finish, "hand_over", lambda *given: (fill(small), hand_over(*given)))
        else:
            at_step(patch, {1: lambda: fill(small)})
        assert main(argv) == 1
    error = one_line(capfd)
    assert "No space left on device" in error
    assert {
        "metrics": f"{out / 'metrics.jsonl'} can't be written",
        "first checkpoint": "step-000000002.ckpt could not be saved",
        "export": f"go on with: ssl-vit pretrain {pictures / 'train'} --out {out} --resume",
    }[what] in error
    assert not list(out.rglob("*.partial"))
    (small / "filler").unlink()
    if what == "export":
        assert main(["pretrain", str(pictures / "train"), "--out", str(out), "--resume"]) == 0
        assert (out / "export" / "model.safetensors").exists()


def test_a_disk_that_was_full_for_a_while_costs_one_checkpoint(
    disk: Callable[[str], Path], pictures: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The older one makes room for it first, so that the newest is never at stake."""
    small = disk("6m")
    out, kept = small / "run", list[str]()

    def free() -> None:
        kept.extend(sorted(path.name for path in (out / "checkpoints").glob("*.ckpt")))
        (small / "filler").unlink()

    at_step(monkeypatch, {4: lambda: fill(small), 6: free})
    argv = command(pictures / "train", out, data__workers=0, train__epochs=2, train__checkpoint_every=2)
    assert main(argv) == 0, capfd.readouterr().err
    said = capfd.readouterr().err
    assert "the older checkpoint makes room" in said
    assert "Traceback" not in said
    assert len(kept) in (1, 2)
    assert kept[0] == "step-000000004.ckpt"
    assert (out / "checkpoints" / "step-000000012.ckpt").exists()


def test_rows_for_which_there_is_no_room_are_said_before_the_first(
    disk: Callable[[str], Path], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie in a mapped file, which kills its process (SIGBUS) where the disk has no room for what is written."""
    place = disk("300k")
    source = open_source(str(pictures / "train"))
    with pytest.raises(OSError, match="No space left") as error:
        Store.open(place / "features", source, 10_000, {})
    assert error.value.filename == str(place / "features" / "features.npy")
    assert Store.open(place / "few", source, 10, {}).values.shape == (len(source), 10)


def test_any_command_says_it_in_one_line(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries raise errors of their own about it."""

    def full(_: list[str]) -> None:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "features.npz")
        except OSError:
            raise RuntimeError("unexpected position") from None

    def foreign(_: list[str]) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    for command_, name in ((full, "features.npz"), (foreign, "a file")):
        monkeypatch.setitem(cli.COMMANDS, "demo", command_)
        assert main(["demo"]) == 1
        assert one_line(capfd).startswith(
            f"ssl-vit: error: {name} can't be written: No space left on device; free some"
        )


def test_a_run_goes_on_without_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It can't be written from the start, or later."""
    (tmp_path / "tensorboard").touch()
    metrics = Metrics(tmp_path, 0)
    assert caplog.text.count("TensorBoard can't be written") == 1
    metrics.write(0, {"loss": 1.0})
    metrics.end()

    def broken(*_: object) -> None:
        raise RuntimeError("the writer's thread is gone")

    (tmp_path / "tensorboard").unlink()
    metrics = Metrics(tmp_path, 1)
    assert metrics._board is not None
    metrics._board.add_scalar = broken  # type: ignore[method-assign]
    for step in (1, 2):
        metrics.write(step, {"loss": 1.0})
    assert caplog.text.count("going on without it") == 2
    metrics.end()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_log_that_can_not_be_written_is_said_once(
    disk: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    from ssl_vit.run.folder import logged

    small = disk("64k")
    with logged(small / "train.log"):
        fill(small)
        for _ in range(3):
            logging.getLogger("ssl_vit").info("x" * 5000)
    said = capfd.readouterr().err
    assert said.count("train.log can't be written (No space left on device)") == 1
    assert said.count("x" * 5000) == 3
    assert "Traceback" not in said
