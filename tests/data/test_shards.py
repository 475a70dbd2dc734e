"""Archives against tarfile's own writing and reading, and what is wrong with them as users really have it."""

import bz2
import gzip
import io
import logging
import lzma
import os
import tarfile
import time
from itertools import chain

import fsspec
import numpy as np
import pytest
from PIL import Image

from ssl_vit.config import load_config
from ssl_vit.config.paths import check_data
from ssl_vit.data.decode import BadImage, decode, image_size
from ssl_vit.data.loader import StepSampler, build_loader
from ssl_vit.data.patterns import expand
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.sources import open_source
from ssl_vit.data.tar import DamagedTar, entries
from ssl_vit.errors import RunFailed, UserError
from tests.data.photo import decoded, photo

PLAN = ViewPlan((View("v", 2, 8, scale=(0.5, 1.0), flip_p=0.5),))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(20, 24, seed)).save(file, "PNG")
    return file.getvalue()


def archive(path, files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    """Three archives of four images, labels and metadata between them."""
    for shard in range(3):
        files = {}
        for i in range(4):
            number = 4 * shard + i
            folder = "cat" if number % 2 else "dog"
            files |= {f"{folder}/{number:03d}.png": png(number), f"{folder}/{number:03d}.cls": b"1"}
        archive(tmp_path / "set" / f"train-{shard:02d}.tar", files | {"sample.json": b"{}"} if shard == 0 else files)
    return tmp_path / "set"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_where_tarfile_sees_them(tmp_path, kind):
    long = "d" * 90 + "/" + "e" * 60 + "/" + "n" * 90 + ".png"  # ustar: prefix and name; GNU, pax: a header of its own
    odd = (
        {}
        if kind == tarfile.USTAR_FORMAT
        else {"caf\u00e9/" + "x" * 120 + "\u20ac.png": b"odd", "y" * 300 + ".png": b"y"}
    )
    archive(tmp_path / "a.tar", {"a.png": b"x" * 512, long: b"", "b/c.jpg": b"z" * 700, **odd}, kind)
    with tarfile.open(tmp_path / "a.tar", "a", format=kind) as tar:
        for name, type_ in (("folder", tarfile.DIRTYPE), ("link.png", tarfile.SYMTYPE), ("fifo.png", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type_, "/etc/passwd"
            tar.addfile(info)
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = [(m.name.encode("utf-8", "surrogateescape"), m.offset_data, m.size) for m in tar if m.isreg()]
    with open(tmp_path / "a.tar", "rb") as file:
        assert [tuple(e) for e in entries(file, os.path.getsize(tmp_path / "a.tar"))] == expected


def test_images_names_and_labels(shards):
    source = open_source(shards)
    assert len(source) == 12
    assert source.name(5) == "train-01.tar:cat/005.png"
    assert str(source.path(5)) == f"{shards}/train-01.tar:cat/005.png"
    assert source.classes == ("cat", "dog")
    assert [source.label(i) for i in range(4)] == [1, 0, 1, 0]
    assert source.skipped == {".cls files": 12, ".json files": 1}
    assert source.types == {"png": 12}
    for i in range(12):
        np.testing.assert_array_equal(decode(source.path(i)), decoded(png(i), "x"))
    assert image_size(source.path(3)) == (20, 24)


def test_braces_name_archives(shards):
    part = open_source(f"{shards}/train-{{01..02}}.tar")
    assert [part.name(i) for i in (0, 7)] == ["train-01.tar:dog/004.png", "train-02.tar:cat/011.png"]
    assert len(open_source(f"{shards}/train-00.tar")) == 4
    assert expand("s3://b/{a,c}-{9..11}.tar")[2:4] == ["s3://b/a-11.tar", "s3://b/c-9.tar"]


def test_a_missing_archive_is_named_before_anything_heavy(shards):
    pattern = f"{shards}/train-{{00..04}}.tar"
    with pytest.raises(UserError, match=r"2 of 5 archives missing, the first is .*train-03.tar"):
        check_data(load_config([], [], {"data.path": pattern}))
    with pytest.raises(UserError, match="counts down"):
        expand("a-{4..2}.tar")


def test_what_lies_beside_archives_is_counted(shards, tmp_path):
    archive(shards / "more.tar", {"9.png": png(9)})
    with tarfile.open(shards / "more.tar", "a") as tar:
        for type_ in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo("link.png")
            info.type, info.linkname = type_, "9.png"
            tar.addfile(info)
    (shards / "old.tar.gz").write_bytes(b"x")
    (shards / "README").write_bytes(b"x")
    left_out = open_source(shards).skipped
    assert left_out["links in archives"] == 2
    assert (left_out[".tar.gz files"], left_out["files without extension"]) == (1, 1)
    with pytest.raises(UserError, match="only tar archives are read"):
        check_data(load_config([], [], {"data.path": "s3://mine/photos"}))


def test_a_folder_with_images_is_a_folder(shards):
    (shards / "sub").mkdir()
    (shards / "sub" / "1.png").write_bytes(png(1))
    assert open_source(shards).name(0) == "sub/1.png"


def test_nothing_but_other_files(tmp_path):
    archive(tmp_path / "set" / "a.tar", {"1.txt": b"x", "2": b"no image", ".3.png": b"hidden"})
    found = "1 .txt files, 1 files without extension, 1 hidden entries"
    with pytest.raises(UserError, match=rf"set: no images .* in 1 archives; found {found}"):
        open_source(tmp_path / "set")


def test_a_key_names_one_image_of_its_archive(tmp_path):
    archive(tmp_path / "set" / "a.tar", {"x/1.png": b"1", "x/1.jpg": b"3"})
    with pytest.raises(UserError, match=r"a\.tar: two images have the key 'x/1'"):
        open_source(tmp_path / "set")


def test_each_archive_may_number_its_images_from_the_same(tmp_path):
    for folder in ("a", "b"):
        for shard in range(2):
            files = {f"{i:06d}.png": png(10 * shard + i + 5 * (folder == "b")) for i in range(3)}
            archive(tmp_path / folder / f"{shard:03d}.tar", files)
    source = open_source(tmp_path / "a")
    assert [source.name(i) for i in (0, 3)] == ["000.tar:000000.png", "001.tar:000000.png"]
    assert (decode(source.path(0)) != decode(source.path(3))).any()
    both = open_source(f"{tmp_path}/{{a,b}}/00{{0..1}}.tar")
    assert len({both.name(i) for i in range(12)}) == 12, "also where archives have one name"
    assert both.name(6) == "b/000.tar:000000.png"


def test_only_the_last_dot_of_a_name_counts(tmp_path):
    names = ["scan.2023.0001.png", "scan.2023.0002.png", "x/IMG.v2.jpg", "c.png", "c.1.png", "plain.png"]
    archive(tmp_path / "a.tar", {name: png(i) for i, name in enumerate(names)} | {"scan.2023.0001.txt": b"x"})
    source = open_source(tmp_path / "a.tar")
    assert [source.name(i) for i in range(len(source))] == [f"a.tar:{name}" for name in names]
    assert source.skipped == {".txt files": 1}


def test_what_lies_beside_an_image_under_its_key(tmp_path):
    pairs = {f"{i}.{side}.jpg": b"x" for i in range(3) for side in ("left", "right")}
    masked = {"7.jpg": b"x", "7.seg.png": b"a mask", "7.depth.PNG": b"x", "y/7.seg.png": b"of no other"}
    archive(tmp_path / "a.tar", pairs | masked)
    source = open_source(tmp_path / "a.tar")
    assert source.types == {"left.jpg": 3, "right.jpg": 3, "jpg": 1, "seg.png": 1}
    assert source.skipped == {"images beside another of their key, as KEY.seg.png beside KEY.png": 2}


def test_members_without_extension_are_told_by_their_first_bytes(tmp_path):
    archive(tmp_path / "a.tar", {"one": png(1), "two.0001": png(2), "three": b"text"})
    source = open_source(tmp_path / "a.tar")
    assert [source.name(i) for i in range(len(source))] == ["a.tar:one", "a.tar:two.0001"]
    np.testing.assert_array_equal(decode(source.path(1)), decoded(png(2), "x"))


@pytest.mark.parametrize("pattern", ["train-*.tar", "train-0?.tar", "train-{00..02}*.tar"])
def test_patterns_name_archives(shards, pattern):
    assert open_source(f"{shards}/{pattern}").fingerprint == open_source(shards).fingerprint
    check_data(load_config([], [], {"data.path": f"{shards}/{pattern}"}))
    several = [str(path) for path in sorted(shards.iterdir())]
    assert open_source(several).fingerprint == open_source(shards).fingerprint, "expanded by the shell"


def test_archives_further_down(shards, tmp_path):
    shards.rename(tmp_path / "down")
    (tmp_path / "root").mkdir()
    (tmp_path / "down").rename(tmp_path / "root" / "down")
    with pytest.raises(UserError, match=r"name all of them by a pattern: ['\"]?(.*\*\.tar)") as refused:
        open_source(tmp_path / "root")
    pattern = str(refused.value).split("pattern: ")[1].strip("'")
    assert len(open_source(pattern)) == 12


def test_archives_in_capitals(tmp_path):
    archive(tmp_path / "set" / "A.TAR", {"a.png": png(0), "b.png": png(1)})
    assert len(open_source(str(tmp_path / "set" / "A.TAR"))) == len(open_source(str(tmp_path / "set"))) == 2


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("a-{000000000..999999999}.tar", "names 1,000,000,000 paths; at most 100,000"),
        ("{0..99999}{0..99999}{0..99999}.tar", "names 1,000,000,000,000,000 paths"),
        ("{" + "0" * 5000 + ".." + "9" * 5000 + "}.tar", "a number of 5000 digits"),
        ("photos/{0..999999999}", "names 1,000,000,000 paths"),
        ("{a,b}" * 40 + ".tar", "names 1,099,511,627,776 paths"),
    ],
)
def test_braces_that_name_too_many(pattern, says):
    begun = time.process_time()
    with pytest.raises(UserError, match=says):
        check_data(load_config([], [], {"data.path": pattern}))
    assert time.process_time() - begun < 5, "before they are counted out"


@pytest.mark.parametrize("packer", [gzip, bz2, lzma])
def test_an_archive_that_is_compressed_says_so(shards, packer):
    path = shards / "train-01.tar"
    path.write_bytes(packer.compress(path.read_bytes()))
    with pytest.raises(UserError, match=r"train-01.tar: compressed by \w+, so .*unpack it"):
        open_source(shards)


def test_a_member_that_claims_more_than_memory(tmp_path, caplog):
    good = {f"{i}.png": png(i) for i in range(3)}
    archive(tmp_path / "a.tar", good)
    data = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    data += b"\0" * (-len(data) % 512)
    (tmp_path / "a.tar").write_bytes(data + header(name="huge.png", size=60 * 10**9) + b"\0" * 1024)
    source = open_source(tmp_path / "a.tar")
    assert len(source) == 4
    with pytest.raises(BadImage, match=r"huge.png: 60,000,000,000 bytes, more than the 2,000,000,000 allowed"):
        decode(source.path(3))
    read = batches(source, batch_size=2, max_bad=0.5)
    assert {name for batch in read for name, _ in batch.bad} == {"a.tar:huge.png"}


def test_headers_are_read_once_until_the_archive_changes(shards, monkeypatch):
    first = open_source(shards)
    monkeypatch.setattr("ssl_vit.data.shards.entries", lambda *_: pytest.fail("headers were read again"))
    again = open_source(shards)
    assert [again.path(i) for i in range(12)] == [first.path(i) for i in range(12)]
    assert again.fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(shards.parent / "cache"))
    archive(shards / "train-02.tar", {"cat/new.png": png(40)})
    assert len(open_source(shards)) == 9


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "folder"])
def test_a_damaged_cache_is_made_again(shards, tmp_path, damage):
    first = open_source(shards)
    for path in (tmp_path / "cache" / "ssl_vit" / "shards").iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes({"empty": b"", "cut": data[:-50], "flipped": bytes(data), "text": b"x"}.get(damage, b""))
        if damage == "folder":
            path.unlink()
            path.mkdir()
    again = open_source(shards)
    assert [again.path(i) for i in range(12)] == [first.path(i) for i in range(12)]


def test_no_place_for_a_cache(shards, monkeypatch):
    (shards.parent / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(shards.parent / "file"))
    assert len(open_source(shards)) == 12


def batches(source, **options):
    return list(build_loader(source, PLAN, **{"batch_size": 4, "seed": 7, "total_steps": 6} | options))


def test_batches_are_those_of_the_unpacked_folder(shards, tmp_path):
    """Order, views and exact resuming are the folder's, for any number of workers and ranks."""
    for path in sorted(shards.iterdir()):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "folder", filter="data")
    folder = open_source(tmp_path / "folder")
    place = {folder.name(i): i for i in range(12)}
    source = open_source(shards)
    seen = []
    for batch in batches(source, workers=2):
        seen.append([place[source.name(i).partition(":")[2]] for i in batch.index.tolist()])
    orders = list(StepSampler(12, 4, seed=7, total_steps=6))
    assert [[place[source.name(i).partition(":")[2]] for _, i in items] for items in orders] == seen
    epochs = [sorted(chain(*seen[first : first + 3])) for first in (0, 3)]
    assert epochs == [list(range(12))] * 2, "every image once an epoch"
    ranks = [batches(source, batch_size=2, rank=r, world=2, start_step=2) for r in range(2)]
    resumed = [
        [place[source.name(i).partition(":")[2]] for b in pair for i in b.index.tolist()]
        for pair in zip(*ranks, strict=True)
    ]
    assert resumed == seen[2:]


def test_fewer_archives_than_readers_are_said(shards, caplog):
    source = open_source(shards)
    with caplog.at_level(logging.INFO):
        source.shared_by(3)
        assert not caplog.records
        source.shared_by(4)
    assert "3 archives for 4 reading processes; images, not archives, are divided" in caplog.text


def test_a_truncated_archive(shards, caplog):
    path = shards / "train-02.tar"
    with tarfile.open(path) as tar:
        last = tar.getmember("cat/011.png")
    os.truncate(path, last.offset_data + 100)
    source = open_source(shards)
    assert len(source) == 12
    with pytest.raises(BadImage, match=r"train-02.tar:cat/011.png: truncated: 100 of \d+ bytes are in the archive"):
        decode(source.path(11))
    with caplog.at_level(logging.WARNING):
        read = batches(source, max_bad=0.1)
    assert any("train-02.tar: it ends without an end mark" in r.getMessage() for r in caplog.records)
    assert {name for batch in read for name, _ in batch.bad} == {"train-02.tar:cat/011.png"}
    with pytest.raises(RunFailed, match=r"1 of 12 images .*train-02.tar:cat/011.png \(truncated"):
        batches(source, max_bad=0.05)


def test_a_damaged_header(shards, caplog):
    path = shards / "train-01.tar"
    with tarfile.open(path) as tar:
        third = tar.getmember("dog/006.png")
    with open(path, "r+b") as file:
        file.seek(third.offset)
        file.write(b"\xff" * 512)
    source = open_source(shards)
    assert len(source) == 10
    assert source.lost == (path.stat().st_size - third.offset) / sum(p.stat().st_size for p in shards.iterdir())
    with caplog.at_level(logging.WARNING):
        batches(source, max_bad=0.4)
    assert any(f"train-01.tar: no header at byte {third.offset}" in r.getMessage() for r in caplog.records)
    with pytest.raises(RunFailed, match=r"23\.3% of the archives can't be read.*train-01.tar: no header at byte"):
        batches(source, max_bad=0.05)


def header(**fields) -> bytes:
    info = tarfile.TarInfo("x.png")
    for name, value in fields.items():
        setattr(info, name, value)
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not a tar file at all" * 50, "no header at byte 0"),
        (b"\x1f\x8b" + b"\0" * 600, "no header at byte 0"),  # compressed
        (header(size=2**70) + b"\0" * 1024, f"a file of {2**70} bytes"),
        (header(size=-512) + b"\0" * 1024, "a file of -512 bytes"),
        (header(size=2**40, type=tarfile.GNUTYPE_LONGNAME) + b"\0" * 1024, "a name of 1099511627776 bytes"),
        (header(size=11, type=tarfile.XHDTYPE) + b"11 size=-5\n" + b"\0" * 1501, "broken size"),
        (header(size=12, type=tarfile.XHDTYPE) + b"99999 path=x" + b"\0" * 1500, "broken attributes"),
        (header(size=10), "without an end mark"),
    ],
)
def test_what_is_no_archive(data, reason):
    with pytest.raises(DamagedTar) as caught:
        list(entries(io.BytesIO(data), len(data)))
    assert reason in caught.value.reason


def test_archives_behind_a_url(shards):
    memory = fsspec.filesystem("memory")
    for path in sorted(shards.iterdir()):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    source, local = open_source("memory://bucket/train-{00..02}.tar"), open_source(shards)
    assert source.fingerprint == local.fingerprint
    np.testing.assert_array_equal(decode(source.path(7)), decode(local.path(7)))
    memory.rm("/bucket/train-01.tar")
    with pytest.raises(BadImage, match="FileNotFoundError"):
        decode(source.path(7))
    with pytest.raises(UserError, match=r"memory://bucket/train-01.tar: cannot be"):
        open_source("memory://bucket/train-{00..02}.tar")
