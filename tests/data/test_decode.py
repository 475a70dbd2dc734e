"""Golden pixels for every mode, and a zoo of files that are no images."""

import io
import os
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.decode import BadImage, Row, decode, header, image_size
from ssl_vit.data.values import EACH
from ssl_vit.process import leave_pillow_unsaid
from tests.data.photo import Files, decoded, photo

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def two_pixels(mode: str, left, right, palette: list[int] | None = None) -> Image.Image:
    image = Image.new(mode, (2, 1))
    if palette:
        image.putpalette(palette)
    image.putpixel((0, 0), left)
    image.putpixel((1, 0), right)
    return image


PALETTE = [*RED, *BLUE]
GOLDEN = {
    "RGB": (encoded(two_pixels("RGB", RED, (1, 2, 3))), [RED, (1, 2, 3)]),
    "L": (encoded(two_pixels("L", 7, 200)), [(7,) * 3, (200,) * 3]),
    "1": (encoded(two_pixels("1", 0, 1)), [BLACK, WHITE]),
    "LA on white": (encoded(two_pixels("LA", (0, 255), (0, 51))), [BLACK, (204,) * 3]),
    "RGBA on white": (encoded(two_pixels("RGBA", (*RED, 255), (*BLUE, 51))), [RED, (204, 204, 255)]),
    "RGBA clear": (encoded(two_pixels("RGBA", (*RED, 0), (*BLUE, 0))), [WHITE, WHITE]),
    "P": (encoded(two_pixels("P", 0, 1, PALETTE)), [RED, BLUE]),
    "P with alpha": (encoded(two_pixels("P", 0, 1, PALETTE), transparency=bytes([255, 51])), [RED, (204, 204, 255)]),
    "P with one clear": (encoded(two_pixels("P", 0, 1, PALETTE), transparency=1), [RED, WHITE]),
    "L with a clear grey": (encoded(two_pixels("L", 7, 200), transparency=7), [WHITE, (200,) * 3]),
    "RGB with a clear colour": (encoded(two_pixels("RGB", RED, BLUE), transparency=RED), [WHITE, BLUE]),
    "CMYK": (encoded(two_pixels("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "TIFF"), [RED, BLACK]),
    "16-bit PNG": (encoded(Image.fromarray(np.array([[257 * 7, 65535]], np.uint16))), [(7,) * 3, WHITE]),
    "16-bit PNG, dark": (encoded(Image.fromarray(np.array([[0, 300]], np.uint16))), [BLACK, (1,) * 3]),
    "16-bit TIFF": (encoded(Image.fromarray(np.array([[257 * 7, 40000]], np.uint16)), "TIFF"), [(7,) * 3, (156,) * 3]),
    "big-endian 16-bit TIFF": (
        encoded(Image.frombytes("I;16B", (2, 1), np.array([257 * 7, 65535], ">u2").tobytes()), "TIFF"),
        [(7,) * 3, WHITE],
    ),
    "32-bit as 16": (encoded(Image.fromarray(np.array([[0, 257 * 9]], np.int32)), "TIFF"), [BLACK, (9,) * 3]),
    "32-bit stretched": (encoded(Image.fromarray(np.array([[-1000, 1000000]], np.int32)), "TIFF"), [BLACK, WHITE]),
    "float of 0 to 1": (encoded(Image.fromarray(np.array([[0.2, 1.0]], np.float32)), "TIFF"), [(51,) * 3, WHITE]),
    "float of 0 to 255": (
        encoded(Image.fromarray(np.array([[51.2, 200]], np.float32)), "TIFF"),
        [(51,) * 3, (200,) * 3],
    ),
    "float stretched": (encoded(Image.fromarray(np.array([[-2.0, 900.0]], np.float32)), "TIFF"), [BLACK, WHITE]),
    "float constant": (encoded(Image.fromarray(np.full((1, 2), 900, np.float32)), "TIFF"), [BLACK, BLACK]),
    "WebP": (encoded(two_pixels("RGBA", (*RED, 255), (*BLUE, 51)), "WEBP", lossless=True), [RED, (204, 204, 255)]),
    "BMP": (encoded(two_pixels("RGB", RED, BLUE), "BMP"), [RED, BLUE]),
    "first frame of a GIF": (
        encoded(two_pixels("RGB", RED, BLUE), "GIF", save_all=True, append_images=[two_pixels("RGB", BLACK, BLACK)]),
        [RED, BLUE],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_pixels(case):
    data, expected = GOLDEN[case]
    actual = decoded(data, case, pixels=EACH)
    assert actual.dtype == np.uint8
    assert actual.tolist() == [[list(pixel) for pixel in expected]]
    if header(Row(Files(data), 0, case)).kind == "uint8":
        np.testing.assert_array_equal(decoded(data, case), actual)
    else:
        with pytest.raises(BadImage, match=r"data\.range"):
            decoded(data, case)


def test_cmyk_jpeg_is_near_its_colours():
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(decoded(data, "cmyk").astype(int) - RED).max() <= 4


UPRIGHT = np.array([[10, 60, 110], [160, 210, 250]], np.uint8)  # what the viewer should see
STORED = {  # EXIF 2.32, tag 0x0112: where row 0 and column 0 of the file are in the upright picture
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT[:, ::-1].T,
    7: UPRIGHT[::-1, ::-1].T,
    8: UPRIGHT[::-1].T,
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(kind, orientation):
    large = np.kron(STORED[orientation], np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    picture = decoded(encoded(Image.fromarray(large).convert("RGB"), kind, exif=exif, **options), kind)
    assert picture.shape == (32, 48, 3)
    assert np.abs(picture[8::16, 8::16, 0].astype(int) - UPRIGHT).max() <= 3


def test_a_large_jpeg_is_drafted_down_to_what_is_wanted():
    picture = np.kron(photo(150, 200), np.ones((8, 8, 1), np.uint8))  # 1200 x 1600
    data = encoded(Image.fromarray(picture), "JPEG", quality=95)
    assert decoded(data, "x").shape == (1200, 1600, 3)
    assert decoded(data, "x", want=601).shape == (1200, 1600, 3)
    assert decoded(data, "x", want=600).shape == (600, 800, 3)
    small = encoded(Image.fromarray(picture[:800, :1200]), "JPEG", quality=95)
    assert decoded(small, "x", want=100).shape == (800, 1200, 3)
    eighth = decoded(data, "x", want=150)
    assert eighth.shape == (150, 200, 3)
    assert np.abs(eighth.astype(int) - photo(150, 200)).mean() < 3


def test_the_first_picture_of_an_mpo_file():
    pictures = [Image.fromarray(photo(816, 1248, seed)) for seed in (1, 2)]
    data = encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:], quality=95)
    first = decoded(encoded(pictures[0], "JPEG", quality=95), "x")
    np.testing.assert_array_equal(decoded(data, "x"), first)
    assert decoded(data, "x", want=408).shape == (408, 624, 3)


def test_a_file_and_its_bytes_are_the_same(tmp_path):
    data = encoded(Image.fromarray(photo(20, 30)))
    (tmp_path / "wrong.jpg").write_bytes(data)
    np.testing.assert_array_equal(decode(str(tmp_path / "wrong.jpg")), photo(20, 30))
    assert image_size(str(tmp_path / "wrong.jpg")) == (20, 30)
    np.testing.assert_array_equal(decoded(data, "x"), photo(20, 30))


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


JPEG = encoded(Image.fromarray(photo(64, 64)), "JPEG", quality=90)
PNG = encoded(Image.fromarray(photo(64, 64)))
ZOO = {
    "empty": (b"", "empty, or no JPEG"),
    "text": (b"this is no picture\n" * 40, "empty, or no JPEG"),
    "a script of Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "empty, or no JPEG"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "JPEG header alone": (JPEG[:30], ""),
    "truncated PNG": (PNG[: len(PNG) // 2], "truncated"),
    "PNG header alone": (PNG[:40], ""),
    "PNG with a flipped byte": (flipped(PNG, len(PNG) // 2), ""),
    "PNG with a wrong checksum": (flipped(PNG, 30), ""),
    "truncated GIF": (encoded(Image.fromarray(photo(64, 64)), "GIF")[:900], ""),
    "truncated WebP": (encoded(Image.fromarray(photo(64, 64)), "WEBP")[:200], ""),
    "truncated TIFF": (encoded(Image.fromarray(photo(64, 64)), "TIFF")[:500], ""),
    "truncated BMP": (encoded(Image.fromarray(photo(64, 64)), "BMP")[:500], "truncated"),
    "deeper than the set": (encoded(Image.fromarray(np.array([[0, 1]], np.float32)), "TIFF"), "data.range"),
    "too many pixels": (encoded(Image.new("1", (10001, 10000))), "10001 x 10000 pixels, more than the 100,000,000"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", ZOO)
def test_bad_files_are_named_with_a_reason_of_one_line(case, tmp_path):
    data, reason = ZOO[case]
    path = str(tmp_path / "file.jpg")
    with open(path, "wb") as file:
        file.write(data)
    with pytest.raises(BadImage) as caught:
        decode(path)
    assert caught.value.path == path
    assert reason in caught.value.reason
    assert caught.value.reason
    assert "\n" not in str(caught.value)
    with pytest.raises(BadImage):
        decoded(data, path)


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    originals = [JPEG, PNG, *(encoded(Image.fromarray(photo(24, 24)), kind) for kind in ("GIF", "WEBP", "TIFF", "BMP"))]
    bad = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(600):
            data = bytearray(originals[number % len(originals)])
            for place in rng.integers(0, min(len(data), 400), 4):
                data[place] = rng.integers(256)
            try:
                decoded(bytes(data), "damaged", max_pixels=1e6)
            except BadImage:
                bad += 1
    assert bad > 100


def test_what_is_no_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for path, reason in [
        (tmp_path / "pipe.jpg", "not a regular file"),
        (tmp_path / "folder.jpg", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "gone.jpg", "No such file"),
    ]:
        with pytest.raises(BadImage, match=reason):
            decode(str(path))


@pytest.mark.fault
def test_a_bomb_is_refused_before_it_takes_memory(tmp_path):
    """A PNG of 121 megapixels in 120 kB: 363 MB of RGB, with room for 150 MB more."""
    Image.new("L", (11_000, 11_000)).save(tmp_path / "bomb.png")
    code = """
        import resource, sys, warnings
        from ssl_vit.data.decode import BadImage, decode
        warnings.simplefilter("ignore")
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 150 * 2**20,) * 2)
        try:
            decode(sys.argv[1], max_pixels=float(sys.argv[2]))
        except BadImage as error:
            print(error)
    """

    def child(max_pixels: str) -> str:
        arguments = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "bomb.png"), max_pixels]
        return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout

    assert "11000 x 11000 pixels" in child("1e8")
    assert "memory does not suffice" in child("2e8"), "without the cap it would not fit"


def test_pillows_warnings_of_odd_files_are_not_printed(tmp_path):
    """A tag that is cut is no reason to leave the image out, nor for a line in each process that reads it."""
    cut = b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    Image.new("RGB", (8, 6)).save(tmp_path / "cut.jpg", exif=cut)
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        assert decode(str(tmp_path / "cut.jpg")).shape == (8, 6, 3)  # the orientation comes before the cut
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        leave_pillow_unsaid()
        decode(str(tmp_path / "cut.jpg"))
    assert not said
