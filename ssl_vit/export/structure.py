"""Another library builds the same architecture from these numbers, which are read from timm's model."""

from __future__ import annotations

from typing import Any, NamedTuple

from ssl_vit.backbones.adapter import AdaptedBackbone


class ViT(NamedTuple):
    """These numbers make a plain vision transformer (arXiv 2010.11929)."""

    size: tuple[int, int]
    patch: int
    dim: int
    depth: int
    heads: int
    hidden: int
    eps: float


class Swin(NamedTuple):
    """These numbers make a Swin transformer (arXiv 2103.14030); there is one for each stage where there are several."""

    size: tuple[int, int]
    patch: int
    dim: int
    depths: list[int]
    heads: list[int]
    window: int
    ratio: float


class ResNet(NamedTuple):
    """These numbers make a residual network (arXiv 1512.03385)."""

    bottleneck: bool
    depths: list[int]
    channels: list[int]
    groups: int
    width: int


class ConvNeXt(NamedTuple):
    """These numbers make a ConvNeXt (arXiv 2201.03545)."""

    depths: list[int]
    dims: list[int]


class PVTv2(NamedTuple):
    """These numbers make a pyramid vision transformer, version 2 (arXiv 2106.13797)."""

    depths: list[int]
    dims: list[int]
    heads: list[int]
    ratios: list[int]
    reductions: list[int]
    linear: bool


def vit(backbone: AdaptedBackbone) -> ViT:
    """Read the numbers of a ViT, or of a BEiT."""
    model: Any = backbone.model
    block, patch = model.blocks[0], model.patch_embed.patch_size[0]
    hidden = block.mlp.fc1.out_features
    size = tuple(model.patch_embed.img_size or backbone.info.size)
    return ViT(size, patch, model.embed_dim, len(model.blocks), block.attn.num_heads, hidden, block.norm1.eps)


def swin(backbone: AdaptedBackbone) -> Swin:
    """Read the numbers of a Swin."""
    model: Any = backbone.model
    first = model.layers[0].blocks[0]
    return Swin(
        size=backbone.info.size,
        patch=model.patch_embed.patch_size[0],
        dim=model.patch_embed.proj.out_channels,
        depths=[len(layer.blocks) for layer in model.layers],
        heads=[layer.blocks[0].attn.num_heads for layer in model.layers],
        window=(round(first.attn.relative_position_bias_table.shape[0] ** 0.5) + 1) // 2,
        ratio=first.mlp.fc1.out_features / first.mlp.fc1.in_features,
    )


def resnet(backbone: AdaptedBackbone) -> ResNet:
    """Read the numbers of a ResNet, ResNeXt or wide ResNet."""
    model: Any = backbone.model
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    first = stages[0][0]
    return ResNet(
        bottleneck=hasattr(first, "conv3"),
        depths=[len(stage) for stage in stages],
        channels=[stage.channels for stage in backbone.info.stages[-4:]],
        groups=first.conv2.groups,
        width=first.conv1.out_channels // first.conv2.groups,
    )


def convnext(backbone: AdaptedBackbone) -> ConvNeXt:
    """Read the numbers of a ConvNeXt."""
    model: Any = backbone.model
    return ConvNeXt([len(stage.blocks) for stage in model.stages], [stage.channels for stage in backbone.info.stages])


def pvt_v2(backbone: AdaptedBackbone) -> PVTv2:
    """Read the numbers of a PVT v2."""
    model: Any = backbone.model
    firsts = [stage.blocks[0] for stage in model.stages]
    return PVTv2(
        depths=[len(stage.blocks) for stage in model.stages],
        dims=[stage.channels for stage in backbone.info.stages],
        heads=[block.attn.num_heads for block in firsts],
        ratios=[block.mlp.fc1.out_features // block.mlp.fc1.in_features for block in firsts],
        reductions=[getattr(block.attn.sr, "stride", (1,))[0] if block.attn.sr else 1 for block in firsts],
        linear=firsts[0].attn.pool is not None,
    )
