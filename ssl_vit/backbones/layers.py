"""Blocks that several of our families share; what timm.layers has is taken from there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.drop import DropPath
from timm.layers.norm import LayerNorm2d
from timm.layers.weight_init import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ssl_vit.registry import NetworkKind, declare_kind

Size = tuple[int, int]  # (height, width), cells of a map or pixels of an image


def register_variants(
    module: str,
    build: Callable[..., nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    *,
    kind: NetworkKind,
    out_indices: int | tuple[int, ...] = (0, 1, 2, 3),
    **cfg: Any,
) -> None:
    """Put each variant, name -> arguments of `build`, into timm's registry: ``timm.create_model(name)`` builds it.

    Call it last in a family's module, with the module's ``__name__``; `kind` is what all of them mix their tokens with
    (see :mod:`ssl_vit.backbones.kinds`). `cfg` is added to timm's default_cfg
    (``paper_ids``, ``first_conv``, ``classifier``, …). A variant's ``img_size`` is its input size, 224 if it has none.
    `out_indices` are the levels that ``features_only=True`` gives: which ones, or how many of the last.
    """

    def sized(size: int) -> dict[str, Any]:
        default = {"input_size": (3, size, size), "crop_pct": 0.9, "interpolation": "bicubic"}
        return default | {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD} | cfg

    def entrypoint(name: str, arguments: Mapping[str, Any]) -> Callable[..., nn.Module]:
        def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
            feature_cfg = {"out_indices": out_indices, "feature_cls": "getter"}
            return build_model_with_cfg(
                build,
                name,
                pretrained,
                pretrained_filter_fn=vars(sys.modules[module]).get("load_official"),
                feature_cfg=feature_cfg,
                **{**arguments, **kwargs},
            )

        create.__name__ = create.__qualname__ = name
        create.__module__ = module
        return create

    declare_kind(module, kind)
    defaults: dict[str, Any] = {name: sized(arguments.get("img_size", 224)) for name, arguments in variants.items()}
    vars(sys.modules[module]).setdefault("default_cfgs", {}).update(generate_default_cfgs(defaults))
    for name, arguments in variants.items():
        register_model(entrypoint(name, arguments))


def rename_keys(
    weights: Mapping[str, Tensor], *rules: tuple[str, str | Callable[[re.Match[str]], str]]
) -> dict[str, Tensor]:
    """Rename a state dict: every name goes through every (pattern, replacement) of `rules` in turn.

    >>> rename_keys({"merge1.norm.bias": Tensor()}, (r"^merge(\\d)", r"stages.\\1.downsample"))
    {'stages.1.downsample.norm.bias': tensor([])}
    """
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Switch mixed precision off, for what half precision can't hold; on any device, meta too."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def to_tokens(x: Tensor) -> Tensor:
    """Flatten a map to tokens, [B, D, H, W] -> [B, H*W, D]."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, size: Size) -> Tensor:
    """Fold tokens to a map, [B, H*W, D] -> [B, D, H, W]."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, *size)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Split channels into heads, [B, N, D] -> [B, heads, N, D / heads]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Join heads to channels, [B, heads, N, D] -> [B, N, heads * D]."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention of [..., N, d] to keys and values [..., M, d] with a bias [..., N, M] on its logits: [..., N, d].

    Each of them must have something to attend to. Torch's kernels for a CPU know no bias that learns: what it does
    instead goes over all pairs more often than this.
    """
    if q.device.type != "cpu" or not (bias.requires_grad and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    attended: Tensor = ((q * q.shape[-1] ** -0.5) @ k.mT + bias).softmax(-1) @ v
    return attended


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad [B, D, H, W] with zeros below and on the right, so that `multiple` divides both sides."""
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, down)) if down or right else x


def resize_positions(positions: Tensor, built: Size, size: Size) -> Tensor:
    """Learned positions [1, H*W, D] for the map `built`, interpolated bilinearly for a map of another size."""
    if size == built:
        return positions
    return to_tokens(F.interpolate(to_map(positions, built), size=size, mode="bilinear"))


def init_linear(model: nn.Module, *kinds: type[nn.Module]) -> None:
    """Draw weights from a truncated normal (std 0.02), biases 0, for linear layers and the other `kinds` of layer."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, *kinds)):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # a parameter wherever it isn't None


class PatchEmbed(nn.Module):
    """Each square of `patch` cells becomes a layer-normed vector; a side that is no multiple of it is padded."""

    def __init__(self, in_chans: int, dim: int, patch: int = 4) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed [B, C, H, W] as [B, D, H / patch, W / patch]."""
        x = self.proj(pad_to_multiple(x, self.patch))
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x


class PreNormBlock(nn.Module):
    """The block gives x + attn(norm(x), (H, W)), then x + mlp(norm(x)), over tokens [B, H*W, D]."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Map [B, H*W, D] and (H, W) to [B, H*W, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


def conv_norm(in_dim: int, dim: int, kernel: int, stride: int, padding: int) -> nn.Sequential:
    """Build a convolution and a layer norm over channels, [B, C, H, W] -> [B, D, H / stride, W / stride]."""
    return nn.Sequential(nn.Conv2d(in_dim, dim, kernel, stride, padding), LayerNorm2d(dim, eps=1e-5))


class ReducedAttention(nn.Module):
    """Tokens [B, H*W, D] attend to those of a map that `reduce`, [B, D, H, W] -> [B, D, h, w], has made smaller.

    Without `reduce` it is attention among any tokens [B, N, D].
    """

    def __init__(self, dim: int, heads: int, reduce: nn.Module | None) -> None:
        super().__init__()
        self.heads, self.reduce = heads, reduce
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from [B, heads, N, d] to keys and values [B, heads, M, d]: [B, heads, N, d]."""
        return F.scaled_dot_product_attention(q, k, v)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        q = split_heads(self.q(x), self.heads)
        if self.reduce is not None:
            x = to_tokens(self.reduce(to_map(x, size)))
        k, v = (split_heads(part, self.heads) for part in self.kv(x).chunk(2, dim=-1))
        x = self.proj(merge_heads(self.attend(q, k, v)))
        return x
