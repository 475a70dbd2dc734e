"""What a finished run hands over: the backbone, checked, the detector where one was trained, and a word on both."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ssl_vit
from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.checkpoints.hub import is_hub_id
from ssl_vit.config import ResolvedConfig
from ssl_vit.detectors.files import detector_of
from ssl_vit.eval.labelfree import patch_cosines
from ssl_vit.export.api import ExportResult, export, hand_over
from ssl_vit.files import PARTIAL, write_atomically
from ssl_vit.methods.method import Method
from ssl_vit.run.prepare import pixels_of, role
from ssl_vit.run.workspace import RunWorkspace
from ssl_vit.training.checkpoint import checkpoint_path, prune
from ssl_vit.training.health import Verdict
from ssl_vit.training.looks.average import Average
from ssl_vit.training.looks.metrics import last_knn

log = logging.getLogger("ssl_vit")


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

    def __str__(self) -> str:
        bad = f"{self.bad_files} files could not be read: see {self.folder / 'bad_images.jsonl'}\n"
        return (
            f"{self.folder}: {self.steps} steps done{', already complete: nothing to resume' * self.was_complete}. "
            + (f"Verdict: {self.verdict.kind}. {self.verdict.sentence}\n" if self.verdict else "\n")
            + (bad if self.bad_files else "")
            + f"Weights: {self.exported.folder}, verified: loaded by {self.exported.consumer}, outputs within "
            f"{self.exported.max_difference:.1g}. Load them with\n\n{self.exported.snippet}"
            + (f"\n\nDetector: {self.detector}; fine-tune it with ssl-vit eval detection" if self.detector else "")
        )


def finish(
    config: ResolvedConfig,
    method: Method,
    workspace: RunWorkspace,
    steps: int,
    verdict: Verdict | None,
    bad_files: int,
    averages: Sequence[Average] = (),
) -> RunResult:
    """Export the backbone, its averages, the method's other artefacts, and then say that the run is complete."""
    out, backbone = workspace.folder, method.exported()
    _sweep(out, steps)
    folder = out / "export"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed after exporting
    assert isinstance(backbone, AdaptedBackbone)  # the one adapter
    backbone.info = replace(backbone.info, mean=config.data.mean, std=config.data.std)
    described = description(config, method, out, steps, verdict, bad_files)
    if config.train.diversify:
        alike = patch_cosines(backbone, workspace.views(next(iter(workspace.batches(1, workspace.seed))))[0])
        described["evaluation"]["patches' cosine by layer"] = alike
        log.info("patches' cosine by layer: %s", ", ".join(f"{value:.2f}" for value in alike))
    exported = hand_over(backbone, folder, "timm", described)
    for average in averages:
        _export_average(average, out, described)
    method.artefacts(workspace)
    summary = {"steps": steps, "verdict": verdict._asdict() if verdict else None, "bad_files": bad_files}
    write_atomically(out / "COMPLETE", lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))
    return RunResult(out, steps, verdict, bad_files, exported, detector_of(out))


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
    for left in out.glob(f".*{PARTIAL}"):
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
    return RunResult(out, steps, verdict, bad_files, export(out), detector_of(out))


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
