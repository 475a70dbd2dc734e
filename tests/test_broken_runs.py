"""Run folders with broken files: one line, or what was lost is made again; never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ssl_vit.cli import main
from ssl_vit.training.checkpoint import newest_checkpoint
from ssl_vit.training.looks.metrics import read_rows
from tests.runs import command, weights


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of a complete run."""
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


def resume(run: Path, pictures: Path, *more: str) -> int:
    return main(["pretrain", str(pictures / "train"), "--out", str(run), "--resume", "--workers", "0", *more])


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'{"steps": 30}', b'{"steps": 1, "bad_files": 0, "verdict": 3}']
)
def test_a_broken_complete_is_made_again(
    content: bytes, run: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before, exported = json.loads((run / "COMPLETE").read_bytes()), weights(run)
    (run / "COMPLETE").write_bytes(content)
    assert resume(run, pictures) == 0
    assert "COMPLETE: empty or damaged; the run finishes again" in caplog.text
    assert json.loads((run / "COMPLETE").read_bytes()) == before
    assert weights(run) == exported


def test_broken_lines_of_metrics_are_left_out(run: Path, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "COMPLETE").unlink()
    path = run / "metrics.jsonl"
    rows = read_rows(path)
    lines = path.read_bytes().splitlines()
    lines[3:3] = [b'{"step": 3, "loss": 1.', b"\xff\x00\xfe}", b"[1]", b'{"loss": 1.0}', b"7"]
    path.write_bytes(b"\n".join(lines) + b"\n" + b'{"step": 30, "knn/')
    assert resume(run, pictures) == 0
    assert "metrics.jsonl: 6 lines can't be read and are left out" in capfd.readouterr().err
    assert read_rows(path) == rows
    said = json.loads((run / "export" / "config.json").read_text())["ssl_vit"]["evaluation"]
    assert "k-NN top-1 in percent, by k" in said


def test_lost_data_json_does_not_lose_a_finished_training(run: Path, pictures: Path) -> None:
    """It is only described less: the last step was done, and its checkpoint is whole."""
    from ssl_vit.run.finish import scanned

    for content in (b"", b"\xff", b"[]", b'{"ima'):
        (run / "data.json").write_bytes(content)
        assert scanned(run) == {}
    (run / "data.json").unlink()
    assert scanned(run) == {}


BREAK: dict[str, Callable[[Path], object]] = {
    "binary checksum": lambda newest: newest.with_name(newest.name + ".sha256").write_bytes(b"\xff\xfe\x00"),
    "no checksum": lambda newest: newest.with_name(newest.name + ".sha256").unlink(),
    "a folder for a checksum": lambda newest: (
        newest.with_name(newest.name + ".sha256").unlink(),
        newest.with_name(newest.name + ".sha256").mkdir(),
    ),
    "a folder for a checkpoint": lambda newest: (newest.unlink(), newest.mkdir()),
    "a folder with folders": lambda newest: (newest.unlink(), (newest / "a" / "b").mkdir(parents=True)),
    "a longer name": lambda newest: (newest.parent / "step-last.ckpt").mkdir(),
}


@pytest.mark.parametrize("how", BREAK)
def test_what_is_no_checkpoint_is_passed_over(how: str, run: Path, pictures: Path) -> None:
    """The run goes on from the one before, and writes the broken one again."""
    (run / "COMPLETE").unlink()
    exported = weights(run)
    newest = newest_checkpoint(run / "checkpoints")
    assert newest is not None
    BREAK[how](newest)
    assert resume(run, pictures) == 0
    assert weights(run) == exported
    assert newest_checkpoint(run / "checkpoints") == newest


@pytest.mark.parametrize("name", ["train.log", "metrics.jsonl", ".lock", "checkpoints", "COMPLETE"])
def test_what_stands_in_the_place_of_a_file_is_one_line(
    name: str, run: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A folder for a file, or a file for a folder."""
    place = run / name
    if name == "checkpoints":
        shutil.rmtree(place)
        place.write_bytes(b"")
    else:
        place.unlink(missing_ok=True)
        place.mkdir()
    if name != "COMPLETE":
        (run / "COMPLETE").unlink()
    assert resume(run, pictures) == 1
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(f"ssl-vit: error: {run}/")
    assert name in last
    assert last.endswith("; see to what is there, then give the same command again")


def test_a_lock_that_is_no_text_is_taken(run: Path, pictures: Path) -> None:
    (run / ".lock").write_bytes(bytes(range(256)))
    assert resume(run, pictures) == 0


def test_a_binary_list_of_bad_images_is_one_line(run: Path, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "COMPLETE").unlink()
    (run / "bad_images.jsonl").write_bytes(b"\xff\xfe\x00\x01\n")
    assert resume(run, pictures) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "bad_images.jsonl, line 1: expected" in last
    assert "remove the line" in last


def test_sums_that_are_no_text_are_one_line(run: Path, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "export" / "SHA256SUMS").write_bytes(b"\xff\xfe\x00\x01")
    for argv in (
        ["export", str(run), "--to", "safetensors"],
        ["pretrain", str(pictures / "train"), "--out", str(run), "--resume"],
    ):
        assert main(argv) == 2
        assert "SHA256SUMS: damaged" in capfd.readouterr().err.strip().splitlines()[-1]


def test_a_complete_run_refuses_what_it_can_t_do(run: Path, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As one that isn't complete does; the way that there is, is named. What is free to change is no request."""
    assert resume(run, pictures, "--epochs", "3", "--set", "optim.lr=0.5") == 2
    said = capfd.readouterr().err
    assert "train.epochs: was 5, is 3; it can't change on --resume" in said
    assert "optim.lr: was 0.001, is 0.5" in said
    assert f"--weights {run}" in said
    assert resume(run, pictures, "--set", "train.batch_size=auto") == 0
    assert "already complete" in capfd.readouterr().out
    new = command(pictures / "train", run.with_name("new"), "--weights", str(run), train__epochs=1, data__workers=0)
    assert main(new) == 0
