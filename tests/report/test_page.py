"""A run's page: what it shows, what it leaves alone, and that nothing in a folder or of a user can spoil it."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_vit.cli import main
from ssl_vit.errors import UserError
from ssl_vit.report import curves
from ssl_vit.report.charts import Interval, Level, Line, interval_chart, line_chart
from ssl_vit.report.curves import Metrics, Series
from ssl_vit.report.page import page_of, story_of, write_page
from tests.report.folders import Read, run_folder

SECTIONS = ["curves", "neighbours", "map", "patches", "method", "views", "data", "speed", "settings", "protocols"]
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}.png"


def test_the_page_of_a_real_run(whole_run: Path) -> None:
    page = (whole_run / "report.html").read_text()
    read = Read(page)
    assert read.sections == [*(name for name in SECTIONS if name != "method"), "export"]
    verdict = json.loads((whole_run / "COMPLETE").read_text())["verdict"]
    assert verdict["sentence"] in read.words
    assert "complete" in read.words
    assert "timm.create_model" in read.words
    assert "Self-attention" in read.words
    assert len(read.all("circle")) > 50  # the two maps, and dots of curves
    sources = [str(each["src"]) for each in read.all("img")]
    assert len(sources) >= 6
    assert all(source.startswith("data:image/") for source in sources)
    assert len(page) < 5_000_000


def test_the_page_asks_nobody_for_anything(whole_run: Path) -> None:
    page = (whole_run / "report.html").read_text()
    addresses = {address for address in re.findall(r"https?://[^\s\"'<>)]+", page) if "w3.org" not in address}
    assert addresses == set()
    read = Read(page)
    assert read.all("link") == [{"rel": "icon", "href": "data:,"}]
    assert all("src" not in script for script in read.all("script"))
    policy = next(each["content"] for each in read.all("meta") if "http-equiv" in each)
    assert str(policy).startswith("default-src 'none'; img-src data:")


def test_names_of_files_and_classes_stay_text(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", names=[EVIL, *(f"{i}.png" for i in range(23))], method__name=EVIL)
    (run / "bad_images.jsonl").write_text(json.dumps({"file": EVIL, "reason": EVIL}) + "\n")
    (run / "summary.json").write_text(json.dumps({"did_it_help": {"sentence": EVIL}}))
    read = Read(write_page(run).read_text())
    assert len(read.all("script")) == 1
    assert all("onerror" not in attributes for _, attributes in read.elements)
    assert read.words.count(EVIL) >= 4  # the subtitle, the verdict's, and the list of bad files
    assert "49" not in read.words.split("Did it help?")[1][:120]


def test_a_page_is_written_again_from_the_folder_alone_without_torch(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    code = "import sys; from ssl_vit.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "report", str(run)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(run / "report.html"), "False"]
    assert Read((run / "report.html").read_text()).sections == SECTIONS


@pytest.mark.parametrize("content", [b"", b"\xff\x00\x89PNG", b'{"step": ', b"[1, 2]", b'"text"'])
def test_what_is_damaged_costs_its_own_section_alone(tmp_path: Path, content: bytes) -> None:
    run = run_folder(tmp_path / "run")
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name != "config.yaml"):
        before = path.read_bytes()
        path.write_bytes(content)
        assert "Settings" in page_of(story_of(run)), path
        path.write_bytes(before)
        path.unlink()
        assert "Settings" in page_of(story_of(run)), path
        path.write_bytes(before)
    assert Read(page_of(story_of(run))).sections == SECTIONS


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no run: expected a folder with"):
        write_page(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_oddities_of_the_data_are_marked(tmp_path: Path) -> None:
    page = write_page(run_folder(tmp_path / "run")).read_text()
    odd = re.findall(r'<tr class="odd">(.*?)</tr>', page)
    assert len(odd) == 1
    assert "3 .txt files" in odd[0]


@pytest.mark.parametrize("name", ["tokenizer.png", "regions.png", "queries.png"])
def test_what_a_method_has_drawn_is_shown(tmp_path: Path, name: str) -> None:
    run = run_folder(tmp_path / "run")
    before = len(Read(page_of(story_of(run))).all("img"))
    Image.new("RGB", (3000, 90)).save(run / name)
    images = Read(page_of(story_of(run))).all("img")
    assert len(images) == before + 1
    shown = next(str(image["src"]) for image in images if image.get("class") == "whole")
    with Image.open(io.BytesIO(base64.b64decode(shown.partition(",")[2]))) as image:
        assert image.width == 1400  # made smaller for the page


def test_a_page_never_grows_beyond_five_megabytes(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    noise = np.random.default_rng(0).integers(0, 255, (1500, 1400, 3), np.uint8)
    Image.fromarray(noise).save(run / "tokenizer.png", compress_level=0)
    for name in ("regions.png", "queries.png"):
        shutil.copy(run / "tokenizer.png", run / name)
    page = page_of(story_of(run))
    assert 2_000_000 < len(page) < 5_000_000
    assert len([each for each in Read(page).all("img") if each.get("class") == "whole"]) < 3


def test_the_answer_to_whether_it_helped_stands_at_the_top(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    rows = [{"name": "start", "values": {"k-NN": 40.0}, "low": 35.0, "high": 45.0}]
    rows.append({"name": "end", "values": {"k-NN": 61.5}, "low": 56.0, "high": 66.0})
    helped = {"sentence": "Yes, by 21.5 points.", "what": "k-NN of 200 images", "rows": rows}
    (run / "summary.json").write_text(json.dumps({"did_it_help": helped}))
    top = Read(write_page(run).read_text()).words.split("Is it learning?")[0]
    assert "Did it help? Yes, by 21.5 points." in top
    assert "k-NN of 200 images k-NN 95 % interval start 40 35.0 to 45.0 end 61.5 56.0 to 66.0" in top


def test_metrics_are_read_once(tmp_path: Path) -> None:
    """A page of a long run reads what was added, half a line only when it is whole, and a resumed run's anew."""
    path = tmp_path / "metrics.jsonl"
    row = '{{"step": {}, "loss": {}, "grad_norm": 1.0}}\n'
    path.write_text("".join(row.format(i, 1.0) for i in range(100)) + '{"step": 100, "lo')
    metrics = Metrics(path).read()
    assert metrics.done == 100
    first = metrics._read
    with path.open("a") as file:
        file.write('ss": 3.0, "grad_norm": 1.0}\nnot json\n' + row.format(101, 5.0))
    assert metrics.read().done == 102
    assert metrics._read == path.stat().st_size > first
    assert list(metrics.steps["loss"].values)[-2:] == [3.0, 5.0]
    path.write_text(row.format(0, 9.0))
    assert list(metrics.read().steps["loss"].values) == [9.0]


def test_a_step_that_was_done_twice_counts_once() -> None:
    series = Series()
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 7.0), (3, 8.0)):
        series.add(step, value)
    assert list(series.values) == [1.0, 7.0, 8.0]


def test_a_curve_has_the_means_and_the_ends_of_its_parts() -> None:
    series = Series()
    for step in range(1, 1001):
        series.add(step, float(step % 10))
    curve = series.curve()
    assert len(curve.steps) == curves.POINTS
    assert curve.steps[-1] == 1000
    assert abs(float(curve.mean.mean()) - 4.5) < 0.1
    assert (curve.low <= curve.mean).all()
    assert (curve.mean <= curve.high).all()
    assert curve.high.max() == 9


def series(*values: float) -> Series:
    found = Series()
    for step, value in enumerate(values, 1):
        found.add(step, value)
    return found


def test_charts_bear_any_values() -> None:
    for values in ((1.0,), (2.0, 2.0), (1e-12, 1e12), (-3.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0)):
        svg = line_chart([Line("<b>", series(*values).curve())], "a & b", levels=[Level("<i>", 1.0)])
        assert "<b>" not in svg
        assert "<i>" not in svg
        assert "nan" not in re.sub(r'data-line="[^"]*"', "", svg).lower().split("aria-label")[0]
    assert line_chart([], "nothing") == ""
    assert "&lt;b&gt;" in interval_chart([Interval("<b>", 1.0)], "one")
