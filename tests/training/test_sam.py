"""Sharpness-aware steps: the two passes of the paper, on the same views, and nothing else moves twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ssl_vit.config import ResolvedConfig, load_config
from ssl_vit.data.batch import Batch, to_views
from ssl_vit.data.loader import build_loader
from ssl_vit.data.sources import open_source
from ssl_vit.errors import ConfigError, UserError
from ssl_vit.methods.method import Method
from ssl_vit.run.prepare import build_method
from ssl_vit.schedules import noise_seed
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.sam import ascended
from ssl_vit.training.step import Learner, take_step
from tests.methods.settings import COMMON, SMALL
from tests.runs import finish, finish_two, losses
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE

RHO, STEPS = 0.3, 2
SLOW = pytest.mark.slow
CASES = [
    ("mae", "vision_transformer"),
    ("moby", "vision_transformer"),
    *(pytest.param(name, "vision_transformer", marks=SLOW) for name in ("dino", "beit")),
    *(pytest.param(name, "swin_transformer", marks=SLOW) for name in ("dino", "moby", "beit")),
    *(pytest.param(name, "mlp_mixer", marks=SLOW) for name in ("dino", "moby", "beit")),
]


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(*args: Any, **kwargs: Any) -> list[Tensor]:
        return [view.double() for view in to_views(*args, **kwargs)]

    monkeypatch.setattr("ssl_vit.training.step.to_views", of)


def new(name: str, family: str, **more: Any) -> tuple[ResolvedConfig, Method]:
    """A method in float64, with noise: paths are dropped and patches hidden."""
    config = resolved(
        name,
        family,
        **RECIPE | {"optim.clip": 0.0, "optim.lr": 0.01, "optim.min_lr": 0.01, "backbone.drop_path": 0.2} | more,
    )
    torch.manual_seed(0)
    return config, build_method(config).double()


def batches(method: Method, pictures: Path) -> Iterator[Batch]:
    loader = build_loader(open_source(str(pictures / "train")), method.views(), batch_size=8, seed=0, total_steps=STEPS)
    yield from loader


def plainly(config: ResolvedConfig, method: Method, pictures: Path) -> list[float]:
    """Descend with momentum as the paper says it: at w + rho g / |g|, the gradient that moves w; each loss at w."""
    trained = [p for p in method.parameters() if p.requires_grad]
    velocity, found = [torch.zeros_like(p) for p in trained], []
    learner = Learner(new_fabric(config.train), method, config, per_epoch=6, total=STEPS)

    def gradient(views: list[Tensor], step: int) -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(noise_seed(config.train.seed, step, 0))
        loss = method(views, learner.progress(step)).loss
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        return loss, [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, trained, strict=True)]

    for step, batch in enumerate(batches(method, pictures)):
        views = [each.double() for each in learner.views(batch)]
        loss, first = gradient(views, step)
        found.append(float(loss.detach()))
        kept = {key: value.clone() for key, value in method.named_buffers()}
        norm = sum(float(g.square().sum()) for g in first) ** 0.5
        before = [p.detach().clone() for p in trained]
        with torch.no_grad():
            for p, g in zip(trained, first, strict=True):
                p += RHO * g / norm
        _, second = gradient(views, step)
        with torch.no_grad():
            for p, old, g, v in zip(trained, before, second, velocity, strict=True):
                v.mul_(0.9).add_(g)
                p.copy_(old - config.optim.lr * v)
            for key, value in method.named_buffers():
                value.copy_(kept[key])
        method.after_step(learner.progress(step))
    return found


@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_step_is_the_plain_two_passes(name: str, family: str, pictures: Path) -> None:
    config, method = new(name, family, **{"optim.sam_rho": RHO})
    learner = Learner(new_fabric(config.train), method, config, per_epoch=6, total=STEPS)
    found = [take_step(learner, batch, step).loss for step, batch in enumerate(batches(method, pictures))]
    _, other = new(name, family)
    assert found == pytest.approx(plainly(config, other, pictures), rel=0, abs=1e-12)
    assert len(set(found)) == STEPS
    expected = other.state_dict()
    for key, value in method.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-12, msg=key)
    config, plain = new(name, family)
    learner = Learner(new_fabric(config.train), plain, config, per_epoch=6, total=STEPS)
    for step, batch in enumerate(batches(plain, pictures)):
        take_step(learner, batch, step)
    apart = max(float((plain.state_dict()[key] - value).abs().max()) for key, value in method.state_dict().items())
    assert apart > 1e-6, "two passes that do what one does prove nothing"


@pytest.mark.usefixtures("doubles")
def test_parts_ascend_together(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worst point is that of the whole batch, in however many parts it comes."""
    states = []
    for parts in (1, 2):
        plain = {"method.head_norm": "none", "method.centering": "mean", "backbone.drop_path": 0.0}
        config, method = new("dino", "vision_transformer", **plain | {"optim.sam_rho": RHO, "train.accumulate": parts})
        learner = Learner(new_fabric(config.train), method, config, per_epoch=6, total=STEPS)
        for step, batch in enumerate(batches(method, pictures)):
            take_step(learner, batch, step)
        states.append(method.state_dict())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=0, atol=1e-10, msg=key)


def test_weights_and_buffers_come_back_to_the_bit() -> None:
    """Statistics move in the pass at the weights themselves, and not in the one beside them."""
    config = resolved("moby", "resnet", **RECIPE | {"optim.sam_rho": RHO})
    torch.manual_seed(0)
    method = build_method(config)
    learner = Learner(new_fabric(config.train), method, config, per_epoch=6, total=STEPS)
    views = [torch.randn(view.count * 4, 3, view.size, view.size) for view in method.views().views]
    method(views, learner.progress(0)).loss.backward()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    norm = torch.stack([p.grad.norm() for p in method.parameters() if p.grad is not None]).norm()
    assert norm > 0
    with ascended(method, learner.progress(0), RHO, learner.ascent):
        moved = [value - before[key] for key, value in method.named_parameters()]
        assert float(torch.stack([each.detach().norm() for each in moved]).norm()) == pytest.approx(RHO, rel=1e-4)
        assert all(p.grad is None for p in method.parameters())
        method(views, learner.progress(0))
        tracked = next(module for module in method.modules() if isinstance(module, nn.BatchNorm2d))
        assert int(tracked.num_batches_tracked) == 4, "two views, twice"
    for key, value in method.state_dict().items():
        assert value.equal(before[key]), key


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"optim.sam_rho": 0.1, "train.precision": "16-mixed"}, "optim.sam_rho: 0.1; its two gradients can't share"),
        ({"optim.sam_rho": 0.1, "train.strategy": "fsdp"}, "optim.sam_rho: 0.1; .* set optim.sam_global=true"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolved("dino", "vision_transformer", **settings)


def test_a_negative_rho_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.sam_rho"):
        load_config(flags={"data.path": "nowhere", "optim.sam_rho": -0.1})


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("ascent", [True, False], ids=["global", "each its own"])
def test_two_processes(ascent: bool, pictures: Path, tmp_path: Path) -> None:
    """Together they do what one does; each by itself they go to other points, and stay together all the same."""
    settings = COMMON | {"method.name": "mae", "backbone.drop_path": 0.0, "optim.sam_rho": RHO, "optim.lr": 1e-4}
    settings |= {f"method.{key}": value for key, value in SMALL["mae"].items()} | {"optim.sam_global": ascent}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    one, two = (["pretrain", str(pictures / "train"), "--out", str(tmp_path / name), *sets] for name in ("one", "two"))
    assert finish_two(two, tmp_path / "said2") == [0, 0], (tmp_path / "said2").read_text()
    assert finish(one, tmp_path / "said1") == 0, (tmp_path / "said1").read_text()
    assert len(losses(tmp_path / "one")) == len(losses(tmp_path / "two")) == 12
