"""What a killed run was still writing goes when it is finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runs import STEPS, finish, weights


@pytest.mark.fault
def test_kills_leave_nothing_behind(whole_run: Path, pictures: Path, tmp_path: Path) -> None:
    """As kills in the midst of the export leave it, and between the last checkpoint and the pruning of older ones."""
    out, said = tmp_path / "run", tmp_path / "said"
    shutil.copytree(whole_run, out)
    (out / "export").rename(out / ".export.4711.partial")
    (out / "COMPLETE").rename(out / ".COMPLETE.4711.partial")
    for path in (out / "checkpoints").glob(f"step-{STEPS:09}.ckpt*"):
        shutil.copy(path, path.with_name(path.name.replace(f"{STEPS:09}", f"{3:09}")))
    code = finish(["pretrain", str(pictures / "train"), "--out", str(out), "--resume"], said)
    assert code == 0, said.read_text()
    assert weights(out) == weights(whole_run)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {
        path.name for path in (whole_run / "checkpoints").iterdir()
    }
    assert not [path.name for path in out.iterdir() if path.name.endswith(".partial")]
