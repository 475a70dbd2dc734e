"""torchvision's detectors of regions stand on any backbone: Faster R-CNN, RetinaNet and Mask R-CNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.data.detection import Scene
from ssl_vit.detectors.detector import Detections
from ssl_vit.detectors.finder import Finder
from ssl_vit.detectors.fpn import STRIDES, BackboneWithFPN

SMALL = 400  # pixels a side of a canvas below which everything is made for small images and few of them
RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors
_POOLED = 7  # cells a side of a region that the box head looks at


class RegionFinder(Finder):
    """One of torchvision's detectors is trained and asked as every finder.

    first: the label of the first class, 1 where 0 is the background.
    """

    def __init__(self, model: Any, first: int) -> None:
        super().__init__()
        self.model, self.first = model, first
        self.finds_masks = isinstance(model, MaskRCNN)

    def losses(self, scenes: Sequence[Scene]) -> dict[str, Tensor]:
        """Return torchvision's parts of the loss, under its names."""
        parts: dict[str, Tensor] = self.model(self._images(scenes), [self._target(scene) for scene in scenes])
        return parts

    def find(self, scenes: Sequence[Scene]) -> list[Detections]:
        """Find at most 100 boxes an image; masks are those of the image, without the canvas beside it."""
        return [
            Detections(
                found["boxes"],
                found["scores"],
                found["labels"] - self.first,
                found["masks"][:, 0] > 0.5 if "masks" in found else None,
            )
            for found in self.model(self._images(scenes))
        ]

    def trunk(self) -> nn.Module:
        """Return the backbone under the pyramid network."""
        body: nn.Module = self.model.backbone.body
        return body

    def _images(self, scenes: Sequence[Scene]) -> list[Tensor]:
        """Without what is beside the image: torchvision pads, after normalising."""
        device = next(self.parameters()).device
        return [
            scene.image[:, : scene.extent[0], : scene.extent[1]].to(device) / 255.0
            for scene in scenes
            if scene.image is not None
        ]

    def _target(self, scene: Scene) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        target = {"boxes": scene.boxes, "labels": scene.labels + self.first}
        if self.finds_masks and scene.masks is not None:
            target["masks"] = scene.masks[:, : scene.extent[0], : scene.extent[1]].byte()
        return {name: value.to(device) for name, value in target.items()}


def build_faster_rcnn(backbone: AdaptedBackbone, classes: int, size: int) -> RegionFinder:
    """Build Faster R-CNN (arXiv 1506.01497) for canvases of `size` pixels a side."""
    body, options = _two_stages(backbone, classes, size)
    return RegionFinder(FasterRCNN(body, **options), first=1)


def build_mask_rcnn(backbone: AdaptedBackbone, classes: int, size: int) -> RegionFinder:
    """Build Mask R-CNN (arXiv 1703.06870): Faster R-CNN, and a mask for each object."""
    body, options = _two_stages(backbone, classes, size)
    width = body.out_channels
    head, predictor = MaskRCNNHeads(width, (width,) * 4, 1), MaskRCNNPredictor(width, width, classes + 1)
    return RegionFinder(MaskRCNN(body, mask_head=head, mask_predictor=predictor, **options), first=1)


def build_retinanet(backbone: AdaptedBackbone, classes: int, size: int) -> RegionFinder:
    """Build RetinaNet (arXiv 1708.02002): one stage with the focal loss, on maps of stride 8 and more, 4 if small."""
    body = BackboneWithFPN(backbone, _width(size), strides=STRIDES if size < SMALL else STRIDES[1:], convolved=True)
    octaves = tuple(tuple(round(4 * stride * 2 ** (i / 3)) for i in range(3)) for stride in body.strides)
    anchors = AnchorGenerator(octaves, (RATIOS,) * len(octaves))
    model = RetinaNet(body, classes, anchor_generator=anchors, detections_per_img=100, **_transform(backbone, size))
    return RegionFinder(model, first=0)


def _two_stages(backbone: AdaptedBackbone, classes: int, size: int) -> tuple[BackboneWithFPN, dict[str, Any]]:
    """torchvision's settings; on small canvases smaller anchors, fewer regions and a narrower head."""
    small = size < SMALL
    body = BackboneWithFPN(backbone, _width(size))
    anchors = tuple(((4 if small else 8) * stride,) for stride in body.strides)
    hidden = 256 if small else 1024
    regions = {
        "rpn_pre_nms_top_n_train": 500,
        "rpn_post_nms_top_n_train": 500,
        "rpn_pre_nms_top_n_test": 300,
        "rpn_post_nms_top_n_test": 300,
        "rpn_batch_size_per_image": 128,
        "box_batch_size_per_image": 64,
    }
    return body, {
        "rpn_anchor_generator": AnchorGenerator(anchors, (RATIOS,) * len(anchors)),
        "box_head": TwoMLPHead(body.out_channels * _POOLED**2, hidden),
        "box_predictor": FastRCNNPredictor(hidden, classes + 1),
        **(regions if small else {}),
        **_transform(backbone, size),
    }


def _width(size: int) -> int:
    return 64 if size < SMALL else 256


def _transform(backbone: AdaptedBackbone, size: int) -> dict[str, Any]:
    """Images are of the right size already, and padded to the canvas."""
    return {
        "min_size": size,
        "max_size": size,
        "size_divisible": size,
        "_skip_resize": True,
        "image_mean": backbone.info.mean,
        "image_std": backbone.info.std,
    }
