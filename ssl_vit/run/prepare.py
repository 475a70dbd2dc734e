"""Everything a run needs before its first step: the method around its backbone, the workspace, what looks at it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ssl_vit.adapt.anchors import anchor
from ssl_vit.adapt.lora import adapt
from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.backbones.diversity import diversify
from ssl_vit.backbones.spaces import space_of
from ssl_vit.backbones.supernet import entangle
from ssl_vit.checkpoints.inspection import Inspection
from ssl_vit.checkpoints.load import put
from ssl_vit.config import ResolvedConfig
from ssl_vit.data.loader import steps_per_epoch
from ssl_vit.data.sources import Source
from ssl_vit.data.values import Pixels
from ssl_vit.device import on_gpu
from ssl_vit.eval.online import OnlineScore
from ssl_vit.eval.readout import Readout
from ssl_vit.eval.yardstick import yardstick_for
from ssl_vit.methods import method_class
from ssl_vit.methods.method import Method
from ssl_vit.report.watching import Watching
from ssl_vit.run.adapting import anchors, pull_of
from ssl_vit.run.techniques import check_averages
from ssl_vit.training.advice import advice_for, gentler
from ssl_vit.training.cpu.faulty_kernels import avoid_faulty_kernels
from ssl_vit.training.looks.average import Average
from ssl_vit.training.looks.checkup import Checkup
from ssl_vit.training.looks.knn import OnlineKnn
from ssl_vit.training.looks.look import Look
from ssl_vit.training.looks.metrics import Metrics
from ssl_vit.training.looks.progress import ProgressLine
from ssl_vit.training.looks.tracker import Told
from ssl_vit.training.looks.watch import Watch
from ssl_vit.training.recompute import recompute
from ssl_vit.training.separation import HeldBack
from ssl_vit.training.sparse import sparsify


def pixels_of(config: ResolvedConfig) -> Pixels:
    """How the values of a run's images become 8 bits."""
    return Pixels(config.data.range, config.data.bands)


def build_method(config: ResolvedConfig, weights: Inspection | None = None) -> Method:
    """The method around its backbone with these weights, or with random ones from torch's current seed."""
    part = config.backbone
    backbone = create_backbone(
        part.name,
        image_size=part.image_size,
        drop_path=part.drop_path,
        model_args=part.args,
        masked=config.method.masks,
    )
    method = method_class(config.method.name)
    method.begin(backbone)
    if weights is not None:
        put(backbone, weights)
    if (asked := config.adapt).lora_rank is not None:
        adapt(backbone, asked.lora_rank, asked.lora_targets, sparing=not config.train.checkpoint_activations)
    backbone.info = replace(backbone.info, mean=config.data.mean, std=config.data.std)
    built = method(config.method, backbone, part.image_size)
    if anchors(config):
        anchor(built, pull_of(config), config.adapt.l2_sp)
    avoid_faulty_kernels(built)
    if config.train.diversify > 0:
        diversify(built, config.train.diversify)
    if config.train.space is not None:
        entangle(built, space_of(config.train.space), config.train.seed, part.drop_path)
    if config.train.sparsity:
        sparsify(built, config.train.sparsity, config.train.sparse_units)
    if config.train.checkpoint_activations:
        train = config.train
        lean = train.lean_cpu and train.precision == "bf16-mixed" and not on_gpu()
        recompute(built, part.image_size, lean)
    return built


def new_method(config: ResolvedConfig, weights: Inspection | None) -> Method:
    """The method that a run begins with: a function of the seed, compiled where that was chosen."""
    torch.manual_seed(config.train.seed)
    method = build_method(config, weights)
    if config.train.compile:
        method.compile()
    return method


def role(method: Method) -> str:
    """Which of a method's networks is exported and scored: what is trained is the student."""
    return "student" if any(weight.requires_grad for weight in method.exported().parameters()) else "teacher"


def new_averages(config: ResolvedConfig, method: Method) -> list[Average]:
    """The averages of weights that a run keeps beside the last ones; UserError where the method exports no others."""
    check_averages(config, role(method))
    ema, swa = config.train.ema, config.train.swa
    found = [Average("ema", method, momentum=ema)] if ema else []
    return found + ([Average("swa", method, share=swa)] if swa else [])


def new_looks(
    config: ResolvedConfig,
    method: Method,
    sources: tuple[Source, Source | None],
    per_epoch: int,
    metrics: Metrics | None,
) -> tuple[Checkup, list[Look]]:
    """What looks at a run, in order, and of it the one that comes to a verdict.

    sources: images to learn from, and labelled ones to score on; metrics: of the first process alone.
    """
    held_back = HeldBack(sources[0], method.views(), config.train.seed, (config.data.mean, config.data.std))
    checkup = Checkup(metrics, config.health.every, advice_for(config), held_back)
    looks: list[Look] = [] if metrics is None else [metrics, ProgressLine(config.train.batch_size)]
    looks.append(checkup)
    source, val = sources
    if val is not None:
        readout = Readout(config.backbone.image_size, config.data.mean, config.data.std)
        every = max(1, round(config.health.knn_every * per_epoch))
        looks.append(OnlineKnn(metrics, every, OnlineScore(source, val, readout, role(method))))
    return checkup, looks


def new_watch(
    config: ResolvedConfig, method: Method, sources: tuple[Source, Source | None], total: int, metrics: Metrics | None
) -> Watch:
    """What says whether a run helps: at its ends, and where it begins with trained weights on its way.

    total: steps of the run; metrics: of the first process alone, which measures.
    """
    train, (source, val) = config.train, sources
    readout = Readout(config.backbone.image_size, config.data.mean, config.data.std)
    seen = total * train.batch_size
    make = partial(yardstick_for, source, val, readout, seen, train.seed) if metrics is not None else None
    if config.backbone.weights is None or method.frozen:
        return Watch(metrics, make)
    every = max(1, round(config.health.knn_every * steps_per_epoch(len(source), train.batch_size)))
    return Watch(metrics, make, every, config.health.patience, gentler(config))


def random_backbone(config: ResolvedConfig) -> Backbone:
    """The run's network as it would have begun without weights, with statistics of the same images."""
    torch.manual_seed(config.train.seed)
    part = config.backbone
    backbone: Backbone = create_backbone(part.name, image_size=part.image_size, model_args=part.args)
    method_class(config.method.name).begin(backbone)
    return backbone


def new_report(config: ResolvedConfig, out: Path, source: Source, metrics: Metrics | None) -> list[Look]:
    """What keeps the report of a run fresh, where it has one; metrics: of the first process alone, which makes it."""
    return [Watching(config, source, out, metrics)] if config.health.report else []


def metrics_of(config: ResolvedConfig, out: Path, start: int) -> Metrics:
    """The metrics of a run folder, which the first process writes, and the tracker that is told of them."""
    tracker = None
    if config.health.tracker is not None:
        sections = config.model_dump(mode="json").items()
        settings = {
            f"{section}.{key}": value
            for section, values in sections
            if isinstance(values, dict)
            for key, value in values.items()
        }
        tracker = Told(config.health.tracker, out, settings)
    return Metrics(out, start, tracker)
