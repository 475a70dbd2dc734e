"""timm's plain ViT opened up for our families that are one: any image size, any stem, any wiring of the blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from timm.layers.helpers import to_2tuple
from timm.layers.weight_init import trunc_normal_
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_vit.backbones.attention import ATTENTIONS, LinformerAttention
from ssl_vit.backbones.layers import Size, pad_to_multiple, to_map


class PlainViT(VisionTransformer):
    """timm's plain ViT takes images of any size here: padded to whole patches, positions resized.

    Arguments are timm's; `attn_layer` may also be a key of :data:`ssl_vit.backbones.attention.ATTENTIONS`.
    """

    def __init__(self, attn_layer: str | type[nn.Module] = "attn", **kwargs: Any) -> None:
        kind = ATTENTIONS.get(attn_layer, attn_layer) if isinstance(attn_layer, str) else attn_layer
        super().__init__(**{"attn_layer": kind, "dynamic_img_size": True, "dynamic_img_pad": True, **kwargs})
        for layer in self.modules():
            if isinstance(layer, LinformerAttention):
                layer.build_for(self.patch_embed.num_patches + self.num_prefix_tokens, self.num_prefix_tokens)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Draw weights as timm does, but the class token, which is drawn like the positions in DeiT's descendants."""
        super().init_weights(mode, needs_reset=needs_reset)
        if self.cls_token is not None:
            trunc_normal_(self.cls_token, std=0.02)


class StemEmbed(nn.Module):
    """Any stem embeds patches, [B, C, H, W] -> [B, H/s, W/s, D], with what timm's plain ViT asks of its own.

    Args:
        stem: [B, C, H, W] -> [B, D, H/s, W/s] for sides that are multiples of s; others are padded with zeros.
        img_size: (height, width) in pixels, that positions are built for.
        stride: s, pixels per token.
        padded: whether other sides are padded; a stem that isn't gives H / s and W / s, rounded up, for any.
    """

    def __init__(self, stem: nn.Module, img_size: int | Size, stride: int, padded: bool = True) -> None:
        super().__init__()
        self.stem, self.padded = stem, padded
        self.patch_size = (stride, stride)
        self.set_input_size(img_size)

    def set_input_size(self, img_size: int | Size | None = None, patch_size: int | Size | None = None) -> None:
        """Note the size that positions are built for; the stem fixes the patch size."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            raise ValueError(f"patch_size is {patch_size}; the stem of this family has {self.patch_size[0]} only")
        if img_size is not None:
            self.img_size: Size = to_2tuple(img_size)
            self.grid_size = self.dynamic_feat_size(self.img_size)
            self.num_patches = math.prod(self.grid_size)

    def feat_ratio(self) -> int:
        """Return the pixels per token."""
        return self.patch_size[0]

    def dynamic_feat_size(self, img_size: Size) -> Size:
        """Return the grid of tokens (rows, columns) of an image (height, width) in pixels."""
        stride = self.feat_ratio()
        return -(-img_size[0] // stride), -(-img_size[1] // stride)

    def forward(self, x: Tensor) -> Tensor:
        """Embed [B, C, H, W] as [B, H/s, W/s, D]."""
        x = self.stem(pad_to_multiple(x, self.feat_ratio()) if self.padded else x)
        return x.permute(0, 2, 3, 1)


def stem_embed(stem: Callable[[int, int], nn.Module], stride: int, padded: bool = True) -> Callable[..., StemEmbed]:
    """Make the ``embed_layer`` of a :class:`PlainViT`: a :class:`StemEmbed` around ``stem(in_chans, embed_dim)``."""

    def embed(img_size: int | Size, patch_size: int | Size, in_chans: int, embed_dim: int, **_: Any) -> StemEmbed:
        layer = StemEmbed(stem(in_chans, embed_dim), img_size, stride, padded)
        layer.set_input_size(patch_size=patch_size)  # refuses another one
        return layer

    return embed


class WiredViT(PlainViT):
    """The blocks of this plain ViT are no simple chain; a family says in :meth:`walk` how they are wired."""

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the tokens [B, N, D] after each level of depth, as many as ``feature_info`` has."""
        raise NotImplementedError

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        """As :meth:`walk`, from images [B, C, H, W]: what a family defines instead whose blocks need more of them."""
        return self.walk(self.embed(images))

    def run(self, block: nn.Module, *args: Any) -> Any:
        """``block(*args)``, recomputed in the backward pass where gradient checkpointing is on."""
        return checkpoint(block, *args) if self.grad_checkpointing else block(*args)

    def embed(self, x: Tensor) -> Tensor:
        """Embed images [B, C, H, W] as tokens [B, N, D], positions added."""
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        return x

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map [B, C, H, W] to [B, N, D], normed."""
        if attn_mask is not None or is_causal:
            raise ValueError(f"{type(self).__name__} takes no attention mask")
        for level in self.levels(x):
            x = level
        x = self.norm(x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Levels as maps [B, D, H/s, W/s] or tokens [B, N, D] ("NLC"), and the final tokens; arguments are timm's."""
        if output_dict or attn_mask is not None or is_causal:
            raise ValueError(f"{type(self).__name__} takes no attention mask and gives no dictionary")
        size = self.patch_embed.dynamic_feat_size((x.shape[-2], x.shape[-1]))
        wanted, last = feature_take_indices(len(self.feature_info), indices)
        levels: list[Any] = []
        for i, x in enumerate(self.levels(x)):  # noqa: B020  after the loop x is the last level
            if i in wanted:
                levels.append(self.norm(x) if norm else x)
            if stop_early and i == last:
                break
        prefix = [level[:, : self.num_prefix_tokens] for level in levels]
        levels = [level[:, self.num_prefix_tokens :] for level in levels]
        if output_fmt == "NCHW":
            levels = [to_map(level, size) for level in levels]
        if return_prefix_tokens:
            levels = list(zip(levels, prefix, strict=True))
        return levels if intermediates_only else (self.norm(x), levels)


class DenseHeadViT(WiredViT):
    """Beside the classifier of the class token, a dense one adds half of its largest logit over the patches."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.aux_head = self._dense_head()

    def _dense_head(self) -> nn.Module:
        if not self.num_classes:
            return nn.Identity()
        head = nn.Linear(self.embed_dim, self.num_classes)
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New heads for `num_classes`; 0 for none."""
        super().reset_classifier(num_classes, global_pool)
        self.aux_head = self._dense_head().to(self.cls_token)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """[B, N, D] -> logits [B, K] of both heads together, or the pooled [B, D] with `pre_logits` or no classes."""
        pooled = super().forward_head(x, pre_logits=pre_logits)
        if pre_logits or not self.num_classes:
            return pooled
        dense: Tensor = self.aux_head(x[:, self.num_prefix_tokens :])
        return pooled + 0.5 * dense.amax(1)
