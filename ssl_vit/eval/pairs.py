"""Does pretraining help what stands on a backbone? The same learner from scratch and from the weights, over seeds."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.composite import AUXILIARY, CompositeBackbone
from ssl_vit.backbones.registry import create_backbone
from ssl_vit.data.scenes import JITTER, SceneDataset, share_of
from ssl_vit.detectors.learner import Learner, S
from ssl_vit.errors import UserError
from ssl_vit.eval.gains import gain_summary
from ssl_vit.eval.job import Job
from ssl_vit.eval.pair_kind import PairOptions
from ssl_vit.eval.scene_loop import CLIP, WARMUP, WEIGHT_DECAY, SceneRecipe, train_on_scenes
from ssl_vit.eval.unfinished import Unfinished

WORDS = {"scratch": "from scratch", "backbone": "from the backbone's weights", "weights": "from the weights"}
"""With what a learner begins; "backbone" only where more than the backbone was pretrained (DETReg)."""
PASSES, LEAST, LONGEST = 24, 500, 20_000  # what "auto" makes of steps
EXAMPLES = 8  # images of val in the picture

Runs = dict[tuple[str, float], list[dict[str, Any]]]  # results by arm and share, one a seed

log = logging.getLogger("ssl_vit")


@dataclass(frozen=True)
class Trial(Generic[S]):
    """A trial holds all that the runs of a comparison share."""

    metric: ClassVar[str]  # of the scores, which the verdict is on

    job: Job
    learner: str  # its name in its table
    size: int
    batch: int
    lr: float
    backbone_lr: float
    max_bad: float
    pretrained: Path | None  # the file of a learner of this kind that was pretrained with the backbone
    composite: tuple[int, int]  # copies of the backbone, and first stages that they share

    @property
    def images(self) -> int:
        """So many images can be learnt from."""
        raise NotImplementedError

    @property
    def arms(self) -> list[str]:
        """The arms are what is compared: the ways in which a learner begins."""
        return [arm for arm in WORDS if arm != "backbone" or self.pretrained is not None]

    def begin(self, arm: str, seed: int) -> Learner[S]:
        """A new learner begins with random weights or with those that are scored; its head is the same in both."""
        raise NotImplementedError

    def training(self, seed: int) -> SceneDataset[S]:
        """The scenes that are learnt from."""
        raise NotImplementedError

    def scored(self, learner: Learner[S]) -> dict[str, Any]:
        """Score the learner on val: "scores" in percent, "examples" of what it finds, and how many were "read"."""
        raise NotImplementedError

    def backbone(self, arm: str, seed: int) -> AdaptedBackbone:
        """A backbone with random weights or with those that are scored; several of them, composed, where asked for."""
        copies, shared = self.composite
        single = self._single(arm, seed)
        return single if copies == 1 else CompositeBackbone(single, copies, shared)

    def _single(self, arm: str, seed: int) -> AdaptedBackbone:
        scored = self.job.backbone
        assert isinstance(scored, AdaptedBackbone)
        if arm != "scratch":
            return copy.deepcopy(scored)
        args = {key: value for key, value in scored.model_args.items() if key != "img_size"}
        torch.manual_seed(seed)
        fresh = create_backbone(scored.info.name, image_size=scored.info.size, model_args=args)
        fresh.info = scored.info  # the same mean and deviation of the images
        return fresh

    def run(self, arm: str, share: float, seed: int, steps: int | str, unfinished: Unfinished) -> dict[str, Any]:
        """Train and score one learner; the result has its scores, and what it finds in a few images."""
        name = f"{share:g}-{arm}-{seed}"
        if name not in unfinished.done:
            chosen = share_of(self.images, share / 100, seed)
            recipe = SceneRecipe(
                _steps(steps, len(chosen), self.batch), self.batch, self.lr, self.backbone_lr, seed, self.max_bad
            )
            data, learner = self.training(seed), self.begin(arm, seed)
            title = f"{self.learner} {WORDS[arm]}, {share:g} %, seed {seed}"
            train_on_scenes(learner, data, chosen, recipe, checkpoint=unfinished.checkpoint(name), title=title)
            result = self.scored(learner)
            told = ", ".join(f"{metric} {value:.2f}" for metric, value in list(result["scores"].items())[:2])
            log.info("%s: %s", title, told)
            unfinished.finish(name, result)
        found: dict[str, Any] = unfinished.done[name]
        return found

    def settings(self, asked: PairOptions) -> dict[str, Any]:
        """What the protocol says of how the learners learn."""
        images = {part: max(1, round(part / 100 * self.images)) for part in asked.share}
        settings = {
            "transform": f"the whole image on a canvas of {self.size} x {self.size} pixels",
            "seeds": list(asked.seeds),
            "share": list(asked.share),
            "steps": {f"{part:g}%": _steps(asked.steps, count, asked.batch) for part, count in images.items()},
            "optimizer": f"AdamW, lr {self.lr}, backbone {self.backbone_lr}, weight decay {WEIGHT_DECAY}, clip {CLIP}",
            "schedule": f"batch {asked.batch}, {WARMUP:.0%} of the steps warming up, cosine to 0",
            "train_transform": f"scaled by {JITTER}, mirrored half the time",
        }
        copies, shared = self.composite
        if copies > 1:
            settings["composite"] = f"{copies} backbones, {shared} shared stages, auxiliary loss {AUXILIARY}"
        return settings

    def runs(self, asked: PairOptions, settings: dict[str, Any]) -> Runs:
        """The results of all runs; what was done before a kill is taken from where it lies."""
        job = self.job
        made = settings | {"weights": job.weights_sha256} | {side: job.sides[side].sha256 for side in job.sides}
        unfinished = Unfinished(job.unfinished, made)
        runs: Runs = {}
        for seed in asked.seeds:
            for part in asked.share:
                for arm in self.arms:
                    runs.setdefault((arm, part), []).append(self.run(arm, part, seed, asked.steps, unfinished))
        return runs

    def summary(self, asked: PairOptions, runs: Runs) -> dict[str, Any]:
        """For each share of the labels, the scores from scratch and from the weights, the difference, and a verdict."""
        return {
            f"{part:g}%": gain_summary(
                **{arm: [run["scores"] for run in runs[arm, part]] for arm in self.arms}, metric=self.metric
            )
            for part in asked.share
        }


def _steps(asked: int | str, images: int, batch: int) -> int:
    """What "auto" becomes."""
    if asked != "auto":
        return int(asked)
    return min(LONGEST, max(LEAST, math.ceil(PASSES * images / batch)))


def composed(asked: PairOptions, backbone: AdaptedBackbone) -> AdaptedBackbone:
    """Copy a backbone as the learners get it, to try before the first step; UserError where it can't be composed."""
    single = copy.deepcopy(backbone)
    if asked.composite > 1:
        return CompositeBackbone(single, asked.composite, asked.composite_shared)
    if asked.composite_shared:
        raise UserError("--composite-shared: nothing is composed; give --composite 2 too, or leave it out")
    return single
