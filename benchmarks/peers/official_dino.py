"""The official DINO code: its own networks, loss and loop, from a checkout of facebookresearch/dino.

The loop is written for a GPU. Here its calls to one do nothing, its autocast is the CPU's, and DistributedDataParallel,
which would copy gradients for no one, is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import recipe
import torch
import torch.distributed as dist
from clock import Clock, measure
from torch import Tensor, nn

EPOCHS = 3  # of the schedules; the first, in which the last layer rests, is not run


class Loader:
    """The same views at every step, as the official loader yields them; that is when a step begins."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.views = clock, recipe.views()

    def __len__(self) -> int:
        return self.clock.batches

    def __iter__(self) -> Iterator[tuple[list[Tensor], None]]:
        while True:
            self.clock.tick()
            yield self.views, None


class Alone(nn.Module):
    """Stands where the loop expects DistributedDataParallel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: list[Tensor]) -> Tensor:
        """To the logits of all crops."""
        logits: Tensor = self.module(images)
        return logits


def on_cpu(precision: str) -> None:
    """What the loop asks of a GPU."""
    autocast = {"device_type": "cpu", "dtype": torch.bfloat16, "enabled": precision == "bf16-mixed"}
    vars(torch.cuda.amp)["autocast"] = lambda _: torch.autocast(**autocast)
    vars(torch.cuda)["synchronize"] = lambda: None
    setattr(torch.Tensor, "cuda", lambda tensor, **_: tensor)  # noqa: B010  # mypy refuses to assign a method
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)


def train(clock: Clock, what: str, precision: str, photos: str) -> None:
    """Until the clock has seen enough."""
    sys.path.insert(0, sys.argv[4])
    import main_dino
    import utils
    import vision_transformer as vits

    def branch(drop_path: float) -> nn.Module:
        backbone = vits.vit_tiny(patch_size=16, drop_path_rate=drop_path)
        head = vits.DINOHead(
            backbone.embed_dim, recipe.PROTOTYPES, hidden_dim=recipe.HIDDEN, bottleneck_dim=recipe.BOTTLENECK
        )
        network: nn.Module = utils.MultiCropWrapper(backbone, head)
        return network

    on_cpu(precision)
    student, teacher = branch(recipe.DROP_PATH), branch(0.0)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    optimizer = torch.optim.AdamW(utils.get_params_groups(student))
    if what == "update":
        update(clock, student, teacher, optimizer, utils.clip_gradients)
    loss = main_dino.DINOLoss(recipe.PROTOTYPES, len(recipe.SIZES), recipe.TEMP, recipe.TEMP, 0, EPOCHS)
    loss.register_forward_hook(lambda _module, _inputs, value: clock.see(value))
    loader = Loader(clock)
    ranges = ((recipe.LR, 1e-6), (recipe.DECAY, recipe.DECAY_END), (recipe.MOMENTUM, 1))
    schedules = [utils.cosine_scheduler(start, end, EPOCHS, len(loader)) for start, end in ranges]
    args = argparse.Namespace(epochs=EPOCHS, clip_grad=recipe.CLIP, freeze_last_layer=1)
    main_dino.train_one_epoch(Alone(student), teacher, teacher, loss, loader, optimizer, *schedules, 1, None, args)


def update(clock: Clock, student: nn.Module, teacher: nn.Module, optimizer: Any, clip: Any) -> None:
    """Its clipping, torch's AdamW as it calls it, and a loop over parameters for the teacher, as its own is."""
    recipe.unit_gradients(student)
    while True:
        clock.tick()
        clip(student, recipe.CLIP)
        optimizer.step()
        with torch.no_grad():
            for new, kept in zip(student.parameters(), teacher.parameters(), strict=True):
                kept.mul_(recipe.MOMENTUM).add_((1 - recipe.MOMENTUM) * new)


if __name__ == "__main__":
    measure(train)
