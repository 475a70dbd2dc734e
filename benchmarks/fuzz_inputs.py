"""What benchmarks/fuzz.py opens: valid files of every kind, and what chance makes of them.

Half of the edits know the format, so that they get past checksums and into what reads the content: a PNG's CRCs, a
tar's header sums and a zip's directory are made right again, the JSON of a safetensors gets its true length.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from ssl_vit.backbones import create_backbone
from ssl_vit.checkpoints.inspection import inspect
from ssl_vit.checkpoints.load import fitted_weights
from ssl_vit.config import load_config
from ssl_vit.data.annotations import open_annotations
from ssl_vit.data.decode import BadImage, decode
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError

ROOT = Path(__file__).parents[1]
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 99_000_000)
WORDS = (
    *("0", "-1", "1e400", "-0.0", "NaN", "Infinity", ".inf", "null", "true", "[]", "{}", "[[]]", '""', "30000000", "'"),
    *("9" * 5000, "1" + "0" * 40, "[" * 3000, "{a: " * 200, "&a [*a, *a]", "*a", "<<: *a", "!!python/name:os.system"),
    *("\ufeff", "\x00", "\ud800", "é" * 300, "../../etc/passwd", "/etc/passwd", "https://example.org/", "\t", "\r"),
    *("<!ENTITY a 'b'>", "&a;", "&#x0;", "<?xml version='1.0' encoding='utf-77'?>", "auto", "0x7f", "1_0", "12:30:45"),
)

VALUES = (
    *("0", "-1", "2", "0.5", "-0.0", "1e308", "1e400", "NaN", "Infinity", "null", "true", "[]", "{}", "[[]]", "[1]"),
    *('"x"', '"é"', r'"\ud800"', '"../0.png"', "30000000", "9" * 20, "9" * 5000, "[[[0]]]", "[" * 2000 + "]" * 2000),
    *('{"size": [9999999, 9999999], "counts": [1]}', "[[1, 2, 3]]", '{"size": [4, 4], "counts": "~~"}', "7e7", '""'),
)


class Target(NamedTuple):
    """One kind of input: how a file of it is made, and what opens it."""

    share: int  # of 100 inputs
    make: Callable[[Random, Path], Path]
    use: Callable[[Path], None]  # raises one of `refusals`, or nothing
    refusals: tuple[type[Exception], ...] = (UserError,)


# Edits of any bytes, and of any text.


def edited(data: bytes, draw: Random, others: list[bytes] | None = None) -> bytes:
    """A few random edits."""
    found = bytearray(data)
    for _ in range(min(1 + int(draw.expovariate(0.5)), 12)):
        at, length = draw.randrange(len(found) + 1), draw.choice((1, 2, 4, 16, 64, 1024))
        kind = draw.randrange(8)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(found):
            found[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind in (2, 3):
            code = draw.choice(("<H", ">H", "<I", ">I"))
            number = struct.pack(code, draw.choice(NUMBERS) & (0xFFFF if code[1] == "H" else 0xFFFFFFFF))
            found[at : at + len(number)] = number
        elif kind == 4:
            del found[at : at + length]
        elif kind == 5:
            found[at:at] = found[at : at + length] * draw.choice((1, 2, 50))
        elif kind == 6:
            found[at:at] = draw.randbytes(length)
        elif others and draw.random() < 0.3:
            other = draw.choice(others)
            found[at:] = other[draw.randrange(len(other) + 1) :]
        elif draw.random() < 0.2:
            del found[at:]
    return bytes(found)


def reworded(text: str, draw: Random) -> bytes:
    """A text in which some numbers, words and marks are others; seldom in another encoding."""
    for _ in range(min(1 + int(draw.expovariate(0.5)), 8)):
        tokens = list(re.finditer(r"-?[0-9.]+|[A-Za-z_]+|[\[\]{}:,<>/&*-]|\n", text))
        if not tokens:
            break
        token, kind = draw.choice(tokens), draw.randrange(5)
        if kind <= 1:
            text = text[: token.start()] + draw.choice(WORDS) + text[token.end() :]
        elif kind == 2:
            text = text[: token.start()] + text[token.end() :]
        elif kind == 3:
            text = text[: token.end()] + token.group() * draw.choice((1, 3, 2000)) + text[token.end() :]
        else:
            other = draw.choice(tokens)
            text = text[: token.start()] + other.group() + text[token.end() :]
    encoding = draw.choice(("utf-8",) * 20 + ("utf-16", "utf-8-sig", "latin-1"))
    data = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    return edited(data, draw) if draw.random() < 0.15 else data


def revalued(text: str, draw: Random, pattern: str) -> bytes:
    """A text that is as well formed as before, in which some of the values that a pattern finds are others."""
    for _ in range(min(1 + int(draw.expovariate(0.5)), 6)):
        value = draw.choice(list(re.finditer(pattern, text)) or [re.search("$", text)])
        assert value is not None
        text = text[: value.start()] + draw.choice(VALUES) + text[value.end() :]
    return text.encode("utf-8", "replace")


def broken(text: str, draw: Random, pattern: str) -> bytes:
    """Half of the time other values, else other words and marks."""
    return revalued(text, draw, pattern) if draw.random() < 0.6 else reworded(text, draw)


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# Images.


@lru_cache
def images() -> list[tuple[str, bytes]]:
    """A file of every format and mode that is read, (extension, bytes)."""
    draw = np.random.default_rng(0)
    colour = Image.fromarray(draw.integers(0, 256, (17, 24, 3), dtype=np.uint8))
    wide = Image.fromarray(draw.integers(0, 65536, (17, 24), dtype=np.uint16))
    real = Image.fromarray(draw.random((17, 24), dtype=np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = colour.copy().convert("P")
    clear.info["transparency"] = 3
    saved: list[tuple[Image.Image, str, dict[str, Any]]] = [
        *((colour.convert(mode), "png", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((colour.convert(mode), "jpg", {"quality": 80}) for mode in ("L", "RGB", "CMYK")),
        *((colour.convert(mode), "bmp", {}) for mode in ("1", "L", "P", "RGB")),
        *((colour.convert(mode), "tif", {}) for mode in ("1", "L", "LAB", "RGB", "RGBA", "CMYK", "YCbCr")),
        *((colour, "tif", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")),
        *((image, "tif", {}) for image in (wide, real)),
        (colour, "jpg", {"progressive": True, "exif": exif.tobytes()}),
        (wide, "png", {}),
        (clear, "png", {"transparency": 3}),
        (colour, "png", {"exif": exif.tobytes(), "optimize": True}),
        (colour, "webp", {"lossless": True}),
        (colour.convert("RGBA"), "webp", {"quality": 50}),
        (colour, "webp", {"save_all": True, "append_images": [colour.rotate(90)]}),
        (colour.convert("P"), "gif", {"save_all": True, "append_images": [colour.rotate(180).convert("P")]}),
        (colour.resize((1500, 1100)), "jpg", {}),  # large enough for draft mode
    ]
    return [(kind, _saved(image, kind, options)) for image, kind, options in saved]


def _saved(image: Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, {"jpg": "JPEG", "tif": "TIFF"}.get(kind, kind.upper()), **options)
    return file.getvalue()


def image(draw: Random, folder: Path) -> Path:
    kind, data = draw.choice(images())
    if kind == "png" and draw.random() < 0.6:
        data = _png(data, draw)
    else:
        data = edited(data, draw, [other for _, other in images()])
    return written(folder / f"x.{kind}", data)


def _png(data: bytes, draw: Random) -> bytes:
    """Edited chunks, with the sums that they should have."""
    chunks, at = list[tuple[bytes, bytes]](), 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    index = draw.randrange(len(chunks))
    name, body = chunks[index]
    if name == b"IDAT" and draw.random() < 0.5:
        body = zlib.compress(edited(zlib.decompress(b"".join(body for name, body in chunks if name == b"IDAT")), draw))
    elif name == b"IHDR":
        side = struct.pack(">II", draw.choice(NUMBERS) & 0xFFFFFFFF, draw.choice((1, 17, draw.choice(NUMBERS))))
        body = side + body[8:] if draw.random() < 0.5 else edited(body, draw)
    else:
        body = edited(body, draw)
    chunks[index] = (name, body)
    if draw.random() < 0.2:
        chunks.insert(index, draw.choice(chunks))
    parts = [struct.pack(">I", len(body)) + name + body + _crc(name + body) for name, body in chunks]
    return data[:8] + b"".join(parts)


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def use_image(path: Path) -> None:
    pixels = decode(str(path), want=64)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


# Configurations.


@lru_cache
def configurations() -> list[str]:
    own = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "configs").glob("*.yaml"))]
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{n}: &{n} [*{o}, *{o}, *{o}]\n" for o, n in zip("abcdefgh", "bcdefghi", strict=True)
    )
    return [
        *own,
        bomb,
        "data:\n  path: images\n  mean: [0.4, 0.5, 0.6]\nmethod:\n  name: mae\noptim: {lr: 1e-3, clip: 3}\n",
    ]


def configuration(draw: Random, folder: Path) -> Path:
    return written(folder / "x.yaml", reworded(draw.choice(configurations()), draw))


def use_configuration(path: Path) -> None:
    load_config([path], flags={"data.path": "images"})


# Weights.


class Asks:
    """A pickle of it asks for a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@lru_cache
def backbone() -> Any:
    torch.manual_seed(0)
    args = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return create_backbone("vit_tiny_patch16_224", image_size=32, model_args=args)


@lru_cache
def weights() -> tuple[list[bytes], list[bytes]]:
    """Files of safetensors, and of torch's two formats."""
    state = {key: value.contiguous() for key, value in backbone().model.state_dict().items()}
    teacher = {f"module.backbone.{key}": value for key, value in state.items()}
    plain = [safetensors_bytes(state), safetensors_bytes(state, {"format": "pt", "x": "y" * 50})]
    documents: list[Any] = [
        *(
            state,
            {"model": state},
            {"state_dict": teacher, "epoch": 3, "lr": 0.1},
            {"teacher": teacher, "student": teacher},
        ),
        *({"state_dict": state, "x": Asks(os.system, "true")}, Asks(os.mkdir, "/nowhere/x"), [state], 7),
        *(
            {"model": {"cls_token": state["cls_token"].double()}},
            {"state_dict": {"a": torch.sparse_coo_tensor(size=(9, 9))}},
        ),
    ]
    pickled = []
    for document in documents:
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(document, file, _use_new_zipfile_serialization=zipped)
            pickled.append(file.getvalue())
    return plain, [*pickled, pickle.dumps({"a": 1}), b"version https://git-lfs.github.com/spec/v1\n", b"<html></html>"]


def weights_file(draw: Random, folder: Path) -> Path:
    plain, pickled = weights()
    if draw.random() < 0.4:
        data = draw.choice(plain)
        return written(
            folder / "x.safetensors", _safetensors(data, draw) if draw.random() < 0.6 else edited(data, draw)
        )
    data = draw.choice(pickled)
    zipped = data.startswith(b"PK") and draw.random() < 0.6
    return written(folder / "x.pth", _zip(data, draw) if zipped else edited(data, draw, pickled))


def _safetensors(data: bytes, draw: Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    header = reworded(data[8 : 8 + length].decode(), draw)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def _zip(data: bytes, draw: Random) -> bytes:
    """The archive of torch.save with an edited pickle."""
    found = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(found, "w") as new:
        for name in old.namelist():
            body = old.read(name)
            if name.endswith("data.pkl") or draw.random() < 0.05:
                body = edited(body, draw)
            if draw.random() < 0.98:
                new.writestr(name, body)
    return found.getvalue()


def use_weights(path: Path) -> None:
    fitted_weights(backbone(), inspect(path))


# Annotations.

SIZES = ((40, 30), (64, 48), (33, 57))


def _pictures(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, size in enumerate(SIZES):
        Image.new("RGB", size, (index, 9, 9)).save(folder / f"{index}.png")


def coco(draw: Random, folder: Path) -> Path:
    _pictures(folder)
    shapes: list[Any] = [
        [[1, 1, 9, 1, 9, 9]],
        {"size": [30, 40], "counts": [100, 50, 1050]},
        {"size": [30, 40], "counts": "0`0`0"},
    ]
    content = {
        "info": {"year": 2026},
        "images": [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(SIZES)],
        "annotations": [
            {"id": i, "image_id": i % 3, "category_id": 1 + i % 2, "bbox": [i, 1, 9.5, 12], "area": 100.0, "iscrowd": 0}
            | ({"segmentation": draw.choice(shapes)} if draw.random() < 0.5 else {})
            for i in range(6)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog", "supercategory": "animal"}],
    }
    return written(folder / "x.json", broken(json.dumps(content), draw, r'(?<=[:,\[] )(-?[0-9.]+|"[^"]*"(?!:))'))


VOC = """<?xml version="1.0"?>
<annotation><folder>x</folder><filename>0.png</filename>
<size><width>40</width><height>30</height><depth>3</depth></size><segmented>0</segmented>
<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25.5</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
</object></annotation>
"""
ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'


def voc(draw: Random, folder: Path) -> Path:
    _pictures(folder / "JPEGImages")
    for index in range(3):
        text = VOC.replace("0.png", f"{index}.png")
        if draw.random() < 0.1:
            text = text.replace("\n", f"\n{ENTITIES}", 1).replace("cat", "&b;")
        data = text.encode() if index else broken(text, draw, r"(?<=>)[^<>\s]+(?=<)")
        written(folder / "Annotations" / f"{index}.xml", data)
    return folder


def yolo(draw: Random, folder: Path) -> Path:
    _pictures(folder / "images")
    for index in range(3):
        text = "0 0.5 0.5 0.25 0.25\n1 0.3 0.6 0.2 0.1\n0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n"
        written(folder / "labels" / f"{index}.txt", text.encode() if index else broken(text, draw, r"[0-9.]+"))
    names = draw.choice(
        ("names: [cat, dog]\nnc: 2\n", "names:\n  0: cat\n  1: dog\ntrain: images\n", "names: &a [*a]\n")
    )
    if draw.random() < 0.8:
        written(folder / "data.yaml", reworded(names, draw) if draw.random() < 0.6 else names.encode())
    return folder


def use_annotations(path: Path) -> None:
    found = open_annotations(path)
    found.report()
    found.counts()
    for objects in found.objects:
        assert np.isfinite(objects.boxes).all()


# Archives.


@lru_cache
def archives() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for index, (kind, data) in enumerate(images()[:8]):
                name = "d/" * 40 + f"{index}.{kind}" if index == 3 else f"{index}.{kind}"
                _add(archive, name, data)
                _add(archive, f"{index}.json", b"{}")
            for type_, name in ((tarfile.SYMTYPE, "l.png"), (tarfile.LNKTYPE, "h.png"), (tarfile.FIFOTYPE, "f.png")):
                member = tarfile.TarInfo(name)
                member.type, member.linkname = type_, "/etc/passwd"
                archive.addfile(member)
            _add(archive, "../../out.png", images()[0][1])
        found.append(file.getvalue())
    return found


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def archive(draw: Random, folder: Path) -> Path:
    data = draw.choice(archives())
    if draw.random() < 0.4:
        return written(folder / "x.tar", edited(data, draw, archives()))
    found = bytearray(data)
    headers = [at for at in range(0, len(found), 512) if found[at + 257 : at + 262] == b"ustar"]
    for at in draw.sample(headers, draw.randint(1, 3)):
        start, length = draw.choice(((0, 100), (124, 12), (124, 12), (156, 1), (157, 100), (345, 155)))
        number = draw.choice(
            (b"77777777777\0", b"00000000000\0", b"\xff" * 12, b"\x80" + bytes(7) + b"\x0f\xff\xff\xff", b"-1\0")
        )
        value = number if start == 124 else edited(bytes(found[at + start : at + start + length]), draw)
        found[at + start : at + start + length] = value[:length].ljust(length, b"\0")
        found[at + 148 : at + 156] = b" " * 8
        found[at + 148 : at + 156] = b"%06o\0 " % sum(found[at : at + 512])
    return written(folder / "x.tar", bytes(found))


def use_archive(path: Path) -> None:
    source = open_source(str(path))
    scan(source)
    for index in range(len(source)):
        try:
            decode(source.path(index))
        except BadImage:
            continue


TARGETS = {
    "image": Target(40, image, use_image, (BadImage,)),
    "config": Target(12, configuration, use_configuration),
    "weights": Target(16, weights_file, use_weights),
    "coco": Target(8, coco, use_annotations),
    "voc": Target(6, voc, use_annotations),
    "yolo": Target(6, yolo, use_annotations),
    "tar": Target(12, archive, use_archive),
}
