"""What an image would take in memory is known from its header, and refused there."""

import io
import resource
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.decode import BadImage, Member, Row, decode, header
from ssl_vit.data.evalset import EvalDataset
from ssl_vit.data.sources import open_source
from tests.data.photo import Files
from tests.data.tiffs import tiff


def png_header(width: int, height: int, colours: int, depth: int = 8) -> bytes:
    """A PNG whose few bytes would become so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">2I5B", width, height, depth, colours, 0, 0, 0)
    data = zlib.compress(b"\0" * 10**6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def resized(data: bytes, old: tuple[int, int], new: tuple[int, int], form: str) -> bytes:
    """The file with other sides in its header."""
    assert data.count(struct.pack(form, *old)) == 1
    return data.replace(struct.pack(form, *old), struct.pack(form, *new))


def large() -> dict[str, tuple[bytes, str]]:
    flat = np.zeros((8, 8, 1), np.float32)
    jpeg = {"quality": 50, "subsampling": 0}
    return {
        "a long line": (png_header(99_000_000, 1, 0), "along a side"),
        "a TIFF of a giant tile": (tiff(np.zeros((8, 8, 1), np.uint8), more={322: 23168, 323: 23168}), "with tiles of"),
        "RGBA": (png_header(9999, 9999, 6), "of RGBA takes 400 MB"),
        "16-bit RGB": (png_header(9999, 9999, 2, 16), "takes 900 MB"),
        "floats": (tiff(flat, more={256: 9999, 257: 9999}), "takes 400 MB"),
        "bands": (tiff(np.zeros((8, 8, 8), np.uint8), more={256: 9999, 257: 9999}), "takes 800 MB"),
        "CMYK": (
            resized(saved(Image.new("CMYK", (77, 99)), "JPEG", **jpeg), (99, 77), (9999, 9999), ">2H"),
            "of CMYK takes 400 MB",
        ),
        "a progressive JPEG": (
            resized(saved(Image.new("RGB", (77, 99)), "JPEG", progressive=True), (99, 77), (9999, 9999), ">2H"),
            "takes 600 MB",
        ),
        "a GIF": (png_to_gif(), "takes 400 MB"),
    }


def png_to_gif() -> bytes:
    data = bytearray(saved(Image.new("P", (77, 99)), "GIF"))
    data[6:10] = struct.pack("<2H", 9999, 9999)
    return bytes(data)


LARGE = large()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", LARGE)
def test_what_takes_too_much_is_refused_by_its_header(case):
    data, reason = LARGE[case]
    for read in (header, decode):
        with pytest.raises(BadImage, match=reason):
            read(Row(Files(data), 0, case))


@pytest.mark.fault
def test_nothing_takes_memory_before_it_is_refused(tmp_path):
    for number, (data, _) in enumerate(LARGE.values()):
        (tmp_path / f"{number}.png").write_bytes(data)
    code = """
        import resource, sys, warnings
        from pathlib import Path
        from ssl_vit.data.decode import BadImage, decode
        warnings.simplefilter("ignore")
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20,) * 2)
        for path in sorted(Path(sys.argv[1]).iterdir()):
            try:
                decode(str(path))
            except BadImage as error:
                assert "memory" not in error.reason, error
                print(error.reason)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert len(done.stdout.splitlines()) == len(LARGE)
    assert done.stderr == ""


def test_a_member_that_claims_more_than_there_is_is_not_read(tmp_path):
    archive = tmp_path / "a.tar"
    archive.write_bytes(b"x" * 1024)
    with pytest.raises(BadImage, match="60,000,000,000 bytes, more than the"):
        decode(Member(str(archive), 512, 60_000_000_000, "a.jpg"))


def test_what_is_within_the_caps_does_not_need_many_times_as_much(tmp_path):
    """An image of 16 megapixels with opacity: 64 MB as it is, 48 MB as RGB."""
    Image.new("RGBA", (4000, 4000), (255, 0, 0, 51)).save(tmp_path / "a.png", compress_level=1)
    code = """
        import resource, sys
        from ssl_vit.data.decode import decode
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert decode(sys.argv[1])[0, 0].tolist() == [255, 204, 204]
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.png")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 240


def test_a_long_line_is_scored_by_its_middle(tmp_path):
    image = np.zeros((4, 60_000, 3), np.uint8)
    image[:, 30_000 - 2 : 30_000 + 2] = 255
    Image.fromarray(image).save(tmp_path / "a.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sample = EvalDataset(open_source(tmp_path), 224)[0]
    assert sample.image is not None
    assert sample.image.float().mean() > 200
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
