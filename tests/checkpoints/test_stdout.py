"""stdout holds a command's result alone, whatever a library prints while a network is built."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import timm

from ssl_vit.checkpoints import architectures
from ssl_vit.cli import main
from tests.checkpoints.files import save
from tests.export.conftest import randomised
from tests.runs import process_of

NAME = "resnet18"
create = timm.create_model


def noisy(*args: Any, **settings: Any) -> Any:
    """Build a model as timm does, and print, from Python and below it."""
    print("chatter of Python")
    os.write(1, b"chatter below it\n")
    return create(*args, **settings)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights"), randomised(NAME).model.state_dict())


def commands(file: Path, pictures: Path, out: Path) -> dict[str, list[str]]:
    sides = ["--train", str(pictures / "train"), "--val", str(pictures / "val")]
    return {
        "eval": ["eval", "knn", str(file), *sides],
        "embed": ["embed", str(file), sides[1], "--out", str(out / "a.npz")],
        "export": ["export", str(file), "--out", str(out / "a")],
        "inspect": ["inspect", str(file)],
    }


@pytest.mark.parametrize("command", ["eval", "embed", "export", "inspect"])
def test_what_python_prints_goes_to_stderr(
    command: str,
    file: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(timm, "create_model", noisy)
    architectures._shapes.cache_clear()
    assert main(commands(file, pictures, tmp_path)[command]) == 0
    out, err = capsys.readouterr()
    assert "chatter of Python" in err
    assert "chatter" not in out
    assert out.strip()
    if command == "eval":
        assert "knn" in json.loads(out)


def _alone(argv: list[str], out: str, err: str) -> None:
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    timm.create_model = noisy
    sys.exit(main(argv))


def test_what_is_printed_below_python_goes_there_too(file: Path, pictures: Path, tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    process = process_of(_alone, commands(file, pictures, tmp_path)["inspect"], str(out), str(err))
    process.join()
    assert process.exitcode == 0, err.read_text()
    assert NAME in out.read_text()
    assert "chatter" not in out.read_text()
    assert "chatter below it" in err.read_text()
