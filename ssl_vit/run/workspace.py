"""The run as its method sees it; see :class:`ssl_vit.methods.workspace.Workspace`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.backbone import Backbone, BackboneInfo
from ssl_vit.config import ResolvedConfig
from ssl_vit.data.batch import Batch, to_views
from ssl_vit.data.loader import InPhases, Loader, RegionBoxes, build_loader
from ssl_vit.data.plan import ViewPlan
from ssl_vit.data.sources import Source
from ssl_vit.export import timm
from ssl_vit.files import write_atomically
from ssl_vit.schedules import phases
from ssl_vit.training.ranks import rank


class RunWorkspace:
    """Images, folder and devices of a run, and the loaders that read its images."""

    def __init__(
        self, config: ResolvedConfig, folder: Path, images: Source, plan: ViewPlan, device: torch.device
    ) -> None:
        self.config, self.folder, self.images, self.plan, self.device = config, folder, images, plan, device
        self.weights = config.backbone.weights
        self.regions: RegionBoxes | None = None
        self.seed, self.workers, self.max_bad = config.train.seed, config.data.workers, config.data.max_bad
        self.mean, self.std = config.data.mean, config.data.std

    def kept(self, name: str, make: Callable[[Path], object]) -> Path:
        """The file RUN/``name``, which ``make`` writes if it is not there: the first process is here before others."""
        path = self.folder / name
        if not path.exists():
            write_atomically(path, make)
        return path

    def batches(self, steps: int, seed: int) -> Loader:
        """So many batches of the method's views, all of a step in this process."""
        return self.loader(steps, seed, world=1)

    def loader(self, steps: int, seed: int, *, start: int = 0, world: int) -> Loader:
        """Batches of the steps from ``start`` on, as ``world`` processes share them."""
        return self._loader(self.plan, steps, seed, start, world)

    def of_run(self, steps: int, info: BackboneInfo, *, start: int = 0, world: int) -> Loader | InPhases:
        """The run's own batches from step ``start`` on, in crops of the sizes that it has by then."""
        train, full = self.config.train, self.config.backbone.image_size
        left = [phase for phase in phases(train.sizes, steps) if phase.stop > start] if train.sizes is not None else []
        if not left:
            return self.loader(steps, train.seed, start=start, world=world)
        opened = []
        for size, begin, stop in left:
            plan = self.plan.scaled(size, full, info.multiple, info.smallest)
            opened.append(partial(self._loader, plan, stop, train.seed, max(start, begin), world))
        return InPhases(opened, steps)

    def _loader(self, plan: ViewPlan, steps: int, seed: int, start: int, world: int) -> Loader:
        train = self.config.train
        return build_loader(
            self.images,
            plan,
            batch_size=train.batch_size // (train.devices * train.nodes),
            seed=seed,
            total_steps=steps,
            start_step=start,
            rank=rank() if world > 1 else 0,
            world=world,
            workers=self.workers,
            pin_memory=self.device.type == "cuda",
            timeout=self.config.data.timeout,
            max_bad=self.max_bad,
            bad_list=self.folder / "bad_images.jsonl" if rank() == 0 else None,
            regions=self.regions,
        )

    def views(self, batch: Batch) -> list[Tensor]:
        """A batch as a method gets it, by torch's own operations."""
        return to_views(batch, self.mean, self.std, self.device)

    def described(self, backbone: Backbone) -> dict[str, Any]:
        """timm's config.json of a backbone for images of this run."""
        assert isinstance(backbone, AdaptedBackbone)
        return timm.config(backbone, self.mean, self.std, {"pixels": self.images.pixels._asdict()})
