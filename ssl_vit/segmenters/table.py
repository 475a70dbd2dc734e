"""Every segmenter that can be trained on a backbone: the one table that all lists of them come from. Needs no torch.

A new segmenter is one file, one name and one entry here.
"""

from __future__ import annotations

from typing import Literal

SegmenterName = Literal["fpt", "maskformer", "upernet"]
"""A segmenter that ``ssl-vit eval segmentation`` trains."""

SEGMENTERS: dict[SegmenterName, str] = {
    "fpt": "ssl_vit.segmenters.build:build_fpt",
    "maskformer": "ssl_vit.segmenters.build:build_maskformer",
    "upernet": "ssl_vit.segmenters.build:build_upernet",
}
"""Where each is built: "module:function" of (backbone, classes, which of them are things, pixels a side)."""
