"""One range for a whole set: what is deeper than 8 bits keeps its grey levels, whatever holds it."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data import measure as module
from ssl_vit.data.decode import BadImage, decode
from ssl_vit.data.measure import Measured, look, measure, robust_range, settled
from ssl_vit.data.sources import open_source
from ssl_vit.data.values import EACH, ORDINARY, Pixels
from ssl_vit.errors import UserError
from tests.data.tiffs import png, tiff

SIDE = 64


def pattern(seed: int = 0, bands: int = 1) -> np.ndarray:
    """Smooth, from 0 to 1, [SIDE, SIDE, bands]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.uniform(0.5, 2, (bands, 3))]
    return np.stack([(wave - wave.min()) / (wave.max() - wave.min()) for wave in waves], axis=2)


def measured(folder: Path, **asked) -> Measured:
    return measure(look(open_source(folder)), **asked)


def levels(folder: Path) -> int:
    """Grey levels of the folder's first image, as a run sees it."""
    source = open_source(folder)
    return len(np.unique(decode(source.path(0), measured(folder).pixels)[..., 0]))


def grey_png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values[..., 0]).save(file, "PNG")
    return file.getvalue()


DEEP = {
    "10 bits in a PNG of 16": lambda p: ("png", grey_png((p[..., :1] * 1023).astype("uint16"))),
    "12 bits in a PNG of 16": lambda p: ("png", grey_png((p[..., :1] * 4095).astype("uint16"))),
    "14 bits in a TIFF of 16": lambda p: ("tif", tiff((p[..., :1] * 16383).astype("uint16"))),
    "a few of the 16 bits of an RGB TIFF": lambda p: ("tif", tiff((p * 3000).astype("uint16"), rgb=True)),
    "a few of the 16 bits of an RGB PNG": lambda p: ("png", png((p * 3000).astype("uint16"))),
    "16 bits, all used": lambda p: ("png", png((p * 65535).astype("uint16"))),
    "3 bands that nobody calls colours": lambda p: ("tif", tiff((p * 3000).astype("uint16"))),
    "Hounsfield units": lambda p: ("tif", tiff((p[..., :1] * 4095 - 1024).astype("int16"))),
    "32-bit integers": lambda p: ("tif", tiff((p[..., :1] * 1e6).astype("int32"))),
    "unsigned 32-bit integers": lambda p: ("tif", tiff((p[..., :1] * 4e9).astype("uint32"))),
    "float16": lambda p: ("tif", tiff(p[..., :1].astype("float16"))),
    "float32": lambda p: ("tif", tiff(p[..., :1].astype("float32"))),
    "float64, deflate": lambda p: ("tif", tiff(p.astype("float64"), rgb=True, deflate=True, predictor=3)),
}


@pytest.mark.parametrize("case", DEEP)
def test_grey_levels_are_kept(case, tmp_path):
    for seed in range(3):
        kind, data = DEEP[case](pattern(seed, 3))
        (tmp_path / f"{seed}.{kind}").write_bytes(data)
    assert levels(tmp_path) > 200


def test_a_value_is_the_same_grey_in_every_image(tmp_path):
    for name, most in (("a", 0.95), ("b", 1.05)):
        image = pattern(1) * most
        image[0, 0] = 0.5
        (tmp_path / f"{name}.tif").write_bytes(tiff(image.astype("float32")))
    pixels = measured(tmp_path).pixels
    assert pixels.range == pytest.approx((0, 1.05), abs=0.002)
    first, second = (decode(str(tmp_path / f"{name}.tif"), pixels) for name in "ab")
    assert first[0, 0, 0] == second[0, 0, 0] == round(255 * 0.5 / pixels.range[1])
    assert first.max() == round(255 * 0.95 / pixels.range[1])


@pytest.mark.parametrize(("marker", "said"), [(-9999, ""), (np.nan, ""), (np.inf, ""), (-3.4e38, ""), (7, "7")])
def test_what_stands_for_no_value_is_black_and_changes_nothing(marker, said, tmp_path):
    for seed in range(4):
        image = pattern(seed).astype("float32")
        if seed < 2:
            image[: 1 + 20 * seed, :3] = marker
        (tmp_path / f"{seed}.tif").write_bytes(tiff(image, missing=said))
    pixels = measured(tmp_path).pixels
    assert pixels.range == (0, 1)
    for seed in range(4):
        expected = np.rint(255 * pattern(seed).astype("float32"))
        if seed < 2:
            expected[: 1 + 20 * seed, :3] = 0
        np.testing.assert_allclose(decode(str(tmp_path / f"{seed}.tif"), pixels)[..., :1], expected, atol=1)


def test_a_marker_that_does_not_fit_the_type_is_none(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff((pattern() * 55000 + 300).astype("uint16"), missing="-9999"))
    image = decode(str(tmp_path / "a.tif"), Pixels((0.0, 65535.0)))
    assert image.min() > 0


def test_an_image_without_a_value_is_a_bad_one(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(np.full((8, 8, 1), np.nan, "float32")))
    with pytest.raises(BadImage, match="every value is missing or not finite"):
        decode(str(tmp_path / "a.tif"), Pixels((0.0, 1.0)))


def test_outliers_are_clipped_and_a_long_tail_is_not():
    rng = np.random.default_rng(0)
    dark = rng.integers(100, 3000, 100_000).astype(float)
    hot = dark.copy()
    hot[:50] = rng.integers(60_000, 65_000, 50)
    assert robust_range(hot)[1] < 3100
    cells = rng.integers(100, 120, 100_000).astype(float)
    cells[:400] = rng.integers(500, 4000, 400)  # 0.4 % of the pixels are what the pictures are about
    assert robust_range(cells)[1] > 3900
    assert robust_range(np.array([5.0, 5.0])) == (5, 6, [])


def test_near_infrared_is_no_opacity_whatever_its_tag(tmp_path):
    for seed in range(3):
        image = (pattern(seed, 4) * [250, 250, 250, 180] + [2, 2, 2, 20]).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / f"{seed}.tif")
        np.testing.assert_array_equal(Image.open(tmp_path / f"{seed}.tif").tag_v2[338], (2,))
    found = measured(tmp_path)
    assert found.pixels == Pixels(None, (0, 1, 2))
    assert "left out" in found.bands_why
    np.testing.assert_array_equal(decode(str(tmp_path / "2.tif"), found.pixels), image[..., :3])


@pytest.mark.parametrize("extra", [1, 2])
def test_near_infrared_of_16_bits(extra, tmp_path):
    image = (pattern(0, 4) * 4000 + 40).astype("uint16")
    (tmp_path / "a.tif").write_bytes(tiff(image, rgb=True, extra=(extra,)))
    found = measured(tmp_path)
    assert found.pixels.bands == (0, 1, 2)
    low, high = found.pixels.range
    expected = np.rint((image[..., :3] - low) * 255 / (high - low))
    np.testing.assert_array_equal(decode(str(tmp_path / "a.tif"), found.pixels), expected)


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("bands", [2, 4])
def test_near_infrared_in_the_place_of_opacity(kind, bands, tmp_path):
    """As programs for maps write four bands to a PNG."""
    for seed in range(3):
        image = (pattern(seed, bands) * 180 + 20).astype(np.uint8)
        exact = {"lossless": True, "exact": True} if kind == "webp" else {}
        Image.fromarray(image, "LA" if bands == 2 else "RGBA").save(tmp_path / f"{seed}.{kind}", **exact)
    found = measured(tmp_path)
    assert "left out" in found.bands_why
    decoded = decode(str(tmp_path / f"2.{kind}"), found.pixels)
    if bands == 4 or kind == "png":  # WebP has no grey
        np.testing.assert_array_equal(decoded, image[..., :3] if bands == 4 else image[..., [0, 0, 0]])


def test_near_infrared_of_16_bits_in_a_png(tmp_path):
    image = (pattern(0, 4) * 4000 + 40).astype("uint16")
    (tmp_path / "a.png").write_bytes(png(image))
    assert measured(tmp_path).pixels.bands == (0, 1, 2)
    assert levels(tmp_path) > 200


def test_a_fourth_band_that_has_no_name_is_said(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff((pattern(0, 4) * 250).astype("uint8"), rgb=True))
    found = measured(tmp_path)
    assert found == Measured(bands_why="red, green and blue of 4 bands; the others are left out")
    assert levels(tmp_path) > 200


@pytest.mark.parametrize("kind", ["png", "tif", "webp"])
def test_opacity_stays_on_white(kind, tmp_path):
    image = (pattern(0, 4) * 255).astype(np.uint8)
    image[..., 3] = np.where(image[..., 3] > 128, 255, np.where(image[..., 3] > 100, 51, 0))
    Image.fromarray(image).save(tmp_path / f"a.{kind}", **({"lossless": True, "exact": True} if kind == "webp" else {}))
    found = measured(tmp_path)
    assert found.pixels == ORDINARY
    share = image[..., 3:] / 255
    expected = image[..., :3] * share + 255 * (1 - share)
    np.testing.assert_allclose(decode(str(tmp_path / f"a.{kind}"), found.pixels), expected, atol=1)


def test_opacity_of_16_bits_is_on_white(tmp_path):
    image = (pattern(0, 4) * 3000).astype("uint16")
    image[..., 3] = np.where(image[..., 3] > 1500, 65535, 0)
    for name, data in (
        ("a.tif", tiff(image, rgb=True, extra=(2,))),
        ("b.png", png(image)),
        ("c.png", png(image[..., 2:])),
    ):
        (tmp_path / name).write_bytes(data)
    found = measured(tmp_path)
    assert found.pixels.bands is None
    for path in sorted(tmp_path.iterdir()):
        decoded = decode(str(path), found.pixels)
        assert (decoded[image[..., 3] == 0] == 255).all()
        assert len(np.unique(decoded[image[..., 3] > 0])) > 100


def test_ordinary_images_are_not_read_for_it(tmp_path, monkeypatch):
    image = (pattern(0, 3) * 255).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "rgb.jpg")
    Image.fromarray(image).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(image).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(image).convert("L").save(tmp_path / "grey.png")
    monkeypatch.setattr(module, "values", None)
    assert measured(tmp_path).pixels == ORDINARY


def test_images_of_8_bits_stay_as_they_are_among_deeper_ones(tmp_path):
    Image.fromarray((pattern(0, 3) * 200).astype(np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(grey_png((pattern() * 4095).astype("uint16")))
    found = measured(tmp_path)
    assert found.pixels.range == (0, 4095)
    assert "1 of 2 images have 8 bits and stay as they are" in found.range_why
    np.testing.assert_array_equal(decode(str(tmp_path / "a.png"), found.pixels), decode(str(tmp_path / "a.png")))


@pytest.mark.parametrize(("other", "few"), [(1.0, 3), (4095.0, 3), (40_000.0, 0)])
def test_images_of_another_scale_are_not_made_black_without_a_word(other, few, tmp_path):
    """Reflectances or images of 12 bits beside images of 16."""
    for seed in range(6):
        most = 65535 if seed % 2 else other
        (tmp_path / f"{seed}.tif").write_bytes(tiff((pattern(seed) * most).astype("float32")))
    found = measured(tmp_path)
    assert ("fill fewer than 16 of the 256" in found.range_why) == bool(few)
    assert few == 0 or f"; {few} of those measured (float32) fill" in found.range_why
    assert len(np.unique(decode(str(tmp_path / "0.tif"), EACH))) > 200, "what is advised"


def test_a_range_and_bands_that_are_set_are_used(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff((pattern(0, 5) * 4095).astype("uint16")))
    with pytest.raises(UserError, match=r"a TIFF of 5 x uint16 bands: .*from 0 to 4, with --set data.bands=\[0,1,2\]"):
        measured(tmp_path)
    assert measured(tmp_path, bands=(3, 2, 1)).pixels == Pixels((0.0, 4095.0), (3, 2, 1))
    assert measured(tmp_path, bands=(4,), low_high=(0.0, 9.0)).pixels == Pixels((0.0, 9.0), (4,))


def test_a_score_reads_images_as_they_were_learnt_from(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff((pattern() * 9000).astype("uint16")))
    looked = [look(open_source(tmp_path))]
    trained = Pixels((0.0, 4095.0))
    assert settled(looked, trained) == trained
    assert settled(looked, EACH) == EACH
    assert settled(looked, ORDINARY).range == (0, 9000)
    assert settled(looked, None).range == (0, 9000)
    assert Pixels.of(None) == EACH
    assert Pixels.of({"range": [0, 4095], "bands": None}) == trained
