"""Three formats, one table; what is broken is named, what is corrupted is one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.annotations import open_annotations
from ssl_vit.errors import UserError

BOXES = [("cat", (10, 20, 40, 60)), ("dog", (0, 0, 100, 80))]  # corners in an image of 100 x 80 pixels


def picture(path, size=(100, 80)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def coco(root, annotations=None, **changes):
    picture(root / "a.png")
    picture(root / "b.png")
    boxes = [
        {"id": i, "image_id": 7, "category_id": {"cat": 9, "dog": 3}[name], "bbox": [x, y, r - x, b - y]}
        for i, (name, (x, y, r, b)) in enumerate(BOXES)
    ]
    content = {
        "images": [{"id": i, "file_name": n, "width": 100, "height": 80} for i, n in ((7, "a.png"), (2, "b.png"))],
        "annotations": boxes if annotations is None else annotations,
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
    } | changes
    (root / "boxes.json").write_text(json.dumps(content))
    return root / "boxes.json"


def voc(root):
    picture(root / "JPEGImages" / "a.png")
    picture(root / "JPEGImages" / "b.png")
    (root / "Annotations").mkdir()
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{r}</xmax><ymax>{b}</ymax>"
        "</bndbox></object>"
        for name, (x, y, r, b) in BOXES
    )
    for name, inside in (("a", objects), ("b", "")):
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>100</width><height>80</height></size>{inside}"
            "</annotation>"
        )
    return root


def yolo(root):
    picture(root / "images" / "train" / "a.png")
    picture(root / "images" / "train" / "b.png")
    (root / "labels" / "train").mkdir(parents=True)
    (root / "data.yaml").write_text("names: {0: cat, 1: dog}\n")
    lines = [
        f"{['cat', 'dog'].index(name)} {(x + r) / 200} {(y + b) / 160} {(r - x) / 100} {(b - y) / 80}\n"
        for name, (x, y, r, b) in BOXES
    ]
    (root / "labels" / "train" / "a.txt").write_text("".join(lines))
    return root / "images" / "train"


@pytest.mark.parametrize("write", [coco, voc, yolo])
def test_every_format_gives_the_same_boxes(tmp_path, write):
    found = open_annotations(write(tmp_path))
    assert sorted(found.files) == ["a.png", "b.png"]
    a, b = found.files.index("a.png"), found.files.index("b.png")
    named = {
        found.classes[label]: box for label, box in zip(found.objects[a].labels, found.objects[a].boxes, strict=True)
    }
    for name, corners in BOXES:
        np.testing.assert_allclose(named[name], corners, atol=1e-4)
    assert len(found.objects[b].boxes) == 0
    assert found.sizes[a] == (80, 100)
    assert found.report() == ""


def test_a_yolo_root_takes_all_of_its_images(tmp_path):
    yolo(tmp_path)
    assert open_annotations(tmp_path).files == ["train/a.png", "train/b.png"]


def test_a_voc_list_takes_its_images(tmp_path):
    voc(tmp_path)
    names = tmp_path / "ImageSets" / "Main" / "train.txt"
    names.parent.mkdir(parents=True)
    names.write_text("b\n")
    assert open_annotations(names).files == ["b.png"]
    names.write_text("c\n")
    with pytest.raises(UserError, match=r"train.txt: lists c, but .*c.xml is not there"):
        open_annotations(names)


def test_broken_boxes_are_named_and_left_out(tmp_path):
    boxes = {
        "outside": [200, 5, 10, 10],
        "empty": [10, 10, 0, 5],
        "not a number": [10, 10, "wide", 5],
        "infinite": [10, 10, float("inf"), 5],
        "unknown": [10, 10, 5, 5],
        "cut": [90, 70, 20, 20],
        "rounding": [0, 0, 100.4, 80],
        "good": [1, 2, 3, 4],
    }
    annotations = [
        {"id": name, "image_id": 2, "category_id": 5 if name == "unknown" else 9, "bbox": box}
        for name, box in boxes.items()
    ]
    annotations.append({"id": "stray", "image_id": 99, "category_id": 9, "bbox": [1, 1, 2, 2]})
    found = open_annotations(coco(tmp_path, annotations))
    kept = found.objects[found.files.index("b.png")].boxes
    np.testing.assert_allclose(kept, [[90, 70, 100, 80], [0, 0, 100, 80], [1, 2, 4, 6]])
    assert found.report().splitlines() == [
        "1 boxes empty: b.png, annotation empty",
        "1 boxes of an image that is not listed: annotation stray of image 99",
        "1 boxes of an unknown class: b.png, annotation unknown",
        "1 boxes outside of the image: b.png, annotation outside",
        "1 boxes reaching over the edge (cut there): b.png, annotation cut",
        "2 boxes without four finite numbers: b.png, annotation not a number, b.png, annotation infinite",
    ]


def test_crowds_areas_and_outlines_are_kept(tmp_path):
    ring = [1, 2, 5, 2, 5, 8]
    annotations = [
        {
            "id": 1,
            "image_id": 2,
            "category_id": 9,
            "bbox": [1, 2, 4, 6],
            "iscrowd": 1,
            "area": 11,
            "segmentation": [ring],
        }
    ]
    found = open_annotations(coco(tmp_path, annotations))
    objects = found.objects[1]
    assert (objects.crowd.tolist(), objects.areas.tolist()) == ([True], [11.0])
    assert objects.outlines[0][0].tolist() == [[1, 2], [5, 2], [5, 8]]


def test_missing_images_are_named(tmp_path):
    file = coco(tmp_path)
    (tmp_path / "b.png").unlink()
    assert open_annotations(file).report() == "1 images that are not there: b.png"
    with pytest.raises(UserError, match=r"no images: 2 are annotated and none is in .*elsewhere"):
        open_annotations(file, tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"images": [', "no valid JSON"),
        ("[]", "holds a list, expected COCO's"),
        ('{"images": {}}', "no list 'images'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "no file_name that is a str"),
        (
            '{"images": [], "annotations": [{"bbox": []}], "categories": []}',
            "entry of 'annotations' has no image_id that is a int",
        ),
    ],
)
def test_a_corrupted_coco_file_is_one_line(tmp_path, text, says):
    file = tmp_path / "boxes.json"
    file.write_text(text)
    _one_line(file, says)


def test_a_corrupted_voc_file_is_one_line(tmp_path):
    voc(tmp_path)
    file = tmp_path / "Annotations" / "a.xml"
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    _one_line(tmp_path, "a.xml: no valid XML")
    file.write_text(whole.replace("<xmin>11</xmin>", ""))
    _one_line(tmp_path, "a.xml: no bndbox/xmin; expected Pascal VOC's")


@pytest.mark.parametrize("line", ["0 0.5 0.5 0.1", "cat 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1 x"])
def test_a_corrupted_yolo_line_is_one_line(tmp_path, line):
    folder = yolo(tmp_path)
    with (tmp_path / "labels" / "train" / "a.txt").open("a") as file:
        file.write(line + "\n")
    _one_line(folder, "a.txt, line 3: ")


def test_corrupted_yolo_names_are_one_line(tmp_path):
    folder = yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: [cat, dog")
    _one_line(folder, "data.yaml: no list of names")


def _one_line(path, says):
    with pytest.raises(UserError) as error:
        open_annotations(path)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_anything_else_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither a COCO .json, nor"):
        open_annotations(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        open_annotations(tmp_path / "nowhere")
