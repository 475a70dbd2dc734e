"""Techniques of training that don't go together, refused before any image is read."""

from __future__ import annotations

from importlib.util import find_spec

from ssl_vit.backbones.spaces import space_of
from ssl_vit.config import RunConfig
from ssl_vit.errors import UserError
from ssl_vit.settings import AUTO


def check_techniques(config: RunConfig) -> None:
    """UserError where the settings, all resolved, ask for techniques of which one rules out the other."""
    optim, train = config.optim, config.train
    if optim.sam_rho > 0 and train.precision == "16-mixed":
        raise UserError(
            f"optim.sam_rho: {optim.sam_rho:g}; its two gradients can't share the loss scale of 16-mixed; set "
            "train.precision=bf16-mixed or 32-true, or optim.sam_rho=0"
        )
    if (train.ema or train.swa) and train.strategy == "fsdp":
        raise UserError("train.strategy: fsdp has no device with all weights to average; leave out train.ema and .swa")
    if optim.sam_rho > 0 and train.strategy == "fsdp" and not optim.sam_global:
        raise UserError(
            f"optim.sam_rho: {optim.sam_rho:g}; with train.strategy=fsdp no device has all weights to move by itself; "
            "set optim.sam_global=true"
        )
    if train.strategy == "fsdp" and optim.optimizer in ("muon", "schedulefree"):
        raise UserError(
            f"optim.optimizer: {optim.optimizer} needs whole weights, which no device has with train.strategy=fsdp; "
            "set another optimiser, or train.strategy=ddp"
        )
    if optim.optimizer == "schedulefree":
        _check_schedule_free(config)
    if train.sparsity:
        _check_sparse(config)
    if train.space is not None:
        _check_space(config, train.space)
    if train.sparse_units and not train.sparsity:
        raise UserError("train.sparse_units: says which weights are 0, but train.sparsity is 0; set train.sparsity=0.5")


def _check_schedule_free(config: RunConfig) -> None:
    if find_spec("schedulefree") is None:
        raise UserError("optim.optimizer: schedulefree is not installed; pip install 'ssl_vit[schedulefree]'")
    if config.optim.schedule != "constant":
        raise UserError(
            f"optim.schedule: {config.optim.schedule}; schedulefree wants no schedule beside its warm-up; "
            "set optim.schedule=constant"
        )
    if config.train.ema or config.train.swa:
        raise UserError(
            "optim.optimizer: schedulefree gives the average of its weights already; leave out train.ema and .swa"
        )


def _check_sparse(config: RunConfig) -> None:
    """UserError for what would fill in weights that are 0."""
    asked = {
        "train.ema": config.train.ema > 0,
        "train.swa": config.train.swa > 0,
        "train.strategy=fsdp": config.train.strategy == "fsdp",
        "optim.sam_rho": config.optim.sam_rho > 0,
        "optim.optimizer=schedulefree": config.optim.optimizer == "schedulefree",
        "adapt.lora_rank": config.adapt.lora_rank is not None,
    }
    if found := [key for key, there in asked.items() if there]:
        raise UserError(
            f"train.sparsity: {config.train.sparsity:g}, which {found[0]} would not keep; leave one of them out"
        )


def _check_space(config: RunConfig, name: str) -> None:
    """UserError for an unknown space, and for what can't follow a network that is another one each step."""
    space_of(name)
    train = config.train
    asked = {
        "train.sparsity": train.sparsity > 0,
        "train.diversify": train.diversify > 0,
        "train.checkpoint_activations": train.checkpoint_activations,
        "train.compile": train.compile is True,
        "train.devices above 1": train.devices != AUTO and train.devices * train.nodes > 1,
        "adapt.lora_rank": config.adapt.lora_rank is not None,
        f"method.name={config.method.name}": config.method.keeps_backbone,
    }
    if found := [key for key, there in asked.items() if there]:
        raise UserError(
            f"train.space: {name}, a network of another shape each step, rules out {found[0]}; leave it out"
        )


def check_averages(config: RunConfig, role: str) -> None:
    """UserError where an average is asked for of what is one already; role: "student" or "teacher", as is exported."""
    asked = [key for key in ("ema", "swa") if getattr(config.train, key)]
    if asked and role == "teacher":
        raise UserError(
            f"train.{asked[0]}: {config.method.name} exports its teacher, which is an average of the student's steps; "
            f"leave train.{asked[0]} out"
        )
