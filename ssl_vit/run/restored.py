"""A run's method as its newest checkpoint left it, on one device: to look at, not to go on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ssl_vit.config import ResolvedConfig, load_config
from ssl_vit.data.loader import steps_per_epoch
from ssl_vit.errors import UserError
from ssl_vit.methods.method import Method
from ssl_vit.run.finish import scanned
from ssl_vit.run.prepare import new_method
from ssl_vit.training.checkpoint import go_on_from, newest_checkpoint
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.step import Learner

Prepare = Callable[[ResolvedConfig, Method], None]


def restored(run: Path, prepare: Prepare | None = None) -> tuple[Learner, Path | None]:
    """A learner with the weights of the run's newest checkpoint, and which that is; None for those of the first step.

    prepare: called before the weights are loaded, for methods that make something of images before their first step.
    """
    tree = load_config([run / "config.yaml"]).model_dump(mode="json")
    tree["train"] |= {"devices": 1, "nodes": 1, "strategy": "ddp", "compile": False}
    config = ResolvedConfig.model_validate(tree)
    if (images := scanned(run).get("images")) is None:
        raise UserError(f"{run / 'data.json'}: missing or damaged; expected how many images the run has")
    per_epoch = steps_per_epoch(images, config.train.batch_size)
    method, fabric = new_method(config, None), new_fabric(config.train)
    if prepare is not None:
        prepare(config, method)
    learner = Learner(fabric, method, config, per_epoch, config.train.length(per_epoch))
    if checkpoint := newest_checkpoint(run / "checkpoints"):
        go_on_from(checkpoint, learner, [])
    return learner, checkpoint
