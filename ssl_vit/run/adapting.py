"""Whether what is asked of the weights of a file can be done, before any image is read."""

from __future__ import annotations

import torch

from ssl_vit.adapt.anchors import Pull
from ssl_vit.adapt.lora import adapt
from ssl_vit.backbones import create_backbone
from ssl_vit.config import RunConfig
from ssl_vit.errors import UserError
from ssl_vit.methods import method_class


def check_adaptation(config: RunConfig) -> str | None:
    """What LoRA trains, in words; None where it isn't asked for.

    Raises:
        UserError: it is asked of random weights, of a method that trains none, or of a backbone without such layers.
    """
    asked, part = config.adapt, config.backbone
    for key in anchors(config):
        _check_start(config, f"adapt.{key}")
    if asked.lora_rank is None:
        return None
    _check_start(config, "adapt.lora_rank")
    with torch.device("meta"):
        backbone = create_backbone(part.name, image_size=part.image_size, model_args=part.args)
        layers = adapt(backbone, asked.lora_rank, asked.lora_targets)
    trained = sum(weight.numel() for weight in backbone.model.parameters() if weight.requires_grad)
    ends = ", ".join(dict.fromkeys(layer.rpartition(".")[2] for layer in layers))
    share = trained / backbone.info.parameters
    return f"LoRA beside {len(layers)} layers ({ends}): {trained:,} values are trained, {share:.1%} of the backbone's"


def pull_of(config: RunConfig) -> Pull:
    """How strongly features are held to those of the start."""
    asked = config.adapt
    return Pull(
        asked.anchor_pooled_cosine,
        asked.anchor_pooled_squared,
        asked.anchor_patch_cosine,
        asked.anchor_patch_squared,
        asked.anchor_every,
    )


def anchors(config: RunConfig) -> list[str]:
    """The settings that hold the backbone to where it began and are on."""
    keys = ("anchor_pooled_cosine", "anchor_pooled_squared", "anchor_patch_cosine", "anchor_patch_squared", "l2_sp")
    return [key for key in keys if getattr(config.adapt, key) > 0]


def _check_start(config: RunConfig, key: str) -> None:
    """UserError where there are no weights to go on from, or none that are trained."""
    if config.backbone.weights is None:
        raise UserError(f"{key}: it goes on from weights that are there; add --weights FILE, or leave it out")
    if method_class(config.method.name).frozen:
        raise UserError(f"{key}: {config.method.name} does not train the backbone; leave it out")
    if config.train.strategy == "fsdp":
        raise UserError(f"{key}: not with train.strategy=fsdp; set train.strategy=ddp, or leave it out")
