"""DETReg's hyper-parameters and view (arXiv 2106.04550). Needs no torch.

"Official" below is the authors' recipe for Deformable DETR on a frozen ResNet-50, 5 epochs of ImageNet in batches of
192.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.detectors.table import DETECTORS, PretrainableName
from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import (
    AUTO,
    SMALL,
    Auto,
    Change,
    Choices,
    Count,
    Fraction,
    MethodConfig,
    Scale,
    Situation,
)
from ssl_vit.registry import register_method


@register_method("detreg", loss="ssl_vit.methods.detreg:DETReg")
class Config(MethodConfig):
    """Pretraining of a detector on proposed regions, around a frozen backbone."""

    name: Literal["detreg"] = "detreg"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "A detector around a frozen backbone learns to find proposed regions, and to tell of each what the backbone "
        "says of it."
    )
    needs: ClassVar[str] = "the weights of a pretrained backbone (--weights), which stay as they are"
    choose_when: ClassVar[str] = (
        "You will train a DETR or Deformable DETR on few labels, and have pretrained its backbone by another method."
    )
    keeps_backbone: ClassVar[bool] = True
    advice: ClassVar[Mapping[str, Sequence[Change | str] | str]] = {
        "constant-output collapse": (
            "give the weights of a backbone that has been pretrained (--weights; of a random one all regions look "
            "alike)",
            Change("lower", "optim.lr"),
        ),
        "not learning yet": (
            Change("raise", "train.epochs"),
            Change("raise", "optim.lr"),
            Change("set", "method.proposals", "selective_search"),
        ),
    }

    detector: PretrainableName = "deformable_detr"
    """Which detector is pretrained."""
    proposals: Literal["selective_search", "patches", "random"] = "selective_search"
    """What proposes regions: selective search (official), patches that a pretrained network finds alike, or chance."""
    proposals_weights: str | None = None
    """Of that network, which may be the backbone: a run, or a file of weights; for method.proposals=patches."""
    boxes: Count = 30
    """Proposed regions of an image that are learnt, the best first (official: 30)."""
    queries: Auto[Count] = AUTO
    """Objects that the detector can find in an image (official: 300; DETR 100)."""
    dim: Auto[Count] = AUTO
    """Width of the detector's queries and maps (official: 256)."""
    depth: Auto[Count] = AUTO
    """Layers of the encoder, and of the decoder (official: 6)."""
    hidden: Auto[Count] = AUTO
    """Width of its hidden layers (official: 1024; DETR 2048)."""
    crop_size: Auto[Count] = AUTO
    """Side, in pixels, at which the backbone looks at a region (official: 128)."""
    scale: Scale = (0.4, 1.0)
    """Share of the image's area that the view covers, low and high; large, as objects must fit in."""
    flip: Fraction = 0.5
    """Share of views that are mirrored; 0 where left and right differ, as in text (official: 0.5)."""

    def choose(self, given: Situation) -> Choices:
        """The official recipe; a smaller detector and a higher rate for few images."""
        official = "official recipe"
        whole = DETECTORS[self.detector]
        sizes = (whole.queries, 256, 6, whole.hidden, official)
        rate = (2e-4 if self.detector == "deformable_detr" else 1e-4, official)
        if given.images < SMALL:
            sizes = (max(50, self.boxes), 128, 2, 512, "small set: a detector that few steps can teach")
            rate = (5e-4, "small set: fewer steps, and a smaller detector")
        crop = given.image_size
        if given.any_size:
            crop = max(given.smallest, min(128, given.image_size) // given.multiple * given.multiple)
        queries, dim, depth, hidden, why = sizes
        return {
            "method.queries": (queries, why),
            "method.dim": (dim, why),
            "method.depth": (depth, why),
            "method.hidden": (hidden, why),
            "method.crop_size": (crop, "official 128, or what the backbone takes of an image"),
            "optim.optimizer": ("adamw", official),
            "optim.lr": rate,
            "optim.beta2": (0.999, official),
            "optim.min_lr": (rate[0] / 100, "two tenfold drops, as a cosine"),
            "optim.weight_decay": (1e-4, official),
            "optim.weight_decay_end": (1e-4, official),
            "optim.warmup_epochs": (given.epochs / 50, "none officially; a fiftieth to begin gently"),
            "optim.clip": (0.1, official),
            "backbone.drop_path": (0.0, "the backbone is frozen"),
            "train.compile": (False, "what the method computes differs from image to image"),
        }

    def check(self, given: Situation) -> None:
        """Sizes that fit each other and the backbone, and what the regions are made of."""
        if (self.proposals == "patches") != (self.proposals_weights is not None):
            raise UserError("method.proposals_weights: set it with method.proposals=patches, and only then")
        queries, dim, crop = self.queries, self.dim, self.crop_size
        if queries < self.boxes:
            raise UserError(
                f"method.queries: {queries} can't find {self.boxes} regions; set as many, or fewer method.boxes"
            )
        if dim % 64:
            raise UserError(f"method.dim: {dim}; set a multiple of 64, for 8 heads and 32 groups of several channels")
        fits = given.any_size and crop % given.multiple == 0 and crop >= given.smallest
        if not fits and crop != given.image_size:
            able = (
                f"multiples of {given.multiple} from {given.smallest} on"
                if given.any_size
                else f"{given.image_size} pixels only"
            )
            raise UserError(f"method.crop_size: {crop} pixels, and the backbone takes {able}; set it accordingly")

    def views(self, image_size: int) -> ViewPlan:
        """One view of ``image_size`` pixels, with the regions in it."""
        view = View("image", 1, image_size, scale=self.scale, interpolation="bilinear", flip_p=self.flip)
        return ViewPlan((view,), boxes=self.boxes)
