"""The range of a set goes from its first look to the batches, the run's folder, the export and whatever uses that."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import ssl_vit
from ssl_vit.config import load_config
from ssl_vit.data.loader import build_loader
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.sources import open_source
from ssl_vit.data.values import EACH, ORDINARY, Pixels
from ssl_vit.errors import ConfigError
from ssl_vit.eval.weights import pixels_of
from ssl_vit.run.changed import as_before
from tests.data.test_values import pattern
from tests.runs import command, finish


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 12 bits in PNG files of 16."""
    root = tmp_path_factory.mktemp("deep")
    for i in range(16):
        image = pattern(i)[..., 0]
        Image.fromarray((image * 4095).astype("uint16")).save(root / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def run(deep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep-run")
    argv = command(deep, folder / "run", train__epochs=1, data__workers=0, train__checkpoint_every=1)
    assert finish(argv, folder / "said") == 0, (folder / "said").read_text()
    return folder / "run"


def test_a_run_keeps_the_range_and_says_it(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["range"] == [0, 4095]
    assert config["data"]["bands"] is None
    log = (run / "train.log").read_text()
    assert "0 to 4095 become 0 to 255, in every image of more than 8 bits: measured on 16 images of uint16" in log
    assert "16 uint16 (16 images looked at)" in log
    assert 0.3 < config["data"]["mean"][0] < 0.7
    assert json.loads((run / "export" / "config.json").read_text())["ssl_vit"]["pixels"]["range"] == [0, 4095]


def test_batches_have_the_grey_levels_of_the_images(run: Path, deep: Path) -> None:
    config = load_config([run / "config.yaml"])
    source = open_source(deep)
    for pixels, least, most in ((Pixels(config.data.range), 200, 256), (EACH, 1, 20)):
        plan = ViewPlan((View("whole", 1, 64, (1.0, 1.0)),))
        batch = next(iter(build_loader(replace(source, pixels=pixels), plan, batch_size=16, seed=0, total_steps=1)))
        assert least < len(np.unique(batch.pixels.numpy())) <= most


def test_whoever_uses_the_weights_reads_images_alike(run: Path, tmp_path: Path) -> None:
    """Half as bright images: measured by themselves, they would be as bright as those that were learnt from."""
    (tmp_path / "half").mkdir()
    for i in range(3):
        Image.fromarray((pattern(i)[..., 0] * 2047).astype("uint16")).save(tmp_path / "half" / f"{i}.png")
    for weights in (run, run / "export", next((run / "checkpoints").glob("*.ckpt"))):
        assert pixels_of(weights) == Pixels((0, 4095))
    features = np.load(ssl_vit.embed(run, tmp_path / "half", tmp_path / "half.npz"))
    assert json.loads(str(features["protocol"]))["pixels"] == {"range": [0, 4095], "bands": None}
    config = run / "export" / "config.json"
    said = json.loads(config.read_text())
    del said["ssl_vit"]["pixels"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text(json.dumps(said))
    (tmp_path / "old" / "model.safetensors").write_bytes((run / "export" / "model.safetensors").read_bytes())
    assert pixels_of(tmp_path / "old") == EACH


def test_a_run_of_before_goes_on_as_it_began(run: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((run / "config.yaml").read_text())
    assert as_before(load_config([run / "config.yaml"])).data.range == (0, 4095)
    for key in ("range", "bands"):
        del tree["data"][key]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    assert as_before(load_config([tmp_path / "config.yaml"])).data.range == "each"


def test_wrong_ranges_and_bands_are_answered_in_a_line() -> None:
    for text in ("data.range=[5,1]", "data.range=[1]", "data.range=auto8", "data.bands=[0,1]", "data.bands=[-1]"):
        with pytest.raises(ConfigError, match=text.partition("=")[0].replace(".", r"\.")) as caught:
            load_config(sets=[text], flags={"data.path": "images"})
        assert len(str(caught.value).splitlines()) == 1
    for text, value in (("[0,4095]", (0, 4095)), ("null", None), ("each", "each"), ("auto", "auto")):
        assert load_config(sets=[f"data.range={text}"], flags={"data.path": "images"}).data.range == value
    assert Pixels(None, None) == ORDINARY
