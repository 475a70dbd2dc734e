"""Recipes know whether a network begins with random numbers, with a run's weights or with another's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_vit.config import RunConfig, load_config
from ssl_vit.errors import UserError
from ssl_vit.methods import list_methods
from ssl_vit.methods.continuing import AT_RANDOM, FOREIGN_RATE, LAYER_DECAY, OWN_RATE, SLOW
from ssl_vit.run import plan
from ssl_vit.run.changed import as_before
from ssl_vit.run.prepare import build_method
from ssl_vit.run.spans import remarks_on_spans
from ssl_vit.training.fabric import new_fabric
from ssl_vit.training.optim import backbones_of
from ssl_vit.training.step import Learner, ReadyViews, take_step
from tests.methods.settings import COMMON, NEEDED, TEACHER

NETWORK = {key: value for key, value in COMMON.items() if key.startswith("backbone.") and key != "backbone.drop_path"}


def config_of(method: str, pictures: Path, **more: object) -> RunConfig:
    flags = NETWORK | {"data.path": str(pictures / "train"), "method.name": method}
    flags |= {f"method.{key}": value for key, value in NEEDED.get(method, {}).items()}
    return load_config(flags=flags | {key.replace("__", "."): value for key, value in more.items()})


@pytest.fixture(scope="module")
def starts(whole_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same weights as a run's, and as a file of which nobody knows whose it is."""
    bare = tmp_path_factory.mktemp("starts") / "bare.safetensors"
    save_file(load_file(whole_run / "export" / "model.safetensors"), bare)
    return {"own": str(whole_run), "foreign": str(bare)}


@pytest.mark.parametrize("whose", ["own", "foreign"])
@pytest.mark.parametrize("method", list_methods())
def test_every_recipe_says_what_trained_weights_change(
    method: str, whose: str, pictures: Path, starts: dict[str, str]
) -> None:
    plain, at_random = plan.resolve(config_of(method, pictures))
    resolved, decisions = plan.resolve(config_of(method, pictures, backbone__weights=starts[whose]))
    why = {decision.key: decision.why for decision in decisions}
    assert not [decision.key for decision in at_random if decision.key in AT_RANDOM], "nothing to say"
    assert plain.optim.model_dump() | {key.partition(".")[2]: value for key, value in AT_RANDOM.items()} == (
        plain.optim.model_dump()
    )
    if method == "detreg":  # whose backbone is not trained
        assert resolved.optim == plain.optim
        return
    optim = resolved.optim
    assert (optim.backbone_rate, optim.layer_decay) == (OWN_RATE if whose == "own" else FOREIGN_RATE, LAYER_DECAY)
    assert optim.heads_first == plain.train.length(48 // plain.train.batch_size) // 10 > 0
    assert (optim.weight_decay, optim.weight_decay_end) == (0.0, 0.0)
    assert optim.head_weight_decay == plain.optim.weight_decay > 0
    assert resolved.backbone.drop_path == 0.0
    assert (resolved.method.teacher_momentum() or 1.0) >= SLOW
    for key in (*AT_RANDOM, "optim.weight_decay", "backbone.drop_path"):
        assert "weights" in why[key] or "heads" in why[key], key
    assert not [line for line in remarks_on_spans(resolved, 300) if "method.momentum" in line]


def test_what_is_set_stays(pictures: Path, starts: dict[str, str]) -> None:
    more = {"optim__backbone_rate": 1.0, "optim__layer_decay": 0.7, "optim__heads_first": 0, "method__momentum": 0.9}
    more |= {"optim__weight_decay": 0.3, "data__mean": (0.1, 0.2, 0.3), "optim__head_weight_decay": None}
    resolved, _ = plan.resolve(config_of("byol", pictures, backbone__weights=starts["foreign"], **more))
    optim = resolved.optim
    assert (optim.backbone_rate, optim.layer_decay, optim.heads_first, optim.weight_decay) == (1.0, 0.7, 0, 0.3)
    assert optim.head_weight_decay is None
    assert resolved.data.mean == (0.1, 0.2, 0.3)


def test_heads_that_learn_alone_to_the_end_are_refused(pictures: Path, starts: dict[str, str]) -> None:
    more = {"backbone__weights": starts["own"], "train__steps": 20, "optim__heads_first": 20}
    with pytest.raises(UserError, match=r"optim\.heads_first: 20 steps in a run of 20, .*; set at most 2, or"):
        plan.resolve(config_of("simclr", pictures, **more))


def test_images_look_as_those_that_the_weights_are_of(pictures: Path, whole_run: Path, starts: dict[str, str]) -> None:
    """A run's say it themselves; of a bare ViT it is a guess, and said to be one."""
    of_run = load_config([whole_run / "config.yaml"]).data
    own, _ = plan.resolve(config_of("mae", pictures, backbone__weights=starts["own"]))
    assert (own.data.mean, own.data.std) == (of_run.mean, of_run.std)
    foreign, decisions = plan.resolve(config_of("mae", pictures, backbone__weights=starts["foreign"]))
    assert foreign.data.mean == (0.485, 0.456, 0.406)
    (why,) = (decision.why for decision in decisions if decision.key == "data.mean")
    assert "a guess" in why


def test_heads_learn_first_and_then_deep_layers_least(pictures: Path, starts: dict[str, str]) -> None:
    """With AdamW, whose first step is as large as the rate: so much does each weight move, at most."""
    more = {"optim__heads_first": 1, "optim__backbone_rate": 0.5, "optim__layer_decay": 0.5, "optim__lr": 1e-3}
    more |= {"optim__warmup_epochs": 0.0, "train__precision": "32-true", "optim__clip": 0.0, "train__batch_size": 8}
    config, _ = plan.resolve(config_of("simmim", pictures, backbone__weights=starts["foreign"], **more))
    torch.manual_seed(0)
    method = build_method(config)
    learner = Learner(new_fabric(config.train), method, config, per_epoch=2, total=1000)
    batch = ReadyViews([torch.randn(8, 3, 32, 32)])
    moved = []
    for step in range(2):
        before = {name: weight.detach().clone() for name, weight in method.named_parameters()}
        assert take_step(learner, batch, step).taken
        moved.append(
            {name: float((weight.detach() - before[name]).abs().max()) for name, weight in method.named_parameters()}
        )
    (backbone,) = backbones_of(method)
    inside = [f"backbone.model.{name}" for name, _ in backbone.model.named_parameters()]
    assert not any(moved[0][name] for name in inside), "the backbone is as it was, to the bit"
    assert moved[0]["head.weight"] > 0
    assert moved[0]["backbone.mask_token"] > 0
    rates = [moved[1][f"backbone.model.{name}"] for name in ("blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight")]
    assert rates == [pytest.approx(1e-3 * 0.5 * share, rel=0.05) for share in (0.5, 1.0)]


def test_a_run_of_before_goes_on_as_it_began(pictures: Path, starts: dict[str, str]) -> None:
    """Its own settings, written down when nobody knew of such a recipe, had one rate for all."""
    config = config_of("simclr", pictures, backbone__weights=starts["foreign"])
    assert config.optim.backbone_rate == "auto"
    before = as_before(config).optim
    assert {key: getattr(before, key.removeprefix("optim.")) for key in AT_RANDOM} == AT_RANDOM


def test_a_teacher_file_is_another_matter(pictures: Path) -> None:
    """Who learns from a teacher begins with random numbers all the same."""
    resolved, _ = plan.resolve(config_of("distill", pictures, method__teacher=TEACHER))
    assert resolved.optim.backbone_rate == 1.0
