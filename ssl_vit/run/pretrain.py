"""One run, from a configuration to an export that was checked: plan, prepare, train, finish."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssl_vit.backbones import backbone_name
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.inspection import Inspection
from ssl_vit.config import ResolvedConfig, RunConfig, check_out, load_config
from ssl_vit.config.paths import LOCK
from ssl_vit.data.dataset_name import Images, images_name, is_object, several
from ssl_vit.data.loader import steps_per_epoch
from ssl_vit.data.shards import ShardSource
from ssl_vit.data.sources import Source, open_source, require
from ssl_vit.errors import RunFailed, StoppedError, UserError
from ssl_vit.files import alone, disk_problem
from ssl_vit.methods import method_name
from ssl_vit.methods.method import Method
from ssl_vit.plugins import flags as plugin_flags
from ssl_vit.plugins import use
from ssl_vit.process import die_with_parent, keep_memory
from ssl_vit.run.changed import Resumed, as_before, check_done, check_same
from ssl_vit.run.facts import gather_facts
from ssl_vit.run.finish import Ended, RunResult, completed, finish
from ssl_vit.run.folder import clear, identity, logged, open_folder
from ssl_vit.run.length import length_of, of_resumed
from ssl_vit.run.plan import Decision, resolve_config, start_weights
from ssl_vit.run.prepare import metrics_of, new_averages, new_looks, new_method, new_report, new_watch, pixels_of
from ssl_vit.run.speed import clock
from ssl_vit.run.workspace import RunWorkspace
from ssl_vit.training.checkpoint import Checkpoints, checkpoint_path, go_on_from, newest_checkpoint
from ssl_vit.training.compiler import compiling
from ssl_vit.training.fabric import launch, new_fabric
from ssl_vit.training.looks.lost import LostSteps
from ssl_vit.training.looks.tracker import check_tracker
from ssl_vit.training.loop import reason_to_end, train
from ssl_vit.training.memory import enough_memory
from ssl_vit.training.ranks import check_startable, lost_rank, rank, same_images
from ssl_vit.training.step import Learner
from ssl_vit.training.stop import StopSignals, requeue, stoppable

if TYPE_CHECKING:
    from lightning.fabric import Fabric

log = logging.getLogger("ssl_vit")


def pretrain(
    data: RunConfig | Images,
    out: Path | str,
    settings: Mapping[str, Any] | None = None,
    *,
    method: str | type[Method] | None = None,
    backbone: str | AdaptedBackbone | None = None,
    val: Images | None = None,
    plugins: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    allow_data_change: bool = False,
    begun: float | None = None,
) -> RunResult:
    """Pretrain without labels; RUN gets the config, log, metrics, checkpoints and a verified export.

    data: a folder or whatever else ``ssl_vit.data.sources.open_source`` opens, such as
        ``torchvision.datasets.CIFAR10(root)`` or a ``datasets.Dataset``; or a whole configuration, see
        :func:`ssl_vit.config.load_config`, which leaves no room for settings, method, backbone and val.
    out: a folder that does not exist yet, unless ``resume`` goes on with the run there or ``overwrite`` starts anew.
    settings: values by key, ``{"method.name": "ibot", "train.epochs": 100}``; the others are chosen, or the run's own.
    method, backbone: their names; or a class that is registered, and a network as :func:`ssl_vit.as_backbone` gives it.
    allow_data_change: go on though the images are not what they were when the run began.
    plugins: files and modules of your own with methods and backbones, as ``--plugin`` names them.
    val: labelled images on which k-NN scores the features as they are learnt.
    begun: the ``time.monotonic()`` from which a time in the settings (``"train.time": "30m"``) counts; else from now.

    Raises:
        UserError: anything that can be known before training: paths, settings, a backbone the method can't use.
        RunFailed: too many unreadable images, no finite gradient, a lost worker, an export that does not verify.
        StoppedError: Ctrl-C or a signal; the run can be resumed.
    """
    use(plugins)
    start = _Start(resume, overwrite, allow_data_change, clock() if begun is None else begun)
    if isinstance(data, RunConfig):
        if any(each is not None for each in (settings, method, backbone, val)):
            raise UserError(
                "a configuration is whole; put settings, method, backbone and val into it, or give a folder instead"
            )
        return _pretrain(data, data.data.path, data.data.val, Path(out), start)
    flags = {**(settings or {}), "data.path": several(data) or images_name(data)}
    if val is not None:
        flags["data.val"] = images_name(val)
    if method is not None:
        flags["method.name"] = method_name(method)
    if backbone is not None:
        flags["backbone.name"] = backbone_name(backbone)
    kept = Path(out) / "config.yaml"  # not there yet where a run was stopped before it had settings
    config = load_config([kept] if resume and kept.is_file() else [], flags=flags)
    labelled = val if val is not None else config.data.val
    return _pretrain(config, data, labelled, Path(out), start)


class _Start(NamedTuple):
    """How a run is asked for."""

    resume: bool
    overwrite: bool
    allow_data_change: bool
    begun: float  # when, by the clock that its time counts by


def _pretrain(config: RunConfig, images: Images, labelled: Images | None, out: Path, start: _Start) -> RunResult:
    first, stop = rank() == 0, StopSignals(config.train.on_notice)
    resume, overwrite = start.resume, start.overwrite
    with stop.heard(), stoppable("before anything was written; give the same command again"):
        if first:
            resume = check_out(out, resume=resume, overwrite=overwrite)
        else:
            die_with_parent()
        found = identity(out)
        if resume and (done := completed(out)) is not None:
            check_done(config, out)
            return replace(done, was_complete=True)
        run = _new_run(config, images, labelled, out, start._replace(resume=resume), stop)
        if not first:
            with logged(None):
                return run.train(resume)
        _make(out)
        early = stoppable(run.goes_on("before the first step"))
        with _enough_disk(run), alone(out / LOCK, str(out), wait=False), early:
            if identity(out) != found:
                told = "another process has started a run there meanwhile; nothing was touched"
                raise UserError(f"{out}: {told}: add --resume to go on with it, or change --out")
            if resume and (done := completed(out)) is not None:
                return replace(done, was_complete=True)
            if overwrite and not resume:
                clear(out)
            with logged(out / "train.log"):
                open_folder(out, run.config, run.decisions, (run.source, run.val), run.resumed, run.expected)
                return run.train(resume)


@contextmanager
def _enough_disk(run: _Run) -> Iterator[None]:
    """RunFailed where something can't be written inside: the disk is full, or has become read-only."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (problem := disk_problem(error)):
            raise
        raise RunFailed(f"{problem}; {run.goes_on('free some space there')}") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: can't be made ({error.strerror}); choose another place") from error


def _new_run(
    config: RunConfig, images: Images, labelled: Images | None, out: Path, start: _Start, stop: StopSignals
) -> _Run:
    """Find the images and decide what is left to decide; what can't work is refused before anything is written."""
    links, resume = config.data.outside_links, start.resume
    source, val = open_source(images, links), open_source(labelled, links) if labelled is not None else None
    weights = None if resume else start_weights(config)  # a run that is resumed has them in its checkpoint
    if resume and (out / "config.yaml").is_file():
        config = as_before(config)
    facts = gather_facts(source, config.data, val)
    resolved, decisions = resolve_config(config, facts, weights)
    source = replace(source, pixels=pixels_of(resolved))
    val = replace(val, pixels=source.pixels) if val is not None else None
    require(source, resolved.train.batch_size)
    check_startable(resolved.train.devices)
    check_tracker(resolved.health.tracker)
    if rank() == 0 and isinstance(source, ShardSource):
        source.shared_by(max(1, resolved.data.workers) * resolved.train.devices * resolved.train.nodes)
    resumed = check_same(resolved, (source, val), out, start.allow_data_change) if resume else None
    expected = None
    if rank() == 0 and resume:
        expected = of_resumed(resolved, out, steps_per_epoch(len(source), resolved.train.batch_size))
    elif rank() == 0:
        length = length_of(config, resolved, (source, val), weights, out, start.begun)
        expected = length.expected
        if length.decision is not None:
            config = config.model_copy(update={"train": config.train.model_copy(update=length.settings)})
            decided = [length.decision, *(each for each in decisions if each.key == "train.compile")]
            resolved, decisions = resolve_config(config, facts, weights)
            decisions += decided
    return _Run(resolved, out, source, val, weights, decisions, stop, resumed, expected)


@dataclass
class _Run:
    """A run with all that is known before its first step."""

    config: ResolvedConfig
    out: Path
    source: Source
    val: Source | None
    weights: Inspection | None  # that it begins with, where it is new
    decisions: list[Decision]
    stop: StopSignals
    resumed: Resumed | None  # in the first process, where the run is resumed
    expected: str | None  # how long it will take, in words; in the first process

    def __post_init__(self) -> None:
        train = self.config.train
        self.method = new_method(self.config, self.weights)
        self.world = train.devices * train.nodes
        self.per_epoch = steps_per_epoch(len(self.source), train.batch_size)
        self.total = train.length(self.per_epoch)
        self.averages = new_averages(self.config, self.method)

    def train(self, resume: bool) -> RunResult:
        """Prepare, train from the newest checkpoint or the start, and hand over what was learnt."""
        checkpoint = newest_checkpoint(self.out / "checkpoints") if resume else None
        fabric, first = new_fabric(self.config.train), rank() == 0
        if not first:  # the others start with the first one's `launch`, or wait in it
            launch(fabric, self.config.train.timeout)
            return self._with_length_of_first(fabric)._go(fabric, checkpoint)
        return self._go(fabric, checkpoint)

    def _with_length_of_first(self, fabric: Fabric) -> _Run:
        """This run with what the first process has measured, and what follows from it; all ranks call it together."""
        if self.config.train.time is None:
            return self
        own = self.config.model_dump(mode="json")
        first = fabric.broadcast(own)
        if rank() == 0:
            return self
        return replace(self, config=ResolvedConfig.model_validate(first | {"data": own["data"]}))

    def _go(self, fabric: Fabric, checkpoint: Path | None) -> RunResult:
        first = rank() == 0
        workspace = RunWorkspace(self.config, self.out, self.source, self.method.views(), fabric.device)
        self.method.prepare(workspace)  # in the first process before the others
        if first:
            launch(fabric, self.config.train.timeout)
            self._with_length_of_first(fabric)
        with self._failures_in_words():
            same_images(fabric, self.source.fingerprint)
            ended = self._learn(fabric, workspace, checkpoint)
            with stoppable(self.goes_on("after the last step, before the export was whole")):
                done = finish(self.config, workspace, ended) if first else None
            fabric.barrier()  # the other ranks read what the first has written
        found = done or completed(self.out)
        assert found is not None  # as the first process has just said so
        return found

    def _learn(self, fabric: Fabric, workspace: RunWorkspace, checkpoint: Path | None) -> Ended:
        """The method after the last step, and what is known of the run by then."""
        config, start = self.config, 0
        learner = Learner(fabric, self.method, config, self.per_epoch, self.total)
        if checkpoint is not None:
            start = int(checkpoint.stem.removeprefix("step-"))
        metrics = metrics_of(config, self.out, start) if fabric.is_global_zero else None
        checkup, looks = new_looks(config, self.method, (self.source, self.val), self.per_epoch, metrics)
        watch = new_watch(config, self.method, (self.source, self.val), self.total, metrics)
        looks += [LostSteps(self.out, self.source), *self.averages, watch]
        looks += new_report(config, self.out, self.source, metrics)
        if checkpoint is not None:
            go_on_from(checkpoint, learner, looks)
        if learner.masks is not None:
            log.info("%s", learner.masks)
        if config.train.compile:
            log.info("compiling: the first two steps take minutes")
        loader = workspace.of_run(self.total, self.method.exported().info, start=start, world=self.world)
        checkpoints = Checkpoints(self.out / "checkpoints", config.train.checkpoint_every, checkpoint)
        if fabric.is_global_zero:
            checkpoints.check_room(learner)
        keep_memory()
        done = train(learner, loader, looks, checkpoints, self.stop, start)
        if over := reason_to_end(looks):
            log.warning("%s", over)
        elif done < self.total:
            saved = checkpoint_path(self.out / "checkpoints", done).exists()
            if self.stop.requeue and fabric.is_global_zero:
                requeue()
            where = f"at step {done} of {self.total} and {'' if saved else 'not '}saved"
            raise StoppedError(f"stopped {self.goes_on(where)}")
        averages = tuple(self.averages)
        return Ended(learner.whole(), done, checkup.verdict, len(loader.bad.files), watch, averages, over)

    @contextmanager
    def _failures_in_words(self) -> Iterator[None]:
        """RunFailed, with what to change, for memory that is too small, a compiler that fails and a process lost."""
        try:
            with enough_memory(self.config), compiling():
                yield
        except RuntimeError as error:
            failure = lost_rank(error, self.config.train.timeout)
            if failure is None:
                raise
            raise failure from error

    def goes_on(self, where: str) -> str:
        """Where the run was stopped, and the command that goes on with it."""
        path, out = self.config.data.path, shlex.quote(str(self.out))
        if isinstance(path, str) and is_object(path):
            return f"{where}; go on with: ssl_vit.pretrain(dataset, {str(self.out)!r}, resume=True)"
        data = shlex.join([path] if isinstance(path, str) else path)
        return f"{where}; go on with: ssl-vit pretrain {data} --out {out} --resume{plugin_flags()}"
