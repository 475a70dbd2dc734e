"""What a run says at its start about its images, on the terminal and in its log."""

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from ssl_vit import device
from ssl_vit.cli import main
from ssl_vit.config import ResolvedConfig, load_config
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval.labelled import open_labelled
from ssl_vit.run.opening import say_opening
from ssl_vit.run.plan import Decision
from tests.data.test_values import pattern
from tests.data.tiffs import png, tiff


def test_a_run_says_at_its_start_what_it_sees(whole_run: Path) -> None:
    log, said = (whole_run / "train.log").read_text(), (whole_run.parent / "said").read_text()
    for text in (log, said):
        table = text.split("this run:\n")[1].split("\n20")[0]
        rows = dict(line.strip().split("  ", 1) for line in table.splitlines()[:9])
        found = {subject: text.strip() for subject, text in rows.items()}
        assert found["images"].startswith("48 of ")
        assert found["images"].endswith("(24 png, 24 jpg)")
        assert found["left out"] == "nothing"
        assert found["channels"].startswith("48 RGB")
        assert found["values"] == "0 to 255, as they are"
        assert found["classes"].startswith("3 (")
        assert found["scored on"].startswith("24 images of ")
        assert found["device"] == device.name()
        assert found["recipe"] == "dino on vit_tiny_patch16_224 at 32 pixels, a batch of 8"
        assert found["mean, deviation"].endswith((": measured on your images", "from which yours hardly differ"))


def test_nothing_is_left_out_unsaid(whole_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, outside = tmp_path / "images", tmp_path / "outside.png"
    images.mkdir()
    for path in (images / "a.png", images / "b.tif", outside):
        Image.new("I;16" if path.suffix == ".tif" else "LA", (8, 8)).save(path)
    (images / "link.png").symlink_to(outside)
    for name in ("notes.txt", "c.dcm", "d.dcm", "README", ".hidden.png"):
        (images / name).write_text("x")
    sets = ["data.range=[0,4095]", "train.batch_size=2"]
    config = ResolvedConfig.model_validate(load_config([whole_run / "config.yaml"], sets).model_dump())
    source = open_source(images)
    with caplog.at_level(logging.INFO, "ssl_vit"):
        decisions = [Decision("data.mean", None, "measured on your images", "")]
        say_opening(config, decisions, source, None, scan(source))
    said = " ".join(caplog.messages[-1].split())
    assert f"images 2 of {images} (1 png, 1 tif)" in said
    assert "left out 2 .dcm files, " in said
    for reason in ("1 .txt files", "1 files without extension", "1 links that lead out", "1 hidden entries"):
        assert reason in said
    assert "channels 1 LA, 1 uint16 (2 images looked at)" in said
    assert "values 0 to 4095 become 0 to 255, in every image of more than 8 bits: as set" in said
    assert ": as set; measured on your images" in said
    assert "classes none" in said


def every_oddity(root: Path) -> Path:
    """A folder of two classes with everything at once that is left out, out of range, of odd bands or no image."""
    (data := root / "data").mkdir()
    (outside := root / "outside").mkdir()
    for i in range(6):
        (data / ("cat", "dog")[i % 2]).mkdir(exist_ok=True)
        picture = Image.fromarray((255 * pattern(i, 3)).astype("uint8"))
        picture.save(data / ("cat", "dog")[i % 2] / f"{i}.png")
        picture.save(outside / f"{i}.png")
    for name, kind in (("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("bare", "JPEG"), ("c.ppm", "PPM")):
        picture.save(data / "cat" / name, kind)
    for name in ("d.npy", "e.dcm", "f.dcm", "README", "list.txt", "g.tar", "h.zip", ".hidden.png"):
        (data / "dog" / name).write_bytes(b"x")
    for i in range(3):
        (data / "cat" / f"link{i}.png").symlink_to(outside / f"{i}.png")
    (data / "eel").symlink_to(outside)
    (data / "loop").symlink_to(data)
    (data / "dog" / "broken.png").symlink_to(data / "nowhere")
    os.mkfifo(data / "dog" / "pipe.png")
    (data / "dog" / "empty.png").touch()
    real = pattern(1, 1).astype("float32")
    real[0, 0] = -9999
    (data / "dog" / "real.tif").write_bytes(tiff(real))
    (data / "dog" / "double.tif").write_bytes(tiff(pattern(2, 3), rgb=True))
    (data / "dog" / "deep.png").write_bytes(png((pattern(3, 1) * 4095).astype("uint16")))
    (data / "dog" / "deep.tif").write_bytes(tiff((pattern(4, 3) * 3000).astype("uint16"), rgb=True))
    infrared = (pattern(5, 4) * [250, 250, 250, 180] + [2, 2, 2, 20]).astype("uint8")
    (data / "dog" / "infrared.tif").write_bytes(tiff(infrared, rgb=True, extra=(2,)))
    (data / "dog" / "eight.tif").write_bytes(tiff((pattern(6, 8) * 255).astype("uint8")))
    return data


def test_a_folder_with_every_oddity_at_once_is_said_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = every_oddity(tmp_path), tmp_path / "run"
    small = "backbone.args={depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}"  # whose smallest crop auto has to know
    sets = [small, "backbone.image_size=32", "data.max_bad=0.5", "data.workers=0", "train.batch_size=12"]
    options = [word for each in sets for word in ("--set", each)]
    argv = ["pretrain", str(data), "--out", str(out), "--backbone", "convnext_atto", "--epochs", "1", *options]
    assert main(argv) == 0
    said = capsys.readouterr().err
    assert (out / "COMPLETE").exists()
    table = " ".join(said.split("this run:\n")[1].split("\nstep ")[0].split())
    for row in (
        f"images 16 of {data} (8 png, 5 tif, 1 jfif, 1 jpe, 1 without extension) left out",
        *("4 links that lead out", "2 .dcm files", "1 .npy files", "1 .ppm files", "1 .txt files", "1 .tar files"),
        *("1 .zip files", "1 hidden entries", "1 broken links", "1 entries that are no regular"),
        "1 files without extension",
        "add --outside-links",
        "unreadable 1 of 16 images looked at: dog/empty.png: empty, or no JPEG",
        *("1 float32", "1 3 x float64", "1 uint16", "1 3 x uint16", "1 RGBA", "1 8 x uint8"),
        "bands 0, 1, 2, counted from 0, are red, green and blue: the band tagged as opacity is clear or opaque in only",
        "values 0 to 4095 become 0 to 255, in every image of more than 8 bits: measured on 4 images of",
        "not counted: -9999",
        "2 of those measured (float64, float32) fill fewer than 16 of the 256 grey levels: if they are of another",
        "mean, deviation",
        "classes 2 (cat, dog)",
        "recipe dino on convnext_atto at 32 pixels, a batch of 12",
        "schedule method.momentum",
    ):
        assert row in table
    assert "the smallest that this backbone takes" in said


def test_a_score_says_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("cat/1.png", "dog/1.png", "dog/1.npy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    open_labelled(tmp_path, "train")
    assert caplog.messages == [f"{tmp_path}: 2 images; left out: 1 .npy files"]


def test_a_class_that_is_a_link_is_no_empty_one(tmp_path: Path) -> None:
    for path in (tmp_path / "set" / "cat" / "1.png", tmp_path / "set" / "eel" / "1.png", tmp_path / "dogs" / "1.png"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    (tmp_path / "set" / "dog").symlink_to(tmp_path / "dogs")
    with pytest.raises(UserError, match=r"empty class dog; .* where it is a link, to follow them, add --outside-links"):
        open_labelled(tmp_path / "set", "train")
    assert open_labelled(tmp_path / "set", "train", outside_links=True).classes == ("cat", "dog", "eel")
