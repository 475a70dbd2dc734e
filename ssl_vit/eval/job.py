"""What a kind of score is given, and what it gives back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.checkpoints.reader import digest
from ssl_vit.data.dataset_name import Images, images_name
from ssl_vit.data.evalset import Alteration
from ssl_vit.data.inventory import known_by
from ssl_vit.data.left_out import note_left_out
from ssl_vit.data.measure import Numbered, look, settled
from ssl_vit.data.sources import Source, open_source
from ssl_vit.data.values import Pixels
from ssl_vit.device import the_device
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval import weights as weights_of
from ssl_vit.eval.features import FeatureSet, Keep, extract
from ssl_vit.eval.labelled import check_every_class, open_labelled, with_classes_of
from ssl_vit.eval.protocol import Protocol, Side
from ssl_vit.eval.ranks import Ranks
from ssl_vit.eval.readout import LAST, Readout


@dataclass(frozen=True)
class Outcome:
    """An outcome is what a kind of score found, and what the protocol says of it."""

    scores: Mapping[str, Any]  # plain values; kept under the kind's name
    settings: Mapping[str, Any]  # what was asked for beside the features: k, temperature, rates, …; nothing found
    seed: int | None = None  # None where nothing is drawn
    more: Mapping[str, Any] = field(default_factory=dict)  # beside the scores, under names of their own
    correct: NDArray[np.bool_] | None = None  # [M] by image of val, for tests in pairs


@dataclass
class Job:
    """A job has the weights to score, the folders to score them on, and how features are read.

    A kind opens its folders first, so that a mistake there is answered before the weights are loaded; ``labelled``
    and ``unlabelled`` do that and note what the protocol says about the images.
    """

    weights: Path
    folders: Mapping[str, Images]  # by flag: "train", "val", …
    name: str | None = None  # timm's name of the architecture, for a weights file
    mean: Sequence[float] | str | None = None  # of the images that the weights were trained on, if they don't say it
    std: Sequence[float] | str | None = None
    layers: tuple[int, ...] = LAST
    pooling: str = "model"
    precision: str = "float32"
    seed: int = 0
    keep: Path | None = None  # a folder for features; a sub-folder a side
    max_bad: float = 1.0  # share of a side's images that may be unreadable
    unfinished: Path | None = None  # a folder for what a kill should not cost; removed once the result is written
    ranks: Ranks = field(default_factory=Ranks)
    sides: dict[str, Side] = field(default_factory=dict)  # what was looked at; fill it in where nothing here does
    outside_links: bool = False  # whether links that lead out of a folder of images are followed
    classes: int | None = None
    pixels: Pixels | None = None  # how values become 8 bits, decided by the first images that are opened

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone is loaded when it is first asked for, in evaluation mode, on the job's device."""
        return weights_of.load_backbone(self.weights, self.name, self.mean, self.std).eval().to(self.device)

    @cached_property
    def weights_sha256(self) -> str:
        """The sha256 of the file of weights, in hex, tells weights apart."""
        return digest(self.weights)

    @property
    def device(self) -> torch.device:
        """The device is a GPU if there is one."""
        return the_device()

    @property
    def dtype(self) -> torch.dtype:
        """Products are of this type where its precision is enough; the network checks that for itself."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    @cached_property
    def readout(self) -> Readout:
        """The readout says how an image becomes a feature vector."""
        return Readout.of(self.backbone.info, self.layers, self.pooling, self.precision)

    def labelled(self) -> tuple[Source, Source]:
        """Open ``train`` and ``val``, of classes that train has; UserError for anything that can't be scored."""
        train = open_labelled(self.folders["train"], "train", self.outside_links)
        val = open_labelled(self.folders["val"], "val", self.outside_links, train.classes)
        self.classes = len(train.classes)
        val = with_classes_of(train, val)
        pixels = self.pixels_of(train, val)
        return replace(train, pixels=pixels), replace(val, pixels=pixels)

    def pixels_of(self, *images: Numbered) -> Pixels:
        """How the values of images become 8 bits: as where the weights were trained, else as measured on the first."""
        if self.pixels is None:
            looked = [look(each) for each in images]
            trained = weights_of.pixels_of(self.weights)
            self.pixels = settled(looked, trained)
        return self.pixels

    def path(self, side: str) -> Path:
        """The path says where the files of a side are; UserError for images that are not files."""
        given = self.folders[side]
        if not isinstance(given, (str, os.PathLike)):
            raise UserError(
                f"--{side} {images_name(given)}: this score reads files of more than images; give their folder"
            )
        return Path(given)

    def unlabelled(self, side: str) -> Source:
        """Open a folder whose labels, if it has any, don't matter."""
        note_left_out(source := open_source(self.folders[side], self.outside_links))
        return replace(source, pixels=self.pixels_of(source))

    def features(self, source: Source, side: str, readout: Readout | None = None) -> FeatureSet:
        """The images become features as they are; the protocol notes them under the side's name."""
        source = replace(source, pixels=self.pixels_of(source))
        keep = Keep(self.keep / side, self.weights_sha256, self.ranks) if self.keep else None
        found = extract(self.backbone, source, readout or self.readout, device=self.device, keep=keep)
        if source.classes:
            check_every_class(found.labels, source)
        self.saw(side, found.side if self.ranks.rank else found.side.of(known_by(source)))
        return found

    def saw(self, side: str, what: Side) -> None:
        """Note what was looked at, for the protocol; RunFailed where more of it than `max_bad` could not be read."""
        total = what.images + what.left_out
        if what.left_out > self.max_bad * total:
            raise RunFailed(
                f"--{side} {images_name(self.folders[side])}: {what.left_out} of {total} images "
                f"({what.left_out / total:.1%}) could not be read, more than the {self.max_bad:.1%} that --max-bad "
                "allows; mend or remove those named above, or raise --max-bad"
            )
        self.sides[side] = what

    def altered(self, source: Source, alter: Alteration, title: str) -> FeatureSet:
        """The images become features after a change on purpose; that is for robustness, and never to learn from."""
        source = replace(source, pixels=self.pixels_of(source))
        return extract(self.backbone, source, self.readout, device=self.device, alter=alter, title=title)

    def protocol(self, score: str, outcome: Outcome) -> Protocol:
        """The protocol holds all that the outcome depends on."""
        return Protocol.of(
            score,
            self.backbone,
            self.readout,
            self.sides,
            classes=self.classes,
            settings=outcome.settings,
            seed=outcome.seed,
            role=weights_of.role_of(self.weights),
            weights_sha256=self.weights_sha256,
            pixels=self.pixels or Pixels(),
        )
