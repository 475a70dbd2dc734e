"""The images: what is left out, what can't be read, sizes, values, copies and classes, by a sample of them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssl_vit.config.schema import DataConfig
from ssl_vit.data.bad import printable
from ssl_vit.data.dataset_name import Images
from ssl_vit.data.decode import BadImage, decode, read_bytes
from ssl_vit.data.left_out import left_out
from ssl_vit.data.measure import Looked, look, measure
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import Source, open_source
from ssl_vit.data.values import ORDINARY, Pixels
from ssl_vit.doctor.finding import Finding, fine, hurts, stops
from ssl_vit.errors import UserError

_SAMPLE = 128  # images that are read whole
_FEW = 1000  # below which features are rarely worth much
_TINY, _HUGE = 32, 1024  # of the median short side, pixels
_COPIES, _SLOW = 0.02, 0.25  # share of the sample; seconds an image
_RARE = 50  # the largest class has so many times the images of the smallest
_STRAY, _LOOKED = 0.1, 200_000  # so many beside sub-folders, as a share of those inside, are no intention
_SHOWN = 3
_NO_IMAGES = {f".{kind} files" for kind in ("txt", "json", "csv", "xml", "md", "yaml", "html")} | {"hidden entries"}


def examine_images(data: Images, outside_links: bool = False) -> Iterator[Finding]:
    """Look at the images; one finding says all where there are none."""
    try:
        source = open_source(data, outside_links)
    except UserError as error:
        yield stops("images", str(error), "ssl-vit doctor DATA with the right place")
        return
    looked = look(source)
    scanned = scan(source, looked)
    yield _number(source)
    yield _left_out(source)
    yield _damage(source)
    yield from _headers(scanned)
    pixels, found = _values(looked)
    yield found
    yield from _contents(source, pixels, scanned)
    yield _classes(source)


def _number(source: Source) -> Finding:
    types = ", ".join(f"{count:,} {printable(kind)}" for kind, count in source.types.items())
    words = f"{len(source):,} in {printable(source.root)} ({types})"
    if len(source) < _FEW:
        return hurts("images", f"{words}: features of so few are seldom good", "add images, or start with --weights")
    return fine("images", words)


def _left_out(source: Source) -> Finding:
    found = left_out(source)
    if source.skipped.keys() - _NO_IMAGES:
        return hurts("left out", f"{found}: none of these is learnt from", "docs/sources.md says what is read, and how")
    return fine("left out", found or "nothing")


def _damage(source: Source) -> Finding:
    if not source.damage:
        return fine("damage", "no archive is")
    words = f"{source.lost:.1%} of the archives can't be read: {printable('; '.join(source.damage[:_SHOWN]))}"
    worse = source.lost > _max_bad()
    return (stops if worse else hurts)("damage", words, "copy or make these archives again")


def _headers(scanned: dict[str, Any]) -> Iterator[Finding]:
    """What the headers of a sample say."""
    bad, sampled = scanned["unreadable"], scanned["sampled"]
    words = f"{len(bad)} of {sampled} images looked at can't be read: {'; '.join(bad[:_SHOWN])}"
    if len(bad) > _max_bad() * sampled:
        yield stops(
            "readable", words, f"mend or remove them, or --set data.max_bad={min(1.0, 2 * len(bad) / sampled):.2f}"
        )
    elif bad:
        yield hurts("readable", f"{words}; others take their places", "mend or remove them")
    else:
        yield fine("readable", f"{sampled} of {sampled} images looked at")
    if (sides := scanned["sides"]) is None:
        return
    short, long = sides["short"], sides["long"]
    words = f"short side {short['min']} to {short['max']} pixels, median {short['median']}"
    if short["median"] < _TINY:
        yield hurts("sizes", f"{words}: crops of so small images show little", "use larger originals, if there are any")
    elif short["median"] > _HUGE:
        mend = "ssl-vit pack DATA --to DIR --size 512 makes smaller copies"
        yield hurts("sizes", f"{words}: decoding takes most of the time", mend)
    else:
        yield fine("sizes", f"{words}; long side up to {long['max']}")


def _values(looked: Looked) -> tuple[Pixels, Finding]:
    """How values and bands are going to be read, as a run decides it."""
    try:
        measured = measure(looked, max_bad=_max_bad())
    except UserError as error:
        return ORDINARY, stops("values", str(error), "--set data.bands=[0,1,2], or whichever are its colours")
    kinds = Counter(said.words for said in looked.headers)
    words = f"{', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}; {measured.range_why}"
    if measured.pixels.range is None and measured.pixels.bands is None:
        return measured.pixels, fine("values", words)
    if isinstance(measured.pixels.range, tuple):
        words = f"{words}: {measured.pixels.range[0]:g} to {measured.pixels.range[1]:g}"
    if measured.pixels.bands is not None:
        words = f"{words}; bands {measured.pixels.bands}: {measured.bands_why}"
    if len({said.kind for said in looked.headers}) > 1:
        return measured.pixels, hurts("values", f"{words}: a mixture", "convert them alike, or leave the odd ones out")
    return measured.pixels, fine("values", words)


def _contents(source: Source, pixels: Pixels, scanned: dict[str, Any]) -> Iterator[Finding]:
    """What reading a sample whole says: copies, pictures of one colour, and how long it takes."""
    chosen = np.unique(np.linspace(0, len(source) - 1, _SAMPLE).round().astype(int)).tolist()
    copies, broken, start = defaultdict[bytes, list[str]](list), list[str](), time.perf_counter()
    for index in chosen:
        name = printable(source.name(index))
        try:
            copies[hashlib.sha256(read_bytes(source.path(index))).digest()].append(name)
            decode(source.path(index), pixels, want=224)
        except BadImage as error:
            broken.append(f"{name}: {error.reason}")
    took = (time.perf_counter() - start) / len(chosen)
    again = [names for names in copies.values() if len(names) > 1]
    extra = sum(len(names) - 1 for names in again)
    if extra > _COPIES * len(chosen):
        words = f"{extra} of {len(chosen)} images read are copies of others, such as {' = '.join(again[0][:_SHOWN])}"
        yield hurts("copies", words, "remove them (fdupes -r DATA lists them): they count several times")
    else:
        yield fine("copies", f"{extra or 'none'} among {len(chosen)} images")
    if broken and len(broken) > len(scanned["unreadable"]) * len(chosen) / scanned["sampled"]:
        words = f"{len(broken)} of {len(chosen)} images break off inside, such as {broken[0]}"
        worse = len(broken) > _max_bad() * len(chosen)
        yield (stops if worse else hurts)(
            "decoding", words, "copy or make them again; a run lists all in bad_images.jsonl"
        )
    elif took > _SLOW:
        words = f"{took:.2f} s an image: the storage or large files will keep training waiting"
        yield hurts("decoding", words, "ssl-vit bench DATA measures it; ssl-vit pack DATA --to DIR --size 512")
    else:
        yield fine("decoding", f"{1000 * took:.0f} ms an image, with reading it")


def _classes(source: Source) -> Finding:
    if not source.classes:
        return _no_classes(source)
    counts = Counter(source.labels.tolist())
    most, least = (choose(counts, key=counts.__getitem__) for choose in (max, min))
    names = [printable(source.classes[number]) for number in (most, least)]
    words = f"{len(source.classes)}, from {counts[least]:,} images ({names[1]}) to {counts[most]:,} ({names[0]})"
    if counts[most] > _RARE * counts[least]:
        return hurts("classes", f"{words}: scores of the rare ones rest on chance", "add images of the rare ones")
    return fine("classes", words)


def _no_classes(source: Source) -> Finding:
    """Say whether a few images that lie beside folders are why these are no classes."""
    inside = Counter("/" in source.name(index) for index in range(min(len(source), _LOOKED)))
    if 0 < inside[False] < _STRAY * inside[True]:
        words = f"none: {inside[False]} images lie beside the sub-folders, so that these are no classes"
        return hurts("classes", words, "move them into sub-folders, if scores are wanted of this folder")
    return fine("classes", "none: learning needs none, scores do (one sub-folder a class)")


def _max_bad() -> float:
    return float(DataConfig.model_fields["max_bad"].default)
