"""All that a score depends on, kept with every number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import faiss
import timm
import torch

from ssl_vit import __version__
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.inventory import Known
from ssl_vit.data.values import ORDINARY, Pixels
from ssl_vit.eval.readout import Readout, pooling_of

_OF_THE_WEIGHTS = (
    "encoder",
    "encoder_pools",
    "role",
    "weights_sha256",
    "image_size",
    "mean",
    "std",
    "transform",
    "pixels",
    "versions",
)


class Side(NamedTuple):
    """A side is one set of images that a score looked at."""

    images: int  # that could be read
    left_out: int  # that could not
    sha256: str  # of their names and sizes, and of their contents where these were read for it
    by_content: bool = False  # whether they were

    def of(self, known: Known) -> Side:
        """The same, with what the images are known by."""
        return self._replace(sha256=known.sha256, by_content=known.by_content)


def _versions() -> dict[str, str]:
    return {
        "ssl_vit": __version__,
        "timm": timm.__version__,
        "torch": str(torch.__version__),
        "faiss": faiss.__version__,
    }


@dataclass(frozen=True)
class Protocol:
    """A protocol says how a number was made. Two numbers whose ``hash`` is equal may stand in one table."""

    score: str
    encoder: str  # the architecture
    role: str  # "teacher" or "student" of its run; "unknown" for weights that don't say
    weights_sha256: str | None  # None while a model is trained
    layers: tuple[int, ...]  # see Readout
    pooling: str
    encoder_pools: str  # how the model's own head would, in timm's words: what pooling "model" means
    transform: str
    image_size: int  # pixels
    mean: tuple[float, float, float]  # of images in [0, 1]
    std: tuple[float, float, float]
    precision: str
    settings: Mapping[str, Any]  # k, temperature, rates … of this kind of score
    seed: int | None  # None where nothing is drawn
    images: Mapping[str, int]  # by side
    left_out: Mapping[str, int]  # images that could not be read, by side
    data_sha256: Mapping[str, str]  # of the files' names, sizes and, where `by_content` says so, contents, by side
    classes: int | None
    by_content: Mapping[str, bool] = field(default_factory=dict)
    pixels: Mapping[str, Any] = field(default_factory=dict)  # the range and the bands of the images' values
    versions: Mapping[str, str] = field(default_factory=_versions)

    @classmethod
    def of(
        cls,
        score: str,
        backbone: Backbone,
        readout: Readout,
        sides: Mapping[str, Side],
        *,
        classes: int | None = None,
        settings: Mapping[str, Any] | None = None,
        seed: int | None = None,
        role: str = "unknown",
        weights_sha256: str | None = None,
        pixels: Pixels = ORDINARY,
    ) -> Protocol:
        """The protocol is put together from what was used."""
        return cls(
            score=score,
            encoder=backbone.info.name,
            role=role,
            weights_sha256=weights_sha256,
            layers=readout.layers,
            pooling=readout.pooling,
            encoder_pools=pooling_of(backbone),
            transform=readout.transform,
            image_size=readout.image_size,
            mean=readout.mean,
            std=readout.std,
            precision=readout.precision,
            settings=dict(settings or {}),
            seed=seed,
            images={name: side.images for name, side in sides.items()},
            left_out={name: side.left_out for name, side in sides.items()},
            data_sha256={name: side.sha256 for name, side in sides.items()},
            by_content={name: side.by_content for name, side in sides.items()},
            classes=classes,
            pixels=pixels._asdict(),
        )

    @property
    def hash(self) -> str:
        """Twelve hex digits stand for all but versions and what belongs to the weights (size and colours too)."""
        same = {name: value for name, value in asdict(self).items() if name not in (*_OF_THE_WEIGHTS, "versions")}
        return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]

    def as_dict(self) -> dict[str, Any]:
        """The dict has everything, for JSON, the hash first; the settings stand beside the rest."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return {"hash": self.hash} | {k: v for k, v in values.items() if k != "settings"} | dict(self.settings)
