"""Make a golden anew from the official code, where random weights would amplify rounding.

Run ``PYTHONPATH=THE/OFFICIAL/CODE:. python tests/golden/make.py FILE MODULE:FUNCTION``. FILE is a golden of this
folder; FUNCTION builds the official model without arguments, as in ``models.rest:rest_large``. The official model is
filled as ``verify.py`` fills ours, with the file's ``damp``, and answers in float64. Its answer replaces the one in
FILE, unless the official model's own float32 is further from it than 1e-5 of its standard deviation: then damp more.
None of our models takes part.

CoTNet has one operation for CUDA alone, ``aggregation_zeropad``. On a CPU it has to be replaced by
``torch.nn.functional.unfold`` times the weights, summed over the kernel: what its authors' own test compares it with.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.golden import verify

AGREE = 1e-5  # of the standard deviation: float32 and float64 of the official model


def fill(model: nn.Module, damp: dict[str, float]) -> None:
    """Put the frozen weights into an official model, by its own names."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    shapes = {
        name: list(value.shape)
        for name, value in model.state_dict().items()
        if name in parameters or name.endswith(("running_mean", "running_var"))
    }
    model.load_state_dict(verify.fill_official(shapes, damp), strict=False)


@torch.inference_mode()
def answers(build: Callable[[], nn.Module], golden: dict[str, Any]) -> tuple[Tensor, Tensor, nn.Module]:
    """What the official model says in float64 and in float32, and the model."""
    model = build().eval()
    fill(model, golden["damp"])
    images = verify.image_input(golden["input"])
    single = model(images.clone())
    return model.double()(images.double()), single, model


def remade(build: Callable[[], nn.Module], golden: dict[str, Any]) -> dict[str, Any]:
    """The golden with the official model's answer in float64; ValueError where its float32 disagrees."""
    output, single, model = answers(build, golden)
    keys = {name: list(value.shape) for name, value in model.state_dict().items()}
    params = sum(p.numel() for p in model.parameters())
    if keys != golden["keys"] or params != golden["params"]:
        raise ValueError("these are not the parameters in the file: is it another variant?")
    made = golden | {"dtype": "float64"} | verify.summary(output)
    made["rowdiff_over_std"] = float((output[0] - output[1]).abs().max() / output.std())
    made["float32_off_by"] = verify.compare(single, made)
    if not made["float32_off_by"] <= AGREE:
        raise ValueError(f"float32 is {made['float32_off_by']:.1e} of std from float64: damp more")
    return made


def main(arguments: Sequence[str]) -> int:
    """Remake one file; 2 for wrong arguments."""
    if len(arguments) != 2:
        print("usage: python tests/golden/make.py FILE MODULE:FUNCTION")
        return 2
    path, (module, function) = Path(arguments[0]), arguments[1].split(":")
    made = remade(getattr(importlib.import_module(module), function), json.loads(path.read_text()))
    path.write_text(json.dumps(made, separators=(",", ":")))
    print(f"{path.stem}: float32 is within {made['float32_off_by']:.1e} of the standard deviation")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
