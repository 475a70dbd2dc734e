"""Weights that lie beside their checksums are held against them by everything that reads weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.training.checkpoint import newest_checkpoint


def flip(file: Path, at: float = 0.5) -> None:
    """Turn one bit."""
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole_run / "export", tmp_path / "run" / "export")
    return tmp_path / "run"


def commands(weights: Path, pictures: Path, out: Path) -> dict[str, list[str]]:
    sides = ["--train", str(pictures / "train"), "--val", str(pictures / "val")]
    return {
        "pretrain": ["pretrain", sides[1], "--out", str(out / "new"), "--weights", str(weights)],
        "eval": ["eval", "knn", str(weights), *sides],
        "embed": ["embed", str(weights), sides[1], "--out", str(out / "features.npz")],
        "export": ["export", str(weights), "--to", "torchvision", "--out", str(out / "export")],
        "inspect": ["inspect", str(weights)],
    }


@pytest.mark.fault
@pytest.mark.parametrize("place", ["", "export", "export/model.safetensors"])
@pytest.mark.parametrize("harmed", ["model.safetensors", "config.json", "SHA256SUMS"])
def test_one_bit_is_noticed_by_every_command(
    harmed: str, place: str, run: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flip(run / "export" / harmed)
    for name, argv in commands(run / place, pictures, tmp_path / "out").items():
        (tmp_path / "out").mkdir(exist_ok=True)
        assert main(argv) == 2, name
        [line] = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
        assert "damaged" in line, line
        assert "SHA256SUMS" in line
        assert list((tmp_path / "out").iterdir()) == [], name


@pytest.mark.fault
def test_a_checkpoint_is_held_against_its_own_checksum(
    whole_run: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = newest_checkpoint(whole_run / "checkpoints")
    assert source is not None
    file, beside = tmp_path / source.name, tmp_path / f"{source.name}.sha256"
    shutil.copy(source, file)
    shutil.copy(source.with_name(beside.name), beside)
    assert inspect(file).layout == "ssl_vit's checkpoint of a run"
    flip(file)
    for argv in commands(file, pictures, tmp_path).values():
        assert main(argv) == 2
        assert f"{file}: damaged or changed after writing ({beside.name} disagrees)" in capfd.readouterr().err
    beside.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"holds no sha256, so that .* can't be checked; restore or remove it"):
        inspect(file)


@pytest.mark.fault
def test_a_file_that_is_listed_must_be_there(run: Path) -> None:
    (run / "export" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: missing, but SHA256SUMS lists it"):
        inspect(run)


def test_sums_of_other_files_say_nothing(run: Path) -> None:
    """Of a folder of downloads, in the two ways that sha256sum writes lines."""
    other = run.parent / "downloads"
    other.mkdir()
    file = other / "weights.safetensors"
    shutil.copy(run / "export" / "model.safetensors", file)
    (other / "SHA256SUMS").write_text(f"{'0' * 64}  other.safetensors\n")
    inspect(file)
    (other / "SHA256SUMS").write_text(f"{'0' * 64}  other.safetensors\n{'1' * 64} *weights.safetensors\n")
    with pytest.raises(UserError, match=r"weights\.safetensors: damaged or changed"):
        inspect(file)
