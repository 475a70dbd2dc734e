"""EsViT's hyper-parameters (arXiv 2106.09785): DINO's, with the values of its authors. Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.methods.base_config import AUTO, SMALL, Auto, Choices, Fraction, Situation
from ssl_vit.methods.dino_config import Config as DINOConfig
from ssl_vit.registry import register_method

RELEASED = "the released Swin models"


@register_method("esvit", loss="ssl_vit.methods.esvit:EsViT")
class Config(DINOConfig):
    """Self-distillation of whole crops and of their regions."""

    name: Literal["esvit"] = "esvit"  # type: ignore[assignment]  # DINO's settings under another name
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "DINO, and the same once more for regions: each of the student's predicts what the teacher says of the region "
        "that is most like it."
    )
    needs: ClassVar[str] = "any backbone; with local crops, one that takes images of other sizes"
    choose_when: ClassVar[str] = "Your backbone is a pyramid (Swin and its like) and you go on to detect or segment."

    region_from: Auto[Fraction] = AUTO
    """Share of the run after which regions are matched too, and not whole crops alone (released Swin-T and Swin-S with
    windows of 7: 0; all other released models: about 0.67)."""

    def choose(self, given: Situation) -> Choices:
        """DINO's recipe with the official changes; on small sets DINO's own, and regions later.

        Measured on posed digits with a small Swin: with regions from the start its features fell to 1.5 dimensions, as
        regions of plain ground can be told apart by nothing but their brightness; begun late, they kept 21.
        """
        choices = super().choose(given)
        if given.images < SMALL:
            choices["method.region_from"] = (0.67, "small set: whole crops first, as with the larger released models")
        else:
            choices |= {
                "method.region_from": (0.0, "the released Swin-T"),
                "method.norm_last_layer": (False, RELEASED),
                "method.teacher_temp": (0.07, RELEASED),
                "method.warmup_teacher_temp_epochs": (
                    min(30.0, given.epochs / 10),
                    f"a tenth of the run, as {RELEASED}",
                ),
            }
        return choices
