"""iBOT's hyper-parameters (arXiv 2111.07832): DINO's, and those of its masks. Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.methods.base_config import AUTO, SMALL, Auto, Choices, Positive, Scale, Situation
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

    def spans(self) -> dict[str, float]:
        """DINO's; the patches' temperature warms up as long."""
        found = super().spans()
        if self.warmup_teacher_patch_temp != self.teacher_patch_temp:
            found["method.warmup_teacher_temp_epochs"] = self.warmup_teacher_temp_epochs
        return found
