"""The verdict on a run, from made histories and from real small trainings that are made to go wrong."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssl_vit.config import load_config
from ssl_vit.errors import RunFailed
from ssl_vit.methods.dino import DINO
from ssl_vit.methods.method import Progress, Step
from ssl_vit.run.finish import RunResult
from ssl_vit.run.pretrain import pretrain as whole_run_of
from ssl_vit.training.checkpoint import newest_checkpoint
from ssl_vit.training.health import Verdict, Vitals, diagnose, feature_std, rank_me
from tests.runs import SETTINGS, losses, rows

LN = math.log(4096)  # 8.3178


ADVICE = {"uniform collapse": "Do this.", "constant-output collapse": "Do that.", "not learning yet": "Wait."}


def history(*checks: tuple[float, float, float, float], warmup: int = 10) -> list[Vitals]:
    """(loss, targets' entropy, feature deviation, rank) every ten steps, the first when the warm-up ends."""
    return [
        Vitals(10 * i, warmup, loss, LN, deviation, rank, 4096, {"view": (loss, entropy)})
        for i, (loss, entropy, deviation, rank) in enumerate(checks, start=1)
    ]


UNIFORM = (8.3178, 8.3170, 0.5, 20.0)
CONSTANT = (0.01, 0.001, 0.5, 20.0)  # one prototype for every image
FLAT = (7.0, 3.0, 0.001, 1.02)  # one feature vector for every image
GOOD = (6.0, 4.0, 0.8, 40.0)


@pytest.mark.parametrize(
    ("checks", "kind", "word"),
    [
        ([GOOD], "warming up", "Too early"),
        ([GOOD] * 2, "warming up", "Too early"),
        ([GOOD] * 3, "learning", "against 8.318 for no information; features use 40.0"),
        ([UNIFORM] * 2, "warming up", "Too early"),
        (
            [UNIFORM] * 3,
            "uniform collapse",
            "view loss is 8.318 = ln 4096: every image gets the same, uniform output and nothing is learnt. Do this.",
        ),
        ([UNIFORM, UNIFORM, GOOD], "learning", "6.000"),
        ([GOOD, UNIFORM, UNIFORM], "warming up", "Too early"),
        ([CONSTANT] * 3, "constant-output collapse", "loss 0.010): nothing is learnt. Do that."),
        ([GOOD, *[FLAT] * 3], "constant-output collapse", "effective rank 1.0"),
        ([GOOD, GOOD, (math.nan, 4.0, 0.8, 40.0)], "diverged", "loss is nan"),
        ([GOOD, GOOD, (math.inf, 4.0, 0.8, 40.0)], "diverged", "loss is inf"),
        ([GOOD, GOOD, (12.6, 4.0, 0.8, 40.0)], "diverged", "risen to 12.600, from 6.000"),
        ([GOOD, GOOD, (12.4, 4.0, 0.8, 40.0)], "warming up", "12.400"),
    ],
)
def test_every_verdict(checks: list[tuple[float, float, float, float]], kind: str, word: str) -> None:
    verdict = diagnose(history(*checks), ADVICE)
    assert verdict.kind == kind
    assert word in verdict.sentence


def test_no_collapse_is_called_before_the_warm_up_ends() -> None:
    assert diagnose(history(*[UNIFORM] * 5, warmup=50), ADVICE).kind == "warming up"
    assert diagnose(history(*[UNIFORM] * 6, warmup=50), ADVICE).kind == "uniform collapse"


def test_a_method_without_a_uniform_loss_is_judged_by_its_features() -> None:
    def checks(rank: float, deviation: float) -> list[Vitals]:
        return [Vitals(10 * i, 0, 1.0, None, deviation, rank) for i in range(1, 4)]

    assert diagnose(checks(30.0, 0.8), {}).kind == "learning"
    assert diagnose(checks(1.1, 0.001), {}).kind == "constant-output collapse"


@pytest.mark.parametrize("collapsed", ["view", "patch"])
@pytest.mark.parametrize(("values", "kind"), [((LN, LN), "uniform collapse"), ((0.0, 0.0), "constant-output collapse")])
def test_one_head_of_two_that_collapses_is_enough(collapsed: str, values: tuple[float, float], kind: str) -> None:
    heads = {"view": (6.0, 4.0), "patch": (6.0, 4.0)} | {collapsed: values}
    loss = heads["view"][0] + heads["patch"][0] / 2
    verdict = diagnose([Vitals(10 * i, 0, loss, 1.5 * LN, 0.8, 40.0, 4096, heads) for i in range(1, 4)], ADVICE)
    assert verdict.kind == kind
    assert f"{collapsed} loss" in verdict.sentence
    assert ADVICE[kind] in verdict.sentence


def test_a_loss_no_better_than_a_blind_guess_is_not_learning_yet() -> None:
    def checks(*losses: float) -> Verdict:
        vitals = [Vitals(10 * i, 0, loss, None, 0.8, 40.0, blind_loss=0.5) for i, loss in enumerate(losses, start=1)]
        return diagnose(vitals, ADVICE)

    stuck = checks(0.51, 0.499, 0.505)
    assert stuck.kind == "not learning yet"
    assert stuck.sentence == "The loss is 0.505, and a guess that doesn't look at the image costs 0.500. Wait."
    assert checks(0.51, 0.48, 0.505).kind == "warming up"
    better = checks(0.51, 0.505, 0.48)
    assert (better.kind, "against 0.500 for the best guess" in better.sentence) == ("learning", True)


def test_the_rising_loss_of_a_queue_that_fills_is_no_divergence() -> None:
    """MoBY's first keys are random: the loss of two contrasts with 4,096 of them is far below 2 ln 4097 and rises."""
    uniform = 2 * math.log(4097)
    losses = [8.0, 14.0, 16.5]
    remark = "The queue is 40 % full of real keys; until then a rising loss is normal."
    rising = [
        Vitals(10 * i, 0, loss, uniform, 0.8, 40.0, blind_loss=uniform, remark=remark)
        for i, loss in enumerate(losses, start=1)
    ]
    verdict = diagnose(rising, {})
    assert verdict.kind in ("learning", "warming up")
    assert verdict.sentence.endswith(remark)


def test_effective_rank_of_known_matrices() -> None:
    """RankMe (2210.02885); Gaussian features of full rank come out a little below their dimension, 374.6 of 384."""
    generator = torch.Generator().manual_seed(0)
    assert rank_me(torch.randn(2048, 384, generator=generator)) == pytest.approx(374.6, abs=0.5)
    left = torch.linalg.qr(torch.randn(512, 5, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(64, 5, generator=generator, dtype=torch.float64))[0]
    assert rank_me(left @ right.T) == pytest.approx(5.0, abs=1e-9)
    assert rank_me(torch.full((256, 64), 3.0)) == pytest.approx(1.0, abs=1e-3)
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)  # entropy 1.5 bits
    assert rank_me(left[:, :3] * weights @ right[:, :3].T) == pytest.approx(2**1.5)
    assert math.isnan(rank_me(torch.tensor([[1.0, math.nan]])))


def test_spread_of_known_features() -> None:
    generator = torch.Generator().manual_seed(0)
    assert feature_std(torch.randn(4096, 64, generator=generator)) == pytest.approx(1.0, abs=0.02)
    assert feature_std(torch.full((256, 64), 3.0)) == pytest.approx(0.0, abs=1e-6)
    assert feature_std(torch.eye(2).repeat(8, 1)) == pytest.approx(0.5 * math.sqrt(2))  # (1, 0) or (0, 1): σ = 1/2


def pretrain(data: Path, out: Path, **changes: object) -> RunResult:
    """A tiny run in this process."""
    settings = SETTINGS | {"data.workers": 0, "backbone.drop_path": 0.0, "method.local_crops": 0}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    sets = [f"{key}={value}" for key, value in settings.items()]
    return whole_run_of(load_config([], sets, {"data.path": str(data)}), out)


def test_uniform_collapse_is_named(pictures: Path, tmp_path: Path) -> None:
    """A teacher as soft as 1.0 says the same of every image."""
    result = pretrain(
        pictures / "train",
        tmp_path / "run",
        method__head_norm="none",
        method__centering="mean",
        method__teacher_temp=1.0,
        method__warmup_teacher_temp=1.0,
        method__freeze_last_layer_epochs=0.0,
        optim__lr=0.01,
        train__epochs=20,
    )
    assert result.verdict is not None
    assert result.verdict.kind == "uniform collapse"
    assert "ln 64" in result.verdict.sentence
    assert losses(tmp_path / "run")[-1] == pytest.approx(math.log(64), rel=0.01)
    assert "uniform collapse" in (tmp_path / "run" / "train.log").read_text()
    assert json.loads((tmp_path / "run" / "COMPLETE").read_text())["verdict"]["kind"] == "uniform collapse"


def test_constant_output_collapse_is_named(pictures: Path, tmp_path: Path) -> None:
    """A centre that never follows, and a teacher so sharp that it names one prototype."""
    result = pretrain(
        pictures / "train",
        tmp_path / "run",
        method__head_norm="none",
        method__centering="mean",
        method__center_momentum=0.999999,
        method__teacher_temp=0.001,
        method__warmup_teacher_temp=0.001,
        method__momentum=0.5,
        method__freeze_last_layer_epochs=0.0,
        optim__lr=0.01,
        train__epochs=12,
    )
    assert result.verdict is not None
    assert result.verdict.kind == "constant-output collapse"
    assert losses(tmp_path / "run")[-1] < 0.04


class Poison:
    """DINO's forward with a loss that is nan at some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
        self.before: dict[str, Tensor] = {}
        self.unchanged: list[bool] = []
        sound = DINO.forward

        def forward(method: DINO, batch: list[Tensor], progress: Progress) -> Step:
            now = {name: value.detach().clone() for name, value in method.named_parameters()}
            now["center"] = method.center.clone()
            if progress.step - 1 in steps:
                self.unchanged.append(all(torch.equal(value, self.before[name]) for name, value in now.items()))
            self.before = now
            step = sound(method, batch, progress)
            if progress.step in steps:
                step.loss = step.loss * math.nan
            return step

        monkeypatch.setattr(DINO, "forward", forward)


def test_a_step_without_a_finite_gradient_is_not_taken(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    poison = Poison(monkeypatch, {3, 7, 8})
    with caplog.at_level(logging.WARNING, "ssl_vit"):
        result = pretrain(pictures / "train", tmp_path / "run", train__epochs=2)
    assert poison.unchanged == [True] * 3
    assert caplog.text.count("the loss is not finite, the step was not taken") == 3
    found = losses(tmp_path / "run")
    assert [step for step, loss in enumerate(found) if loss is None] == [3, 7, 8]
    assert len(found) == 12
    assert result.steps == 12


def test_ten_such_steps_in_a_row_end_the_run_with_a_good_checkpoint(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    Poison(monkeypatch, set(range(7, 30)))
    with pytest.raises(
        RunFailed,
        match=r"10 steps in a row without a finite loss and gradient, up to step 16.*--weights.*step-000000015",
    ):
        pretrain(pictures / "train", out)
    assert not (out / "COMPLETE").exists()
    assert not (out / "export").exists()
    newest = newest_checkpoint(out / "checkpoints")
    assert newest is not None
    state = torch.load(newest, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    monkeypatch.undo()
    assert whole_run_of(load_config([out / "config.yaml"]), out, resume=True).steps == 30
    assert all(row["loss"] is not None for row in rows(out) if row["step"] > 15 and "loss" in row)
