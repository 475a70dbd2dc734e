"""The k-NN score while a model is trained: the same features, the same search as ``ssl-vit eval knn``."""

from __future__ import annotations

import logging
import os

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.features import FeatureSet, extract
from ssl_vit.eval.knn import knn

log = logging.getLogger("ssl_vit")


class OnlineScore:
    """Scores a backbone on labelled images: ``train`` is the bank and ``val`` asks, where both have the same classes.

    Else, as when the training images have no labels, every other image of ``val`` is the bank of the rest.
    """

    def __init__(
        self,
        train: Source,
        val: Source,
        *,
        image_size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        if not val.classes:
            raise UserError(f"--val {val.root}: no labels; expected two or more sub-folders of images, one a class")
        self._bank = train if train.classes == val.classes else None
        self._val, self._view = val, (image_size, mean, std)
        if self._bank is None:
            log.info("the training images have not the labels of %s: half of it is the bank of the rest", val.root)

    def __call__(self, backbone: Backbone) -> dict[str, float]:
        """Top-1 in percent for each k; the backbone's mode and device stay."""
        val = self._features(backbone, self._val)
        if self._bank is not None:
            bank = self._features(backbone, self._bank)
            result = knn(bank.features, bank.labels, val.features, val.labels)
        else:
            result = knn(val.features[::2], val.labels[::2], val.features[1::2], val.labels[1::2])
        return {str(k): top1 for k, top1 in result.top1.items()}

    def _features(self, backbone: Backbone, source: Source) -> FeatureSet:
        size, mean, std = self._view
        return extract(
            backbone,
            source,
            batch_size=64,
            workers=min(8, os.cpu_count() or 1) if len(source) > 1000 else 0,
            device=next(backbone.parameters()).device,
            image_size=size,
            mean=mean,
            std=std,
        )
