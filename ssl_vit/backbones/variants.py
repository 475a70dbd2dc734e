"""What is known of each variant of our own families: sizes measured once, accuracies as published."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from ssl_vit.backbones import families

TABLE = "variants.csv"  # beside the families; docs/backbone_pages.py --measure writes all of it but top1


class Variant(NamedTuple):
    """A variant is one row of the table."""

    parameters: int  # of the backbone alone
    with_classifier: int  # parameters as papers count them
    gmacs: float  # 1e9 multiply-adds of one image at the built size, with the classifier
    top1: float | None  # published accuracy on ImageNet-1k, trained on nothing else, at the built size, %


@cache
def variants() -> dict[str, Variant]:
    """Every variant by its name in timm's registry.

    >>> variants()["cswin_tiny_224"]
    Variant(parameters=21807552, with_classifier=22320552, gmacs=4.324, top1=82.8)
    """
    lines = (files(families) / TABLE).read_text().splitlines()
    return {
        row["name"]: Variant(
            int(row["parameters"]),
            int(row["with_classifier"]),
            float(row["gmacs"]),
            float(row["top1"]) if row["top1"] else None,
        )
        for row in csv.DictReader(lines)
    }
