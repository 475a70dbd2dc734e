"""The kind of score "anomaly"; ``ssl_vit/eval/anomaly.py`` computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from ssl_vit.eval.kind import FeatureKind, Number
from ssl_vit.eval.kinds import register_kind
from ssl_vit.eval.pair_kind import Text

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("an odd number")
    return value


Part = Annotated[float, Field(gt=0, le=1)]
Odd = Annotated[int, Field(ge=1, le=31), AfterValidator(_odd)]
Pixels = Annotated[float, Field(ge=0, le=100)]


@register_kind("anomaly")
class Anomaly(FeatureKind):
    """Defects are what is far from all patches of normal images (PatchCore): AUROC of images and pixels, heat maps."""

    folders: ClassVar[Mapping[str, str]] = {
        "good": "normal images alone, which are remembered",
        "test": "sub-folders: good, and one for each kind of defect, as MVTec's",
    }
    unprinted: ClassVar[tuple[str, ...]] = ("examples",)

    coreset: Number[Part] = 0.1
    """Share of the good images' patches that is remembered, chosen greedily (PatchCore: 0.1 and 0.01)."""
    neighbourhood: Number[Odd] = 3
    """Patches a side that each patch is the mean of (PatchCore: 3)."""
    smooth: Number[Pixels] = 4.0
    """Standard deviation in pixels by which maps are smoothed; the images' own score is not."""
    masks: Text = "auto"
    """Folder of the defects' masks, by kind; auto: ground_truth beside the folder that is tested, if it is there."""

    def score(self, job: Job) -> Outcome:
        """Area under the curve in percent, of images, of kinds of defect, of pixels."""
        from ssl_vit.eval.anomaly import score

        return score(job, self)
