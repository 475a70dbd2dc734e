"""A search: its winner is under the limit and a network as any other, and one that was killed finds the same."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssl_vit.backbones import create_backbone
from ssl_vit.backbones.spaces import space_of
from ssl_vit.backbones.supernet import filled
from ssl_vit.checkpoints.load import backbone_of_file
from ssl_vit.cli import main
from ssl_vit.compress.judge import Judge, calibrated
from ssl_vit.compress.search import SCORES, Found, Limit, search
from ssl_vit.errors import UserError
from ssl_vit.eval.labelfree import rank_me, shared_neighbours
from tests.runs import Trap, finish

LIMIT = 0.5  # millions
SETS = (
    *("train.batch_size=8", "train.epochs=1", "data.workers=0", "train.precision=32-true", "train.checkpoint_every=2"),
    *("backbone.image_size=32", "method.hidden_dim=32", "method.out_dim=16"),
)
BOUNDS: dict[str, Any] = {"population": 4, "generations": 2, "method": "simclr"}


@pytest.fixture(scope="module")
def found(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    out = tmp_path_factory.mktemp("searched") / "out"
    return search(str(pictures / "train"), out, "micro", Limit(LIMIT), sets=SETS, **BOUNDS)


def test_the_winner_is_under_the_limit_and_has_its_part_of_the_weights(found: Found) -> None:
    largest, winner = found.costs
    assert winner.parameters < LIMIT * 1e6 < largest.parameters
    rows = [json.loads(line) for line in (found.folder / SCORES).read_text().splitlines()]
    assert len(rows) == found.scored == 12
    best = max(rows, key=lambda row: row["score"])
    assert best["score"] == found.score
    supernet, alone = backbone_of_file(found.folder / "supernet"), backbone_of_file(found.folder)
    part = filled(space_of("micro"), tuple(best["genes"]), supernet)
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(weight, part.model.state_dict()[name])
    config = json.loads((found.folder / "export" / "config.json").read_text())
    assert config["ssl_vit"]["searched"]["scored by"] == "shared neighbours x rank"
    assert config["model_args"]["embed_dim"] == int(best["genes"][1])


def test_scores_are_the_formulas(found: Found, pictures: Path) -> None:
    """Without labels, shared neighbours times what rank is missing; with labels, k-NN of one half by the other."""
    supernet = backbone_of_file(found.folder / "supernet").eval()
    generator = torch.Generator().manual_seed(0)
    plain, moved = (torch.randint(0, 255, (40, 3, 32, 32), dtype=torch.uint8, generator=generator) for _ in range(2))
    judge = Judge(plain, moved, None, 30.0)
    own, other = judge.features(supernet, plain), judge.features(supernet, moved)
    assert judge.score(supernet) == pytest.approx(shared_neighbours(own, other, 10) * min(1, rank_me(own) / 30))
    labelled = Judge(
        torch.cat([plain, plain])[torch.arange(80) // 2 + 40 * (torch.arange(80) % 2)], moved, np.arange(80) // 2, 1
    )
    assert labelled.score(supernet) > 90  # each image's twin is in the other half


def test_statistics_of_batch_norm_are_the_members_own() -> None:
    network = create_backbone("resnet18", image_size=32)
    images = torch.randint(0, 255, (64, 3, 32, 32), dtype=torch.uint8)
    norm = network.model.bn1
    norm.running_mean.fill_(9.0)
    seen: list[torch.Tensor] = []
    norm.register_forward_hook(lambda _, given, __: seen.append(given[0].detach()))
    assert not calibrated(network, images).training
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert (norm.momentum, norm.training) == (0.1, False)


@pytest.mark.slow
def test_a_search_that_was_killed_finds_the_same(found: Found, pictures: Path, tmp_path: Path) -> None:
    """Killed in training, and in evolution with half a line written."""
    words = [word for text in SETS for word in ("--set", text)]
    argv = ["compress", "search", str(pictures / "train"), "--space", "micro", "--parameters", str(LIMIT)]
    argv += ["--method", "simclr", "--population", "4", "--generations", "2", "--out", str(tmp_path / "out"), *words]
    assert finish(argv, tmp_path / "said", Trap(signal.SIGKILL, 3)) == -signal.SIGKILL
    assert finish([*argv, "--resume"], tmp_path / "said") == 0
    again, whole = tmp_path / "out" / SCORES, (found.folder / SCORES).read_text()
    assert again.read_text() == whole
    again.write_text(whole[: len(whole) // 2])
    (tmp_path / "out" / "export").rename(tmp_path / "before")
    assert main([*argv, "--resume"]) == 0
    assert again.read_text() == whole
    names = (tmp_path / "out" / "export", tmp_path / "before", found.folder / "export")
    assert len({(folder / "model.safetensors").read_bytes() for folder in names}) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--space", "tyni", "--parameters", "5"], "unknown 'tyni'; known: micro, tiny, small, base, glit"),
        (["--space", "micro"], "one of the arguments --parameters --latency is required"),
        (["--space", "micro", "--parameters", "-1"], "-1: expected a number above 0"),
        (["--space", "tiny", "--parameters", "1"], "no member is under 1 M parameters, as its smallest has 4.69 M"),
        (["--space", "micro", "--latency", "1e-6"], "no member is under 1e-06 ms an image, as its smallest has "),
        (["--space", "micro", "--parameters", "1", "--set", "train.space=tiny"], "a search sets train.space itself"),
        (["--space", "micro", "--parameters", "1", "--method", "dinno"], "did you mean dino?"),
        (["--space", "micro", "--parameters", "1", "--resume"], "there is nothing to go on with"),
    ],
)
def test_mistakes_are_found_first(
    words: list[str], says: str, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a line, before anything is written."""
    assert main(["compress", "search", str(pictures / "train"), "--out", str(tmp_path / "out"), *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_limit_is_refused_in_a_folder_that_was_begun(found: Found, pictures: Path) -> None:
    with pytest.raises(UserError, match="was begun with limit") as refused:
        search(str(pictures / "train"), found.folder, "micro", Limit(0.6), sets=SETS, resume=True, **BOUNDS)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["train.sparsity=0.5", "train.diversify=1", "train.checkpoint_activations=true"])
def test_what_cant_follow_is_refused_in_a_line(key: str, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.space: micro, a network of another shape each step, rules") as refused:
        search(str(pictures / "train"), tmp_path / "out", "micro", Limit(LIMIT), sets=(*SETS, key), **BOUNDS)
    assert "\n" not in str(refused.value)
