"""MoBY against a float64 re-derivation of its formulas (2105.04553, section 3); tests/golden has its official heads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_vit.errors import UserError
from ssl_vit.methods.method import Progress
from ssl_vit.methods.moby import MoBY
from ssl_vit.methods.moby_config import Config
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

QUEUE = 8


def make() -> MoBY:
    torch.manual_seed(0)
    config = Config(queue_size=QUEUE, hidden_dim=HIDDEN, out_dim=OUT, temperature=0.3, momentum=0.9)
    return MoBY(config, Tiny(), SIZE).double()


def info_nce(q: np.ndarray, k: np.ndarray, queue: np.ndarray, temp: float) -> float:
    """Equation 1: -log(exp(q·k+ / τ) / Σ_i exp(q·k_i / τ)), mean over images, the sum over k+ and the queue."""
    terms = []
    for query, key in zip(q, k, strict=True):
        own = math.exp(query @ key / temp)
        terms.append(-math.log(own / (own + sum(math.exp(query @ other / temp) for other in queue))))
    return float(np.mean(terms))


def reference_loss(method: MoBY, seed: int) -> tuple[float, list[np.ndarray]]:
    (q1, q2), keys = queries_and_keys(method, batch(seed))
    queue1, queue2 = array(method.queue1), array(method.queue2)
    return info_nce(q1, keys[1], queue2, 0.3) + info_nce(q2, keys[0], queue1, 0.3), keys


def test_loss_queues_and_teacher_equal_the_formulas_for_three_steps() -> None:
    method = make()
    for step in range(3):
        expected, keys = reference_loss(method, step)
        queues = [array(method.queue1).copy(), array(method.queue2).copy()]
        before = [array(p).copy() for p in method.teacher.parameters()]
        assert train_step(method, step) == pytest.approx(expected, abs=1e-12)
        for queue, key, found in zip(queues, keys, (method.queue1, method.queue2), strict=True):
            start = (step * IMAGES) % QUEUE  # first in, first out: 0, 4, 0
            queue[start : start + IMAGES] = key
            np.testing.assert_allclose(array(found), queue, atol=1e-12)
        # The official code averages with the momentum of step k before it makes the keys of step k.
        for found, wanted in zip(method.teacher.parameters(), averaged(method, before, 0.9, step + 1), strict=True):
            np.testing.assert_allclose(array(found), wanted, atol=1e-12)


def test_gradient_is_the_derivative_of_the_formula() -> None:
    method = make()
    assert_gradient_is_the_derivative(method, lambda: reference_loss(method, 0)[0])


def test_teacher_takes_no_gradient() -> None:
    assert_teacher_is_left_alone(make())


def test_resumes_exactly() -> None:
    assert_resumes_exactly(make)


def test_loss_without_information_is_that_of_equal_logits() -> None:
    method = make()
    with torch.no_grad():
        method.queue1.copy_(method.queue1[:1].expand(QUEUE, OUT))
        method.queue2.copy_(method.queue1)
        method.teacher.projector[3].weight.zero_()
        method.teacher.projector[3].bias.copy_(method.queue1[0])
    assert method(batch(0), Progress(0, TOTAL, 1)).loss.item() == pytest.approx(method.uniform_loss, abs=1e-7)


def test_parts_say_how_full_the_queue_is_and_whether_keys_are_found() -> None:
    method = make()
    found = [method(batch(0), Progress(step, TOTAL, 1)).parts for step in range(4)]
    assert [part["queue_filled"].item() for part in found] == [0.0, 0.5, 1.0, 1.0]
    momentum = [1 - 0.1 * (1 + math.cos(math.pi * step / TOTAL)) / 2 for step in range(4)]
    ages = [0, 1, 2, 2]
    stale = [1 - m**age for m, age in zip(momentum, ages, strict=True)]
    assert [part["queue_stale"].item() for part in found] == pytest.approx(stale)
    (q1, q2), (k1, k2) = queries_and_keys(method, batch(0))
    contrasts = (q1, k2, array(method.queue2)), (q2, k1, array(method.queue1))
    hits = [(q * k).sum(1) > (q @ queue.T).max(1) for q, k, queue in contrasts]
    assert found[0]["own_key_first"].item() == pytest.approx(np.mean(hits))
    assert 0 < np.mean(hits) < 1


@pytest.mark.parametrize("name", REAL)
def test_one_step_trains(name: str) -> None:
    assert_one_step_trains(
        MoBY, Config(queue_size=16, hidden_dim=32, out_dim=16, momentum=0.99, scale=(0.08, 1.0)), name
    )


def test_a_queue_that_batches_do_not_fill_is_refused_in_one_line() -> None:
    with pytest.raises(
        UserError, match=r"^method\.queue_size: 4096 keys [^\n]* 48 [^\n]*method\.queue_size=4080[^\n]*$"
    ):
        Config(queue_size=4096).check(replace(SITUATION, batch_size=48))
    Config(queue_size=4096).check(SITUATION)


@pytest.mark.parametrize(
    ("images", "batch_size", "size"),
    [(1_281_167, 512, 4096), (1_281_167, 48, 4080), (7_659, 64, 512), (1_000, 64, 192), (100, 64, 64)],
)
def test_the_chosen_queue_is_filled_by_whole_batches(images: int, batch_size: int, size: int) -> None:
    given = replace(SITUATION, images=images, batch_size=batch_size)
    assert Config().choose(given)["method.queue_size"][0] == size
    Config(queue_size=size).check(given)


def test_few_and_small_images_get_a_quicker_teacher_and_larger_crops() -> None:
    chosen = Config().choose(replace(SITUATION, images=7_659, steps=500, image_size=64))
    assert chosen["method.momentum"][0] == 0.9
    assert chosen["method.scale"][0] == (0.4, 1.0)


def test_the_recipe_is_the_published_one() -> None:
    chosen = {key: value for key, (value, _) in Config().choose(SITUATION).items()}
    assert chosen.pop("method.scale") == (0.08, 1.0)
    assert chosen == pytest.approx(
        {
            "method.queue_size": 4096,
            "method.momentum": 0.99,
            "optim.optimizer": "adamw",
            "optim.lr": 1e-3,
            "optim.beta2": 0.999,
            "optim.min_lr": 5e-6,
            "optim.weight_decay": 0.05,
            "optim.weight_decay_end": 0.05,
            "optim.warmup_epochs": 5.0,
            "optim.clip": 5.0,
            "backbone.drop_path": 0.2,
        }
    )
    first, second = Config(scale=(0.08, 1.0)).views(224).views
    assert (first.scale, first.interpolation, first.blur_p, first.solarize_p) == ((0.08, 1.0), "bilinear", 1.0, 0.0)
    assert (second.blur_p, second.solarize_p, second.gray_p, second.jitter_p) == (0.1, 0.2, 0.2, 0.8)
