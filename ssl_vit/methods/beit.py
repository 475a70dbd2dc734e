"""BEiT: predict the visual words of hidden patches (2106.08254)."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_vit.backbones.backbone import Backbone, BackboneInfo
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.data.masks import blockwise_masks
from ssl_vit.methods.beit_config import Config
from ssl_vit.methods.masked import Masked, hidden_rows, linear, with_pooled
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.targets import exact
from ssl_vit.methods.workspace import Workspace
from ssl_vit.tokenizers import fitting
from ssl_vit.tokenizers.dalle import Dalle
from ssl_vit.tokenizers.picture import reconstructions
from ssl_vit.tokenizers.tokenizer import Tokenizer
from ssl_vit.tokenizers.vq import VQ

log = logging.getLogger("ssl_vit")


class BEiT(Masked):
    """From patches in sight, the words of those that blocks hide; a frozen tokenizer names the words."""

    config: Config

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__(config, backbone, image_size)
        self.tokenizer = new_tokenizer(config, self.cell, backbone.info)
        self.head = linear(backbone.info.patch_dim, self.tokenizer.codes)

    def draw_masks(self, images: int, height: int, width: int) -> Tensor:
        """Blocks, bool [images, height, width]: at most ``mask_ratio`` of each image."""
        most = max(1, int(self.config.mask_ratio * height * width))
        return blockwise_masks(torch.full((images,), most), height, width)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: one crop, [B, 3, S, S]."""
        (images,) = batch
        with torch.no_grad():
            words = self.tokenizer(images, self.grid_of(images))
        features, masks = self.see(images)
        wanted = hidden_rows(words[:, None], masks)[:, 0]
        logits = exact(self.head(hidden_rows(features.patches, masks)))
        loss = F.cross_entropy(logits, wanted)
        said = words.flatten()
        counts = said.new_zeros(self.tokenizer.codes).scatter_add(0, said, torch.ones_like(said))  # bincount would wait
        shares = counts.to(logits.dtype) / words.numel()
        parts = {
            "blind_loss": torch.special.entr(shares).sum(),  # of always saying how frequent each word is
            "accuracy": (logits.detach().argmax(1) == wanted).to(logits.dtype).mean(),
            "commonest": shares.max(),  # the accuracy of always saying that one
            "words_used": (shares > 0).to(logits.dtype).sum(),
            "hidden": masks.to(logits.dtype).mean(),
        }
        return Step(with_pooled(loss, features.pooled), parts, features.pooled.detach())

    def prepare(self, workspace: Workspace) -> None:
        """The tokenizer learns its words from the images, where it has to; see RUN/tokenizer.png."""
        if self.tokenizer.fit_steps:
            path = workspace.kept("tokenizer.safetensors", lambda staged: self._fit_tokenizer(workspace, staged))
            fitting.put_back(self.tokenizer, path)

    def _fit_tokenizer(self, workspace: Workspace, path: Path) -> None:
        steps, grid = self.tokenizer.fit_steps, self.grid
        log.info("fitting the tokenizer on your images: %d steps", steps)
        images = (workspace.views(batch)[0] for batch in workspace.batches(steps, workspace.seed + 1))
        loss = fitting.fit(self.tokenizer, images, steps, grid, workspace.seed, workspace.device)
        sample = workspace.views(next(iter(workspace.batches(1, workspace.seed))))[0][:8]
        reconstructions(self.tokenizer, sample, grid, workspace.folder / "tokenizer.png")
        fitting.save(self.tokenizer, path)
        log.info("the tokenizer is fitted: loss %.3f; see %s", loss, workspace.folder / "tokenizer.png")

    def remark(self, parts: dict[str, float]) -> str:
        """How often the right word is found, and how much of the vocabulary is in use."""
        return (
            f"Of hidden patches {100 * parts['accuracy']:.1f} % get the right word (always the commonest: "
            f"{100 * parts['commonest']:.1f} %); a batch has {parts['words_used']:.0f} of {self.tokenizer.codes} words."
        )


def new_tokenizer(config: Config, cell: int, info: BackboneInfo) -> Tokenizer:
    """The tokenizer that the configuration names, for patches of ``cell`` pixels and images as ``info`` has them."""
    if config.tokenizer == "own":
        return VQ(config.codes, cell, config.tokenizer_steps, info.mean, info.std)
    assert config.tokenizer_weights is not None  # checked before
    if config.tokenizer == "dalle":
        return Dalle(config.tokenizer_weights, info.mean, info.std)
    teacher = backbone_of_file(config.tokenizer_weights, config.tokenizer_backbone)
    return VQ(config.codes, cell, config.tokenizer_steps, info.mean, info.std, teacher=teacher)
