"""Pictures show the boxes that a detector found beside what is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ssl_vit.data.decode import decode
from ssl_vit.data.values import Pixels
from ssl_vit.drawing import Boxed, boxes_figure


def figure(result: Mapping[str, Any]) -> Figure:
    """Draw images of val, and what the detector found that began with weights, for ``ssl-vit eval detection``.

    Dots are the places that DETR's and Deformable DETR's queries looked at, a colour for each box.
    """
    images = [
        Boxed(
            decode(example["file"], Pixels.of(result["protocol"].get("pixels"))),
            np.array(example["true"], np.float32).reshape(-1, 4),
            example["true_names"],
            np.array(example["found"], np.float32).reshape(-1, 4),
            example["found_names"],
            [np.array(places, np.float32) for places in example["looks"]],
        )
        for example in result["examples"]
    ]
    return boxes_figure(images, result["protocol"]["detector"])
