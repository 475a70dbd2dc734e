"""Segmentation: mIoU against scikit-learn's Jaccard score, folders as they come, and coloured shapes that are easy."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from ssl_vit.cli import main
from ssl_vit.data.decode import decode
from ssl_vit.data.segmentation import SegmentationDataset, Segmented, find_pairs
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.segmentation import confusion, iou_summary, known, patch_labels

COLOURS = {0: (40, 60, 40), 3: (200, 60, 40), 7: (60, 80, 220)}


def scenes(folder, count, seed, names=("images", "masks")):
    """Noisy rectangles, red (3) and blue (7) on green (0); a border of the mask is ignored."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((48, 60), np.uint8)
        for value in (3, 7):
            y, x = rng.integers(0, 24), rng.integers(0, 30)
            mask[y : y + 24, x : x + 24] = value
        pixels = np.array([COLOURS[value] for value in mask.ravel()]).reshape(48, 60, 3)
        pixels = (pixels + rng.normal(scale=12, size=pixels.shape)).clip(0, 255).astype(np.uint8)
        mask[0] = 255
        Image.fromarray(pixels).save(folder / names[0] / f"{i:03}.png")
        Image.fromarray(mask).save(folder / names[1] / f"{i:03}.png")
    return folder


def test_miou_is_scikit_learns():
    rng = np.random.default_rng(0)
    values = np.array([0, 2, 5, 9])
    true, found = values[rng.integers(0, 3, (40, 50))], rng.integers(0, 3, (40, 50))
    ignored = rng.random(true.shape) < 0.1
    mask = np.where(ignored, 255, true)
    table = confusion(values, Segmented("a", None, mask), found, (255,))
    expected = jaccard_score(true[~ignored], values[found[~ignored]], average="macro")
    assert iou_summary(table)["mIoU"] == pytest.approx(100 * expected)  # 9 is nowhere and doesn't count
    assert iou_summary(table)["accuracy"] == pytest.approx(100 * np.mean(true[~ignored] == values[found[~ignored]]))


def test_the_fingerprint_is_of_contents_of_images_and_masks(tmp_path):
    pairs = find_pairs(scenes(tmp_path / "a", 2, 0), "val")
    before = known(pairs, tmp_path / "a")
    mask = Image.open(pairs[0].mask)
    size = pairs[0].mask.stat().st_size
    changed = np.array(mask)[::-1]
    Image.fromarray(changed).save(pairs[0].mask)
    pairs[0].mask.write_bytes(pairs[0].mask.read_bytes()[:size].ljust(size, b"\0"))
    after = known(pairs, tmp_path / "a")
    assert before.by_content
    assert before.sha256 != after.sha256


def test_patches_have_the_class_of_most_of_their_pixels():
    mask = np.random.default_rng(0).integers(0, 3, (20, 31))
    found = patch_labels(mask, (5, 4), (2,))
    rows, columns = np.arange(20) * 5 // 20, np.arange(31) * 4 // 31
    for y in range(5):
        for x in range(4):
            inside = mask[np.ix_(rows == y, columns == x)]
            assert found[y, x] == np.bincount(inside[inside != 2]).argmax()


def test_coloured_shapes_are_found(run, tmp_path, capsys):
    """A backbone with random weights still tells colours apart; all green would have a mIoU of about 20."""
    sides = ["--train", str(scenes(tmp_path / "a", 12, 0)), "--val", str(scenes(tmp_path / "b", 6, 1))]
    assert main(["eval", "segmentation", str(run), *sides]) == 0
    result = json.loads(capsys.readouterr().out)
    for way in ("linear", "knn"):
        assert 50 < result["segmentation"][way]["mIoU"] < 100
        assert result["segmentation"][way]["accuracy"] > 70
    assert result["protocol"]["images"] == {"train": 12, "val": 6}
    assert result["protocol"]["classes"] == 3


@pytest.mark.parametrize(
    ("names", "list_of"),
    [(("JPEGImages", "SegmentationClass"), True), (("images", "annotations"), False), (("images", "masks"), False)],
)
def test_the_layouts_of_voc_ade20k_and_our_own(names, list_of, tmp_path):
    folder = scenes(tmp_path / "set", 4, 0, names)
    if list_of:
        (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
        (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("001\n003\n")
    found = find_pairs(folder, "val")
    assert [pair.mask.stem for pair in found] == (["001", "003"] if list_of else ["000", "001", "002", "003"])
    assert all(pair.image.parent.name == names[0] and pair.mask.parent.name == names[1] for pair in found)


def test_ade20ks_parts_are_told_apart_by_the_flag(tmp_path):
    for part, count in (("training", 3), ("validation", 2)):
        scenes(tmp_path / part, count, 0)
        for name, target in (("images", "images"), ("masks", "annotations")):
            shutil.copytree(tmp_path / part / name, tmp_path / "ade" / target / part)
    assert len(find_pairs(tmp_path / "ade", "train")) == 3
    assert len(find_pairs(tmp_path / "ade", "val")) == 2


def two_valued(folder, values, seed=0):
    """Scenes whose masks have these numbers in place of 0, 3 and 7, and nothing that is ignored by its border."""
    scenes(folder, 4, seed)
    for file in (folder / "masks").iterdir():
        mask = np.array(Image.open(file))
        mask[0] = 0
        Image.fromarray(np.array(values, np.uint8)[np.searchsorted([0, 3, 7], mask)]).save(file)
    return folder


def test_what_is_ignored_is_said_and_can_be_counted(run, tmp_path, caplog):
    """Masks of 0 and 255, as drawing programs write two classes, and of 0, 127 and 255."""
    two = {side: two_valued(tmp_path / side, (0, 255, 255), i) for i, side in enumerate(("train", "val"))}
    with pytest.raises(UserError, match=r"hold 1 class: 0; 255 \(.* %.*\) does not count, --ignore '' counts it; segm"):
        evaluate("segmentation", run, **two)
    assert evaluate("segmentation", run, **two, ignore="")["protocol"]["classes"] == 2
    three = {side: two_valued(tmp_path / f"{side}3", (0, 127, 255), i) for i, side in enumerate(("train", "val"))}
    caplog.clear()
    assert evaluate("segmentation", run, **three)["protocol"]["classes"] == 2
    assert "the masks hold 2 classes: 0, 127; 255 (" in caplog.text
    assert "--ignore '' counts it" in caplog.text


def test_what_has_no_partner_is_said(tmp_path, caplog):
    folder = scenes(tmp_path, 5, 0)
    (folder / "masks" / "000.png").unlink()
    Image.open(folder / "masks" / "001.png").save(folder / "masks" / "001.tif")
    (folder / "masks" / "001.png").unlink()
    assert [pair.mask.stem for pair in find_pairs(folder, "val")] == ["002", "003", "004"]
    assert "2 images have no mask in masks/ and are left out, as 000.png" in caplog.text
    assert "1 files of masks are no PNG and are left out, as 001.tif" in caplog.text
    Image.open(folder / "images" / "002.png").save(folder / "images" / "002.jpg")
    with pytest.raises(UserError, match=r"images: 002.jpg and 002.png have one name; remove one"):
        find_pairs(folder, "val")


@pytest.mark.parametrize("turned", [False, True])
def test_masks_of_a_turned_photo_fit_either_way(turned, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    pixels, mask, exif = np.zeros((24, 40, 3), np.uint8), np.zeros((24, 40), np.uint8), Image.Exif()
    pixels[3:9, 4:30], mask[3:9, 4:30], exif[0x0112] = 255, 1, 6
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    picture = Image.fromarray(mask)
    (picture.transpose(Image.Transpose.ROTATE_270) if turned else picture).save(tmp_path / "masks" / "a.png")
    sample = SegmentationDataset(find_pairs(tmp_path, "train"), 32)[0]
    assert (sample.mask == (decode(str(tmp_path / "images" / "a.png"))[..., 0] > 0)).all()


def test_mistakes_are_one_clear_line(run, tmp_path, caplog):
    train, val = scenes(tmp_path / "a", 4, 0), scenes(tmp_path / "b", 4, 1)
    with pytest.raises(UserError, match="expected JPEGImages/ and SegmentationClass/"):
        evaluate("segmentation", run, train=train / "images", val=val)
    Image.fromarray(np.full((48, 60), 9, np.uint8)).save(val / "masks" / "000.png")
    with pytest.raises(UserError, match=r"000\.png has class 9.*--ignore 255,9"):
        evaluate("segmentation", run, train=train, val=val)
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(val / "masks" / "000.png")
    with pytest.raises(RunFailed, match=r"1 of 4 images .25.0%. could not be read.*raise --max-bad"):
        evaluate("segmentation", run, train=train, val=val)
    left_out = evaluate("segmentation", run, train=train, val=val, max_bad=0.3)["protocol"]["left_out"]
    assert left_out == {"train": 0, "val": 1}
    assert "the mask is (10, 10), the image (48, 60)" in caplog.text
    (val / "images" / "001.png").unlink()
    with pytest.raises(RunFailed, match=r"2 of 4 images .50.0%. could not be read.*001"):
        evaluate("segmentation", run, train=train, val=val, max_bad=0.3)
    for name in ("000", "002", "003"):
        (val / "images" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=r"none of 4 names has a file in .*images, as 000; add them"):
        evaluate("segmentation", run, train=train, val=val)
