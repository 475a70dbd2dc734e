"""DETReg: a detector learns to find proposed regions and to say what a frozen backbone sees there (2106.04550)."""

from __future__ import annotations

import logging

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, roi_align

from ssl_vit.backbones.backbone import Backbone
from ssl_vit.data.plan import ViewPlan
from ssl_vit.detectors.detector import Predictions
from ssl_vit.detectors.files import FILE, save_detector
from ssl_vit.detectors.losses import GroundTruth, Matches, SetLoss
from ssl_vit.detectors.networks import Pretrainable, network_class
from ssl_vit.detectors.picture_gaze import draw_gaze
from ssl_vit.detectors.picture_regions import draw_regions
from ssl_vit.files import write_atomically
from ssl_vit.methods.detreg_config import Config
from ssl_vit.methods.method import Method, Progress, Step
from ssl_vit.methods.workspace import Workspace
from ssl_vit.proposals import create_prior
from ssl_vit.proposals.propose import propose

log = logging.getLogger("ssl_vit")

CROPS = 256  # regions that the backbone looks at together
FOUND = 0.5  # IoU from which on a region counts as found


class DETReg(Method):
    """One class, "object": the proposed regions of each image; the backbone stays as it is."""

    frozen = True
    slow = ("sampling_offsets.", "reference_points.")  # of Deformable DETR

    def __init__(self, config: Config, backbone: Backbone, image_size: int) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        backbone.requires_grad_(False)
        self.network: Pretrainable = network_class(config.detector)(
            backbone,
            1,
            queries=config.queries,
            depth=config.depth,
            dim=config.dim,
            hidden=config.hidden,
            embedding=backbone.info.dim,
        )
        self.loss = SetLoss.of(self.network.focal)
        self.train()

    def train(self, mode: bool = True) -> DETReg:
        """The detector; a frozen backbone drops no paths."""
        super().train(mode)
        self.network.backbone.eval()
        return self

    def views(self) -> ViewPlan:
        """One view, and the regions in it."""
        return self.config.views(self.image_size)

    def prepare(self, workspace: Workspace) -> None:
        """Regions are proposed on every image, once a run: other processes and a resumed run find them there."""
        if workspace.weights is None:
            log.warning(
                "detreg leaves the backbone as it is, and this one is RANDOM: what it says of regions means little. "
                "Give the export of a run, or a published model, by --weights"
            )
        own = {} if self.config.proposals_weights is None else {"weights": self.config.proposals_weights}
        prior = create_prior(self.config.proposals, count=self.config.boxes, **own)
        log.info("proposing regions by %s, at most %d an image", prior.name, prior.count)
        folder, images = workspace.folder / "proposals", workspace.images
        workspace.regions = propose(images, prior, folder, workers=workspace.workers, max_bad=workspace.max_bad)

    def artefacts(self, workspace: Workspace) -> None:
        """The detector, beside the backbone; and pictures of what was proposed, what it finds, what its queries see."""
        said = workspace.described(self.network.backbone)
        write_atomically(workspace.folder / "export" / FILE, lambda path: save_detector(self.network, path, said))
        images, boxes = workspace.views(next(iter(workspace.batches(1, workspace.seed))))
        colours, folder = (workspace.mean, workspace.std), workspace.folder
        draw_regions(self.network, images[:8], boxes[:8], colours, folder / "regions.png")
        draw_gaze(self.network, images[:4], colours, folder / "queries.png")

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        """Batch: views [B, 3, S, S], and regions [B, K, 4], rows of nan where there are fewer."""
        images, boxes = batch
        targets = self.targets(images, boxes)
        said: Predictions = self.network(images)
        matched = self.loss.match(said.logits, said.boxes, targets)
        losses = self.loss(said, targets, matched)
        loss = torch.stack(list(losses.values())).sum()
        parts = {f"{name}_loss": part.detach() for name, part in losses.items()}
        parts |= measured(said, targets, matched)
        if len(images) > 1:
            parts |= {f"blind_{name}": value for name, value in self.blind(said, targets).items()}
        if not parts["regions"]:
            return Step(loss, parts)
        assert said.embeddings is not None
        vectors = torch.cat([own[query] for own, (query, _) in zip(said.embeddings, matched, strict=True)])
        return Step(loss, parts, vectors.detach())

    @torch.no_grad()
    def targets(self, images: Tensor, boxes: Tensor) -> list[GroundTruth]:
        """Each image's regions and what the backbone sees in them; boxes: [B, K, 4] corners as shares of the view."""
        regions = [rows[~rows.isnan().any(1)] for rows in boxes.float()]
        seen = self.look(images, regions)
        return [
            GroundTruth(
                box_convert(own, "xyxy", "cxcywh"), torch.zeros(len(own), dtype=torch.long, device=own.device), vectors
            )
            for own, vectors in zip(regions, torch.split(seen, [len(own) for own in regions]), strict=True)
        ]

    @torch.no_grad()
    def look(self, images: Tensor, regions: list[Tensor]) -> Tensor:
        """The backbone's pooled features [R, D] of all regions, [n, 4] of each image, each resized to a square."""
        side, backbone = self.config.crop_size, self.network.backbone
        crops = roi_align(images, [self.image_size * own.to(images) for own in regions], side, aligned=True)
        seen = [backbone(part).pooled for part in torch.split(crops, CROPS)]
        return torch.cat(seen) if len(crops) else images.new_empty(0, backbone.info.dim)

    @torch.no_grad()
    def blind(self, said: Predictions, targets: list[GroundTruth]) -> dict[str, Tensor]:
        """The loss, and what is found, where each answer is given for another image: the next of the batch."""
        others = targets[1:] + targets[:1]
        matched = self.loss.match(said.logits, said.boxes, others)
        loss = torch.stack(list(self.loss(said, others, matched).values())).sum()
        return {"loss": loss} | measured(said, others, matched)

    def remark(self, parts: dict[str, float]) -> str:
        """How many regions are found, and how well."""
        if "found" not in parts:
            return "No region was proposed; choose other method.proposals."
        blind = (
            f"; by the answers for other images {100 * parts['blind_found']:.0f} %" if "blind_found" in parts else ""
        )
        return (
            f"Of {parts['regions']:.1f} regions an image {100 * parts['found']:.0f} % are found (IoU {FOUND} or more, "
            f"{parts['overlap']:.2f} on average{blind})."
        )

    def exported(self) -> Backbone:
        """The backbone, as it came."""
        return self.network.backbone


@torch.no_grad()
def measured(said: Predictions, targets: list[GroundTruth], matched: list[Matches]) -> dict[str, Tensor]:
    """ "regions" an image; where there are any, the mean "overlap" (IoU) of matched pairs, and the share "found"."""
    found = torch.cat([own[query] for own, (query, _) in zip(said.boxes, matched, strict=True)]).float()
    wanted = torch.cat([target.boxes[index] for target, (_, index) in zip(targets, matched, strict=True)])
    parts = {"regions": found.new_full((), len(found) / len(targets))}
    if len(found):
        pairs: Tensor = box_iou(box_convert(found, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy"))
        overlaps = pairs.diagonal()
        parts |= {"overlap": overlaps.mean(), "found": (overlaps >= FOUND).float().mean()}
    return parts
