"""Pyramids: maps of falling resolution, with timm's conventions; a family says what its stages are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

from timm.layers.classifier import ClassifierHead
from timm.layers.norm import LayerNorm2d
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ssl_vit.backbones.layers import PatchEmbed, Size, init_linear, to_map, to_tokens
from ssl_vit.backbones.windows import PatchMerging


class PyramidStage(nn.Module):
    """A stage is a downsampling layer, then blocks over maps; [B, C, H, W] -> [B, D, H / s, W / s]."""

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
        """Map [B, C, H, W] to [B, D, H / s, W / s]."""
        return self.run(self.downsample(x))


class NHWCStage(PyramidStage):
    """One level of a pyramid whose blocks take maps with the channels last, [B, H, W, D]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, D, H / s, W / s]."""
        return self.run(self.downsample(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenStage(PyramidStage):
    """One level of a pyramid whose blocks are ``block(tokens [B, H*W, D], (H, W), *shared(size))``."""

    def shared(self, size: Size) -> tuple[Any, ...]:
        """What every block of the stage is given besides its tokens and their size."""
        return ()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, D, H / s, W / s]."""
        x = self.downsample(x)
        size = (x.shape[-2], x.shape[-1])
        return to_map(self.run(to_tokens(x), size, *self.shared(size)), size)


class Pyramid(nn.Module):
    """A pyramid has a stem, stages of falling resolution, a norm and a linear head, with timm's conventions.

    Args:
        stem: [B, in_chans, H, W] to the map that the first stage takes.
        stages: modules over maps, each one coarser than the last (:class:`PyramidStage`).
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
        """Return timm's patterns for layer-wise learning rates: by stage, or by block."""
        blocks = [(r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^stages\.(\d+)", (0,)), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping what they computed."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]  # a plain flag, torch types all attributes

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer."""
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new head for `num_classes`; 0 for none."""
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
        """Compute the last map, normed: [B, in_chans, H, W] -> [B, D, H / s, W / s]."""
        x = self.norm(self.stages(self.stem(x)))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map [B, D, H, W] to [B, num_classes], or to [B, head_hidden_size] with `pre_logits`."""
        x = self.head(x, pre_logits=pre_logits)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_chans, H, W] to [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


def drop_path_rates(most: float, depths: Sequence[int]) -> list[list[float]]:
    """Make a rate of stochastic depth for each block of each stage, rising evenly from 0 to `most` (1603.09382)."""
    count = sum(depths)
    rates = (most * i / max(1, count - 1) for i in range(count))
    return [list(islice(rates, depth)) for depth in depths]


class SwinLayout(Pyramid):
    """Patches of 4 pixels, stages at strides 4, 8, …, each with twice the channels, a norm, a linear head on the mean.

    Args:
        block: makes a block over maps [B, H, W, D], given its stage, its place there, D and its rate of drop path.
        merge: makes what halves the map before each later stage, given the channels that come in and go out.
        stem: makes what embeds the image, given the same two numbers.
        embed_dim: channels of the first stage.
        depths: of each stage.
        img_size: taken for timm's sake; a family whose weights depend on it takes it itself.
        head: `num_classes`, `global_pool`, `drop_rate` of :class:`Pyramid`.
    """

    def __init__(
        self,
        block: Callable[[int, int, int, float], nn.Module],
        merge: Callable[[int, int], nn.Module] = PatchMerging,
        stem: Callable[[int, int], nn.Module] = PatchEmbed,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        img_size: int | Size = 224,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        **head: Any,
    ) -> None:
        dims = [embed_dim << i for i in range(len(depths))]
        stages = []
        for i, (dim, rates) in enumerate(zip(dims, drop_path_rates(drop_path_rate, depths), strict=True)):
            blocks = [block(i, j, dim, rate) for j, rate in enumerate(rates)]
            stages.append(NHWCStage(merge(dims[i - 1], dim) if i else nn.Identity(), blocks))
        norm = LayerNorm2d(dims[-1], eps=1e-5)
        super().__init__(stem(in_chans, embed_dim), stages, dims, norm=norm, in_chans=in_chans, **head)
        init_linear(self)
