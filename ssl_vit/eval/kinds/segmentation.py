"""The kind of score "segmentation"; ``ssl_vit/eval/segmentation.py`` and ``segmenting.py`` compute it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, get_args

from pydantic import Field

from ssl_vit.errors import UserError
from ssl_vit.eval.kind import AtLeastOne, FeatureKind, Several, as_typed
from ssl_vit.eval.kinds import register_kind
from ssl_vit.eval.pair_kind import PairOptions
from ssl_vit.segmenters.table import SegmenterName

if TYPE_CHECKING:
    from ssl_vit.eval.job import Job, Outcome


ClassNumber = Annotated[int, Field(ge=0, le=65535)]
FrozenName = Literal["linear", "knn"]
FROZEN, TRAINED = get_args(FrozenName), get_args(SegmenterName)
_OF_BOTH = ("head", "ignore", "max_bad", "train_images", "val_images")


@register_kind("segmentation")
class Segmentation(PairOptions, FeatureKind):
    """Frozen patches are classified, or a segmenter learns from scratch and from the weights: mIoU, and PQ."""

    folders: ClassVar[Mapping[str, str]] = {
        "train": "images with masks to learn from: as VOC's, ADE20K's, or images/ and masks/; or a COCO .json",
        "val": "images with masks to score on",
    }
    unprinted: ClassVar[tuple[str, ...]] = ("examples",)

    head: AtLeastOne[FrozenName | SegmenterName] = ("linear", "knn")
    """What is put on the backbone: linear and knn on frozen patches, or one of fpt, maskformer and upernet, which
    learns with the whole backbone, as a detector does."""
    ignore: Several[ClassNumber] = (255,)
    """Numbers in the masks whose pixels don't count (Pascal VOC: 255); an empty text where all count, as in masks of 0
    and 255."""

    def score(self, job: Job) -> Outcome:
        """mIoU and pixel accuracy in percent, of both classifiers, or from scratch and from the weights."""
        if set(self.head) <= set(FROZEN):
            self._refuse(
                PairOptions, "says how a segmenter learns, and nothing learns here; leave it out or give --head upernet"
            )
            from ssl_vit.eval.segmentation import score

            return score(job, self)
        if len(self.head) > 1:
            named, heads = as_typed(self.head), ", ".join(TRAINED)
            raise UserError(f"eval segmentation: --head {named}: of those that learn ({heads}) one at a time; name one")
        self._refuse(
            FeatureKind,
            f"is for frozen patches, and --head {self.head[0]} learns with the whole backbone; leave it out",
        )
        if job.keep is not None:
            raise UserError(
                "eval segmentation: --features: no features are kept, the whole network is trained; leave it out"
            )
        from ssl_vit.eval.segmenting import score as score_pairs

        return score_pairs(job, self)

    def _refuse(self, of: type[PairOptions | FeatureKind], why: str) -> None:
        """UserError for a setting of the other half that was given a value."""
        for name, field in of.settings().items():
            if name not in _OF_BOTH and getattr(self, name) != field.default:
                raise UserError(f"eval segmentation: --{name.replace('_', '-')} {why}")
