"""What ``ssl-vit bench`` measures, with parts of a run made slow on purpose."""

import time

import pytest
from PIL import Image

from ssl_vit import bench as module
from ssl_vit.cli import main
from ssl_vit.config import load_config
from ssl_vit.data import source as reading
from ssl_vit.methods.dino import DINO
from ssl_vit.training.step import PARTS
from tests.runs import SETTINGS


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "SECONDS", 0.3)


def measured(pictures, **changes):
    settings = SETTINGS | {"data.path": str(pictures / "train"), "data.workers": 0, "train.precision": "32-true"}
    return module.bench(load_config(sets=[f"{key}={value}" for key, value in (settings | changes).items()]))


def slow(function, seconds):
    """The same, after computing for some time."""

    def slowed(*args, **options):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return function(*args, **options)

    return slowed


def test_slow_reading_is_found(pictures, monkeypatch):
    decode = slow(reading.decode, 0.03)
    monkeypatch.setattr(reading, "decode", decode)
    result = measured(pictures)
    assert 30 < result.parts["decode"] < 45
    assert result.reading < 1000 / 30
    assert result.wait > 0.3
    assert result.together < result.alone
    assert "Images come too slowly" in result.advice[0]
    assert any("ssl-vit pack" in line for line in result.advice)


def test_a_slow_step_is_found(pictures, monkeypatch):
    monkeypatch.setattr(DINO, "after_step", slow(DINO.after_step, 0.4))
    result = measured(pictures)
    assert result.parts["optimiser"] > 400 / 8
    assert result.alone < 8 / 0.4
    assert "The training step bounds the run" in result.advice[0]
    assert any("the optimiser takes" in line for line in result.advice)


def test_arithmetic_grows_with_the_crops(pictures):
    """Three forwards' worth for the student (one forward, two backward), one for the teacher."""
    few, many = (measured(pictures, **{"method.local_crops": count}).flops for count in (2, 4))
    patches, width, depth = 4, 32, 2  # of a local crop: 2 x 2 patches of 8, and a class token
    tokens = patches + 1
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width  # multiply and add
    embedding = 2 * patches * 3 * 64 * width
    head = 2 * (32 * 32 + 32 * 32 + 32 * 16 + 16 * 64)
    pairs = 2 * 2 * 64  # with both teachers' targets
    expected = 2 * (3 * (depth * block + head + pairs) + 2 * embedding)  # the image takes no gradient
    assert many - few == pytest.approx(expected, rel=0.05)


def test_the_command_says_it_in_words_and_draws_it(pictures, tmp_path, capsys):
    sets = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    line = ["bench", str(pictures / "train"), *sets, "--set", "data.workers=1", "--chart", str(tmp_path / "bars.png")]
    assert main(line) == 0
    said = capsys.readouterr().out
    assert said.startswith("dino on vit_tiny_patch16_224, CPU, 32-true, 8 images a step and device")
    assert all(f"  {part} " in said for part in module.READING + PARTS)
    assert "images/s; a step alone" in said
    assert "that a plain matrix product reaches here" in said
    with Image.open(tmp_path / "bars.png") as picture:
        assert picture.format == "PNG"
    assert main(line) == 2
    assert "bars.png: exists, and nothing is overwritten" in capsys.readouterr().err
    assert main(["bench", str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err
