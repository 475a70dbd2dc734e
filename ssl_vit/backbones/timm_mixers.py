"""timm's MLP-Mixer, ResMLP and gMLP take images of any size: matrices over tokens are interpolated on the way."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn

from ssl_vit.backbones.mixing import grid_resampling


class Grid(NamedTuple):
    """The grid of the images seen last that have so many tokens N; M is how many the weights are built for."""

    read: Tensor | None  # [M, N], what takes a map to the built grid; None on that grid itself
    write: Tensor | None  # [N, M], what takes it back


class Grids(dict[int, Grid]):
    """What embeds patches says here which grids it has seen, tokens -> grid: a number of tokens alone doesn't tell."""

    def __init__(self, stem: Any) -> None:
        self.patch, self.built = stem.patch_size, stem.grid_size
        super().__init__({self.built[0] * self.built[1]: Grid(None, None)})

    def note(self, stem: Any, given: tuple[Tensor, ...]) -> None:
        """Before the embedding of images [B, C, H, W], which pads them to whole patches."""
        rows, columns = (-(-side // patch) for side, patch in zip(given[0].shape[-2:], self.patch, strict=True))
        size, like = (rows, columns), stem.proj.weight
        other = size != self.built
        self[rows * columns] = Grid(
            grid_resampling(size, self.built, like) if other else None,
            grid_resampling(self.built, size, like) if other else None,
        )


class TokenLinear(nn.Linear):
    """This linear layer reads tokens, writes them or does both; its weights stay those of the grid it is built for.

    What it gives there is timm's to the bit. On another grid, read tokens are averaged or interpolated to the built
    grid and written ones interpolated from it: as a product of matrices, so that weights are what is interpolated.
    """

    def __init__(self, layer: nn.Linear, grids: Grids, reads: bool, writes: bool) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.grids, self.reads, self.writes = grids, reads, writes
        self.tokens = grids.built[0] * grids.built[1]

    def note(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        """Before what is around a layer that only writes: how many tokens of [B, D, N] it is to write."""
        self.tokens = given[0].shape[-1]

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, N] or a hidden layer's [B, D, M] -> [B, D, M] or [B, D, N]."""
        grid = self.grids[x.shape[-1] if self.reads else self.tokens]
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.reads and grid.read is not None:
            weight = weight @ grid.read
        if self.writes and grid.write is not None:
            weight = grid.write @ weight
            bias = None if bias is None else grid.write @ bias
        return F.linear(x, weight, bias)


def free_sizes(model: Any) -> Any:
    """Let a mixer of timm take images of any size, changed in place; another model is left as it is.

    So is one that is built for no whole number of patches, since timm cuts those images off.
    """
    if not isinstance(model, MlpMixer):
        return model
    stem: Any = model.stem
    if any(side % patch for side, patch in zip(stem.img_size, stem.patch_size, strict=True)):
        return model
    grids = Grids(stem)
    stem.strict_img_size, stem.dynamic_img_pad = False, True
    stem.register_forward_pre_hook(grids.note)
    for module in list(model.blocks.modules()):
        mixing: Any = getattr(module, "mlp_tokens", None)
        if mixing is not None:
            mixing.fc1 = TokenLinear(mixing.fc1, grids, reads=True, writes=False)
            mixing.fc2 = TokenLinear(mixing.fc2, grids, reads=False, writes=True)
            mixing.register_forward_pre_hook(mixing.fc2.note)
        for name in ("linear_tokens", "proj"):  # of ResMLP's block and of gMLP's gate
            if isinstance(layer := getattr(module, name, None), nn.Linear):
                setattr(module, name, TokenLinear(layer, grids, reads=True, writes=True))
    return model
