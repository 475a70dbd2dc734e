"""Two processes of the real command, over gloo on CPU cores: the same numbers as one, and no orphans."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from ssl_vit.config import TrainConfig
from ssl_vit.data.batch import Batch
from ssl_vit.errors import RunFailed
from ssl_vit.training import fabric, loop, ranks
from ssl_vit.training.step import Learner, Outcome
from tests import runs
from tests.methods.settings import COMMON, SMALL
from tests.runs import command, ended, finish, finish_two, losses, process_of, program, steps_done, two_ranks, wait_for

pytestmark = pytest.mark.dist

MARK = "SSL_VIT_TEST_RUN"  # in the environment of every process of a run, however it was started
EXACT = {"backbone__drop_path": 0.0, "train__epochs": 2, "optim__lr": 1e-4}  # a higher rate amplifies rounding
WITHOUT_BATCH_NORM = EXACT | {"method__head_norm": "none", "method__centering": "mean"}
WITH_BATCH_NORM = EXACT | {"method__head_norm": "batch", "method__centering": "sinkhorn"}


@pytest.fixture
def mark() -> Iterator[str]:
    """Names the processes of this test; none outlives it."""
    name = uuid.uuid4().hex
    yield name
    for pid in processes(name):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def processes(mark: str) -> dict[int, str]:
    """The living processes of a run: pid to LOCAL_RANK, "0" where there is none."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = dict(word.partition("=")[::2] for word in (folder / "environ").read_text().split("\0"))
            if words.get(MARK) == mark:
                found[int(folder.name)] = words.get("LOCAL_RANK", "0")
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def two_processes(argv: list[str], said: Path, mark: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {MARK: mark, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "ssl_vit", *argv, "--devices", "2"]
    with said.open("wb") as file:
        return subprocess.Popen(line, stdout=file, stderr=file, env=environment)


@pytest.mark.parametrize("norm", [WITHOUT_BATCH_NORM, WITH_BATCH_NORM], ids=["centre", "sinkhorn-batch-norm"])
def test_two_processes_learn_what_one_does(norm: dict[str, object], pictures: Path, tmp_path: Path) -> None:
    """The same images a step, half of them in each process: every loss to 1e-5."""
    lines = [command(pictures / "train", tmp_path / name, **norm) for name in ("one", "two")]
    equal_losses(lines, tmp_path)


def test_parts_of_two_processes_are_the_whole(pictures: Path, tmp_path: Path) -> None:
    """Two images at a time in each process, whose gradients are added once a step."""
    whole = command(pictures / "train", tmp_path / "one", **WITHOUT_BATCH_NORM)
    parts = command(pictures / "train", tmp_path / "two", train__accumulate=2, **WITHOUT_BATCH_NORM)
    equal_losses([whole, parts], tmp_path)


@pytest.mark.parametrize("method", ["moby", pytest.param("mocov3", marks=pytest.mark.slow)])
def test_keys_of_both_processes_are_contrasted(method: str, pictures: Path, tmp_path: Path) -> None:
    """A queue that both fill, or a batch that both share."""
    settings = COMMON | {"method.name": method, "method.momentum": 0.99, "backbone.drop_path": 0.0}
    settings |= {"optim.lr": 1e-4}  # a higher rate or a quicker teacher amplifies rounding
    settings |= {f"method.{key}": value for key, value in SMALL[method].items()}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    lines = [["pretrain", str(pictures / "train"), "--out", str(tmp_path / name), *sets] for name in ("one", "two")]
    equal_losses(lines, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["distill", "manifold"])
def test_a_student_of_two_processes_learns_what_one_does(method: str, pictures: Path, tmp_path: Path) -> None:
    """A queue that both fill with the teacher's vectors, and relations of the images of both."""
    settings = COMMON | {"method.name": method, "backbone.drop_path": 0.0, "optim.lr": 1e-4}
    settings |= {f"method.{key}": value for key, value in SMALL[method].items()}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    lines = [["pretrain", str(pictures / "train"), "--out", str(tmp_path / name), *sets] for name in ("one", "two")]
    equal_losses(lines, tmp_path)


def equal_losses(lines: list[list[str]], tmp_path: Path) -> None:
    """The first command in one process, the second in two."""
    assert finish_two([*lines[1], "--devices", "2"], tmp_path / "said2") == [0, 0], (tmp_path / "said2").read_text()
    assert finish(lines[0], tmp_path / "said1") == 0, (tmp_path / "said1").read_text()
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 12
    assert max(one) - min(one) > 0.01, "nothing is compared where nothing changes"
    assert two == pytest.approx(one, rel=0, abs=1e-5)
    assert (tmp_path / "two" / "COMPLETE").exists()


@pytest.mark.fault
@pytest.mark.parametrize("rank", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_a_killed_rank_takes_the_others_with_it(rank: str, pictures: Path, tmp_path: Path, mark: str) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    run = two_processes(command(pictures / "train", out, train__epochs=500, data__workers=1), said, mark)
    wait_for(lambda: steps_done(out) >= 7 or run.poll() is not None)
    assert run.poll() is None, said.read_text()
    second = [pid for pid, its in processes(mark).items() if its == "1" and parent(pid) == run.pid]
    (victim,) = second if rank == "1" else [run.pid]
    os.kill(victim, signal.SIGKILL)
    code = run.wait()
    wait_for(lambda: not processes(mark))
    assert list((out / "checkpoints").glob("*.sha256"))
    assert not (out / "COMPLETE").exists()
    assert code == (1 if rank == "1" else -signal.SIGKILL)
    if rank == "1":
        told = "ssl-vit: error: another process of this run was lost: rank 1 ("
        assert said.read_text().splitlines()[-1].startswith(told)
        assert "Traceback" not in said.read_text()


def fails(argv: list[str], log: str, environment: dict[str, str]) -> None:
    """One of two processes of a run, of which the second has an error of its own in its fourth step."""
    take = loop.take_step

    def failing(learner: Learner, batch: Batch, step: int) -> Outcome:
        if environment["RANK"] == "1" and step == 3:
            raise KeyError("of this rank alone")
        return take(learner, batch, step)

    loop.take_step = failing  # type: ignore[attr-defined]  # in this process alone
    runs._run(argv, log, (), environment)


@pytest.mark.fault
def test_an_error_of_one_rank_is_seen_and_ends_the_others(pictures: Path, tmp_path: Path) -> None:
    said, out = tmp_path / "said", tmp_path / "run"
    argv = command(pictures / "train", out, "--devices", "2", data__workers=0, train__checkpoint_every=2)
    started = [process_of(fails, argv, str(said), environment) for environment in two_ranks()]
    assert [ended(process) for process in started] == [1, 1]
    error, _, after = said.read_text().partition("KeyError: 'of this rank alone'")
    assert "Traceback" in error
    assert "ssl-vit: error: another process of this run was lost: rank 1 (" in after
    assert "its own error, if it had one, is above); go on with --resume" in after
    assert "Traceback" not in after
    assert list((out / "checkpoints").glob("*.sha256"))


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_stopped_rank_is_named_and_none_is_left(rank: str, pictures: Path, tmp_path: Path, mark: str) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    argv = command(pictures / "train", out, train__epochs=500, data__workers=1, train__timeout=0.5)
    run = two_processes(argv, said, mark)
    wait_for(lambda: steps_done(out) >= 7 or run.poll() is not None)
    assert run.poll() is None, said.read_text()
    second = [pid for pid, its in processes(mark).items() if its == "1" and parent(pid) == run.pid]
    os.kill(second[0] if rank == "1" else run.pid, signal.SIGSTOP)
    assert run.wait() == (1 if rank == "1" else -signal.SIGKILL)
    wait_for(lambda: not processes(mark))
    told = f"ssl-vit: error: another process of this run was lost: rank {rank} (no answer for 0.5 minutes"
    assert [line.startswith(told) for line in said.read_text().splitlines() if "error: " in line] == [True]
    assert "Traceback" not in said.read_text()


def reduces(me: int, victim: int, folder: Path) -> None:
    """One of three processes, of which one is stopped."""
    rank_zero_only.rank = me
    os.environ["NODE_RANK"] = "1"  # its parent is no rank
    ranks._ANSWER = 2
    place = f"file://{folder}/store"
    timeout = timedelta(seconds=3)
    torch.distributed.init_process_group("gloo", init_method=place, rank=me, world_size=3, timeout=timeout)
    if me == victim:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        torch.distributed.all_reduce(torch.ones(1))
    except RuntimeError as error:
        try:
            (folder / str(me)).write_text(str(ranks.lost_rank(error, 0.05)))
        except SystemExit:
            (folder / str(me)).write_text("")
    os._exit(0)


@pytest.mark.fault
@pytest.mark.parametrize("victim", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_who_gives_no_answer_is_named_by_one(victim: int, tmp_path: Path) -> None:
    """By the first, unless it is the first."""
    started = [process_of(reduces, me, victim, tmp_path) for me in range(3)]
    others = [me for me in range(3) if me != victim]
    for me in others:
        started[me].join()
    started[victim].kill()
    said = {me: (tmp_path / str(me)).read_text() for me in others}
    told = f"another process of this run was lost: rank {victim} (no answer for 0.05 minutes; if it was only"
    for me in others:
        assert said[me].startswith(told) if victim == 0 or me == 0 else said[me] == ""


def comes(rank: int, port: int, starts: float, folder: Path) -> None:
    """One of the two processes of a run, which waits 0.02 minutes for the other once both are there."""
    rank_zero_only.rank, fabric.STARTS = rank, starts
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"LOCAL_RANK": str(rank), "GROUP_RANK": "0", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    train = TrainConfig(devices=2, precision="32-true", timeout=0.02)
    said = "reduced"
    try:
        fabric.launch(fabric.new_fabric(train), train.timeout)
        time.sleep(3 * rank)
        torch.distributed.all_reduce(torch.ones(1))
    except RuntimeError as error:
        said = str(error)
    except RunFailed as error:
        said = f"failed: {error}"
    (folder / str(rank)).write_text(said)
    os._exit(0)


@pytest.mark.fault
@pytest.mark.parametrize("ranks", [[0], [0, 1]], ids=["alone", "late"])
def test_processes_have_longer_to_come_than_to_answer(ranks: list[int], free_port: int, tmp_path: Path) -> None:
    """Importing takes longer than a step; one that never comes is said in a line."""
    for process in [process_of(comes, rank, free_port, 0.02 if ranks == [0] else 2.0, tmp_path) for rank in ranks]:
        process.join()
    said = (tmp_path / "0").read_text()
    if ranks == [0]:
        assert said.startswith("failed: the 2 processes of this run did not find each other within 0.02 minutes; see ")
        assert f"127.0.0.1:{free_port}" in said
    else:
        assert "Timed out waiting 1200ms" in said


def test_a_rank_that_is_lost_is_said_where_the_first_can_not_say_it(tmp_path: Path) -> None:
    """It waits in a call that never comes back, as GPUs' collectives do."""
    script = (
        "import subprocess, sys, time\nfrom ssl_vit.training import ranks\nranks._GRACE = 0.5\n"
        "ranks.watch([subprocess.Popen(['sleep', '99']), subprocess.Popen(['sh', '-c', 'kill -9 $$'])])\ntime.sleep(99)"
    )
    said = tmp_path / "said"
    assert ended(program(script, [], said)) == 1
    told = "ssl-vit: error: another process of this run was lost: rank 2 (killed by SIGKILL); go on with --resume\n"
    assert said.read_text() == told
