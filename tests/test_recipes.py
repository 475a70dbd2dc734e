"""The published recipes in configs/: each loads, resolves for ImageNet-1k, and says what its source says."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from ssl_vit.config import FLAGS, RunConfig, dump, load_config
from ssl_vit.errors import UserError
from ssl_vit.methods import list_methods
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config
from ssl_vit.run.spans import remarks_on_spans
from ssl_vit.tokenizers import dalle
from tests.methods.settings import NEEDED

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
IMAGENET = Facts(
    images=1_281_167,
    side=375,
    colours=lambda: pytest.fail("a recipe gives its own mean and deviation"),
    gpus=8,
    cpus=64,
    bfloat16=True,
    compiler=True,
)
COSINE = {"optim.weight_decay": 0.04, "optim.weight_decay_end": 0.4}

# What the source named in each file gives: (base rate, of a batch of), which is scaled linearly, and plain values.
PUBLISHED: dict[str, tuple[tuple[float, int], dict[str, object]]] = {
    "dino_vit_small_100ep": (
        (5e-4, 256),
        {"epochs": 100, "batch_size": 512, "crops": [(2, 224, (0.4, 1.0)), (8, 96, (0.05, 0.4))], "clip": 3.0}
        | COSINE
        | {"method.teacher_temp": 0.04, "method.norm_last_layer": True, "backbone.drop_path": 0.1},
    ),
    "dino_vit_small_800ep": (
        (5e-4, 256),
        {"epochs": 800, "batch_size": 1024, "crops": [(2, 224, (0.25, 1.0)), (10, 96, (0.05, 0.25))], "clip": 0.0}
        | COSINE
        | {"method.teacher_temp": 0.07, "method.norm_last_layer": False, "optim.min_lr": 1e-5},
    ),
    "dino_vit_base_400ep": (
        (7.5e-4, 256),
        {"epochs": 400, "batch_size": 1024, "crops": [(2, 224, (0.25, 1.0)), (10, 96, (0.05, 0.25))], "clip": 0.3}
        | COSINE
        | {"method.warmup_teacher_temp_epochs": 50.0, "method.freeze_last_layer_epochs": 3.0, "optim.min_lr": 2e-6},
    ),
    "dino_resnet50_100ep": (
        (0.03, 256),
        {"epochs": 100, "batch_size": 512, "crops": [(2, 224, (0.14, 1.0)), (8, 96, (0.05, 0.14))], "clip": 3.0}
        | {"optim.optimizer": "sgd", "optim.weight_decay": 1e-4, "optim.weight_decay_end": 1e-4},
    ),
    "esvit_swin_tiny_300ep": (
        (5e-4, 256),
        {"epochs": 300, "batch_size": 512, "crops": [(2, 224, (0.4, 1.0)), (8, 96, (0.05, 0.4))], "clip": 3.0}
        | COSINE
        | {"method.teacher_temp": 0.07, "method.norm_last_layer": False, "method.region_from": 0.0},
    ),
    "ibot_vit_small_800ep": (
        (5e-4, 256),
        {"epochs": 800, "batch_size": 1024, "crops": [(2, 224, (0.25, 1.0)), (10, 96, (0.05, 0.25))], "clip": 3.0}
        | COSINE
        | {"method.out_dim": 8192, "method.mask_ratio": (0.1, 0.5), "method.teacher_patch_temp": 0.07},
    ),
    "dinov2_vit_large_200ep": (
        (4e-3 * 2**0.5, 2048),  # scaled by the root of the batch there
        {"epochs": 200, "batch_size": 2048, "crops": [(2, 224, (0.32, 1.0)), (8, 96, (0.05, 0.32))], "clip": 3.0}
        | COSINE
        | {"method.out_dim": 65536, "method.momentum": 0.992, "method.koleo_weight": 0.1, "optim.layer_decay": 0.9}
        | {"method.separate_heads": False, "method.centering": "mean", "backbone.drop_path": 0.3},
    ),
    "dinov2_vit_large_rope_200ep": (
        (4e-3 * 2**0.5, 2048),
        {"epochs": 200, "batch_size": 2048, "crops": [(2, 224, (0.32, 1.0)), (8, 96, (0.05, 0.32))], "clip": 3.0}
        | COSINE
        | {"method.out_dim": 65536, "method.momentum": 0.992, "method.koleo_weight": 0.1, "optim.layer_decay": 0.9}
        | {"method.separate_heads": True, "method.centering": "sinkhorn", "backbone.drop_path": 0.3},
    ),
    "moby_swin_tiny_300ep": (
        (1e-3, 512),
        {"epochs": 300, "batch_size": 512, "crops": [(2, 224, (0.08, 1.0))], "clip": 5.0, "optim.weight_decay": 0.05}
        | {"method.queue_size": 4096, "method.temperature": 0.2, "backbone.drop_path": 0.2, "optim.min_lr": 5e-6},
    ),
    "moby_deit_small_300ep": (
        (1e-3, 512),
        {"epochs": 300, "batch_size": 512, "crops": [(2, 224, (0.08, 1.0))], "clip": 5.0, "optim.weight_decay": 0.05}
        | {"method.queue_size": 4096, "method.momentum": 0.99, "backbone.drop_path": 0.2, "optim.warmup_epochs": 5.0},
    ),
    "mocov3_vit_small_300ep": (
        (1.5e-4, 256),
        {"epochs": 300, "batch_size": 4096, "crops": [(2, 224, (0.08, 1.0))], "clip": 0.0, "optim.weight_decay": 0.1}
        | {"backbone.args": {"num_heads": 12}, "method.temperature": 0.2, "optim.warmup_epochs": 40.0},
    ),
    "mocov3_vit_base_300ep": (
        (1.5e-4, 256),
        {"epochs": 300, "batch_size": 4096, "crops": [(2, 224, (0.08, 1.0))], "clip": 0.0, "optim.weight_decay": 0.1}
        | {"method.momentum": 0.99, "method.freeze_patch_embedding": True, "optim.warmup_epochs": 40.0},
    ),
    "byol_resnet50_1000ep": (
        (0.05, 256),  # SimSiam's, as LARS is not here
        {"epochs": 1000, "batch_size": 4096, "crops": [(2, 224, (0.08, 1.0))], "clip": 0.0}
        | {"method.momentum": 0.996, "method.hidden_dim": 4096, "method.out_dim": 256, "optim.warmup_epochs": 10.0},
    ),
    "beit_vit_base_800ep": (
        (1.5e-3, 2048),
        {"epochs": 800, "batch_size": 2048, "crops": [(1, 224, (0.08, 1.0))], "clip": 3.0, "optim.weight_decay": 0.05}
        | {"method.mask_ratio": 75 / 196, "optim.min_lr": 1e-5, "backbone.drop_path": 0.1, "optim.warmup_epochs": 10.0},
    ),
    "mae_vit_large_800ep": (
        (1.5e-4, 256),
        {"epochs": 800, "batch_size": 4096, "crops": [(1, 224, (0.2, 1.0))], "clip": 0.0, "optim.weight_decay": 0.05}
        | {"method.mask_ratio": 0.75, "optim.beta2": 0.95, "optim.warmup_epochs": 40.0, "method.decoder_depth": 8},
    ),
    "mae_vit_base_1600ep": (
        (1.5e-4, 256),
        {"epochs": 1600, "batch_size": 4096, "crops": [(1, 224, (0.2, 1.0))], "clip": 0.0, "optim.weight_decay": 0.05}
        | {"method.mask_ratio": 0.75, "optim.beta2": 0.95, "optim.warmup_epochs": 40.0, "method.decoder_dim": 512},
    ),
    "simmim_swin_base_100ep": (
        (2e-4, 512),
        {"epochs": 100, "batch_size": 2048, "crops": [(1, 192, (0.67, 1.0))], "clip": 5.0, "optim.weight_decay": 0.05}
        | {"method.mask_ratio": 0.6, "optim.min_lr": 1e-5 * 2048 / 512, "backbone.args": {"window_size": 6}},
    ),
    "detreg_resnet50_5ep": (
        (2e-4, 192),
        {"epochs": 5, "batch_size": 192, "crops": [(1, 480, (0.4, 1.0))], "clip": 0.1, "optim.weight_decay": 1e-4}
        | {"method.queries": 300, "method.boxes": 30, "method.hidden": 1024, "method.depth": 6, "optim.min_lr": 2e-4},
    ),
}
SHORT = {"epochs": "train.epochs", "batch_size": "train.batch_size", "clip": "optim.clip"}
UNPUBLISHED = {"method.tokenizer_steps", "optim.beta2"}  # of our own tokenizer alone, and of AdamW alone


def said(recipe: Path, word: str) -> str:
    """What the comment at the head of a recipe says after ``word:``, in one line."""
    head = re.match(r"(?:#.*\n)+", recipe.read_text())
    assert head, f"{recipe.name} does not begin with a comment"
    lines = " ".join(line[1:].strip() for line in head[0].splitlines()[1:])
    found = re.search(rf"{word}: +(.*?)(?= (?:Command|Expected|Made for|Differs): |$)", lines)
    assert found, f"{recipe.name} does not say its {word}"
    return found[1]


def configured(recipe: Path, more: Mapping[str, object] = MappingProxyType({})) -> RunConfig:
    """The configuration that the command of a recipe builds, with further flags."""
    program, name, data, *words = shlex.split(said(recipe, "Command"))
    assert (program, name, data) == ("ssl-vit", "pretrain", "IMAGENET/train")
    given = list(zip(words[::2], words[1::2], strict=True))
    files = [ROOT / value for flag, value in given if flag == "--config"]
    assert files[-1] == recipe
    assert ("--out", "RUN") in given
    flags = {"data.path": data} | {FLAGS[flag]: value for flag, value in given if flag in FLAGS}
    flags |= more
    return load_config(files, [value for flag, value in given if flag == "--set"], flags)


def value(config: RunConfig, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_alone_is_never_another_methods(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some change a few settings of another recipe: without that, few images must not make it SimCLR's."""
    monkeypatch.setattr(dalle, "read_encoder", lambda path: None)
    sets = re.findall(r"--set (\S+)", said(recipe, "Command"))
    asked = load_config([recipe], sets, {"data.path": "nowhere"})
    config, _ = resolve_config(asked, replace(IMAGENET, images=5_000, colours=lambda: ((0.5,) * 3, (0.2,) * 3)))
    assert config.method.name == recipe.stem.split("_")[0]


def test_every_recipe_is_compared_with_its_source() -> None:
    assert [path.stem for path in RECIPES] == sorted(PUBLISHED)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_the_published_ones(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dalle, "read_encoder", lambda path: None)  # its 215 MB of weights are the user's to fetch
    config, decisions = resolve_config(configured(recipe), IMAGENET)
    (rate, batch), published = PUBLISHED[recipe.stem]
    assert config.optim.lr == pytest.approx(rate * config.train.batch_size / batch)
    for key, wanted in published.items():
        if key == "crops":
            views = [view for view in config.method.views(config.backbone.image_size).views if view.name != "global2"]
            counts = [2 if view.name == "global1" else view.count for view in views]
            crops = [(count, view.size, view.scale) for count, view in zip(counts, views, strict=True)]
            assert crops == wanted
        else:
            assert value(config, SHORT.get(key, key)) == wanted, key
    assert (config.data.mean, config.data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    sections = {"method", "optim", "backbone"}
    left = {decision.key for decision in decisions if decision.key.split(".")[0] in sections}
    assert left <= UNPUBLISHED, f"published values are not left to auto: {left - UNPUBLISHED}"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_say_what_to_expect_and_who_says_so(recipe: Path) -> None:
    assert re.search(r"\(\d{4}\.\d{5}\)", recipe.read_text().split("\n")[0]), "the first line names the paper"
    expected = said(recipe, "Expected")
    assert re.search(r"\d\.\d", expected), "a score"
    assert "Source: " in expected
    assert str(configured(recipe).train.batch_size) in said(recipe, "Made for")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_another_batch_scales_the_rates_of_a_recipe(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the linear rule, and said; a rate of the user's own stays, in whichever way it is given."""
    monkeypatch.setattr(dalle, "read_encoder", lambda path: None)
    whole = configured(recipe)
    flags = {"train.batch_size": whole.train.batch_size // 8}
    part, decisions = resolve_config(configured(recipe, flags), IMAGENET)
    assert part.optim.lr == pytest.approx(whole.optim.lr / 8, rel=1e-9)
    assert part.optim.min_lr == pytest.approx(whole.optim.min_lr / 8, rel=1e-9)
    (said_so,) = (each.why for each in decisions if each.key == "optim.lr")
    assert f"made for batches of {whole.train.batch_size}" in said_so
    own = {"optim.lr": 3e-4} if whole.optim.min_lr < 3e-4 else {}
    for given in (own, own | {"optim.min_lr": 1e-7}):
        kept, decisions = resolve_config(configured(recipe, flags | given), IMAGENET)
        assert all(value(kept, key) == wanted for key, wanted in given.items())
        assert not given or not {each.key for each in decisions} & {"optim.lr", "optim.min_lr"}
    kept, _ = resolve_config(configured(recipe, flags | {"optim.min_lr": 1e-7}), IMAGENET)
    assert (kept.optim.lr, kept.optim.min_lr) == (part.optim.lr, pytest.approx(1e-7))


def test_a_run_s_own_configuration_is_a_recipe(tmp_path: Path) -> None:
    """Its rate goes with its batch, as that of a published one does; one that was the user's own does not."""
    flags = {"data.path": "nowhere", "train.batch_size": 512, "data.mean": [0.5] * 3, "data.std": [0.2] * 3}
    for given, wanted in (({}, 1 / 4), ({"optim.lr": 1e-3}, 1)):
        first, _ = resolve_config(load_config(flags=flags | given), IMAGENET)
        (tmp_path / "config.yaml").write_text(dump(first))
        again, _ = resolve_config(load_config([tmp_path / "config.yaml"]), IMAGENET)
        assert again == first
        other, _ = resolve_config(load_config([tmp_path / "config.yaml"], flags={"train.batch_size": 128}), IMAGENET)
        assert other.optim.lr == pytest.approx(first.optim.lr * wanted)


def test_a_recipe_in_a_run_that_is_shorter_than_its_warm_up_is_refused() -> None:
    recipe = ROOT / "configs" / "dino_vit_small_100ep.yaml"
    with pytest.raises(UserError, match=r"10 epochs of warm-up in a run of 3: .* get to 0\.3 of optim.lr; set .*=0\.3"):
        resolve_config(configured(recipe, {"train.epochs": 3}), IMAGENET)
    followed, _ = resolve_config(configured(recipe, {"train.epochs": 3, "optim.warmup_epochs": 0.3}), IMAGENET)
    assert list(remarks_on_spans(followed, 3 * 2502)) == []
    longer, _ = resolve_config(configured(recipe, {"train.epochs": 15}), IMAGENET)
    assert [each[:44] for each in remarks_on_spans(longer, 37530)] == ["optim.warmup_epochs: 10 of 15 epochs, 67% of"]


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"method.teacher_temp": 0.07, "method.warmup_teacher_temp_epochs": 9.0}, "warmup_teacher_temp_epochs: 9"),
        ({"method.teacher_temp": 0.04, "method.warmup_teacher_temp_epochs": 9.0}, None),  # it does not change
        ({"method.freeze_last_layer_epochs": 8.0}, "freeze_last_layer_epochs: 8 epochs in a run of 8"),
        ({"method.name": "ibot", "method.warmup_teacher_temp_epochs": 9.0}, "warmup_teacher_temp_epochs: 9"),
        ({"method.name": "mae", "backbone.name": "vit_tiny_patch16_224", "optim.warmup_epochs": 8.5}, "8.5 epochs"),
    ],
)
def test_phases_that_outlast_a_run_are_refused(settings: dict[str, object], refused: str | None) -> None:
    flags = {"data.path": "nowhere", "data.mean": [0.5] * 3, "data.std": [0.2] * 3, "train.epochs": 8} | settings
    config = load_config(flags=flags)
    if refused is None:
        resolve_config(config, IMAGENET)
    else:
        with pytest.raises(UserError, match=refused):
            resolve_config(config, IMAGENET)


@pytest.mark.parametrize("method", sorted(set(list_methods()) - {"detreg"}))
@pytest.mark.parametrize("epochs", [1, 2, 10])
@pytest.mark.parametrize("images", [300, 100_000])
def test_no_recipe_of_our_own_outlasts_its_run(method: str, epochs: int, images: int) -> None:
    facts = replace(IMAGENET, images=images, side=64)
    flags = {"data.path": "nowhere", "data.mean": [0.5] * 3, "data.std": [0.2] * 3, "method.name": method}
    flags |= {f"method.{key}": value for key, value in NEEDED.get(method, {}).items()}
    config, _ = resolve_config(load_config(flags=flags | {"train.epochs": epochs}), facts)
    steps = max(1, images // config.train.batch_size) * epochs
    assert not [each for each in remarks_on_spans(config, steps) if "momentum" not in each]


def test_a_teacher_that_will_hardly_move_is_named() -> None:
    flags = {"data.path": "nowhere", "data.mean": [0.5] * 3, "data.std": [0.2] * 3, "method.momentum": 0.996}
    config, _ = resolve_config(load_config(flags=flags), IMAGENET)
    assert list(remarks_on_spans(config, 10_000)) == []
    (remark,) = remarks_on_spans(config, 27)
    assert "a run of 27 steps leaves 95% of the teacher as it began; set at most 0.7778" in remark
    followed = config.method.model_copy(update={"momentum": 0.7778})
    assert list(remarks_on_spans(config.model_copy(update={"method": followed}), 27)) == []
