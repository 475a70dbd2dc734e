"""Boxes kept in a folder: the same bytes after a kill, from two processes as from one, with workers as without."""

import hashlib
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.sources import open_source
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.proposals import create_prior
from ssl_vit.proposals.propose import propose
from ssl_vit.proposals.store import BOXES, Proposals
from tests.runs import ended, program, wait_for

# A prior that takes its time and says when it looks, over three blocks of images a row; arguments: images, folder.
SLOWLY = """
import sys, time
from ssl_vit.data import store
from ssl_vit.data.sources import open_source
from ssl_vit.proposals import propose, random
propose = __import__("importlib").import_module("ssl_vit.proposals.propose")
store._COMMIT = 1
propose._BLOCK = 8
look = random.RandomBoxes.look
def slow(self, image, index):
    time.sleep(0.05)
    print(index, flush=True)
    return look(self, image, index)
random.RandomBoxes.look = slow
propose.propose(open_source(sys.argv[1]), random.RandomBoxes(count=4, seed=3), sys.argv[2], workers=0)
"""


def start(images, folder, said):
    return program(SLOWLY, [str(images), str(folder)], said)


def words(said):
    return said.read_text().split() if said.exists() else []


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*/*.*")
    }


def test_what_is_kept_is_what_the_prior_says(pictures, tmp_path):
    source, prior = open_source(pictures / "train"), create_prior("random", count=7, seed=2)
    alone, many = (propose(source, prior, tmp_path / str(n), workers=n) for n in (0, 2))
    assert len(alone) == len(source) == 48
    blank = np.zeros((4, 4, 3), np.uint8)
    for index in (0, 20, 47):
        np.testing.assert_array_equal(alone[index], prior(blank, index))
    assert isinstance(alone.boxes.base, np.memmap)
    np.testing.assert_array_equal(alone.boxes, many.boxes)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(many))[5], alone[5])
    assert len(pickle.dumps(many)) < 1000


def test_other_settings_and_other_images_have_their_own_folder(pictures, tmp_path):
    source = open_source(pictures / "train")
    first = propose(source, create_prior("random", count=3), tmp_path)
    before = digest(tmp_path)
    again = propose(source, create_prior("random", count=3), tmp_path)
    assert again.folder == first.folder
    assert digest(tmp_path) == before
    others = [
        propose(source, create_prior("random", count=3, seed=1), tmp_path),
        propose(source, create_prior("random", count=4), tmp_path),
        propose(open_source(pictures / "val"), create_prior("random", count=3), tmp_path),
    ]
    assert len({each.folder for each in (first, *others)}) == 4
    assert before.items() <= digest(tmp_path).items()
    assert others[1].boxes.shape == (48, 4, 4)


def test_images_that_were_edited_in_place_have_boxes_of_their_own(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 9, 9)).save(tmp_path / f"{i}.bmp")

    def folder():
        return propose(open_source(tmp_path), create_prior("random", count=3), tmp_path / "boxes").folder

    first = folder()
    assert folder() == first
    Image.new("RGB", (8, 8), "red").save(tmp_path / "1.bmp")
    second = folder()
    assert second.name == f"{first.name}-2"
    Image.new("RGB", (8, 8), (1, 9, 9)).save(tmp_path / "1.bmp")
    assert folder() == first
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "1.bmp")
    assert folder().name == f"{first.name}-3"


@pytest.mark.fault
def test_a_killed_process_loses_nothing_that_was_there(pictures, tmp_path):
    images = pictures / "train"
    propose(open_source(images), create_prior("random", count=4, seed=3), tmp_path / "whole", workers=0)
    killed = start(images, tmp_path / "cut", tmp_path / "killed")
    wait_for(lambda: killed.exitcode is not None or "29" in words(tmp_path / "killed"))
    killed.kill()
    killed.join()
    (folder,) = (tmp_path / "cut").glob("random-????????????")
    with pytest.raises(UserError, match="of 48 images have no proposals yet"):
        Proposals(folder)
    assert ended(start(images, tmp_path / "cut", tmp_path / "resumed")) == 0
    assert words(tmp_path / "resumed") == [
        str(index) for index in range(24, 48)
    ]  # three whole blocks of eight were there
    assert digest(tmp_path / "cut") == digest(tmp_path / "whole")


@pytest.mark.dist
def test_a_second_process_waits_and_does_nothing_twice(pictures, tmp_path):
    both = [start(pictures / "train", tmp_path, tmp_path / f"said{number}") for number in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert sorted(len(words(tmp_path / f"said{number}")) for number in range(2)) == [0, 48]
    (folder,) = tmp_path.glob("random-????????????")
    expected = create_prior("random", count=4, seed=3)
    np.testing.assert_array_equal(Proposals(folder)[47], expected(np.zeros((4, 4, 3), np.uint8), 47))


@pytest.mark.fault
def test_unreadable_images_are_named_and_have_no_boxes(pictures, tmp_path, caplog):
    images = tmp_path / "images"
    images.mkdir()
    for number, path in enumerate(sorted((pictures / "train").rglob("*.png"))[:20]):
        (images / f"{number:02d}.png").write_bytes(path.read_bytes())
    (images / "07.png").write_bytes(b"no image")
    prior = create_prior("random", count=3)
    proposals = propose(open_source(images), prior, tmp_path / "boxes")
    assert [len(proposals[index]) for index in (6, 7, 8)] == [3, 0, 3]
    assert "07.png could not be read" in caplog.text
    (listed,) = (tmp_path / "boxes").glob("*.bad.jsonl")
    assert '"file": "07.png"' in listed.read_text()
    with pytest.raises(RunFailed, match=re.escape("1 of 20 images (5.0%) could not be read")):
        propose(open_source(images), prior, tmp_path / "strict", max_bad=0.01)


def test_a_folder_without_boxes_is_refused(tmp_path):
    with pytest.raises(UserError, match="no folder of proposals"):
        Proposals(tmp_path)
    (tmp_path / BOXES).write_bytes(b"torn")
    with pytest.raises(UserError, match="no folder of proposals"):
        Proposals(tmp_path)
