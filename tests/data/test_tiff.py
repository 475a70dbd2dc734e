"""Values of TIFF and PNG files come as they were written, whatever the type, the bands and the packing."""

import io

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.decode import BadImage, Row, decode, header, values
from ssl_vit.data.values import Pixels
from tests.data.photo import Files
from tests.data.tiffs import png, tiff

KINDS = ("int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")
WAYS = {
    "plain": {},
    "big-endian": {"big_endian": True},
    "deflate": {"deflate": True},
    "differences": {"deflate": True, "predictor": 2, "big_endian": True},
    "tiles": {"tile": 16, "deflate": True, "predictor": 2},
    "bands apart": {"separate": True, "tile": 16},
}


def place(data: bytes) -> Row:
    return Row(Files(data), 0, "file")


def drawn(kind: str, bands: int, height: int = 21, width: int = 37) -> np.ndarray:
    rng = np.random.default_rng(bands)
    if np.dtype(kind).kind == "f":
        return rng.normal(size=(height, width, bands)).astype(kind)
    limits = np.iinfo(kind)
    return rng.integers(limits.min, limits.max, (height, width, bands), dtype=kind, endpoint=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bands", [1, 3, 8])
def test_every_type_of_value_is_read_as_it_was_written(way, bands):
    for kind in KINDS:
        written = drawn(kind, bands)
        read, missing = values(place(tiff(written, **WAYS[way])))
        assert read.dtype == kind
        assert missing is None
        np.testing.assert_array_equal(read, written)


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize("big_endian", [False, True])
def test_differences_of_floats(kind, big_endian):
    written = drawn(kind, 3)
    data = tiff(written, deflate=True, predictor=3, tile=16, big_endian=big_endian)
    np.testing.assert_array_equal(values(place(data))[0], written)


@pytest.mark.parametrize("packed", ["tiff_lzw", "packbits", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["uint16", "int32", "float32"])
def test_what_pillow_writes_through_libtiff(packed, mode):
    written = drawn(mode, 1, 200, 333)
    file = io.BytesIO()
    Image.fromarray(written[..., 0]).save(file, "TIFF", compression=packed)
    np.testing.assert_array_equal(values(place(file.getvalue()))[0], written)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_a_png_of_16_bits_keeps_them(bands):
    written = drawn("uint16", bands)
    assert header(place(png(written))).words == ("uint16" if bands == 1 else f"{bands} x uint16")
    np.testing.assert_array_equal(values(place(png(written)))[0], written)


def test_bands_without_a_name_are_refused_with_what_to_set(capfd):
    data = tiff(np.zeros((8, 8, 8), np.uint8))
    with pytest.raises(BadImage, match=r"a TIFF of 8 x uint8 bands: say which .*--set data.bands=\[0,1,2\]"):
        decode(place(data))
    assert capfd.readouterr().err == ""


def test_bands_are_chosen():
    written = np.random.default_rng(0).integers(0, 256, (9, 7, 8), dtype=np.uint8)
    data = tiff(written)
    np.testing.assert_array_equal(decode(place(data), Pixels(bands=(5, 3, 1))), written[..., [5, 3, 1]])
    np.testing.assert_array_equal(decode(place(data), Pixels(bands=(7,))), np.repeat(written[..., [7]], 3, 2))
    with pytest.raises(BadImage, match=r"data\.bands asks for number 8"):
        decode(place(data), Pixels(bands=(8,)))


def test_what_is_cut_off_or_damaged_is_named_and_nothing_reaches_the_terminal(capfd):
    rng = np.random.default_rng(0)
    files = [tiff(drawn("uint16", 4), deflate=True), tiff(drawn("float32", 1), tile=16)]
    lzw = io.BytesIO()
    Image.fromarray(drawn("uint16", 1)[..., 0]).save(lzw, "TIFF", compression="tiff_lzw")
    reasons = []
    for number in range(300):
        data = bytearray([*files, lzw.getvalue()][number % 3])
        if number % 2:
            del data[int(rng.integers(8, len(data))) :]
        for at in rng.integers(0, len(data), 6):
            data[at] = rng.integers(256)
        try:
            decode(place(bytes(data)), Pixels((0.0, 1.0), (0,)), max_pixels=1e6)
        except BadImage as error:
            reasons.append(error.reason)
    assert len(reasons) > 50
    assert not any("\n" in reason for reason in reasons)
    assert capfd.readouterr().err == ""


def test_a_compression_that_is_not_read_is_named():
    with pytest.raises(BadImage, match=r"a TIFF of 1 x uint16, compressed in a way that is not read \(34712\)"):
        decode(place(tiff(drawn("uint16", 1), more={259: 34712})), Pixels((0.0, 1.0)))


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_further_pages_are_noticed_and_smaller_copies_are_none(mode):
    one = Image.new(mode, (8, 8))
    for pages, purpose, expected in (([], 0, False), ([one], 0, True), ([one], 1, False)):
        file = io.BytesIO()
        tagged = [Image.new(mode, (8, 8)) for _ in pages]
        for page in tagged:
            page.encoderinfo = {"tiffinfo": {254: purpose}}
        one.save(file, "TIFF", save_all=True, append_images=tagged)
        assert header(place(file.getvalue())).pages is expected
