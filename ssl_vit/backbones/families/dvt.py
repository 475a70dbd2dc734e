"""DVT (2105.15075): three T2T-ViTs in a row see an image in more and more tokens, each with what the last one found.

49, 100 and 196 tokens of a 224-pixel image. Each block of the second and the third takes into its MLP the last tokens
of the network before (feature reuse), and adds to its attention logits a mixture of all the logits of that network
(relation reuse), both resized to its own map. Each network has a classifier: :meth:`DVT.answer` goes on only with the
images of which no network before was sure enough. As a backbone it is the third network with what it reuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from ssl_vit.backbones.adaptive import Classifier
from ssl_vit.backbones.families import t2t_vit
from ssl_vit.backbones.layers import Size, merge_heads, register_variants, rename_keys, split_heads
from ssl_vit.backbones.plain import WiredViT

WINDOWS = ((14, 8, 3), (11, 6, 5))  # of the first two networks: side, stride and padding, pixels
REUSED, HIDDEN = 48, 128  # channels of a reused feature, and of the MLP that makes it


class Found(NamedTuple):
    """What a network hands to the next one."""

    tokens: Tensor  # [B, 1 + H * W, D]
    relations: Tensor  # [B, blocks * heads, 1 + H * W, 1 + H * W], logits of attention
    size: Size


def resizing(source: int, target: int, like: Tensor) -> Tensor:
    """What takes a side of so many cells to another, [target, source]: each cell twice, then means of equal parts."""
    cells, parts = torch.arange(2 * source, device=like.device), torch.arange(target, device=like.device)[:, None]
    begin, end = parts * 2 * source // target, -(-(parts + 1) * 2 * source // target)
    shares = ((cells >= begin) & (cells < end)) / (end - begin)
    return shares.reshape(target, source, 2).sum(-1).to(like.dtype)


def resize(x: Tensor, source: Size, target: Size) -> Tensor:
    """The last side of [..., 1 + H*W], all but its class token, as a map of another size: [..., 1 + H'*W']."""
    rows, columns = (resizing(*sides, x) for sides in zip(source, target, strict=True))
    maps = rows @ x[..., 1:].reshape(*x.shape[:-1], *source) @ columns.T
    return torch.cat([x[..., :1], maps.flatten(-2)], dim=-1)


class Block(nn.Module):
    """A pre-norm block that gives its logits of attention too, and may reuse what an earlier network found."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        attn_drop: float,
        proj_drop: float,
        drop_path: float,
        norm_layer: type[nn.Module],
        reuse: bool,
        **_: Any,
    ) -> None:
        super().__init__()
        self.heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.norm1 = norm_layer(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        wide = dim + REUSED if reuse else dim
        self.reuse = nn.Sequential(norm_layer(dim), Mlp(dim, HIDDEN, REUSED, drop=proj_drop)) if reuse else None
        self.norm2 = norm_layer(wide)
        self.mlp = Mlp(wide, int(dim * mlp_ratio), dim, drop=proj_drop)
        self.drop_path = DropPath(drop_path)

    def attend(self, x: Tensor, relations: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, N, D] and logits to add [B, heads, N, N] -> [B, N, D] and all logits."""
        query, key, value = (split_heads(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        logits = query * self.scale @ key.transpose(-2, -1)
        if relations is not None:
            logits = logits + relations
        x = merge_heads(self.attn_drop(logits.softmax(-1)) @ value)
        return self.proj_drop(self.proj(x)), logits

    def forward(self, x: Tensor, size: Size, found: Found | None, relations: Tensor | None) -> tuple[Tensor, Tensor]:
        """[B, 1 + H*W, D], (H, W), what was found before and its relations -> [B, 1 + H*W, D] and logits."""
        mixed, logits = self.attend(self.norm1(x), relations)
        x = x + self.drop_path(mixed)
        wide = x
        if self.reuse is not None and found is not None:
            reused = resize(self.reuse(found.tokens).transpose(1, 2), found.size, size).transpose(1, 2)
            wide = torch.cat([x, torch.cat([torch.zeros_like(reused[:, :1]), reused[:, 1:]], dim=1)], dim=2)
        return x + self.drop_path(self.mlp(self.norm2(wide))), logits


class ReusingT2T(t2t_vit.T2TViT, WiredViT):
    """A T2T-ViT which hands on what it finds, and reuses what was found by another."""

    def __init__(self, window: tuple[int, int, int], reuse: bool, num_heads: int, **kwargs: Any) -> None:
        block = partial(Block, reuse=reuse)
        super().__init__(t2t_vit.TokenPerformer, window, block_fn=block, num_heads=num_heads, **kwargs)
        maps = len(self.blocks) * num_heads
        self.relation = None
        if reuse:
            self.relation = nn.Sequential(nn.Conv2d(maps, 3 * maps, 1), nn.GELU(), nn.Conv2d(3 * maps, maps, 1))

    def related(self, found: Found | None, size: Size) -> Sequence[Tensor | None]:
        """For each block the logits that it adds, [B, heads, N, N]."""
        if self.relation is None or found is None:
            return [None] * len(self.blocks)
        keys = resize(self.relation(found.relations), found.size, size)
        both = resize(keys.transpose(-2, -1), found.size, size).transpose(-2, -1)
        return both.chunk(len(self.blocks), dim=1)

    def steps(self, images: Tensor, found: Found | None) -> Iterator[tuple[Tensor, Tensor]]:
        """After each block the tokens [B, N, D] and its logits of attention [B, heads, N, N]."""
        x, size = self.embed(images), self.patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
        for block, relations in zip(self.blocks, self.related(found, size), strict=True):
            x, logits = self.run(block, x, size, found, relations)
            yield x, logits

    def find(self, images: Tensor, found: Found | None) -> Found:
        """What this network finds in images [B, C, H, W] with what another one has found."""
        tokens, relations = zip(*self.steps(images, found), strict=True)
        size = self.patch_embed.dynamic_feat_size((images.shape[-2], images.shape[-1]))
        return Found(tokens[-1], torch.cat(relations, dim=1), size)

    def classify(self, found: Found) -> Tensor:
        """Logits [B, K] of the class token."""
        logits: Tensor = self.forward_head(self.norm(found.tokens))
        return logits

    def summary(self, found: Found) -> Tensor:
        """The class token and the mean of the patches, [B, 2 D]."""
        tokens = self.norm(found.tokens)
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)


class DVT(ReusingT2T):
    """The third network; `earlier` are the first two, whose norms and classifiers are there with classes alone."""

    def __init__(self, num_classes: int = 1000, **kwargs: Any) -> None:
        super().__init__(t2t_vit.WINDOW, reuse=True, num_classes=num_classes, **kwargs)
        self.earlier = nn.ModuleList(
            ReusingT2T(window, reuse=number > 0, num_classes=num_classes, **kwargs)
            for number, window in enumerate(WINDOWS)
        )
        if not num_classes:
            self.reset_classifier(0)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers of all three networks for `num_classes`; 0 for none."""
        super().reset_classifier(num_classes, global_pool)
        for network in self.networks()[:-1]:
            network.reset_classifier(num_classes, global_pool)
            if not num_classes:
                network.norm = nn.Identity()
            elif isinstance(network.norm, nn.Identity):
                network.norm = nn.LayerNorm(self.embed_dim).to(self.cls_token)

    def networks(self) -> list[ReusingT2T]:
        """All three."""
        return [*(network for network in self.earlier if isinstance(network, ReusingT2T)), self]

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        """The third network's tokens [B, N, D] after each block; images: [B, C, H, W]."""
        found = None
        for network in self.networks()[:-1]:
            found = network.find(images, found)
        for tokens, _ in self.steps(images, found):
            yield tokens

    def exits(self, images: Tensor) -> list[Tensor]:
        """Logits [B, K] of each network, as all three are trained together."""
        found, logits = None, []
        for network in self.networks():
            found = network.find(images, found)
            logits.append(network.classify(found))
        return logits

    def read(self, images: Tensor) -> list[Tensor]:
        """The class token beside the mean of the patches, [B, 2 D], of each network.

        Without labels the earlier networks' class tokens are trained through relations alone; their patches are reused.
        """
        found, features = None, []
        for network in self.networks():
            found = network.find(images, found)
            features.append(network.summary(found))
        return features

    @torch.no_grad()
    def answer(
        self, images: Tensor, sure: Sequence[float], classifiers: Sequence[Classifier] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, K] of the first network that is sure of an image, and its number [B], 0 to 2.

        sure: for the first two networks, how large the largest probability has to be. classifiers: of what
        :meth:`read` gives; without, the networks' own.
        """
        left = torch.arange(len(images), device=images.device)
        answers, numbers = images.new_zeros(0), torch.zeros_like(left)
        found = None
        for number, (network, least) in enumerate(zip(self.networks(), (*sure, 0.0), strict=True)):
            found = network.find(images[left], found)
            logits = classifiers[number](network.summary(found)) if classifiers else network.classify(found)
            if not number:
                answers = images.new_zeros(len(images), logits.shape[1])
            answers[left], numbers[left] = logits.to(answers.dtype), number
            doubtful = logits.softmax(-1).amax(-1) < least
            left = left[doubtful]
            if not len(left):
                break
            found = Found(found.tokens[doubtful], found.relations[doubtful], found.size)
        return answers, numbers

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The earlier networks, and what is made of their relations, change with the stem."""
        groups: dict[str, Any] = super().group_matcher(coarse)
        return groups | {"stem": rf"{groups['stem']}|^earlier|^relation"}


OFFICIAL = (
    (r"^less_less_token\.", "earlier.0."),
    (r"^less_token\.", "earlier.1."),
    (r"^normal_token\.", ""),
    (r"tokens_to_token\.", "patch_embed.stem."),
    (r"relation_reuse_conv\.", "relation."),
    (r"\.feature_resuse_mlp\.", ".reuse."),
    (r"\.attn\.", "."),
)


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official checkpoint to our names; the last projections of the stems are convolutions here."""
    ours = rename_keys(state_dict, *OFFICIAL)
    for name in [name for name in ours if name.endswith("stem.project.weight")]:
        ours[name] = ours[name].reshape(len(ours[name]), t2t_vit.TOKEN_DIM, 3, 3)
    return ours


VARIANTS: dict[str, dict[str, Any]] = {
    "dvt_t2t_vit_12": {"embed_dim": 256, "depth": 12, "num_heads": 4, "mlp_ratio": 2.0},
    "dvt_t2t_vit_14": {"embed_dim": 384, "depth": 14, "num_heads": 6, "mlp_ratio": 3.0},
}

# An earlier exit's norm is its classifier's alone.
CLASSIFIER = ("head", *(f"earlier.{number}.{part}" for number in range(len(WINDOWS)) for part in ("norm", "head")))

register_variants(
    __name__, DVT, VARIANTS, kind="transformer", out_indices=3, paper_ids="arXiv:2105.15075", classifier=CLASSIFIER
)
