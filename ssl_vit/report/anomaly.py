"""Pictures show where an image is far from everything normal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from ssl_vit.data.crops import Box, resize
from ssl_vit.data.decode import decode
from ssl_vit.data.values import Pixels
from ssl_vit.drawing import STYLE

COLUMNS = 4


def figure(result: Mapping[str, Any]) -> Figure:
    """Draw images with defects and their heat maps, on one scale, for ``ssl-vit eval anomaly``."""
    examples, protocol = result["examples"], result["protocol"]
    hottest = max((float(np.max(each["heat"])) for each in examples), default=1.0)
    rows = max(1, -(-len(examples) // (COLUMNS // 2)))
    with mpl.rc_context(cast(Any, STYLE)):
        drawn = Figure(figsize=(2.6 * COLUMNS, 2.8 * rows + 0.5), layout="constrained")
        drawn.suptitle("Distance to what is normal (the same colours in all)")
        for place, example in enumerate(examples):
            image = decode(example["file"], Pixels.of(protocol.get("pixels")))
            height, width = image.shape[:2]
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            shown = resize(image, Box(top, left, side, side), (256, 256), "bilinear").permute(1, 2, 0).numpy()
            for column, heat in enumerate((None, example["heat"])):
                axes = drawn.add_subplot(rows, COLUMNS, 2 * place + column + 1)
                axes.imshow(shown, extent=(0, 1, 1, 0))
                if heat is not None:
                    axes.imshow(np.array(heat), cmap="inferno", vmin=0, vmax=hottest, alpha=0.6, extent=(0, 1, 1, 0))
                    axes.set_title(f"{example['distance']:.2f}", fontsize=8)
                else:
                    axes.set_title(example["name"], fontsize=8)
                axes.axis("off")
    return drawn
