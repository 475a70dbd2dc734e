"""Optimisers and schedules: Adafactor against its paper's update, groups by layer and head, rates by the step alone."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ssl_vit.backbones import create_backbone
from ssl_vit.errors import UserError
from ssl_vit.run.prepare import build_method
from ssl_vit.schedules import held, rsqrt
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.optim import make_optimizer, parameter_groups, set_hyperparameters
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.runs import process_of
from tests.test_families_train import resolved
from tests.training.test_accumulate import RECIPE


def rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """To bfloat16 and back: the upper half of a float32, to the nearest, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + 0x7FFF + ((bits >> 16) & 1)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("shape", [(40, 36), (7,)], ids=["factored", "whole"])
def test_adafactor_is_the_update_of_the_paper(shape: tuple[int, ...]) -> None:
    """2106.04560: squares factored, their share 1 - t^-0.8 but at most 0.999, momentum 0.9 kept in bfloat16."""
    rng, lr, decay = np.random.default_rng(0), 0.01, 0.1
    module = nn.Module()
    module.weight = nn.Parameter(torch.from_numpy(rng.normal(size=shape).astype(np.float32)))
    by_hand = module.weight.detach().numpy().astype(np.float32).copy()
    optimizer = make_optimizer(module, "adafactor", lr)
    set_hyperparameters(optimizer, lr, decay)
    rows, columns, whole = 0.0, 0.0, 0.0
    momentum = np.zeros(shape, np.float32)
    for step in range(1, 6):
        gradient = rng.normal(size=shape).astype(np.float32)
        module.weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
        beta2 = min(0.999, 1 - step**-0.8)
        squares = gradient**2 + 1e-30
        if len(shape) == 2:
            rows = beta2 * rows + (1 - beta2) * squares.mean(1, keepdims=True)
            columns = beta2 * columns + (1 - beta2) * squares.mean(0, keepdims=True)
            update = gradient / np.sqrt(rows * columns / np.mean(rows))
        else:
            whole = beta2 * whole + (1 - beta2) * squares
            update = gradient / np.sqrt(whole)
        momentum = rounded(momentum + np.float32(0.1) * (rounded(update.astype(np.float32)) - momentum))
        by_hand = by_hand * (1 - (lr * decay if len(shape) == 2 else 0.0)) - lr * momentum
        kept = optimizer.state[module.weight]["exp_avg"]
        assert kept.dtype == torch.bfloat16
        np.testing.assert_allclose(kept.float().numpy(), momentum, rtol=2**-7, atol=1e-6)
    np.testing.assert_allclose(module.weight.detach().numpy(), by_hand, rtol=0, atol=1e-4)
    assert float(np.abs(by_hand).max()) > 0.1


def test_the_share_of_old_squares_is_capped() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.zeros(3))
    optimizer = make_optimizer(module, "adafactor", 0.0)
    module.weight.grad = torch.zeros(3)
    optimizer.step()
    optimizer.state[module.weight]["step"].fill_(10**6)
    module.weight.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[module.weight]["exp_avg_sq"].tolist() == pytest.approx([1e-3] * 3, rel=1e-3)


def test_layers_learn_the_slower_the_deeper_they_lie_and_heads_decay_apart() -> None:
    model = nn.Module()
    args = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    model.backbone = create_backbone("vit_tiny_patch16_224", image_size=32, model_args=args)
    model.head = nn.Linear(32, 8)
    optimizer = make_optimizer(model, "adamw", 1.0, layer_decay=0.5, head_weight_decay=3.0)
    set_hyperparameters(optimizer, 1.0, 0.03)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    net = model.backbone.model
    rates = [found[id(p)]["lr"] for p in (net.patch_embed.proj.weight, net.blocks[0].mlp.fc1.weight)]
    rates += [found[id(p)]["lr"] for p in (net.blocks[1].mlp.fc1.weight, net.norm.weight, model.head.weight)]
    assert rates == sorted(rates)
    assert rates[2] == 2 * rates[1] == 4 * rates[0]
    assert rates[-1] == 1
    decays = [found[id(p)]["weight_decay"] for p in (net.blocks[0].mlp.fc1.weight, model.head.weight, model.head.bias)]
    assert decays == [0.03, 3.0, 0.0]
    assert sum(len(group["params"]) for group in parameter_groups(model, 0.5, 3.0)) == len(list(model.parameters()))


@pytest.mark.parametrize("name", ["adafactor", "lamb", "lars", "lion", "muon", "schedulefree"])
def test_other_optimisers_train_and_go_on(name: str) -> None:
    """Two steps, one of them after the state went through a checkpoint: the same to the bit."""
    more = {"optim.optimizer": name, "optim.lr": 1e-3, "optim.min_lr": 0.0}
    more |= {"optim.schedule": "constant"} if name == "schedulefree" else {}
    config = resolved("mae", "vision_transformer", **RECIPE | more)
    states = []
    for kept in (False, True):
        torch.manual_seed(0)
        method = build_method(config)
        learner = Learner(new_fabric(config.train), method, config, per_epoch=2, total=4)
        (view,) = method.views().views
        batch = ReadyViews([torch.randn(4, 3, view.size, view.size, generator=torch.Generator().manual_seed(1))])
        before = {key: value.clone() for key, value in method.state_dict().items()}
        assert take_step(learner, batch, 0).taken
        if kept:
            learner.optimizer.load_state_dict(learner.optimizer.state_dict())
        assert take_step(learner, batch, 1).taken
        states.append(method.state_dict())
    assert any(not value.equal(before[key]) for key, value in states[0].items())
    for key, value in states[0].items():
        assert value.equal(states[1][key]), key


def test_schedule_free_shows_the_average() -> None:
    """Beside a hand-written AdamW (2405.15682, algorithm 1): z is trained, x its average, gradients are taken at y."""
    free = {"optim.optimizer": "schedulefree", "optim.schedule": "constant", "optim.lr": 0.1, "optim.min_lr": 0.0}
    free |= {"optim.beta2": 0.99, "optim.weight_decay": 0.0, "optim.weight_decay_end": 0.0, "optim.clip": 0.0}
    config = resolved("mae", "vision_transformer", **RECIPE | free)
    method = build_method(config).double()
    learner = Learner(new_fabric(config.train), method, config, per_epoch=2, total=4)
    learner.warmup = 3
    weight = method.exported().get_parameter("model.patch_embed.proj.weight")
    z = x = y = weight.detach().clone()
    square, rates = torch.zeros_like(y), []
    for step in range(4):
        gradient = torch.randn(y.shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        weight.grad = gradient.clone()
        set_hyperparameters(learner.optimizer, learner.learning_rate(step), 0.0)
        learner.step_optimizer()
        square = 0.99 * square + 0.01 * gradient**2
        rates.append(learner.learning_rate(step))
        z = z - rates[-1] * gradient / ((square / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8)
        share = rates[-1] ** 2 / max(sum(rate**2 for rate in rates), 1e-30)
        x = (1 - share) * x + share * z
        y = 0.1 * z + 0.9 * x
        torch.testing.assert_close(weight.detach(), y, rtol=0, atol=1e-12)
        before, shown = weight.detach().clone(), learner.whole()
        seen = shown.exported().get_parameter("model.patch_embed.proj.weight")
        torch.testing.assert_close(seen.detach(), x, rtol=0, atol=1e-12)
        assert weight.equal(before), "looking changes nothing that is trained"
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.1])
    assert not torch.allclose(x, y)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, r"optim\.schedule: cosine; schedulefree wants no schedule .* set optim\.schedule=constant"),
        ({"optim.schedule": "constant", "train.ema": 0.9}, r"schedulefree gives the average .* already"),
        ({"train.strategy": "fsdp"}, r"optim\.optimizer: schedulefree needs whole weights"),
        ({"train.strategy": "fsdp", "optim.optimizer": "muon"}, r"optim\.optimizer: muon needs whole weights"),
    ],
)
def test_what_does_not_go_with_an_optimiser_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolved("mae", "vision_transformer", **{"optim.optimizer": "schedulefree"} | more)


def test_without_the_package_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_vit.run.techniques.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'ssl_vit\[schedulefree\]'"):
        resolved("mae", "vision_transformer", **{"optim.optimizer": "schedulefree", "optim.schedule": "constant"})


SHARDED = ("adamw", "sgd", "adafactor", "lamb", "lars", "lion")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 4, 4), nn.Flatten(), nn.Linear(128, 48), nn.LayerNorm(48), nn.Linear(48, 33)
    ).double()


def trained(model: nn.Module, name: str, rank: int = 0, world: int = 1) -> list[Tensor]:
    """Its weights after four steps on a share of the images."""
    optimizer = make_optimizer(model, name, 0.01)
    for step in range(4):
        set_hyperparameters(optimizer, 0.01, 0.1)
        images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(step)).double()
        model(images.chunk(world)[rank]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return list(model.parameters())


def one_of_two(rank: int, port: str, place: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    mesh, found = init_device_mesh("cpu", (2,)), {}
    for name in SHARDED:
        model = small()
        fully_shard(model[2], mesh=mesh)
        fully_shard(model, mesh=mesh)
        found[name] = [each.full_tensor().detach() for each in trained(model, name, rank, 2)]  # type: ignore[attr-defined]
    if rank == 0:
        torch.save(found, place)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.dist
def test_sharded_weights_are_trained_as_whole_ones(tmp_path: Path) -> None:
    """Every optimiser that is not refused, four steps in two processes against one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    two = [process_of(one_of_two, rank, port, str(tmp_path / "found")) for rank in (0, 1)]
    for process in two:
        process.join()
    assert [process.exitcode for process in two] == [0, 0]
    found = torch.load(tmp_path / "found", weights_only=True)
    for name in SHARDED:
        for one, each in zip(trained(small(), name), found[name], strict=True):
            torch.testing.assert_close(each, one.detach(), rtol=0, atol=1e-4 if name == "adafactor" else 1e-12)


@pytest.mark.parametrize("function", [held, rsqrt])
def test_a_run_may_be_cooled_down_anywhere(function: Any) -> None:
    """Until the cool-down a rate knows nothing of the run's length."""
    for step in range(80):
        assert function(1.0, 0.1, step, 100, 10, 20) == function(1.0, 0.1, step, 1000, 10, 20)
    assert function(1.0, 0.1, 100, 100, 10, 20) == pytest.approx(0.1)
    assert function(1.0, 0.1, 40, 1000, 10, 0) == pytest.approx(1.0 if function is held else 0.5)


def test_schedules_are_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {}
    for name in ("cosine", "rsqrt", "wsd", "constant"):
        more = {"optim.schedule": name, "optim.warmup_epochs": 1.0, "train.epochs": 10, "optim.min_lr": 0.0}
        config = resolved("mae", "vision_transformer", **RECIPE | more)
        learner = Learner(new_fabric(config.train), build_method(config), config, per_epoch=10, total=100)
        rates[name] = [learner.learning_rate(step) for step in (0, 10, 40, 79, 90, 99)]
        assert config.optim.cooldown_epochs == (2.0 if name in ("rsqrt", "wsd") else 0.0)
    assert rates["constant"] == [0.0, *[0.1] * 5]
    assert rates["wsd"] == pytest.approx([0.0, 0.1, 0.1, 0.1, 0.05, 0.005])
    assert rates["rsqrt"] == pytest.approx([0.0, 0.1, 0.05, 0.1 / 7.9**0.5, 0.05 / 3, 0.005 / 9.9**0.5])
    assert rates["cosine"][1] == 0.1


def test_a_schedule_longer_than_the_run_is_refused() -> None:
    more = {"optim.schedule": "wsd", "optim.warmup_epochs": 3.0, "optim.cooldown_epochs": 4.0, "train.epochs": 5}
    with pytest.raises(
        UserError, match=r"optim\.schedule: wsd takes 3 epochs of warm-up and 4 of cool-down in a run of 5"
    ):
        resolved("mae", "vision_transformer", **more)


def test_lars_shares_a_batch_among_parts() -> None:
    more = {"optim.optimizer": "lars", "optim.lr": 1.0, "train.batch_size": 8, "train.accumulate": 3}
    with pytest.raises(UserError, match=r"train\.accumulate = 3 parts; set a multiple of 3"):
        resolved("mae", "vision_transformer", **more)
