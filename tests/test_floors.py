"""The floors of docs/design.md, as pyproject.toml writes them down for import-linter: the package keeps them all."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter in a process of its own: it sets up logging for the whole of one."""
    call = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True, no_logo=True))"
    return subprocess.run([sys.executable, "-c", call], cwd=folder, capture_output=True, text=True, timeout=600)


def test_imports_only_point_down() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "told"),
    [
        ("data/crops.py", "import ssl_vit.backbones", "An import only ever points down"),
        ("backbones/layers.py", "import ssl_vit.methods.heads", "An import only ever points down"),
        ("eval/knn.py", "import ssl_vit.methods", "Scores and exports know no method"),
        ("methods/heads.py", "import lightning", "Nothing below training knows Lightning"),
        ("methods/dino.py", "import argparse", "A method opens no files"),
        ("attic.py", "", "attic"),
    ],
)
def test_an_import_that_points_up_is_named(tmp_path: Path, file: str, line: str, told: str) -> None:
    shutil.copytree(ROOT / "ssl_vit", tmp_path / "ssl_vit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "ssl_vit" / file).open("a") as text:
        text.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1, done.stderr
    assert "BROKEN" in done.stdout or "attic" in done.stdout
    assert told in done.stdout, done.stdout
    if line:
        assert f"ssl_vit.{file.removesuffix('.py').replace('/', '.')}" in done.stdout
