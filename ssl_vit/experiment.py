"""One run: a configuration becomes a run folder, a trainer, and an export that was checked."""

from __future__ import annotations

import logging
import shlex
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from ssl_vit.auto import Decision, gather_facts, resolve_config
from ssl_vit.backbones import create_backbone
from ssl_vit.checkpoints.inspection import Inspection, inspect
from ssl_vit.checkpoints.load import put
from ssl_vit.config import RunConfig, check_data, check_out, load_config
from ssl_vit.data.batch import to_views
from ssl_vit.data.dataset_name import Images, described, is_object
from ssl_vit.data.files import alone
from ssl_vit.data.loader import Loader, build_loader, steps_per_epoch, worker_failure
from ssl_vit.data.shards import ShardSource
from ssl_vit.data.sources import Source, open_source, require
from ssl_vit.errors import UserError
from ssl_vit.eval.online import OnlineScore
from ssl_vit.eval.readout import Readout
from ssl_vit.methods import method_class
from ssl_vit.methods.base_config import settled
from ssl_vit.methods.method import Method
from ssl_vit.proposals.propose import propose
from ssl_vit.proposals.store import Proposals
from ssl_vit.report.gaze import draw_gaze
from ssl_vit.report.regions import draw_regions
from ssl_vit.report.tokenizer import reconstructions
from ssl_vit.run_folder import LOCK, check_same, clear, open_folder
from ssl_vit.run_result import RunResult, completed, finish, role
from ssl_vit.training import fitting
from ssl_vit.training.callbacks import Checkpoints, Health, Metrics, OnlineKnn, StopOnSignal
from ssl_vit.training.checkpoint import AtomicCheckpointIO, checkpoint_path, newest_checkpoint
from ssl_vit.training.compiler import compiling
from ssl_vit.training.faulty_kernels import avoid_faulty_kernels
from ssl_vit.training.memory import enough_memory, keep_memory
from ssl_vit.training.module import Pretraining, Recipe
from ssl_vit.training.progress import ProgressLine
from ssl_vit.training.ranks import SameImages, check_startable, die_with_parent, lost_rank, rank
from ssl_vit.training.recompute import recompute
from ssl_vit.training.speed import wants_channels_last

log = logging.getLogger("ssl_vit")


class StoppedError(UserError):
    """A signal ended the run; nothing is lost."""

    exit_code = 143


def resolve(config: RunConfig) -> tuple[RunConfig, list[Decision]]:
    """The configuration without "auto", and why each value was chosen; trains nothing."""
    check_data(config)
    return resolve_for(config, open_source(config.data.path))


def resolve_for(config: RunConfig, source: Source) -> tuple[RunConfig, list[Decision]]:
    """As :func:`resolve`, for images that are open."""
    return resolve_config(config, gather_facts(source), _weights(config))


def pretrain(
    data: RunConfig | Images,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    val: Images | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> RunResult:
    """Pretrain without labels; RUN gets the config, log, metrics, checkpoints and a verified export.

    data: a folder or whatever else ``ssl_vit.data.sources.open_source`` opens, such as
        ``torchvision.datasets.CIFAR10(root)`` or a ``datasets.Dataset``; or a whole configuration, see
        :func:`ssl_vit.config.load_config`, which leaves no room for settings and val.
    out: a folder that does not exist yet, unless ``resume`` goes on with the run there or ``overwrite`` starts anew.
    settings: values by key, ``{"method.name": "ibot", "train.epochs": 100}``; the others are chosen, or the run's own.
    val: labelled images on which k-NN scores the features as they are learnt.

    Raises:
        UserError: anything that can be known before training: paths, settings, a backbone the method can't use.
        RunFailed: too many unreadable images, no finite gradient, a lost worker, an export that does not verify.
        StoppedError: SIGTERM or Ctrl-C; the run can be resumed.
    """
    if isinstance(data, RunConfig):
        if settings is not None or val is not None:
            raise UserError("a configuration is whole; put settings and val into it, or give a folder instead of it")
        return _pretrain(data, data.data.path, data.data.val, Path(out), resume, overwrite)
    flags = {**(settings or {}), "data.path": described(data)}
    if val is not None:
        flags["data.val"] = described(val)
    config = load_config([Path(out) / "config.yaml"] if resume else [], flags=flags)
    return _pretrain(config, data, val if val is not None else config.data.val, Path(out), resume, overwrite)


def _pretrain(
    config: RunConfig, images: Images, labelled: Images | None, out: Path, resume: bool, overwrite: bool
) -> RunResult:
    first = rank() == 0
    if first:
        check_out(out, resume=resume, overwrite=overwrite)
    else:
        die_with_parent()
    if (out / "COMPLETE").exists() and resume:
        return completed(out)
    source, val = open_source(images), open_source(labelled) if labelled is not None else None
    weights = None if resume else _weights(config)  # a run that is resumed has them in its checkpoint
    resolved, decisions = resolve_config(config, gather_facts(source), weights)
    require(source, settled(resolved.train.batch_size))
    check_startable(settled(resolved.train.devices))
    if first and isinstance(source, ShardSource):
        source.shared_by(
            max(1, settled(resolved.data.workers)) * settled(resolved.train.devices) * resolved.train.nodes
        )
    if resume:
        check_same(resolved, source, out)
    # A backbone that can't be built is refused before anything is written.
    run = _Run(resolved, out, source, val, weights)
    if not first:
        return run.train(resume)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out / LOCK, str(out), wait=False):
        if overwrite:
            clear(out)
        open_folder(out, resolved, decisions, source, resume)
        if config.method.frozen and config.backbone.weights is None:
            log.warning(
                "%s leaves the backbone as it is, and this one is RANDOM: what it says of regions means little. Give "
                "the export of a run, or a published model, by --weights",
                config.method.name,
            )
        return run.train(resume)


class _Run:
    """The parts of one run, wired together."""

    def __init__(
        self, config: RunConfig, out: Path, source: Source, val: Source | None, weights: Inspection | None
    ) -> None:
        self.config, self.out, self.source, self.val = config, out, source, val
        train = config.train
        self.world = settled(train.devices) * train.nodes
        self.per_epoch = steps_per_epoch(len(source), settled(train.batch_size))
        self.total = settled(train.epochs) * self.per_epoch
        self.warmup = round(settled(config.optim.warmup_epochs) * self.per_epoch)
        torch.manual_seed(train.seed)
        self.method = build_method(config, weights)
        self.module = Pretraining(self.method, self._recipe(), self.per_epoch, self.total)
        self.regions: Proposals | None = None
        if settled(train.compile):
            self.method.compile()

    def _recipe(self) -> Recipe:
        optim, config = self.config.optim, self.config
        return Recipe(
            optimizer=settled(optim.optimizer),
            lr=settled(optim.lr),
            beta2=settled(optim.beta2),
            min_lr=settled(optim.min_lr),
            weight_decay=settled(optim.weight_decay),
            weight_decay_end=settled(optim.weight_decay_end),
            warmup_steps=self.warmup,
            clip=settled(optim.clip),
            clip_per_tensor=config.method.clip_per_tensor,
            seed=config.train.seed,
            mean=settled(config.data.mean),
            std=settled(config.data.std),
            fast_colours=config.data.augment == "fast",
            kernels=config.data.kernels == "numba",
            channels_last=wants_channels_last(self.method.exported().info),
            accumulate=config.train.accumulate,
        )

    def train(self, resume: bool) -> RunResult:
        """Fit, from the newest checkpoint or the start, then export; a signal or a lost worker is said in one line."""
        checkpoint = newest_checkpoint(self.out / "checkpoints") if resume else None
        first, start = rank() == 0, int(checkpoint.stem.removeprefix("step-")) if checkpoint else 0
        metrics = Metrics(self.out, start) if first else None
        checkpoints = Checkpoints(self.out / "checkpoints", settled(self.config.train.checkpoint_every))
        stop = StopOnSignal(checkpoints)
        health = Health(metrics, settled(self.config.health.every), self.warmup, self.config.method.advice)
        callbacks: list[L.Callback] = [
            SameImages(self.source.fingerprint),
            health,
            *self._knn(metrics),
            checkpoints,
            stop,
        ]
        if metrics is not None:
            callbacks = [metrics, ProgressLine(settled(self.config.train.batch_size)), *callbacks]
        self._propose()
        if first and checkpoint is None:
            self._fit_tokenizer()  # the other ranks get it with the first broadcast of all weights
        if settled(self.config.train.compile):
            log.info("compiling: the first two steps take minutes")
        loader = self._loader(self.total, self.config.train.seed, start)
        trainer = self._trainer(callbacks)
        try:
            keep_memory()
            with enough_memory(), compiling():
                trainer.fit(self.module, loader, ckpt_path=checkpoint, weights_only=True)
        except RuntimeError as error:
            failure = worker_failure(error) or lost_rank(error)
            if failure is None:
                raise
            raise failure from error
        if stop.received is not None and trainer.global_step < self.total:
            saved = checkpoint_path(self.out / "checkpoints", trainer.global_step).exists()
            raise StoppedError(
                f"stopped at step {trainer.global_step} of {self.total} and {'' if saved else 'not '}saved; "
                f"go on with: {self._again()}"
            )
        if not first:
            raise SystemExit(0)  # the first rank writes what remains to be written
        if self.regions is not None:
            self._draw_regions()
        return finish(self.config, self.method, self.out, self.total, health.verdict, len(loader.bad.files))

    def _again(self) -> str:
        if is_object(self.config.data.path):
            return f"ssl_vit.pretrain(dataset, {str(self.out)!r}, resume=True)"
        return f"ssl-vit pretrain {shlex.quote(self.config.data.path)} --out {shlex.quote(str(self.out))} --resume"

    def _propose(self) -> None:
        """The regions that the method learns from, once a run folder: other ranks and a resumed run find them there."""
        prior, data = self.method.regions(), self.config.data
        if prior is None:
            return
        log.info("proposing regions by %s, at most %d an image", prior.name, prior.count)
        folder, workers = self.out / "proposals", settled(data.workers)
        try:
            self.regions = propose(self.source, prior, folder, workers=workers, max_bad=data.max_bad)
        except KeyboardInterrupt:
            raise StoppedError(f"stopped while regions were proposed; go on with: {self._again()}") from None

    def _draw_regions(self) -> None:
        """What was proposed, what the detector finds by now, and what its queries look at, on some images."""
        detector, mean, std = self.method.detector(), settled(self.config.data.mean), settled(self.config.data.std)
        if detector is None:
            return
        batch = next(iter(self._loader(1, self.config.train.seed, world=1)))
        images, boxes = to_views(batch, mean, std, self.module.device)
        draw_regions(detector, images[:8], boxes[:8], (mean, std), self.out / "regions.png")
        draw_gaze(detector, images[:4], (mean, std), self.out / "queries.png")

    def _fit_tokenizer(self) -> None:
        """What the method needs fitted, once a run folder: a run that is begun again finds it there."""
        tokenizer, path, train = self.method.to_fit(), self.out / "tokenizer.safetensors", self.config.train
        if tokenizer is None or not tokenizer.fit_steps:
            return
        if path.exists():
            fitting.restore(tokenizer, path)
            return
        log.info("fitting the tokenizer on your images: %d steps", tokenizer.fit_steps)
        mean, std = settled(self.config.data.mean), settled(self.config.data.std)
        loader = self._loader(tokenizer.fit_steps, train.seed + 1, world=1)
        grid = self.method.exported().info.grid
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            loss = fitting.fit(tokenizer, loader, grid, mean, std, train.seed, device)
        except KeyboardInterrupt:
            raise StoppedError(f"stopped while the tokenizer was fitted; begin again with: {self._again()}") from None
        sample = to_views(next(iter(self._loader(1, train.seed, world=1))), mean, std, device)[0][:8]
        reconstructions(tokenizer, sample, grid, self.out / "tokenizer.png")
        fitting.save(tokenizer, path)
        log.info("the tokenizer is fitted: loss %.3f; see %s", loss, self.out / "tokenizer.png")

    def _loader(self, steps: int, seed: int, start: int = 0, world: int | None = None) -> Loader:
        train, data = self.config.train, self.config.data
        world = world or self.world
        return build_loader(
            self.source,
            self.method.views(),
            batch_size=settled(train.batch_size) // self.world,
            seed=seed,
            total_steps=steps,
            start_step=start,
            rank=rank() if world > 1 else 0,
            world=world,
            workers=settled(data.workers),
            pin_memory=torch.cuda.is_available(),
            max_bad=data.max_bad,
            bad_list=self.out / "bad_images.jsonl" if rank() == 0 else None,
            regions=self.regions,
        )

    def _knn(self, metrics: Metrics | None) -> list[L.Callback]:
        if self.val is None:
            return []
        size, data = settled(self.config.backbone.image_size), self.config.data
        readout = Readout(size, settled(data.mean), settled(data.std))
        score = OnlineScore(self.source, self.val, readout, role(self.method))
        every = max(1, round(settled(self.config.health.knn_every) * self.per_epoch))
        return [OnlineKnn(metrics, every, score)]

    def _trainer(self, callbacks: list[L.Callback]) -> L.Trainer:
        train = self.config.train
        warnings.filterwarnings("ignore", module="lightning")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        return L.Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=settled(train.devices),
            num_nodes=train.nodes,
            strategy="ddp" if self.world > 1 else "auto",
            precision=settled(train.precision),
            max_steps=self.total,
            max_epochs=-1,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )


def build_method(config: RunConfig, weights: Inspection | None = None) -> Method:
    """The method around its backbone with these weights, or random ones from torch's current seed.

    The config must be resolved.
    """
    part = config.backbone
    backbone = create_backbone(
        settled(part.name),
        image_size=settled(part.image_size),
        drop_path=settled(part.drop_path),
        model_args=part.args,
        masked=config.method.masks,
    )
    method = method_class(config.method.name)
    method.begin(backbone)
    if weights is not None:
        put(backbone, weights)
    backbone.info = replace(backbone.info, mean=settled(config.data.mean), std=settled(config.data.std))
    built = method(config.method, backbone, settled(part.image_size))
    avoid_faulty_kernels(built)
    if config.train.checkpoint_activations:
        recompute(built, settled(part.image_size))
    return built


def _weights(config: RunConfig) -> Inspection | None:
    """What the run is to start from, read and not yet loaded."""
    return inspect(config.backbone.weights) if config.backbone.weights is not None else None
