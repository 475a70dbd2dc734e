"""What a killed run was still writing goes when it is finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runs import finish, weights


@pytest.mark.fault
def test_nothing_half_written_is_left_after_the_export(whole_run: Path, pictures: Path, tmp_path: Path) -> None:
    """As a kill in the midst of the export leaves it: a folder of weights, and a file that has no name yet."""
    out, said = tmp_path / "run", tmp_path / "said"
    shutil.copytree(whole_run, out)
    (out / "export").rename(out / ".export.4711.partial")
    (out / "COMPLETE").rename(out / ".COMPLETE.4711.partial")
    code = finish(["pretrain", str(pictures / "train"), "--out", str(out), "--resume"], said)
    assert code == 0, said.read_text()
    assert weights(out) == weights(whole_run)
    assert not [path.name for path in out.iterdir() if path.name.endswith(".partial")]
