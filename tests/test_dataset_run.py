"""Runs on datasets learn what a run on the folder of the same images learns, to the bit, stopped and resumed or not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from torchvision.datasets import ImageFolder

import ssl_vit
from ssl_vit.errors import UserError
from tests.runs import SETTINGS, Trap, command, ended, finish, losses, process_of, program, two_ranks, weights
from tests.runs import _lay as lay

CHOSEN = {key: yaml.safe_load(str(value)) for key, value in SETTINGS.items()}  # values instead of a command's words


@pytest.fixture(scope="module")
def saved(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images, in the order of their names, as `save_to_disk` writes them."""
    folder, classes = tmp_path_factory.mktemp("saved"), sorted(path.name for path in (pictures / "train").iterdir())
    files = sorted((pictures / "train").rglob("*.*"))
    rows = {
        "picture": [{"bytes": file.read_bytes(), "path": file.name} for file in files],
        "kind": [classes.index(file.parent.name) for file in files],
    }
    kinds = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=classes)})
    datasets.Dataset.from_dict(rows, features=kinds).save_to_disk(folder / "train")
    return folder / "train"


@pytest.mark.slow
def test_a_saved_dataset_stopped_and_resumed(saved: Path, pictures: Path, whole_run: Path, tmp_path: Path) -> None:
    line = command(saved, tmp_path / "run", "--val", str(pictures / "val"))
    assert finish(line, tmp_path / "said", Trap(signal.SIGTERM, step=7)) == 143, (tmp_path / "said").read_text()
    assert finish([*line, "--resume"], tmp_path / "said") == 0, (tmp_path / "said").read_text()
    assert losses(tmp_path / "run") == losses(whole_run)
    assert weights(tmp_path / "run") == weights(whole_run)


def learn(pictures: Path, out: Path, said: str, resume: bool, *traps: Trap) -> None:
    """In a process of its own: objects of torchvision as images to learn from and to score on."""
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    for trap in traps:
        lay(trap)
    train, val = (ImageFolder(str(pictures / side)) for side in ("train", "val"))
    try:
        ssl_vit.pretrain(train, out, None if resume else CHOSEN, val=val, resume=resume)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def test_objects_of_a_program_stopped_and_resumed(pictures: Path, whole_run: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", tmp_path / "said"
    stopped = process_of(learn, pictures, out, str(said), False, Trap(signal.SIGTERM, step=7))
    stopped.join()
    assert stopped.exitcode == 143, said.read_text()
    assert f"go on with: ssl_vit.pretrain(dataset, {str(out)!r}, resume=True)" in said.read_text()
    with pytest.raises(
        UserError, match=r"ImageFolder: the images have changed since this run began \(48 images; now 24 images\)"
    ):
        ssl_vit.pretrain(ImageFolder(str(pictures / "val")), out, resume=True, val=pictures / "val")
    with pytest.raises(
        UserError, match=r"python:torchvision.*a dataset that a Python program handed over; go on in that"
    ):
        ssl_vit.pretrain(ImageFolder(str(pictures / "train")), out, resume=True)
    resumed = process_of(learn, pictures, out, str(said), True)
    resumed.join()
    assert resumed.exitcode == 0, said.read_text()
    assert weights(out) == weights(whole_run)
    assert (out / "COMPLETE").exists()


def test_a_configuration_leaves_no_room_beside_it(tmp_path: Path) -> None:
    config = ssl_vit.load_config(flags={"data.path": "photos"})
    with pytest.raises(UserError, match="a configuration is whole"):
        ssl_vit.pretrain(config, tmp_path / "run", {"train.epochs": 1})


@pytest.mark.dist
@pytest.mark.parametrize("same", [True, False])
def test_every_process_makes_the_dataset_itself(same: bool, pictures: Path, tmp_path: Path) -> None:
    """Two processes of one program; where the program chooses images by chance, the run ends before its first step."""
    code = f"""
        import os, ssl_vit
        from torch.utils.data import Subset
        from torchvision.datasets import ImageFolder

        first = 0 if {same} else int(os.environ.get("LOCAL_RANK", 0))
        images = Subset(ImageFolder({str(pictures / "train")!r}), range(first, first + 40))
        settings = {CHOSEN | {"train.epochs": 1, "train.devices": 2, "data.workers": 0}!r}
        ssl_vit.pretrain(images, {str(tmp_path / "run")!r}, settings)
    """
    said = tmp_path / "said"
    two = [program(code, [], said, **environment) for environment in two_ranks()]
    codes = [ended(process) for process in two]
    if same:
        assert codes == [0, 0], said.read_text()
        assert len(losses(tmp_path / "run")) == 5
    else:
        assert codes == [1, 1]
        assert "RunFailed: the processes of this run have different images (0: {'images': 40" in said.read_text()
        assert not (tmp_path / "run" / "metrics.jsonl").exists(), "no step was taken"


@pytest.mark.slow  # an interpreter of its own
def test_a_program_that_is_no_file_can_not_be_started_again(pictures: Path, tmp_path: Path) -> None:
    settings = CHOSEN | {"train.devices": 2}
    program = f"import ssl_vit; ssl_vit.pretrain({str(pictures / 'train')!r}, {str(tmp_path / 'run')!r}, {settings!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        "UserError: 2 devices: the program is started once more for each of them, and this one is no file"
        in done.stderr
    )
    assert not (tmp_path / "run").exists()
