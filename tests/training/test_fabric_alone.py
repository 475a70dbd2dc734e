"""A run imports Lightning's Fabric and nothing else of it; who wants the rest gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import sys
import ssl_vit.run.pretrain
assert "lightning.fabric" in sys.modules
assert not {"lightning.pytorch", "torchmetrics", "transformers"} & set(sys.modules)
import lightning, torchmetrics
from lightning.fabric.utilities.imports import _TORCHMETRICS_GREATER_EQUAL_1_0_0 as new_enough
assert new_enough
assert lightning.__version__ and lightning.fabric.Fabric is lightning.Fabric
assert issubclass(torchmetrics.Accuracy, torchmetrics.Metric)
import lightning.pytorch
assert lightning.Trainer is lightning.pytorch.Trainer
assert not hasattr(lightning, "Trainers")
"""


@pytest.mark.slow  # it imports all of it
def test_the_rest_of_lightning_comes_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
