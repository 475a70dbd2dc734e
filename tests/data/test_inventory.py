"""What has changed between two looks at a set of images, named."""

import os
import shutil
from pathlib import Path

import pytest

from ssl_vit.data import inventory
from ssl_vit.data.inventory import changes, read_inventory, take_inventory, write_inventory
from ssl_vit.data.sources import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.png").write_bytes(b"pixel%d" % i)
    return tmp_path / "images"


@pytest.fixture(params=["content", "times"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the set counts as too large for its files to be read."""
    if request.param == "times":
        monkeypatch.setattr(inventory, "CONTENT", 1)
    return request.param == "times"


def look(folder: Path | str) -> inventory.Inventory:
    return take_inventory(open_source(folder))


def edit(path: Path) -> None:
    """Other bytes of the same number, at another time whatever the clock of the file system."""
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**10))


def test_what_is_added_removed_and_changed_is_named(folder: Path, large: bool) -> None:
    before = look(folder)
    assert len(before.digests) == (0 if large else 4)
    assert not changes(before, look(folder))
    edit(folder / "2.png")
    found = changes(before, look(folder))
    assert str(found) == "1 changed: 2.png"
    (folder / "0.png").unlink()
    (folder / "new\n.png").write_bytes(b"x")
    (folder / "3.png").write_bytes(b"longer than it was")
    assert str(changes(before, look(folder))) == r"1 added: new\x0a.png; 1 removed: 0.png; 2 changed: 2.png, 3.png"


def test_a_copy_is_the_same_set(folder: Path, tmp_path: Path, large: bool) -> None:
    before = look(folder)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in (tmp_path / "copy").iterdir():
        os.utime(path, ns=(0, 10**18))
    found = changes(before, look(tmp_path / "copy"))
    assert not found
    assert found.copied == large, "said, where the times alone are known"


def test_times_that_a_file_system_has_rounded_are_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "CONTENT", 1)
    before = look(folder)
    os.utime(folder / "1.png", ns=(0, (folder / "1.png").stat().st_mtime_ns // 10**9 * 10**9))
    assert not changes(before, look(folder))


def test_content_counts_whatever_the_time(folder: Path) -> None:
    before, status = look(folder), (folder / "1.png").stat()
    edit(folder / "1.png")
    os.utime(folder / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert str(changes(before, look(folder))) == "1 changed: 1.png"


def test_another_order_is_said(folder: Path) -> None:
    listing = folder / "list.txt"
    listing.write_text("0.png\n1.png\n")
    before = look(listing)
    listing.write_text("1.png\n0.png\n")
    found = changes(before, look(listing))
    assert found
    assert str(found) == "the same images in another order"


def test_it_is_kept_in_a_file_and_a_damaged_one_counts_as_none(folder: Path, tmp_path: Path) -> None:
    before, path = look(folder), tmp_path / "images.npz"
    assert read_inventory(path) is None
    write_inventory(path, before)
    kept = read_inventory(path)
    assert kept is not None
    assert not changes(kept, before)
    assert kept.names == before.names
    path.write_bytes(path.read_bytes()[:100])
    assert read_inventory(path) is None
