"""Folders and lists as users really have them."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_vit.data import sources
from ssl_vit.data.sources import open_source, require
from ssl_vit.errors import UserError


def touch(*paths: Path | bytes, content: bytes = b"x") -> None:
    for path in paths:
        os.makedirs(os.path.dirname(os.fsencode(path)), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_flat_folder_sorted_without_labels(tmp_path):
    touch(tmp_path / "b.JPG", tmp_path / "a.png", tmp_path / "c.jpeg", tmp_path / "notes.txt")
    source = open_source(tmp_path)
    assert names(source) == ["a.png", "b.JPG", "c.jpeg"]
    assert [source.path(i) for i in range(3)] == [str(tmp_path / n) for n in ("a.png", "b.JPG", "c.jpeg")]
    assert source.classes == ()
    assert source.label(0) is None
    assert source.types == {"png": 1, "jpg": 1, "jpeg": 1}
    assert source.skipped == {".txt files": 1}


def test_every_extension_is_found(tmp_path):
    for extension in ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif"):
        touch(tmp_path / f"x.{extension}")
    assert len(open_source(tmp_path)) == 8


def test_labels_are_first_level_folders(tmp_path):
    touch(tmp_path / "dog" / "2.png", tmp_path / "cat" / "deep" / "er" / "1.png", tmp_path / "dog" / "cat" / "3.png")
    source = open_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert [(source.name(i), source.label(i)) for i in range(3)] == [
        ("cat/deep/er/1.png", 0),
        ("dog/2.png", 1),
        ("dog/cat/3.png", 1),
    ]
    assert source.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize("files", [["a/1.png", "2.png"], ["a/1.png", "a/2.png"]])
def test_no_labels_where_folders_do_not_divide_all_images(tmp_path, files):
    touch(*(tmp_path / file for file in files))
    assert open_source(tmp_path).classes == ()


def test_links_loops_and_things_that_are_no_files(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root / "a" / "1.png", root / "z" / "2.png", outside / "3.png", outside / "deep" / "4.png", root / ".hid.png")
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "to_z").symlink_to(root / "z")
    (root / "self.png").symlink_to(root / "self.png")
    (root / "dangling.png").symlink_to(root / "nothing.png")
    (root / "inner.png").symlink_to(root / "z" / "2.png")
    (root / "out").symlink_to(outside)
    (root / "out.png").symlink_to(outside / "3.png")
    (root / "null.png").symlink_to("/dev/null")
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.jpg")
    source = open_source(root)
    assert names(source) == ["a/1.png", "inner.png", "z/2.png"]
    assert source.skipped == {
        "links that lead out of the folder": 3,
        "entries that are no regular files": 3,
        "hidden entries": 1,
    }
    followed = open_source(root, outside_links=True)
    assert names(followed) == ["a/1.png", "inner.png", "out.png", "out/3.png", "out/deep/4.png", "z/2.png"]


def test_linked_folders_that_link_back_end(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    touch(root / "1.png", outside / "2.png")
    (root / "x").symlink_to(outside)
    (root / "y").symlink_to(outside)
    (outside / "back").symlink_to(root)
    assert names(open_source(root, outside_links=True)) == ["1.png", "x/2.png"]


def test_a_root_that_is_itself_a_link(tmp_path):
    touch(tmp_path / "real" / "1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(open_source(tmp_path / "link")) == ["1.png"]


def test_names_that_are_not_utf8_or_hold_newlines(tmp_path):
    root = os.fsencode(tmp_path)
    odd = [b"caf\xe9.png", b"line\nbreak.png", "snö.png".encode()]
    touch(*(os.path.join(root, name) for name in odd), content=b"abc")
    source = open_source(tmp_path)
    assert sorted(os.fsencode(name) for name in names(source)) == sorted(odd)
    assert all(Path(source.path(i)).read_bytes() == b"abc" for i in range(3))


def test_a_folder_that_cannot_be_read_is_counted(tmp_path, monkeypatch):
    touch(tmp_path / "ok" / "1.png", tmp_path / "shut" / "2.png")
    scandir = os.scandir

    def guarded(path):
        if os.fsencode(path).endswith(b"shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(sources.os, "scandir", guarded)
    source = open_source(tmp_path)
    assert names(source) == ["ok/1.png"]
    assert source.skipped == {"folders that cannot be read": 1}


def test_fingerprint_sees_names_sizes_and_nothing_else(tmp_path):
    def fingerprint(folder, files):
        for name, content in files.items():
            touch(tmp_path / folder / name, content=content)
        return open_source(tmp_path / folder).fingerprint

    base = fingerprint("a", {"1.png": b"xx", "2.png": b"y"})
    assert base["images"] == 2
    assert base["bytes"] == 3
    assert base == fingerprint("b", {"2.png": b"y", "1.png": b"xx"})
    assert base["sha256"] != fingerprint("c", {"1.png": b"x", "2.png": b"yy"})["sha256"]
    assert base["sha256"] != fingerprint("d", {"1.png": b"xx", "3.png": b"y"})["sha256"]


def test_list_of_files(tmp_path):
    touch(tmp_path / "set" / "b" / "1.png", tmp_path / "set" / "a" / "2.jpg", tmp_path / "far" / "3.png")
    listing = tmp_path / "set" / "images.txt"
    listing.write_text("b/1.png\r\n\na/2.jpg\n")
    source = open_source(listing)
    assert names(source) == ["b/1.png", "a/2.jpg"], "the list's own order"
    assert source.path(1) == str(tmp_path / "set" / "a" / "2.jpg")
    assert [source.classes[source.label(i)] for i in range(2)] == ["b", "a"]
    listing.write_text(f"a/2.jpg\n../far/3.png\n{tmp_path}/far/3.png\n")
    source = open_source(listing)
    assert source.classes == ()
    assert all(os.path.exists(source.path(i)) for i in range(3))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a.png\nmissing.png\n", r"line 2: 'missing.png' cannot be read"),
        ("a.png\nnotes.doc\n", r"line 2: 'notes.doc' is no image"),
        ("folder.png\n", r"line 1: 'folder.png' is not a regular file"),
        ("\n\n", r"the list is empty"),
    ],
)
def test_lists_with_mistakes(tmp_path, text, problem):
    touch(tmp_path / "a.png", tmp_path / "folder.png" / "x")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=problem):
        open_source(tmp_path / "list.txt")


def test_what_is_no_source(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(UserError, match="the folder is empty"):
        open_source(tmp_path)
    touch(tmp_path / "texts" / "a.txt", tmp_path / "texts" / "b.txt", tmp_path / "texts" / "README")
    with pytest.raises(UserError, match=r"found 2 \.txt files, 1 files without extension"):
        open_source(tmp_path / "texts")
    touch(tmp_path / "one.png")
    with pytest.raises(UserError, match="neither a folder nor a list"):
        open_source(tmp_path / "one.png")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "x.png").symlink_to(tmp_path / "one.png")
    with pytest.raises(UserError, match="1 links that lead out of the folder; copy the images into the folder"):
        open_source(tmp_path / "linked")


def test_require_a_batch(tmp_path):
    touch(tmp_path / "1.png", tmp_path / "2.png")
    require(open_source(tmp_path), 2)
    with pytest.raises(UserError, match="2 images are fewer than a batch of 3"):
        require(open_source(tmp_path), 3)


def test_two_million_names_are_three_objects(tmp_path):
    touch(*(tmp_path / f"{i:04d}.png" for i in range(300)))
    source = open_source(tmp_path)
    assert len(pickle.dumps(source)) < 300 * (8 + 8) + 2000, "8 bytes a name, 8 an offset"
    assert names(pickle.loads(pickle.dumps(source))) == names(source)


def test_needs_no_torch():
    code = "import sys, ssl_vit.data.sources, ssl_vit.data.scan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
