"""One small labelled set of images and one whole run on it, which many tests look at and none may change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several test processes share few cores

from ssl_vit.plugins import REGISTRIES
from tests.eval.conftest import folder_of
from tests.runs import command, finish


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train: 3 x 16 images; val: 3 x 8 others."""
    path = tmp_path_factory.mktemp("pictures")
    folder_of(path / "train", 16)
    folder_of(path / "val", 8, seed=1)
    return path


@pytest.fixture(scope="session")
def whole_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps that nothing interrupted, with k-NN on the way; beside it what it said, as ``said``."""
    folder = tmp_path_factory.mktemp("whole")
    argv = command(pictures / "train", folder / "run", "--val", str(pictures / "val"), health__report=True)
    code = finish(argv, folder / "said")
    assert code == 0, (folder / "said").read_text()
    return folder / "run"


EXPORTS = "export"  # the property in which a test says what it exported, and who has loaded it


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of exports: loaded in a library, names checked, or refused; also of tests in other processes."""
    done = terminalreporter.getreports("passed")
    lines = sorted(str(value) for report in done for name, value in report.user_properties if name == EXPORTS)
    if lines:
        terminalreporter.section("exports")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def _own_names() -> Iterator[None]:
    """What a test registers, by a plugin or by hand, no other test finds."""
    before = [set(registry.entries) for registry in REGISTRIES]
    yield
    for registry, names in zip(REGISTRIES, before, strict=True):
        for name in registry.entries.keys() - names - registry.inside.keys():
            del registry.entries[name]
