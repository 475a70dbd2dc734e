"""Whole runs from a folder of images to an export: what they leave, what they refuse, that they repeat themselves."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssl_vit.cli import main
from ssl_vit.config import dump, load_config
from ssl_vit.data import loader
from ssl_vit.data import source as reading
from ssl_vit.eval.weights import load_backbone
from ssl_vit.run import plan
from tests.data.photo import photo
from tests.runs import command, files, finish, losses, rows, weights

PICTURES = 420
SPOILED = 20  # 4.8 %, just under what a run bears


def spoil(path: Path, how: int) -> None:
    """Cut off in the middle, emptied, or a text under an image's name."""
    data = path.read_bytes()
    path.write_bytes((data[: len(data) // 2], b"", b"this was never a picture\n")[how % 3])


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """Pictures of three formats in nested folders without labels, and the names of those that can't be read."""
    root = tmp_path_factory.mktemp("spoiled")
    names = []
    for i in range(PICTURES):
        name = f"{'day/' * (i % 3)}{i:03}.{('png', 'jpg', 'webp')[i // 3 % 3]}"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(40, 48, seed=i)).save(root / name)
        names.append(name)
    bad = random.Random(0).sample(names, SPOILED)
    for how, name in enumerate(bad):
        spoil(root / name, how)
    return root, set(bad)


@pytest.fixture(scope="module")
def run(spoiled: tuple[Path, set[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoiled-run")
    argv = command(spoiled[0], folder / "run", train__batch_size=70, train__epochs=2, health__report=True)
    assert finish(argv, folder / "said") == 0, (folder / "said").read_text()
    return folder / "run"


def test_spoiled_files_are_named_once_and_the_run_finishes(run: Path, spoiled: tuple[Path, set[str]]) -> None:
    listed = [json.loads(line) for line in (run / "bad_images.jsonl").read_text().splitlines()]
    assert len(listed) == SPOILED
    assert {entry["file"] for entry in listed} == spoiled[1]
    assert all(entry["reason"] for entry in listed)
    log = (run / "train.log").read_text()
    assert all(log.count(f"{name} could not be read") == 1 for name in spoiled[1])
    assert "20 files could not be read" in (run.parent / "said").read_text()
    assert len(losses(run)) == 12
    assert json.loads((run / "COMPLETE").read_text())["bad_files"] == SPOILED


def test_the_run_folder_is_whole(run: Path, spoiled: tuple[Path, set[str]]) -> None:
    expected = ".lock COMPLETE bad_images.jsonl checkpoints config.yaml data.json environment.json export images.npz"
    expected += " metrics.jsonl report report.html summary.json tensorboard train.log"
    assert sorted(path.name for path in run.iterdir()) == sorted(expected.split())
    data = json.loads((run / "data.json").read_text())
    assert (data["images"], data["classes"]) == (PICTURES, 0)
    assert data["types"] == {"png": 141, "jpg": 141, "webp": 138}
    assert data["sides"]["short"] == {"min": 40, "median": 40, "max": 40}
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    exported = "README.md SHA256SUMS config.json keys.tsv model.safetensors"
    assert sorted(path.name for path in (run / "export").iterdir()) == exported.split()


def test_the_model_card_says_what_the_weights_are_made_of(run: Path, whole_run: Path) -> None:
    card = (run / "export" / "README.md").read_text()
    sections = {part.split("\n")[0]: yaml.safe_load(part.split("```")[1][4:]) for part in card.split("\n## ")[1:]}
    assert sections["Data"] == {
        "images": PICTURES,
        "bytes": json.loads((run / "data.json").read_text())["bytes"],
        "types": {"png": 141, "jpg": 141, "webp": 138},
        "sides": {name: dict.fromkeys(("min", "median", "max"), side) for name, side in (("short", 40), ("long", 48))},
        "unreadable": SPOILED,
    }
    verdict = json.loads((run / "COMPLETE").read_text())["verdict"]["sentence"]
    helped = json.loads((run / "summary.json").read_text())["did_it_help"]["sentence"]
    assert sections["Evaluation"] == {"health": verdict, "did it help": helped}
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert sections["Settings"]["optim"] == kept["optim"]
    assert kept["data"].pop("path") not in card, "a path of this machine"
    assert "license: unknown  # to be filled in" in card
    assert f"verified in timm {timm.__version__}, outputs within 0 of the run's" in card
    scored = (whole_run / "export" / "README.md").read_text().split("## Evaluation\n\n```yaml\n")[1].split("```")[0]
    last = [row for row in rows(whole_run) if "knn/10" in row][-1]
    found = yaml.safe_load(scored)
    assert found["k-NN top-1 in percent, by k"] == {k[4:]: value for k, value in last.items() if k.startswith("knn/")}
    assert found["protocol"] == last["protocol"]


def test_the_kept_configuration_reproduces_itself(run: Path) -> None:
    """Read, resolved again and written, it is the same bytes: nothing in it is left to be decided."""
    kept = (run / "config.yaml").read_text()
    assert "auto" not in kept
    again, decisions = plan.resolve(load_config([run / "config.yaml"]))
    assert decisions == []
    assert dump(again) == kept


def test_tensorboard_has_the_numbers_of_the_metrics(run: Path) -> None:
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    every_tenth = {event.step: event.value for event in board.Scalars("grad_norm")}
    assert every_tenth == {
        row["step"]: pytest.approx(row["grad_norm"])
        for row in rows(run)
        if "grad_norm" in row and row["step"] % 10 == 0
    }
    ranks = {event.step: event.value for event in board.Scalars("health/rank")}
    assert ranks == {row["step"]: pytest.approx(row["rank"]) for row in rows(run) if "rank" in row}
    assert list(ranks) == [4, 8, 12]


ALONE = """
import sys
sys.modules["ssl_vit"] = None  # any import of it fails
import timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
x = torch.linspace(-2, 2, 3 * 32 * 32).view(1, 3, 32, 32)
print(model(x).flatten().tolist())
"""


def test_the_export_loads_where_there_is_timm_alone(run: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(run / "export")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = load_backbone(run).eval()
    with torch.no_grad():
        expected = ours(torch.linspace(-2, 2, 3 * 32 * 32).view(1, 3, 32, 32)).pooled.flatten().tolist()
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-4, atol=1e-5)


def test_too_many_bad_files_end_the_run_with_the_list(
    spoiled: tuple[Path, set[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(spoiled[0], out, "--set", "data.max_bad=0.02", data__workers=0)) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    listed = [json.loads(line)["file"] for line in (out / "bad_images.jsonl").read_text().splitlines()]
    assert 9 <= len(listed) <= 16  # more than 2 % of 420, at the end of a batch of 8
    assert set(listed) <= spoiled[1]
    assert f"{len(listed)} of 420 images ({len(listed) / 420:.1%}) could not be read" in error
    assert "more than the 2.0% that max_bad allows" in error
    assert all(name in error for name in listed[:5])
    assert f"all are listed in {out / 'bad_images.jsonl'}" in error
    assert not (out / "COMPLETE").exists()


ONE_SIZE = {"backbone__name": "pit_ti_224", "backbone__args": "{}", "backbone__image_size": 224}

SPARSE = {"backbone__name": "dynamicvit_deit_256_patch16_224", "backbone__args": "{}"}
EXPERTS = {"backbone__name": "vmoe_small_patch32_last2_e8_224"}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({**ONE_SIZE, "method__local_size": 96}, "dino asks for local crops of 96 pixels, and pit_ti_224 takes 224"),
        (
            {"method__local_size": 20},
            "dino asks for local crops of 20 pixels, and vit_tiny_patch16_224 takes multiples",
        ),
        ({"backbone__image_size": 30}, "30"),
        ({"backbone__name": "resnet81"}, "resnet81: no such backbone; did you mean"),
        ({"backbone__args": "{patch_sise: 8}"}, "patch_sise"),
        (
            {"backbone__name": "ghostnet_050", "backbone__args": "{}", "method__local_size": 32},
            "drop_path is 0.2, but ghostnet_050 has no stochastic depth",
        ),
        ({**SPARSE, "backbone__args": "{keep_ratio: 0.1}"}, "keep_ratio is 0.1, which keeps none of 4 patches"),
        ({**SPARSE, "backbone__image_size": 16}, "keeps none of 1 patches after 3 stages; it must be 1.0 or more"),
        (
            {**EXPERTS, "backbone__args": "{experts: 8}"},
            "an image has 2 tokens; experts must be 1 to 2",
        ),
        ({**EXPERTS, "backbone__args": "{experts: 2, capacity: 0.0}"}, "capacity is 0.0, no room for one of 2 tokens"),
        ({"train__batch_size": 9, "train__devices": 2}, "9 images can't be shared by 2 processes"),
        ({"train__batch_size": 64}, "48 images are fewer than a batch of 64"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    changes: dict[str, object],
    error: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loader.Views, "_read", never)
    assert main(command(pictures / "train", tmp_path / "run", **changes)) == 2
    said = capfd.readouterr().err
    assert error in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


def test_what_cannot_work_is_refused_before_a_picture_is_decoded(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "decode", never)
    assert main(command(pictures / "train", tmp_path / "run", method__local_size=20)) == 2


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a picture was decoded")


def test_a_backbone_of_one_size_gets_local_crops_of_that_size(pictures: Path) -> None:
    flags = {"data.path": str(pictures / "train"), "backbone.name": "pit_ti_224", "method.local_crops": 2}
    resolved, _ = plan.resolve(load_config(flags=flags))
    sizes = [view.size for view in resolved.method.views(224).views]
    assert sizes == [224, 224, 224]


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(
    whole_run: Path, pictures: Path, tmp_path: Path
) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    val = ("--val", str(pictures / "val"))
    assert finish(command(pictures / "train", again, *val, data__workers=0), tmp_path / "said") == 0
    assert (again / "metrics.jsonl").read_bytes() == (whole_run / "metrics.jsonl").read_bytes()
    assert weights(again) == weights(whole_run)
    assert finish(command(pictures / "train", other, "--seed", "1", train__epochs=1), tmp_path / "said") == 0
    assert losses(other)[0] != losses(whole_run)[0]


def test_online_knn_is_eval_knn(whole_run: Path, pictures: Path, tmp_path: Path) -> None:
    before = files(whole_run)
    sides = ["--train", str(pictures / "train"), "--val", str(pictures / "val")]
    assert main(["eval", "knn", str(whole_run), *sides, "--json", str(tmp_path / "knn.json")]) == 0
    expected = json.loads((tmp_path / "knn.json").read_text())["knn"]
    scores = [row for row in rows(whole_run) if "knn/10" in row]
    assert [row["step"] for row in scores] == [0, 12, 24, 30]
    assert {key.removeprefix("knn/"): value for key, value in scores[-1].items() if key[:4] == "knn/"} == expected
    assert files(whole_run) == before
