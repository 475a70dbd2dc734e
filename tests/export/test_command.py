"""``ssl-vit export RUN --to …`` on a run that really learnt: each target, its card, its snippet as it was printed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from ssl_vit.cli import main
from ssl_vit.export import TARGETS

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
