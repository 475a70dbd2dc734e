"""Which images lie beside folders of classes."""

from __future__ import annotations

import pytest

from ssl_vit.data.class_folders import in_class_folders
from ssl_vit.data.sources import open_source
from tests.data.photo import save_photos


def test_a_few_images_beside_classes_are_left_out(tmp_path):
    for name in ("a", "b"):
        save_photos(tmp_path / name, 3)
    save_photos(tmp_path, 2)
    source = open_source(tmp_path)
    found, beside = in_class_folders(source)
    assert (source.classes, found.classes, beside) == ((), ("a", "b"), ["000.png", "001.png"])
    assert [(found.name(i), found.label(i)) for i in (0, 5)] == [("a/000.png", 0), ("b/002.png", 1)]
    assert (len(found), found.fingerprint["images"]) == (6, 6)


@pytest.mark.parametrize("folders", [(), ("a",), ("a", "b")])
def test_folders_beside_more_images_are_no_classes(tmp_path, folders):
    save_photos(tmp_path, 8)
    for name in folders:
        save_photos(tmp_path / name, 3)
    source = open_source(tmp_path)
    assert in_class_folders(source) == (source, [])


def test_a_single_folder_is_a_class_where_it_is_known_as_one(tmp_path):
    save_photos(tmp_path / "a", 3)
    source = open_source(tmp_path)
    assert in_class_folders(source) == in_class_folders(source, ("b", "c")) == (source, [])
    assert in_class_folders(source, ("a", "b"))[0].classes == ("a",)
