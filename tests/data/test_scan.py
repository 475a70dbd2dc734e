"""The quick report on a source."""

import pytest
from PIL import Image

from ssl_vit.data import measure as module
from ssl_vit.data.decode import Header
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import open_source


def test_counts_and_sides(tmp_path):
    for number, (width, height) in enumerate([(10, 20), (30, 25), (400, 300)]):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    report = scan(open_source(tmp_path))
    assert report == {
        "images": 4,
        "bytes": sum(file.stat().st_size for file in tmp_path.iterdir()),
        "types": {"png": 3, "jpg": 1},
        "classes": 0,
        "skipped": {},
        "sampled": 4,
        "unreadable": ["bad.jpg: empty, or no JPEG, PNG, WebP, BMP, TIFF or GIF image"],
        "modes": {"RGB": 3},
        "stacks": 0,
        "sides": {"short": {"min": 10, "median": 25, "max": 300}, "long": {"min": 20, "median": 30, "max": 400}},
    }


def test_nothing_readable(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert scan(open_source(tmp_path))["sides"] is None


@pytest.mark.parametrize("count", [256, 257, 1000])
def test_a_sample_is_spread_over_the_whole(tmp_path, count, monkeypatch):
    for number in range(count):
        (tmp_path / f"{number:04d}.png").write_bytes(b"")
    read = []
    said = Header(8, 8, "uint8", 1, "colours", "PNG", "L")
    monkeypatch.setattr(module, "header", lambda path: read.append(path) or said)
    assert scan(open_source(tmp_path))["sampled"] == len(read) == 256
    assert read[0].endswith("0000.png")
    assert read[-1].endswith(f"{count - 1:04d}.png")
