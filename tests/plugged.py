"""Plugins as strangers write them, and a package as pip installs it."""

from __future__ import annotations

from pathlib import Path

CONFIG = '''
from typing import ClassVar, Literal

from ssl_vit.data.plan import ViewPlan
from ssl_vit.methods.base_config import Choices, Count, MethodConfig, NonNegative, Situation
from ssl_vit.methods.base_config import optimiser_choices, two_views
from ssl_vit.registry import register_method


class Config(MethodConfig):
    """Variance, invariance and covariance of two views (arXiv 2105.04906)."""

    name: Literal["vicreg"] = "vicreg"
    """Name of the method."""

    idea: ClassVar[str] = "Two views of an image agree while the outputs keep their spread."
    needs: ClassVar[str] = "any backbone"
    choose_when: ClassVar[str] = "You want neither a teacher nor large batches."

    spread: NonNegative = 25.0
    """Weight of the variance term (paper: 25)."""
    out_dim: Count = 32
    """Length of the outputs (paper: 8192)."""

    def choose(self, given: Situation) -> Choices:
        return optimiser_choices(given, "as MoCo v3", lr=(1.5e-4, 256), weight_decay=0.1, warmup_epochs=10.0)

    def views(self, image_size: int) -> ViewPlan:
        return ViewPlan(two_views(image_size, (0.3, 1.0)))
'''

LOSS = """
import torch
from torch import Tensor, nn

from ssl_vit.methods.heads import mlp
from ssl_vit.methods.method import Method, Progress, Step


class VICReg(Method):
    def __init__(self, config, backbone, image_size):
        super().__init__()
        self.config, self.backbone, self.image_size = config, backbone, image_size
        self.head = mlp([backbone.info.dim, 32, config.out_dim], batch_norm=True, activation=nn.ReLU)

    def views(self):
        return self.config.views(self.image_size)

    def forward(self, batch: list[Tensor], progress: Progress) -> Step:
        features = [self.backbone(view).pooled for view in batch]
        first, second = (self.head(each).float() for each in features)
        spread = sum(torch.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() for z in (first, second))
        loss = 25 * (first - second).square().mean() + self.config.spread * spread
        return Step(loss, {"spread": spread.detach()}, features[0].detach())

    def exported(self):
        return self.backbone
"""

METHOD = CONFIG + LOSS.replace("class VICReg", '@register_method("vicreg", config=Config)\nclass VICReg')
TWO_FILES = {
    "two_files.py": CONFIG.replace("vicreg", "twofold").replace(
        "class Config", '@register_method("twofold", loss="two_files_loss:VICReg")\nclass Config'
    ),
    "two_files_loss.py": LOSS,
}


def _mine(old: str, new: str) -> str:
    mine = METHOD.replace("vicreg", "mine")
    assert old in mine
    return mine.replace(old, new)


_NAME = 'name: Literal["mine"] = "mine"'
_NAMED = f"write {_NAME} in Config"
_BASE = "ssl_vit.methods.base_config.MethodConfig"
_NOWHERE = '@register_method("mine", loss="nosuch:VICReg")\nclass Config'

BROKEN = {  # what is wrong with a file: the file, and what is said of it
    "raises": (
        "\n\nimport ssl_vit\nraise ValueError('my\\nown')\n",
        "--plugin {file}: can't be imported: line 4: ValueError: my own; mend it, or leave it out",
    ),
    "lacks a package": (
        "import os\nimport nosuchmodule",
        "can't be imported: line 2: ModuleNotFoundError: No module named 'nosuchmodule'",
    ),
    "is not Python": ("x = 1\ndef f(:\n", "can't be imported: line 2: SyntaxError: invalid syntax"),
    "exits": ("import sys\nsys.exit(3)", "can't be imported: line 2: SystemExit: 3"),
    "registers nothing": ("x = 1", "--plugin {file}: registers nothing; decorate a method or a backbone with"),
    "takes a name": (_mine('"mine", config', '"dino", config'), "the method 'dino' is taken: {file} line "),
    "has another name": (_mine(_NAME, _NAME.replace("mine", "yours")), _NAMED),
    "has no name": (_mine(f"    {_NAME}\n", ""), _NAMED),
    "has no idea": (_mine("idea: Class", "ideas: Class"), "Config does not say its idea; add idea: ClassVar[str] = …"),
    "has no recipe": (_mine("def choose(", "def chose("), "Config has no choose(); see MethodConfig.choose"),
    "has no views": (
        _mine("views(self, image_size", "view(self, image_size"),
        "Config has no views(); see MethodConfig",
    ),
    "has a strange configuration": (
        _mine("class Config(MethodConfig)", "class Config"),
        f"expected a class of {_BASE}",
    ),
    "has no loss": (
        CONFIG.replace("vicreg", "mine").replace("class Config", _NOWHERE),
        "loss='nosuch:VICReg': no such module beside it",
    ),
}


def package(folder: Path, name: str, points: dict[str, dict[str, str]], files: dict[str, str]) -> str:
    """A folder to put on ``sys.path``, as pip fills it: the package, version 1.5, and its metadata."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    for file, text in files.items():
        (folder / name / file).write_text(text)
    info = folder / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {place}\n" for key, place in each.items()) for group, each in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return str(folder)
