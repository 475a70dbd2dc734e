"""The pages of our families and the table of their variants say what the code is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from timm.models import model_entrypoint

from ssl_vit.backbones import families, list_backbones
from ssl_vit.backbones.variants import variants
from tests.backbones.families import test_isotropic, test_pyramids, test_windows

SCRIPT = Path(__file__).parents[2] / "docs" / "backbone_pages.py"
COUNTED = test_isotropic.PARAMETERS | test_pyramids.PARAMETERS | test_windows.PARAMETERS


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("backbone_pages", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_what_the_script_writes(script: ModuleType) -> None:
    """If this fails, run python docs/backbone_pages.py."""
    found = {path.name: path.read_text() for path in script.PAGES.glob("*.md")}
    assert found == script.pages()


def test_table_has_every_variant_of_ours() -> None:
    """If this fails, run python docs/backbone_pages.py --measure."""
    ours = {row.name for row in list_backbones() if model_entrypoint(row.name).__module__.startswith(families.__name__)}
    assert variants().keys() == ours
    assert {name: variants()[name].with_classifier for name in COUNTED} == COUNTED


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [  # of the authors' code, counted alike
        *(("cmt_ti", 0.639), ("cswin_tiny_224", 4.324), ("rest_lite", 1.533), ("t2t_vit_7", 1.147)),
        *(("regionvit_tiny_224", 2.415), ("cotnet50", 3.23), ("hat_net_tiny", 2.128), ("cat_tiny", 2.77)),
    ],
)
def test_table_is_measured(script: ModuleType, name: str, gmacs: float) -> None:
    known = variants()[name]
    assert script.measured(name) == (known.parameters, known.with_classifier, known.gmacs)
    assert known.gmacs == pytest.approx(gmacs, rel=1e-3)


def test_parameters_are_the_adapters() -> None:
    (row,) = list_backbones("refiner_vit_s")  # with two classifiers
    assert row.info is not None
    assert row.parameters == row.info.parameters


@pytest.mark.slow
def test_all_of_the_table_is_measured(script: ModuleType) -> None:
    wrong = [name for name, known in variants().items() if script.measured(name) != known[:3]]
    assert wrong == []


def test_a_drawing_shows_branches_and_shortcuts(script: ModuleType) -> None:
    drawn = script.drawing(("+ norm > a | b", "end"))
    assert drawn.splitlines()[1:-1] == [
        "flowchart LR",
        "  x([in])",
        '  x --> n0["norm"]',
        '  n0 --> n1["a"]',
        '  n0 --> n2["b"]',
        "  x --> n3((+))",
        "  n1 --> n3((+))",
        "  n2 --> n3((+))",
        '  n3 --> n4["end"]',
        "  n4 --> y([out])",
    ]
