"""A backbone is one function of images here, for formats that keep the computation and not only the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.errors import RunFailed
from ssl_vit.export.target import frozen, probe


class Outputs(nn.Module):
    """Images [B, 3, H, W] give pooled [B, D], patches [B, D, H/s, W/s], then the pyramid, finest first; fixed H, W."""

    def __init__(self, backbone: AdaptedBackbone) -> None:
        super().__init__()
        self.backbone = frozen(backbone)
        for module in self.backbone.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False  # type: ignore[assignment]  # a plain flag of timm's, not a parameter

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute all outputs, as a flat tuple; images: [B, 3, H, W] normalised."""
        pooled, patches = self.backbone(images)
        several = bool(self.backbone.layout.levels)  # with one scale the pyramid is the patches, and one pass is enough
        return pooled, patches, *(self.backbone.pyramid(images) if several else [patches.clone()])


def trace(backbone: AdaptedBackbone) -> ExportedProgram:
    """Trace the program of ``Outputs`` with a free number of images; RunFailed where torch can't follow the model."""
    batch = ({0: torch.export.Dim("batch")},)
    try:
        return torch.export.export(Outputs(backbone), (probe(backbone),), dynamic_shapes=batch)
    except Exception as error:  # of any type: whatever torch meets in the model that it can't follow
        said = " ".join(str(error).split())[:200]
        raise RunFailed(f"{backbone.info.name}: torch {torch.__version__} can't trace it: {said}") from error


def names(backbone: AdaptedBackbone) -> list[str]:
    """Name the outputs, in order."""
    return ["pooled", "patches", *(f"pyramid_{level}" for level in range(len(backbone.info.stages)))]
