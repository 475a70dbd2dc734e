"""iBOT's hyper-parameters (arXiv 2111.07832): DINO's, and those of its masks. Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import (
    AUTO,
    SMALL,
    Auto,
    Choices,
    Fraction,
    NonNegative,
    Positive,
    Scale,
    Situation,
)
from ssl_vit.methods.dino_config import OFFICIAL
from ssl_vit.methods.dino_config import Config as DINOConfig
from ssl_vit.registry import register_method

RELEASED = "the released ViT-S/16"


@register_method("ibot", loss="ssl_vit.methods.ibot:IBOT")
class Config(DINOConfig):
    """Self-distillation of whole crops and of hidden patches."""

    name: Literal["ibot"] = "ibot"  # type: ignore[assignment]  # DINO's settings under another name
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "DINO, and for patches hidden from the student a prediction of what the teacher, who sees them, says of them."
    )
    needs: ClassVar[str] = (
        "any backbone, best a plain transformer: on others masks hide pixels or groups of patches; "
        "with local crops, one that takes images of other sizes"
    )
    choose_when: ClassVar[str] = "You want dense tasks (segmentation, detection) to gain most, with a transformer."
    masks: ClassVar[bool] = True

    mask_ratio: Scale = (0.1, 0.5)
    """Share of a large crop's patches that is hidden, low and high, in one half of the large crops; nothing is hidden
    in the other half (released models: 0.1 to 0.5)."""
    warmup_teacher_patch_temp: Auto[Positive] = AUTO
    """As warmup_teacher_temp, for patches (official: 0.04)."""
    teacher_patch_temp: Auto[Positive] = AUTO
    """As teacher_temp, for patches (official: 0.07)."""
    gram_weight: NonNegative = 0.0
    """Weight of a pull of how alike an image's patches are, all pairs of them, towards what it was in an earlier
    teacher (DINOv3's Gram anchoring; DINOv3: 2; 0 = off)."""
    gram_from: Fraction = 0.0
    """Share of the run at which that earlier teacher is taken and the pull begins; 0: the network that the run begins
    with, for weights of a file (DINOv3: about 0.83)."""
    gram_every: NonNegative = 0.0
    """Epochs after which the teacher of that time takes its place, again and again; 0 = never (DINOv3: 10)."""

    def choose(self, given: Situation) -> Choices:
        """DINO's recipe with the changes of the released models; on small sets DINO's own."""
        choices = super().choose(given)
        if given.images < SMALL:
            start, end = choices["method.warmup_teacher_temp"][0], choices["method.teacher_temp"][0]
            return choices | {
                "method.warmup_teacher_patch_temp": (start, "as warmup_teacher_temp"),
                "method.teacher_patch_temp": (end, "as teacher_temp"),
            }
        choices |= {
            "method.out_dim": (8192, OFFICIAL),
            "method.norm_last_layer": (False, RELEASED),
            "method.teacher_temp": (0.07, RELEASED),
            "method.warmup_teacher_patch_temp": (0.04, OFFICIAL),
            "method.teacher_patch_temp": (0.07, OFFICIAL),
            "method.warmup_teacher_temp_epochs": (min(30.0, given.epochs / 10), f"30, {RELEASED}; less of short runs"),
        }
        if choices["method.local_crops"][1] == OFFICIAL:  # not on small images
            choices |= {
                "method.local_crops": (10, RELEASED),
                "method.global_scale": ((0.25, 1.0), RELEASED),
                "method.local_scale": ((0.05, 0.25), RELEASED),
            }
        return choices

    def check(self, given: Situation) -> None:
        """Patches that are held to those of random weights learn nothing."""
        super().check(given)
        if self.gram_weight > 0 and self.gram_from == 0 and given.weights is None:
            raise UserError(
                "method.gram_from: 0, so that patches would be held to those of random weights; set 0.8, or begin with "
                "--weights FILE"
            )

    def spans(self) -> dict[str, float]:
        """DINO's; the patches' temperature warms up as long."""
        found = super().spans()
        if self.warmup_teacher_patch_temp != self.teacher_patch_temp:
            found["method.warmup_teacher_temp_epochs"] = self.warmup_teacher_temp_epochs
        return found
