"""Three formats, one table; what is broken is named, what is corrupted is one line."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.annotations import open_annotations
from ssl_vit.data.decode import decode
from ssl_vit.data.outlines import drawn, run_lengths
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
    assert open_annotations(coco(tmp_path, annotations)).objects[1].outlines == (None,)
    found = open_annotations(tmp_path / "boxes.json", outlined=True)
    objects = found.objects[1]
    assert (objects.crowd.tolist(), objects.areas.tolist()) == ([True], [11.0])
    assert objects.outlines[0][0].tolist() == [[1, 2], [5, 2], [5, 8]]


def test_two_classes_of_one_name_are_one(tmp_path):
    """Whichever of them an annotation is of, and in both formats that number their classes."""
    categories = [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 12, "name": "cat "}]
    boxes = [{"id": key, "image_id": 7, "category_id": key, "bbox": [1, 1, 5, 5]} for key in (3, 9, 12)]
    found = open_annotations(coco(tmp_path / "coco", boxes, categories=categories))
    assert found.counts() == {"dog": 1, "cat": 2}
    assert "2 classes are called 'cat'; they are taken as one" in found.report()
    folder = yolo(tmp_path / "yolo")
    (tmp_path / "yolo" / "data.yaml").write_text("names: [dog, cat, dog]\n")
    (tmp_path / "yolo" / "labels" / "train" / "a.txt").write_text("0 .5 .5 .1 .1\n1 .5 .5 .1 .1\n2 .5 .5 .1 .1\n")
    found = open_annotations(folder)
    assert found.counts() == {"dog": 2, "cat": 1}
    assert "data.yaml: 2 classes are called 'dog'; they are taken as one" in found.report()


def test_one_number_of_two_categories_is_refused(tmp_path):
    categories = [{"id": 9, "name": "cat"}, {"id": 9, "name": "dog"}]
    _one_line(coco(tmp_path, [], categories=categories), "two categories have the id 9, 'cat' and 'dog'")


def test_an_image_that_is_listed_twice_has_all_its_boxes(tmp_path):
    images = [{"id": i, "file_name": "a.png", "width": 100, "height": 80} for i in (7, 2)]
    boxes = [{"id": i, "image_id": i, "category_id": 9, "bbox": [i, 1, 5, 5]} for i in (7, 2)]
    found = open_annotations(coco(tmp_path, boxes, images=images))
    assert found.files == ["a.png"]
    assert found.objects[0].boxes[:, 0].tolist() == [7, 2]
    assert "1 images are listed more than once, as a.png" in found.report()


@pytest.mark.parametrize(
    ("xml", "hint", "there", "taken"),
    [
        ("a", "b.png", ("a.png", "b.png"), "a.png"),  # a copy, whose text was not changed
        ("new", "old.png", ("new.png",), "new.png"),  # renamed
        ("a", "a", ("a.png",), "a.png"),  # no ending
        ("a", "A.JPG", ("a.png",), "a.png"),  # converted
        ("a", "C:\\shots\\a.png", ("a.png",), "a.png"),
        ("IMG_1", "img_1.png", ("img_1.PNG",), "img_1.PNG"),
        ("a", "a.jpg", ("a.jpg", "a.png"), "a.jpg"),
        ("000001", "dog.png", ("dog.png",), "dog.png"),  # nothing of its own name
        ("a.v2", "", ("a.v2.png",), "a.v2.png"),
        ("a.png", "b.png", ("a.png",), "a.png"),  # a.png.xml
    ],
)
def test_a_voc_files_own_name_says_its_image(tmp_path, xml, hint, there, taken):
    voc(tmp_path)
    for file in [*(tmp_path / "JPEGImages").iterdir(), tmp_path / "Annotations" / "b.xml"]:
        file.unlink()
    for name in there:
        picture(tmp_path / "JPEGImages" / name)
    text = (tmp_path / "Annotations" / "a.xml").read_text().replace("a.png", hint)
    (tmp_path / "Annotations" / "a.xml").unlink()
    (tmp_path / "Annotations" / f"{xml}.xml").write_text(text)
    found = open_annotations(tmp_path)
    assert (found.files, len(found.objects[0].labels)) == ([taken], 2)
    assert ("name another image than their own" in found.report()) == (hint in ("b.png", "old.png"))


def phone(path, size=(100, 80), orientation=6):
    """A photo as phones write it: to be turned by a quarter, so that it is shown as high as it is stored wide."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, exif=exif)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_yolos_shares_are_of_the_upright_photo(tmp_path, ending):
    phone(tmp_path / "images" / f"a.{ending}")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.25 1 0.5\n")
    found = open_annotations(tmp_path)
    assert found.sizes == [(100, 80)] == [decode(found.path(0)).shape[:2]]
    assert found.objects[0].boxes.tolist() == [[0, 0, 80, 50]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_drawn_before_a_photo_was_turned_are_turned_with_it(tmp_path, orientation):
    """What is white in the stored photo is looked for in the upright one; sizes say on which it was drawn."""
    file, box = coco(tmp_path), (10, 20, 40, 60)
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[20:60, 10:40] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    mask = np.zeros((80, 100), bool)
    mask[20:60, 10:40] = True
    content = json.loads(file.read_text())
    counts = run_lengths(mask).lengths.tolist()
    ring = [10, 20, 40, 20, 40, 60, 10, 60]
    content["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 9, "bbox": [10, 20, 30, 40], "segmentation": outline}
        for i, outline in enumerate([[ring], {"counts": counts, "size": [80, 100]}])
    ]
    file.write_text(json.dumps(content))
    found = open_annotations(file, outlined=True)
    swapped = orientation >= 5
    assert found.turned == (["a.png"] if swapped else [])
    place = found.files.index("a.png")
    assert found.sizes[place] == ((100, 80) if swapped else (80, 100))
    if not swapped:  # the same size either way: taken as drawn upright
        assert found.objects[place].boxes.tolist() == [list(box)] * 2
        return
    rows, columns = np.nonzero(decode(found.path(place))[..., 0])
    there = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert found.objects[place].boxes.tolist() == [there] * 2
    white = decode(found.path(place))[..., 0] > 0
    ring, runs = (drawn(each, 100, (100, 80), (1, 1), (0, 0), False) for each in found.objects[place].outlines)
    assert (runs[:, :80] == white).all()
    assert (ring[:, :80] & white).sum() == white.sum() > ring.sum() - 80  # its edges are drawn too


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_files_with_a_mark_or_in_utf_16_are_read(tmp_path, encoding):
    file = coco(tmp_path / "coco")
    file.write_bytes(file.read_text().encode(encoding))
    assert len(open_annotations(file)) == 2
    if encoding == "utf-16-le":  # without a mark, JSON alone can be told
        return
    folder = yolo(tmp_path / "yolo")
    for text in (tmp_path / "yolo" / "data.yaml", tmp_path / "yolo" / "labels" / "train" / "a.txt"):
        text.write_bytes(text.read_text().encode(encoding))
    assert open_annotations(folder).counts() == {"cat": 1, "dog": 1}
    voc(tmp_path / "voc")
    names = tmp_path / "voc" / "ImageSets" / "Main" / "train.txt"
    names.parent.mkdir(parents=True)
    names.write_bytes("a\r\n".encode(encoding))
    xml = tmp_path / "voc" / "Annotations" / "a.xml"
    xml.write_bytes(xml.read_text().encode(encoding))
    assert open_annotations(names).counts() == {"cat": 1, "dog": 1}


def test_sizes_that_are_not_said_are_the_images(tmp_path):
    voc(tmp_path / "voc")
    for name, size in (("a", "<size><width>0</width><height>0</height></size>"), ("b", "")):
        file = tmp_path / "voc" / "Annotations" / f"{name}.xml"
        file.write_text(file.read_text().replace("<size><width>100</width><height>80</height></size>", size))
    assert open_annotations(tmp_path / "voc").sizes == [(80, 100)] * 2
    images = [{"id": 7, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "width": 0, "height": 0}]
    assert open_annotations(coco(tmp_path / "coco", images=images)).sizes == [(80, 100)] * 2


RING = [1, 2, 5, 2, 5, 8]
HOSTILE = {  # an annotation of COCO with one of these is left out, and named as this
    "number too large": ({"bbox": [10**400, 1, 5, 5]}, "without four finite numbers"),
    "not a number": ({"bbox": [float("nan"), 1, 5, 5]}, "without four finite numbers"),
    "too few": ({"bbox": [1, 1, 5]}, "without four finite numbers"),
    "text": ({"bbox": "1 1 5 5"}, "without four finite numbers"),
    "true": ({"bbox": [True, 1, 5, 5]}, "without four finite numbers"),
    "nothing": ({"bbox": None}, "without four finite numbers"),
    "class in a list": ({"category_id": [9]}, "of an unknown class"),
    "class in a text": ({"category_id": "9"}, "of an unknown class"),
    "class of nothing": ({"category_id": None}, "of an unknown class"),
    "crowd in words": ({"iscrowd": "no"}, "whose iscrowd is neither 0 nor 1"),
    "crowd in a list": ({"iscrowd": [0]}, "whose iscrowd is neither 0 nor 1"),
}
OUTLINES = {  # whose box stays where no outlines are asked for
    "text": "polygon",
    "odd length": [[1, 2, 5, 2, 5, 8, 3]],
    "two corners": [[1, 2, 5, 2]],
    "empty ring": [[]],
    "not finite": [[1, 2, 5, float("inf"), 5, 8]],
    "number too large": [[1, 2, 5, 10**400, 5, 8]],
    "far away": [[1, 2, 1e9, 2, 5, 8]],
    "words": [["a"] * 6],
    "numbers in lists": [[[1, 2], [5, 2], [5, 8]]],
    "a number": 7,
    "true": True,
    "no counts": {"size": [80, 100]},
    "other size": {"size": [10, 10], "counts": [50, 50]},
    "too long": {"size": [80, 100], "counts": [50, 9000]},
    "negative": {"size": [80, 100], "counts": [-50, 50, 8000]},
    "too large": {"size": [80, 100], "counts": [10**400]},
    "all of nothing": {"size": [80, 100], "counts": [8000]},
    "no text of lengths": {"size": [80, 100], "counts": "\u0394"},
    "text that is cut": {"size": [80, 100], "counts": "PPP"},
    "endless text": {"size": [80, 100], "counts": "o" * 40 + "0"},
}


def test_hostile_annotations_are_named_and_left_out(tmp_path):
    good = {"image_id": 7, "category_id": 9, "bbox": [1, 2, 4, 6]}
    annotations = [good | {"id": name} | change for name, (change, _) in HOSTILE.items()]
    annotations += [good | {"id": "good", "iscrowd": 0.0, "area": [3], "image_id": 7.0}, good | {"id": [1] * 1000}]
    found = open_annotations(coco(tmp_path, annotations))
    assert len(found.objects[0].labels) == 2
    assert found.objects[0].areas.tolist() == [24, 24]
    assert {kind: len(names) for kind, names in found.broken.items()} == Counter(kind for _, kind in HOSTILE.values())
    assert {name for names in found.broken.values() for name in names} == {
        f"a.png, annotation {name}" for name in HOSTILE
    }


def test_broken_outlines_matter_only_where_outlines_are_asked_for(tmp_path):
    good = {"image_id": 7, "category_id": 9, "bbox": [1, 2, 4, 6]}
    annotations = [good | {"id": name, "segmentation": each} for name, each in OUTLINES.items()]
    annotations += [good | {"id": f"none {i}", "segmentation": each} for i, each in enumerate(([], {}, None))]
    annotations += [good | {"id": "good", "segmentation": [RING]}, good | {"id": "flat", "segmentation": RING}]
    file = coco(tmp_path, annotations)
    plain = open_annotations(file)
    assert (len(plain.objects[0].labels), plain.report()) == (len(annotations), "")
    found = open_annotations(file, outlined=True)
    assert [len(outline) for outline in found.objects[0].outlines] == [1, 1]
    assert set(found.broken) == {"without an outline", "with an outline that can't be drawn"}
    assert found.broken["with an outline that can't be drawn"] == [f"a.png, annotation {name}" for name in OUTLINES]
    assert len(found.broken["without an outline"]) == 3


def test_a_windows_path_finds_its_image(tmp_path):
    file = coco(tmp_path / "x", images=[{"id": 7, "file_name": "x\\a.png", "width": 100, "height": 80}])
    assert open_annotations(file, tmp_path).files == ["x/a.png"]


def test_missing_images_are_named(tmp_path):
    file = coco(tmp_path)
    (tmp_path / "b.png").unlink()
    assert open_annotations(file).report() == "1 images that are not there: b.png"
    with pytest.raises(UserError, match=r"no images: 2 are annotated and none is in .*elsewhere"):
        open_annotations(file, tmp_path / "elsewhere")


@pytest.mark.fault
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"images": [', "no valid JSON"),
        ("", "no valid JSON"),
        ("[]", "holds a list, expected COCO's"),
        ('{"images": {}}', "no list 'images'"),
        ('{"images": [7], "annotations": [], "categories": []}', "entry 0 of 'images' is a int, no object"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "no file_name that is a str"),
        ('{"images": [{"id": true}], "annotations": [], "categories": []}', "no id that is a int"),
        (
            '{"images": [], "annotations": [{"bbox": []}], "categories": []}',
            "entry of 'annotations' has no image_id that is a int",
        ),
        ('{"images": [{"id": %s}]}' % ("9" * 5000), "no valid JSON (Exceeds the limit"),
        ("[" * 200_000, "lists within lists without end"),
        (
            '{"images": [{"id": 1, "file_name": "a", "width": 1e9, "height": 2}], "annotations": [], "categories": []}',
            "an image of 10",
        ),
        (
            '{"images": [{"id": 1, "file_name": "\\ud800\\u0000"}], "annotations": [], "categories": []}',
            "no images: 1 are annotated",
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
    for encoding, says in (("klingon", "unknown encoding"), ("shift_jis", "multi-byte encodings")):
        file.write_text(f'<?xml version="1.0" encoding="{encoding}"?>{whole}')
        _one_line(tmp_path, says)
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    file.write_text(f'<!DOCTYPE x [<!ENTITY l0 "{"ha" * 1000}">{laughs}]>' + whole.replace("a.png", "&l9;"))
    _one_line(tmp_path, "a.xml: no valid XML")
    file.write_text(whole.replace("<width>100", "<width>inf"))
    _one_line(tmp_path, "a.xml: cannot convert")
    file.write_text("<html></html>")
    _one_line(tmp_path, "a.xml: begins with <html>")
    file.write_text("<a>" * 100_000)
    _one_line(tmp_path, "a.xml: no valid XML")


@pytest.mark.parametrize(
    "line",
    [
        *("0 0.5 0.5 0.1", "cat 0.5 0.5 0.1 0.1", "0 0.5 0.5 0.1 x", "0 .5 .5 .1 .1 .9", "0.5 .5 .5 .1 .1"),
        *("nan .5 .5 .1 .1", "inf .5 .5 .1 .1", "0 .1 .1 .5 .1 .5 .5 .1", "\0"),
    ],
)
def test_a_corrupted_yolo_line_is_one_line(tmp_path, line):
    folder = yolo(tmp_path)
    with (tmp_path / "labels" / "train" / "a.txt").open("a") as file:
        file.write(line + "\n")
    _one_line(folder, "a.txt, line 3: ")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGED = "a0: &a0 {x: y}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.fault
@pytest.mark.parametrize(
    "text",
    [
        *(
            "names: [cat, dog",
            "names: 7",
            "names: [[cat], dog]",
            "names: {a: cat}",
            "names: {1: cat, 3: dog}",
            "nc: 2",
            "",
        ),
        *(BOMB + "names: *a11", BOMB + "names: [*a11]", MERGED + "names: *a11", "names: " + "[" * 100_000),
        *("names:\n" + "- " * 100_000 + "a", "names: {%s: cat}" % ("9" * 5000), "names: [cat]\n" + "#" * (1 << 20)),
    ],
)
def test_corrupted_yolo_names_are_one_line(tmp_path, text):
    folder = yolo(tmp_path)
    (tmp_path / "data.yaml").write_text(text)
    _one_line(folder, "data.yaml: ")


def test_yolo_names_are_as_they_are_written(tmp_path):
    folder = yolo(tmp_path)
    (tmp_path / "data.yaml").write_text("names: {1: 007, 0: no}\n")
    assert open_annotations(folder).classes == ("no", "007")


def test_a_huge_yolo_class_without_names_is_refused_at_once(tmp_path):
    folder = yolo(tmp_path)
    (tmp_path / "labels" / "train" / "b.txt").write_text("30000000 .5 .5 .1 .1\n")
    assert open_annotations(folder).broken == {"of an unknown class": ["b.png, line 1"]}
    (tmp_path / "data.yaml").unlink()
    _one_line(folder, "b.txt: a class 30000000, and no data.yaml")
    (tmp_path / "labels" / "train" / "b.txt").write_text("2.0 .5 .5 .1 .1\n")
    assert open_annotations(folder).classes == ("0", "1", "2")


def test_yolos_polygons_are_boxes_and_outlines(tmp_path):
    folder = yolo(tmp_path)
    text = tmp_path / "labels" / "train" / "a.txt"
    text.write_text("0 .1 .25 .4 .25 .4 .75\n1 .5 .5 1 1\n0 .1 .1 nan .1 .5 .5\n")
    found = open_annotations(folder)
    np.testing.assert_allclose(found.objects[0].boxes, [[10, 20, 40, 60], [0, 0, 100, 80]], atol=1e-4)
    assert found.broken == {"without four finite numbers": ["a.png, line 3"]}
    found = open_annotations(folder, outlined=True)
    np.testing.assert_allclose(found.objects[0].outlines[0][0], [[10, 20], [40, 20], [40, 60]], atol=1e-4)
    assert found.broken["without an outline"] == ["a.png, line 2"]
    assert found.broken["with an outline that can't be drawn"] == ["a.png, line 3"]
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("kpt_shape: [2, 2]\n")  # so many numbers behind a box are the places of joints
    text.write_text("0 .5 .5 1 1 .1 .1 .2 .2\n")
    assert open_annotations(folder).objects[0].boxes.tolist() == [[0, 0, 100, 80]]


def test_yolo_labels_without_images_are_missing_and_bare_images_said(tmp_path):
    folder = yolo(tmp_path)
    for name in ("classes", "c", "d"):
        (tmp_path / "labels" / "train" / f"{name}.txt").write_text("0 .5 .5 .1 .1\n")
    picture(folder / "e.png")
    found = open_annotations(folder)
    assert found.missing == ["that of c.txt", "that of d.txt"]
    assert "2 of 3 images have no file of labels, as b.png" in found.report()


def test_voc_files_in_folders_and_in_capitals_are_read_and_bare_images_said(tmp_path):
    voc(tmp_path)
    for name, place in (("a", "Annotations/more/A.XML"), ("b", "Annotations/b.XML")):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").rename(tmp_path / place)
    (tmp_path / "JPEGImages" / "more").mkdir()
    (tmp_path / "JPEGImages" / "a.png").rename(tmp_path / "JPEGImages" / "more" / "A.png")
    picture(tmp_path / "JPEGImages" / "c.png")
    found = open_annotations(tmp_path)
    assert sorted(found.files) == ["b.png", "more/A.png"]
    assert len(found.objects[found.files.index("more/A.png")].boxes) == 2
    assert found.report() == "1 images have no file in Annotations/ and are left out: c.png"


def test_another_folder_of_images_is_for_coco_alone(tmp_path):
    with pytest.raises(UserError, match=r"only a COCO \.json is given another"):
        open_annotations(voc(tmp_path), tmp_path)
    coco(tmp_path / "coco")
    with pytest.raises(UserError, match=r"pass .*coco/boxes\.json"):
        open_annotations(tmp_path / "coco")


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
