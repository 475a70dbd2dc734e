"""What fine-tuning adds to plain learning: AugReg's augmentation and dropout, and DeiT's distillation by a token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ssl_vit.data.batch import Batch
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.job import Job
from ssl_vit.eval.kinds.finetune import Finetune
from ssl_vit.eval.linear import fit_linear
from ssl_vit.eval.readout import read_out
from ssl_vit.eval.weights import load_backbone

SMOOTHING = 0.1


class Preset(NamedTuple):
    """A line of AugReg's table (2106.10270)."""

    mixup: float  # alpha
    layers: int  # of RandAugment, 0 for none
    magnitude: int


PRESETS = {
    "none": Preset(0.0, 0, 0),
    "light1": Preset(0.0, 2, 0),
    "light2": Preset(0.2, 2, 10),
    "medium1": Preset(0.2, 2, 15),
    "medium2": Preset(0.5, 2, 15),
    "strong1": Preset(0.5, 2, 20),
    "strong2": Preset(0.8, 2, 20),
}


def mixing(asked: Finetune, classes: int) -> Any:
    """timm's Mixup as the settings or the preset say; presets have no CutMix and do not smooth labels."""
    preset = PRESETS.get(asked.preset)
    mixup, cutmix = (asked.mixup, asked.cutmix) if preset is None else (preset.mixup, 0.0)
    return Mixup(  # type: ignore[no-untyped-call]  # timm has no types for it
        mixup_alpha=mixup,
        cutmix_alpha=cutmix,
        prob=float(mixup > 0 or cutmix > 0),
        label_smoothing=SMOOTHING if preset is None else 0.0,
        num_classes=classes,
    )


def augmenting(asked: Finetune) -> Callable[[Batch], None]:
    """What changes a batch's crops in place: timm's RandAugment with the preset's values, or nothing."""
    preset = PRESETS.get(asked.preset)
    if preset is None or not preset.layers:
        return lambda batch: None
    transform: Any = rand_augment_transform(f"rand-m{preset.magnitude}-n{preset.layers}-p1-mmax20", {})

    def augment(batch: Batch) -> None:
        for crop in batch.places[0][0]:  # uint8 [S, S, 3]
            crop.copy_(torch.from_numpy(np.array(transform(Image.fromarray(crop.numpy())))))

    return augment


def drop(model: nn.Module, rate: float) -> None:
    """Dropout at this rate wherever timm has one but in attention, and stochastic depth up to it in the last block."""
    if not rate:
        return
    places = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith("attn_drop"):
            module.p = rate
        children = [child for child, each in module.named_children() if isinstance(each, nn.Identity | DropPath)]
        if paths := [child for child in children if child.startswith("drop_path")]:
            places.append((module, paths))
    for depth, (module, paths) in enumerate(places):
        for child in paths:
            setattr(module, child, DropPath(rate * depth / max(1, len(places) - 1)))


class Distillation:
    """A frozen teacher's word beside the label's, learnt by a distillation token (DeiT, 2012.12877)."""

    def __init__(self, job: Job, source: Source, asked: Finetune) -> None:
        """The teacher is a backbone with a linear classifier, which learns the source before."""
        if asked.teacher == "none":
            raise UserError(f"eval finetune: distill: {asked.distill} needs --teacher, a run or a file of weights")
        self.soft = asked.distill == "soft"
        teacher = load_backbone(asked.teacher).eval().to(job.device)
        own = Job(job.weights, job.folders, pixels=job.pixels, seed=job.seed)
        own.__dict__["backbone"] = teacher  # which the job would load of its own weights
        found = own.features(source, "train")
        self.probe = fit_linear(found.features, found.labels, seed=job.seed, device=job.device)
        self.teacher, self.readout, self.student = teacher, own.readout, job.readout

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The teacher's, [B, C], of the student's images [B, 3, S, S], brought to its own colours and size."""
        pixels = images * _colour(self.student.std, images) + _colour(self.student.mean, images)
        pixels = (pixels - _colour(self.readout.mean, images)) / _colour(self.readout.std, images)
        size = self.readout.image_size
        pixels = F.interpolate(pixels, (size, size), mode="bilinear") if size != pixels.shape[-1] else pixels
        features = read_out(self.teacher, pixels, self.readout)
        weights, bias = self.probe.affine()
        return features.float() @ weights.to(features.device) + bias.to(features.device)

    def loss(self, outputs: tuple[Tensor, Tensor], targets: Tensor, images: Tensor) -> Tensor:
        """The loss [] of logits of class token and distillation token [B, C], for targets [B, C]."""
        of_class, of_token = (each.float() for each in outputs)
        return distilled(of_class, of_token, targets, self.logits(images), self.soft)


def distilled(of_class: Tensor, of_token: Tensor, targets: Tensor, teacher: Tensor, soft: bool) -> Tensor:
    """DeiT's loss []: hard, half the labels' and half the teacher's choice; soft, 0.9 and 0.1 x 9 KL at temperature 3.

    of_class, of_token, teacher: logits [B, C]; targets: shares [B, C].
    """
    learnt = F.cross_entropy(of_class, targets)
    if not soft:
        return (learnt + F.cross_entropy(of_token, teacher.argmax(1))) / 2
    weight, temp = 0.1, 3.0  # the paper's lambda and tau
    said, wanted = (F.log_softmax(each / temp, dim=1) for each in (of_token, teacher))
    return (1 - weight) * learnt + weight * temp**2 * F.kl_div(said, wanted, reduction="batchmean", log_target=True)


def with_token(model: Any, name: str) -> None:
    """Have the model give both tokens' logits in training; UserError where it has no distillation token."""
    if not hasattr(model, "set_distilled_training"):
        raise UserError(
            f"{name}: has no distillation token to learn the teacher's word by; pretrain "
            "deit_tiny_distilled_patch16_224 or another *_distilled network, or leave --distill out"
        )
    model.set_distilled_training(True)


def said(asked: Finetune) -> dict[str, str]:
    """What a protocol says of it; nothing of what is off."""
    preset = PRESETS.get(asked.preset)
    if preset is None:
        found = {"mixing": f"mixup {asked.mixup}, cutmix {asked.cutmix}, labels smoothed by {SMOOTHING}"}
    else:
        words = f"mixup {preset.mixup}, RandAugment of {preset.layers} at {preset.magnitude}"
        found = {"mixing": f"AugReg's {asked.preset}: {words}"}
    if asked.drop:
        found["drop"] = f"dropout and stochastic depth {asked.drop}"
    if asked.distill != "none":
        found["distillation"] = f"{asked.distill}, of a linear classifier on a frozen {Path(asked.teacher).name}"
    return found


def _colour(values: Any, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
