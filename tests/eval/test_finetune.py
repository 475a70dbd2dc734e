"""Training on crops, of a head alone and of the whole network: against plain torch, and what may not change."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import timm
import torch

from ssl_vit.data.batch import to_views
from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval import finetune_recipe
from ssl_vit.eval.api import evaluate, outcome_of
from ssl_vit.eval.augmented import crops, fit_augmented
from ssl_vit.eval.features import evaluating
from ssl_vit.eval.finetune import fitted, scored, seeded
from ssl_vit.eval.job import Job
from ssl_vit.eval.kinds.finetune import Finetune
from ssl_vit.eval.readout import Readout, read_out
from tests.eval.conftest import MEAN, STD

READOUT, CPU = Readout(32, MEAN, STD), torch.device("cpu")


def test_a_head_on_crops_equals_torchs_own_sgd(vit, images):
    """torch.optim.SGD on the same crops, of the images that are learnt from: the same weights."""
    source = open_source(images / "train")
    fit = np.flatnonzero(np.arange(120) % 5 != 0)
    found = fit_augmented(vit, source, READOUT, fit, (0.02, 1.0), 2, 24, 3, CPU)
    model = torch.nn.Linear(48, 3)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=24 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    labels = torch.from_numpy(source.labels).long()
    with evaluating(vit):
        for batch in crops(source, 32, 2, 24, 3, CPU):
            kept = torch.from_numpy(np.isin(batch.index.numpy(), fit))
            with torch.no_grad():
                x = read_out(vit, to_views(batch, MEAN, STD, CPU)[0], READOUT)[kept]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), labels[batch.index][kept]).backward()
            optimizer.step()
            schedule.step()
    probe = found[1]
    assert [each.rate for each in found] == [0.02, 1.0]
    torch.testing.assert_close(probe.weights[:-1], model.weight.T.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(probe.weights[-1], model.bias.detach(), rtol=1e-3, atol=1e-5)


def test_the_augmented_kind_chooses_among_rates_and_takes_one_as_it_is(run, images):
    sides = {"train": images / "train", "val": images / "val"}
    several = evaluate("augmented", run, **sides, epochs=6, batch=24, lr=(1e-6, 3.0))
    reached = several["held_out"]
    assert reached[str(several["augmented"]["lr"])] == max(reached.values())
    assert set(reached) == {"1e-06", "3.0"}
    assert several["augmented"]["top1"] > 30  # chance is 33, and the weights are random
    one = evaluate("augmented", run, **sides, epochs=1, batch=24, lr=(1e-6,))
    assert one["held_out"] == {}
    assert one["protocol"]["lr_chosen_on"] == "given"
    with pytest.raises(UserError, match="batch"):
        evaluate("augmented", run, **sides, epochs=1, batch=500)


def test_fine_tuning_learns_and_leaves_the_weights_and_the_generators_alone(run, images):
    sides = {"train": images / "train", "val": images / "val"}
    options = {"batch": 24, "lr": 0.02, "mixup": 0.1, "cutmix": 0.0}
    np.random.seed(5)
    drawn, weights = np.random.get_state()[1].copy(), (run / "export" / "model.safetensors").read_bytes()
    outcome, protocol = outcome_of("finetune", run, **sides, epochs=24, layer_decay=0.9, **options)
    assert outcome.scores["top1"] > 40  # chance is 33, and the weights start at random
    assert outcome.correct.shape == (45,)
    assert (run / "export" / "model.safetensors").read_bytes() == weights
    np.testing.assert_array_equal(np.random.get_state()[1], drawn)
    assert protocol.images == {"train": 120, "val": 45}
    with pytest.raises(UserError, match="even number"):
        evaluate("finetune", run, **sides, epochs=1, batch=3, lr=0.01)


def test_early_layers_learn_more_slowly(run, images):
    """With a layer decay of 0.01 the patch embedding hardly moves and the head does."""
    job = Job(Path(run), {"train": images / "train", "val": images / "val"})
    train, _ = job.labelled()
    before = {key: value.clone() for key, value in job.backbone.get_submodule("model").state_dict().items()}
    asked = Finetune(epochs=1, batch=24, lr=0.01, layer_decay=0.01, mixup=0.0, cutmix=0.0)
    after = fitted(job, train, asked).state_dict()
    moved = {key: float((after[key] - before[key]).abs().max()) for key in before}
    assert 0 < moved["patch_embed.proj.weight"] < 0.01 * moved["norm.weight"]
    assert all(
        torch.equal(value, job.backbone.get_submodule("model").state_dict()[key]) for key, value in before.items()
    )


def test_a_network_left_in_train_mode_is_scored_in_evaluation_mode(images):
    """Dropout of 0.9 and a batch norm that would take the batch's own statistics: both as in evaluation mode."""
    torch.manual_seed(0)
    layers = [torch.nn.BatchNorm2d(3), torch.nn.Dropout(0.9), torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3)]
    model, source = torch.nn.Sequential(*layers), open_source(images / "val")
    model[0].running_mean += 0.5
    expected, _ = scored(model.eval(), source, READOUT, CPU)
    found, left_out = scored(model.train(), source, READOUT, CPU)
    np.testing.assert_array_equal(found, expected)
    assert model.training
    assert all(layer.training for layer in model)
    assert float(model[0].running_mean[0]) == 0.5
    assert left_out == 0


@pytest.mark.parametrize(
    ("name", "mixup", "layers", "magnitude"),
    [
        ("none", 0.0, 0, 0),
        ("light1", 0.0, 2, 0),
        ("light2", 0.2, 2, 10),
        ("medium1", 0.2, 2, 15),
        ("medium2", 0.5, 2, 15),
        ("strong1", 0.5, 2, 20),
        ("strong2", 0.8, 2, 20),
    ],
)
def test_presets_are_those_of_augreg(name, mixup, layers, magnitude):
    """What timm's own mixup and RandAugment are given."""
    asked = Finetune(preset=name, mixup=0.9, cutmix=0.9)
    mix = finetune_recipe.mixing(asked, 3)
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.label_smoothing) == (mixup, 0.0, 0.0)
    assert mix.mix_prob == float(mixup > 0)
    with patch.object(finetune_recipe, "rand_augment_transform") as made:
        finetune_recipe.augmenting(asked)
    said = [call.args[0] for call in made.call_args_list]
    assert said == ([f"rand-m{magnitude}-n{layers}-p1-mmax20"] if layers else [])


def test_randaugment_changes_the_crops_that_are_learnt_from(images):
    (batch,) = crops(open_source(images / "train"), 32, 1, 120, 0, CPU)
    before = batch.pixels.clone()
    finetune_recipe.augmenting(Finetune(preset="none"))(batch)
    assert batch.pixels.equal(before)
    with seeded(0):
        finetune_recipe.augmenting(Finetune(preset="strong2"))(batch)
    changed = (batch.views[0] != before.view_as(batch.places[0])[0].permute(0, 3, 1, 2)).flatten(1).any(1)
    assert changed.float().mean() > 0.5


def test_dropout_and_depth_are_set_where_timm_has_them():
    model = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=0)
    finetune_recipe.drop(model, 0.1)
    depths = [getattr(block.drop_path1, "drop_prob", None) for block in model.blocks]
    assert depths == pytest.approx([0.0, 0.05, 0.1])
    assert model.blocks[0].mlp.drop1.p == 0.1
    assert model.blocks[0].attn.attn_drop.p == 0.0


def test_distillation_is_deits():
    torch.manual_seed(0)
    of_class, of_token, teacher = torch.randn(3, 4, 5).double()
    targets = torch.eye(5).double()[[0, 1, 2, 3]]
    plain = -(targets * of_class.log_softmax(1)).sum(1).mean()
    chosen = -of_token.log_softmax(1)[torch.arange(4), teacher.argmax(1)].mean()
    hard = finetune_recipe.distilled(of_class, of_token, targets, teacher, soft=False)
    torch.testing.assert_close(hard, (plain + chosen) / 2, rtol=0, atol=1e-12)
    wanted = (teacher / 3).softmax(1)
    divergence = (wanted * (wanted.log() - (of_token / 3).log_softmax(1))).sum(1).mean()
    soft = finetune_recipe.distilled(of_class, of_token, targets, teacher, soft=True)
    torch.testing.assert_close(soft, 0.9 * plain + 0.1 * 9 * divergence, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_a_token_learns_what_a_teacher_says(kind, run, images, tmp_path):
    sides = {"train": images / "train", "val": images / "val"}
    with pytest.raises(UserError, match=r"has no distillation token .*deit_tiny_distilled_patch16_224"):
        evaluate("finetune", run, **sides, epochs=1, batch=24, distill=kind, teacher=str(run))
    torch.manual_seed(0)
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}
    model = timm.create_model("deit_tiny_distilled_patch16_224", **args)
    timm.models.save_for_hf(model, tmp_path / "deit", model_args={key: args[key] for key in list(args)[:-1]})
    with pytest.raises(UserError, match="needs --teacher"):
        evaluate("finetune", tmp_path / "deit", **sides, epochs=1, batch=24, distill=kind)
    more = {"preset": "light2", "optimizer": "sgd", "drop": 0.1, "teacher": str(run), "lr": 0.015}
    found = evaluate("finetune", tmp_path / "deit", **sides, epochs=2, batch=24, distill=kind, **more)
    assert 0 <= found["finetune"]["top1"] <= 100
    assert kind in found["protocol"]["distillation"]


def test_each_pixel_of_a_mixed_batch_is_known_by_its_image():
    labels = torch.tensor([0, 1, 2, 0])
    images = torch.arange(4.0)[:, None, None, None].repeat(1, 3, 16, 16)
    with seeded(3):
        cut, targets, sources = finetune_recipe.mixed(
            finetune_recipe.mixing(Finetune(mixup=0), 3), images.clone(), labels
        )
    with seeded(3):
        expected, wanted = finetune_recipe.mixing(Finetune(mixup=0), 3)(images.clone(), labels)
    assert cut.equal(expected)
    assert targets.equal(wanted)
    assert sources.equal(cut[:, 0].long())
    assert 0 < (sources != torch.arange(4)[:, None, None]).float().mean() < 1
    _, _, blended = finetune_recipe.mixed(finetune_recipe.mixing(Finetune(cutmix=0), 3), images, labels)
    assert blended is None


def test_patches_answer_for_their_own_image(run, images):
    job = Job(Path(run), {"train": images / "train", "val": images / "val"})
    train, _ = job.labelled()
    learner = finetune_recipe.Learner(job, train, Finetune(mixup=0, cutmix=1, diversify=2.0))
    diversity, labels = learner.diversity, torch.tensor([0, 1, 2, 0])
    rows, columns = diversity.grid
    sources = torch.arange(4)[:, None, None].repeat(1, 32, 32)
    sources[:, : 32 // rows] = sources.flip(0)[:, : 32 // rows]  # the first row of patches is the other image's
    learner.model(torch.randn(4, 3, 32, 32))
    logits = diversity.head(diversity._last)
    own = labels[:, None].repeat(1, rows * columns)
    own[:, :columns] = labels.flip(0)[:, None]
    by_hand = torch.nn.functional.cross_entropy(logits.flatten(0, 1), own.flatten())
    penalties = {"patch_cosine": torch.tensor(0.25), "patch_contrast": torch.tensor(0.5)}
    torch.testing.assert_close(diversity.loss(penalties, labels, sources), 0.75 + 2 * by_hand)
    assert float(diversity.loss(penalties, labels, None)) == 0.75
    top1 = evaluate("finetune", run, **job.folders, epochs=1, batch=24, diversify=1.0)["finetune"]["top1"]
    assert 0 <= top1 <= 100
