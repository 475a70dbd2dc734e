"""Features in a folder: the same bytes after a kill, and from two processes as from one."""

import hashlib
import os
import time

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.inventory import INVENTORY
from ssl_vit.data.sources import open_source
from ssl_vit.data.store import FEATURES, INDEX, STATE
from ssl_vit.errors import UserError
from ssl_vit.eval.embed import embed
from ssl_vit.eval.features import Keep, extract
from ssl_vit.eval.readout import Readout
from tests.eval.conftest import MEAN, STD
from tests.runs import finish_two, program

READOUT = Readout(32, MEAN, STD, batch_size=8)


def digests(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (FEATURES, STATE, INDEX)}


def test_a_folder_holds_what_memory_would(vit, images, tmp_path):
    source = open_source(images / "val")
    kept = extract(vit, source, READOUT, device="cpu", keep=Keep(tmp_path / "kept"))
    np.testing.assert_array_equal(kept.features, extract(vit, source, READOUT, device="cpu").features)
    np.testing.assert_array_equal(np.load(tmp_path / "kept" / FEATURES), kept.features)
    assert isinstance(kept.features, np.memmap)


def test_an_image_that_was_edited_in_place_is_named(vit, tmp_path):
    """The same names and sizes: rows of the old image would stand for the new one."""
    for i in range(9):
        Image.new("RGB", (8, 8), (i, 9, 9)).save(tmp_path / f"{i}.bmp")

    def again():
        extract(vit, open_source(tmp_path), READOUT, device="cpu", keep=Keep(tmp_path / "kept"))

    again()
    before = digests(tmp_path / "kept")
    for i in range(9):
        os.utime(tmp_path / f"{i}.bmp", (i, i))  # what was only touched, or copied, is the same
    again()
    (tmp_path / "kept" / INVENTORY).unlink()  # a folder of an older version: from here on they are known
    again()
    assert digests(tmp_path / "kept") == before
    Image.new("RGB", (8, 8), "red").save(tmp_path / "4.bmp")
    with pytest.raises(UserError, match=r"kept: holds features of images that have changed since \(1 changed: 4.bmp\)"):
        again()


SLOWLY = """
import sys, time
from pathlib import Path
from ssl_vit.data.inventory import INVENTORY
from ssl_vit.data.sources import open_source
from ssl_vit.eval import features, weights
from ssl_vit.eval.readout import Readout
import ssl_vit.data.store as store
store._COMMIT = 1
read = features.read_out
def slow(*args):
    time.sleep(0.25)
    return read(*args)
features.read_out = slow
backbone = weights.load_backbone(sys.argv[1])
readout = Readout(32, backbone.info.mean, backbone.info.std, batch_size=8)
keep = features.Keep(Path(sys.argv[3]))
features.extract(backbone, open_source(sys.argv[2]), readout, device="cpu", keep=keep)
"""


@pytest.mark.fault
def test_a_killed_extraction_goes_on_to_the_same_bytes(run, vit, images, tmp_path):
    source, readout = open_source(images / "train"), READOUT
    extract(vit, source, readout, device="cpu", keep=Keep(tmp_path / "whole"))
    arguments = [str(run), str(images / "train"), str(tmp_path / "cut")]
    process = program(SLOWLY, arguments, tmp_path / "said")
    state = tmp_path / "cut" / STATE
    while not (state.exists() and (np.load(state) == 1).sum() >= 16):
        assert process.exitcode is None
        time.sleep(0.05)
    process.kill()
    process.join()
    done = int((np.load(state) == 1).sum())
    assert 0 < done < len(source)
    extract(vit, source, readout, device="cpu", keep=Keep(tmp_path / "cut"))
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")


@pytest.mark.dist
def test_two_processes_write_the_file_of_one(run, images, tmp_path):
    """120 images and blocks of 64: one block each."""
    embed(run, images / "train", tmp_path / "one.npy")
    command = ["embed", str(run), str(images / "train"), "--out", str(tmp_path / "two.npy")]
    said = tmp_path / "said" / "two"
    said.parent.mkdir()
    assert finish_two(command, said) == [0, 0], said.read_text()
    assert (tmp_path / "two.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one.json", "one.npy", "said", "two.json", "two.npy"]


def test_a_folder_of_other_features_is_refused(vit, images, tmp_path):
    source = open_source(images / "val")
    extract(vit, source, READOUT, device="cpu", keep=Keep(tmp_path / "kept"))
    for keep, other in (
        (Keep(tmp_path / "kept", "other weights"), "weights_sha256"),
        (Keep(tmp_path / "kept"), "data"),
    ):
        with pytest.raises(UserError, match=other):
            extract(vit, open_source(images / "train") if other == "data" else source, READOUT, device="cpu", keep=keep)
