"""The hyper-parameters of distillation from a frozen teacher. Needs no torch before a teacher is read.

"LightlyTrain" is the third version of its distillation, whose recipe is published with its code.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.errors import UserError
from ssl_vit.methods.base_config import NonNegative, Situation
from ssl_vit.methods.distill_settings import TaughtConfig
from ssl_vit.registry import register_method


@register_method("distill", loss="ssl_vit.methods.distill:Distill")
class Config(TaughtConfig):
    """Distillation of a frozen teacher's similarities, of images and of patches, into any backbone."""

    name: Literal["distill"] = "distill"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "A frozen teacher says how alike an image is to others and how alike its patches are; the student learns to "
        "say the same."
    )
    needs: ClassVar[str] = "any backbone, and the weights of a teacher (method.teacher), which stay as they are"
    choose_when: ClassVar[str] = "You have a large network whose features you like, and want them from a smaller one."

    patch_weight: NonNegative = 1.0
    """Weight of the patches' similarities to the teacher's patches of the same image."""

    def check(self, given: Situation) -> None:
        """A teacher that can be read, and grids that can be matched."""
        super().check(given)
        if not self.pooled_weight and not self.patch_weight:
            raise UserError("method.pooled_weight: this and method.patch_weight are 0; set one of them above 0")
        if self.patch_weight:
            self.check_grids(given, "patch_weight")
