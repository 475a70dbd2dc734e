"""docs/extend.md is true: its files are written down as it says, in and outside the package, and its commands run."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ssl_vit.methods.method import Progress
from ssl_vit.registry import METHODS
from tests.runs import ended, program

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extend.md").read_text()
RUN = """
import json, shlex, sys
from ssl_vit.cli import main
for line in json.loads(sys.argv[1]):
    if code := main(shlex.split(line)[1:]):
        sys.exit(f"{line}: exit code {code}")
"""
PYTHON = """
import functools, json, runpy, sys
import ssl_vit
ssl_vit.pretrain = functools.partial(ssl_vit.pretrain, settings=json.loads(sys.argv[1]))
runpy.run_path("my_run.py")
"""
SMALL = {
    "backbone.image_size": "32",
    "train.batch_size": "8",
    "train.epochs": "2",
    "train.precision": "32-true",
    "data.workers": "0",
    "health.every": "5",
}
NARROW = {
    "backbone.name": "vit_tiny_patch16_224",
    "backbone.args": "{patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}",
}


class Block(NamedTuple):
    """A block of code and the comment above it, ``<!-- kind: place -->``."""

    kind: str
    place: str
    code: str


def blocks(kind: str) -> Iterator[Block]:
    """Of that kind, in the order of the page."""
    pattern = r"<!-- (\w+)(?:: (.+?))? -->\n```\w+\n(.*?)```\n"
    for found in re.finditer(pattern, PAGE, re.DOTALL):
        block = Block(found[1], found[2] or "", found[3])
        if block.kind == kind:
            yield block


def commands(place: str) -> list[str]:
    """The page's commands for one place, "outside" or "in this package", where nothing is a plugin."""
    lines = [line for block in blocks("run") if block.place in ("", place) for line in block.code.splitlines()]
    return lines if place == "outside" else [re.sub(r" --plugin \S+", "", line) for line in lines]


def write_outside(folder: Path) -> None:
    """The page's files that are nobody's but the reader's."""
    for block in blocks("file"):
        if not block.place.startswith("ssl_vit/"):
            (folder / block.place).write_text(block.code)


def write_inside(folder: Path) -> list[Path]:
    """A copy of the package with the page's files in it and the page's lines added; the files that are new."""
    shutil.copytree(ROOT / "ssl_vit", folder / "ssl_vit", ignore=shutil.ignore_patterns("__pycache__"))
    new = []
    for block in blocks("file"):
        place, _, rest = block.place.partition(" + ")
        if place.startswith("ssl_vit/"):
            assert not (folder / place).exists(), f"{place} is there already"
            (folder / place).write_text(block.code + (moved(rest) if rest else ""))
            new.append(folder / place)
    add_lines(folder, "ssl_vit/")
    return new


def moved(what: str) -> str:
    """What the package takes over from the reader's own: "class Config of FILE", "what follows Config in FILE"."""
    words = what.split()
    source = next(block.code for block in blocks("file") if block.place == words[-1])
    lines, tree = source.splitlines(keepends=True), ast.parse(source)
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    assert config.end_lineno is not None
    if words[0] == "class":
        return "".join(lines[config.lineno - 1 : config.end_lineno])
    after = [node for node in tree.body if node.lineno > config.end_lineno]
    assert isinstance(after[0], ast.ClassDef)
    return "\n\n" + "".join(lines[after[0].lineno - 1 :])


def add_lines(folder: Path, below: str) -> None:
    """The page's lines, each as the first of the table that is named with its file: "FILE, TABLE"."""
    for block in blocks("line"):
        place, _, table = block.place.partition(", ")
        if place.startswith(below):
            before = (folder / place).read_text()
            head = re.search(rf"^{table}\b.*= {{.*\n", before, re.MULTILINE)
            assert head, f"{place} has no table {table}"
            (folder / place).write_text(before[: head.end()] + block.code + before[head.end() :])


def small(line: str) -> str:
    """A command with settings that make its run short, where it begins one."""
    if " pretrain " not in line or "--resume" in line:
        return line
    settings = SMALL | ({"method.width": "16"} if "varcov" in line else {"method.hidden_dim": "32"})
    if "--backbone" not in line:
        settings |= NARROW
    return shlex.join([*shlex.split(line), *(word for pair in settings.items() for word in ("--set", "=".join(pair)))])


def run(lines: Iterable[str], folder: Path, *paths: Path) -> str:
    """What commands say in a process of their own, which finds the package in the first of the paths."""
    return execute(RUN, list(lines), folder, *paths)


def execute(code: str, given: object, folder: Path, *paths: Path) -> str:
    """What a piece of Python says, which is given this as JSON."""
    if ROOT in paths:  # this very package, which need not be imported again
        said = folder / "said"
        said.unlink(missing_ok=True)
        code = ended(program(code, [json.dumps(given)], said, *paths))
        assert code == 0, said.read_text()
        return said.read_text()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
    call = [sys.executable, "-c", code, json.dumps(given)]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def losses(folder: Path) -> list[float]:
    """Of a run, as its metrics have them."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def workplace(folder: Path, pictures: Path) -> Path:
    """A folder with the images under the names that the page gives them."""
    folder.mkdir()
    (folder / "photos").symlink_to(pictures / "train")
    (folder / "labelled").symlink_to(pictures)
    return folder


@pytest.fixture(scope="module")
def outside(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where the page's commands for files of one's own have been run, and what they said."""
    folder = workplace(tmp_path_factory.mktemp("extend") / "outside", pictures)
    write_outside(folder)
    return folder, run(map(small, commands("outside")), folder, ROOT)


def test_a_method_of_ones_own_is_like_ours(outside: tuple[Path, str]) -> None:
    folder, said = outside
    assert "Two views of an image get the same vector" in said
    assert f"plugin {folder / 'my_varcov.py'} (sha256 " in said
    assert (folder / "runs" / "varcov" / "COMPLETE").exists()
    assert re.search(r"runs/varcov/export-safetensors: verified in safetensors [\d.]+, outputs within", said)
    assert "my_varcov.py" in (folder / "runs" / "varcov" / "config.yaml").read_text()
    assert all(np.isfinite(losses(folder / "runs" / "varcov")))


def test_a_backbone_of_ones_own_is_like_ours(outside: tuple[Path, str]) -> None:
    folder, said = outside
    assert f"plugin {folder / 'my_backbone.py'} (sha256 " in said
    kept = (folder / "runs" / "mine" / "config.yaml").read_text()
    assert "my_backbone.py" in kept
    assert "depth: 2" in kept
    assert re.search(r"runs/mine/export-safetensors: verified in .*my_backbone.py.*, outputs within", said)


def test_in_python_they_need_no_names(outside: tuple[Path, str]) -> None:
    folder = outside[0]
    settings = {key: yaml.safe_load(value) for key, value in SMALL.items()} | {"method.width": 16}
    execute(PYTHON, settings, folder, folder, ROOT)
    kept = yaml.safe_load((folder / "runs" / "python" / "config.yaml").read_text())
    assert (kept["method"]["name"], kept["backbone"]["name"]) == ("varcov", "Depthwise")
    assert (folder / "runs" / "python" / "COMPLETE").exists()


def test_an_installed_package_needs_no_plugin(tmp_path: Path, outside: tuple[Path, str]) -> None:
    settings = tomllib.loads((outside[0] / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{settings['name'].replace('-', '_')}-{settings['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {settings['name']}\nVersion: {settings['version']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in places.items())
        for group, places in settings["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(points))
    shutil.copy(outside[0] / "my_varcov.py", tmp_path)
    assert "Two views of an image get the same vector" in run(["ssl-vit list methods varcov"], tmp_path, ROOT, tmp_path)


@pytest.mark.slow
def test_all_of_it_moves_into_the_package(tmp_path: Path, pictures: Path, outside: tuple[Path, str]) -> None:
    folder = workplace(tmp_path / "inside", pictures)
    new = write_inside(folder)
    style = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), *map(str, new)]
    assert subprocess.run(style, capture_output=True).returncode == 0, "ruff check"
    said = run(map(small, commands("in this package")), folder, folder)
    assert "plugin" not in said
    assert losses(folder / "runs" / "varcov") == losses(outside[0] / "runs" / "varcov")
    assert "top1" in said
    assert re.search(r"runs/varcov/export-npz: verified in numpy [\d.]+, outputs within 0", said)
    assert "tiny" in (folder / "runs" / "tiny" / "config.yaml").read_text()


NO_TORCH = """
import sys
from ssl_vit.methods import config_class
config_class("varcov")()
print("torch" in sys.modules)
"""


def test_settings_in_the_package_need_no_torch(tmp_path: Path) -> None:
    write_inside(tmp_path)
    done = subprocess.run([sys.executable, "-c", NO_TORCH], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_tests_over_all_methods_take_it_in(tmp_path: Path) -> None:
    write_inside(tmp_path)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    add_lines(tmp_path, "tests/")
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/training/test_every_method.py"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*call, "-k", "varcov"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"^[1-9]\d* passed", done.stdout, re.MULTILINE), done.stdout


def test_its_files_to_touch_are_there() -> None:
    named = {path for row in re.findall(r"^\| (`.+?) \|", PAGE, re.MULTILINE) for path in re.findall(r"`([^`]+)`", row)}
    assert len(named) > 10
    for path in named:
        parent = (ROOT / path).parent if "NAME" in path else ROOT / path
        assert parent.exists(), path


@pytest.fixture(scope="module")
def varcov(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page's method as a module; its name is free again afterwards."""
    file = tmp_path_factory.mktemp("varcov") / "the_pages_varcov.py"
    file.write_text(next(block.code for block in blocks("file") if block.place == "my_varcov.py"))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    yield module
    METHODS.entries.pop("varcov", None)
    del sys.modules[file.stem]


def test_its_varcov_is_varcov(varcov: Any) -> None:
    """Against the paper's formulas in numpy; the variance counts half for each view, as in the authors' code."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 0.7, (6, 4)), rng.normal(0.2, 0.9, (6, 4))

    class Given(nn.Module):
        info = SimpleNamespace(dim=4)

        def forward(self, view: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(pooled=view)

    method = varcov.VarCov(varcov.Config(width=4), Given(), 32)
    method.expander = nn.Identity()
    step = method([torch.from_numpy(x).float(), torch.from_numpy(y).float()], Progress(0, 10, 5))

    def covariance(z: np.ndarray) -> float:
        centred = z - z.mean(0)
        table = centred.T @ centred / (len(z) - 1)
        return sum(table[i, j] ** 2 for i in range(4) for j in range(4) if i != j) / 4

    variance = sum(np.maximum(0, 1 - np.sqrt(z.var(0, ddof=1) + 1e-4)).mean() / 2 for z in (x, y))
    wanted = 25 * ((x - y) ** 2).mean() + 25 * variance + covariance(x) + covariance(y)
    assert float(step.loss) == pytest.approx(wanted, rel=1e-5)
    assert float(varcov.narrowness(torch.zeros(8, 3))) == pytest.approx(0.99)  # 1 - sqrt(1e-4): one and the same vector
    assert float(varcov.redundancy(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))) == pytest.approx(4.0)
