"""Shape against texture on images where the outcome is known: the classifier sees nothing but stripes or colour."""

import numpy as np
import pytest
from PIL import Image

from ssl_vit.data.sources import open_source
from ssl_vit.errors import UserError
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.shapebias import conflicts
from tests.eval.conftest import draw


@pytest.fixture
def conflict(tmp_path):
    """Every picture is drawn as the class of its "texture", so that a good classifier always says texture."""
    names = ("ash", "birch", "cedar")
    for shape in names:
        (tmp_path / shape).mkdir()
        for label, texture in enumerate(names):
            for i in range(6):
                draw(label, 5000 + 10 * label + i).save(tmp_path / shape / f"{shape}{i}-{texture}{i}.png")
    return tmp_path


def test_what_is_drawn_decides(run, images, conflict):
    scores = evaluate("shapebias", run, train=images / "train", conflict=conflict)["shapebias"]
    assert scores["images"] == 36  # 54, without those of one class
    assert scores["texture"] > 45 > 35 > scores["shape"]  # chance is 33
    assert scores["shape_bias"] == pytest.approx(100 * scores["shape"] / (scores["shape"] + scores["texture"]))


def test_names_say_both_classes(conflict):
    shapes, textures = conflicts(open_source(conflict), ("cedar", "ash", "birch"))
    assert shapes[:18].tolist() == [1] * 18
    assert textures[:18].tolist() == [1, 2, 0] * 6


@pytest.mark.parametrize(("name", "said"), [("ash7.png", "expected a name"), ("ash7-oak1.png", "oak is no class")])
def test_names_that_do_not_are_an_error(name, said, run, images, conflict):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(conflict / "ash" / name)
    with pytest.raises(UserError, match=said):
        evaluate("shapebias", run, train=images / "train", conflict=conflict)
