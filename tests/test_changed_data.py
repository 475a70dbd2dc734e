"""Images that have changed between a run's beginning and its going on: said by name, and gone on with where allowed."""

import json
import logging
from pathlib import Path

import pytest
from PIL import Image

from ssl_vit.cli import main
from ssl_vit.config import ResolvedConfig, load_config
from ssl_vit.data.inventory import INVENTORY
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.run.changed import LABELLED, check_same
from ssl_vit.run.folder import open_folder


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
    check_same(config, (open_source(images), None), run)
    Image.new("RGB", (8, 8), "red").save(images / "2.bmp")
    source = open_source(images)
    with pytest.raises(UserError, match=r"changed since this run .*; 1 changed: 2.bmp\); .*--allow-data-change"):
        check_same(config, (source, None), run)
    with caplog.at_level(logging.INFO, "ssl_vit"):
        open_folder(run, config, [], (source, None), check_same(config, (source, None), run, allow_data_change=True))
    assert "1 changed: 2.bmp" in caplog.text
    assert "going on with them" in caplog.text
    assert len(json.loads((run / "data.json").read_text())["changes"]) == 1
    check_same(config, (open_source(images), None), run)  # from here on these are the run's images


def test_images_that_were_added_and_removed_are_named(config: ResolvedConfig, begun: tuple[Path, Path]) -> None:
    run, images = begun
    (images / "0.bmp").rename(images / "new.bmp")
    with pytest.raises(UserError, match=r"984 bytes as before, but others; 1 added: new.bmp; 1 removed: 0.bmp"):
        check_same(config, (open_source(images), None), run)


@pytest.mark.parametrize("damage", [b"", b'{"images": 4', b"[]", b"\xff\xfe", None])
def test_a_folder_that_does_not_say_what_its_images_were(
    config: ResolvedConfig, begun: tuple[Path, Path], damage: bytes | None
) -> None:
    run, images = begun
    source = open_source(images)
    if damage is None:
        (run / "data.json").unlink()
        check_same(config, (source, None), run)  # without a checkpoint it begins anew
        (run / "checkpoints").mkdir(exist_ok=True)
        (run / "checkpoints" / "step-000000005.ckpt").touch()
    else:
        (run / "data.json").write_bytes(damage)
    with pytest.raises(UserError, match=r"run/data.json: (damaged|missing), .*--allow-data-change"):
        check_same(config, (source, None), run)
    open_folder(run, config, [], (source, None), check_same(config, (source, None), run, allow_data_change=True))
    check_same(config, (source, None), run)


def test_a_run_of_an_older_version_goes_on(config: ResolvedConfig, begun: tuple[Path, Path]) -> None:
    """It kept the names' and sizes' fingerprint alone; from here on the images are known one by one."""
    run, images = begun
    (run / INVENTORY).unlink()
    source = open_source(images)
    open_folder(run, config, [], (source, None), check_same(config, (source, None), run))
    assert (run / INVENTORY).exists()
    (images / "0.bmp").unlink()
    (run / INVENTORY).unlink()
    with pytest.raises(UserError, match=r"4 images, 984 bytes; now 3 images"):
        check_same(config, (open_source(images), None), run)


def shifted(folder: Path, names: list[str]) -> Path:
    """Labelled images of one size, of two classes."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * i, i, i)).save(folder / name)
    return folder


def test_other_labelled_images_are_named(
    config: ResolvedConfig, begun: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, images = begun
    source, names = open_source(images), ["cat/0.bmp", "cat/1.bmp", "dog/2.bmp"]
    val = shifted(tmp_path / "val", names)
    with caplog.at_level(logging.INFO, "ssl_vit"):  # given for the first time: nothing to compare with
        sources = source, open_source(val)
        open_folder(run, config, [], sources, check_same(config, sources, run))
    assert f"scored on  3 images of {val} in 2 classes" in caplog.text
    assert (run / LABELLED).exists()
    shifted(tmp_path / "moved", names)
    check_same(config, (source, open_source(tmp_path / "moved")), run)  # the same, wherever they lie
    other = open_source(shifted(tmp_path / "other", ["dog/2.bmp", "cat/0.bmp", "cat/1.bmp"]))
    with pytest.raises(UserError, match=r"other: the labelled images \(--val\).* 3 changed: cat/0.bmp, .*; restore"):
        check_same(config, (source, other), run)
    (images / "0.bmp").unlink()
    sources = open_source(images), open_source(shifted(tmp_path / "val", [*names, "eel/3.bmp"]))
    with pytest.raises(UserError, match=r"3 images.* 1 removed: 0.bmp\); .*val: the labelled .*; 1 added: eel/3.bmp"):
        check_same(config, sources, run)
    open_folder(run, config, [], sources, check_same(config, sources, run, allow_data_change=True))
    check_same(config, sources, run)
    kept = json.loads((run / "data.json").read_text())
    assert kept["val"]["images"] == 4
    assert kept["changes"][0]["val"]["images"] == 3
    open_folder(run, config, [], (sources[0], None), check_same(config, (sources[0], None), run))
    assert "it was scored on labelled images (--val), and isn't any more" in caplog.text


def test_a_complete_run_does_nothing_with_other_images(
    whole_run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def again(data: Path, val: Path) -> int:
        return main(["pretrain", str(data), "--val", str(val), "--out", str(whole_run), "--resume"])

    (tmp_path / "linked").symlink_to(pictures)
    assert again(tmp_path / "linked" / "train", pictures / "val") == 0
    assert again(pictures / "train", pictures / "train") == 2
    assert f"--val {pictures / 'train'}: not the images of {whole_run}, which is complete" in capsys.readouterr().err
    assert again(pictures / "val", pictures / "val") == 2
    assert f"DATA {pictures / 'val'}: not the images of" in capsys.readouterr().err


def test_the_flag_is_one_of_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(tmp_path), "--out", str(tmp_path / "run"), "--allow-data-change"]) == 2
    assert "--allow-data-change goes with --resume" in capsys.readouterr().err
