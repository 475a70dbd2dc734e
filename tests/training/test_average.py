"""Averages of weights beside the last ones: what they are, that they resume exactly, and that they are exported."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from ssl_vit.errors import UserError
from ssl_vit.run.prepare import build_method, new_averages
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.looks.average import Average
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.methods.settings import COMMON, SMALL
from tests.runs import Trap, finish
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE

STEPS = 8


def test_averages_are_those_of_the_steps() -> None:
    config = resolved("mae", "vision_transformer", **RECIPE | {"train.ema": 0.4, "train.swa": 0.5})
    torch.manual_seed(0)
    method = build_method(config)
    averages = new_averages(config, method)
    learner = Learner(new_fabric(config.train), method, config, per_epoch=STEPS, total=STEPS)
    (view,) = method.views().views
    name = next(iter(method.exported().model.state_dict()))

    def now() -> torch.Tensor:
        return method.exported().model.state_dict()[name].clone()

    seen = [now()]
    for average in averages:
        average.begin(learner, 0)
        assert average.backbone() is None
    for step in range(STEPS):
        outcome = take_step(learner, ReadyViews([torch.randn(8, 3, view.size, view.size)]), step)
        seen.append(now())
        for i, average in enumerate(averages):
            average.after_step(outcome)
            if step == 5:  # as through a checkpoint
                averages[i] = Average(average.name, method, average._momentum, average._share)
                averages[i].restore_state(average.state())
                averages[i].begin(learner, step + 1)
    by_hand = seen[0]
    for n, weights in enumerate(seen[1:]):
        kept = min(0.4, (1 + n) / (10 + n))
        by_hand = kept * by_hand + (1 - kept) * weights
    ema, swa = (average.backbone().model.state_dict()[name] for average in averages)
    torch.testing.assert_close(ema, by_hand, rtol=0, atol=1e-6)
    torch.testing.assert_close(swa, torch.stack(seen[-4:]).mean(0), rtol=0, atol=1e-6)
    assert float((ema - seen[-1]).abs().max()) > 1e-4


@pytest.mark.parametrize("more", [{"train.ema": 0.9}, {"train.swa": 0.5}])
def test_a_teacher_is_an_average_already(more: dict[str, Any]) -> None:
    config = resolved("dino", "vision_transformer", **more)
    with pytest.raises(UserError, match=r"dino exports its teacher, which is an average"):
        new_averages(config, build_method(config))


@pytest.mark.slow
def test_averages_resume_exactly_and_are_exported(pictures: Path, tmp_path: Path) -> None:
    settings = COMMON | {"method.name": "mae", "train.ema": 0.9, "train.swa": 0.5}
    settings |= {f"method.{key}": value for key, value in SMALL["mae"].items()}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    once, twice = (["pretrain", str(pictures / "train"), "--out", str(tmp_path / run), *sets] for run in "ab")
    assert finish(once, tmp_path / "said") == 0, (tmp_path / "said").read_text()
    assert finish(twice, tmp_path / "said", Trap(signal.SIGTERM, 7)) == 143
    assert finish([*twice, "--resume"], tmp_path / "said") == 0, (tmp_path / "said").read_text()
    names = ("export", "export-ema", "export-swa")
    files = [[(tmp_path / run / name / "model.safetensors").read_bytes() for name in names] for run in "ab"]
    assert files[0] == files[1]
    assert len(set(files[0])) == 3
    for name in names:
        timm.create_model(f"local-dir:{tmp_path / 'a' / name}", pretrained=True)
