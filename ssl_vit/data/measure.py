"""Which values of a set become black and white, and which of its bands are colours: decided once, from a sample."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssl_vit.data.bad import printable
from ssl_vit.data.decode import BadImage, Header, Place, header, values
from ssl_vit.data.values import ORDINARY as AS_THEY_ARE
from ssl_vit.data.values import Bands, Pixels, Range, opaque, present
from ssl_vit.errors import UserError

_log = logging.getLogger("ssl_vit")

Auto: TypeAlias = Literal["auto"]

SAMPLE = 256  # images of a set whose header is read
_READ = 64  # of those, how many are read whole where the header does not say it all
_FEW = 8  # fewer different values say nothing of which of them is far
_OF_EACH = 2**14  # values of each band of an image, about
_TAIL = 0.001  # the share of values at either end that may be outliers
_FAINT, _LEVELS = 0.05, 16  # the share of images that fill fewer grey levels than so many, from which on it is said
_OPAQUE = 1 / 3  # of the coloured pixels of a set are clear or opaque at least, where a band is opacity
_FIRST = (0, 1, 2)


class Numbered(Protocol):
    """The images of a set are numbered."""

    def __len__(self) -> int:
        """So many."""

    def path(self, index: int) -> Place:
        """Where one is."""


@dataclass(frozen=True)
class Files:
    """The images of a set are these files."""

    paths: Sequence[str]

    def __len__(self) -> int:
        """So many."""
        return len(self.paths)

    def path(self, index: int) -> str:
        """Where one is."""
        return self.paths[index]


class Looked(NamedTuple):
    """A look at the headers of a sample found this."""

    places: list[Place]
    headers: list[Header]  # of those that could be read, as places
    bad: list[tuple[int, str]]  # number of the image, why it could not
    sampled: int


class Measured(NamedTuple):
    """The values of a set are going to be read so, and this is why."""

    pixels: Pixels = AS_THEY_ARE
    range_why: str = "every image looked at has 8 bits"
    bands_why: str = "an image's own colours"


ORDINARY = Measured()


def look(images: Numbered, sample: int = SAMPLE) -> Looked:
    """Read the headers of evenly spaced images."""
    chosen = np.unique(np.linspace(0, len(images) - 1, sample).round().astype(int)).tolist()
    found = Looked([], [], [], len(chosen))
    for index in chosen:
        place = images.path(index)
        try:
            found.headers.append(header(place))
            found.places.append(place)
        except BadImage as error:
            found.bad.append((index, error.reason))
    return found


def measure(
    looked: Looked, low_high: Range | Auto = "auto", bands: Bands | Auto = "auto", max_bad: float = 0.05
) -> Measured:
    """Decide what is "auto" of how a set's values are read; images of 8 bits and plain colours are not opened for it.

    Raises UserError for images of which nobody says which bands are their colours, where that are more than the share
    `max_bad`.
    """
    range_why = bands_why = "as set"
    if bands == "auto":
        _refuse_unnamed(looked, max_bad)
        bands, bands_why = _bands(looked)
    if low_high == "auto":
        low_high, range_why = _range(looked, bands)
    return Measured(Pixels(low_high, bands), range_why, bands_why)


def settled(looked: Sequence[Looked], trained: Pixels | None) -> Pixels:
    """Decide how images that are scored are read: as those to learn from were, where they have such values at all.

    trained: what the weights say; None where they don't. What had to be measured is said in the log.
    """
    all_of_them = together(looked)
    deep = [said for said in all_of_them.headers if said.kind != "uint8"]
    if trained is not None and (trained.range is not None or not deep):
        if deep and trained.range == "each":
            _log.warning("each image of %s is scaled by itself, as these weights were trained", deep[0].words)
        return trained
    measured = measure(all_of_them, bands="auto" if trained is None or trained.bands is None else trained.bands)
    if deep or measured.pixels.bands is not None:
        whose = "nothing is known of those that the weights saw" if trained is None else "the weights saw 8 bits"
        _log.warning("values %s (%s); %s", measured.pixels.range, measured.range_why, whose)
    return measured.pixels


def together(looked: Sequence[Looked]) -> Looked:
    """What was found in several sets, as one."""
    places, headers = ([each for one in looked for each in getattr(one, name)] for name in ("places", "headers"))
    bad = [each for one in looked for each in one.bad]
    return Looked(places, headers, bad, sum(one.sampled for one in looked))


def _refuse_unnamed(looked: Looked, max_bad: float) -> None:
    unnamed = [i for i, said in enumerate(looked.headers) if said.said == "unnamed"]
    if len(unnamed) > max_bad * len(looked.headers):
        first = looked.headers[unnamed[0]]
        last = first.bands - 1
        raise UserError(
            f"{printable(str(looked.places[unnamed[0]]))}: a {first.format} of {first.words} bands: say which are red, "
            f"green and blue, counted from 0 to {last}, with --set data.bands=[0,1,{min(2, last)}], or [0] for one "
            "as grey"
        )


def _bands(looked: Looked) -> tuple[tuple[int, ...] | None, str]:
    """A band that is called opacity is that only if it looks like it: near infrared often has its place or its tag."""
    tagged = [i for i, said in enumerate(looked.headers) if said.said == "opacity"]
    more = [said for said in looked.headers if said.bands > 3 and said.said == "colours" and not said.plain]
    if tagged:
        clear, coloured = 0, 0
        for i in _some(tagged):
            found = _read(looked.places[i])
            if found is None:
                continue
            rows = _thinned(found[0])
            shown = rows[(rows[:, :-1] != 0).any(1), -1]
            clear += int(np.isin(shown, (0, opaque(looked.headers[i].kind))).sum())
            coloured += len(shown)
        if coloured and clear < _OPAQUE * coloured:
            grey = all(looked.headers[i].bands == 2 for i in tagged)
            why = f"the band tagged as opacity is clear or opaque in only {clear / coloured:.0%} of the pixels"
            return ((0,) if grey else _FIRST), f"{why}: a band of its own, left out"
        return None, "an image's own colours, its opacity on white"
    if more:
        return None, f"red, green and blue of {more[0].bands} bands; the others are left out"
    return None, "an image's own colours"


def _range(looked: Looked, bands: tuple[int, ...] | None) -> tuple[tuple[float, float] | None, str]:
    deep = [i for i, said in enumerate(looked.headers) if said.kind != "uint8"]
    if not deep:
        return None, "every image looked at has 8 bits" if looked.headers else "no header could be read"
    pooled, absent, kinds = list[NDArray[np.float64]](), 0, list[str]()
    for i in _some(deep):
        found = _read(looked.places[i])
        if found is None:
            continue
        rows = _thinned(found[0])
        rows = rows[:, [band for band in bands or _colours(looked.headers[i]) if band < rows.shape[1]]]
        there = present(rows, found[1])
        absent += int((~there).sum())
        pooled.append(rows[there].astype(np.float64))
        kinds.append(looked.headers[i].kind)
    all_values = np.concatenate(pooled) if pooled else np.empty(0)
    if not len(all_values):
        return None, "no value could be read"
    low, high, left_out = robust_range(all_values)
    named = ", ".join(kind for kind, _ in Counter(looked.headers[i].kind for i in deep).most_common())
    why = f"measured on {len(pooled)} images of {named}; black and white, clipped beyond"
    if left_out:
        why += f"; not counted: {', '.join(f'{value:g}' for value in left_out)}"
    if absent:
        why += f"; {absent / (absent + len(all_values)):.1%} missing, black"
    if len(deep) < len(looked.headers):
        why += f"; {len(looked.headers) - len(deep)} of {len(looked.headers)} images have 8 bits and stay as they are"
    return (low, high), why + _faint(pooled, kinds, (low, high), left_out)


def _faint(
    pooled: Sequence[NDArray[np.float64]], kinds: Sequence[str], limits: tuple[float, float], left_out: Sequence[float]
) -> str:
    """What to say where the one range leaves some images few grey levels, as where another scale is among them."""
    faint = list[str]()
    for found, kind in zip(pooled, kinds, strict=True):
        kept = np.clip(found[~np.isin(found, left_out)], *limits)
        levels = 255 * float(np.ptp(kept)) / (limits[1] - limits[0]) if len(kept) else 0.0
        faint += [kind] if 0 < levels < _LEVELS else []
    if len(faint) < max(1, _FAINT * len(pooled)):
        return ""
    return (
        f"; {len(faint)} of those measured ({', '.join(Counter(faint))}) fill fewer than {_LEVELS} of the 256 grey "
        "levels: if they are of another scale, keep them apart, or set data.range=each"
    )


def _colours(said: Header) -> tuple[int, ...]:
    return _FIRST if said.bands >= 3 else (0,)


def _some(numbers: Sequence[int]) -> list[int]:
    """At most so many as are read whole, evenly spaced."""
    return [numbers[i] for i in np.unique(np.linspace(0, len(numbers) - 1, _READ).round().astype(int)).tolist()]


def _read(place: Place) -> tuple[NDArray[Any], float | None] | None:
    try:
        return values(place)
    except BadImage:  # named when the run reads it
        return None


def _thinned(image: NDArray[Any]) -> NDArray[Any]:
    """Evenly spaced pixels of an image, [n, C]."""
    step = max(1, math.isqrt(image.shape[0] * image.shape[1] // _OF_EACH))
    return image[::step, ::step].reshape(-1, image.shape[2])


def robust_range(found: NDArray[np.float64]) -> tuple[float, float, list[float]]:
    """Return the least and the greatest of values, rounded outwards, and those that were taken for markers of no value.

    A single value is such a marker if it lies farther from all others, eight or more, than they are apart (-9999 beside
    reflectances).
    What at most a thousandth of the values reach at an end, far beyond the others, are outliers and not counted either.

    >>> robust_range(np.array([*np.linspace(0.0, 1.0, 9), -9999.0]))
    (0.0, 1.0, [-9999.0])
    """
    found, left_out = np.sort(found), list[float]()
    while (marker := _marker(found)) is not None and len(left_out) < 4:
        left_out.append(marker)
        found = found[found != marker]
    inner_low, inner_high = (float(end) for end in np.quantile(found, (_TAIL, 1 - _TAIL)))
    span = (inner_high - inner_low) or 1.0
    low, high = float(found[0]), float(found[-1])
    low = inner_low if inner_low - low > span else low
    high = inner_high if high - inner_high > span else high
    if high <= low:
        return low, low + 1.0, left_out
    digit = 10.0 ** (math.floor(math.log10(high - low)) - 3)
    return float(f"{math.floor(low / digit) * digit:.12g}"), float(f"{math.ceil(high / digit) * digit:.12g}"), left_out


def _marker(found: NDArray[np.float64]) -> float | None:
    """The value at an end of sorted ones that is farther from the others than they are apart."""
    for end, rest in ((found[0], found[found != found[0]]), (found[-1], found[found != found[-1]])):
        if len(rest) and rest[-1] > rest[0] and len(np.unique(rest)) >= _FEW:
            gap = min(abs(end - rest[0]), abs(end - rest[-1]))
            if gap > rest[-1] - rest[0]:
                return float(end)
    return None
