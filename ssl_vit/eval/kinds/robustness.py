"""The kind of score "robustness"; ``ssl_vit/eval/robustness.py`` computes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from ssl_vit.eval.kind import AtLeastOne, FeatureKind, Several
from ssl_vit.eval.kinds import register_kind

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
]  # fmt: skip


def _alone(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) > 1 and {"all", "none"} & set(names):
        raise ValueError("all or none alone, or names")
    return names


Corruptions = Annotated[AtLeastOne[Literal["all", "none"] | Corruption], AfterValidator(_alone)]
Severity = Annotated[int, Field(ge=1, le=5)]
Percent = Annotated[float, Field(ge=0, le=100)]
Tiles = Annotated[int, Field(ge=2, le=32)]
Radius = Annotated[float, Field(ge=0, le=255)]


@register_kind("robustness")
class Robustness(FeatureKind):
    """A classifier of clean images is asked about corrupted, hidden, shuffled and attacked ones."""

    corruptions: Corruptions = ("all",)
    """Corruptions of ImageNet-C (arXiv 1903.12261), by name, all or none."""
    severities: AtLeastOne[Severity] = (1, 2, 3, 4, 5)
    """Severities of each corruption."""
    hide: Several[Percent] = (25.0, 50.0, 75.0)
    """Part of the patches that is hidden, in percent."""
    shuffle: Several[Tiles] = (2, 4, 8)
    """Tiles a side into which images are cut, which then change places."""
    radius: Several[Radius] = (1.0, 4.0)
    """Largest adversarial change of a pixel's value, in 255ths."""

    def score(self, job: Job) -> Outcome:
        """Top-1 in percent of clean images and of every kind of changed ones."""
        from ssl_vit.eval.robustness import score

        return score(job, self)
