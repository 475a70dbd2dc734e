"""DynamicViT drops patches: softly in training, for real in evaluation, as many as it is told."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_vit.backbones import create_backbone, penalties
from ssl_vit.backbones.families import dynamicvit
from ssl_vit.errors import UserError
from tests.backbones.families.compiled import check_compiled

SMALL = {"embed_dim": 48, "depth": 3, "num_heads": 3, "stages": (1, 2), "img_size": 64}
NAMES = ["dynamicvit_deit_small_patch16_224", "dynamicvit_lvvit_small_patch16_224"]  # 16 patches


def build(name: str = NAMES[0], **more: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL | more)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return model


def test_attention_leaves_dropped_tokens_out() -> None:
    logits = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    kept = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)[None, :, None]
    maps = dynamicvit.masked_softmax(logits, kept)
    for query in range(4):
        seen = [key for key in range(4) if key in (0, 2, query)]
        expected = torch.zeros(2, 4, dtype=torch.float64)
        expected[:, seen] = logits[0, :, query, seen].softmax(-1)
        torch.testing.assert_close(maps[0, :, query], expected, rtol=1e-5, atol=1e-5)


def test_attention_over_all_is_timms() -> None:
    layer = dynamicvit.MaskedAttention(48, 3).eval()
    x = torch.randn(2, 9, 48)
    torch.testing.assert_close(layer(x, kept=torch.ones(2, 9, 1)), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_computes_what_is_left(name: str) -> None:
    model = build(name, keep_ratio=0.7).eval()
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits = model(images)
        assert seen == [17, 1 + 11, 1 + 7]  # 16 x 0.7 and 16 x 0.49, rounded down
        features, levels = model.forward_intermediates(images, output_fmt="NLC")
        pooled = model.forward_head(features, pre_logits=True)
        model.reset_classifier(0)
        assert torch.equal(model(images), pooled)
    assert logits.shape == (2, 1000)
    assert features.shape == (2, 17, 48)
    for before, after, count in zip(levels, levels[1:], (11, 7), strict=False):
        changed = (before != after).any(-1).sum(1)
        assert changed.tolist() == [count, count], "the others stay as they were"


def test_the_best_patches_stay() -> None:
    model = build(keep_ratio=0.5, stages=(1,)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        first, second, _ = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
        scores = model.score_predictor[0](first, torch.ones(1, 16, 1))[0, :, 0]
    changed = (first != second)[0].any(-1).nonzero().flatten()
    assert changed.tolist() == sorted(scores.topk(8).indices.tolist())


def test_training_draws_masks_and_pays_for_the_share() -> None:
    """One image: what was noted of it gives the loss by hand, and gradients reach every weight."""
    model = build(keep_ratio=0.7, keep_weight=3.0).train()
    with penalties.collecting() as found:
        model(torch.randn(1, 3, 64, 64)).sum().backward(retain_graph=True)
    sums, say = found.noted["kept"]
    first, second, images = sums.tolist()
    assert images == 1
    assert 0 < second <= first < 1
    expected = 3.0 * ((first - 0.7) ** 2 + (second - 0.7**2) ** 2) / 2
    assert found["keep_ratio"].item() == pytest.approx(expected, rel=1e-5)
    assert say(sums) == f"Blocks 1, 2 see {100 * first:.0f} %, {100 * second:.0f} % of the patches."
    found["keep_ratio"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("classes", [0, 5])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_is_drawn_to_what_is_said_of_all_patches(name: str, classes: int) -> None:
    """As the authors' criterion has it, from hooks on the last norm: the first pass is the sparse one."""
    model = build(name, num_classes=classes, distil_weight=0.25, drop_path_rate=0.0).double().train()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    seen: list[Tensor] = []
    model.norm.register_forward_hook(lambda _, __, normed: seen.append(normed))
    torch.manual_seed(1)
    with penalties.collecting() as found:
        *_, last = model.sparsely(model.embed(images))
    teacher, student = seen
    torch.manual_seed(1)
    kept = torch.ones(2, 16, 1, dtype=torch.float64)
    x = model.embed(images)
    for number, block in enumerate(model.blocks):
        if number in model.stages:
            scores = model.score_predictor[model.stages.index(number)](x[:, 1:], kept)
            kept = F.gumbel_softmax(scores.float(), hard=True)[..., :1].double() * kept
        x = block(x, None, False, torch.cat([torch.ones(2, 1, 1, dtype=torch.float64), kept], dim=1))
    torch.testing.assert_close(model.norm(x), student, rtol=1e-4, atol=1e-5)  # its softmax is float32
    whole = model.embed(images)
    for block in model.blocks:
        whole = block(whole)
    torch.testing.assert_close(model.norm(whole), teacher, rtol=1e-4, atol=1e-5)
    logits = [model.head(tokens[:, 0]) for tokens in (student, teacher)]
    patches = [tokens[:, 1:][kept[..., 0] > 0.5] for tokens in (student, teacher)]
    if name == NAMES[0]:
        apart = F.mse_loss(*patches)
    else:
        student_patch, teacher_patch = (model.aux_head(each).log_softmax(-1) for each in patches)
        apart = F.kl_div(student_patch, teacher_patch, reduction="batchmean", log_target=True)
    student_logits, teacher_logits = (each.log_softmax(-1) for each in logits)
    answers = F.kl_div(student_logits, teacher_logits, reduction="batchmean", log_target=True)
    assert found["distil"].item() == pytest.approx(0.25 * answers.item(), rel=1e-4)
    assert found["distil_patches"].item() == pytest.approx(0.25 * apart.item(), rel=1e-4)
    assert min(answers.item(), apart.item()) > 1e-3
    assert student.requires_grad
    assert not teacher.requires_grad
    assert last.alive.shape == (2, 17, 48)


def test_no_second_pass_where_nobody_wants_it() -> None:
    model = build().train()
    passes: list[object] = []
    model.blocks[0].norm1.register_forward_hook(lambda *_: passes.append(None))
    model(torch.randn(1, 3, 64, 64))
    with penalties.collecting(), torch.no_grad():
        model(torch.randn(1, 3, 64, 64))
    assert len(passes) == 2
    model.distil_weight = 0.0
    with penalties.collecting() as found:
        model(torch.randn(1, 3, 64, 64))
    assert len(passes) == 3
    assert set(found) == {"keep_ratio"}


def test_a_dropped_patch_is_unseen_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(scores: Tensor, hard: bool) -> Tensor:
        kept = (torch.arange(scores.shape[1]) >= 8).float()[None, :, None].expand(len(scores), -1, 1)
        return torch.cat([kept, 1 - kept], dim=-1)

    monkeypatch.setattr(dynamicvit.F, "gumbel_softmax", draw)
    model = build(stages=(0,), depth=2).train()
    x = torch.randn(1, 17, 48)
    other = x.clone()
    other[:, 3] += 1.0  # among the first eight patches
    (*_, one), (*_, two) = model.sparsely(x), model.sparsely(other)
    torch.testing.assert_close(one.alive[:, 9:], two.alive[:, 9:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(one.alive[:, 0], two.alive[:, 0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one.alive[:, 3], two.alive[:, 3], atol=0.1)


def test_all_patches_of_an_image_may_be_dropped() -> None:
    scores = dynamicvit.Predictor(8)(torch.randn(1, 4, 8), torch.zeros(1, 4, 1))
    assert scores.isfinite().all()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"keep_ratio": 0.2}, r"keep_ratio is 0\.2, .*none of 4 patches after 3 stages; it must be 0\.63 or more"),
        ({"keep_ratio": 0.0}, r"keep_ratio is 0\.0; expected a share above 0, at most 1"),
        ({"stages": (3, 12)}, r"stages is \(3, 12\); expected rising numbers of blocks, 0 to 11"),
    ],
)
def test_what_keeps_nothing_is_refused_in_a_line(args: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=line):
        create_backbone(NAMES[0], image_size=32, model_args={"embed_dim": 48, "num_heads": 3} | args)


def test_the_smallest_ratio_of_the_line_works() -> None:
    args = {"embed_dim": 48, "num_heads": 3, "keep_ratio": 0.63}
    create_backbone(NAMES[0], image_size=32, model_args=args)


@pytest.mark.slow  # seconds, and a break costs speed alone
@pytest.mark.parametrize("name", NAMES)
def test_compiles_as_one_graph(name: str) -> None:
    check_compiled(build(name).eval(), torch.randn(2, 3, 64, 64))
    torch.compiler.reset()
    compiled = torch.compile(build(name).train(), fullgraph=True, backend="aot_eager")
    with penalties.collecting() as found:
        compiled(torch.randn(2, 3, 64, 64)).sum().backward()
    assert found["keep_ratio"].requires_grad
