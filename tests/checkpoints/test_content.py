"""Files that are no weights are called by their name, and weights are known by what they hold, not by their ending."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.cli import main
from ssl_vit.errors import UserError
from tests.checkpoints.files import filled, official

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca2\n"
)
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>model.pth at main \xc2\xb7 owner/name</title></head><body></body></html>"


def zipped(*names: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return held.getvalue()


def tarred(*names: str) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return held.getvalue()


def held_by(write: Callable[[io.BytesIO], object]) -> bytes:
    held = io.BytesIO()
    write(held)
    return held.getvalue()


def scripted() -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return held_by(lambda file: torch.jit.save(torch.jit.script(torch.nn.ReLU()), file))


OTHERS = {
    "a git-LFS pointer": (POINTER + b"size 346378731\n", "a git-LFS pointer to 346,378,731 bytes", "git lfs pull"),
    "a web page": (PAGE, "a web page ('model.pth at main · owner/name')", "download the file itself"),
    "an error in XML": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page", "download"),
    "nothing": (b"", "an empty file", "download it again"),
    "JSON": (b'{"error": "Repository not found"}', "JSON, not weights", "Repository not found"),
    "a text": ("Zugriff verweigert: später".encode(), "text, not weights", "Zugriff verweigert"),
    "a text of Windows": ("not found".encode("utf-16"), "text, not weights", "not found"),
    "a zip archive": (zipped("model/model.safetensors", "README.md"), "a zip archive", "model/model.safetensors"),
    "an empty zip archive": (zipped(), "a zip archive", "empty"),
    "NumPy's archive": (held_by(lambda file: np.savez(file, a=np.zeros(2))), "NumPy's .npz (a.npy)", "state_dict"),
    "NumPy's array": (held_by(lambda file: np.save(file, np.zeros(2))), "one NumPy array", "state_dict"),
    "a tar archive": (tarred("weights.pth", "notes.txt"), "a tar archive (weights.pth, notes.txt)", "unpack it"),
    "a gzip archive": (gzip.compress(b"x"), "a gzip archive", "unpack it"),
    "a picture": (held_by(lambda file: Image.new("RGB", (2, 2)).save(file, "PNG")), "a picture (PNG)", "weights"),
    "a program": (
        held_by(lambda file: torch.jit.save(torch.jit.script(torch.nn.ReLU()), file)),
        "a TorchScript",
        "state",
    ),
}


@pytest.mark.fault
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_file_of_weights_is_said(what: str, suffix: str, tmp_path: Path) -> None:
    data, says, advice = OTHERS[what]
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(data)
    with pytest.raises(UserError) as caught:
        inspect(file)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{file}: {says}")
    assert advice in said


@pytest.mark.fault
def test_every_command_says_it(pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(POINTER)
    sides = ["--train", str(pictures / "train"), "--val", str(pictures / "val")]
    commands = [
        ["inspect", str(file)],
        ["eval", "knn", str(file), *sides],
        ["embed", str(file), sides[1], "--out", str(tmp_path / "a.npz")],
        ["export", str(file)],
        ["pretrain", sides[1], "--out", str(tmp_path / "run"), "--weights", str(file)],
    ]
    for argv in commands:
        assert main(argv) == 2, argv
        [line] = capfd.readouterr().err.splitlines()
        assert f"{file}: a git-LFS pointer" in line, argv
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_the_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in filled(official("dino_vit")).items()}
    save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "a.safetensors")
    assert inspect(tmp_path / "a.pth").state.keys() == inspect(tmp_path / "a.safetensors").state.keys()


@pytest.mark.parametrize("given", ["folder", "index"])
def test_an_index_is_read_with_its_files(given: str, tmp_path: Path) -> None:
    state = {key: value.contiguous() for key, value in filled(official("dino_vit")).items()}
    names, shards = list(state), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: shards[at % 2] for at, name in enumerate(names)}}))
    asked = tmp_path if given == "folder" else index
    for at, shard in enumerate(shards):
        with pytest.raises(UserError, match=rf"index of 2 files of weights, of which {2 - at} are not beside it"):
            inspect(asked)
        save_file({name: state[name] for name in names[at::2]}, tmp_path / shard)
    assert inspect(asked).state.keys() == state.keys()
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "no JSON"):
        index.write_text(text)
        with pytest.raises(UserError, match="index"):
            inspect(index)
