"""DINO's hyper-parameters and views (arXiv 2104.14294). Needs no torch.

"Official" below is the default of the authors' released training code unless a model is named.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.methods.base_config import (
    Auto,
    Choices,
    Count,
    CountOrZero,
    MethodConfig,
    NonNegative,
    Positive,
    Scale,
    Situation,
    settled,
)

SMALL = 20_000  # images below which the official recipe, made for 1.28 million, is adapted
OFFICIAL = "official recipe"
ONE_SIZE = "this backbone takes one size only"

Momentum = Annotated[float, Field(ge=0, lt=1)]


class Config(MethodConfig):
    """Self-distillation without labels: a student matches its own moving average across crops."""

    name: Literal["dino"] = "dino"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "A student network, shown large and small crops, predicts what its own moving average says of the large crops."
    )
    needs: ClassVar[str] = "any backbone; with local crops, one that takes images of other sizes"
    choose_when: ClassVar[str] = (
        "You want features that work at once for k-NN, retrieval and dense tasks; the default for most data."
    )

    clip_per_tensor: ClassVar[bool] = True

    out_dim: Auto[Count] = "auto"
    """Prototypes, the length of the head's output (official: 65536)."""
    hidden_dim: Count = 2048
    """Width of the head's two hidden layers (official: 2048)."""
    bottleneck_dim: Count = 256
    """Length of the normalised vector before the last layer (official: 256)."""
    head_norm: Auto[Literal["none", "batch"]] = "auto"
    """Normalisation inside the head: none, or batch norm (official: none)."""
    norm_last_layer: Auto[bool] = "auto"
    """Keep the last layer's weight norms at 1: steadier, a little worse on small models
    (official: true; ViT-S/16 over 800 epochs: false)."""
    student_temp: Positive = 0.1
    """Temperature of the student's softmax (official: 0.1)."""
    teacher_temp: Auto[Positive] = "auto"
    """Temperature of the teacher's softmax after its warm-up (official: 0.04; the released ViTs: 0.07)."""
    warmup_teacher_temp: Auto[Positive] = "auto"
    """Temperature at which the teacher starts, then linear to teacher_temp (official: 0.04)."""
    warmup_teacher_temp_epochs: Auto[NonNegative] = "auto"
    """Epochs of that warm-up (official: 0; ViT-S/16: 30, ViT-B/16: 50)."""
    momentum: Auto[Momentum] = "auto"
    """The teacher's share of itself at each step, at the start; a cosine takes it to 1.0 (official: 0.996)."""
    centering: Auto[Literal["mean", "sinkhorn"]] = "auto"
    """What keeps the teacher from favouring one prototype: a running mean of its logits (official), or equal shares
    of each batch by Sinkhorn-Knopp (as in DINOv2, arXiv 2304.07193)."""
    center_momentum: Momentum = 0.9
    """Share of the old centre kept at each step (official: 0.9)."""
    freeze_last_layer_epochs: Auto[NonNegative] = "auto"
    """Epochs in which the head's last layer is not trained (official: 1; ViT-B/16: 3)."""
    local_crops: Auto[CountOrZero] = "auto"
    """Small crops an image beside the 2 large ones (official: 8; the released ViTs: 10)."""
    global_scale: Auto[Scale] = "auto"
    """Share of the image's area that a large crop covers, low and high
    (official: 0.4 to 1; released ViTs: 0.25 to 1; ResNet-50: 0.14 to 1)."""
    local_scale: Auto[Scale] = "auto"
    """Share of the image's area that a small crop covers, low and high
    (official: 0.05 to 0.4; released ViTs: 0.05 to 0.25; ResNet-50: 0.05 to 0.14)."""
    local_size: Auto[Count] = "auto"
    """Side of a small crop, pixels (official: 96)."""

    def choose(self, given: Situation) -> Choices:
        """The official recipe; on small sets what keeps it from uniform collapse there, as the reasons say."""
        small = given.images < SMALL
        local = max(given.multiple, round(given.image_size * 96 / 224 / given.multiple) * given.multiple)
        own_size = (local, "96 of 224, in whole patches") if given.any_size else (given.image_size, ONE_SIZE)
        choices: Choices = {
            "method.out_dim": (1024, "few images fill few prototypes") if small else (65536, OFFICIAL),
            "method.head_norm": ("batch", "without it small sets collapse to uniform") if small else ("none", OFFICIAL),
            "method.centering": ("sinkhorn", "no prototype can take or lose all of a small set") if small else ("mean", OFFICIAL),
            "method.norm_last_layer": (True, OFFICIAL),
            "method.teacher_temp": (0.04, OFFICIAL),
            "method.warmup_teacher_temp": (0.04, OFFICIAL),
            "method.warmup_teacher_temp_epochs": (0.0, OFFICIAL),
            "method.momentum": (0.99, "short runs need a quicker teacher") if small else (0.996, OFFICIAL),
            "method.freeze_last_layer_epochs": (1.0, OFFICIAL),
            "method.local_crops": (4, "small images") if small else (8, OFFICIAL),
            "method.global_scale": ((0.4, 1.0), OFFICIAL),
            "method.local_scale": ((0.05, 0.4), OFFICIAL),
            "method.local_size": own_size,
        }
        return choices | self._optimiser(given)

    def _optimiser(self, given: Situation) -> Choices:
        if given.kind == "convolutional":
            return {
                "optim.optimizer": ("sgd", "the official recipe for a ResNet-50"),
                "optim.lr": (0.03 * given.batch_size / 256, "0.03 x batch / 256, the official ResNet-50"),
                "optim.min_lr": (1e-6, OFFICIAL),
                "optim.weight_decay": (1e-4, "the official ResNet-50"),
                "optim.weight_decay_end": (1e-4, "the official ResNet-50"),
                "optim.warmup_epochs": (10.0, OFFICIAL),
                "optim.clip": (3.0, OFFICIAL),
                "backbone.drop_path": (0.0, "a convolutional network"),
            }
        return {
            "optim.optimizer": ("adamw", OFFICIAL),
            "optim.lr": (5e-4 * given.batch_size / 256, "5e-4 x batch / 256, official"),
            "optim.min_lr": (1e-6, OFFICIAL),
            "optim.weight_decay": (0.04, OFFICIAL),
            "optim.weight_decay_end": (0.4, OFFICIAL),
            "optim.warmup_epochs": (10.0, OFFICIAL),
            "optim.clip": (3.0, OFFICIAL),
            "backbone.drop_path": (0.1, OFFICIAL) if given.drops_paths else (0.0, "this backbone has no such paths"),
        }

    def views(self, image_size: int) -> ViewPlan:
        """Two global crops of ``image_size`` pixels and the local ones, with DINO's official augmentation.

        Its blur, up to 2 pixels on crops of 224, keeps its proportion to smaller ones.

        >>> config = Config(local_crops=8, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), local_size=96)
        >>> plan = config.views(224)
        >>> [(view.name, view.count, view.size, view.blur_p) for view in plan.views]
        [('global1', 1, 224, 1.0), ('global2', 1, 224, 0.1), ('local', 8, 96, 0.5)]
        """
        first = View(
            name="global1",
            count=1,
            size=image_size,
            scale=settled(self.global_scale),
            flip_p=0.5,
            jitter=(0.4, 0.4, 0.2, 0.1),
            jitter_p=0.8,
            gray_p=0.2,
            blur_p=1.0,
            blur_sigma=(0.1 * image_size / 224, 2.0 * image_size / 224),
        )
        views = [first, replace(first, name="global2", blur_p=0.1, solarize_p=0.2)]
        if count := settled(self.local_crops):
            size, scale = settled(self.local_size), settled(self.local_scale)
            views.append(replace(first, name="local", count=count, size=size, scale=scale, blur_p=0.5))
        return ViewPlan(tuple(views))
