"""MoCo v3 against a float64 re-derivation of its algorithm 1 (2104.02057)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.errors import UserError
from ssl_vit.methods.method import Progress
from ssl_vit.methods.mocov3 import MoCoV3
from ssl_vit.methods.mocov3_config import Config
from tests.methods.siamese import (
    HIDDEN,
    IMAGES,
    OUT,
    SITUATION,
    SIZE,
    TOTAL,
    Tiny,
    array,
    assert_gradient_is_the_derivative,
    assert_one_step_trains,
    assert_resumes_exactly,
    assert_teacher_is_left_alone,
    averaged,
    batch,
    queries_and_keys,
    train_step,
)
from tests.methods.small import REAL

TEMP = 0.3


def make() -> MoCoV3:
    torch.manual_seed(0)
    config = Config(hidden_dim=HIDDEN, out_dim=OUT, temperature=TEMP, momentum=0.9)
    return MoCoV3(config, Tiny(), SIZE).double()


def contrast(q: np.ndarray, k: np.ndarray) -> float:
    """2τ · cross-entropy of softmax(q kᵀ / τ), the label of row i being i."""
    terms = []
    for i, query in enumerate(q):
        weights = [math.exp(query @ key / TEMP) for key in k]
        terms.append(-math.log(weights[i] / sum(weights)))
    return 2 * TEMP * float(np.mean(terms))


def reference_loss(method: MoCoV3, seed: int) -> float:
    (q1, q2), (k1, k2) = queries_and_keys(method, batch(seed))
    return contrast(q1, k2) + contrast(q2, k1)


def test_loss_and_teacher_equal_the_formulas_for_three_steps() -> None:
    method = make()
    for step in range(3):
        expected = reference_loss(method, step)
        before = [array(p).copy() for p in method.teacher.parameters()]
        assert train_step(method, step) == pytest.approx(expected, abs=1e-12)
        # Algorithm 1 moves the teacher after the step; its momentum is the one of the step that will use the teacher.
        for found, wanted in zip(method.teacher.parameters(), averaged(method, before, 0.9, step + 1), strict=True):
            np.testing.assert_allclose(array(found), wanted, atol=1e-12)


def test_gradient_is_the_derivative_of_the_formula() -> None:
    method = make()
    assert_gradient_is_the_derivative(method, lambda: reference_loss(method, 0))


def test_teacher_takes_no_gradient() -> None:
    assert_teacher_is_left_alone(make())


def test_resumes_exactly() -> None:
    assert_resumes_exactly(make)


def test_every_layer_of_both_heads_is_normed_and_the_output_without_scale() -> None:
    """The paper's heads: a projector of three layers and a predictor of two, batch norm after each."""
    method = make()
    for head, layers in ((method.student.projector, 3), (method.predictor, 2)):
        kinds = [type(layer).__name__ for layer in head]
        assert kinds == ["Linear", "GlobalBatchNorm1d", "ReLU"] * (layers - 1) + ["Linear", "GlobalBatchNorm1d"]
        output = head(torch.randn(64, head[0].in_features, dtype=torch.float64))
        np.testing.assert_allclose(array(output.mean(0)), 0, atol=1e-12)
        np.testing.assert_allclose(array(output.var(0, correction=0)), 1, atol=1e-2)


def test_loss_without_information_is_that_of_equal_logits() -> None:
    method = make()
    method.teacher.projector[6].weight.data.zero_()  # the output's batch norm then gives 0: all logits are equal
    out = method(batch(0), Progress(0, TOTAL, 1))
    assert out.loss.item() == pytest.approx(4 * TEMP * math.log(IMAGES), abs=1e-12) == method.uniform_loss


def test_own_key_first_is_the_share_of_images_found() -> None:
    method = make()
    (q1, q2), (k1, k2) = queries_and_keys(method, batch(3))
    hits = [np.argmax(q @ k.T, axis=1) == np.arange(IMAGES) for q, k in ((q1, k2), (q2, k1))]
    found = method(batch(3), Progress(0, TOTAL, 1)).parts["own_key_first"].item()
    assert found == pytest.approx(np.mean(hits))
    assert 0 < found < 1


@pytest.mark.parametrize("name", REAL)
def test_one_step_trains(name: str) -> None:
    assert_one_step_trains(MoCoV3, Config(hidden_dim=32, out_dim=16, momentum=0.99, scale=(0.08, 1.0)), name)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_patch_projection_stays_as_drawn(frozen: bool) -> None:
    backbone = create_backbone("vit_tiny_patch16_224", model_args=REAL["vit_tiny_patch16_224"])
    method = MoCoV3(Config(hidden_dim=8, out_dim=4, freeze_patch_embedding=frozen), backbone, 64)
    still = {name for name, p in method.student.named_parameters() if not p.requires_grad}
    projection = {"backbone.model.patch_embed.proj.weight", "backbone.model.patch_embed.proj.bias"}
    assert still == (projection if frozen else set())


def test_the_recipe_is_the_published_one() -> None:
    chosen = {key: value for key, (value, _) in Config().choose(replace(SITUATION, batch_size=4096)).items()}
    assert chosen.pop("method.scale") == (0.08, 1.0)
    assert chosen == pytest.approx(
        {
            "method.momentum": 0.99,
            "optim.optimizer": "adamw",
            "optim.lr": 2.4e-3,  # 1.5e-4 x 4096 / 256
            "optim.beta2": 0.999,
            "optim.min_lr": 0.0,
            "optim.weight_decay": 0.1,
            "optim.weight_decay_end": 0.1,
            "optim.warmup_epochs": 40.0,
            "optim.clip": 0.0,
            "backbone.drop_path": 0.0,
        }
    )
    assert Config().choose(replace(SITUATION, kind="convolutional"))["optim.optimizer"][0] == "sgd"


def test_a_batch_of_one_is_refused() -> None:
    with pytest.raises(UserError, match=r"^train\.batch_size: mocov3 .* set at least 2$"):
        Config().check(replace(SITUATION, batch_size=1))
