"""What fine-tuning adds to plain learning: AugReg's augmentation and dropout, and DeiT's distillation by a token."""

from __future__ import annotations

import copy
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

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.diversity import blocks_of, diversify, patch_mixing
from ssl_vit.backbones.penalties import Penalties, collecting
from ssl_vit.data.batch import Batch
from ssl_vit.data.sources import Source
from ssl_vit.errors import UserError
from ssl_vit.eval.job import Job
from ssl_vit.eval.kinds.finetune import Finetune
from ssl_vit.eval.linear import fit_linear
from ssl_vit.eval.readout import read_out

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


class Diversity:
    """The three losses of patch diversification (2104.12753) while a network of blocks of one width is fine-tuned."""

    def __init__(self, backbone: AdaptedBackbone, classes: int, weight: float) -> None:
        """backbone: a copy of the job's, around the model that is trained."""
        blocks = blocks_of(backbone)
        if blocks is None:
            raise UserError(
                f"{backbone.info.name}: has no blocks of one width, whose patches could answer for their own images; "
                "leave --diversify out"
            )
        self.weight, self.prefix = weight, backbone.layout.prefix
        self.grid, self.head = backbone.info.grid, nn.Linear(backbone.info.patch_dim, classes)
        self._last: Tensor | None = None
        diversify(backbone, weight)
        blocks[-1].register_forward_hook(self._keep)

    def loss(self, penalties: Penalties, labels: Tensor, sources: Tensor | None) -> Tensor:
        """The sum [] of what the pass penalised and, where images were mixed, of each patch's own label.

        labels: [B]; sources: the number of the image that each pixel came from, [B, S, S], or None.
        """
        total = torch.stack([*penalties.values()]).sum()
        assert self._last is not None  # a pass has been
        logits: Tensor = self.head(self._last.to(self.head.weight.dtype))
        if sources is None:
            nothing: Tensor = total + 0 * logits.sum()
            return nothing
        rows, columns = (
            ((torch.arange(cells, device=labels.device) + 0.5) * (sources.shape[-1] / cells)).long()
            for cells in self.grid
        )
        own = labels[sources[:, rows[:, None], columns].flatten(1)]
        return total + self.weight * patch_mixing(logits, own)

    def _keep(self, _: nn.Module, __: Any, tokens: Tensor) -> None:
        self._last = tokens.flatten(1, 2) if tokens.ndim == 4 else tokens[:, self.prefix :]


def mixed(mix: Any, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images [B, 3, S, S] and labels [B] as timm's Mixup mixes them, and each pixel's image [B, S, S] after CutMix.

    Where none was cut, or two were blended, there is no image that a pixel comes from: None.
    """
    before = np.random.get_state()
    numbers = torch.arange(len(images), device=images.device)
    image, target = mix(images, labels)
    after = np.random.get_state()
    np.random.set_state(before)  # so that the same is done to the numbers of the images
    side = images.shape[-2:]
    marks, _ = mix(numbers.to(images.dtype)[:, None, None, None].repeat(1, 1, *side), labels)
    np.random.set_state(after)
    sources = marks[:, 0].round().long()
    own = numbers[:, None, None].expand(-1, *side)
    cut = bool(((marks[:, 0] == own) | (marks[:, 0] == own.flip(0))).all()) and not bool((sources == own).all())
    return image, target, sources if cut else None


class Learner:
    """A copy of the job's network with a new head, in training mode, and the loss that its settings make."""

    def __init__(self, job: Job, source: Source, asked: Finetune) -> None:
        self.readout, self.device, classes = job.readout, job.device, len(source.classes)
        backbone = copy.deepcopy(job.backbone)
        self.model: Any = backbone.get_submodule("model")  # what timm's models have is in no type
        if not hasattr(self.model, "reset_classifier"):
            raise UserError(
                f"{job.backbone.info.name}: timm can't give it a classifier to fine-tune; use ssl-vit eval linear"
            )
        model: Any = self.model
        model.reset_classifier(classes)
        drop(self.model, asked.drop)
        self.diversity: Diversity | None = None
        if asked.diversify:
            assert isinstance(backbone, AdaptedBackbone)
            self.diversity = Diversity(backbone, classes, asked.diversify)
            self.diversity.head.to(job.device)
        self.distillation: Distillation | None = None
        if asked.distill != "none":
            with_token(self.model, job.backbone.info.name)
            self.distillation = Distillation(job, source, asked)
        self.mix = mixing(asked, classes)
        self.model.to(job.device).train()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss [] of images [B, 3, S, S] and their labels [B], which are mixed here."""
        sources: Tensor | None = None
        if self.diversity is None:
            images, targets = self.mix(images, labels)
        else:
            images, targets, sources = mixed(self.mix, images, labels)
        bfloat16 = self.readout.precision == "bfloat16"
        with (
            torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bfloat16),
            collecting() as penalties,
        ):
            found = self.model(images)
        if self.distillation is not None:
            loss = self.distillation.loss(found, targets, images)
        else:
            loss = F.cross_entropy(found.float(), targets)
        return loss if self.diversity is None else loss + self.diversity.loss(penalties, labels, sources)


class Distillation:
    """A frozen teacher's word beside the label's, learnt by a distillation token (DeiT, 2012.12877)."""

    def __init__(self, job: Job, source: Source, asked: Finetune) -> None:
        """The teacher is a backbone with a linear classifier, which learns the source before."""
        if asked.teacher == "none":
            raise UserError(f"eval finetune: distill: {asked.distill} needs --teacher, a run or a file of weights")
        self.soft = asked.distill == "soft"
        of_teacher = Job(Path(asked.teacher), job.folders, pixels=job.pixels, seed=job.seed)
        found = of_teacher.features(source, "train")
        self.probe = fit_linear(found.features, found.labels, seed=job.seed, device=job.device)
        self.teacher, self.readout, self.student = of_teacher.backbone, of_teacher.readout, job.readout

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
    if asked.diversify:
        found["diversify"] = f"patches' cosine, contrast and mixing, weight {asked.diversify}"
    if asked.distill != "none":
        found["distillation"] = f"{asked.distill}, of a linear classifier on a frozen {Path(asked.teacher).name}"
    return found


def _colour(values: Any, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]
