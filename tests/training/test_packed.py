"""A run over archives that is killed and resumed."""

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

from ssl_vit.cli import main
from ssl_vit.data.loader import steps_per_epoch
from tests.runs import STEPS, command, process_of, weights

PER_EPOCH = steps_per_epoch(48, 8)


def noting(argv: list[str], seen: Path, said: Path, kill_at: int) -> None:
    """The command, with the images of every step in a file; killed at a step."""
    from ssl_vit.training import loop

    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    take_step = loop.take_step

    def noted(learner, batch, step):
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        with seen.open("a") as lines:
            lines.write(json.dumps([step, batch.index.tolist()]) + "\n")
        return take_step(learner, batch, step)

    loop.take_step = noted
    sys.exit(main(argv))


def test_every_image_once_an_epoch_and_the_weights_of_a_run_over_the_folder(pictures, whole_run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("ssl_vit.data.pack.MOST", 11)
    assert main(["pack", str(pictures / "train"), "--to", str(tmp_path / "set")]) == 0
    seen, out, said = tmp_path / "seen", tmp_path / "run", tmp_path / "said"
    argv = command(tmp_path / "set", out)
    again = ["pretrain", str(tmp_path / "set"), "--out", str(out), "--resume"]
    for line, kill_at, code in ((argv, 14, -signal.SIGKILL), (again, -1, 0)):
        process = process_of(noting, line, seen, said, kill_at)
        process.join()
        assert process.exitcode == code, said.read_text()
    taken = dict(json.loads(line) for line in seen.read_text().splitlines())  # a step that was done again counts once
    assert sorted(taken) == list(range(STEPS))
    for epoch in range(STEPS // PER_EPOCH):
        images = Counter(i for step in range(epoch * PER_EPOCH, (epoch + 1) * PER_EPOCH) for i in taken[step])
        assert images == Counter(range(48))
    assert weights(out) == weights(whole_run)
