"""What lies beside exported weights for people to read: a model card, and the table of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssl_vit.backbones.backbone import BackboneInfo

CARD, KEYS = "README.md", "keys.tsv"


def write(
    folder: Path,
    info: BackboneInfo,
    description: Mapping[str, Any],
    verdict: str,
    snippet: str,
    keys: Sequence[tuple[str, str, tuple[int, ...]]],
) -> None:
    """README.md, and keys.tsv where weights were renamed: timm's name, the new name, timm's shape."""
    facts = {
        "Architecture": f"{info.name}, {info.parameters:,} parameters, features of {info.dim}",
        "Images": f"{info.size[0]}×{info.size[1]} pixels, in [0, 1], minus {info.mean}, divided by {info.std}",
        **{name.replace("_", " ").capitalize(): value for name, value in description.items()},
        "Check": verdict,
        "Licence": "unspecified (to be filled in by whoever owns the images and the run)",
    }
    lines = ["# Backbone pretrained without labels by ssl_vit", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "```python", snippet, "```"]
    if keys:
        lines += ["", f"The {len(keys)} names, old and new, are in {KEYS}."]
        rows = ["timm\texported\tshape", *("\t".join((old, new, str(list(shape)))) for old, new, shape in keys)]
        (folder / KEYS).write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")
