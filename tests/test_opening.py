"""What a run says at its start about its images, on the terminal and in its log."""

import logging
from pathlib import Path

import pytest
from PIL import Image

from ssl_vit.config import ResolvedConfig, load_config
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval.labelled import open_labelled
from ssl_vit.run.opening import say_opening
from ssl_vit.run.plan import Decision


def test_a_run_says_at_its_start_what_it_sees(whole_run: Path) -> None:
    log, said = (whole_run / "train.log").read_text(), (whole_run.parent / "said").read_text()
    for text in (log, said):
        table = text.split("this run:\n")[1].split("\n20")[0]
        rows = dict(line.strip().split("  ", 1) for line in table.splitlines()[:8])
        found = {subject: text.strip() for subject, text in rows.items()}
        assert found["images"].startswith("48 of ")
        assert found["images"].endswith("(24 png, 24 jpg)")
        assert found["left out"] == "nothing"
        assert found["channels"].startswith("48 RGB")
        assert found["values"] == "0 to 255, as they are"
        assert found["classes"].startswith("3 (")
        assert found["scored on"].startswith("24 images of ")
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
