"""The k-NN score while a model is trained: the same features, the same search as ``ssl-vit eval knn``."""

from __future__ import annotations

import logging
from dataclasses import replace

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.class_folders import in_class_folders
from ssl_vit.data.inventory import known_by
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.features import FeatureSet, extract
from ssl_vit.eval.knn import score_features
from ssl_vit.eval.labelled import LABELS, without_strays
from ssl_vit.eval.protocol import Protocol
from ssl_vit.eval.readout import Readout

log = logging.getLogger("ssl_vit")

_HALVES = "every other image of val is the bank of the rest"


class OnlineScore:
    """A backbone is scored on labelled images: ``val`` asks the bank ``train``, where both have the same classes.

    Else, as when the training images have no labels, every other image of ``val`` is the bank of the rest.
    """

    def __init__(self, train: Source, val: Source, readout: Readout, role: str = "unknown") -> None:
        train, val = in_class_folders(train)[0], without_strays(val, f"--val {val.root}")
        if not val.classes:
            raise UserError(f"--val {val.root}: no labels; expected {LABELS}")
        self._bank = train if train.classes == val.classes else None
        self._val, self._readout, self._role = val, readout, role
        self._known = {"val": known_by(val)} | ({} if self._bank is None else {"train": known_by(self._bank)})
        if self._bank is None:
            log.info("the training images have not the labels of %s: half of it is the bank of the rest", val.root)

    def __call__(self, backbone: Backbone) -> tuple[dict[str, float], Protocol]:
        """The result is top-1 in percent for each k, and how it was made; the backbone's mode and device stay."""
        device = next(backbone.parameters()).device
        val = extract(backbone, self._val, self._readout, device=device)
        sides = {"val": val.side.of(self._known["val"])}
        if self._bank is None:
            outcome = score_features(_every_other(val, 0), _every_other(val, 1))
            outcome = replace(outcome, settings={**outcome.settings, "bank": _HALVES})
        else:
            bank = extract(backbone, self._bank, self._readout, device=device)
            sides["train"] = bank.side.of(self._known["train"])
            outcome = score_features(bank, val)
        classes = len(self._val.classes)
        protocol = Protocol.of(
            "knn",
            backbone,
            self._readout,
            sides,
            classes=classes,
            settings=outcome.settings,
            role=self._role,
            pixels=self._val.pixels,
        )
        return dict(outcome.scores), protocol


def _every_other(found: FeatureSet, start: int) -> FeatureSet:
    return FeatureSet(found.features[start::2], found.labels[start::2], found.files[start::2], found.side)
