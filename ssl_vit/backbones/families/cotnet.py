"""CoTNet, contextual transformer networks (arXiv:2107.12292), with CoTNeXt and SE-CoTNetD.

A ResNet whose 3 x 3 convolutions give way to attention without logits: a convolution sees the context of each place,
and from it and the place itself comes a 3 x 3 kernel for that place. CoTNeXt does so in two groups; SE-CoTNetD keeps
gated convolutions in its first two stages and in every other block of the third.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.blur_pool import BlurPool2d
from timm.layers.drop import DropPath
from timm.layers.split_attn import SplitAttn
from torch import Tensor, nn

from ssl_vit.backbones.layers import Size, register_variants, rename_keys
from ssl_vit.backbones.pyramid import Pyramid, PyramidStage, drop_path_rates

SHARE = 8  # channels that share a kernel
WIDTHS = (64, 128, 256, 512)  # of the bottlenecks of each stage
EXPANSION = 4


def conv_bn(in_dim: int, dim: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Build a convolution without bias, and batch norm."""
    conv = nn.Conv2d(in_dim, dim, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(dim)]


def local_conv(x: Tensor, kernels: Tensor, groups: int) -> Tensor:
    """Convolve [B, D, H, W] with a 3 x 3 kernel for each place, [B, D * 9 / 8, H, W], shared by 8 channels of a group.

    One reduction sums the nine taps: the network amplifies rounding, and this order is the one of its references.
    """
    batch, dim, height, width = x.shape
    own = dim // (SHARE * groups)  # kernels a group
    kernels = kernels.to(x.dtype).reshape(batch, groups, 1, own, 9, height, width)
    x = F.pad(x, (1, 1, 1, 1)).reshape(batch, groups, SHARE, own, height + 2, width + 2)
    taps = [x[..., i : i + height, j : j + width] * kernels[..., 3 * i + j, :, :] for i in range(3) for j in range(3)]
    return torch.stack(taps, dim=4).sum(dim=4).reshape(batch, dim, height, width)


class CoT(nn.Module):
    """Contextual attention: static context by a convolution, dynamic by kernels made from it, gated together."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        kernels = 9 * dim // SHARE
        self.key_embed = nn.Sequential(*conv_bn(dim, dim, 3, groups=4 * groups), nn.ReLU())
        self.embed = nn.Sequential(
            *(*conv_bn(2 * dim, dim // 2, groups=groups), nn.ReLU()),
            *(nn.Conv2d(dim // 2, kernels, 1, groups=groups), nn.GroupNorm(dim // SHARE, kernels)),
        )
        self.conv1x1 = nn.Sequential(*conv_bn(dim, dim, groups=groups))
        self.bn = nn.BatchNorm2d(dim)
        hidden = max(dim // 2, 32)
        self.se = nn.Sequential(
            nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Conv2d(hidden, 2 * dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D, H, W]."""
        static = self.key_embed(x)
        both = torch.stack((x, static), dim=2).flatten(1, 2) if self.groups > 1 else torch.cat((x, static), dim=1)
        dynamic = F.silu(self.bn(local_conv(self.conv1x1(x), self.embed(both), self.groups)))
        gates = self.se((dynamic + static).mean((2, 3), keepdim=True)).reshape(x.shape[0], -1, 2).softmax(dim=-1)
        x = dynamic * gates[:, :, 0, None, None] + static * gates[:, :, 1, None, None]
        return x


class Bottleneck(nn.Module):
    """1 x 1 down, contextual attention or a gated convolution, 1 x 1 up, around a shortcut.

    Args:
        in_dim, dim: channels of what comes in and goes out.
        mixer: of `width` channels, at full resolution where `before` or `after` halve the map, else halving it itself.
        shortcut: of what comes in, to what goes out.
    """

    def __init__(
        self,
        in_dim: int,
        width: int,
        dim: int,
        mixer: nn.Module,
        shortcut: nn.Module,
        drop_path: float,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_dim, width)
        self.before, self.conv2, self.after = before or nn.Identity(), mixer, after or nn.Identity()
        self.conv3, self.bn3 = conv_bn(width, dim)
        self.downsample, self.drop_path = shortcut, DropPath(drop_path)
        nn.init.zeros_(self.bn3.weight)  # type: ignore[arg-type]  # a block starts as its shortcut

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H / stride, W / stride]."""
        branch = self.before(self.bn1(self.conv1(x)).relu())
        branch = self.bn3(self.conv3(self.after(self.conv2(branch))))
        return F.relu(self.drop_path(branch) + self.downsample(x))


def stem_of(in_chans: int, width: int | None) -> tuple[nn.Module, int]:
    """Build ResNet's stem, and say its channels: 7 x 7 and a max-pool, or with a `width` three 3 x 3 and no pool."""
    if width is None:
        conv: nn.Module = nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)
        rest = [("bn1", nn.BatchNorm2d(64)), ("act1", nn.ReLU()), ("maxpool", nn.MaxPool2d(3, 2, padding=1))]
        return nn.Sequential(OrderedDict([("conv1", conv), *rest])), 64
    first, second = conv_bn(in_chans, width, 3, stride=2), conv_bn(width, width, 3)
    last, norm = conv_bn(width, 2 * width, 3)
    conv = nn.Sequential(*first, nn.ReLU(), *second, nn.ReLU(), last)
    return nn.Sequential(OrderedDict([("conv1", conv), ("bn1", norm), ("act1", nn.ReLU())])), 2 * width


class CoTNet(Pyramid):
    """A stem, four stages of bottlenecks, and a head on the mean of the last map.

    Args:
        depths: of each stage.
        groups, base_width: of CoTNeXt; bottlenecks have `groups * base_width / 64` times ResNet's channels.
        stem_width: of SE-CoTNetD's three-convolution stem, which leaves the pooling to the first stage; None for the
            others.
        blur: halve maps with a blur after the mixer instead of an average before it.
        img_size: taken for timm's sake; nothing in the family depends on it.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        depths: Sequence[int],
        groups: int = 1,
        base_width: int = 64,
        stem_width: int | None = None,
        blur: bool = False,
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        hybrid = stem_width is not None
        stem, in_dim = stem_of(in_chans, stem_width)
        stages = []
        for i, (planes, rates) in enumerate(zip(WIDTHS, drop_path_rates(drop_path_rate, depths), strict=True)):
            width, dim = planes * base_width // 64 * groups, planes * EXPANSION
            blocks = []
            for j, rate in enumerate(rates):
                stride = 2 if j == 0 and (i > 0 or hybrid) else 1
                gated = hybrid and (i < 2 or (i == 2 and j % 2 == 1))
                before = nn.AvgPool2d(3, stride, padding=1) if stride > 1 and not gated and not blur else None
                after = BlurPool2d(width, stride=stride) if stride > 1 and blur else None
                own = 1 if before or after else stride
                mixer = gated_conv(width, own) if gated else CoT(width, groups)
                shortcut = shortcut_of(in_dim, dim, stride, pooled=hybrid) if j == 0 else nn.Identity()
                blocks.append(Bottleneck(in_dim, width, dim, mixer, shortcut, rate, before, after))
                in_dim = dim
            stages.append(PyramidStage(nn.Identity(), blocks))
        super().__init__(stem, stages, [width * EXPANSION for width in WIDTHS], in_chans=in_chans, **head)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def gated_conv(width: int, stride: int) -> nn.Module:
    """Build a 3 x 3 convolution whose channels are gated by the whole map (split attention of radix 1)."""
    return SplitAttn(width, stride=stride, radix=1, act_layer=nn.SiLU, norm_layer=nn.BatchNorm2d)


def shortcut_of(in_dim: int, dim: int, stride: int, pooled: bool) -> nn.Module:
    """Build the way to the block's width and stride: a strided 1 x 1 convolution, or a pool before a plain one."""
    if not pooled:
        return nn.Sequential(*conv_bn(in_dim, dim, stride=stride))
    pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, *conv_bn(in_dim, dim))


def load_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a checkpoint of the authors' code to our names."""
    return rename_keys(
        state_dict,
        (r"^(conv1|bn1)\.", r"stem.\1."),
        (r"^layer(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
        (r"^fc\.", "head.fc."),
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "cotnet50": {"depths": (3, 4, 6, 3)},
    "cotnet101": {"depths": (3, 4, 23, 3)},
    "cotnext50_2x48d": {"depths": (3, 4, 6, 3), "groups": 2, "base_width": 48},
    "cotnext101_2x48d": {"depths": (3, 4, 23, 3), "groups": 2, "base_width": 48},
    "se_cotnetd_50": {"depths": (3, 4, 6, 3), "stem_width": 32},
    "se_cotnetd_101": {"depths": (3, 4, 23, 3), "stem_width": 64},
    "se_cotnetd_152": {"depths": (3, 8, 36, 3), "stem_width": 64, "blur": True},
}
register_variants(
    __name__,
    CoTNet,
    VARIANTS,
    kind="hybrid",
    paper_ids="arXiv:2107.12292",
    first_conv="stem.conv1",
    classifier="head.fc",
)
