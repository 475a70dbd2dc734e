"""DINO's hyper-parameters and views (arXiv 2104.14294). Needs no torch.

"Official" below is the default of the authors' released training code unless a model is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.base_config import (
    AUTO,
    SMALL,
    Auto,
    Change,
    Choices,
    Count,
    CountOrZero,
    Fraction,
    MethodConfig,
    Momentum,
    NonNegative,
    Positive,
    Scale,
    Situation,
    small_set_momentum,
    small_set_rate,
    two_views,
)
from ssl_vit.registry import register_method

OFFICIAL = "official recipe"


def _adamw(given: Situation) -> Choices:
    path = (0.1, OFFICIAL) if given.drops_paths else (0.0, "this backbone has no such paths")
    return {
        "optim.optimizer": ("adamw", OFFICIAL),
        "optim.lr": (5e-4 * given.batch_size / 256, "5e-4 x batch / 256, official"),
        "optim.weight_decay": (0.04, OFFICIAL),
        "optim.weight_decay_end": (0.4, OFFICIAL),
        "backbone.drop_path": path,
    }


def _sgd(given: Situation) -> Choices:
    return {
        "optim.optimizer": ("sgd", "the official recipe for a ResNet-50"),
        "optim.lr": (0.03 * given.batch_size / 256, "0.03 x batch / 256, the official ResNet-50"),
        "optim.weight_decay": (1e-4, "the official ResNet-50"),
        "optim.weight_decay_end": (1e-4, "the official ResNet-50"),
        "backbone.drop_path": (0.0, "the official ResNet-50"),
    }


def _small_set(given: Situation) -> Choices:
    """Measured on 4,000 posed digits with a ViT of width 128, where each step away from this learnt less or nothing.

    A teacher near uniform grows out of it only if its temperature is below the student's times the share of its output
    that two crops agree on: with random weights that share is small, and so must the temperature be.
    """
    prototypes = 2 ** max(6, round(math.log2(given.images / 16)))
    choices: Choices = {
        "method.out_dim": (min(prototypes, 65536), f"{given.images} images: about sixteen a prototype"),
        "method.head_norm": ("batch", "small set: without it the head collapses to uniform"),
        "method.centering": ("sinkhorn", "small set: no prototype can win or lose all images"),
        "method.teacher_temp": (0.01, "small set: sharp, or the teacher fades to uniform"),
        "method.warmup_teacher_temp": (0.01, "as teacher_temp"),
        "method.momentum": small_set_momentum(given, 0.996),
        "method.freeze_last_layer_epochs": (0.0, "small set: every step counts"),
    }
    if given.kind != "convolutional":
        choices["optim.lr"] = small_set_rate(given)
        choices["backbone.drop_path"] = (0.0, "small set: few steps, nothing to regularise yet")
    return choices


@register_method("dino", loss="ssl_vit.methods.dino:DINO")
class Config(MethodConfig):
    """Self-distillation without labels: a student matches its own moving average across crops."""

    name: Literal["dino"] = "dino"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "A student network, shown large and small crops, predicts what its own moving average says of the large crops."
    )
    needs: ClassVar[str] = "any backbone; with local crops, one that takes images of other sizes"
    choose_when: ClassVar[str] = (
        "You want features that work at once for k-NN, retrieval and dense tasks; the default for many images."
    )

    clip_per_tensor: ClassVar[bool] = True
    advice: ClassVar[Mapping[str, Sequence[Change | str] | str]] = {
        "uniform collapse": (
            Change("lower", "method.teacher_temp"),
            Change("lower", "method.out_dim"),
            Change("set", "method.head_norm", "batch"),
        ),
        "constant-output collapse": (
            Change("raise", "method.teacher_temp"),
            Change("lower", "method.center_momentum", when=("method.centering", "mean")),
            Change("lower", "optim.lr"),
        ),
        "not learning yet": (
            Change("raise", "train.epochs"),
            Change("raise", "optim.lr"),
            Change("lower", "method.momentum"),
        ),
    }

    out_dim: Auto[Count] = AUTO
    """Prototypes, the length of the head's output (official: 65536)."""
    hidden_dim: Count = 2048
    """Width of the head's two hidden layers (official: 2048)."""
    bottleneck_dim: Count = 256
    """Length of the normalised vector before the last layer (official: 256)."""
    head_norm: Auto[Literal["none", "batch"]] = AUTO
    """Normalisation inside the head: none, or batch norm (official: none)."""
    norm_last_layer: Auto[bool] = AUTO
    """Keep the last layer's weight norms at 1: steadier, a little worse on small models
    (official: true; ViT-S/16 over 800 epochs: false)."""
    student_temp: Positive = 0.1
    """Temperature of the student's softmax (official: 0.1)."""
    teacher_temp: Auto[Positive] = AUTO
    """Temperature of the teacher's softmax after its warm-up (official: 0.04; the released ViTs: 0.07)."""
    warmup_teacher_temp: Auto[Positive] = AUTO
    """Temperature at which the teacher starts, then linear to teacher_temp (official: 0.04)."""
    warmup_teacher_temp_epochs: Auto[NonNegative] = AUTO
    """Epochs of that warm-up (official: 0; ViT-S/16: 30, ViT-B/16: 50)."""
    momentum: Auto[Momentum] = AUTO
    """The teacher's share of itself at each step, at the start; a cosine takes it to 1.0 (official: 0.996)."""
    centering: Auto[Literal["mean", "sinkhorn"]] = AUTO
    """What keeps the teacher from favouring one prototype: a running mean of its logits (official), or equal shares
    of each batch by Sinkhorn-Knopp (as in DINOv2, arXiv 2304.07193)."""
    center_momentum: Momentum = 0.9
    """Share of the old centre kept at each step (official: 0.9)."""
    freeze_last_layer_epochs: Auto[NonNegative] = AUTO
    """Epochs in which the head's last layer is not trained (official: 1; ViT-B/16: 3)."""
    flip: Fraction = 0.5
    """Share of crops that are mirrored; 0 where left and right differ, as in text (official: 0.5)."""
    local_crops: Auto[CountOrZero] = AUTO
    """Small crops an image beside the 2 large ones (official: 8; the released ViTs: 10)."""
    global_scale: Auto[Scale] = AUTO
    """Share of the image's area that a large crop covers, low and high
    (official: 0.4 to 1; released ViTs: 0.25 to 1; ResNet-50: 0.14 to 1)."""
    local_scale: Auto[Scale] = AUTO
    """Share of the image's area that a small crop covers, low and high
    (official: 0.05 to 0.4; released ViTs: 0.05 to 0.25; ResNet-50: 0.05 to 0.14)."""
    local_size: Auto[Count] = AUTO
    """Side of a small crop, pixels (official: 96)."""

    def choose(self, given: Situation) -> Choices:
        """The official recipe, or what works on small sets, where the official one collapses to uniform."""
        patches = round(given.image_size * 96 / 224 / given.multiple)
        local = (patches * given.multiple, "96 of 224, in whole patches")
        if local[0] < given.smallest:
            local = (given.smallest, "the smallest that this backbone takes")
        choices: Choices = {
            "method.out_dim": (65536, OFFICIAL),
            "method.head_norm": ("none", OFFICIAL),
            "method.centering": ("mean", OFFICIAL),
            "method.norm_last_layer": (True, OFFICIAL),
            "method.teacher_temp": (0.04, OFFICIAL),
            "method.warmup_teacher_temp": (0.04, OFFICIAL),
            "method.warmup_teacher_temp_epochs": (0.0, OFFICIAL),
            "method.momentum": (0.996, OFFICIAL),
            "method.freeze_last_layer_epochs": (min(1.0, given.epochs / 10), "1, official; less of short runs"),
            "method.local_crops": (8, OFFICIAL),
            "method.global_scale": ((0.4, 1.0), OFFICIAL),
            "method.local_scale": ((0.05, 0.4), OFFICIAL),
            "method.local_size": local,
            "optim.beta2": (0.999, OFFICIAL),
            "optim.min_lr": (1e-6, OFFICIAL),
            "optim.warmup_epochs": (min(10.0, given.epochs / 20), "10, official, or a twentieth of a short run"),
            "optim.clip": (3.0, OFFICIAL),
        }
        choices |= _sgd(given) if given.kind == "convolutional" else _adamw(given)
        if given.images < SMALL:
            choices |= _small_set(given)
        if patches < 3:
            choices["method.local_crops"] = (2, "few: for so small images they are nearly as large as the global ones")
            size = min(max(3 * given.multiple, given.smallest), given.image_size)
            choices["method.local_size"] = (size, "3 x 3 patches, to see anything")
            choices["method.local_scale"] = ((0.12, 0.4), "less of so small an image shows nothing")
        if not given.any_size:
            choices["method.local_size"] = (given.image_size, "this backbone takes one size only")
        return choices

    def spans(self) -> dict[str, float]:
        """The warm-up of the teacher's temperature, where it changes, and the rest of the last layer."""
        found = {"method.freeze_last_layer_epochs": self.freeze_last_layer_epochs}
        if self.warmup_teacher_temp != self.teacher_temp:
            found["method.warmup_teacher_temp_epochs"] = self.warmup_teacher_temp_epochs
        return found

    def teacher_momentum(self) -> float | None:
        """That of the settings."""
        return self.momentum

    def views(self, image_size: int) -> ViewPlan:
        """Two global crops of ``image_size`` pixels and the local ones, with DINO's official augmentation.

        >>> config = Config(local_crops=8, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), local_size=96)
        >>> plan = config.views(224)
        >>> [(view.name, view.count, view.size, view.blur_p) for view in plan.views]
        [('global1', 1, 224, 1.0), ('global2', 1, 224, 0.1), ('local', 8, 96, 0.5)]
        """
        first, second = two_views(image_size, self.global_scale, self.flip)
        views = [first, second]
        if count := self.local_crops:
            size, scale = self.local_size, self.local_scale
            views.append(replace(first, name="local", count=count, size=size, scale=scale, blur_p=0.5))
        return ViewPlan(tuple(views))
