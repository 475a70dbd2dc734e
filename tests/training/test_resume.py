"""Killed, stopped, changed, finished: what a run comes back to, by real processes and real signals."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ssl_vit.cli import main
from ssl_vit.config import check_out, load_config
from ssl_vit.data import loader
from ssl_vit.files import alone
from ssl_vit.run import finish as finishing
from ssl_vit.run import folder, pretrain
from ssl_vit.training.checkpoint import newest_checkpoint
from tests.runs import (
    STEPS,
    Trap,
    _run,
    command,
    files,
    finish,
    losses,
    process_of,
    rows,
    start,
    steps_done,
    wait_for,
    weights,
)

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


@pytest.mark.parametrize(
    ("number", "everyone"),
    [(signal.SIGTERM, True), (signal.SIGINT, False), pytest.param(signal.SIGHUP, False, marks=pytest.mark.slow)],
)
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals, everyone: bool, pictures: Path, whole_run: Path, tmp_path: Path
) -> None:
    """Also where a scheduler sends it to the processes that read images as well."""
    out, said = tmp_path / "run", tmp_path / "said"
    begin = command(pictures / "train", out, "--val", str(pictures / "val"))
    assert finish(begin, said, Trap(number, step=7, everyone=everyone)) == 143, said.read_text()
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


def test_a_notice_saves_and_the_run_goes_on(pictures: Path, whole_run: Path, tmp_path: Path) -> None:
    """It may come to all processes of the run."""
    out, said = tmp_path / "run", tmp_path / "said"
    begin = command(pictures / "train", out, "--val", str(pictures / "val"))
    traps = [Trap(signal.SIGUSR1, step=6, everyone=True), Trap(signal.SIGUSR2, step=0), Trap(signal.SIGKILL, step=9)]
    assert finish(begin, said, *traps) == -signal.SIGKILL, said.read_text()
    assert newest_checkpoint(out / "checkpoints") == out / "checkpoints" / "step-000000007.ckpt"
    assert "SIGUSR1: saving after this step, then going on" in said.read_text()
    assert finish(go_on(out, pictures), said, Trap(signal.SIGUSR1, step=29)) == 0, said.read_text()
    same_as(whole_run, out)


SCONTROL = """#!/bin/sh
echo "$@" >> "$ASKED"
exit $FAILS
"""


@pytest.mark.parametrize("fails", [0, 1])
def test_slurm_is_asked_to_start_the_job_again_and_the_same_command_goes_on(
    fails: int, pictures: Path, whole_run: Path, tmp_path: Path
) -> None:
    """Nothing but the run is written, and in the folder where the job works nothing at all."""
    out, said, asked = tmp_path / "runs" / "run", tmp_path / "work" / "said", tmp_path / "asked"
    said.parent.mkdir()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL)
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    job = {
        "SLURM_JOB_ID": "17",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_NAME": "dino",
    }
    job |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "ASKED": str(asked), "FAILS": str(fails)}
    argv = command(pictures / "train", out, "--val", str(pictures / "val"), train__on_notice="requeue")
    assert finish(argv, said, Trap(signal.SIGUSR1, step=7, everyone=True), **job) == 143, said.read_text()
    assert asked.read_text() == "requeue 17\n"
    assert ("scontrol requeue 17 failed (exit code 1)" in said.read_text()) == bool(fails)
    assert newest_checkpoint(out / "checkpoints") == out / "checkpoints" / "step-000000008.ckpt"
    assert os.listdir(said.parent) == ["said"]
    if not fails:
        assert finish([*argv, "--overwrite"], said, **job, SLURM_RESTART_COUNT="1") == 0, said.read_text()
        same_as(whole_run, out)


@pytest.mark.parametrize("how", [[], ["--overwrite"], ["--resume"]])
def test_what_another_process_did_meanwhile_is_left_alone(
    how: list[str],
    unfinished: Path,
    whole_run: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A slow start finds the run, whole, of one that was given at the same time."""
    decide = pretrain.resolve_config

    def slow(*given: Any) -> Any:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(whole_run, unfinished)
        (unfinished / "config.yaml").touch()
        return decide(*given)

    argv = command(pictures / "train", unfinished, *how) if "--resume" not in how else go_on(unfinished, pictures)
    if not how:
        shutil.rmtree(unfinished)
    monkeypatch.setattr(pretrain, "resolve_config", slow)
    assert main(argv) == 2
    assert "another process has started a run there meanwhile; nothing was touched" in capfd.readouterr().err
    before, after = files(whole_run), files(unfinished)
    assert before.keys() == after.keys()
    assert all(after[name][1] == before[name][1] for name in before if name != "train.log")


def test_a_run_that_another_process_completed_meanwhile_is_complete(
    unfinished: Path,
    whole_run: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    decide = pretrain.resolve_config

    def slow(*given: Any) -> Any:
        shutil.copytree(whole_run / "export", unfinished / "export")
        shutil.copy(whole_run / "COMPLETE", unfinished)
        return decide(*given)

    monkeypatch.setattr(pretrain, "resolve_config", slow)
    assert main(go_on(unfinished, pictures)) == 0
    assert "already complete" in capfd.readouterr().out


def interrupted(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)


@pytest.mark.parametrize("moment", ["dump", "scan", "completed"])
def test_stopped_before_the_first_step_or_while_exporting(
    moment: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line each time, which says how to go on; that works, and so does the same command with --overwrite."""
    out = tmp_path / "run"
    argv = command(pictures / "train", out, train__epochs=1, data__workers=0)
    place, name = {"dump": (folder, "dump"), "scan": (folder, "scan"), "completed": (finishing, "hand_over")}[moment]
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(place, name, interrupted)
        assert main(argv) == 143
    assert signal.getsignal(signal.SIGTERM) == before
    told = f"go on with: ssl-vit pretrain {pictures / 'train'} --out {out} --resume"
    when = "after the last step, before the export was whole" if moment == "completed" else "before the first step"
    said = capfd.readouterr().err
    assert said.splitlines()[-1] == f"ssl-vit: error: stopped {when}; {told}"
    assert "Traceback" not in said
    assert not [path for path in out.rglob("*") if path.name.endswith(".partial")]
    again = [*argv, "--resume"] if moment == "dump" else go_on(out, pictures)  # with settings where it has kept none
    assert main(again) == 0, capfd.readouterr().err
    assert (out / "COMPLETE").exists()


def at_most(most: int, deleted: list[Path], delete: Callable[[Path], None], path: Path) -> None:
    if len(deleted) == most:
        raise KeyboardInterrupt
    deleted.append(path)
    delete(path)


def test_killed_while_it_overwrites_a_run_is_left(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has been deleted by then: it can be gone on with, and overwritten; complete it only seems when it is."""
    rmtree, unlink = shutil.rmtree, Path.unlink
    for most in range(20):
        out = tmp_path / str(most)
        shutil.copytree(whole_run, out)
        deleted = list[Path]()

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", partial(at_most, most, deleted, rmtree))
            patch.setattr(Path, "unlink", lambda path, few=most, gone=deleted: at_most(few, gone, unlink, path))
            try:
                folder.clear(out)
            except KeyboardInterrupt:
                assert check_out(out, resume=True)
                load_config([out / "config.yaml"])
                assert (out / "COMPLETE").exists() <= (out / "export").exists()
            else:
                assert os.listdir(out) == [".lock"]
                break
        assert not check_out(out, overwrite=True)
    else:
        raise AssertionError("it is never done")


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
    assert "1 removed: ash/000.png" in error
    assert files(unfinished) == before
    said = unfinished.parent / "said"
    assert finish(go_on(unfinished, changed, "--allow-data-change"), said) == 0, said.read_text()
    assert "1 removed: ash/000.png); going on with them" in said.read_text()
    assert (unfinished / "COMPLETE").exists()


def test_changed_settings_are_refused_by_name(
    unfinished: Path, pictures: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(unfinished)
    more = ["--set", "optim.lr=0.5", "--seed", "3", "--set", "method.momentum=0.5", "--workers", "0"]
    assert main(go_on(unfinished, pictures, *more)) == 2
    error = capfd.readouterr().err.splitlines()
    expected = {"optim.lr: was 0.001, is 0.5", "train.seed: was 0, is 3", "method.momentum: was 0.9, is 0.5"}
    assert {line.removeprefix("ssl-vit: error: ").partition(";")[0] for line in error} == expected
    for other in (["--method", "mae"], ["--set", "method.name=mae"]):
        assert main(go_on(unfinished, pictures, *other)) == 2
        assert "error: method.name: was dino, is mae; it can't change on --resume" in capfd.readouterr().err
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
            assert (
                f"{unfinished}: another process is at work there (pid {child} on {socket.gethostname()})"
                in capfd.readouterr().err
            )
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


def test_training_outlives_who_reads_what_it_says(pictures: Path, tmp_path: Path) -> None:
    """As with ``2>&1 | head -1``: the reader has gone after the first line."""
    out, said = tmp_path / "run", tmp_path / "said"
    os.mkfifo(said)
    process = start(command(pictures / "train", out, train__epochs=1), said)
    try:
        with said.open() as reader:
            assert reader.readline()
        process.join()
    finally:
        process.kill()
    assert process.exitcode == 0
    assert (out / "COMPLETE").exists()
    assert steps_done(out) == 6


NEW_MOUNTS = 0x20000  # of unshare
NO_MOUNTS = 77  # the exit code of a process that may not mount


def in_small_shared_memory(argv: list[str], said: str, decided: bool) -> None:
    """What a container has that nobody gave more, a little smaller still; decided: whether a run may look at it."""
    mounts = ["mount --make-rprivate /", "mount -t tmpfs -o size=256k tmpfs /dev/shm"]
    quiet = {"shell": True, "check": False, "capture_output": True}
    if ctypes.CDLL(None).unshare(NEW_MOUNTS) or any(subprocess.run(line, **quiet).returncode for line in mounts):
        os._exit(NO_MOUNTS)
    if not decided:
        loader.wants_pipe = lambda *_: False
    _run(argv, said, (), {})


@pytest.mark.parametrize("decided", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_run_in_a_container_with_little_shared_memory(
    decided: bool, pictures: Path, whole_run: Path, tmp_path: Path
) -> None:
    """It sends its batches through pipes: from the start, or when it turns out that there is too little."""
    out, said = tmp_path / "run", tmp_path / "said"
    argv = command(pictures / "train", out, "--val", str(pictures / "val"))
    process = process_of(in_small_shared_memory, argv, str(said), decided)
    process.join()
    if process.exitcode == NO_MOUNTS:
        pytest.skip("only root can mount, and not in every container")
    assert process.exitcode == 0, said.read_text()
    assert (
        "batches go through pipes" if decided else "shared memory (/dev/shm) is full: they are started"
    ) in said.read_text()
    assert "Traceback" not in said.read_text()
    same_as(whole_run, out)
