"""Segmenters from scratch and from weights: the command on painted scenes, kills, mistakes, and what is scored."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.eval import scene_loop, segmenting
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.job import Job
from ssl_vit.eval.kinds.segmentation import Segmentation
from ssl_vit.eval.unfinished import Unfinished
from ssl_vit.segmenters.segmenter import Segmentation as Found
from ssl_vit.segmenters.segmenter import Segmenter
from tests import runs
from tests.eval.test_detection import ARGS, painted
from tests.eval.test_segmentation import scenes
from tests.export.conftest import randomised, written

QUICK = ["--steps", "3", "--batch", "2", "--size", "64", "--seeds", "0,1"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    found = {name: painted(root / name, count) for name, count in (("train", 8), ("val", 5))}
    found |= {f"masks_{name}": scenes(root / f"m{name}", 6, seed) for seed, name in enumerate(("train", "val"))}
    backbone = randomised("resnet18", model_args=ARGS)
    written(backbone, root / "run" / "export", mean=(0.5,) * 3, std=(0.25,) * 3, description={})
    return found | {"run": root / "run"}


def command(sets, out, head, *more, kind=""):
    folders = ["--train", str(sets[f"{kind}train"]), "--val", str(sets[f"{kind}val"]), "--json", str(out)]
    return ["eval", "segmentation", str(sets["run"]), *folders, "--head", head, *QUICK, *more]


def test_the_command_scores_both_draws_and_leaves_nothing_behind(sets, tmp_path, capsys):
    picture = tmp_path / "maps.png"
    more = ("--figure", str(picture), "--size", "32")
    assert main(command(sets, tmp_path / "score.json", "maskformer", *more)) == 0
    result = json.loads((tmp_path / "score.json").read_text())
    assert set(result["segmentation"]) == {"100%"}
    assert len(result.pop("examples")) == 5
    assert json.loads(capsys.readouterr().out) == result
    for found in result["segmentation"].values():
        assert {"mIoU", "accuracy", "PQ", "SQ", "RQ", "PQ_things", "PQ_stuff"} == set(found["scratch"])
        pairs = zip(found["scratch"]["mIoU"]["seeds"], found["weights"]["mIoU"]["seeds"], strict=True)
        assert found["difference"]["mIoU"]["seeds"] == [b - a for a, b in pairs]
        assert "mIoU" in found["verdict"]
    assert result["protocol"]["images"] == {"train": 8, "val": 5}
    assert result["protocol"]["classes_by_name"] == ["background", "red", "green"]
    assert Image.open(picture).width > 500
    assert {path.name for path in tmp_path.iterdir()} == {"score.json", "maps.png"}


@pytest.mark.parametrize("head", ["upernet", "fpt"])
def test_masks_of_classes_are_learnt_by_every_head(head, sets, tmp_path):
    """There is no panoptic quality of masks that tell no objects apart, nor of heads that don't."""
    job = Job(sets["run"], {side: sets[f"masks_{side}"] for side in ("train", "val")})
    trial = segmenting.plan(job, Segmentation(head=(head,), size=64, batch=2))
    assert trial.train.classes == ("0", "3", "7")
    found = trial.run("weights", 100, 0, 2, Unfinished(None, {}))
    assert found["read"] == 6
    assert set(found["scores"]) == {"mIoU", "accuracy"}
    assert trial.settings(Segmentation())["steps"] == {"100%": 500}


class Perfect(Segmenter):
    """Finds what is there."""

    finds_segments = True

    def __init__(self):
        nn.Module.__init__(self)

    def segment(self, scenes):
        found = []
        for scene in scenes:
            own = torch.from_numpy(scene.truth.map.astype(np.int64))
            found.append(Found(torch.from_numpy(scene.truth.classes()), own, torch.from_numpy(scene.truth.labels)))
        return found


def test_what_is_there_scores_all(sets):
    job = Job(sets["run"], {side: sets[side] for side in ("train", "val")})
    trial = segmenting.plan(job, Segmentation(head=("maskformer",), size=64, batch=2))
    result = trial.scored(Perfect())
    assert all(value == pytest.approx(100) for value in result["scores"].values())
    assert [example["true"] for example in result["examples"]] == [example["found"] for example in result["examples"]]
    scratch, weights = (trial.begin(arm, seed=3).state_dict() for arm in ("scratch", "weights"))
    for key, value in scratch.items():
        of_backbone = key.startswith("levels.body.") and not key.endswith("num_batches_tracked")
        assert torch.equal(value, weights[key]) != of_backbone, key


def _killed(argv, log, step):
    """The command, which is killed as it begins a step; every step leaves a checkpoint."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    scene_loop.SAVE_EVERY = -1.0
    torch.set_num_threads(1)
    seed, count = scene_loop.noise_seed, iter(range(10**6))

    def trapped(*at):
        if next(count) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return seed(*at)

    scene_loop.noise_seed = trapped
    raise SystemExit(main(argv))


@pytest.mark.slow
def test_a_killed_comparison_ends_with_the_same_numbers(sets, tmp_path):
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    for out, steps in ((whole, [99]), (stopped, [2, 99])):
        for step in steps:
            argv = command(sets, out, "maskformer", "--seeds", "0", "--composite", "2")
            process = runs.process_of(_killed, argv, str(tmp_path / "log"), step)
            process.join()
            assert process.exitcode == (0 if step == 99 else -signal.SIGKILL), (tmp_path / "log").read_text()
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_composite_learns_with_those_that_assist(sets):
    """The same head on their maps too, at half the weight: they learn, and so do the links."""
    job = Job(sets["run"], {side: sets[f"masks_{side}"] for side in ("train", "val")})
    asked = Segmentation(head=("upernet",), size=64, batch=2, composite=2, composite_shared=1)
    trial = segmenting.plan(job, asked)
    assert "2 backbones, 1 shared stages" in trial.settings(asked)["composite"]
    segmenter = trial.begin("weights", 0).train()
    seen = [trial.training(0)[0, index] for index in range(2)]
    torch.manual_seed(0)
    parts = scene_loop._parts(segmenter, seen)
    assert len(parts) == 4
    torch.manual_seed(0)
    alone = list(segmenter.losses(seen).values())
    torch.testing.assert_close(parts[:2], alone)
    parts[2].backward()
    first, lead = segmenter.trunk().networks
    assert first.layer4[0].conv1.weight.grad.abs().sum() > 0
    assert lead.layer4[0].conv1.weight.grad is None
    assert trial.run("weights", 100, 0, 2, Unfinished(None, {}))["read"] == 6


@pytest.mark.parametrize(
    ("head", "more", "said"),
    [
        ("upernet,fpt", (), "of those that learn (fpt, maskformer, upernet) one at a time"),
        ("upernet,linear", (), "one at a time; name one"),
        ("unet", (), "head: expected"),
        ("upernet", ("--layers", "last4"), "--layers is for frozen patches, and --head upernet learns"),
        ("upernet", ("--batch", "1"), "--batch 1: batch norm needs 2 images a step; give --batch 2"),
        ("upernet", ("--share", "10"), "--share 10: 1 of 8 images, batch norm needs 2 a step"),
        ("upernet", ("--size", "65"), "--size 65: resnet18 under a pyramid takes multiples of 32; try --size 64"),
        ("linear", (), "--seeds says how a segmenter learns, and nothing learns here"),
        ("maskformer", ("--composite-shared", "1"), "nothing is composed; give --composite 2 too"),
        ("maskformer", ("--composite", "2", "--composite-shared", "4"), "has 4 stages, of which one is left"),
        ("maskformer", ("--val-images", "nowhere"), "no images: 5 are annotated and none"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_line_before_any_training(head, more, said, sets, tmp_path, capsys):
    assert main(command(sets, tmp_path / "score.json", head, *more)) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ssl-vit")]
    assert len(err) == 1
    assert said in err[0]


def test_broken_masks_are_counted_and_too_many_end_it(sets, tmp_path, caplog):
    folder = scenes(tmp_path / "set", 4, 3)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(folder / "masks" / "001.png")
    (folder / "images" / "002.png").unlink()
    job = Job(sets["run"], {"train": sets["masks_train"], "val": folder})
    with pytest.raises(UserError, match=r"--val .*: 2 of 4 images \(50.0%\) can't be used, more than the 5.0%"):
        segmenting.plan(job, Segmentation(head=("fpt",), size=64))
    segmenting.plan(job, Segmentation(head=("fpt",), size=64, max_bad=0.5))
    assert job.sides["val"].left_out == 2
    assert "9 x 9 pixels, the image 60 x 48: images/001.png" in caplog.text
    for file in (folder / "masks").iterdir():
        Image.fromarray(np.zeros((9, 9), np.uint8)).save(file)
    with pytest.raises(UserError, match="none of the 4 images can be used"):
        segmenting.plan(job, Segmentation(head=("fpt",), size=64, max_bad=0.5))
    Image.fromarray(np.full((48, 60), 9, np.uint8)).save(folder / "masks" / "000.png")
    with pytest.raises(UserError, match="--val: 1 segments of '9', which --train doesn't have"):
        segmenting.plan(job, Segmentation(head=("fpt",), size=64, max_bad=0.9))


def test_frozen_heads_read_cocos_outlines_too(sets, tmp_path):
    found = evaluate("segmentation", sets["run"], train=sets["train"], val=sets["val"], head="linear")
    assert set(found["segmentation"]) == {"linear"}
    assert found["segmentation"]["linear"]["mIoU"] > 40
    assert found["protocol"]["classes"] == 3
