"""What networks cost, side by side: parameters, multiply-adds, measured time, and the size of the file of weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ssl_vit import device
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.checkpoints.reader import files_of, weights_file
from ssl_vit.eval.budget import BATCHES, Point, gmacs, timed
from ssl_vit.eval.readout import Readout
from ssl_vit.eval.weights import load_backbone


@dataclass(frozen=True)
class Cost:
    """A network's cost at the size of image that it was trained for, on the device that it was measured on."""

    run: str
    image_size: int  # pixels
    parameters: int
    gmacs: float  # 1e9 multiply-adds an image: products of matrices and convolutions
    ms: dict[str, float]  # milliseconds an image, by images in a batch
    bytes: int  # of the file of weights


def costs_of(runs: Sequence[Path | str]) -> tuple[Cost, ...]:
    """Measure runs or files of weights; the networks take turns, to share the machine's moods.

    Raises:
        UserError: as ``load_backbone``.
    """
    used = device.the_device()
    networks = [load_backbone(run).eval().to(used) for run in runs]
    sizes = [Readout.of(network.info).image_size for network in networks]
    noise = [
        torch.randn(max(BATCHES), 3, size, size, generator=torch.Generator().manual_seed(0)).to(used) for size in sizes
    ]
    points = [Point({}, partial(_pass, *each)) for each in zip(networks, noise, strict=True)]
    spent = timed(points, noise[0])
    return tuple(
        Cost(str(run), size, network.info.parameters, gmacs(network, images[:1]), ms, _bytes(run))
        for run, size, network, images, ms in zip(runs, sizes, networks, noise, spent, strict=True)
    )


def cost_table(costs: Sequence[Cost]) -> str:
    """The table has a header and a line for each network."""
    width = max(len(cost.run) for cost in costs)
    lines = [f"{'run':{width}}   pixels   parameters    GMACs   ms at 1   ms at 32       file"]
    lines += [
        f"{cost.run:{width}}  {cost.image_size:7}  {cost.parameters / 1e6:9.2f} M  {cost.gmacs:7.3f}  "
        f"{cost.ms['1']:8.2f}  {cost.ms['32']:9.2f}  {cost.bytes / 1e6:6.1f} MB"
        for cost in costs
    ]
    used = f"one {device.name()}" if device.on_gpu() else f"{torch.get_num_threads()} CPU threads"
    return "\n".join([*lines, f"ms: milliseconds an image in batches of 1 and of 32, in float32 on {used}"])


def _pass(network: Backbone, own: Tensor, images: Tensor) -> object:
    """A pass over as many images of the network's own size as it was given."""
    return network(own[: len(images)])


def _bytes(run: Path | str) -> int:
    return sum(file.stat().st_size for file in files_of(weights_file(run)))
