"""``ssl-vit export RUN --to …`` on a run that really learnt: each target, its card, its snippet as it was printed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors import safe_open

from ssl_vit.backbones.adapter import AdaptedBackbone
from ssl_vit.cli import main
from ssl_vit.data.augment import normalise
from ssl_vit.data.evalset import EvalDataset
from ssl_vit.data.sources import open_source
from ssl_vit.export import TARGETS
from tests.export.conftest import written

NAMELESS = {"onnx", "torch-export"}  # a program, whose weights have no names of timm's


@pytest.mark.export
@pytest.mark.parametrize("target", [target for target in TARGETS if target != "rfdetr"])  # of another architecture
def test_a_run_is_handed_over(
    target: str, whole_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths in snippets must not depend on where one is
    assert main(["export", os.path.relpath(whole_run), "--to", target, "--out", "weights"]) == 0
    said, _, snippet = capsys.readouterr().out.partition("\n")
    assert said.startswith(("weights: verified in ", "weights: names checked for "))
    assert len(snippet.strip().splitlines()) <= 5
    monkeypatch.chdir("/")
    exec(snippet, {})
    card = (tmp_path / "weights" / "README.md").read_text()
    assert f"```python\n{snippet.strip()}\n```" in card
    for line in ("license: unknown  # to be filled in", "- Method: dino", "images: 48", "k-NN top-1", "batch_size: 8"):
        assert line in card
    assert f"- Check: {said.removeprefix('weights: ')}" in card
    assert (tmp_path / "weights" / "keys.tsv").is_file() == (target not in NAMELESS)


def test_one_file_holds_the_settings_of_its_run(whole_run: Path, tmp_path: Path) -> None:
    assert main(["export", str(whole_run), "--to", "safetensors", "--out", str(tmp_path / "weights")]) == 0
    with safe_open(tmp_path / "weights" / "model.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
    kept = yaml.safe_load((whole_run / "config.yaml").read_text())
    settings = config["ssl_vit"]["settings"]
    assert {name: settings[name] for name in ("method", "optim", "train")} == {
        name: kept[name] for name in ("method", "optim", "train")
    }
    assert config["pretrained_cfg"]["mean"] == kept["data"]["mean"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]


@pytest.mark.export
@pytest.mark.slow
def test_a_graph_in_8_bits_is_near_the_one_in_float(
    vit: AdaptedBackbone, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Smaller, of the same outputs, as near as it says; by images of the user's own."""
    onnxruntime = pytest.importorskip("onnxruntime")
    run = tmp_path / "run"
    written(vit, run / "export", mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), description={})
    assert main(["export", str(run), "--to", "onnx", "--int8", str(pictures / "train")]) == 0
    said, folder = capsys.readouterr().out.splitlines()[0], run / "export-onnx"
    match = re.search(
        r"model\.int8\.onnx: .* have a cosine of (0\.\d+|1\.0+) with the float ones \(least (\S+)\)", said
    )
    assert match, said
    assert float(match[2]) <= float(match[1])
    assert float(match[1]) > 0.95
    assert said.endswith(" images that it was not calibrated with")
    floating, whole = (onnxruntime.InferenceSession(folder / name) for name in ("model.onnx", "model.int8.onnx"))
    assert [each.name for each in whole.get_outputs()] == [each.name for each in floating.get_outputs()]
    dataset = EvalDataset(open_source(str(pictures / "train")), 32)
    images = torch.stack([dataset[number].image for number in range(0, 48, 5)])
    feed = {"images": normalise(images, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)).numpy()}
    a, b = (torch.from_numpy(each.run(["pooled"], feed)[0]) for each in (floating, whole))
    assert not torch.equal(a, b)
    assert float(F.cosine_similarity(a, b).mean()) == pytest.approx(float(match[1]), abs=0.02)
    state = sum((folder / name).stat().st_size for name in ("model.int8.onnx",))
    assert state < 0.75 * sum(each.stat().st_size for each in folder.glob("model.onnx*"))
    assert "model.int8.onnx" in (folder / "README.md").read_text()


def test_eight_bits_are_for_onnx_alone(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(pictures), "--to", "safetensors", "--int8", str(pictures / "train")]) == 2
    assert "--int8: not for --to safetensors; set --to onnx" in capsys.readouterr().err
