"""An inspection says what a file of weights is: whose, in whose names, which architecture, what is no backbone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ssl_vit.checkpoints.architectures import Architecture, architecture_of, published_colours, timm_colours
from ssl_vit.checkpoints.colours import IMAGENET, OF_IMAGENET, OF_TIMM, Colour, Colours, usual
from ssl_vit.checkpoints.description import Description, prepared, read_description
from ssl_vit.checkpoints.layouts import GENERAL, LIKE_DEIT, Recognised, recognise
from ssl_vit.checkpoints.places import Place, is_rooted, places, prefixes_found
from ssl_vit.checkpoints.reader import Document, read_document
from ssl_vit.checkpoints.vocabularies import to_timm
from ssl_vit.errors import UserError

# Names that are no part of a backbone in any layout: heads, projectors, decoders, tokens that only pretraining needs.
_BESIDE = re.compile(
    r"(?:head(?!\.norm\.)|heads|head_dense|head_dist|fc|classifier|lm_head|projectors?|predictor|mask_token"
    r"|masked_embed|decoder_\w+|aux_head)(?:\.|$)"
)
_NO_WEIGHTS = re.compile(r"(?:^|\.)(?:relative_position_index|attn_mask)$")  # computed, not learned

# Names of a classifier, which weights have that were trained with labels.
_CLASSIFIERS = {"head", "head_dist", "heads", "fc", "classifier"}


@dataclass(frozen=True)
class Inspection:
    """An inspection is what was found in a file."""

    file: Path
    layout: str  # who saved it
    names: str  # whose names the backbone's weights have
    description: Description | None  # what the file says of itself
    left: list[str]  # names that are no part of the backbone, as they are in the file
    state: dict[str, Tensor] = field(repr=False)  # the backbone's, under timm's names
    own: dict[str, Tensor] = field(repr=False)  # the same before they were renamed, with a head where there is one
    place: Place | None = field(default=None, repr=False)  # where it lies, if that isn't what the layout says
    document: Document = field(default_factory=dict, repr=False)  # where to look on, if the layout doesn't say it

    @cached_property
    def architecture(self) -> Architecture | None:
        """The architecture is as the file says or as every weight fits."""
        said = self.description
        return Architecture(said.name, said.model_args, said.size) if said else architecture_of(self.state)

    @property
    def ours(self) -> bool:
        """Whether a run of ours has trained them."""
        return self.description is not None and self.description.ours

    def colours(self, name: str, own: tuple[Colour, Colour]) -> Colours:
        """Say with which mean and deviation it was trained, as far as the file, its layout or its network tells.

        name: the architecture; own: what timm has for it.
        """
        if self.description:
            return Colours(self.description.mean, self.description.std, "as the file says")
        if given := prepared(self.file):
            return Colours(*given, "as preprocessor_config.json says")
        author = self.layout.split(" (")[0]
        if author in OF_IMAGENET:
            return Colours(*IMAGENET, f"ImageNet's, as {author} uses")
        if author in OF_TIMM:
            return Colours(*own, f"as {author.partition(',')[0]} uses")
        classified = any(key.split(".")[0] in _CLASSIFIERS for key in self.left)
        return usual(name, own, published_colours(name), classified and self.layout != LIKE_DEIT)

    def elsewhere(self, expected: Collection[str]) -> Iterator[Inspection]:
        """Look at all other places in the file where a backbone with such names may lie, the likeliest first."""
        for place in places(self.document, expected):
            found = _in(place, self.layout, self.file, self.document, expected)
            if found is not None and found.own.keys() != self.own.keys():
                yield found

    def __str__(self) -> str:
        parameters = sum(value.numel() for value in self.state.values())
        fits = self.architecture
        own = timm_colours(fits.name) if fits else None
        broken = not_finite(self.state)
        return "\n".join(
            [
                f"{self.file}: {self.layout}, names of {self.names}",
                f"backbone: {len(self.state)} tensors, {parameters:,} values{self.taken()}",
                f"fits: {fits or 'no architecture that is tried; name it with --backbone'}",
                f"left over: {self.groups() or 'nothing'}",
                *([f"not finite: {len(broken)} tensors, as {broken[0]}: it can't be used"] if broken else []),
                f"images: {self.colours(fits.name, own)}" if fits and own else f"names: {self.where()}",
            ]
        )

    def groups(self) -> str:
        """Count what is left over by the first part of the names, in words."""
        counts = Counter(key.split(".")[0] for key in self.left)
        return ", ".join(f"{name} ({count})" for name, count in counts.items())

    def taken(self) -> str:
        """Say where in the file it lies, in words; "" where its layout says it."""
        return f", taken from {self.place}" if self.place else ""

    def where(self) -> str:
        """Say under which prefixes its weights lie, in words."""
        return f"its weights lie under {prefixes_found(self.own)}"


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """List the tensors that hold NaN or infinity."""
    return [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]


def inspect(path: str | Path) -> Inspection:
    """Say what a file of weights is; nothing in it is run, and nothing is fetched but what a hub id names.

    path: a .safetensors, .pth, .pt, .ckpt or .bin file, a folder of a run, of timm's or of transformers', or a hub
    id, ``hf-hub:owner/name``. Where the layout doesn't say where the backbone lies, the first of all entries and
    prefixes is taken whose weights are a published architecture's.

    Raises:
        UserError: unreadable, a pickle that asks for more than tensors and plain values, or no weights in it.
    """
    file, document = read_document(path)
    said, found = read_description(file, document), recognise(document)
    plain = said is not None or (found is not None and found.layout not in GENERAL and is_rooted(found.state))
    if not plain:
        made = [_in(place, found.layout if found else "timm", file, document) for place in places(document)]
        several = [each for each in made if each is not None]
        if chosen := next(
            (each for each in several if len(several) == 1 or each.architecture), next(iter(several), None)
        ):
            same = found is not None and all(chosen.own.get(key) is value for key, value in found.state.items())
            return replace(chosen, place=None) if same else chosen
    if found is None:
        entries = ", ".join(list(document)[:5]) or "nothing"
        raise UserError(f"{file}: no weights found (it holds {entries}); give a file with a model's state_dict")
    return _inspection(file, found, said, document={} if plain else document)


def _inspection(file: Path, found: Recognised, said: Description | None, **more: Any) -> Inspection:
    names, mapped = to_timm(found.state)
    state = of_backbone(mapped.state)
    beside = [key for key in mapped.state if _BESIDE.match(key)]
    if not state:
        raise UserError(f"{file}: {found.layout}, but no weight of a backbone; give the file that holds the backbone")
    left = [*found.left, *mapped.left, *beside]
    return Inspection(file, found.layout, names, said, left, state, found.state, **more)


def _in(place: Place, layout: str, file: Path, document: Document, expected: Collection[str] = ()) -> Inspection | None:
    """What lies in a place: its layout is the author's if its names tell one, else that of the file."""
    found = recognise(dict(place.state))
    if found is None or not (is_rooted(found.state) or any(name in found.state for name in expected)):
        return None
    left, layout = [*place.left, *found.left], layout if found.layout in GENERAL else found.layout
    return _inspection(file, Recognised(layout, found.state, left), None, place=place, document=document)


def of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what is a head's by its name, and without what is computed and not learned."""
    return {key: value for key, value in state.items() if not _BESIDE.match(key) and not _NO_WEIGHTS.search(key)}
