"""SimCLR, VICReg, VISReg and SIGReg against float64 re-derivations of their formulas, one loop after the other."""

from __future__ import annotations

import math
import multiprocessing
import socket
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes

from ssl_vit.backbones import create_backbone
from ssl_vit.errors import UserError
from ssl_vit.methods import config_class, method_class
from ssl_vit.methods.gaussian import directions
from ssl_vit.methods.joint import JointEmbedding
from ssl_vit.methods.method import Progress, Step
from ssl_vit.methods.sigreg import collapsed, sigreg
from ssl_vit.methods.visreg import visreg
from ssl_vit.training.health import Vitals, diagnose, feature_std, rank_me
from tests.methods.siamese import HIDDEN, OUT, SITUATION, SIZE, TOTAL, Tiny, array
from tests.methods.small import REAL, slope

IMAGES, SLICES, WORLD = 6, 7, 2
CROPS = {"local_crops": 3, "local_size": 4, "slices": SLICES}
OWN: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.3, "colour_strength": 1.0},
    "vicreg": {},
    "visreg": CROPS | {"weight": 0.6},
    "sigreg": CROPS | {"weight": 0.05},
}


def make(name: str) -> JointEmbedding:
    torch.manual_seed(0)
    config = config_class(name)(hidden_dim=HIDDEN, out_dim=OUT, scale=(0.2, 1.0), **OWN[name])
    made: JointEmbedding = method_class(name)(config, Tiny(), SIZE).double()
    return made


def batch(method: JointEmbedding, seed: int, part: int = 0, parts: int = 1) -> list[torch.Tensor]:
    """The crops of some of the images, crop-major."""
    g = torch.Generator().manual_seed(seed)
    found = []
    for view in method.views().views:
        crops = torch.randn(view.count, IMAGES, 3, view.size, view.size, generator=g, dtype=torch.float64)
        found.append(crops.chunk(parts, dim=1)[part].flatten(0, 1))
    return found


def step_of(method: JointEmbedding, seed: int) -> Step:
    return method(batch(method, seed), Progress(seed, TOTAL, 1))


def projections(method: JointEmbedding, seed: int) -> np.ndarray:
    """[V, N, P], through the projector as the method passes crops through it, by its own layers."""
    features = [view.mean((2, 3)) @ method.student.backbone.linear.weight.T for view in batch(method, seed)]
    features = [each + method.student.backbone.linear.bias for each in features]
    apart = features if method.config.name == "vicreg" else [torch.cat(features)]
    found = torch.cat([method.student.projector(each) for each in apart])
    return array(found).reshape(-1, IMAGES, OUT)


# --- the formulas ---------------------------------------------------------------------------------------------------


def simclr_loss(z: np.ndarray, temp: float) -> float:
    """Equation 1 of 2002.05709 for every view i and its pair j, k running over all but i."""
    unit = z.reshape(2 * IMAGES, OUT)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    terms = []
    for i in range(2 * IMAGES):
        weights = [math.exp(unit[i] @ other / temp) for other in unit]
        terms.append(-math.log(weights[(i + IMAGES) % (2 * IMAGES)] / (sum(weights) - weights[i])))
    return float(np.mean(terms))


def vicreg_loss(z: np.ndarray) -> float:
    """Equations 1 to 6 of 2105.04906 with its weights, as in its algorithm 1, which halves the two variances."""
    a, b = z
    invariance = np.mean((a - b) ** 2)
    variance = sum(np.maximum(0, 1 - np.sqrt(x.var(0, ddof=1) + 1e-4)).mean() for x in (a, b)) / 2
    covariance = 0.0
    for x in (a, b):
        c = np.cov(x, rowvar=False)
        covariance += (np.square(c).sum() - np.square(np.diag(c)).sum()) / OUT
    return float(25 * invariance + 25 * variance + covariance)


def visreg_cost(z: np.ndarray, along: np.ndarray) -> float:
    quantiles = [NormalDist().inv_cdf(i / (len(z[0]) + 1)) for i in range(1, len(z[0]) + 1)]
    costs = []
    for x in z:
        scaled = (x - x.mean(0)) / (x.std(0) + 1e-4)
        shape = np.mean([(np.sort(scaled @ v) - quantiles) ** 2 for v in along.T])
        costs.append(np.mean(x.mean(0) ** 2) + np.mean((1 - x.std(0)) ** 2) + shape)
    return float(np.mean(costs))


def sigreg_cost(z: np.ndarray, along: np.ndarray) -> float:
    """N times the weighted distance of the two characteristic functions over [-3, 3], by numpy's trapezoids."""
    t = np.linspace(-3, 3, 33)
    costs = []
    for x in z:
        for v in along.T:
            found = np.exp(1j * t[:, None] * (x @ v)).mean(1)
            costs.append(np.trapezoid(np.abs(found - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2), t) * len(x))
    return float(np.mean(costs))


def reference(method: JointEmbedding, seed: int) -> float:
    z, name = projections(method, seed), method.config.name
    if name == "simclr":
        return simclr_loss(z, 0.3)
    if name == "vicreg":
        return vicreg_loss(z)
    along = array(directions(OUT, SLICES, seed, torch.zeros((), dtype=torch.float64)))
    cost = visreg_cost(z, along) if name == "visreg" else sigreg_cost(z, along)
    invariance = np.mean((z - z[:2].mean(0)) ** 2)
    weight = method.config.weight  # type: ignore[attr-defined]  # of the two that have local crops
    return float((1 - weight) * invariance + weight * cost)


@pytest.mark.parametrize("name", OWN)
def test_the_loss_is_the_formula(name: str) -> None:
    method = make(name)
    for seed in range(3):
        assert step_of(method, seed).loss.item() == pytest.approx(reference(method, seed), rel=1e-10)


@pytest.mark.parametrize("name", OWN)
def test_the_gradient_is_the_derivative(name: str) -> None:
    """VISReg's too, but for the deviation by which it divides: that is a constant (its equation 2)."""
    method = make(name)
    step_of(method, 0).loss.backward()
    if name == "visreg":
        assert_gradient_of_a_held_deviation(method)
        return
    for key, place in {"student.backbone.linear.weight": (2, 1), "student.projector.0.weight": (3, 4)}.items():
        parameter = method.get_parameter(key)
        expected = slope(lambda: reference(method, 0), parameter, place)
        assert parameter.grad is not None
        assert parameter.grad[place].item() == pytest.approx(expected, rel=1e-5, abs=1e-8), key


def assert_gradient_of_a_held_deviation(method: JointEmbedding) -> None:
    """At one projection: by hand, with quantiles by rank."""
    z = torch.tensor(projections(method, 0), requires_grad=True)
    visreg(z, SLICES, 0).backward()
    along = array(directions(OUT, SLICES, 0, torch.zeros((), dtype=torch.float64)))
    held = [x.std(0) + 1e-4 for x in array(z)]

    def cost(x: np.ndarray) -> float:
        quantiles = [NormalDist().inv_cdf(i / (IMAGES + 1)) for i in range(1, IMAGES + 1)]
        scaled = (x - x.mean(0)) / held[1]
        shape = np.mean([(np.sort(scaled @ v) - quantiles) ** 2 for v in along.T])
        return float(np.mean(x.mean(0) ** 2) + np.mean((1 - x.std(0)) ** 2) + shape) / len(z)

    shift = np.zeros((IMAGES, OUT))
    shift[2, 1] = 1e-6
    expected = (cost(array(z)[1] + shift) - cost(array(z)[1] - shift)) / 2e-6
    assert z.grad is not None
    assert z.grad[1, 2, 1].item() == pytest.approx(expected, rel=1e-6)


# --- collapse -------------------------------------------------------------------------------------------------------


def test_the_regularisers_at_normal_numbers_and_at_a_collapse() -> None:
    normal = torch.randn(200, 64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = math.sqrt(2 * math.pi) * math.erf(3 / math.sqrt(2)) - math.sqrt(2 * math.pi / 3) * math.erf(
        3 * math.sqrt(1.5)
    )
    assert mean == pytest.approx(1.05, abs=0.005), "of the statistic, over draws"
    assert sigreg(normal, 64, 0).item() == pytest.approx(mean, abs=0.05)
    assert visreg(normal.reshape(1, -1, 32), 64, 0).item() < 0.01
    flat = torch.zeros(2, 64, 8, dtype=torch.float64, requires_grad=True)
    cost = sigreg(flat, 256, 0)
    assert cost.item() == pytest.approx(collapsed(64))
    assert collapsed(64) == pytest.approx(0.402 * 64, rel=1e-3)
    assert torch.autograd.grad(cost, flat)[0].abs().max() < 1e-12, "it does not leave by itself"
    near = (1e-6 * normal[:2]).requires_grad_()
    gradient = torch.autograd.grad(visreg(near, 256, 0), near)[0]
    assert torch.linalg.vector_norm(gradient) > 0.1, "VISReg's does"


@pytest.mark.parametrize("name", OWN)
def test_a_provoked_collapse_is_named(name: str) -> None:
    """A network that gives the same to all images: the verdict says so, and the method's sentence how far it is."""
    method = make(name)
    with torch.no_grad():
        method.student.backbone.linear.weight.zero_()
        if name != "simclr":  # its last batch norm makes noise of rounding
            for layer in method.student.projector:
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.zero_()
    history = []
    for number in range(1, 4):
        step = step_of(method, 0)
        parts = {key: value.item() for key, value in step.parts.items()}
        assert step.embedding is not None
        vitals = Vitals(
            number, 0, step.loss.item(), method.uniform_loss, feature_std(step.embedding), rank_me(step.embedding)
        )
        history.append(replace(vitals, blind_loss=parts.get("blind_loss"), remark=method.remark(parts)))
    verdict = diagnose(history, {})
    assert verdict.kind == "constant-output collapse"
    at = {"vicreg": "spread 0.00 of 1", "visreg": "spread 0.00 of 1", "sigreg": f"{0.402 * IMAGES:.1f}: all images"}
    assert at.get(name, "other view first") in verdict.sentence


def test_simclr_without_information_costs_the_logarithm_of_the_other_views() -> None:
    method = make("simclr")
    step = step_of(method, 0)
    assert method.uniform_loss == math.log(2 * IMAGES - 1)
    assert step.parts["blind_loss"].item() == pytest.approx(math.log(2 * IMAGES - 1))
    same = torch.ones(2, IMAGES, OUT, dtype=torch.float64)
    assert method.compare(same, Progress(0, TOTAL, 1))[0].item() == pytest.approx(math.log(2 * IMAGES - 1))


# --- as a method of the package ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("network", REAL)
def test_it_learns_on_each_kind_of_network(name: str, network: str) -> None:
    torch.manual_seed(0)
    local = {"local_size": 32} if name in ("visreg", "sigreg") else {}
    config = config_class(name)(hidden_dim=32, out_dim=16, scale=(0.2, 1.0), **OWN[name] | local)
    method = method_class(name)(config, create_backbone(network, model_args=REAL[network]), 64)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3)
    views = [torch.randn(view.count * 8, 3, view.size, view.size) for view in method.views().views]
    losses = []
    for _ in range(5):
        step = method(views, Progress(0, TOTAL, 1))
        optimizer.zero_grad()
        step.loss.backward()
        assert not [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None]
        optimizer.step()
        losses.append(step.loss.item())
    assert losses[-1] < losses[0]
    assert step.embedding is not None
    assert step.embedding.shape == (8, method.exported().info.dim)
    assert all(part.isfinite() and part.ndim == 0 for part in step.parts.values())


def two_steps(name: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Loss and gradients, mean over processes, and the buffers, after two steps of SGD."""
    method = make(name)
    found = {}
    for step in range(2):
        out = method(batch(method, step, rank, world), Progress(step, TOTAL, 1))
        method.zero_grad()
        out.loss.backward()
        trained = {key: p for key, p in method.named_parameters() if p.requires_grad}
        for p in [out.loss.detach(), *(p.grad for p in trained.values())]:
            assert p is not None
            if world > 1:
                dist.all_reduce(p)
            p /= world
        found[f"loss {step}"] = out.loss.detach()
        with torch.no_grad():
            for p in trained.values():
                assert p.grad is not None
                p -= 0.1 * p.grad
    return found | method.state_dict()


def _rank(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORLD)
    torch.save({name: two_steps(name, rank, WORLD) for name in OWN}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["ssl_vit.run.pretrain"])
    start_processes(_rank, (port, str(tmp_path)), nprocs=WORLD, start_method="forkserver")
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name in OWN:
            alone = two_steps(name, 0, 1)
            assert found[name].keys() == alone.keys()
            for key, wanted in alone.items():
                torch.testing.assert_close(found[name][key], wanted, rtol=0, atol=1e-9, msg=f"{name}: {key}")


@pytest.mark.parametrize("name", OWN)
def test_a_single_image_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"train.batch_size: {name} compares images with each other; set at least 4"):
        config_class(name)().check(replace(SITUATION, batch_size=3, parts=2))


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_says_what_it_is_for(name: str) -> None:
    large = config_class(name)().choose(SITUATION)
    small = config_class(name)().choose(replace(SITUATION, images=2000, image_size=32, dim=128, batch_size=64))
    assert large["method.scale"][0] == ((0.3, 1.0) if name in ("visreg", "sigreg") else (0.08, 1.0))
    assert small["method.scale"] == ((0.3, 1.0), "less of so small an image shows nothing")
    assert "small set" in small["optim.lr"][1]
    convolutional = config_class(name)().choose(replace(SITUATION, images=2000, kind="convolutional"))
    assert convolutional["optim.optimizer"][0] == ("adamw" if name in ("visreg", "sigreg") else "sgd")
    if name in ("visreg", "sigreg"):
        assert large["method.local_crops"] == (6, "papers")
        assert small["method.local_crops"][0] == 0
