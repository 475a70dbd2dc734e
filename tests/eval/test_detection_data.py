"""What of two sets of boxes is refused, and how much may be missing."""

from __future__ import annotations

import json

import pytest

from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.eval.detection_data import known_by_boxes, open_boxes
from tests.data.test_annotations import coco, picture, voc

BOX = {"image_id": 7, "category_id": 9, "bbox": [1, 2, 4, 6]}


def many(root, there, annotated=8):
    """A COCO file of images with a box each, of which only the first are there."""
    for i in range(there):
        picture(root / f"{i}.png")
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 80} for i in range(annotated)]
    return coco(root, [BOX | {"id": i, "image_id": i} for i in range(annotated)], images=images)


def test_as_many_images_may_be_missing_as_unreadable(tmp_path, caplog):
    file = many(tmp_path, 1)
    with pytest.raises(UserError) as error:
        open_boxes(file, "auto", "val")
    said = "7 of 8 annotated images (87.5%) are missing or can't be read, more than the 5.0% that --max-bad allows"
    assert f"--val {file}: {said}: 1.png (not there), 2.png (not there)" in str(error.value)
    assert "(--val-images)" in str(error.value)
    (tmp_path / "1.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"7 of 8 .* can't be read"):
        open_boxes(file, "auto", "val")
    assert len(open_boxes(file, "auto", "val", max_bad=0.9)) == 1
    assert "1 images that can't be read: 1.png (empty, or no" in caplog.text
    (tmp_path / "more").mkdir()
    assert len(open_boxes(many(tmp_path / "more", 19, 20), "auto", "val")) == 19


def test_the_fingerprint_is_of_contents(tmp_path):
    file = many(tmp_path, 2, 2)
    before = known_by_boxes(open_boxes(file, "auto", "val"))
    data = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(data[:-20] + bytes(20))
    after = known_by_boxes(open_boxes(file, "auto", "val"))
    assert before.by_content
    assert before.sha256 != after.sha256


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"bbox": [500, 2, 4, 6]}, "outside of the image"),
        ({"bbox": [1, 2, 0, 6]}, "empty"),
        ({"bbox": [1, 2, 4]}, "without four finite numbers"),
        ({"category_id": 99}, "of an unknown class"),
    ],
)
def test_few_wrong_boxes_are_left_out_and_many_refused(tmp_path, wrong, says):
    boxes = [BOX | {"id": i} | (wrong if i < 2 else {}) for i in range(12)]
    file = coco(tmp_path, boxes)
    with pytest.raises(UserError, match=rf"2 of 12 boxes .16.7%. can't be used.*{says}: a.png, annotation 0"):
        open_boxes(file, "auto", "train")
    assert len(open_boxes(file, "auto", "train", max_bad=0.2).objects[0].labels) == 10
    many = [BOX | {"id": i} | (wrong if i < 1 else {}) for i in range(30)]
    assert len(open_boxes(coco(tmp_path, many), "auto", "train").objects[0].labels) == 29


def test_shares_of_the_sides_are_no_pixels(tmp_path):
    file = coco(tmp_path, [BOX | {"id": i, "bbox": [0.1, 0.2, 0.3, 0.4]} for i in range(3)])
    with pytest.raises(UserError, match=r"every box lies within the first pixel.*in pixels, not in shares"):
        open_boxes(file, "auto", "val")


def test_the_flag_that_is_advised_is_there(tmp_path, capsys):
    here = str(tmp_path)
    with pytest.raises(SystemExit):
        main(["eval", "detection", "--help"])
    assert "--max-bad" in capsys.readouterr().out
    assert main(["eval", "detection", here, "--train", here, "--val", here, "--max-bad", "2"]) == 2
    assert "max_bad: expected a number ≥ 0 and ≤ 1" in capsys.readouterr().err


def test_crowds_alone_are_nothing_to_learn_or_find(tmp_path):
    file = coco(tmp_path / "coco", [BOX | {"iscrowd": crowd} for crowd in (1, True, "1")])
    with pytest.raises(UserError, match=r"--train .*boxes.json: all 3 boxes are crowds"):
        open_boxes(file, "auto", "train")
    folder = voc(tmp_path / "voc")
    xml = folder / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("</name>", "</name><difficult>1</difficult>"))
    with pytest.raises(UserError, match="all 2 boxes are crowds"):
        open_boxes(folder, "auto", "val")
    file = coco(tmp_path / "mixed", [BOX | {"iscrowd": crowd} for crowd in (1, "0")])
    assert open_boxes(file, "auto", "val").objects[0].crowd.tolist() == [True, False]


def test_few_broken_outlines_are_left_out_and_many_refused(tmp_path, caplog):
    ring = [[1, 2, 5, 2, 5, 8]]
    good = [BOX | {"id": i, "segmentation": ring} for i in range(19)]
    file = coco(tmp_path, [*good, BOX | {"id": 19, "segmentation": [[1, 2, 3]]}])
    assert len(open_boxes(file, "auto", "train", outlined=True).objects[0].labels) == 19
    assert "1 boxes with an outline that can't be drawn: a.png, annotation 19" in caplog.text
    content = json.loads(file.read_text())
    content["annotations"] += [BOX | {"id": 20}]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"2 of 21 objects have no outline .* choose --detector faster_rcnn"):
        open_boxes(file, "auto", "train", outlined=True)
    assert len(open_boxes(file, "auto", "train").objects[0].labels) == 21
