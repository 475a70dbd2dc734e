"""Packed images against the files they were, and a packing that is killed, spoilt or repeated."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from ssl_vit.cli import main
from ssl_vit.data import pack as module
from ssl_vit.data.decode import decode
from ssl_vit.data.pack import pack
from ssl_vit.data.sources import open_source
from ssl_vit.errors import RunFailed, UserError
from tests.data.photo import photo, save_photos
from tests.data.tiffs import tiff


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Fourteen pictures of two classes; five make an archive."""
    monkeypatch.setattr(module, "MOST", 5)
    save_photos(tmp_path / "images" / "a", 8)
    save_photos(tmp_path / "images" / "b", 6, size=(60, 90), suffix="jpg")
    return tmp_path / "images"


def test_files_stay_as_they_are(folder, tmp_path):
    manifest = pack(open_source(folder), tmp_path / "set")
    before, after = open_source(folder), open_source(tmp_path / "set")
    assert after.classes == before.classes == ("a", "b")
    assert after.fingerprint == before.fingerprint, "the same names and sizes in the same order"
    assert after.labels.tolist() == before.labels.tolist()
    for path in sorted((tmp_path / "set").glob("*.tar")):
        with tarfile.open(path) as tar:
            assert all((folder / m.name).read_bytes() == tar.extractfile(m).read() for m in tar)
    assert [shard["images"] for shard in manifest["shards"]] == [5, 5, 4]
    assert manifest == json.loads((tmp_path / "set" / "manifest.json").read_text())
    for shard in manifest["shards"]:
        data = (tmp_path / "set" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "manifest.json",
        *(f"shard-00000{i}.tar" for i in range(3)),
    ]
    assert not (tmp_path / "set.partial").exists()


def test_size_shortens_what_is_longer(folder, tmp_path):
    manifest = pack(open_source(folder), tmp_path / "set", size=45)
    assert (manifest["size"], manifest["jpeg_quality"]) == (45, 95)
    source = open_source(tmp_path / "set")
    for i in range(14):
        image = decode(source.path(i))
        original = folder / source.name(i).partition(":")[2]
        if i < 8:
            np.testing.assert_array_equal(image, decode(str(original)))
        else:
            assert image.shape == (45, 68, 3)
            expected = np.asarray(Image.open(original).resize((68, 45), Image.Resampling.BICUBIC), dtype=float)
            assert np.abs(image - expected).mean() < 3


def test_names_that_archives_cannot_hold(tmp_path):
    (tmp_path / "images").mkdir()
    long = "x" * 200 + ".png"
    for seed, name in enumerate(("a.b.png", "a_b.png", "a.jpg", "caf\udce9.png", long)):
        with open(tmp_path / "images" / name, "wb") as file:
            Image.fromarray(photo(8, 8, seed)).save(file, "PNG")
    before = open_source(tmp_path / "images")
    pack(before, tmp_path / "set")
    after = open_source(tmp_path / "set")
    names = [after.name(i).partition(":")[2] for i in range(len(after))]
    assert sorted(names) == sorted(["a_b.png", "a_b_2.png", "a.jpg", "caf\udce9.png", long])
    for i in range(len(before)):
        np.testing.assert_array_equal(decode(after.path(i)), decode(before.path(i)))


def test_unreadable_images_are_left_out_and_named(folder, tmp_path):
    (folder / "a" / "003.png").write_bytes(b"no image")
    with pytest.raises(RunFailed, match=r"1 of 14 images .*a/003.png \(empty, or no JPEG"):
        pack(open_source(folder), tmp_path / "set", max_bad=0.01)
    assert not (tmp_path / "set").exists()
    manifest = pack(open_source(folder), tmp_path / "set", max_bad=0.1)
    assert [entry["file"] for entry in manifest["left_out"]] == ["a/003.png"]
    assert manifest["images"] == len(open_source(tmp_path / "set")) == 13


def test_the_flag_that_bears_more_unreadable_images_is_the_one_that_is_advised(folder, tmp_path, capsys):
    (folder / "a" / "003.png").write_bytes(b"no image")
    argv = ["pack", str(folder), "--to", str(tmp_path / "set")]
    assert main(argv) == 1
    assert "mend or remove them, or raise --max-bad" in capsys.readouterr().err
    assert main([*argv, "--max-bad", "7%"]) == 2
    assert main([*argv, "--max-bad", "0.1"]) == 0


@pytest.mark.fault
def test_a_killed_packing_goes_on_and_gives_the_same_bytes(folder, tmp_path):
    pack(open_source(folder), tmp_path / "whole")
    code = """
        import sys, time
        from pathlib import Path
        from ssl_vit.data import pack
        from ssl_vit.data.sources import open_source

        pack.MOST, prepare = 5, pack._prepare
        def slow(*args, **options):
            time.sleep(0.05)
            return prepare(*args, **options)
        pack._prepare = slow
        pack.pack(open_source(sys.argv[1]), Path(sys.argv[2]))
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(folder), str(tmp_path / "set")])
    part = tmp_path / "set.partial"
    while not (part / "shard-000001.tar.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.06)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "set").exists()
    kept = {path: path.stat().st_mtime_ns for path in part.glob("*.tar")}
    assert len(kept) == 2
    pack(open_source(folder), tmp_path / "set")
    assert all((tmp_path / "set" / path.name).stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir()
    }


def test_what_was_begun_otherwise_is_refused(folder, tmp_path):
    (tmp_path / "set.partial").mkdir()
    (tmp_path / "set.partial" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match=r"set.partial: begun with other images or another size; remove it"):
        pack(open_source(folder), tmp_path / "set")
    assert os.listdir(tmp_path / "set.partial") == ["mine.txt"]


@pytest.mark.fault
def test_a_packing_does_not_go_on_with_images_that_were_edited(tmp_path, monkeypatch):
    """The same names and sizes: some archives would hold the old images, some the new ones."""
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8), (i, 9, 9)).save(tmp_path / "images" / f"{i}.bmp")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack(open_source(tmp_path / "images"), tmp_path / "set")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / "1.bmp")
    with pytest.raises(UserError, match=r"set.partial: begun with images that have .* \(1 changed: 1.bmp\); remove it"):
        pack(open_source(tmp_path / "images"), tmp_path / "set")


def interrupted(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_near_infrared_is_not_made_white_where_images_are_made_smaller(ending, tmp_path, caplog):
    (tmp_path / "images").mkdir()
    image = np.full((32, 40, 4), (200, 100, 50, 70), np.uint8)
    Image.fromarray(image).save(tmp_path / "images" / f"a.{ending}")
    pack(open_source(tmp_path / "images"), tmp_path / "set", size=16)
    packed = open_source(tmp_path / "set").read(0)
    np.testing.assert_allclose(packed[..., :3], np.broadcast_to([200, 100, 50], packed.shape), atol=4)
    assert "has bands (0, 1, 2): the band tagged as opacity" in caplog.text


def test_a_fourth_band_without_a_name_stays_in_its_file(tmp_path):
    (tmp_path / "images").mkdir()
    data = tiff(np.full((32, 40, 4), 70, np.uint8), rgb=True)
    (tmp_path / "images" / "a.tif").write_bytes(data)
    pack(open_source(tmp_path / "images"), tmp_path / "set", size=16)
    with tarfile.open(tmp_path / "set" / "shard-000000.tar") as tar:
        assert tar.extractfile("a.tif").read() == data


def test_a_missing_archive_of_a_packed_set(folder, tmp_path):
    pack(open_source(folder), tmp_path / "set")
    (tmp_path / "set" / "shard-000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard-000001.tar: no such file, and .*manifest.json lists it"):
        open_source(tmp_path / "set")
    (tmp_path / "set" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json: cannot be read"):
        open_source(tmp_path / "set")


def test_the_command(folder, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(["pack", str(folder), "--to", str(out), "--size", "32"]) == 0
    assert f"{out}: 14 images in 3 archives, 0.00 GB. Use it as a folder of images" in capsys.readouterr().out
    assert main(["pack", str(folder), "--to", str(out)]) == 2
    assert "exists, and nothing is overwritten" in capsys.readouterr().err
    assert main(["pack", str(folder), "--to", str(tmp_path / "other"), "--size", "0"]) == 2
    assert "'0': expected pixels, a whole number" in capsys.readouterr().err
