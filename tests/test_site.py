"""The site: every page is in it, every link leads somewhere, and every paper's command is one that works."""

from __future__ import annotations

import csv
import logging
import shlex
from pathlib import Path

import pytest

from ssl_vit.backbones import registry
from ssl_vit.cli import main
from ssl_vit.cli.compress import WHAT
from ssl_vit.config import load_config
from ssl_vit.eval.kinds import kind_class
from ssl_vit.settings import Section

ROOT = Path(__file__).parent.parent
with (ROOT / "docs" / "papers.csv").open(encoding="utf-8") as _file:
    PAPERS = list(csv.DictReader(_file))


def test_the_site_is_built_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Links to nowhere, anchors that are not there and pages that no menu has are warnings of mkdocs."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    build = pytest.importorskip("mkdocs.commands.build", reason="needs mkdocs (pip install 'ssl_vit[docs]')")
    from mkdocs.config import load_config as read

    config = read(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path))
    config.plugins.on_startup(command="build", dirty=False)
    with caplog.at_level(logging.WARNING, "mkdocs"):
        build.build(config)
    assert not [record.getMessage() for record in caplog.records if record.name.startswith("mkdocs")]
    page = (tmp_path / "papers" / "index.html").read_text()
    assert all(paper["arxiv"] in page for paper in PAPERS)
    assert "ssl_vit.pretrain" in (tmp_path / "api" / "index.html").read_text()
    for file in tmp_path.rglob("*.html"):
        assert "fonts.googleapis" not in file.read_text()  # nothing is fetched from elsewhere


@pytest.mark.parametrize("paper", PAPERS, ids=[paper["arxiv"] for paper in PAPERS])
def test_a_papers_code_is_there_and_its_command_is_one(
    paper: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_FEW", 0)  # names alone, no network is looked at
    assert paper["code"] == "timm" or (ROOT / paper["code"]).exists()
    program, command, *words = shlex.split(paper["try"])
    assert program == "ssl-vit"
    if command == "list":
        assert main([command, *words]) == 0
        assert capsys.readouterr().out
    elif command == "pretrain":
        _check_run(words)
    elif command == "compress":
        assert words[0] in WHAT
        assert main([command, words[0], "--help"]) == 0
        said = capsys.readouterr().out
        assert all(word in said for word in words if word.startswith("--"))
    else:
        assert command == "eval"
        _check_score(words)


def _check_run(words: list[str]) -> None:
    """The settings are ones that a configuration has."""
    assert words.pop(0) == "DATA"
    flags = dict(zip(words[::2], words[1::2], strict=True))
    assert flags.keys() <= {"--method", "--set"}
    sets = [word for flag, word in zip(words[::2], words[1::2], strict=True) if flag == "--set"]
    method = {"method.name": flags["--method"]} if "--method" in flags else {}
    load_config(sets=sets, flags={"data.path": "DATA", **method})


def _check_score(words: list[str]) -> None:
    """The kind is one, and so are its folders and settings."""
    kind, run, *rest = words
    assert run == "RUN"
    score = kind_class(kind)
    assert issubclass(score, Section)
    for flag, value in zip(rest[::2], rest[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        assert name in score.folders or score.model_validate({name: value})
