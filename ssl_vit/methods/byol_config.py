"""BYOL's hyper-parameters (arXiv 2006.07733). Needs no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from ssl_vit.methods.base_config import Choices, Situation, TwoViewConfig, optimiser_choices
from ssl_vit.registry import register_method


@register_method("byol", loss="ssl_vit.methods.byol:BYOL")
class Config(TwoViewConfig):
    """Prediction of the other view's projection, without any negatives."""

    name: Literal["byol"] = "byol"
    """Name of the method, as `ssl-vit list methods` prints it."""

    idea: ClassVar[str] = (
        "From one view a student predicts how its moving average projects the other; no image is pushed away."
    )
    needs: ClassVar[str] = "any backbone"
    choose_when: ClassVar[str] = (
        "Many of your images look alike, so that telling them apart would teach the wrong thing, or batches are small."
    )

    interpolation: ClassVar[str] = "bicubic"

    def choose(self, given: Situation) -> Choices:
        """Recipes for the optimisers there are; the paper's own, LARS, is not among them."""
        if given.kind == "convolutional":
            why = "SimSiam's SGD for a ResNet-50 (2011.10566), as the paper's LARS is not here"
            return self.common_choices(given) | optimiser_choices(
                given, why, optimizer="sgd", lr=(0.05, 256), weight_decay=1e-4, warmup_epochs=10.0
            )
        why = "MoCo v3's for transformers (2104.02057), as the paper has none"
        return self.common_choices(given) | optimiser_choices(
            given, why, lr=(1.5e-4, 256), weight_decay=0.1, warmup_epochs=40.0
        )
