"""Images that have changed between a run's beginning and its going on: said by name, and gone on with where allowed."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from ssl_vit.cli import main
from ssl_vit.config import ResolvedConfig, load_config
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.run.folder import INVENTORY, check_same, open_folder


@pytest.fixture(scope="module")
def config(whole_run: Path) -> ResolvedConfig:
    return ResolvedConfig.model_validate(load_config([whole_run / "config.yaml"]).model_dump())


@pytest.fixture
def begun(config: ResolvedConfig, tmp_path: Path) -> tuple[Path, Path]:
    """A run's folder, and its images: four of one size."""
    (tmp_path / "images").mkdir()
    (tmp_path / "run").mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "images" / f"{i}.bmp")
    open_folder(tmp_path / "run", config, [], (open_source(tmp_path / "images"), None), None)
    return tmp_path / "run", tmp_path / "images"


def test_an_image_that_was_edited_in_place_is_named(
    config: ResolvedConfig, begun: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    run, images = begun
    check_same(config, open_source(images), run)
    Image.new("RGB", (8, 8), "red").save(images / "2.bmp")
    source = open_source(images)
    with pytest.raises(UserError, match=r"changed since this run .*; 1 changed: 2.bmp\); .*--allow-data-change"):
        check_same(config, source, run)
    with caplog.at_level(logging.INFO, "ssl_vit"):
        open_folder(run, config, [], (source, None), check_same(config, source, run, allow_data_change=True))
    assert "1 changed: 2.bmp" in caplog.text
    assert "going on with them" in caplog.text
    assert len(json.loads((run / "data.json").read_text())["changes"]) == 1
    check_same(config, open_source(images), run)  # from here on these are the run's images


def test_images_that_were_added_and_removed_are_named(config: ResolvedConfig, begun: tuple[Path, Path]) -> None:
    run, images = begun
    (images / "0.bmp").rename(images / "new.bmp")
    with pytest.raises(UserError, match=r"984 bytes as before, but others; 1 added: new.bmp; 1 removed: 0.bmp"):
        check_same(config, open_source(images), run)


@pytest.mark.parametrize("damage", [b"", b'{"images": 4', b"[]", b"\xff\xfe"])
def test_a_folder_that_does_not_say_what_its_images_were(
    config: ResolvedConfig, begun: tuple[Path, Path], damage: bytes
) -> None:
    run, images = begun
    (run / "data.json").write_bytes(damage)
    source = open_source(images)
    with pytest.raises(UserError, match=r"run/data.json: damaged, .*--allow-data-change"):
        check_same(config, source, run)
    open_folder(run, config, [], (source, None), check_same(config, source, run, allow_data_change=True))
    check_same(config, source, run)


def test_a_run_of_an_older_version_goes_on(config: ResolvedConfig, begun: tuple[Path, Path]) -> None:
    """It kept the names' and sizes' fingerprint alone; from here on the images are known one by one."""
    run, images = begun
    (run / INVENTORY).unlink()
    source = open_source(images)
    open_folder(run, config, [], (source, None), check_same(config, source, run))
    assert (run / INVENTORY).exists()
    (images / "0.bmp").unlink()
    (run / INVENTORY).unlink()
    with pytest.raises(UserError, match=r"4 images, 984 bytes; now 3 images"):
        check_same(config, open_source(images), run)


def test_the_flag_is_one_of_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(tmp_path), "--out", str(tmp_path / "run"), "--allow-data-change"]) == 2
    assert "--allow-data-change goes with --resume" in capsys.readouterr().err
