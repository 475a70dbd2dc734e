"""What a finished run hands over: the backbone, checked, the detector where one was trained, and a word on both."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ssl_vit
from ssl_vit.adapt import peft
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.backbones.backbone import Backbone
from ssl_vit.checkpoints.hub import is_hub_id
from ssl_vit.config import ResolvedConfig
from ssl_vit.detectors.files import detector_of
from ssl_vit.eval.did_it_help import Helped
from ssl_vit.eval.labelfree import patch_cosines
from ssl_vit.export.api import ExportResult, export, hand_over
from ssl_vit.files import PARTIAL, write_atomically
from ssl_vit.methods.method import Method
from ssl_vit.report.harmless import harmless
from ssl_vit.report.kept import FOLDER, PAGE
from ssl_vit.report.page import card_of, story_of, write_page
from ssl_vit.run.prepare import pixels_of, random_backbone, role
from ssl_vit.run.workspace import RunWorkspace
from ssl_vit.training.checkpoint import checkpoint_path, prune
from ssl_vit.training.health import Verdict
from ssl_vit.training.looks.average import Average
from ssl_vit.training.looks.metrics import last_knn
from ssl_vit.training.looks.watch import Watch

log = logging.getLogger("ssl_vit")

SUMMARY, LAST = "summary.json", "export-last"


@dataclass(frozen=True)
class RunResult:
    """What a finished run leaves."""

    folder: Path
    steps: int
    verdict: Verdict | None
    bad_files: int
    exported: ExportResult
    detector: Path | None = None  # of a method that pretrains one
    was_complete: bool = False  # before it was asked for: nothing was done
    helped: Helped | None = None  # whether its features are better than those that it began with

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        exported = {"folder": str(self.exported.folder), "snippet": self.exported.snippet}
        return {
            "folder": str(self.folder),
            "steps": self.steps,
            "verdict": self.verdict._asdict() if self.verdict else None,
            "did_it_help": self.helped.as_dict() if self.helped else None,
            "bad_files": self.bad_files,
            "export": exported | {"loaded_by": self.exported.consumer, "difference": self.exported.max_difference},
            "detector": str(self.detector) if self.detector else None,
            "was_complete": self.was_complete,
        }

    def report(self) -> Path:
        """Write RUN/report.html anew from what lies in the folder, scores that were added too; its path."""
        return write_page(self.folder)

    def _repr_html_(self) -> str:
        """What a notebook shows: the verdict, the numbers, where the report is, and how to load the weights."""
        return card_of(story_of(self.folder))

    def __str__(self) -> str:
        bad = f"{self.bad_files} files could not be read: see {self.folder / 'bad_images.jsonl'}\n"
        return (
            f"{self.folder}: {self.steps} steps done{', already complete: nothing to resume' * self.was_complete}. "
            + (f"Verdict: {self.verdict.kind}. {self.verdict.sentence}\n" if self.verdict else "\n")
            + (f"Did it help? {self.helped}\n" if self.helped else "")
            + (bad if self.bad_files else "")
            + f"Weights: {self.exported.folder}, verified: loaded by {self.exported.consumer}, outputs within "
            f"{self.exported.max_difference:.1g}. Load them with\n\n{self.exported.snippet}"
            + (f"\n\nDetector: {self.detector}; fine-tune it with ssl-vit eval detection" if self.detector else "")
        )


@dataclass(frozen=True)
class Ended:
    """A run after its last step, before anything of it is handed over."""

    method: Method
    steps: int
    verdict: Verdict | None
    bad_files: int
    watch: Watch
    averages: tuple[Average, ...] = ()
    over: str = ""  # why it ended before its last step, where it did


def finish(config: ResolvedConfig, workspace: RunWorkspace, ended: Ended) -> RunResult:
    """Export the backbone, its averages, the method's other artefacts, and then say that the run is complete."""
    out, method, steps = workspace.folder, ended.method, ended.steps
    verdict, bad_files = ended.verdict, ended.bad_files
    backbone = method.exported()
    _sweep(out, steps)
    assert isinstance(backbone, AdaptedBackbone)  # the one adapter
    backbone.info = replace(backbone.info, mean=config.data.mean, std=config.data.std)
    described = description(config, method, out, steps, verdict, bad_files)
    if config.train.diversify:
        alike = patch_cosines(backbone, workspace.views(next(iter(workspace.batches(1, workspace.seed))))[0])
        described["evaluation"]["patches' cosine by layer"] = alike
        log.info("patches' cosine by layer: %s", ", ".join(f"{value:.2f}" for value in alike))
    helped = _helped(config, ended)
    if helped is not None:
        described["evaluation"]["did it help"] = helped.sentence
        log.info("did it help? %s", helped.sentence)
    best = ended.watch.best(backbone) if helped is not None else None
    exported = _export(best, backbone, out, described, helped)
    if config.adapt.lora_rank is not None:
        _export_products(best or backbone, config, out)
    for average in ended.averages:
        _export_average(average, out, described)
    method.artefacts(workspace)
    summary = {"steps": steps, "verdict": verdict._asdict() if verdict else None, "bad_files": bad_files}
    more = {"ended_early": ended.over or None, "did_it_help": helped.as_dict() if helped is not None else None}
    for name, content in ((SUMMARY, summary | more), ("COMPLETE", summary)):
        text = json.dumps(content, indent=2) + "\n"
        write_atomically(out / name, partial(Path.write_text, data=text))
    if config.health.report:
        with harmless(PAGE):
            write_page(out)
    return RunResult(out, steps, verdict, bad_files, exported, detector_of(out), helped=helped)


def _helped(config: ResolvedConfig, ended: Ended) -> Helped | None:
    method, device = ended.method, next(ended.method.parameters()).device
    frozen = config.method.name if method.frozen else ""

    def at_random() -> Backbone:
        return random_backbone(config).to(device)

    began_so = config.backbone.weights is None
    return ended.watch.helped(method.exported(), ended.steps, None if began_so else at_random, frozen)


def _export(
    best: AdaptedBackbone | None, last: AdaptedBackbone, out: Path, described: dict[str, Any], helped: Helped | None
) -> ExportResult:
    """Write RUN/export, the last weights or better ones of an earlier step, with which the last go to RUN/export-last.

    Both are written anew where a run was killed after exporting.
    """
    for name in ("export", LAST):
        shutil.rmtree(out / name, ignore_errors=True)
    if best is None or helped is None:
        return hand_over(last, out / "export", "timm", described)
    hand_over(last, out / LAST, "timm", described)
    known = {"did it help": helped.sentence, **last_knn(out / "metrics.jsonl", helped.step)}
    return hand_over(best, out / "export", "timm", described | {"steps": helped.step, "evaluation": known})


def _export_products(backbone: AdaptedBackbone, config: ResolvedConfig, out: Path) -> None:
    """Write RUN/export-lora: what was trained alone, for whoever has the file that it was trained beside."""
    folder, start = out / "export-lora", config.backbone.weights
    shutil.rmtree(folder, ignore_errors=True)
    named = None if start is None else start if is_hub_id(start) else Path(start).name
    size = peft.write(backbone, folder, named)
    log.info("what was trained beside the weights is in %s, %.1f MB, as peft reads it", folder, size / 1e6)


def _export_average(average: Average, out: Path, description: dict[str, Any]) -> None:
    """Write RUN/export-NAME; nothing where no step is in it."""
    folder = out / f"export-{average.name}"
    shutil.rmtree(folder, ignore_errors=True)
    if (backbone := average.backbone()) is not None:
        hand_over(backbone, folder, "timm", description | {"encoder": f"student, {average.name} of its weights"})
        log.info("an average of the weights is in %s", folder)


def _sweep(out: Path, steps: int) -> None:
    """Delete what kills have left: what was still being written, and checkpoints that were not pruned any more.

    Nobody else is at work in the folder.
    """
    prune(out / "checkpoints", checkpoint_path(out / "checkpoints", steps))
    for left in [*out.glob(f".*{PARTIAL}"), *(out / FOLDER).glob(f".*{PARTIAL}")]:
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink()


def completed(out: Path) -> RunResult | None:
    """What a complete run left; None where it isn't complete, or nothing says what it left: then it finishes again."""
    try:
        done: dict[str, Any] = json.loads((out / "COMPLETE").read_bytes())
        steps, bad_files = int(done["steps"]), int(done["bad_files"])
        verdict = Verdict(**done["verdict"]) if done["verdict"] else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s: empty or damaged; the run finishes again", out / "COMPLETE")
        return None
    return RunResult(out, steps, verdict, bad_files, export(out), detector_of(out), helped=_kept_answer(out))


def _kept_answer(out: Path) -> Helped | None:
    """Whether a complete run helped, as it has said; None of older runs, or where that is lost."""
    try:
        found = json.loads((out / SUMMARY).read_bytes())["did_it_help"]
        return Helped.of_dict(found) if found is not None else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def scanned(out: Path) -> dict[str, Any]:
    """What data.json of a run says of its images; nothing where it is lost or damaged."""
    try:
        found = json.loads((out / "data.json").read_bytes())
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def description(
    config: ResolvedConfig, method: Method, out: Path, steps: int, verdict: Verdict | None, bad_files: int
) -> dict[str, Any]:
    """What the weights were made of and how good they are, without a path of this machine."""
    settings = config.model_dump(mode="json")
    for key in ("path", "val"):
        del settings["data"][key]
    if (start := settings["backbone"]["weights"]) is not None and not is_hub_id(start):
        settings["backbone"]["weights"] = Path(start).name
    for key, file in settings["method"].items():
        if (key == "teacher" or key.endswith("_weights")) and file is not None and not is_hub_id(file):
            settings["method"][key] = Path(file).name
    settings["plugins"] = {Path(place).name: digest for place, digest in settings["plugins"].items()}
    of_data = scanned(out)
    return {
        "version": ssl_vit.__version__,
        "method": config.method.name,
        "encoder": role(method),
        "steps": steps,
        "data": {key: of_data[key] for key in ("images", "bytes", "types", "sides") if of_data.get(key) is not None}
        | {"unreadable": bad_files},
        "evaluation": {"health": verdict.sentence if verdict else "not checked", **last_knn(out / "metrics.jsonl")},
        "pixels": pixels_of(config)._asdict(),
        "settings": settings,
    }
