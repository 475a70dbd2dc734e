"""Detection transfer: the command on painted images, kills, mistakes, and its statistics against scipy's."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from ssl_vit.backbones import create_backbone
from ssl_vit.cli import main
from ssl_vit.data.annotations import open_annotations
from ssl_vit.data.detection import DetectionDataset
from ssl_vit.detectors.build import build_finder
from ssl_vit.detectors.detector import Detections
from ssl_vit.detectors.finder import Finder
from ssl_vit.errors import UserError
from ssl_vit.eval import detection, scene_loop
from ssl_vit.eval.detection_data import canvas, numbered_alike
from ssl_vit.eval.gains import gain_summary
from ssl_vit.eval.job import Job
from ssl_vit.eval.kinds.detection import Detection
from ssl_vit.eval.unfinished import Unfinished
from tests import runs
from tests.export.conftest import randomised, written

ARGS = {"channels": [8, 16, 32, 64]}
QUICK = ["--steps", "3", "--batch", "2", "--size", "64", "--seeds", "0,1"]


def painted(path, images, outlines=True):
    """A COCO file, and images of several shapes with a red and a green rectangle each."""
    rng, content = np.random.default_rng(images), {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    path.mkdir()
    for i in range(images):
        height, width = (int(side) for side in rng.integers(70, 140, 2))
        pixels = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
        content["images"].append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
        for label in range(2):
            x, y = int(rng.integers(width // 6)) + label * width // 2, int(rng.integers(height // 2))
            w, h = width // 3, height // 3
            pixels[y : y + h, x : x + w, label] = 250
            box = {"id": 2 * i + label, "image_id": i, "category_id": label + 1, "bbox": [x, y, w, h], "iscrowd": 0}
            ring = [x, y, x + w, y, x + w, y + h, x, y + h]
            box |= {"area": w * h, "segmentation": [ring] if outlines else {"counts": [3, 2], "size": [height, width]}}
            content["annotations"].append(box)
        Image.fromarray(pixels).save(path / f"{i}.png")
    (path / "boxes.json").write_text(json.dumps(content))
    return path / "boxes.json"


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    found = {name: painted(root / name, count) for name, count in (("train", 8), ("val", 5))}
    found["bare"] = painted(root / "bare", 3, outlines=False)
    backbone = randomised("resnet18", model_args=ARGS)
    written(backbone, root / "run" / "export", mean=(0.5,) * 3, std=(0.25,) * 3, description={})
    return found | {"run": root / "run"}


def command(sets, out, *more, train="train", val="val"):
    folders = ["--train", str(sets[train]), "--val", str(sets[val]), "--json", str(out)]
    return ["eval", "detection", str(sets["run"]), *folders, *QUICK, *more]


def test_the_command_scores_both_draws_and_leaves_nothing_behind(sets, tmp_path, capsys):
    picture = tmp_path / "boxes.png"
    assert main(command(sets, tmp_path / "score.json", "--figure", str(picture), "--share", "50,100")) == 0
    result = json.loads((tmp_path / "score.json").read_text())
    assert set(result["detection"]) == {"50%", "100%"}
    assert len(result.pop("examples")) == 5
    assert json.loads(capsys.readouterr().out) == result
    for found in result["detection"].values():
        for arm in ("scratch", "weights", "difference"):
            assert len(found[arm]["mAP"]["seeds"]) == 2
        pairs = zip(found["scratch"]["mAP50"]["seeds"], found["weights"]["mAP50"]["seeds"], strict=True)
        assert found["difference"]["mAP50"]["seeds"] == [b - a for a, b in pairs]
    assert result["protocol"]["images"] == {"train": 8, "val": 5}
    assert Image.open(picture).width > 500
    assert {path.name for path in tmp_path.iterdir()} == {"score.json", "boxes.png"}


def _killed(argv, log, run, step):
    """The command, which is killed as it begins a step of one of its runs; every step leaves a checkpoint."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    scene_loop.SAVE_EVERY = -1.0
    torch.set_num_threads(1)
    seed, count = scene_loop.noise_seed, iter(range(10**6))

    def trapped(*at):
        if next(count) == 3 * run + step:
            os.kill(os.getpid(), signal.SIGKILL)
        return seed(*at)

    scene_loop.noise_seed = trapped
    raise SystemExit(main(argv))


def test_a_killed_comparison_ends_with_the_same_numbers(sets, tmp_path):
    """Killed in the middle of a run."""
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    once = ("--seeds", "0")
    for out, kills in ((whole, []), (stopped, [(0, 2)])):
        for run, step in [*kills, (99, 0)]:
            process = runs.process_of(_killed, command(sets, out, *once), str(tmp_path / "log"), run, step)
            process.join()
            assert process.exitcode == (0 if run == 99 else -signal.SIGKILL), (tmp_path / "log").read_text()
            assert (tmp_path / "stopped.json.unfinished").is_dir() == (run != 99)
    assert stopped.read_bytes() == whole.read_bytes()


def test_another_question_does_not_go_on_with_what_is_unfinished(sets, tmp_path, capsys):
    folder = tmp_path / "score.json.unfinished"
    Unfinished(folder, {"detector": "faster_rcnn"}).finish("100-scratch-0", 1)
    assert main(command(sets, tmp_path / "score.json")) == 2
    assert "an unfinished score with another" in capsys.readouterr().err
    assert Unfinished(folder, {"detector": "faster_rcnn"}).done == {"100-scratch-0": 1}


@pytest.mark.parametrize(
    ("break_", "more", "said"),
    [
        (lambda text: text[:-40], (), "no valid JSON"),
        (
            lambda text: text.replace('"red"', '"blue"'),
            (),
            "--val: 5 boxes of 'blue', which --train doesn't have (red, green)",
        ),
        (lambda text: text.replace('"file_name"', '"name"'), (), "has no file_name that is a str"),
        (lambda text: text.replace("0.png", "x.png"), ("--val-images", "no"), "no images: 5 are annotated and none"),
        (str, ("--size", "65"), "--size 65: resnet18 under a pyramid takes multiples of 32; try --size 64"),
        (str, ("--detector", "yolos"), "resnet18: YOLOS is made of a plain ViT with a class token"),
        (str, ("--detector", "fast_rcnn"), "detector: expected faster_rcnn or retinanet or mask_rcnn"),
        (str, ("--share", "0,100"), "share: expected non-empty [a number > 0 and ≤ 100, …], got '0,100'"),
        (str, ("--seeds", "1,1"), "seeds: expected different numbers, got '1,1'"),
        (str, ("--layers", "last4"), "unknown flag --layers"),
    ],
)
def test_a_mistake_gets_one_line_before_any_training(break_, more, said, sets, tmp_path, capsys):
    broken = tmp_path / "broken.json"
    broken.write_text(break_(sets["val"].read_text()))
    folder = () if "--val-images" in more else ("--val-images", str(sets["val"].parent))
    assert main(command({**sets, "val": broken}, tmp_path / "score.json", *folder, *more)) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ssl-vit")]
    assert len(err) == 1
    assert said in err[0]


def test_the_extra_is_asked_for_before_any_training(sets, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    assert main(command(sets, tmp_path / "score.json")) == 2
    assert "pip install 'ssl_vit[detection]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_masks_are_asked_for_where_none_are(sets, tmp_path, capsys):
    argv = command(sets, tmp_path / "score.json", "--detector", "mask_rcnn", train="bare")
    assert main(argv) == 2
    assert "6 of 6 objects have no outline that can be drawn, more than the 5.0%" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trial(sets):
    """What a comparison on these sets is made of."""
    job = Job(sets["run"], {"train": sets["train"], "val": sets["val"]})
    return detection.plan(job, Detection(detector="mask_rcnn", size=64, batch=2))


class Perfect(Finder):
    """Finds what is there, on the canvas, with some rubbish of low score."""

    def find(self, scenes):
        return [
            Detections(
                torch.cat([scene.boxes, torch.tensor([[0.0, 0.0, 9.0, 9.0]])]),
                torch.tensor([0.9] * len(scene.boxes) + [0.1]),
                torch.cat([scene.labels, torch.tensor([0])]),
                torch.cat([scene.masks, scene.masks[:1]])[:, : scene.extent[0], : scene.extent[1]],
            )
            for scene in scenes
        ]


def test_what_is_found_is_scored_in_pixels_of_the_original(trial):
    result = trial.scored(Perfect())
    scores, examples = result["scores"], result["examples"]
    assert all(value == pytest.approx(100) for value in scores.values())
    assert set(scores) == {"mAP", "mAP50", "mAP75", "mask_mAP", "mask_mAP50", "mask_mAP75"}
    for example in examples:
        np.testing.assert_allclose(example["found"], example["true"], atol=1e-3)
        assert example["found_names"] == ["red 0.90", "green 0.90"]


@pytest.mark.parametrize("name", ["retinanet", "mask_rcnn", "yolos"])
def test_every_kind_of_detector_is_trained_and_scored(name, sets, tmp_path):
    """The others are run by other tests here and by those of DETReg."""
    vit = randomised("vit_tiny_patch16_224", model_args={"embed_dim": 24, "depth": 1, "num_heads": 2, "img_size": 64})
    written(vit, tmp_path / "run" / "export", mean=(0.5,) * 3, std=(0.25,) * 3, description={})
    job = Job(tmp_path / "run", {"train": sets["train"], "val": sets["val"]})
    trial = detection.plan(job, Detection(detector=name, size=64, batch=2))
    found = trial.run("weights", 100, 0, 2, Unfinished(None, {}))
    assert found["read"] == 5
    assert all(0 <= value <= 100 for value in found["scores"].values())
    assert ("mask_mAP" in found["scores"]) == (name == "mask_rcnn")


def test_a_composite_finds_at_first_what_the_single_backbone_finds(sets):
    """And it learns; YOLOS, which has no stages, refuses it."""
    job = Job(sets["run"], {"train": sets["train"], "val": sets["val"]})
    asked = Detection(detector="faster_rcnn", size=64, batch=2)
    both = asked.model_copy(update={"composite": 2, "composite_shared": 1})
    single, composite = detection.plan(job, asked), detection.plan(job, both)
    scenes = [single.training(0)[0, index] for index in range(2)]
    with torch.inference_mode():
        found = [trial.begin("weights", 0).eval().find(scenes) for trial in (single, composite)]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(one.scores, other.scores)
    assert composite.run("weights", 100, 0, 2, Unfinished(None, {}))["read"] == 5
    assert single.settings(asked) | {"composite": "2 backbones, 1 shared stages, auxiliary loss 0.5"} == (
        composite.settings(both)
    )
    with pytest.raises(UserError, match="--composite: YOLOS reads tokens"):
        detection.plan(job, both.model_copy(update={"detector": "yolos"}))


def test_both_detectors_have_the_same_head_and_other_backbones(trial):
    scratch, weights = (trial.begin(arm, seed=3).state_dict() for arm in ("scratch", "weights"))
    for key, value in scratch.items():
        of_backbone = key.startswith("model.backbone.body.") and not key.endswith("num_batches_tracked")
        assert torch.equal(value, weights[key]) != of_backbone, key
    loaded = trial.job.backbone.model.state_dict()
    for key, value in loaded.items():
        assert torch.equal(weights[f"model.backbone.body.{key}"], value)
    other = trial.begin("scratch", seed=4).state_dict()
    assert not torch.equal(other["model.backbone.body.conv1.weight"], scratch["model.backbone.body.conv1.weight"])


def test_the_backbone_learns_at_its_own_rate(sets):
    annotations = open_annotations(sets["train"])
    torch.manual_seed(0)
    finder = build_finder("faster_rcnn", create_backbone("resnet18", model_args=ARGS), 2, 64)
    before = {name: value.clone() for name, value in finder.named_parameters()}
    data = DetectionDataset(annotations, 64, training=True)
    scene_loop.train_on_scenes(finder, data, np.arange(8), scene_loop.SceneRecipe(2, 2, 1e-3, 1e-9, 0))
    trunk = {id(parameter) for parameter in finder.trunk().parameters()}
    for name, value in finder.named_parameters():
        change = (value - before[name]).abs().max()
        assert change < 1e-8 if id(value) in trunk else change > 1e-4, name


def test_intervals_are_students(capsys):
    rng = np.random.default_rng(0)
    scratch, weights = rng.normal(20, 2, 4), rng.normal(25, 2, 4)
    found = gain_summary([{"mAP": x} for x in scratch], [{"mAP": x} for x in weights])
    for values, key in ((scratch, "scratch"), (weights, "weights"), (weights - scratch, "difference")):
        low, high = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
        assert found[key]["mAP"]["low"] == pytest.approx(low, abs=1e-3)
        assert found[key]["mAP"]["high"] == pytest.approx(high, abs=1e-3)
    test = scipy.stats.ttest_rel(weights, scratch)
    assert found["verdict"].startswith("the weights help") == (test.pvalue < 0.05)


@pytest.mark.parametrize(
    ("gains", "said"),
    [
        ([4.0, 5.0, 4.5], "the weights help: +4.5 mAP, 95 % interval +3.3 to +5.7 over 3 seeds"),
        ([-4.0, -5.0, -4.5], "the weights hurt: -4.5 mAP"),
        ([4.0, -3.0, 1.0], "no difference can be told: +0.7 mAP"),
        ([4.0], "+4.0 mAP with the weights, of one seed: no word about chance"),
    ],
)
def test_the_verdict_says_what_the_interval_allows(gains, said):
    found = gain_summary([{"mAP": 10.0}] * len(gains), [{"mAP": 10.0 + gain} for gain in gains])
    assert found["verdict"].startswith(said)


def test_the_canvas_is_as_large_as_the_images_are(sets):
    train = open_annotations(sets["train"])
    info = create_backbone("resnet18", model_args=ARGS).info
    longest = np.median([max(size) for size in train.sizes])
    assert canvas(info, train.sizes, "auto") == 32 * -(-longest // 32)


def test_classes_of_val_are_told_by_their_names(sets):
    """As Pascal VOC's folders have them: those that occur, in the order of the alphabet."""
    train, val = open_annotations(sets["train"]), open_annotations(sets["val"])
    turned = replace(val, classes=("green", "red"), objects=[o._replace(labels=1 - o.labels) for o in val.objects])
    few = replace(turned, classes=("green",), objects=[o._replace(labels=o.labels * 0) for o in val.objects])
    for other, expected in ((turned, val.counts()), (few, {"red": 0, "green": 10})):
        found = numbered_alike(other, train)
        assert found.classes == ("red", "green")
        assert found.counts() == expected
