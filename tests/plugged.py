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

    name: Literal["varcov"] = "varcov"
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


class VarCov(Method):
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

METHOD = CONFIG + LOSS.replace("class VarCov", '@register_method("varcov", config=Config)\nclass VarCov')
TWO_FILES = {
    "two_files.py": CONFIG.replace("varcov", "twofold").replace(
        "class Config", '@register_method("twofold", loss="two_files_loss:VarCov")\nclass Config'
    ),
    "two_files_loss.py": LOSS,
}


def _mine(old: str, new: str) -> str:
    mine = METHOD.replace("varcov", "mine")
    assert old in mine
    return mine.replace(old, new)


_NAME = 'name: Literal["mine"] = "mine"'
_NAMED = f"write {_NAME} in Config"
_BASE = "ssl_vit.methods.base_config.MethodConfig"
_NOWHERE = '@register_method("mine", loss="nosuch:VarCov")\nclass Config'

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
        CONFIG.replace("varcov", "mine").replace("class Config", _NOWHERE),
        "loss='nosuch:VarCov': no such module beside it",
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


NET = '''
import torch
from torch import nn

from ssl_vit.registry import register_backbone


@register_backbone("toy_net", kind="convolutional", dim=24, stride=8, image_size=64)
class ToyNet(nn.Module):
    """Depthwise mixing that timm has never heard of."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.fc = nn.Conv2d(width, 24, 2, stride=2)  # a name that heads have elsewhere

    def forward(self, images):
        x = self.stem(images)
        return self.fc(torch.relu(x + self.mix(x)))
'''

TIMM_NET = '''
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from ssl_vit.registry import declare_kind


class ToyDepthwise(nn.Module):
    """Depthwise mixing, by timm's conventions."""

    def __init__(self, num_classes=0, in_chans=3, width=16, drop_path_rate=0.0):
        super().__init__()
        self.num_features, self.num_classes = 24, num_classes
        self.stem = nn.Conv2d(in_chans, width, 4, stride=4)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.point = nn.Conv2d(width, width, 1)
        self.out = nn.Conv2d(width, 24, 2, stride=2)
        self.feature_info = [
            {"num_chs": width, "reduction": 4, "module": "point"},
            {"num_chs": 24, "reduction": 8, "module": "out"},
        ]
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes, global_pool=None):
        self.fc = nn.Linear(24, num_classes) if num_classes else nn.Identity()

    def forward_intermediates(self, x, indices=None, intermediates_only=False):
        wanted, _ = feature_take_indices(2, indices)
        x = self.stem(x)
        first = self.point(torch.relu(x + self.mix(x)))
        last = self.out(first)
        maps = [(first, last)[index] for index in wanted]
        return maps if intermediates_only else (last, maps)

    def forward_features(self, x):
        return self.forward_intermediates(x, 1)[0]

    def forward_head(self, x, pre_logits=False):
        x = x.mean((-2, -1))
        return x if pre_logits else self.fc(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {"toy_depthwise": {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3, "classifier": "fc"}}
)
declare_kind(__name__, "convolutional")


@register_model
def toy_depthwise(pretrained=False, **kwargs):
    return build_model_with_cfg(ToyDepthwise, "toy_depthwise", pretrained, **kwargs)
'''

_DECLARED = '"toy_net", kind="convolutional", dim=24, stride=8, image_size=64'


def net(declared: str, gives: str = "") -> str:
    """The network with another declaration, and another last line of its forward."""
    text = NET.replace(_DECLARED, f'"toy_net", {declared}')
    return text.replace("        return self.fc(torch.relu(x + self.mix(x)))", f"        {gives}") if gives else text


MISDECLARED = {  # a network: the file, and what is said of it
    "dim": (
        net('kind="mlp", dim=32, stride=8'),
        "{file} line 8: the backbone 'toy_net' is declared to give [2, 32, 28, 28] of two images of 224×224 pixels "
        "(gives='map', dim=32, stride=8), and gives [2, 24, 28, 28]; mend the declaration or the network",
    ),
    "stride": (net('kind="mlp", dim=24, stride=16'), "and gives [2, 24, 28, 28]; mend the declaration"),
    "tokens": (net('kind="mlp", dim=24, stride=8, gives="tokens"'), "declared to give [2, 784, 24] of two images"),
    "stages": (
        net('kind="mlp", dim=24, stride=8, stages=((16, 4), (24, 8))', "return [x, x]"),
        "declared to give [2, 16, 56, 56], [2, 24, 28, 28] of two images of 224×224 pixels (gives='map', dim=24, "
        "stride=8, stages=((16, 4), (24, 8))), and gives [2, 16, 56, 56], [2, 16, 56, 56]; mend",
    ),
    "nothing": (net('kind="mlp", dim=24, stride=8', "return {'map': x}"), "and gives a dict; mend"),
    "raises": (
        net('kind="mlp", dim=24, stride=8', "raise ValueError('odd')"),
        "{file} line 8: the backbone 'toy_net' can't take images of 224×224 pixels (ValueError: odd); mend it, or",
    ),
    "can't be built": (
        net('kind="mlp", dim=24, stride=8').replace("super().__init__()", "self.x = nn.Linear(1, 1)"),
        "{file} line 8: the backbone 'toy_net' can't be built with no arguments (AttributeError: cannot assign module",
    ),
    "is no module": (
        "from ssl_vit.registry import register_backbone\n"
        "@register_backbone('toy_net', kind='mlp', dim=1, stride=1)\ndef f():\n    return 3\n",
        "{file} line 2: the backbone 'toy_net' is a int, expected a torch.nn.Module",
    ),
    "kind": (net('kind="convolution", dim=24, stride=8'), "kind='convolution': expected one of transformer, convolut"),
    "gives": (net('kind="mlp", dim=24, stride=8, gives="vector"'), "gives='vector': expected 'map' or 'tokens'"),
    "wrong stages": (
        net('kind="mlp", dim=24, stride=8, stages=((24, 8), (16, 4))'),
        "stages=((24, 8), (16, 4)): expected (channels, stride) of maps, finest first, and of the last one (24, 8)",
    ),
    "no shape": (net('kind="mlp", dim=24'), "can't be imported: line 8: TypeError: register_backbone() missing 1"),
    "timm's name": (
        NET.replace('"toy_net"', '"resnet18"'),
        "the backbone 'resnet18' is taken: {file} line 8 and timm.models.resnet register it; rename yours",
    ),
    "timm's name in timm": (
        TIMM_NET.replace("toy_depthwise", "resnet18"),
        "the backbone 'resnet18' is taken: {file} and timm.models.resnet register it; rename one, or leave one out",
    ),
}
