"""SimCLR's hyper-parameters (arXiv 2002.05709). Needs no torch."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.base_config import AUTO, SMALL, Auto, Choices, Fraction, Positive, Situation, optimiser_choices
from ssl_vit.methods.joint_settings import JointConfig, contrast_view
from ssl_vit.registry import register_method


@register_method("simclr", loss="ssl_vit.methods.simclr:SimCLR")
class Config(JointConfig):
    """Contrast of each view with all other views of the batch, by one encoder and no teacher."""

    name: Literal["simclr"] = "simclr"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = "Each view must pick out its image's other view from all the other views of the batch."
    needs: ClassVar[str] = "any backbone; batches of a thousand images or more for the published accuracy"
    choose_when: ClassVar[str] = (
        "You have few images and little time, or want the plain baseline that everybody compares with."
    )

    temperature: Auto[Positive] = AUTO
    """Temperature of the contrast (paper: 0.1 for large batches and long runs)."""
    colour_strength: Auto[Fraction] = AUTO
    """How far colours change: 1 is the paper's, with brightness, contrast and saturation by up to 80 %."""

    def choose(self, given: Situation) -> Choices:
        """The paper's head, temperature and colours; its optimiser, LARS, is not here: its successors' stand in.

        What small sets have instead was measured on posed digits and icons (benchmarks/results/learning.txt).
        """
        choices = self.crop_choices(given, 0.08, "paper") | {
            "method.temperature": (0.1, "paper"),
            "method.colour_strength": (1.0, "paper"),
        }
        if given.images < SMALL:
            choices["method.temperature"] = (0.2, "small set: batches are small, and their images alike")
            choices["method.colour_strength"] = (0.4, "small set: less change of colours learns more in the same time")
        if given.kind == "convolutional":
            why = "SimSiam's SGD for a ResNet-50 (2011.10566), as the paper's LARS is not here"
            return choices | optimiser_choices(
                given, why, optimizer="sgd", lr=(0.05, 256), weight_decay=1e-4, warmup_epochs=10.0
            )
        why = "MoCo v3's for transformers (2104.02057), as the paper has none"
        return choices | optimiser_choices(given, why, lr=(1.5e-4, 256), weight_decay=0.1, warmup_epochs=40.0)

    def views(self, image_size: int) -> ViewPlan:
        """Two crops of ``image_size`` pixels with the paper's strong colours."""
        view = contrast_view("global", image_size, self.scale, self.flip)
        brightness, hue = 0.8 * self.colour_strength, 0.2 * self.colour_strength
        return ViewPlan((replace(view, jitter=(brightness, brightness, brightness, hue)),))
