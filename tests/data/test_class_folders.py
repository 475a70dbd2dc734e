"""Which images lie beside folders of classes."""

from __future__ import annotations

import pytest

from ssl_vit.data.class_folders import beside_classes, in_class_folders
from ssl_vit.data.sources import open_source
from tests.data.photo import save_photos


def test_a_few_images_beside_classes_are_left_out(tmp_path):
    for name in ("a", "b"):
        save_photos(tmp_path / name, 3)
    save_photos(tmp_path, 2)
    source = open_source(tmp_path)
    assert (source.classes, [source.name(i) for i in beside_classes(source)]) == ((), ["000.png", "001.png"])
    found = in_class_folders(source)
    assert found.classes == ("a", "b")
    assert [(found.name(i), found.label(i)) for i in (0, 5)] == [("a/000.png", 0), ("b/002.png", 1)]
    assert (len(found), found.fingerprint["images"]) == (6, 6)


@pytest.mark.parametrize("folders", [(), ("a",), ("a", "b")])
def test_folders_beside_more_images_are_no_classes(tmp_path, folders):
    save_photos(tmp_path, 8)
    for name in folders:
        save_photos(tmp_path / name, 3)
    source = open_source(tmp_path)
    assert beside_classes(source) == []
    assert in_class_folders(source) is source
