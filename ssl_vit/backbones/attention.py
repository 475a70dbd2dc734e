"""Attention in less than quadratic time, as kinds that any plain ViT can be built with (Vision X-formers, 2107.02239).

Each kind takes tokens [B, N, D] of any number N and has the arguments of timm's ``Attention``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones.layers import merge_heads, no_autocast, split_heads


class EfficientAttention(nn.Module):
    """Multi-head attention [B, N, D] -> [B, N, D] has a :meth:`mix` which each kind defines."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **_: Any,
    ) -> None:
        super().__init__()
        if qk_norm or scale_norm or attn_drop:
            raise ValueError(f"{type(self).__name__} has no qk_norm, scale_norm or attn_drop; leave them out")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values by queries and keys, three times [B, heads, N, D / heads], to the same shape."""
        raise NotImplementedError

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        if attn_mask is not None or is_causal:
            raise ValueError(f"{type(self).__name__} takes no attention mask")
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        x = self.proj_drop(self.proj(merge_heads(self.mix(query, key, value))))
        return x


class PerformerAttention(EfficientAttention):
    """Softmax attention is estimated from positive orthogonal random features (FAVOR+, 2009.14794).

    The directions are drawn once and kept as a buffer; the paper draws them anew from time to time, which would make a
    teacher and its student differ.
    """

    directions: Tensor

    def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        width = dim // num_heads
        count = int(width * math.log(width))
        blocks = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range(math.ceil(count / width))]
        lengths = torch.randn(count, width).norm(dim=1, keepdim=True)  # of Gaussian vectors, whose expectation this is
        self.register_buffer("directions", torch.cat(blocks)[:count] * lengths)

    def features(self, x: Tensor, over: tuple[int, ...]) -> Tensor:
        """Compute exp(w x - |x|^2 / 2) for each direction w, divided by its largest value along dimensions `over`."""
        logits = x @ self.directions.T
        largest = logits.amax(dim=over, keepdim=True).detach()
        return torch.exp(logits - x.square().sum(-1, keepdim=True) / 2 - largest) + 1e-4

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values by queries and keys, three times [B, heads, N, D / heads], to the same shape."""
        scale = query.shape[-1] ** -0.25
        with no_autocast(query):  # exponentials and sums over all tokens need float32
            query32 = self.features(query.float() * scale, over=(-1,))
            key32 = self.features(key.float() * scale, over=(-2, -1))
            total = query32 @ key32.sum(-2).unsqueeze(-1)
            mixed: Tensor = query32 @ (key32.transpose(-2, -1) @ value.float()) / total
        return mixed.to(value.dtype)


class LinformerAttention(EfficientAttention):
    """Tokens attend to 64 learned mixtures of the keys and of the values (2006.04768).

    The weights of the mixtures belong to positions. For another number of patches they are interpolated along their
    raster order and rescaled, so that a mixture's total weight stays.
    """

    mixtures: ClassVar[int] = 64
    key_mix: nn.Parameter
    value_mix: nn.Parameter
    prefix: int

    def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.build_for(tokens=197, prefix=1)

    def build_for(self, tokens: int, prefix: int) -> None:
        """New random weights for N tokens, the first `prefix` of which are no patches."""
        self.prefix = prefix
        bound = self.mixtures**-0.5
        self.key_mix = nn.Parameter(torch.empty(self.mixtures, tokens).uniform_(-bound, bound))
        self.value_mix = nn.Parameter(torch.empty(self.mixtures, tokens).uniform_(-bound, bound))

    def resized(self, weights: Tensor, tokens: int) -> Tensor:
        """Resize mixtures over tokens, [mixtures, N built for] -> [mixtures, tokens]."""
        if tokens == weights.shape[1]:
            return weights
        patches = weights[:, self.prefix :]
        new = F.interpolate(patches[None], size=tokens - self.prefix, mode="linear")[0]
        return torch.cat([weights[:, : self.prefix], new * (patches.shape[1] / new.shape[1])], dim=1)

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values by queries and keys, three times [B, heads, N, D / heads], to the same shape."""
        tokens = key.shape[-2]
        key = self.resized(self.key_mix, tokens).to(key.dtype) @ key
        value = self.resized(self.value_mix, tokens).to(value.dtype) @ value
        return F.scaled_dot_product_attention(query, key, value)


class NystromAttention(EfficientAttention):
    """Softmax attention is approximated through 64 landmarks, plus a convolution of the values (2102.03902).

    Landmarks are means over equal runs of tokens; of runs that can't be equal, some overlap by one token. With no more
    tokens than landmarks the approximation is exact.
    """

    landmarks: ClassVar[int] = 64
    kernel: ClassVar[int] = 33  # tokens; the official code's

    def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.conv = nn.Conv2d(
            num_heads, num_heads, (self.kernel, 1), padding=(self.kernel // 2, 0), groups=num_heads, bias=False
        )

    def landmarks_of(self, x: Tensor) -> Tensor:
        """Average tokens to landmarks, [B, heads, N, C] -> [B, heads, landmarks, C]."""
        return F.adaptive_avg_pool2d(x, (min(self.landmarks, x.shape[-2]), x.shape[-1]))

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix values by queries and keys, three times [B, heads, N, D / heads], to the same shape."""
        query_marks, key_marks = self.landmarks_of(query), self.landmarks_of(key)
        summary = F.scaled_dot_product_attention(query_marks, key, value)
        with no_autocast(query):
            logits = query_marks.float() @ key_marks.float().transpose(-2, -1) * query.shape[-1] ** -0.5
            summary = (pseudo_inverse(logits.softmax(-1)) @ summary.float()).to(value.dtype)
        local: Tensor = self.conv(value)
        return F.scaled_dot_product_attention(query, key_marks, summary) + local


class FourierMixing(nn.Module):
    """The real part of the Fourier transform over tokens and channels takes the place of attention (2105.03824)."""

    def __init__(self, dim: int, num_heads: int = 8, attn_drop: float = 0.0, proj_drop: float = 0.0, **_: Any) -> None:
        super().__init__()
        if attn_drop:
            raise ValueError("FourierMixing has no attention that attn_drop could drop; leave it out")
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Map [B, N, D] to [B, N, D]."""
        if attn_mask is not None or is_causal:
            raise ValueError("FourierMixing takes no attention mask")
        with no_autocast(x):  # in half precision FFT takes powers of two only
            mixed = torch.fft.fft2(x.float()).real
        x = self.proj_drop(mixed.to(x.dtype))
        return x


def pseudo_inverse(x: Tensor, rounds: int = 6) -> Tensor:
    """Iterate the Moore-Penrose inverse of square matrices [..., M, M] to the third order (2102.03902, equation 11)."""
    identity = torch.eye(x.shape[-1], device=x.device, dtype=x.dtype)
    norms = x.abs().sum(-2).amax(-1) * x.abs().sum(-1).amax(-1)
    inverse = x.transpose(-2, -1) / norms[..., None, None]
    for _ in range(rounds):
        step = x @ inverse
        inverse = inverse @ (13 * identity - step @ (15 * identity - step @ (7 * identity - step))) / 4
    return inverse


ATTENTIONS: dict[str, type[nn.Module]] = {
    "performer": PerformerAttention,
    "linformer": LinformerAttention,
    "nystrom": NystromAttention,
    "fnet": FourierMixing,
}
