"""Sweeps: what a file says, cells that are shared, killed, stopped early and tried again, and what came of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssl_vit.cli import main
from ssl_vit.errors import ConfigError, RunFailed, StoppedError, UserError
from ssl_vit.sweep import run as running
from ssl_vit.sweep.fit import fitted, frontier
from ssl_vit.sweep.plan import SweepPlan, read_plan
from ssl_vit.sweep.progress import Watched
from tests.runs import SETTINGS, ended, process_of, wait_for

pytest.importorskip("optuna", reason="needs Optuna (pip install 'ssl_vit[sweep]')")

# Does as `ssl-vit pretrain` does, in no time: writes its settings, a score for each of ten epochs, stops when told to.
PRETRAIN = """
    import json, re, signal, sys, time
    from pathlib import Path
    words = sys.argv[1:]
    out = Path(words[words.index("--out") + 1])
    sets = dict(word.split("=", 1) for flag, word in zip(words, words[1:]) if flag == "--set")
    rate, seed = (float(sets.get(key, "0.0").replace("auto", "0")) for key in ("optim.lr", "train.seed"))
    if "--resume" in words:
        rate, seed = json.loads((out / "own.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    (out / "begun").open("a").write("once\\n")
    if rate == 0.5 and not (out / "mended").exists():
        print("ssl-vit: error: the disk is full", file=sys.stderr)
        sys.exit(1)
    (out / "own.json").write_text(json.dumps([rate, seed]))
    (out / "config.yaml").write_text(
        "{data: {path: images}, method: {name: simclr}, train: {epochs: 10, batch_size: 4, seed: 0}}"
    )
    (out / "data.json").write_text('{"images": 4}')
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    rows = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
    with (out / "metrics.jsonl").open("a") as file:
        for step in range(len(rows) + 1, 11):
            time.sleep(PAUSE)
            if told:
                sys.exit(143)
            file.write(json.dumps({"step": step, "knn/20": 10 * step * rate + seed, "knn/10": 0.0}) + "\\n")
            file.flush()
"""


def script(folder: Path, pause: float = 0.0) -> tuple[str, ...]:
    file = folder / "pretrain.py"
    file.write_text(textwrap.dedent(PRETRAIN).replace("PAUSE", str(pause)))
    return (sys.executable, "-S", str(file))


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SweepPlan]:
    """A plan of a text, with runs that take no time."""
    monkeypatch.setattr(running, "_PROGRAM", script(tmp_path))
    monkeypatch.setattr(running, "_POLL", 0.05)

    def plan(text: str) -> SweepPlan:
        (tmp_path / "sweep.yaml").write_text(textwrap.dedent(text))
        return read_plan(tmp_path / "sweep.yaml", ["images"])

    return plan


GRID = """
    set: {data.val: labelled}
    over: {optim.lr: [0.1, 0.3, 0.2], train.seed: [0, 1]}
"""


def test_a_grid_is_run_and_its_seeds_are_a_line(planned: Callable[..., SweepPlan], tmp_path: Path) -> None:
    result = running.sweep(planned(GRID), tmp_path / "out")
    assert [(line.settings, list(line.scores)) for line in result.lines] == [
        ({"optim.lr": "0.3"}, [30.0, 31.0]),
        ({"optim.lr": "0.2"}, [20.0, 21.0]),
        ({"optim.lr": "0.1"}, [10.0, 11.0]),
    ]
    assert result.lines[0].half == pytest.approx(12.7062 * np.std([30, 31], ddof=1) / np.sqrt(2))
    assert result.lines[0].by_percent["50"] == pytest.approx(15.5)
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())["lines"][0]["mean"] == 30.5
    again = running.sweep(planned(GRID), tmp_path / "out")  # nothing is left to do
    assert again == result
    assert all(len(file.read_text().splitlines()) == 1 for file in tmp_path.glob("out/cells/*/begun"))


def test_a_search_draws_within_its_bounds_and_never_alike(planned: Callable[..., SweepPlan], tmp_path: Path) -> None:
    text = """
        cells: 6
        stop_early: false
        set: {data.val: labelled}
        over: {optim.lr: {low: 1e-4, high: 1e-1, log: true}, train.epochs: {low: 2, high: 9}}
    """
    result = running.sweep(planned(text), tmp_path / "out")
    rates = [line.settings["optim.lr"] for line in result.lines]
    assert len(set(rates)) == 6
    assert all(1e-4 <= rate <= 0.1 for rate in rates)
    assert all(line.settings["train.epochs"] in range(2, 10) for line in result.lines)


def test_cells_that_are_behind_end_early(planned: Callable[..., SweepPlan], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(running, "_PROGRAM", script(tmp_path, 0.1))
    rates = [0.2, 0.3, 0.4, 0.6, 0.01, 0.7]
    plan = planned(f"{{set: {{data.val: labelled}}, over: {{optim.lr: {rates}}}}}")
    cells = running.sweep(plan, tmp_path / "out").cells
    assert [cell["state"] for cell in cells] == ["done"] * 4 + ["stopped early", "done"]
    stopped = (tmp_path / "out" / "cells" / "0004" / "metrics.jsonl").read_text().splitlines()
    assert 2 <= len(stopped) < 10  # a fifth of the run, and no more than it takes to be told


def test_a_failure_is_said_and_tried_again_in_its_folder(planned: Callable[..., SweepPlan], tmp_path: Path) -> None:
    plan = planned("{set: {data.val: labelled}, over: {optim.lr: [0.5, 0.1]}}")
    result = running.sweep(plan, tmp_path / "out")
    assert [cell["state"] for cell in result.cells] == ["failed", "done"]
    assert "failed: cells/0000: the disk is full" in str(result)
    (tmp_path / "out" / "cells" / "0000" / "mended").touch()
    result = running.sweep(plan, tmp_path / "out")
    assert [(cell["cell"], cell["state"]) for cell in result.cells] == [("cells/0000", "done"), ("cells/0001", "done")]


def test_where_all_fail_the_reason_is_the_answer(planned: Callable[..., SweepPlan], tmp_path: Path) -> None:
    plan = planned("{set: {data.val: labelled}, over: {optim.lr: [0.5]}}")
    with pytest.raises(RunFailed, match="not one cell has a score; cells/0000: the disk is full"):
        running.sweep(plan, tmp_path / "out")


def _work(file: Path, out: Path, program: tuple[str, ...], said: str) -> None:
    """A sweep's process, in a group of its own: all that it starts can be killed."""
    os.setpgid(0, 0)
    sys.stdout = sys.stderr = open(said, "w")  # noqa: SIM115  # the process ends with it
    running._PROGRAM, running._POLL = program, 0.05
    try:
        running.sweep(read_plan(file, ["images"]), out)
    except StoppedError as error:
        sys.exit(error.exit_code)


@pytest.mark.fault
def test_two_processes_share_it_and_a_killed_ones_cell_is_gone_on_with(tmp_path: Path) -> None:
    file, out, program = tmp_path / "sweep.yaml", tmp_path / "out", script(tmp_path, 0.05)
    file.write_text(
        "{set: {data.val: l}, stop_early: false, over: {optim.lr: [0.1, 0.2, 0.3], train.seed: [0, 1, 2, 3]}}"
    )
    first = process_of(_work, file, out, program, str(tmp_path / "said1"))
    second = process_of(_work, file, out, program, str(tmp_path / "said2"))
    wait_for(lambda: _is_amid(out, first.pid))
    os.killpg(first.pid, signal.SIGKILL)
    assert ended(second) == 0
    cells = json.loads((out / "sweep.json").read_text())["cells"]
    assert [cell["state"] for cell in cells] == ["done"] * 12
    begun = [len((out / cell["cell"] / "begun").read_text().splitlines()) for cell in cells]
    assert sorted(begun) == [1] * 11 + [2]  # one alone was killed, and gone on with
    for cell in cells:
        steps = [json.loads(line)["step"] for line in (out / cell["cell"] / "metrics.jsonl").read_text().splitlines()]
        assert steps == list(range(1, 11))


def _is_amid(out: Path, pid: int | None) -> bool:
    """Whether this process is at work on a cell that has some of its ten scores."""
    mine = [lock for lock in out.glob("cells/.*.lock") if f"pid {pid} " in lock.read_text()]
    rows = [out / "cells" / lock.name[1:5] / "metrics.jsonl" for lock in mine]
    return any(file.exists() and 2 <= len(file.read_text().splitlines()) <= 5 for file in rows)


@pytest.mark.fault
def test_a_signal_stops_the_run_first_and_the_same_command_goes_on(tmp_path: Path) -> None:
    file, out, program = tmp_path / "sweep.yaml", tmp_path / "out", script(tmp_path, 0.1)
    file.write_text("{set: {data.val: l}, over: {optim.lr: [0.1, 0.2]}}")
    process = process_of(_work, file, out, program, str(tmp_path / "said"))
    wait_for((out / "cells" / "0000" / "metrics.jsonl").exists)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == 143
    assert 1 <= len((out / "cells" / "0000" / "metrics.jsonl").read_text().splitlines()) < 10
    assert ended(process_of(_work, file, out, program, str(tmp_path / "said"))) == 0
    assert [c["state"] for c in json.loads((out / "sweep.json").read_text())["cells"]] == ["done", "done"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "nothing to try; expected over: with a list of values, or {low: 1e-4"),
        ("{over: {train.epochs: 3}}", "line 1: over.train.epochs: one value; expected a list of values"),
        ("{over: {train.epochs: []}}", "over.train.epochs: an empty list"),
        ("{over: {train.epoch: [1, 2]}}", "train.epochs"),
        ("{over: {train.epochs: [1, many]}}", "train.epochs: expected an integer ≥ 1 or auto, got 'many'"),
        ("{over: {optim.lr: {low: 1}}}", "over.optim.lr: expected a list of values, or {low"),
        ("{over: {optim.lr: {low: 1, high: 0.1}}}", "low 1, high 0.1; expected low below high"),
        ("{over: {optim.lr: {low: 0.0, high: 0.1, log: true}}}", "and above 0 with log: true"),
        ("{over: {optim.lr: {low: 1e-4, high: -1}}}", "low 0.0001, high -1"),
        ("{set: {optim.lr: 0.1}, over: {optim.lr: [0.1]}}", "optim.lr is in set and in over"),
        ("{sampler: grid, over: {optim.lr: {low: 1e-4, high: 1e-1}}}", "grid needs a list for optim.lr"),
        ("{cels: 3, over: {optim.lr: [0.1]}}", "cells"),
        ("{score: accuracy, over: {optim.lr: [0.1]}}", "score"),
        ("{fit: images, over: {optim.lr: [0.1]}}", "fit: is of k-NN's error, and there are no labels; set data.val"),
        ("{over: {method.name: [dino, simcrl]}}", "simclr"),
    ],
)
def test_mistakes_are_said_before_anything_runs(planned: Callable[..., SweepPlan], text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(text)
    assert said in str(caught.value)


def test_another_sweep_in_its_folder_is_refused(planned: Callable[..., SweepPlan], tmp_path: Path) -> None:
    running.sweep(planned("{set: {data.val: l}, over: {optim.lr: [0.1]}}"), tmp_path / "out")
    with pytest.raises(UserError, match="holds a sweep of other settings; choose another --out"):
        running.sweep(planned("{set: {data.val: l}, over: {optim.lr: [0.2]}}"), tmp_path / "out")


def test_scores_are_told_once_and_half_a_line_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "{data: {path: x}, method: {name: simclr}, train: {epochs: 2, batch_size: 5}}"
    )
    (tmp_path / "data.json").write_text('{"images": 50}')
    rows = tmp_path / "metrics.jsonl"
    rows.write_text(
        '{"step": 5, "health": "learning", "rank": 3.5}\n{"step": 6, "loss": 1.0, "rank": 9}\n{"step": 10, '
    )
    watched = Watched(tmp_path, "rank")
    assert list(watched.news()) == [(25, 3.5)]
    assert list(watched.news()) == []
    with rows.open("a") as file:
        file.write('"health": "learning", "rank": 4.5}\n')
    assert list(watched.news()) == [(50, 4.5)]


def test_the_law_of_the_paper_is_found_again() -> None:
    x = np.array([1e6, 2e6, 5e6, 1e7, 4e7, 1e8, 1e9])
    error = 12.0 + 30 * (x / 1e7 + 0.05) ** -0.35
    law = fitted([*x, 1e6, 5e6], [*error, 99.0, 98.0])  # cells that are no best don't count
    assert law is not None
    assert law(np.array([1e10])) == pytest.approx(12.0 + 30 * (1e10 / 1e7 + 0.05) ** -0.35, rel=0.02)
    assert fitted([1, 2, 3, 4], [9, 8, 7, 6]) is None
    assert frontier([3, 1, 2], [5, 9, 9]) == [(1, 9), (3, 5)]


def test_the_files_that_come_with_it_are_right(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for file in sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("*.yaml")):
        assert main(["sweep", str(file), str(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
        assert "9 cells (grid), compared by" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_runs_of_two_processes_are_killed_resumed_and_complete(pictures: Path, tmp_path: Path) -> None:
    own = {**SETTINGS, "train.epochs": 2, "data.workers": 0, "health.knn_every": 1.0, "data.val": pictures / "val"}
    own |= {"method.name": "dino", "data.path": pictures / "train"}
    shared = ", ".join(f"{key}: {value}" for key, value in own.items())
    file, out = tmp_path / "sweep.yaml", tmp_path / "out"
    file.write_text(f"{{set: {{{shared}}}, over: {{train.seed: {list(range(12))}}}}}")
    first, second = (process_of(_real, file, out, str(tmp_path / f"said{i}")) for i in (1, 2))
    wait_for(lambda: len(list(out.glob("cells/*/metrics.jsonl"))) >= 4)
    for process in (first, second):
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    first, second = (process_of(_real, file, out, str(tmp_path / f"said{i}")) for i in (1, 2))
    assert {ended(first), ended(second)} == {0}
    result = json.loads((out / "sweep.json").read_text())
    assert [cell["state"] for cell in result["cells"]].count("done") >= 4
    assert {cell["state"] for cell in result["cells"]} <= {"done", "stopped early"}
    assert len(result["cells"]) == 12
    assert (out / "sweep.png").exists()


def _real(file: Path, out: Path, said: str) -> None:
    os.setpgid(0, 0)
    sys.stdout = sys.stderr = open(said, "w")  # noqa: SIM115  # the process ends with it
    sys.exit(main(["sweep", str(file), "--out", str(out)]))
