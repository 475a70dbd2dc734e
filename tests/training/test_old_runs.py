"""Run folders of earlier code are gone on with: see old_runs/README.md."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import ssl_vit
from tests.golden.make_traces import IMAGES, steps
from tests.training.drawn import draw

OLD = Path(__file__).with_name("old_runs")


@pytest.mark.parametrize("name", sorted(path.stem for path in OLD.glob("*.json")))
def test_a_run_that_earlier_code_began_goes_on_as_it_would_have(name: str, tmp_path: Path) -> None:
    """From its checkpoint, with its settings, to the losses that it had where nothing stopped it."""
    out = tmp_path / "run"
    shutil.copytree(OLD / name, out)
    before, expected = steps(out), json.loads((OLD / f"{name}.json").read_text())
    ssl_vit.pretrain(draw(tmp_path / "images", IMAGES), out, resume=True)
    found = steps(out)
    assert 0 < len(before) < len(found)
    assert found[: len(before)] == before, "no step is done again"
    for column, values in expected.items():
        assert [row[column] for row in found] == pytest.approx(values, rel=1e-5), column
    assert (out / "COMPLETE").exists()
