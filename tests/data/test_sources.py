"""Folders and lists as users really have them."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ssl_vit.cli import main
from ssl_vit.config import check_data, dump, load_config
from ssl_vit.config.paths import check_images
from ssl_vit.data.decode import decode
from ssl_vit.data.folder import LINKS_HINT
from ssl_vit.data.left_out import left_out
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
    kinds = ("jpg", "jpeg", "jpe", "jfif", "mpo", "png", "apng", "webp", "bmp", "dib", "tif", "tiff", "gif", "JFIF")
    for extension in kinds:
        touch(tmp_path / f"x.{extension}")
    assert len(open_source(tmp_path)) == len(kinds)


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
        "broken links": 2,
        "entries that are no regular files": 1,
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


def test_pictures_of_a_run_are_no_images_of_the_folder_that_it_lies_in(tmp_path):
    run = [tmp_path / "runs" / "a" / name for name in ("config.yaml", "environment.json", "train.log", "regions.png")]
    touch(tmp_path / "a.png", tmp_path / "own" / "config.yaml", tmp_path / "own" / "b.png", *run)
    source = open_source(tmp_path)
    assert names(source) == ["a.png", "own/b.png"]
    assert source.skipped == {"folders of runs": 1, ".yaml files": 1}


def test_a_folder_that_cannot_be_read_is_counted(tmp_path, monkeypatch):
    touch(tmp_path / "ok" / "1.png", tmp_path / "shut" / "2.png")
    scandir = os.scandir

    def guarded(path):
        if os.fsencode(path).endswith(b"shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
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
    with pytest.raises(UserError, match="1 links that lead out of the folder; to follow them, add --outside-links"):
        open_source(tmp_path / "linked")


@pytest.fixture
def curated(tmp_path):
    """Two classes of which one is a linked folder, and of the other two images of three are links."""
    root, pool = tmp_path / "curated", tmp_path / "pool"
    touch(root / "cat" / "0.png", *(pool / f"{i}.png" for i in range(4)), pool / "dogs" / "5.png")
    for i in range(2):
        (root / "cat" / f"link{i}.png").symlink_to(pool / f"{i}.png")
    (root / "dog").symlink_to(pool / "dogs")
    return root


def test_links_that_lead_out_are_said_or_followed(curated):
    source = open_source(curated)
    assert names(source) == ["cat/0.png"]
    said = left_out(source)
    assert said.startswith("3 links that lead out of the folder (to follow them, add --outside-links (in a config")
    followed = open_source(curated, outside_links=True)
    assert names(followed) == ["cat/0.png", "cat/link0.png", "cat/link1.png", "dog/5.png"]
    assert followed.classes == ("cat", "dog")
    assert left_out(followed) == ""


@pytest.mark.parametrize("command", ["pretrain", "bench", "pack", "embed", "compare", "eval knn", "eval shapebias"])
def test_the_flag_that_the_hint_names_is_one_of_every_command(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    assert ended.value.code == 0
    assert LINKS_HINT.split()[4] in capsys.readouterr().out


def test_the_setting_that_the_hint_names_is_one_of_a_configuration(curated, tmp_path):
    (tmp_path / "c.yaml").write_text(f"data: {{path: {curated}, outside_links: true}}")
    assert load_config([tmp_path / "c.yaml"]).data.outside_links
    assert not load_config(flags={"data.path": str(curated)}).data.outside_links


def test_files_without_extension_are_told_by_their_first_bytes(tmp_path):
    kinds = ("jpeg", "png", "gif", "bmp", "tiff", "webp")
    for kind in kinds:
        Image.new("RGB", (4, 4)).save(tmp_path / kind, kind)
        (tmp_path / kind).rename(tmp_path / f"scan.{len(kind):04d}{kinds.index(kind)}")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain", "png")
    touch(tmp_path / "README", tmp_path / "scan.9999", tmp_path / "empty", content=b"")
    source = open_source(tmp_path)
    assert len(source) == 7
    assert all(decode(source.path(i)).shape == (4, 4, 3) for i in range(7))
    assert source.skipped == {"files without extension": 3}


def test_what_is_no_image_is_counted_by_kind(tmp_path):
    touch(*(tmp_path / f"x.{kind}" for kind in ("png", "ppm", "pgm", "jp2", "avif", "npy", "dcm", "tar.gz")))
    touch(*(tmp_path / "more" / f"{i}.dcm" for i in range(4)))
    source = open_source(tmp_path)
    assert sum(source.skipped.values()) == 11
    assert left_out(source).startswith("5 .dcm files, 1 .")
    assert source.skipped[".tar.gz files"] == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_in_any_encoding(tmp_path, encoding, end):
    touch(tmp_path / "a.png", tmp_path / "snö" / "b.png")
    (tmp_path / "list.txt").write_bytes(end.join(["a.png", "", "snö/b.png ", ""]).encode(encoding))
    assert names(open_source(tmp_path / "list.txt")) == ["a.png", "snö/b.png"]


def test_a_list_as_find_print0_writes_it(tmp_path):
    touch(tmp_path / "a\nb.png", tmp_path / "c.png")
    (tmp_path / "list.txt").write_bytes(b"a\nb.png\0c.png\0")
    source = open_source(str(tmp_path / "list.txt"))
    assert [source.name(i) for i in range(len(source))] == ["a\nb.png", "c.png"]


def test_a_list_that_is_cut_and_one_with_labels(tmp_path):
    touch(tmp_path / "a.png")
    (tmp_path / "list.txt").write_bytes("a.png\n".encode("utf-16")[:-1])
    with pytest.raises(UserError, match=r"list.txt: cannot be read as UTF-16 .*save it as UTF-8"):
        open_source(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a.png 0\n")
    with pytest.raises(UserError, match=r"line 1: 'a.png 0' is no image .* a path alone, without a label"):
        open_source(tmp_path / "list.txt")


def test_several_folders_are_one_source(tmp_path):
    touch(tmp_path / "a" / "cat" / "1.png", tmp_path / "a" / "dog" / "2.jpg", tmp_path / "a" / "x.txt")
    touch(tmp_path / "b" / "dog" / "1.png", tmp_path / "b" / "eel" / "1.png", content=b"xyz")
    paths = [tmp_path / "b", str(tmp_path / "a")]
    source = open_source(paths)
    expected = ["b/dog/1.png", "b/eel/1.png", "a/cat/1.png", "a/dog/2.jpg"]
    assert names(source) == [f"{tmp_path}/{name}" for name in expected]
    assert [source.path(i) for i in range(4)] == names(source)
    assert source.classes == ("cat", "dog", "eel")
    assert [source.label(i) for i in range(4)] == [1, 2, 0, 1]
    assert source.fingerprint["images"] == len(source) == 4
    assert source.fingerprint["bytes"] == 8
    assert source.fingerprint != open_source(paths[::-1]).fingerprint
    assert source.skipped == {".txt files": 1}
    assert names(pickle.loads(pickle.dumps(source))) == names(source)
    for folder in ("a", "b"):
        assert names(open_source([tmp_path / folder])) == names(open_source(tmp_path / folder))


def test_several_that_count_images_twice_or_do_not_go_together(tmp_path):
    touch(tmp_path / "a" / "1.png", tmp_path / "a" / "b" / "1.png", tmp_path / "a-b" / "1.png")
    (tmp_path / "same").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="is given twice"):
        open_source([tmp_path / "a", tmp_path / "a-b", tmp_path / "same"])
    with pytest.raises(UserError, match=r"a/b: lies within .*/a, so that its images would count twice"):
        open_source([tmp_path / "a" / "b", tmp_path / "a-b", tmp_path / "a"])
    with pytest.raises(UserError, match=r"1.png is a single image and .*a-b is none"):
        open_source([tmp_path / "a" / "1.png", tmp_path / "a-b"])


def test_several_data_on_the_command_line_and_in_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {path: [a, b]}")
    config = load_config([tmp_path / "c.yaml"])
    assert config.data.path == ("a", "b")
    (tmp_path / "d.yaml").write_text(dump(config))
    assert load_config([tmp_path / "d.yaml"]) == config
    assert load_config(flags={"data.path": ["a", "b"]}).data.path == ("a", "b")
    with pytest.raises(UserError, match="b: no such folder"):
        check_data(load_config(flags={"data.path": [str(tmp_path), "b"]}))


def test_patterns_name_images_folders_and_lists(tmp_path):
    touch(*(tmp_path / folder / f"{i}.png" for folder in "ab" for i in range(3)), tmp_path / "a" / "n.md")
    assert len(open_source(f"{tmp_path}/*/")) == 6
    assert names(open_source(f"{tmp_path}/{{b,a}}"))[::3] == [f"{tmp_path}/b/0.png", f"{tmp_path}/a/0.png"]
    pictures = open_source(f"{tmp_path}/*/[01].png")
    assert names(pictures) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert pictures.classes == ("a", "b")
    beside = open_source(f"{tmp_path}/a/*")
    assert (len(beside), beside.skipped) == (3, {".md files": 1})
    assert len(open_source([f"{tmp_path}/a/0.png", f"{tmp_path}/b/1.png"])) == 2, "expanded by the shell"
    with pytest.raises(UserError, match=r"\*\.gif: nothing is there; check the pattern"):
        check_images(f"{tmp_path}/*.gif", "images")
    with pytest.raises(UserError, match=r"for 1 of 2 names, as .*/c, nothing is there"):
        open_source(f"{tmp_path}/{{a,c}}")
    touch(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"/\*: names 2 folders and 1 files, the first .*c.png; end it with / "):
        open_source(f"{tmp_path}/*")
    touch(tmp_path / "odd[1]" / "1.png")
    assert len(open_source(f"{tmp_path}/odd[1]")) == 1, "a folder's own name"


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("a.tar.gz", r"compressed, .* unpack it into a folder \(tar -xf FILE -C FOLDER\) and pass that"),
        ("a.tgz", "tar -xf FILE"),
        ("a.zip", "unzip FILE -d FOLDER"),
        ("a.parquet", "read by the library datasets; pass the folder as hf:"),
        ("a.arrow", "pass the folder as hf:"),
        ("a.csv", "one path a line to a text file"),
        ("a.dcm", "write its images to a folder, as PNG"),
        ("a.mp4", "ffmpeg"),
        ("a.odt", "neither a folder nor a list"),
    ],
)
def test_what_a_file_is_that_is_no_source_and_what_to_do(tmp_path, name, do):
    touch(tmp_path / "set" / name)
    with pytest.raises(UserError, match=do) as alone:
        open_source(tmp_path / "set" / name)
    assert "\n" not in str(alone.value)
    instead = do if name != "a.odt" else "pass a folder of images"
    with pytest.raises(UserError, match=f"no images .* found 1 .*{instead}"):
        open_source(tmp_path / "set")


def test_a_single_image(tmp_path):
    touch(tmp_path / "one.png")
    with pytest.raises(UserError, match=f"a single image; pass its folder, {tmp_path}$"):
        open_source(tmp_path / "one.png")


def test_require_a_batch(tmp_path):
    touch(tmp_path / "1.png", tmp_path / "2.png")
    require(open_source(tmp_path), 2)
    with pytest.raises(UserError, match="2 images are fewer than a batch of 3"):
        require(open_source(tmp_path), 3)


def test_two_million_names_are_three_objects(tmp_path):
    touch(*(tmp_path / f"{i:04d}.png" for i in range(300)))
    source = open_source(tmp_path)
    assert len(pickle.dumps(source)) < 300 * 4 * 8 + 2500, "8 bytes a name, an offset, a size and a time"
    assert names(pickle.loads(pickle.dumps(source))) == names(source)


def test_needs_no_torch():
    code = "import sys, ssl_vit.data.sources, ssl_vit.data.scan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
