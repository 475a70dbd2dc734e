"""Beside exported weights lies what people read: a model card, and the table of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ssl_vit.backbones.backbone import BackboneInfo

CARD, KEYS = "README.md", "keys.tsv"
_LICENCE = "to be filled in by whoever owns the images and the run"


def write(
    folder: Path,
    info: BackboneInfo,
    description: Mapping[str, Any],
    verdict: str,
    snippet: str,
    keys: Sequence[tuple[str, str, tuple[int, ...]]],
) -> None:
    """Write README.md, and keys.tsv where the export has names of weights: timm's name, the new name, timm's shape.

    description: of the run that trained the weights; what it groups together (its data, its scores, its settings)
    gets a section of its own.
    """
    plain = {name: value for name, value in description.items() if not isinstance(value, Mapping)}
    facts = {
        "Architecture": f"{info.name}, {info.parameters:,} parameters, features of {info.dim}",
        "Images": f"{info.size[0]}×{info.size[1]} pixels, in [0, 1], minus {info.mean}, divided by {info.std}",
        **{_title(name): value for name, value in plain.items()},
        "Check": verdict,
        "Licence": f"unspecified ({_LICENCE})",
    }
    lines = ["---", f"license: unknown  # {_LICENCE}", "tags: [self-supervised-learning]", "---", ""]
    by_us = "method" in description
    lines += ["# Backbone pretrained without labels by ssl_vit" if by_us else "# Backbone, exported by ssl_vit", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", "```python", snippet, "```"]
    if keys:
        lines += ["", f"The {len(keys)} names, old and new, are in {KEYS}."]
        rows = ["timm\texported\tshape", *("\t".join((old, new, str(list(shape)))) for old, new, shape in keys)]
        (folder / KEYS).write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name, group in description.items():
        if isinstance(group, Mapping):
            text = yaml.safe_dump(dict(group), sort_keys=False, allow_unicode=True, width=120)
            lines += ["", f"## {_title(name)}", "", "```yaml", text.rstrip(), "```"]
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
