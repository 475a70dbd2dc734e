"""Verdicts that can't be fooled: learning is better than the start and than no information; advice can be followed."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.config import load_config
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.sources import open_source
from ssl_vit.methods import list_methods
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from ssl_vit.run.prepare import build_method
from ssl_vit.run.pretrain import pretrain as run
from ssl_vit.training.advice import advice_for, setting
from ssl_vit.training.health import Vitals, diagnose
from ssl_vit.training.separation import HeldBack, clearly_above, distance, own_view_share
from tests.methods.settings import COMMON, NEEDED, SMALL
from tests.test_families_train import resolved
from tests.training.test_health import pretrain

FLAT = {"backbone.drop_path": 0.0, "train.epochs": 4, "optim.warmup_epochs": 0.5, "health.every": 6}
LN = math.log(64)
SOUND = Vitals(
    10, 0, 3.0, LN, 0.8, 20.0, 64, {"view": (3.0, 2.0)}, views=128, own_view=0.6, own_view_start=0.2, moved=0.9
)


def verdict_on(*changes: dict[str, object]) -> tuple[str, str]:
    """Of checks that are sound but for these changes; the first is always."""
    checks = [replace(SOUND, loss=3.5, own_view=0.3), *(replace(SOUND, **each) for each in changes)]  # type: ignore[arg-type]
    return diagnose([replace(each, step=10 * number) for number, each in enumerate(checks, start=1)], {})


@pytest.mark.parametrize(
    ("change", "kind", "word"),
    [
        (
            {},
            "learning",
            "Of 128 views that are held back 60% find their image's other one (at the start 20%, by chance 1%)",
        ),
        ({"loss": 6.0}, "not learning yet", "a guess that doesn't look at the image costs 4.159"),
        ({"moved": 1e-6}, "not learning yet", "are those of the start (they have moved by 1e-06"),
        ({"own_view": 0.008}, "not learning yet", "tell no image from another"),
        ({"own_view": 0.2, "loss": 3.5}, "not learning yet", "no more is told apart"),
        ({"own_view": 0.2}, "learning", "20%"),  # masked methods tell images apart no better, and their loss falls
        ({"own_view": math.nan}, "diverged", "some of the features are not finite"),
        ({"rank": math.nan}, "diverged", "some of the features are not finite"),
        ({"own_view": 1.0, "own_view_start": 1.0, "heads": {}, "uniform_loss": None}, "learning", "100%"),
        ({"own_view": 0.2, "heads": {}, "uniform_loss": None}, "not learning yet", "no more is told apart"),
        ({"own_view": None, "own_view_start": None, "moved": None, "views": 0}, "learning", "loss is 3.000"),
    ],
)
def test_learning_is_better_than_the_start_and_than_no_information(
    change: dict[str, object], kind: str, word: str
) -> None:
    verdict = verdict_on(change, change, change)
    assert verdict[0] == kind
    assert word in verdict[1]


def test_one_bad_check_is_no_verdict() -> None:
    assert verdict_on({}, {"loss": 6.0}, {"loss": 6.0})[0] == "warming up"
    assert verdict_on({"moved": 1e-6}, {"moved": 1e-6}, {})[0] == "learning"


def test_views_that_find_their_own_image() -> None:
    one = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    other = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    assert own_view_share(torch.stack([one, one + 0.01 * other])) == 1.0
    assert not clearly_above(own_view_share(torch.stack([one, other])), 1 / 127, 128)
    assert own_view_share(torch.stack([one, one]) * 0 + 5) == 0.0, "a tie finds nothing"
    assert math.isnan(own_view_share(torch.stack([one, one * math.inf])))
    assert distance(one, one) == 0.0
    assert distance(2 * one, one) == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["vision_transformer", "resnet"])
def test_looking_at_held_back_views_changes_nothing(family: str, pictures: Path) -> None:
    """The same features each time, in networks with batch norms too, and no trace in them or in torch's generator."""
    method = build_method(resolved("dino", family, **{"backbone.drop_path": 0.0}))
    backbone = method.exported()
    held_back = HeldBack(
        open_source(str(pictures / "train")), ViewPlan((View("global1", 1, 32),)), 0, ([0.5] * 3, [0.2] * 3)
    )
    before = {name: value.clone() for name, value in method.state_dict().items()}
    modes, state = [module.training for module in method.modules()], torch.get_rng_state()
    first = held_back.features(backbone, 8)
    assert first is not None
    assert first.shape[:2] == (2, 48)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    backbone(torch.randn(4, 3, 32, 32))  # which moves running statistics
    again = held_back.features(backbone, 8)
    assert again is not None
    assert torch.equal(first, again)


def test_a_dead_learning_rate_is_named(pictures: Path, tmp_path: Path) -> None:
    done = pretrain(pictures / "train", tmp_path / "run", optim__lr=1e-12, optim__min_lr=0.0)
    assert done.verdict is not None
    assert done.verdict.kind == "not learning yet"
    assert "features are those of the start" in done.verdict.sentence
    assert "raise optim.lr (now 1e-12)" in done.verdict.sentence


@pytest.mark.parametrize("method", ["dino", "byol", "mae"])
def test_constant_images_teach_nothing(method: str, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for number in range(48):
        Image.fromarray(np.full((40, 40, 3), 120, np.uint8)).save(tmp_path / "flat" / f"{number}.png")
    done = run(
        load_config(
            flags=COMMON
            | FLAT
            | {"data.path": str(tmp_path / "flat"), "method.name": method}
            | {f"method.{key}": value for key, value in SMALL[method].items()}
        ),
        tmp_path / "run",
    )
    assert done.verdict is not None
    assert done.verdict.kind not in ("learning", "warming up")
    assert f", {done.verdict.kind}. " in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.parametrize("method", list_methods())
def test_every_advice_can_be_followed(method: str) -> None:
    """Each key exists, each value differs, and the configuration with it is accepted."""
    facts = Facts(images=300, side=64, colours=lambda: pytest.fail("given"), gpus=0, cpus=2, bfloat16=False)
    flags = {"data.path": "x", "method.name": method, "data.mean": [0.5] * 3, "data.std": [0.2] * 3}
    flags |= {f"method.{key}": value for key, value in NEEDED.get(method, {}).items()}
    config, _ = resolve_config(load_config(flags=flags), facts)
    found = advice_for(config)
    assert {"diverged", "not learning yet"} <= found.keys()
    for sentence in found.values():
        changes = re.findall(r"(lower|raise|set) ([a-z_]+\.[a-z_0-9]+)(?:=(\S+))? \(now (\S+)\)", sentence)
        assert changes, sentence
        for how, key, to, now in changes:
            value = setting(config, key)
            assert f"{value:g}" == now if isinstance(value, int | float) else str(value) == now
            new = to or (value * (2 if how == "raise" else 0.5))
            new = max(1, round(new)) if isinstance(value, int) else new
            assert new != value, f"{key} can't be changed so"
            load_config(flags=flags | {key: min(new, 0.99) if key.endswith("momentum") else new})


def test_advice_that_changes_nothing_is_not_given() -> None:
    facts = Facts(images=300, side=64, colours=lambda: pytest.fail("given"), gpus=0, cpus=2, bfloat16=False)
    flags = {"data.path": "x", "method.name": "dino", "data.mean": [0.5] * 3, "data.std": [0.2] * 3}
    config, _ = resolve_config(load_config(flags=flags), facts)  # batch norm, Sinkhorn and 32 bits already
    found = advice_for(config)
    assert "head_norm" not in found["uniform collapse"]
    assert "center_momentum" not in found["constant-output collapse"]
    assert "precision" not in found["diverged"]
    other, _ = resolve_config(
        load_config(
            flags=flags | {"method.head_norm": "none", "method.centering": "mean", "train.precision": "bf16-mixed"}
        ),
        facts,
    )
    found = advice_for(other)
    assert "set method.head_norm=batch (now none)" in found["uniform collapse"]
    assert "lower method.center_momentum (now 0.9)" in found["constant-output collapse"]
    assert "set train.precision=32-true (now bf16-mixed)" in found["diverged"]
