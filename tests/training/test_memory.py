"""A step that needs more memory than there is, really: one line, and nothing half-written."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

from ssl_vit.cli import main
from tests.runs import command, process_of

MORE = 10**9  # bytes beyond what the process has when it starts


def with_little_memory(argv: list[str], log: str) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MORE, held + MORE))
    sys.exit(main(argv))


def test_a_machine_without_memory_is_one_line_that_can_be_followed(pictures: Path, tmp_path: Path) -> None:
    changes: dict[str, object] = {"backbone__name": "resnet10t", "backbone__args": "{}", "backbone__image_size": 384}
    changes |= {"train__batch_size": 48, "backbone__drop_path": 0.0, "data__workers": 0, "method__local_crops": 0}
    argv = command(pictures / "train", tmp_path / "run", **changes)
    process = process_of(with_little_memory, argv, str(tmp_path / "said"))
    process.join()
    said = (tmp_path / "said").read_text()
    assert process.exitcode == 1, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert "the memory of this machine" in last
    assert "48 images a device, of each 1 of 384 + 1 of 384 pixels, for resnet10t in 32-true" in last
    assert "--set train.accumulate=2" in last
    assert "--batch-size 24" in last
    assert not [path for path in (tmp_path / "run").rglob("*") if "step-" in path.name]
