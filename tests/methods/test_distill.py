"""Distillation against its formulas written again in numpy float64, gradients too; and what a teacher may not do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_vit.config import load_config
from ssl_vit.data.augment import normalise
from ssl_vit.errors import UserError
from ssl_vit.methods.distill import DIGEST, Distill
from ssl_vit.methods.distill_config import Config
from ssl_vit.methods.frozen_teacher import FrozenTeacher, Source
from ssl_vit.methods.method import Progress
from ssl_vit.methods.similarity import enqueue, on_grid, relation_gap, units
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from ssl_vit.run.pretrain import pretrain
from tests.methods.settings import COMMON, SMALL, TEACHER
from tests.methods.small import Patchy, softmax
from tests.runs import rows

FACTS = Facts(images=300, side=64, colours=lambda: pytest.fail("given"), gpus=0, cpus=2, bfloat16=False)
TEMP, IMAGES, QUEUE = 0.5, 3, 7


def make(**more: Any) -> Distill:
    """A student of 4 x 4 patches, and the teacher, which sees its images of 8 pixels at 16, as 2 x 2 patches."""
    torch.manual_seed(0)
    given = {"teacher": TEACHER, "teacher_size": 16, "queue_size": QUEUE, "temperature": TEMP, "scale": (0.3, 1.0)}
    return Distill(Config(**given | more), Patchy(5), 8).double()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def divergence(student: np.ndarray, teacher: np.ndarray, anchors: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of KL(teacher | student) over rows [N, D], and its gradient by the student's rows before they are
    brought to length one, written out."""
    own = unit(student)
    p, q = softmax(teacher @ anchors.T / TEMP), softmax(own @ anchors.T / TEMP)
    by_unit = (q - p) @ anchors / TEMP / len(own)
    along = (by_unit * own).sum(-1, keepdims=True)
    return float((p * np.log(p / q)).sum(-1).mean()), (by_unit - along * own) / np.linalg.norm(
        student, axis=-1, keepdims=True
    )


def test_loss_and_gradients_are_the_formulas() -> None:
    """By hand, from what teacher and backbone give: to 1e-10, also the gradient of every weight."""
    method, weights = make(pooled_weight=0.7, patch_weight=1.3), (0.7, 1.3)
    images = torch.randn(IMAGES, 3, 8, 8, dtype=torch.float64)
    step = method([images], Progress(0, 4, 2))
    step.loss.backward()
    told = method.teacher.look(images)
    assert told.patches.shape == (IMAGES, 16, 2, 2)
    seen = method.student.backbone(images)
    on = [layer.weight.detach().numpy() for layer in (method.student.head, method.student.patch_head)]
    offsets = [layer.bias.detach().numpy() for layer in (method.student.head, method.student.patch_head)]
    pooled = seen.pooled.detach().numpy()
    pooled_loss, by_pooled = divergence(pooled @ on[0].T + offsets[0], unit(told.pooled.numpy()), method.queue.numpy())

    finer = torch.nn.functional.interpolate(told.patches, (4, 4), mode="bilinear").flatten(2).mT.numpy()
    patches = seen.patches.flatten(2).mT.detach().numpy()
    found = [divergence(own @ on[1].T + offsets[1], unit(to), unit(to)) for own, to in zip(patches, finer, strict=True)]
    patch_loss, by_patch = float(np.mean([loss for loss, _ in found])), np.stack([by for _, by in found]) / IMAGES

    expected = weights[0] * pooled_loss + weights[1] * patch_loss
    assert step.loss.item() == pytest.approx(expected, rel=0, abs=1e-10)
    assert step.parts["pooled_loss"].item() == pytest.approx(pooled_loss, rel=0, abs=1e-10)
    head, patch_head = method.student.head, method.student.patch_head
    np.testing.assert_allclose(head.weight.grad.numpy(), weights[0] * by_pooled.T @ pooled, rtol=0, atol=1e-10)
    np.testing.assert_allclose(head.bias.grad.numpy(), weights[0] * by_pooled.sum(0), rtol=0, atol=1e-10)
    flat, by_flat = patches.reshape(-1, 5), by_patch.reshape(-1, 16)
    np.testing.assert_allclose(patch_head.weight.grad.numpy(), weights[1] * by_flat.T @ flat, rtol=0, atol=1e-10)

    widen = method.student.backbone.widen.weight.detach().numpy()
    into = weights[1] * by_patch @ on[1] + (weights[0] * by_pooled @ on[0] @ widen)[:, None] / 16
    cells = torch.pixel_unshuffle(images, 2).flatten(2).mT.numpy()
    by_weight = into.reshape(-1, 5).T @ cells.reshape(-1, 12)
    np.testing.assert_allclose(method.student.backbone.linear.weight.grad.numpy(), by_weight, rtol=0, atol=1e-10)


def test_the_blind_guess_is_the_mean_of_what_the_teacher_says() -> None:
    method = make(patch_weight=0.0)
    images = torch.randn(IMAGES, 3, 8, 8, dtype=torch.float64)
    step = method([images], Progress(0, 4, 2))
    p = softmax(unit(method.teacher.look(images).pooled.numpy()) @ method.queue.numpy().T / TEMP)
    assert step.parts["blind_loss"].item() == pytest.approx((p * np.log(p / p.mean(0))).sum(1).mean(), abs=1e-10)
    assert "blind_loss" not in method([images[:1]], Progress(0, 4, 2)).parts


def test_the_teacher_sees_its_own_colours() -> None:
    """The same pixels as if they had been normalised for it, and at the size that it takes."""
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    student = Patchy().info
    teacher = FrozenTeacher(Source(TEACHER), student, 32)
    assert teacher.info.mean == (0.4, 0.5, 0.6)
    ours, its = (normalise(pixels, info.mean, info.std) for info in (student, teacher.info))
    torch.testing.assert_close(teacher.as_it_wants(ours), its)
    assert torch.equal(FrozenTeacher(Source(TEACHER), teacher.info, 32).as_it_wants(its), its)
    assert FrozenTeacher(Source(TEACHER), student, 24).as_it_wants(ours).shape == (2, 3, 24, 24)
    own = FrozenTeacher(Source(TEACHER, None, student.mean, student.std), student, 32)
    assert torch.equal(own.as_it_wants(ours), ours)


def test_the_teacher_is_no_part_of_what_is_trained() -> None:
    method = make()
    before = {name: weight.clone() for name, weight in method.teacher.network.state_dict().items()}
    method.train()
    loss = method([torch.randn(IMAGES, 3, 8, 8, dtype=torch.float64)], Progress(0, 4, 2)).loss
    loss.backward()
    assert not any(module.training for module in method.teacher.network.modules())
    assert all(weight.grad is None and not weight.requires_grad for weight in method.teacher.network.parameters())
    assert all(torch.equal(each, before[name]) for name, each in method.teacher.network.state_dict().items())
    assert {name.partition(".")[0] for name in method.state_dict()} == {"student", "queue"}


def test_an_earlier_layer_can_be_learnt() -> None:
    student, images = Patchy().info, torch.randn(2, 3, 32, 32)
    last, named, first = (FrozenTeacher(Source(TEACHER), student, 32, layer).look(images) for layer in (-1, 1, 0))
    torch.testing.assert_close(last.patches, named.patches)
    torch.testing.assert_close(last.pooled, named.pooled)
    assert not torch.allclose(last.pooled, first.pooled, atol=1e-2)


def test_the_queue_takes_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make()
    queue, images = method.queue.clone(), torch.randn(IMAGES, 3, 8, 8, dtype=torch.float64)
    method([images], Progress(1, 4, 2))
    method.after_step(Progress(1, 4, 2))
    expected = units(method.teacher.look(images).pooled)
    torch.testing.assert_close(method.queue[3:6], expected)
    assert torch.equal(method.queue[[0, 1, 2, 6]], queue[[0, 1, 2, 6]])
    small = torch.zeros(2, 1)
    enqueue(small, torch.arange(5.0)[:, None], 0)  # more than it holds: the last ones stay
    assert sorted(small.flatten().tolist()) == [3.0, 4.0]


def test_grids_are_matched_by_interpolation() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    assert on_grid(ramp, (8, 8)) is ramp
    torch.testing.assert_close(on_grid(ramp, (2, 2))[0, 0, 0], torch.tensor([1.7, 5.3]), atol=0.31, rtol=0)
    assert on_grid(ramp, (16, 16)).diff(dim=-1).min() >= 0


@pytest.mark.parametrize("shape", [(2, 3, 5, 8, 4), (3, 40, 6, 3)])
def test_relation_gaps_are_the_plain_ones(shape: tuple[int, ...]) -> None:
    """Whether the maps are made or not: values and gradients to 1e-10."""
    torch.manual_seed(0)
    *images, count, width, other = shape
    own = units(torch.randn(*images, count, width, dtype=torch.float64)).requires_grad_()
    told = units(torch.randn(*images, count, other, dtype=torch.float64))
    found = relation_gap(own, told)
    (gradient,) = torch.autograd.grad(found, own)
    plain = (
        (torch.einsum("...id,...jd->...ij", own, own) - torch.einsum("...id,...jd->...ij", told, told)).pow(2).mean()
    )
    (expected,) = torch.autograd.grad(plain, own)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


# --- runs -----------------------------------------------------------------------------------------------------------


def resolved(**more: Any) -> Any:
    name = more.get("method__name", "distill")
    flags = COMMON | {"data.path": "x", "method.name": name, "data.mean": [0.5] * 3, "data.std": [0.2] * 3}
    flags |= {f"method.{key}": value for key, value in SMALL[name].items()}
    return resolve_config(
        load_config(flags=flags | {key.replace("__", "."): value for key, value in more.items()}), FACTS
    )


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"method__teacher": None}, r"^method\.teacher: distill learns from a frozen teacher; set method\.teacher=WEI"),
        ({"method__teacher": "nowhere.pth"}, r"^nowhere\.pth: no such file or folder"),
        ({"method__teacher": __file__}, r"test_distill\.py: .*(not readable|no weights|holds|text)"),
        ({"method__teacher_size": 33}, r"^method\.teacher_size: 33 pixels, and the teacher, .* takes multiples of 8"),
        ({"method__teacher_size": 8}, r"^method\.patch_weight: at 8 pixels the teacher, .* has a single patch"),
        ({"method__teacher_layer": 2}, r"^method\.teacher_layer: 2, and vit_tiny_patch16_224 has layers 0 to 1"),
        ({"backbone__name": "resnet10t", "backbone__args": {}}, r"^method\.patch_weight: at 32 pixels the student has"),
        ({"method__patch_weight": 0.0, "method__pooled_weight": 0.0}, r"^method\.pooled_weight: this and"),
    ],
)
def test_what_cannot_be_is_said_before_images_are_read(more: dict[str, Any], said: str) -> None:
    if more.get("backbone__name") == "resnet10t":
        more = more | {"backbone__drop_path": 0.0}
    with pytest.raises(UserError, match=said) as refused:
        resolved(**more)
    assert "\n" not in str(refused.value)


def test_the_teachers_grid_is_no_coarser_than_the_students() -> None:
    """A student of 8 x 8 patches, and a teacher for 32 pixels, which is shown no larger ones than it was made for."""
    config, decisions = resolved(backbone__image_size=16)
    assert config.method.teacher_size == 16
    config, _ = resolved(
        backbone__args={"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}, **{"backbone__image_size": 16}
    )
    assert config.method.teacher_size == 32
    assert not [each for each in decisions if each.key == "method.queue_size"], "it was set"


def run(pictures: Path, out: Path, *, resume: bool = False, **more: Any) -> None:
    if resume:
        pretrain(load_config([out / "config.yaml"]), out, resume=True)
        return
    flags = COMMON | {"data.path": str(pictures / "train"), "method.name": "distill", "train.epochs": 1}
    flags |= {f"method.{key}": value for key, value in SMALL["distill"].items()} | more
    pretrain(load_config(flags=flags), out)


def test_another_teacher_is_refused_on_resume_and_none_is_kept(pictures: Path, tmp_path: Path) -> None:
    """The run says which teacher it began with; what it keeps has the student and the queue alone."""
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "run"
    shutil.copy(TEACHER, teacher)
    run(pictures, out, **{"method.teacher": str(teacher)})
    said = (out / "train.log").read_text()
    assert "the teacher, vit_tiny_patch16_224 with 0.0 million parameters, sees images of 32 pixels" in said
    assert "the teacher is smaller than the student" in said
    assert len((out / DIGEST).read_text().strip()) == 64
    saved = torch.load(next((out / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
    assert {name.split(".")[1] for name in saved} == {"student", "queue"}
    filled: Tensor = saved["method.queue"]
    torch.testing.assert_close(filled.norm(dim=1), torch.ones(16))
    assert {"pooled_cosine", "patch_cosine"} <= next(row for row in rows(out) if "loss" in row).keys()
    (out / "COMPLETE").unlink()
    content = bytearray(teacher.read_bytes())
    content[-1] ^= 1
    teacher.write_bytes(content)
    with pytest.raises(UserError, match=r"teacher\.safetensors: has changed since the run began \(sha256 ") as refused:
        run(pictures, out, resume=True)
    assert "\n" not in str(refused.value)
    shutil.copy(TEACHER, teacher)
    run(pictures, out, resume=True)
    assert (out / "COMPLETE").exists()
