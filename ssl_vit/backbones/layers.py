"""Blocks that several of our families share; what timm.layers has is taken from there."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.classifier import ClassifierHead
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.weight_init import trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

Size = tuple[int, int]  # (height, width), cells of a map


def register_variants(
    module: str,
    build: Callable[..., nn.Module],
    variants: Mapping[str, Mapping[str, Any]],
    out_indices: int | tuple[int, ...] = (0, 1, 2, 3),
    **cfg: Any,
) -> None:
    """Put each variant, name -> arguments of `build`, into timm's registry: ``timm.create_model(name)`` builds it.

    Call it last in a family's module, with the module's ``__name__``; `cfg` is added to timm's default_cfg
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

    defaults: dict[str, Any] = {name: sized(arguments.get("img_size", 224)) for name, arguments in variants.items()}
    vars(sys.modules[module]).setdefault("default_cfgs", {}).update(generate_default_cfgs(defaults))
    for name, arguments in variants.items():
        register_model(entrypoint(name, arguments))


def rename(
    weights: Mapping[str, Tensor], *rules: tuple[str, str | Callable[[re.Match[str]], str]]
) -> dict[str, Tensor]:
    """A state dict, every name through every (pattern, replacement) of `rules` in turn.

    >>> rename({"merge1.norm.bias": Tensor()}, (r"^merge(\\d)", r"stages.\\1.downsample"))
    {'stages.1.downsample.norm.bias': tensor([])}
    """
    renamed = {}
    for name, weight in weights.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = weight
    return renamed


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Where mixed precision is off, for what half precision can't hold; on any device, meta too."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def to_tokens(x: Tensor) -> Tensor:
    """[B, D, H, W] -> [B, H*W, D]."""
    return x.flatten(2).transpose(1, 2)


def to_map(x: Tensor, size: Size) -> Tensor:
    """[B, H*W, D] -> [B, D, H, W]."""
    return x.transpose(1, 2).reshape(x.shape[0], -1, *size)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, heads, N, D / heads]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, heads, N, D] -> [B, N, heads * D]."""
    return x.transpose(1, 2).flatten(2)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """[B, D, H, W] with zeros below and on the right, so that `multiple` divides both sides."""
    height, width = x.shape[-2:]
    down, right = -height % multiple, -width % multiple
    return F.pad(x, (0, right, 0, down)) if down or right else x


def resize_positions(positions: Tensor, built: Size, size: Size) -> Tensor:
    """Learned positions [1, H*W, D] for the map `built`, interpolated bilinearly for a map of another size."""
    if size == built:
        return positions
    return to_tokens(F.interpolate(to_map(positions, built), size=size, mode="bilinear"))


def init_linear(model: nn.Module, *kinds: type[nn.Module]) -> None:
    """Truncated normal weights (std 0.02) and zero biases for all linear layers, and the other `kinds` of layer."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, *kinds)):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # a parameter wherever it isn't None


class PatchEmbed(nn.Module):
    """A vector, layer-normed, for each square of `patch` cells; pads where a side is no multiple of it."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_chans, dim, patch, stride=patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / patch, W / patch]."""
        x = self.proj(pad_to_multiple(x, self.patch))
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x


class PreNormBlock(nn.Module):
    """x + attn(norm(x), (H, W)), then x + mlp(norm(x)), over tokens [B, H*W, D]."""

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """[B, H*W, D] and (H, W) -> [B, H*W, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class Stage(nn.Module):
    """One level of a pyramid over maps: a downsampling layer, then blocks; [B, C, H, W] -> [B, D, H / s, W / s]."""

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.grad_checkpointing = False

    def run(self, x: Tensor, *args: Any) -> Tensor:
        """Run all blocks, each given `x` and `args`."""
        for block in self.blocks:
            x = checkpoint(block, x, *args) if self.grad_checkpointing else block(x, *args)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / s, W / s]."""
        return self.run(self.downsample(x))


class NHWCStage(Stage):
    """One level of a pyramid whose blocks take maps with the channels last, [B, H, W, D]."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / s, W / s]."""
        return self.run(self.downsample(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenStage(Stage):
    """One level of a pyramid whose blocks are ``block(tokens [B, H*W, D], (H, W), *shared(size))``."""

    def shared(self, size: Size) -> tuple[Any, ...]:
        """What every block of the stage is given besides its tokens and their size."""
        return ()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / s, W / s]."""
        x = self.downsample(x)
        size = (x.shape[-2], x.shape[-1])
        return to_map(self.run(to_tokens(x), size, *self.shared(size)), size)


class Pyramid(nn.Module):
    """A stem, stages of falling resolution, a norm and a linear head, with timm's conventions.

    Args:
        stem: [B, in_chans, H, W] to the map that the first stage takes.
        stages: modules over maps, each one coarser than the last (:class:`Stage`).
        channels: of each stage's output.
        head_width: channels that the head takes where ``forward_head`` widens the features; else the last stage's.
        stride: of the first stage's output, pixels; each later stage halves the map once more.
        norm: over the last map; ``forward_features`` ends with it.
        num_classes: of the head; 0 for none.
        in_chans: of the images.
        global_pool: timm's name of the pooling before the head; "" for none.
        drop_rate: dropout before the head.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        channels: Sequence[int],
        *,
        head_width: int | None = None,
        stride: int = 4,
        norm: nn.Module | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = channels[-1]
        self.head_hidden_size = head_width or channels[-1]
        self.feature_info = [
            {"num_chs": width, "reduction": stride * 2**i, "module": f"stages.{i}"} for i, width in enumerate(channels)
        ]
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        self.norm = norm or nn.Identity()
        self.head = ClassifierHead(self.head_hidden_size, num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters with two or more dimensions that weight decay should leave alone: positions."""
        positions = ("relative_position_bias_table", "pos_embed")
        return {name for name, _ in self.named_parameters() if any(part in name for part in positions)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's patterns for layer-wise learning rates: by stage, or by block."""
        blocks = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)", (0,)), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping what they computed."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]  # a plain flag, torch types all attributes

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head for `num_classes`; 0 for none."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of the chosen stages, [B, C_i, H / s_i, W / s_i], and the final features unless `intermediates_only`.

        `indices`: the last n stages, or a list of them, or all; `norm` puts the final norm on the last stage's map;
        `stop_early` skips the stages after the last one chosen.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; this family gives 'NCHW' only")
        wanted, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        maps = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            final = i == len(self.stages) - 1
            if i in wanted:
                maps.append(self.level(x, norm and final))
        return maps if intermediates_only else (self.norm(x) if final else x, maps)

    def level(self, x: Any, norm: bool) -> Tensor:
        """A stage's output as the map that a detector gets, normed or not."""
        level: Tensor = self.norm(x) if norm else x
        return level

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the chosen stages don't need; the indices that are left."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        if last < len(self.stages) - 1:
            self.stages, prune_norm, prune_head = self.stages[: last + 1], True, True
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return list(wanted)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, D, H / s, W / s], normed."""
        x = self.norm(self.stages(self.stem(x)))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, D, H, W] -> [B, num_classes], or [B, head_hidden_size] with `pre_logits`."""
        x = self.head(x, pre_logits=pre_logits)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] -> [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def drop_path_rates(most: float, depth: int) -> Iterator[float]:
    """A rate of stochastic depth for each block, rising evenly from 0 to `most` (arXiv 1603.09382)."""
    return (most * i / max(1, depth - 1) for i in range(depth))


def even_windows(size: Size, most: Size) -> Size:
    """The window, no larger than `most`, that tiles a map of `size` with the least padding.

    >>> even_windows((56, 56), (7, 7)), even_windows((12, 3), (7, 7)), even_windows((25, 33), (7, 7))
    ((7, 7), (6, 3), (7, 7))
    """
    height, width = (math.ceil(side / math.ceil(side / limit)) for side, limit in zip(size, most, strict=True))
    return height, width


class RelativePositionBias(nn.Module):
    """A learned bias for each head and each offset between two tokens of a window (Swin, arXiv 2103.14030)."""

    index: Tensor

    def __init__(self, window: Size, heads: int) -> None:
        super().__init__()
        height, width = window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * height - 1) * (2 * width - 1), heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        rows, columns = (torch.arange(side)[:, None] - torch.arange(side) + side - 1 for side in window)
        index = rows[:, None, :, None] * (2 * width - 1) + columns[None, :, None, :]  # [H, W, H, W]
        self.register_buffer("index", index, persistent=False)

    def forward(self, window: Size) -> Tensor:
        """[1, heads, N, N] for the N tokens of a window no larger than the one it was built for."""
        height, width = window
        index = self.index[:height, :width, :height, :width].reshape(height * width, height * width)
        return self.relative_position_bias_table[index].permute(2, 0, 1)[None]


def to_windows(x: Tensor, window: Size) -> Tensor:
    """[B, H, W, D] -> [B * windows, tokens, D]; zeros below and on the right where windows don't tile the map."""
    batch, height, width, dim = x.shape
    high, wide = window
    x = F.pad(x, (0, 0, 0, -width % wide, 0, -height % high))
    x = x.view(batch, x.shape[1] // high, high, x.shape[2] // wide, wide, dim)
    return x.transpose(2, 3).reshape(-1, high * wide, dim)


def from_windows(x: Tensor, window: Size, size: Size) -> Tensor:
    """The inverse of :func:`to_windows` for a map of `size`: [B * windows, tokens, D] -> [B, H, W, D]."""
    (high, wide), (height, width) = window, size
    rows, columns = math.ceil(height / high), math.ceil(width / wide)
    x = x.view(-1, rows, columns, high, wide, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, rows * high, columns * wide, x.shape[-1])[:, :height, :width]


class WindowAttention(nn.Module):
    """Attention inside windows with relative positions (Swin, arXiv 2103.14030), not shifted; maps [B, H, W, D]."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, (window, window)
        self.position = RelativePositionBias(self.window, heads)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        size = (x.shape[1], x.shape[2])
        window = even_windows(size, self.window)
        qkv = to_windows(self.qkv(x), window)
        q, k, v = qkv.view(*qkv.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.position(window))
        x = self.proj(from_windows(merge_heads(out), window, size))
        return x


class MapBlock(nn.Module):
    """x + attn(norm(x)), then x + mlp(norm(x)), over maps [B, H, W, D]; `attn` is whatever mixes tokens."""

    def __init__(self, dim: int, attn: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, D] -> [B, H, W, D]."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class PatchMerging(nn.Module):
    """Each 2 x 2 cells become one: normed together, then a linear layer (Swin, arXiv 2103.14030)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / 2, W / 2]."""
        x = pad_to_multiple(x, 2)
        batch, dim, height, width = x.shape
        x = x.reshape(batch, dim, height // 2, 2, width // 2, 2).permute(0, 2, 4, 5, 3, 1).flatten(3)
        x = self.reduction(self.norm(x))
        return x.permute(0, 3, 1, 2)
