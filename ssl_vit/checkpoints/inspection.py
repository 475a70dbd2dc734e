"""An inspection says what a file of weights is: whose, in whose names, which architecture, what is no backbone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import timm
import torch
from torch import Tensor

from ssl_vit.backbones.backbone import Colour
from ssl_vit.checkpoints.description import Description, prepared, read_description
from ssl_vit.checkpoints.layouts import IMAGENET, OF_IMAGENET, recognise
from ssl_vit.checkpoints.reader import read_document
from ssl_vit.checkpoints.vocabularies import to_timm
from ssl_vit.errors import UserError

# Names that are no part of a backbone in any layout: heads, projectors, decoders, tokens that only pretraining needs.
_BESIDE = re.compile(
    r"(?:head(?!\.norm\.)|heads|head_dense|head_dist|fc|classifier|lm_head|projector|predictor|mask_token"
    r"|masked_embed|decoder_\w+|aux_head)(?:\.|$)"
)
_NO_WEIGHTS = re.compile(r"(?:^|\.)(?:relative_position_index|attn_mask)$")  # computed, not learned

_PUBLISHED = (  # a name of a weight that only this kind has, and the names to try
    (r"^blocks\.0\.attn\.q_bias$", "beit_base_patch16_224 beit_large_patch16_224"),
    (r"^blocks\.0\.ls1\.gamma$", "vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2"),
    (
        r"^blocks\.0\.attn\.qkv\.bias$",
        "vit_tiny_patch16_224 vit_small_patch16_224 vit_small_patch8_224 vit_base_patch16_224 vit_base_patch8_224 "
        "vit_base_patch32_224 vit_large_patch16_224",
    ),
    (
        r"^layers\.0\.blocks\.0\.attn\.relative_position_bias_table$",
        "swin_tiny_patch4_window7_224 swin_small_patch4_window7_224 swin_base_patch4_window7_224",
    ),
    (r"^layer1\.0\.conv1\.weight$", "resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2"),
    (r"^stages\.0\.blocks\.0\.conv_dw\.weight$", "convnext_tiny convnext_small convnext_base"),
    (r"^stages\.0\.blocks\.0\.attn\.q\.weight$", "pvt_v2_b0 pvt_v2_b1 pvt_v2_b2 pvt_v2_b3 pvt_v2_b4 pvt_v2_b5"),
)
POSITIONS = re.compile(r"(?:^|\.)(?:pos_embed|relative_position_bias_table)$")  # may have another size than the model's


@dataclass(frozen=True)
class Inspection:
    """An inspection is what was found in a file."""

    file: Path
    layout: str  # who saved it
    names: str  # whose names the backbone's weights have
    description: Description | None  # what the file says of itself
    left: list[str]  # names that are no part of the backbone, as they are in the file
    state: dict[str, Tensor] = field(repr=False)  # the backbone's, under timm's names
    own: dict[str, Tensor] = field(repr=False)  # the same before they were renamed, with a head where there is one

    @cached_property
    def architecture(self) -> str | None:
        """The architecture, by its name in `ssl-vit list backbones`, is as the file says or as every weight fits."""
        return self.description.name if self.description else _architecture(self.state)

    @property
    def colours(self) -> tuple[Colour, Colour] | None:
        """Mean and deviation of the images that it was trained on, as far as the file or its layout says."""
        if self.description:
            return self.description.mean, self.description.std
        return prepared(self.file) or (IMAGENET if self.layout.split(" (")[0] in OF_IMAGENET else None)

    def __str__(self) -> str:
        parameters = sum(value.numel() for value in self.state.values())
        return (
            f"{self.file}: {self.layout}, names of {self.names}\n"
            f"backbone: {len(self.state)} tensors, {parameters:,} values\n"
            f"fits: {self.architecture or 'no architecture that is tried; name it with --backbone'}\n"
            f"left over: {self.groups() or 'nothing'}"
        )

    def groups(self) -> str:
        """Count what is left over by the first part of the names, in words."""
        counts = Counter(key.split(".")[0] for key in self.left)
        return ", ".join(f"{name} ({count})" for name, count in counts.items())


def inspect(path: str | Path) -> Inspection:
    """Say what a file of weights is; nothing in it is run, and nothing is fetched but what a hub id names.

    path: a .safetensors, .pth, .pt, .ckpt or .bin file, a folder of a run, of timm's or of transformers', or a hub
    id, ``hf-hub:owner/name``.

    Raises:
        UserError: unreadable, a pickle that asks for more than tensors and plain values, or no weights in it.
    """
    file, document = read_document(path)
    found = recognise(document)
    if found is None:
        entries = ", ".join(list(document)[:5]) or "nothing"
        raise UserError(f"{file}: no weights found (it holds {entries}); give a file with a model's state_dict")
    names, mapped = to_timm(found.state)
    state = of_backbone(mapped.state)
    beside = [key for key in mapped.state if _BESIDE.match(key)]
    if not state:
        raise UserError(f"{file}: {found.layout}, but no weight of a backbone; give the file that holds the backbone")
    left = [*found.left, *mapped.left, *beside]
    return Inspection(file, found.layout, names, read_description(file, document), left, state, found.state)


def of_backbone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what is a head's by its name, and without what is computed and not learned."""
    return {key: value for key, value in state.items() if not _BESIDE.match(key) and not _NO_WEIGHTS.search(key)}


def _architecture(state: dict[str, Tensor]) -> str | None:
    for mark, names in _PUBLISHED:
        if any(re.search(mark, key) for key in state):
            return next((name for name in names.split() if _is(name, state)), None)
    return None


def _is(name: str, state: dict[str, Tensor]) -> bool:
    """Whether every weight of the published model is there with its shape, but for positions of another size."""
    with torch.device("meta"):
        expected = timm.create_model(name, num_classes=0).state_dict()
    optional = re.compile(r"(?:^|\.)(?:norm\.\w+|fc_norm\.\w+|num_batches_tracked)$")
    return all(
        state[key].shape == value.shape or POSITIONS.search(key) is not None
        if key in state
        else optional.search(key) is not None
        for key, value in expected.items()
    )
