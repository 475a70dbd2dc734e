"""DynamicViT (2106.02034): before some blocks of a plain ViT a predictor drops the patches that matter least.

In training a patch is kept or not by a hard Gumbel draw, and the others' attention leaves a dropped one out, so that
gradients reach the predictors; a loss draws the share that is kept to `keep_ratio` at each stage, times the stages
before, and two more draw what is said of an image, and of the patches that are kept, to what is said without dropping.
There the authors' teacher is a trained network; here it is this network itself, as it is in that step, of all patches
and without a gradient, so that any method can use it. Where there is no classifier, features stand for logits. That
pass takes about a third of a step more, and none with `distil_weight` 0. In evaluation the best of so many patches are
kept and the others are computed no further: a map has them as they were when they were dropped. The plain ViT is DeiT,
or LV-ViT with a convolutional stem, halved branches and a dense second head.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.conv_bn_act import ConvNormAct
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_vit.backbones import penalties
from ssl_vit.backbones.layers import merge_heads, no_autocast, register_variants, rename_keys, split_heads
from ssl_vit.backbones.plain import DenseHeadViT, WiredViT, stem_embed

STRIDE = 16
EPSILON = 1e-6  # of the masked softmax, the authors'


def masked_softmax(logits: Tensor, kept: Tensor) -> Tensor:
    """Attention [B, heads, N, N] over the tokens that are kept [B, N, 1], 1 or 0, and over the token itself."""
    count = logits.shape[-1]
    seen = kept.transpose(1, 2)[:, None]
    seen = seen + (1 - seen) * torch.eye(count, device=logits.device, dtype=seen.dtype)
    with no_autocast(logits):
        raised = (logits.float() - logits.float().amax(-1, keepdim=True)).exp() * seen.float()
        maps: Tensor = (raised + EPSILON / count) / (raised.sum(-1, keepdim=True) + EPSILON)
    return maps.to(logits.dtype)


class MaskedAttention(Attention):
    """timm's attention, [B, N, D] -> [B, N, D], over all tokens or those that are kept."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, kept: Tensor | None = None
    ) -> Tensor:
        """kept: [B, N, 1], 1 or 0; None for all."""
        if kept is None:
            return super().forward(x, attn_mask, is_causal)
        query, key, value = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        maps = self.attn_drop(masked_softmax(query * self.scale @ key.transpose(-2, -1), kept))
        x = self.proj_drop(self.proj(merge_heads(maps @ value)))
        return x


class SparseBlock(Block):
    """timm's block, [B, N, D] -> [B, N, D], over all tokens or those that are kept; branches count over `skip`."""

    def __init__(self, dim: int, num_heads: int, skip: float = 1.0, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs | {"attn_layer": MaskedAttention})
        self.skip = skip

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, kept: Tensor | None = None
    ) -> Tensor:
        """kept: [B, N, 1], 1 or 0; None for all."""
        x = x + self.drop_path1(self.attn(self.norm1(x), kept=kept)) / self.skip
        x = x + self.drop_path2(self.mlp(self.norm2(x))) / self.skip
        return x

    def whole(self, x: Tensor) -> Tensor:
        """As :meth:`forward` over all tokens, with no branch dropped."""
        x = x + self.attn(self.norm1(x)) / self.skip
        x = x + self.mlp(self.norm2(x)) / self.skip
        return x


class Predictor(nn.Module):
    """Log probabilities of keeping and of dropping each patch, from itself and from the mean of those kept so far."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, dim // 4), nn.GELU(), nn.Linear(dim // 4, 2)
        )

    def forward(self, patches: Tensor, kept: Tensor) -> Tensor:
        """[B, N, D] and [B, N, 1], 1 or 0 -> [B, N, 2]."""
        own, shared = self.in_conv(patches).chunk(2, dim=-1)
        mean = (shared * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp_min(1)
        return F.log_softmax(self.out_conv(torch.cat([own, mean.expand_as(own)], dim=-1)), dim=-1)


class Tokens(NamedTuple):
    """The tokens that are computed, and how all of them look."""

    alive: Tensor  # [B, 1 + n, D], the class token first
    places: Tensor | None = None  # int64 [B, 1 + n], among all; None where alive are all
    whole: Tensor | None = None  # [B, 1 + N, D], as they were when patches were last dropped

    def together(self) -> Tensor:
        """All tokens in their places, [B, 1 + N, D]."""
        if self.places is None or self.whole is None:
            return self.alive
        return self.whole.scatter(1, self.places[..., None].expand_as(self.alive), self.alive)

    def keep(self, chosen: Tensor) -> Tokens:
        """Go on with the class token and the patches of these numbers among those alive, int64 [B, n]."""
        whole, (batch, count, _) = self.together(), self.alive.shape
        places = torch.arange(count, device=chosen.device).expand(batch, -1) if self.places is None else self.places
        chosen = torch.cat([torch.zeros_like(chosen[:, :1]), chosen + 1], dim=1)
        alive = self.alive.gather(1, chosen[..., None].expand(-1, -1, self.alive.shape[-1]))
        return Tokens(alive, places.gather(1, chosen), whole)


class DynamicViT(WiredViT):
    """A plain ViT that drops patches before the blocks `stages`, counted from 0.

    keep_ratio: share of the patches that a stage keeps of those of the stage before. keep_weight, distil_weight: of the
    losses.
    """

    def __init__(
        self,
        stages: Sequence[int] = (3, 6, 9),
        keep_ratio: float = 0.7,
        keep_weight: float = 2.0,
        distil_weight: float = 0.5,
        skip: float = 1.0,
        depth: int = 12,
        **kwargs: Any,
    ) -> None:
        if not stages or list(stages) != sorted(set(stages)) or not 0 <= stages[0] <= stages[-1] < depth:
            raise ValueError(f"stages is {tuple(stages)}; expected rising numbers of blocks, 0 to {depth - 1}")
        if not 0 < keep_ratio <= 1:
            raise ValueError(f"keep_ratio is {keep_ratio}; expected a share above 0, at most 1")
        super().__init__(block_fn=partial(SparseBlock, skip=skip), depth=depth, **kwargs)
        self.stages, self.keep_ratio = tuple(stages), keep_ratio
        self.keep_weight, self.distil_weight = keep_weight, distil_weight
        self.score_predictor = nn.ModuleList(Predictor(self.embed_dim) for _ in stages)
        self.counts(self.patch_embed.num_patches)
        self.init_weights(needs_reset=False)

    def counts(self, patches: int) -> list[int]:
        """How many of so many patches each stage keeps in evaluation; ValueError where it is none."""
        kept = [int(patches * self.keep_ratio ** (stage + 1)) for stage in range(len(self.stages))]
        if not kept[-1]:
            least = math.ceil(1000 * patches ** (-1 / len(kept))) / 1000
            raise ValueError(
                f"keep_ratio is {self.keep_ratio}, which keeps none of {patches} patches after {len(kept)} stages; "
                f"it must be {least} or more"
            )
        return kept

    def sparsely(self, x: Tensor) -> Iterator[Tokens]:
        """The tokens after each block; x: [B, 1 + N, D]."""
        return self.draw(x) if self.training else self.choose(x)

    def draw(self, x: Tensor) -> Iterator[Tokens]:
        """In training: all tokens are computed, those dropped unseen by the others."""
        embedded, kept, shares = x, torch.ones_like(x[:, 1:, :1]), list[Tensor]()
        for number, block in enumerate(self.blocks):
            if number in self.stages:
                scores = self.score_predictor[len(shares)](x[:, 1:], kept)
                kept = F.gumbel_softmax(scores.float(), hard=True)[..., :1].to(x.dtype) * kept
                shares.append(kept.float().mean((1, 2)))
            unmasked = None if not shares else torch.cat([torch.ones_like(kept[:, :1]), kept], dim=1)
            x = self.run(block, x, None, False, unmasked)
            yield Tokens(x)
        wanted = (self.keep_ratio ** (stage + 1) for stage in range(len(shares)))
        off = [(share - ratio).square().mean() for share, ratio in zip(shares, wanted, strict=True)]
        penalties.penalise("keep_ratio", self.keep_weight * torch.stack(off).mean())
        if self.distil_weight and penalties.wanted():
            self.distil(embedded, x, kept.detach())
        sums = torch.stack([*(share.sum() for share in shares), shares[0].new_full((), len(x))])
        penalties.note("kept", sums, partial(kept_shares, self.stages))

    def said(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K] of the class token, and what patches are compared by [B, N, C]; tokens: [B, 1 + N, D]."""
        x = self.norm(tokens)
        return self.head(x[:, 0]), x[:, 1:]

    def apart(self, patches: Tensor, teacher: Tensor) -> Tensor:
        """How far each patch [B, N, C] is from the teacher's, [B, N]."""
        return (patches.float() - teacher.float()).square().mean(-1)

    def distil(self, embedded: Tensor, x: Tensor, kept: Tensor) -> None:
        """Penalties for what is said of tokens [B, 1 + N, D] beside what is said of all of them, embedded alike."""
        with torch.no_grad():
            whole, blocks = embedded, cast(Iterable[SparseBlock], self.blocks)
            for block in blocks:
                whole = block.whole(whole)
            teacher, teachers = self.said(whole)
        answer, patches = self.said(x)
        penalties.penalise("distil", self.distil_weight * divergence(answer, teacher).mean())
        off = (self.apart(patches, teachers) * kept[..., 0]).sum() / kept.float().sum().clamp_min(1)
        penalties.penalise("distil_patches", self.distil_weight * off)

    def choose(self, x: Tensor) -> Iterator[Tokens]:
        """In evaluation: the patches with the best scores go on."""
        tokens, left = Tokens(x), iter(zip(self.score_predictor, self.counts(x.shape[1] - 1), strict=True))
        for number, block in enumerate(self.blocks):
            if number in self.stages:
                predictor, count = next(left)
                patches = tokens.alive[:, 1:]
                scores = predictor(patches, torch.ones_like(patches[..., :1]))[..., 0]
                tokens = tokens.keep(scores.topk(count, dim=1).indices)
            tokens = tokens._replace(alive=self.run(block, tokens.alive))
            yield tokens

    def walk(self, x: Tensor) -> Iterator[Tensor]:
        """All tokens [B, 1 + N, D] after each block."""
        for tokens in self.sparsely(x):
            yield tokens.together()

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[B, C, H, W] -> logits [B, K], of the patches that are left alone."""
        if attn_mask is not None or is_causal:
            raise ValueError("DynamicViT takes no attention mask")
        *_, last = self.sparsely(self.embed(x))
        return self.forward_head(self.norm(last.alive))


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of [..., K] from the teacher's, summed over K."""
    wanted = teacher.float().log_softmax(-1)
    return (wanted.exp() * (wanted - logits.float().log_softmax(-1))).sum(-1)


def kept_shares(stages: Sequence[int], sums: Tensor) -> str:
    """What a check says of sums over images of the share that each stage kept, and the number of images last.

    >>> kept_shares((3, 6, 9), torch.tensor([7.0, 5.0, 3.5, 10.0]))
    'Blocks 3, 6, 9 see 70 %, 50 %, 35 % of the patches.'
    """
    shares = (f"{100 * float(each / sums[-1]):.0f} %" for each in sums[:-1])
    return f"Blocks {', '.join(map(str, stages))} see {', '.join(shares)} of the patches."


def stem(in_chans: int, embed_dim: int) -> nn.Module:
    """Build three convolutions at half the resolution, then patches of 8 x 8."""
    return nn.Sequential(
        ConvNormAct(in_chans, 64, 7, stride=2),
        ConvNormAct(64, 64, 3),
        ConvNormAct(64, 64, 3),
        nn.Conv2d(64, embed_dim, STRIDE // 2, stride=STRIDE // 2),
    )


class DynamicLVViT(DynamicViT, DenseHeadViT):
    """The same on LV-ViT (2104.10858)."""

    def __init__(self, **kwargs: Any) -> None:
        fixed: dict[str, Any] = {"skip": 2.0, "mlp_ratio": 3.0, "qkv_bias": False, "norm_layer": nn.LayerNorm}
        super().__init__(embed_layer=stem_embed(stem, STRIDE), **{**fixed, **kwargs})

    def said(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The dense head's logits stand for patches."""
        answer, patches = super().said(tokens)
        return answer, self.aux_head(patches)

    def apart(self, patches: Tensor, teacher: Tensor) -> Tensor:
        """As distributions, [B, N, K] -> [B, N]."""
        return divergence(patches, teacher)


OFFICIAL = (  # LV-ViT's
    (r"patch_embed\.conv(\d)\.", lambda m: f"patch_embed.stem.{int(m[1]) - 1}.conv."),
    (r"patch_embed\.bn(\d)\.", lambda m: f"patch_embed.stem.{int(m[1]) - 1}.bn."),
)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official checkpoint to our names."""
    if "patch_embed.conv1.weight" not in state_dict:
        return dict(state_dict)
    return rename_keys(state_dict, *OFFICIAL, (r"patch_embed\.proj\.", "patch_embed.stem.3."))


DEIT: dict[str, dict[str, Any]] = {
    "dynamicvit_deit_256_patch16_224": {"embed_dim": 256, "num_heads": 4},
    "dynamicvit_deit_small_patch16_224": {"embed_dim": 384, "num_heads": 6},
    "dynamicvit_deit_base_patch16_224": {"embed_dim": 768, "num_heads": 12},
}
LVVIT: dict[str, dict[str, Any]] = {
    "dynamicvit_lvvit_small_patch16_224": {"embed_dim": 384, "depth": 16, "num_heads": 6, "stages": (4, 8, 12)},
    "dynamicvit_lvvit_medium_patch16_224": {"embed_dim": 512, "depth": 20, "num_heads": 8, "stages": (5, 10, 15)},
}
PAPER = "arXiv:2106.02034"

register_variants(
    __name__,
    DynamicViT,
    DEIT,
    kind="transformer",
    out_indices=3,
    paper_ids=PAPER,
    first_conv="patch_embed.proj",
    classifier="head",
)
register_variants(
    __name__,
    DynamicLVViT,
    LVVIT,
    kind="transformer",
    out_indices=3,
    paper_ids=PAPER,
    first_conv="patch_embed.stem.0.conv",
    classifier=("head", "aux_head"),
)
