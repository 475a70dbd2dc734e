"""torch.compile: the same work in every step is compiled once, and gives what it gives without."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from ssl_vit.config import load_config
from ssl_vit.errors import RunFailed
from ssl_vit.methods import list_methods
from ssl_vit.methods.method import Progress
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from ssl_vit.run.prepare import build_method
from ssl_vit.training.compiler import compiling
from tests.test_families_train import FACTS, IMAGES, resolved

QUICK, STEPS = {"mae"}, 6
DISTILLING = {"method.warmup_teacher_temp": 0.02, "method.warmup_teacher_temp_epochs": 3.0}


@pytest.mark.parametrize(
    ("name", "lean"),
    [
        pytest.param(name, lean, marks=[] if name in QUICK and not lean else [pytest.mark.slow])
        for name in list_methods()
        if name != "detreg"  # which computes something else for every image
        for lean in (False, True)
    ],
)
def test_nothing_is_compiled_again_once_numbers_have_changed(name: str, lean: bool) -> None:
    """Step, epoch and temperature differ from step to step and are no part of what was compiled.

    A graph may be compiled for its first numbers, for changing ones, and once more when temperatures stop rising.
    """
    more = DISTILLING if name in ("dino", "esvit", "ibot", "dinov2") else {}
    config = resolved(name, "vision_transformer", **more, **{"train.checkpoint_activations": lean})
    torch.manual_seed(0)
    plain = build_method(config)
    method, graphs, counts = copy.deepcopy(plain), list[Any](), list[int]()

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    method.compile(backend=backend)
    for step in range(STEPS):
        progress, losses = Progress(step, 2 * STEPS, 2), []
        for each in (plain, method):
            torch.manual_seed(step)
            batch = [torch.randn(view.count * IMAGES, 3, view.size, view.size) for view in method.views().views]
            torch.manual_seed(step)
            losses.append(each(batch, progress).loss)
            losses[-1].backward()
            each.after_step(progress)
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
        counts.append(len(graphs))
    assert counts[-1] <= 3 * counts[0], counts
    for (key, mine), (_, expected) in zip(method.named_parameters(), plain.named_parameters(), strict=True):
        if expected.grad is not None:
            assert mine.grad is not None
            size = expected.grad.abs().max()
            torch.testing.assert_close(mine.grad, expected.grad, rtol=0, atol=float(1e-4 * size + 1e-7), msg=key)


@pytest.mark.parametrize(
    ("facts", "settings", "expected", "why"),
    [
        ({"gpus": 1, "compiler": True, "images": 100_000}, {}, True, "wins back the minutes"),
        ({"gpus": 1, "compiler": True, "images": 1_000}, {}, False, "which a run of 2 million images wins back"),
        ({"gpus": 1, "compiler": True, "images": 30_000, "side": 64}, {}, False, "2 million images"),
        ({"gpus": 1, "compiler": True, "images": 100_000}, {"method.name": "detreg"}, False, "from image to image"),
        ({"gpus": 1, "compiler": False, "images": 100_000}, {}, False, "lacks Triton"),
        ({"gpus": 0, "compiler": False, "images": 100_000}, {}, False, "on a CPU"),
    ],
)
def test_long_runs_on_a_gpu_are_compiled(
    facts: dict[str, Any], settings: dict[str, Any], expected: bool, why: str
) -> None:
    config = load_config(flags={"data.path": "nowhere"} | settings)
    chosen, decisions = resolve_config(config, Facts(**{**FACTS, "side": 224, **facts}))
    assert chosen.train.compile is expected
    assert why in next(decision.why for decision in decisions if decision.key == "train.compile")


def test_a_compiler_that_fails_is_one_line() -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise OSError("no C compiler")

    said = r"torch.compile failed \(OSError: no C compiler\); --set train.compile=false"
    with pytest.raises(RunFailed, match=said), compiling():
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(1))
