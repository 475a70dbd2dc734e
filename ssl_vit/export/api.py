"""Hand the weights of a run to another library: copied, loaded there and compared before they appear."""

from __future__ import annotations

import difflib
import shutil
from dataclasses import dataclass
from pathlib import Path

from ssl_vit.errors import UserError
from ssl_vit.export import timm

TARGETS = {"timm": timm}


@dataclass(frozen=True)
class ExportResult:
    """Where the weights are, who has loaded them, and how to do it oneself."""

    folder: Path
    consumer: str  # name and version of the library that loaded them
    max_difference: float  # of its outputs from ours, relative to the largest value
    snippet: str  # the Python that loads them


def export(run: Path | str, to: str = "timm", out: Path | str | None = None) -> ExportResult:
    """Verify the export of a run and, with ``out``, copy it there; a copy that does not verify never appears.

    Args:
        run: a run folder, which keeps its export in RUN/export.
        to: the library that will load the weights.
        out: a folder that does not exist yet; without it the export stays where it is.

    Raises:
        UserError: an unknown target, no export in the run, damaged weights, or ``out`` exists.
        RunFailed: the library cannot load the weights, or gives other outputs.
    """
    if to not in TARGETS:
        nearest = difflib.get_close_matches(to, TARGETS, n=1, cutoff=0.0)[0]
        raise UserError(f"--to {to}: unknown target; did you mean {nearest}? (known: {', '.join(TARGETS)})")
    source = Path(run) / "export"
    if not source.is_dir():
        raise UserError(f"{source}: not found; expected the folder of a run that has exported; finish or resume it")
    target, backbone = TARGETS[to], timm.read(source)
    if out is None:
        verified = target.verify(source, backbone)
    else:
        with timm.new_folder(out) as staging:
            for name in (timm.WEIGHTS, timm.CONFIG, timm.SUMS):
                shutil.copyfile(source / name, staging / name)
            verified = target.verify(staging, backbone)
    folder = Path(out or source)
    return ExportResult(folder, verified.consumer, verified.max_difference, target.snippet(folder))
