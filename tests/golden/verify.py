"""Hold a model of ours against the fingerprint of the official one.

Run ``python tests/golden/verify.py FILE…``. Each file names an official model (``case``, ``variant``), its parameter
names and shapes, and what it answered to a frozen input when filled with frozen weights that depend only on the
parameters' official names. Our model is found through ``names.py``, filled through its map from the official names,
run, and compared. Exit status 1 when one deviates too far or isn't known.

Random weights make some networks amplify rounding until float32 says nothing. Their files have ``damp`` (a pattern of
official names and what the weights under them are multiplied with) and ``dtype`` float64, in which the official model
answered and ours is run. ``make.py`` makes such a file.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, only this folder is on the path

from tests.golden.names import OUTPUTS, model_of

TOLERANCE = 1e-4  # of the output's standard deviation
TOLERANCES = {"regionvit": 1e-5}  # reacts so weakly to the image that 1e-4 would miss a wrong branch
EXACT = 1e-9  # where the official model answered in float64


class Verdict(NamedTuple):
    """How far our model is from the official one."""

    deviation: float  # largest difference over the fingerprint, in standard deviations of the official output
    tolerance: float
    params: int
    official_params: int

    @property
    def passed(self) -> bool:
        return self.params == self.official_params and self.deviation <= self.tolerance  # False for nan too

    def __str__(self) -> str:
        count = f"{self.params:,} parameters"
        if self.params != self.official_params:
            count += f" (official {self.official_params:,})"
        return f"{count}, deviation {self.deviation:.1e} of std (at most {self.tolerance:.0e})"


def _draw(name: str, shape: Sequence[int]) -> np.ndarray:
    return np.asarray(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)))


def _fill(name: str, shape: Sequence[int], damp: Mapping[str, float]) -> Tensor:
    z = _draw(name, shape)
    if name.endswith("running_var"):
        z = 1 + 0.1 * np.abs(z)
    elif len(shape) <= 1:
        z = (1 if name.endswith(".weight") else 0) + 0.1 * z
    else:
        z = z / math.sqrt(math.prod(shape[1:]))
    factor = math.prod(factor for pattern, factor in damp.items() if re.search(pattern, name))
    return torch.from_numpy((z * factor).astype(np.float32))


def fill_official(shapes: Mapping[str, Sequence[int]], damp: Mapping[str, float] | None = None) -> dict[str, Tensor]:
    """The frozen weights of an official model, by official name; give parameters and running statistics only.

    damp: what weights are multiplied with, by a pattern that is searched for in their names.
    """
    return {name: _fill(name, shape, damp or {}) for name, shape in shapes.items()}


def image_input(shape: Sequence[int]) -> Tensor:
    """The frozen input: a coarse 7 x 7 pattern plus noise for images [B, 3, S, S], plain noise for anything else."""
    rng = np.random.RandomState(0)
    if len(shape) != 4 or shape[1] != 3:
        return torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32))
    size = shape[-1]
    coarse = rng.standard_normal((*shape[:2], 7, 7))
    cell = 7 * np.arange(size) // size
    x = 1.5 * coarse[:, :, cell[:, None], cell] + 0.5 * rng.standard_normal(tuple(shape))
    return torch.from_numpy(x.astype(np.float32))


def official_weights(golden: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the official checkpoint would hold, less the buffers that a model builds for itself.

    A tensor with several names was filled under each in turn: the last one counts, and ``load_official`` must see it.
    """
    left_out = {name for name in golden["buffers"] if not name.endswith(("running_mean", "running_var"))}
    shapes = {name: shape for name, shape in golden["keys"].items() if name not in left_out}
    return fill_official(shapes, golden.get("damp"))


def load_filled(model: nn.Module, golden: Mapping[str, Any]) -> None:
    """Fill `model` through its family's map from official names; every parameter must be met, and none be left over."""
    family = importlib.import_module(type(model).__module__)
    weights = official_weights(golden)
    if hasattr(family, "load_official"):
        weights = family.load_official(weights)
    elif hasattr(family, "checkpoint_filter_fn"):  # a family that timm has
        weights = family.checkpoint_filter_fn(weights, model)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wanted = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    wanted |= {name for name in model.state_dict() if name.endswith(("running_mean", "running_var"))}
    missing = [name for name in missing if name in wanted]
    if missing or unexpected:
        raise ValueError(f"official names don't map onto ours: missing {missing[:5]}, left over {unexpected[:5]}")


def summary(output: Tensor) -> dict[str, Any]:
    """What a golden keeps of an output: its shape, some of its values, and three figures over all of them."""
    out = output.double()
    rows = out.reshape(len(out), -1)  # "row1" is the last of them, with the usual two images the second
    return {
        "out": list(output.shape),
        "first16": rows[0, :16].tolist(),
        "row1_first8": rows[-1, :8].tolist(),
        "mean": out.mean().item(),
        "std": out.std().item(),
        "l2": out.norm().item(),
    }


def compare(output: Tensor, golden: Mapping[str, Any]) -> float:
    """Largest difference from the fingerprint, in standard deviations of the official output."""
    ours = summary(output)
    if ours["out"] != golden["out"]:
        raise ValueError(f"output has shape {ours['out']}, the official one {golden['out']}")
    differences = [np.abs(np.subtract(ours[key], golden[key])).max() for key in ("first16", "row1_first8")]
    differences += [abs(ours[key] - golden[key]) for key in ("mean", "std")]
    differences.append(abs(ours["l2"] - golden["l2"]) / math.sqrt(output.numel()))
    return float(np.max(differences)) / golden["std"]  # np.max hands on nan, max would lose it


@torch.inference_mode()
def verify(golden: Mapping[str, Any]) -> Verdict:
    """Build, fill and run our counterpart of an official model; KeyError when we don't have it."""
    case, dtype = golden["case"], getattr(torch, golden.get("dtype", "float32"))
    model = model_of(case, golden["variant"]).eval()
    load_filled(model, golden)
    model, images = model.to(dtype), image_input(golden["input"]).to(dtype)
    output = OUTPUTS[case](model, images) if case in OUTPUTS else model(images)
    params = sum(p.numel() for p in model.parameters())
    tolerance = EXACT if dtype is torch.float64 else TOLERANCES.get(case, TOLERANCE)
    return Verdict(compare(output, golden), tolerance, params, golden["params"])


def main(files: Sequence[str]) -> int:
    """Verify each file, a line for each; 1 when one fails."""
    if not files:
        print("usage: python tests/golden/verify.py FILE…")
        return 1
    failed = 0
    for file in files:
        golden = json.loads(Path(file).read_text())
        try:
            verdict = verify(golden)
            ok, text = verdict.passed, str(verdict)
        except (KeyError, ValueError, RuntimeError) as error:
            ok, text = False, str(error.args[0] if error.args else error)
        failed += not ok
        print(f"{'ok  ' if ok else 'FAIL'} {golden['case']}/{golden['variant']}: {text}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
