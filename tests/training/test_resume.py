"""Killed, stopped, changed, finished: what a run comes back to, by real processes and real signals."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ssl_vit.cli import main
from ssl_vit.files import alone
from ssl_vit.training.checkpoint import newest_checkpoint
from tests.runs import STEPS, Trap, command, files, finish, losses, rows, steps_done, wait_for, weights

pytestmark = pytest.mark.fault


def go_on(out: Path, pictures: Path, *more: str) -> list[str]:
    return ["pretrain", str(pictures / "train"), "--out", str(out), "--resume", *more]


def same_as(whole: Path, out: Path) -> None:
    """Every line of the metrics, checks and scores too, and every byte of the weights."""
    assert losses(out) == losses(whole)
    assert rows(out) == rows(whole)
    assert weights(out) == weights(whole)


def writing(said: Path) -> list[Path]:
    """The living processes that print to a file."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "fd" / "2").samefile(said):
                found.append(process)
    return found


@pytest.fixture
def unfinished(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the run as if it had been killed just before the export."""
    out = tmp_path / "run"
    shutil.copytree(whole_run, out)
    shutil.rmtree(out / "export")
    (out / "COMPLETE").unlink()
    return out


def test_killed_twice_and_resumed_equals_never_killed(pictures: Path, whole_run: Path, tmp_path: Path) -> None:
    """Between two checkpoints, and in the midst of saving one; what is left runs without worker processes."""
    out, said = tmp_path / "run", tmp_path / "said"
    begin = command(pictures / "train", out, "--val", str(pictures / "val"))
    assert finish(begin, said, Trap(signal.SIGKILL, step=7)) == -signal.SIGKILL, said.read_text()
    assert steps_done(out) == 7
    wait_for(lambda: not writing(said))  # no process that reads images outlives it
    kept = {file.name for file in (out / "checkpoints").iterdir()}
    assert kept == {"step-000000005.ckpt", "step-000000005.ckpt.sha256"}
    trap = Trap(signal.SIGKILL, step=15, saving=True)
    assert finish(go_on(out, pictures), said, trap) == -signal.SIGKILL, said.read_text()
    assert steps_done(out) == 15
    assert finish(go_on(out, pictures, "--workers", "0"), said) == 0, said.read_text()
    assert "step-000000015.ckpt is damaged or incomplete" in said.read_text()
    same_as(whole_run, out)


def test_killed_before_the_first_checkpoint_starts_again(pictures: Path, whole_run: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    begin = command(pictures / "train", out, "--val", str(pictures / "val"))
    assert finish(begin, said, Trap(signal.SIGKILL, step=2)) == -signal.SIGKILL, said.read_text()
    assert finish(go_on(out, pictures), said) == 0, said.read_text()
    same_as(whole_run, out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, pictures: Path, whole_run: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    begin = command(pictures / "train", out, "--val", str(pictures / "val"))
    assert finish(begin, said, Trap(number, step=7)) == 143, said.read_text()
    assert steps_done(out) == 8, "the step is finished"
    resume = f"ssl-vit pretrain {pictures / 'train'} --out {out} --resume"
    last = said.read_text().splitlines()[-1]
    assert last == f"ssl-vit: error: stopped at step 8 of {STEPS} and saved; go on with: {resume}"
    assert not (out / "COMPLETE").exists()
    assert finish(resume.split()[1:], said) == 0, said.read_text()
    same_as(whole_run, out)


def test_a_second_signal_stops_at_once(pictures: Path, tmp_path: Path) -> None:
    """The first comes in the midst of step 7, the second while the checkpoint after it is being saved."""
    out, said = tmp_path / "run", tmp_path / "said"
    traps = [Trap(signal.SIGTERM, step=7), Trap(signal.SIGTERM, step=8, saving=True)]
    assert finish(command(pictures / "train", out), said, *traps) == 143, said.read_text()
    assert "saved; go on" not in said.read_text()


def test_killed_after_the_last_step_only_exports(unfinished: Path, whole_run: Path, pictures: Path) -> None:
    assert finish(go_on(unfinished, pictures), unfinished.parent / "said") == 0
    same_as(whole_run, unfinished)
    assert (unfinished / "COMPLETE").read_bytes() == (whole_run / "COMPLETE").read_bytes()


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(
    unfinished: Path, whole_run: Path, pictures: Path
) -> None:
    newest = unfinished / "checkpoints" / f"step-{STEPS:09d}.ckpt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    said = unfinished.parent / "said"
    assert finish(go_on(unfinished, pictures), said) == 0, said.read_text()
    assert f"{newest} is damaged" in said.read_text()
    same_as(whole_run, unfinished)
    assert newest_checkpoint(unfinished / "checkpoints") == newest, "saved again"


def test_a_finished_run_is_left_as_it_is(whole_run: Path, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files(whole_run)
    assert main(go_on(whole_run, pictures)) == 0
    assert "already complete" in capfd.readouterr().out
    assert files(whole_run) == before


def test_changed_images_are_refused(unfinished: Path, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changed = unfinished.parent / "pictures"
    shutil.copytree(pictures, changed)
    (changed / "train" / "ash" / "000.png").unlink()
    before = files(unfinished)
    assert main(go_on(unfinished, changed)) == 2
    error = capfd.readouterr().err
    assert "the images have changed" in error
    assert "48 images" in error
    assert "now 47 images" in error
    assert files(unfinished) == before


def test_changed_settings_are_refused_by_name(
    unfinished: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(unfinished)
    more = ["--set", "optim.lr=0.5", "--seed", "3", "--set", "method.momentum=0.5", "--workers", "0"]
    assert main(go_on(unfinished, pictures, *more)) == 2
    error = capfd.readouterr().err.splitlines()
    expected = {"optim.lr: was 0.001, is 0.5", "train.seed: was 0, is 3", "method.momentum: was 0.9, is 0.5"}
    assert {line.removeprefix("ssl-vit: error: ").partition(";")[0] for line in error} == expected
    assert files(unfinished) == before


def test_a_run_is_lost_only_by_overwrite(unfinished: Path, pictures: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = files(unfinished)
    train = pictures / "train"
    assert main(command(train, unfinished)) == 2
    assert "--resume to go on with it or --overwrite" in capfd.readouterr().err
    assert main(command(train, unfinished, "--overwrite", backbone__name="vit_tny_patch16_224")) == 2
    assert "did you mean vit_tiny_patch16_224" in capfd.readouterr().err
    assert main(go_on(unfinished, pictures, "--overwrite")) == 2
    assert files(unfinished) == before
    said = unfinished.parent / "said"
    assert finish(command(train, unfinished, "--overwrite", train__epochs=1), said) == 0, said.read_text()
    assert steps_done(unfinished) == 6
    assert (unfinished / "COMPLETE").exists()


def at_work(folder: Path, mark: Path) -> None:
    """What a run and a worker of it do, as far as the folder is concerned."""
    try:
        os.setsid()
        with alone(folder / ".lock", ""):
            os.fork()
            mark.touch()
            time.sleep(600)
    finally:
        os._exit(1)


def test_only_one_process_trains_in_a_folder(
    unfinished: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another neither goes on nor deletes it; one that was killed is in nobody's way, nor are its workers."""
    mark, said = tmp_path / "at work", tmp_path / "said"
    child = os.fork()
    if child == 0:
        at_work(unfinished, mark)
    try:
        wait_for(mark.exists)
        before = files(unfinished)
        for line in (go_on(unfinished, pictures), command(pictures / "train", unfinished, "--overwrite")):
            assert main(line) == 2
            assert f"{unfinished}: another process is at work there" in capfd.readouterr().err
        after = files(unfinished)
        assert {*before} == {*after}
        assert all(before[name] == after[name] for name in before if name != ".lock")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert finish(go_on(unfinished, pictures), said) == 0, said.read_text()
    finally:
        os.killpg(child, signal.SIGKILL)


def test_overwrite_deletes_nothing_but_a_run(pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("years of work")
    assert main(command(pictures / "train", thesis, "--overwrite")) == 2
    assert "nothing is overwritten" in capfd.readouterr().err
    assert (thesis / "chapter1.tex").read_text() == "years of work"
    assert main(go_on(thesis, pictures)) == 2
    assert "no run to resume" in capfd.readouterr().err
