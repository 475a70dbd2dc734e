"""Segments of every format: drawn on paper first, then read back; and what is wrong with them is named."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as coco
from PIL import Image

from ssl_vit.data.annotations import open_annotations
from ssl_vit.data.decode import BadImage
from ssl_vit.data.segment_masks import open_masks
from ssl_vit.data.segment_scenes import SegmentDataset
from ssl_vit.data.segmentation import find_pairs, read_mask
from ssl_vit.data.segments import NOWHERE, Segments, divided
from ssl_vit.data.segments_coco import is_panoptic, of_instances, open_panoptic
from ssl_vit.errors import UserError

SIZE = (40, 50)
CATEGORIES = [
    {"id": 7, "name": "sky", "isthing": 0},
    {"id": 3, "name": "cat", "isthing": 1},
    {"id": 9, "name": "dog", "isthing": 1},
]  # classes come by their numbers: cat, sky, dog


def picture(path, seed=0, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)).save(path)


def panoptic(folder, count=3):
    """Sky over the upper half, two cats and a crowd of dogs below, a row of nothing at the end."""
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    truths = []
    for i in range(count):
        picture(folder / "images" / f"{i}.jpg", i)
        numbers = np.zeros(SIZE, np.int64)
        numbers[:20], numbers[20:39, :15], numbers[20:39, 15:30], numbers[20:39, 30:] = 5, 300, 70_000, 9
        bands = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65_536], -1).astype(np.uint8)
        (folder / "set").mkdir(exist_ok=True)
        Image.fromarray(bands).save(folder / "set" / f"{i}.png")
        content["images"].append({"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]})
        segments = [(9, 9, 1), (5, 7, 0), (300, 3, 0), (70_000, 3, 0)]
        info = [{"id": number, "category_id": label, "iscrowd": crowd} for number, label, crowd in segments]
        content["annotations"].append({"image_id": i, "file_name": f"{i}.png", "segments_info": info})
        truths.append(numbers)
    (folder / "set.json").write_text(json.dumps(content))
    return folder / "set.json", content, truths


def rewritten(path, content):
    path.write_text(json.dumps(content))
    return path


def test_panoptic_numbers_are_read(tmp_path):
    path, _, truths = panoptic(tmp_path)
    assert is_panoptic(path)
    source = open_panoptic(path, tmp_path / "images")
    assert source.classes == ("cat", "sky", "dog")
    assert source.things == (True, False, True)
    assert source.counts() == {"sky": 3, "cat": 6, "dog": 3}
    for index, numbers in enumerate(truths):
        found = source.read(index, SIZE)
        assert found.labels.tolist() == [2, 1, 0, 0]
        assert found.crowd.tolist() == [True, False, False, False]
        for place, number in enumerate((9, 5, 300, 70_000)):
            assert ((found.map == place) == (numbers == number)).all()
        assert (found.classes()[-1] == NOWHERE).all()


def test_what_is_wrong_with_panoptic_annotations_is_named(tmp_path, caplog):
    path, content, _ = panoptic(tmp_path, 6)
    (tmp_path / "images" / "0.jpg").unlink()
    (tmp_path / "set" / "1.png").unlink()
    content["annotations"][2]["segments_info"] = "sky"
    content["annotations"][3]["segments_info"][1]["category_id"] = 77
    content["images"][4]["width"] = 51
    content["annotations"].append({"image_id": 99, "file_name": "99.png", "segments_info": []})
    source = open_panoptic(rewritten(path, content), tmp_path / "images")
    assert source.files == ["3.jpg", "5.jpg"]
    assert source.left_out == {
        "0.jpg": "that are not there",
        "1.jpg": "whose PNG is not there",
        "2.jpg": "whose list of segments is broken",
        "4.jpg": "that have another size than is annotated",
    }
    told = source.report()
    assert "1 images left out, whose PNG is not there: 1.jpg" in told
    assert "1 segments of 3.jpg are of an unknown class" in told
    assert "1 annotations of images that are not listed are left out: 99.png" in told
    assert (source.read(0, SIZE).classes()[:20] == NOWHERE).all()
    content["annotations"][5]["segments_info"].pop()
    source = open_panoptic(rewritten(path, content), tmp_path / "images")
    with pytest.raises(BadImage, match=r"segment 70000 of 5.png is not in the list"):
        source.read(1, SIZE)
    Image.new("L", SIZE[::-1]).save(tmp_path / "set" / "5.png")
    with pytest.raises(BadImage, match=r"5.png is of L; expected RGB"):
        source.read(1, SIZE)
    Image.new("RGB", (10, 12)).save(tmp_path / "set" / "5.png")
    with pytest.raises(BadImage, match=r"10 x 12 pixels, the image 50 x 40"):
        source.read(1, SIZE)
    content["annotations"][5]["image_id"] = 3
    with pytest.raises(UserError, match="image 3 has two panoptic annotations"):
        open_panoptic(rewritten(path, content), tmp_path / "images")


def instances(folder):
    """A large cat as a polygon, a dog in front of it as compressed run lengths, a crowd of cats as plain ones."""
    picture(folder / "0.png")
    masks = np.zeros((3, *SIZE), bool)
    masks[0, 5:35, 5:40], masks[1, 10:20, 10:20], masks[2, 30:40, 30:50] = True, True, True
    ring = [5, 5, 40, 5, 40, 35, 5, 35]
    packed = coco.encode(np.asfortranarray(masks[1].astype(np.uint8)))["counts"].decode()
    flat = np.concatenate([[0], masks[2].T.ravel(), [2]])
    edges = np.flatnonzero(np.diff(flat))
    plain = np.diff(np.concatenate([[0], edges[:-1], [masks[2].size]])).tolist()
    outlines = [[ring], {"counts": packed, "size": list(SIZE)}, {"counts": plain, "size": list(SIZE)}]
    boxes = [[5, 5, 35, 30], [10, 10, 10, 10], [30, 30, 20, 10]]
    content = {
        "images": [{"id": 0, "file_name": "0.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": i, "image_id": 0, "category_id": label, "bbox": box, "iscrowd": crowd, "segmentation": outline}
            for i, (label, box, crowd, outline) in enumerate(zip((1, 2, 1), boxes, (0, 0, 1), outlines, strict=True))
        ],
    }
    return rewritten(folder / "set.json", content), masks


def test_outlines_divide_an_image_smaller_ones_in_front(tmp_path):
    path, masks = instances(tmp_path)
    assert not is_panoptic(path)
    source = of_instances(path, open_annotations(path, outlined=True))
    assert source.classes == ("background", "cat", "dog")
    assert source.things == (False, True, True)
    found = source.read(0, SIZE)
    assert found.labels.tolist() == [0, 1, 2, 1]
    assert found.crowd.tolist() == [False, False, False, True]
    assert ((found.map == 2) == masks[1]).all()
    assert ((found.map == 0) == ~masks.any(0))[: SIZE[0] - 6].mean() > 0.95  # Pillow's polygons have their edges
    crowd = (found.map == 3) & masks[2]
    assert (found.map == 3).sum() == crowd.sum() > 100
    assert not (found.map == 3)[:35, :40].any()  # the cat lies in front of the crowd
    with pytest.raises(BadImage, match="51 x 40 pixels, annotated as 50 x 40"):
        source.read(0, (40, 51))


def test_masks_are_divided_by_class_and_the_broken_ones_are_named(tmp_path):
    masks = [np.full(SIZE, 3, np.uint8) for _ in range(4)]
    masks[0][:10], masks[1][:, :5] = 9, 255
    for i, mask in enumerate(masks):
        picture(tmp_path / "images" / f"{i}.png", i)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{i}.png")
    Image.fromarray(masks[2][:7]).save(tmp_path / "masks" / "2.png")
    (tmp_path / "images" / "3.png").unlink()
    source = open_masks(tmp_path, find_pairs(tmp_path, "train"), (255,))
    assert source.classes == ("3", "9")
    assert source.files == ["images/0.png", "images/1.png"]
    assert "the image 50 x 40" in source.left_out["images/2.png"]
    assert "images/3" in source.left_out
    found = source.read(0, SIZE)
    assert (found.map[:10] == 1).all()
    assert (found.map[10:] == 0).all()
    assert found.labels.tolist() == [0, 1]
    assert (source.read(1, SIZE).map[:, :5] == NOWHERE).all()


def test_a_palette_image_without_a_palette_is_refused(tmp_path):
    palette = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).convert("P")
    palette.save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 2], [3, 4, 5]]
    raw = (tmp_path / "a.png").read_bytes()
    start = raw.index(b"PLTE") - 4
    (length,) = struct.unpack(">I", raw[start : start + 4])
    (tmp_path / "b.png").write_bytes(raw[:start] + raw[start + 12 + length :])
    with pytest.raises(BadImage, match="a palette image without a palette"):
        read_mask(tmp_path / "b.png")


def test_val_is_numbered_as_train(tmp_path):
    path, content, _ = panoptic(tmp_path / "a")
    train = open_panoptic(path, tmp_path / "a" / "images")
    other, content, truths = panoptic(tmp_path / "b")
    renamed = [{"id": 3, "name": "dog"}, {"id": 7, "name": "sky", "isthing": 0}, {"id": 9, "name": "cat"}]
    val = open_panoptic(rewritten(other, content | {"categories": renamed}), tmp_path / "b" / "images").numbered_as(
        train
    )
    assert val.classes == train.classes
    assert (val.read(0, SIZE).classes()[truths[0] == 300] == 2).all()
    renamed[0]["name"] = "cow"
    val = open_panoptic(rewritten(other, content | {"categories": renamed}), tmp_path / "b" / "images")
    with pytest.raises(UserError, match=r"--val: 6 segments of 'cow', which --train doesn't have \(cat, sky, dog\)"):
        val.numbered_as(train)


@pytest.mark.parametrize("training", [False, True])
def test_segments_lie_where_the_image_shows_them(training, tmp_path):
    """An image of its own segments, through crop, scale and mirror; crowds are not to be learnt."""
    path, content, truths = panoptic(tmp_path, 1)
    content["annotations"][0]["segments_info"][0]["iscrowd"] = 0
    rewritten(path, content)
    coloured = np.zeros((*SIZE, 3), np.uint8)
    for band, number in enumerate((5, 300, 70_000)):
        coloured[truths[0] == number, band] = 250
    Image.fromarray(coloured).save(tmp_path / "images" / "0.png")
    content["images"][0]["file_name"] = "0.png"
    source = open_panoptic(rewritten(path, content), tmp_path / "images")
    data = SegmentDataset(source, 64, training=training, seed=1)
    for epoch in range(8 if training else 1):
        scene = data[epoch, 0]
        assert (scene.truth is None) == training
        shown = scene.segments.long()
        for place, label in enumerate(scene.labels.tolist()):
            red, green, blue = scene.image.long()
            if label == 1:
                assert (red[shown == place] > 120).float().mean() > 0.97
            if label == 0:
                assert ((green + blue)[shown == place] > 120).float().mean() > 0.9
        assert (shown[scene.extent[0] :] == NOWHERE).all()
        assert torch.equal(scene.classes() == NOWHERE, shown == NOWHERE)


def test_crowds_and_what_is_cropped_away_are_no_targets(tmp_path):
    path, _, _ = panoptic(tmp_path, 1)
    source = open_panoptic(path, tmp_path / "images")
    scene = SegmentDataset(source, 64, training=False)[0, 0]
    assert scene.labels.tolist() == [1, 0, 0]
    assert scene.truth.crowd.any()


def test_numbers_that_do_not_count_are_nowhere():
    places, values = divided(np.array([[1, 2], [255, 1]]), np.array([1, 2]))
    assert places.tolist() == [[0, 1], [-1, 0]]
    assert values.tolist() == [1, 2]
    assert Segments(places, values, np.zeros(2, bool)).classes().tolist() == [[1, 2], [-1, 1]]
