"""AutoFormer's official network for the search, of which ours is a part; its checkpoints hold the whole."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

from ssl_vit.backbones.families import autoformer

SUPERNETS = {"T": ("tiny", 256, 4, 14), "S": ("small", 448, 7, 14), "B": ("base", 640, 10, 16)}  # width, heads, depth


class Supernet(nn.Module):
    """The shared weights, by their official names; the forward pass is our subnet's, with its part of them."""

    def __init__(self, size: str) -> None:
        super().__init__()
        name, width, heads, depth = SUPERNETS[size]
        for key, shape in _shapes(width, heads, depth).items():
            *path, last = key.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(torch.zeros(shape)))
        self._subnet = (timm.create_model(f"autoformer_{name}"),)  # in a tuple, so that its weights aren't counted

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> logits [B, 1000]."""
        (subnet,) = self._subnet
        logits: Tensor = torch.func.functional_call(
            subnet.train(self.training), autoformer.load_official(dict(self.named_parameters())), images
        )
        return logits


def _shapes(width: int, heads: int, depth: int) -> dict[str, tuple[int, ...]]:
    layers = {"attn.qkv": (3 * heads * autoformer.HEAD_DIM, width), "attn.proj": (width, heads * autoformer.HEAD_DIM)}
    layers |= {"fc1": (4 * width, width), "fc2": (width, 4 * width)}
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 1 + 14 * 14, width),
        "cls_token": (1, 1, width),
        "patch_embed_super.proj.weight": (width, 3, 16, 16),
        "patch_embed_super.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1000, width),
        "head.bias": (1000,),
    }
    for block in (f"blocks.{i}." for i in range(depth)):
        for layer, shape in layers.items():
            shapes |= {f"{block}{layer}.weight": shape, f"{block}{layer}.bias": shape[:1]}
        for layer in ("attn_layer_norm", "ffn_layer_norm"):
            shapes |= {f"{block}{layer}.weight": (width,), f"{block}{layer}.bias": (width,)}
        for tables in ("k", "v"):
            for axis in ("v", "h"):
                key = f"{block}attn.rel_pos_embed_{tables}.embeddings_table_{axis}"
                shapes[key] = (2 * autoformer.REACH + 2, autoformer.HEAD_DIM)
    return shapes
