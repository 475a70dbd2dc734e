"""The command line: what it calls, what it prints, its exit codes, and that it answers without torch."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import ssl_vit
from ssl_vit.backbones import list_backbones
from ssl_vit.cli import COMMANDS, main
from ssl_vit.cli.compress import WHAT
from ssl_vit.cli.parser import without_quiet
from ssl_vit.config import load_config
from ssl_vit.errors import RunFailed, UserError
from ssl_vit.eval.kinds import list_kinds
from ssl_vit.methods import list_methods
from ssl_vit.progress import progress_bar
from ssl_vit.terminal import hushed
from tests.runs import command as run_command
from tests.runs import finish

NOTHING_SAID = {"backbone": None, "mean": None, "std": None}
HEAVY = ("torch", "torchvision", "timm", "lightning", "numpy", "PIL", "faiss", "rich")
REPOSITORY = os.path.dirname(os.path.dirname(ssl_vit.__file__))
ENVIRONMENT = os.environ | {"PYTHONPATH": REPOSITORY}


def python(code, *args, **options):
    settings = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 60} | options
    return subprocess.run([sys.executable, "-c", code, *args], **settings)


def run(line):
    return main(line.split())


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the rooms below, which note how they are called."""
    noted = []

    def note(name, result=None):
        def call(*args, **options):
            noted.append((name, args, options))
            return result

        return call

    reasons = [("train.epochs", 800, "5,000 images", "--epochs N")]
    exported = SimpleNamespace(folder="out", snippet="import timm", check="verified")
    rooms = {
        "run.pretrain": {"pretrain": note("pretrain", "finished")},
        "run.plan": {
            "resolve": lambda config: (
                config.model_copy(update={"train": config.train.model_copy(update={"epochs": 800})}),
                reasons,
            ),
        },
        "eval.api": {"evaluate": note("evaluate", {"knn": {"20": 74.5}})},
        "eval.embed": {"embed": note("embed", "features.npz")},
        "export.api": {"export": note("export", exported)},
        "demo": {"demo": note("demo")},
    }
    for name, functions in rooms.items():
        module = ModuleType(f"ssl_vit.{name}")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, f"ssl_vit.{name}", module)
        monkeypatch.setattr(f"ssl_vit.{name}", module, raising=False)
    return noted


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with images/, val/ and weights.pth."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "weights.pth").touch()
    return tmp_path


def errors(capsys, line):
    """The lines on stderr of a command that is refused, without what stands before each."""
    assert run(line) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert all(text.startswith("ssl-vit: error: ") for text in lines)
    return [text.removeprefix("ssl-vit: error: ") for text in lines]


# --- what is called -------------------------------------------------------------------------------------------------


def test_pretrain_builds_the_configuration_from_all_its_sources(here, calls, capsys):
    (here / "a.yaml").write_text("train: {seed: 1, nodes: 2}")
    line = (
        "pretrain images --out run --method dino --backbone vit_tiny_patch16_224 --epochs 3 --batch-size 64 --val val"
    )
    line += " --config a.yaml --set optim.lr=1e-3 --set method.out_dim=64 --seed 5 --devices 2 --workers 0"
    assert main([*line.split(), "--precision", "bf16-mixed"]) == 0
    [(name, (config, out), options)] = calls
    assert (name, str(out), options) == ("pretrain", "run", {"resume": False, "overwrite": False})
    assert config == load_config(
        sets=[
            "backbone.name=vit_tiny_patch16_224",
            "train={epochs: 3, batch_size: 64, seed: 5, devices: 2, nodes: 2, precision: bf16-mixed}",
            "data={path: images, val: val, workers: 0}",
            "optim.lr=0.001",
            "method={name: dino, out_dim: 64}",
        ]
    )
    assert capsys.readouterr().out == "finished\n"


def test_resume_starts_from_the_runs_own_settings(here, calls):
    (here / "run").mkdir()
    (here / "run/config.yaml").write_text("data: {path: elsewhere}\ntrain: {epochs: 7, seed: 3}")
    assert run("pretrain images --out run --resume --seed 4") == 0
    [(_, (config, _), options)] = calls
    assert (config.data.path, config.train.epochs, config.train.seed) == ("images", 7, 4)
    assert options == {"resume": True, "overwrite": False}


def test_several_folders_of_images(here, calls):
    assert run("pretrain images --epochs 3 val --outside-links --out run") == 0
    [(_, (config, _), _)] = calls
    assert (config.data.path, config.data.outside_links) == (("images", "val"), True)
    assert run("embed weights.pth images --out a.npz val --outside-links") == 0
    assert calls[1][1][1:2] == (["images", "val"],)
    assert calls[1][2]["outside_links"] is True


def test_print_config_gives_yaml_on_stdout_and_the_reasons_on_stderr(here, calls, capsys):
    assert run("pretrain images --print-config") == 0
    captured = capsys.readouterr()
    (here / "printed.yaml").write_text(captured.out)
    assert load_config(["printed.yaml"]).train.epochs == 800
    assert [line.split() for line in captured.err.splitlines()] == [
        ["key", "value", "why", "how", "to", "override"],
        ["train.epochs", "800", "5,000", "images", "--epochs", "N"],
    ]
    assert calls == []
    assert os.listdir(here) != []
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("line", "name", "args", "options"),
    [
        (
            "eval knn weights.pth --backbone vit --train images --val val --k 5 --layers last2 --json scores.json",
            "evaluate",
            ["knn", "weights.pth"],
            {"train": "images", "val": "val", "backbone": "vit", "json": "scores.json", "features": None, "seed": "0"}
            | {"k": "(5,)", "temperature": "(0.07,)", "layers": "(-2, -1)"}
            | {"pooling": "model", "precision": "float32", "mean": None, "std": None, "max_bad": "0.05"},
        ),
        ("export images", "export", ["images"], {"to": "timm", "out": None, "int8": None} | NOTHING_SAID),
        (
            "export images --to timm --out new",
            "export",
            ["images"],
            {"to": "timm", "out": "new", "int8": None} | NOTHING_SAID,
        ),
        (
            "export weights.pth --backbone vit --mean 0.5,0.5,0.5 --std .2,.2,.2",
            "export",
            ["weights.pth"],
            {"to": "timm", "out": None, "backbone": "vit", "mean": "(0.5, 0.5, 0.5)", "std": "(0.2, 0.2, 0.2)"}
            | {"int8": None},
        ),
        (
            "embed images val --out new.npz",
            "embed",
            ["images", "val", "new.npz"],
            {"layers": "(-1,)", "pooling": "model", "precision": "float32", "patches": "False"} | NOTHING_SAID,
        ),
        ("demo", "demo", ["ssl-vit-demo"], {}),
        ("demo --out new", "demo", ["new"], {}),
    ],
)
def test_each_command_calls_its_function(here, calls, line, name, args, options):
    assert run(line) == 0
    [(called, given, named)] = calls
    assert (called, [str(each) for each in given]) == (name, args)
    assert {key: value if value is None else str(value) for key, value in named.items()} == options


def test_results_are_printed(here, calls, capsys):
    run("eval linear weights.pth --train images --val val")
    assert json.loads(capsys.readouterr().out) == {"knn": {"20": 74.5}}
    run("export images")
    assert capsys.readouterr().out == "out: verified\nimport timm\n"


def test_list_methods_says_when_to_choose_which(capsys):
    assert main(["list", "methods"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "idea", "needs", "choose_when"]
    assert "dino" in [row.split()[0] for row in rows]
    assert main(["list", "methods", "din?", "--json"]) == 0
    [dino] = json.loads(capsys.readouterr().out)
    assert dino["name"] == "dino"
    assert all(dino[fact] for fact in ("idea", "needs", "choose_when"))


def test_list_backbones_prints_the_registrys_rows(monkeypatch, capsys):
    import ssl_vit.backbones
    from ssl_vit.backbones.backbone import BackboneInfo, Stage
    from ssl_vit.backbones.registry import BackboneRow

    stages = (Stage(64, 4), Stage(512, 32))
    grey = ((0.5,) * 3, (0.5,) * 3)
    net = BackboneInfo(
        "net[a]", "nets", "hybrid", 512, 512, stages, None, (224, 192), (7, 6), True, 32, *grey, 1_234_567
    )
    rows = [BackboneRow("net[a]", "nets", "hybrid", net, 1_234_567, "arXiv:2101.00001", ("full", "prior"))]
    monkeypatch.setattr(ssl_vit.backbones, "list_backbones", lambda pattern, mixer: rows, raising=False)
    assert run("list backbones net*") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["name", "family", "kind", "parameters", "features", "stride", "pixels", "mixer", "paper"],
        [
            "net[a]",
            "nets",
            "hybrid",
            "1,234,567",
            "512",
            "32",
            "224x192",
            "or",
            "others",
            "full,",
            "prior",
            "arXiv:2101.00001",
        ],
    ]
    assert run("list backbones --json") == 0
    [row] = json.loads(capsys.readouterr().out)
    assert (row["name"], row["info"]["stages"]) == ("net[a]", [[64, 4], [512, 32]])

    rows[:] = [BackboneRow("net[b]", "nets", None, None)]
    assert run("list backbones") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["name", "family", "kind", "parameters", "mixer", "paper"],
        ["net[b]", "nets"],
    ]


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "",
            "no command; one of pretrain, eval, compare, report, compress, export, inspect, embed, pack, bench, ",
        ),
        ("pretrian images", "unknown command 'pretrian'; did you mean pretrain?; see ssl-vit --help"),
        (
            "pretrain images --out r --epoch 3",
            "unknown flag --epoch; did you mean --epochs?; see ssl-vit pretrain --help",
        ),
        ("pretrain images --outt=r", "unknown flag --outt; did you mean --out?; see ssl-vit pretrain --help"),
        ("pretrain images --out r --epochs", "argument --epochs: expected one argument; see ssl-vit pretrain --help"),
        ("pretrain images", "--out RUN is required; see ssl-vit pretrain --help"),
        ("pretrain images --resume --print-config", "--out RUN is required; see ssl-vit pretrain --help"),
        ("pretrain --out r", "the following arguments are required: DATA; see ssl-vit pretrain --help"),
        ("pretrain images extra --out r", "extra: no such folder; expected images to learn from (DATA)"),
        ("pretrain images --out weights.pth/r", "weights.pth: a file is where weights.pth/r needs a folder"),
        ("pretrain images --out .", ".: exists, and nothing is overwritten"),
        ("pretrain images --out r --resume", "r: no run to resume (no config.yaml)"),
        ("pretrain none --out r", "none: no such folder; expected images to learn from (DATA)"),
        (
            "pretrain images --out r --val none",
            "none: no such folder; expected one sub-folder of images a class (--val)",
        ),
        ("pretrain images --out r --method dina", "method.name: unknown method 'dina'; did you mean dino? (--method)"),
        ("pretrain images --out r --epochs 1.5", "train.epochs: expected an integer ≥ 1 or auto, got 1.5 (--epochs)"),
        ("pretrain images --out r --config none.yaml", "none.yaml: no such file"),
        (
            "eval knm weights.pth --train images --val val",
            "unknown score 'knm'; did you mean knn?; see ssl-vit eval --help",
        ),
        ("eval knn none --train images --val val", "argument RUN|WEIGHTS: none: no such file or folder"),
        (
            "eval knn weights.pth --train images",
            "the following arguments are required: --val; see ssl-vit eval knn --help",
        ),
        (
            "eval knn weights.pth --train images --val val --json no/a.json",
            "argument --json: no: no such folder; make it",
        ),
        ("export none", "argument RUN|WEIGHTS: none: no such file or folder; see ssl-vit export --help"),
        (
            "embed weights.pth images --out weights.pth",
            "argument --out: weights.pth: exists, and nothing is overwritten",
        ),
        (
            "export weights.pth --mean 0.5",
            "argument --mean: --mean 0.5: expected three numbers, as in 0.5,0.5,0.5; see ssl-vit export --help",
        ),
        (
            "embed weights.pth images --out new.npz --mean 123.7,116.3,103.5",
            "--mean: 123.7 is out of range; expected 0 to 1, of images in [0, 1]; divide values for pixels of 0 to 255",
        ),
        ("list backbone", "argument backbones|methods: unknown 'backbone'; did you mean backbones?"),
        ("list methods zzz", "no methods match 'zzz'; expected a shell pattern, as in '*swin*'"),
        ("demo --out weights.pth", "argument --out: weights.pth: exists, and nothing is overwritten"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(here, calls, capsys, line, message):
    [found] = errors(capsys, line)
    assert message in found
    assert calls == []
    assert sorted(os.listdir(here)) == ["images", "val", "weights.pth"]


def test_every_wrong_setting_has_its_line(here, calls, capsys):
    assert errors(capsys, "pretrain images --out r --epochs ten --seed -1 --set optim.epochs=3") == [
        "optim.epochs: unknown key; did you mean train.epochs? (--set optim.epochs=3)",
        "train.epochs: expected an integer ≥ 1 or auto, got 'ten' (--epochs)",
        "train.seed: expected an integer ≥ 0 and < 4294967296, got -1 (--seed)",
    ]


class StoppedError(UserError):
    exit_code = 143


@pytest.mark.parametrize(("error", "code"), [(UserError("no"), 2), (RunFailed("no"), 1), (StoppedError("no"), 143)])
def test_a_users_error_decides_the_exit_code(here, calls, capsys, monkeypatch, error, code):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(sys.modules["ssl_vit.run.pretrain"], "pretrain", fail)
    assert run("pretrain images --out run") == code
    assert capsys.readouterr().err == "ssl-vit: error: no\n"


def test_ctrl_c_is_one_line(here, calls, capsys, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["ssl_vit.run.pretrain"], "pretrain", stop)
    assert run("pretrain images --out run") == 130
    assert capsys.readouterr().err == "ssl-vit: error: stopped; nothing is half-written: give the same command again\n"


def test_ctrl_c_while_importing_is_one_line(here):
    """A real signal, in the midst of torch's import."""
    argv = [sys.executable, "-m", "ssl_vit", "pretrain", "images", "--out", "run"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had the tests ignore it
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert said == "ssl-vit: error: stopped; nothing is half-written: give the same command again\n"
    assert process.returncode == 130
    assert not (here / "run").exists()


def test_a_bug_keeps_its_traceback_and_exits_1(here):
    script = "import sys, ssl_vit.cli as cli; cli.COMMANDS['demo'] = lambda argv: 1 / 0; sys.exit(cli.main(['demo']))"
    done = python(script)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


# --- without torch --------------------------------------------------------------------------------------------------

LIGHT = f"""
import json, sys
from ssl_vit.cli import main
codes = []
for line in json.loads(sys.argv[1]):
    try:
        codes.append(main(line))
    except SystemExit as stop:
        codes.append(stop.code)
print(json.dumps([codes, [name for name in {HEAVY} if name in sys.modules]]))
"""


def light(lines, **options):
    """Exit codes of command lines run in one fresh process, and which heavy modules it loaded."""
    return json.loads(python(LIGHT, json.dumps(lines), **options).stdout.splitlines()[-1])


def test_help_and_version_load_nothing_heavy():
    lines = [["--help"], ["-h"], ["--version"], *[[command, "--help"] for command in COMMANDS]]
    assert light(lines) == [[0] * len(lines), []]


def test_mistakes_load_nothing_heavy(here):
    files = {
        "bomb.yaml": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
        "tag.yaml": 'a: !!python/object/apply:os.system ["touch owned"]',
        "class.yaml": "class_path: torch.nn.Linear",
        "twice.yaml": "train: {seed: 1, seed: 2}",
        "nan.yaml": "optim: {lr: .nan}",
        "tab.yaml": "train:\n\tseed: 1",
        "deep.yaml": "a: " + "[" * 100_000,
        "key.yaml": "train: {epoch: 3}",
    }
    for name, text in files.items():
        (here / name).write_text(text)
    (here / "utf16.yaml").write_bytes("train: {}".encode("utf-16"))
    with (here / "large.yaml").open("wb") as file:
        file.truncate(100 * 2**20)
    lines = [
        ["pretrain", "images", "--out", "run", "--config", name] for name in sorted(os.listdir(here)) if ".yaml" in name
    ]
    assert len(lines) == 10
    lines += [
        ["pretrain", "images", "--out", "run", "--epochs", "ten"],
        ["pretrain", "none", "--out", "run"],
        ["pretrain", "images", "--out", "weights.pth"],
        ["eval", "knn", "none", "--train", "images", "--val", "val"],
        ["nonsense"],
    ]
    assert light(lines, cwd=here) == [[2] * len(lines), []]
    assert not (here / "owned").exists()
    assert not (here / "run").exists()


def test_the_package_loads_nothing_heavy_and_knows_its_names():
    code = (
        "import sys, ssl_vit; ssl_vit.load_config; ssl_vit.list_methods(); print(set(sys.argv[1:]) & set(sys.modules))"
    )
    assert python(code, *HEAVY).stdout == "set()\n"
    assert {"pretrain", "evaluate", "embed", "create_backbone", "load_config"} <= set(dir(ssl_vit))
    with pytest.raises(AttributeError, match="module 'ssl_vit' has no attribute 'pretrian'"):
        ssl_vit.pretrian  # noqa: B018 - looking it up is the test


def test_help_of_pretrain_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for expected in (
        "train.epochs: an integer ≥ 1 or auto",
        "method.out_dim:",
        "--batch-size N",
        "Passes over the images.",
    ):
        assert expected in text


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(f"compress {what}" for what in WHAT), *(f"eval {kind}" for kind in list_kinds())]
)
def test_every_help_has_two_examples_that_it_knows(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    examples = text.split("examples:\n")[1].split("\n\n")[0].splitlines()
    assert len(examples) == 2
    usage = text.split("examples:")[0]
    for line in examples:
        assert line.startswith(f"  ssl-vit {command}")
        if command not in ("eval", "compress"):  # of which each kind has flags of its own
            assert set(re.findall(r"--[a-z-]+", line)) <= set(re.findall(r"--[a-z-]+", usage)), line


def test_help_says_what_exit_codes_mean(capsys):
    assert main(["--help"]) == 0
    codes = re.findall(r"^  (\d+) +\S", capsys.readouterr().out.split("exit codes:")[1], re.MULTILINE)
    assert codes == ["0", "1", "2", "130", "143"]


def test_quiet_says_nothing_but_the_result(pictures, tmp_path):
    short = {"train__epochs": 1, "data__workers": 0}
    loud, quiet = tmp_path / "loud", tmp_path / "quiet"
    assert finish(run_command(pictures / "train", tmp_path / "a", **short), loud) == 0
    assert finish(run_command(pictures / "train", tmp_path / "b", "--quiet", "--json", **short), quiet) == 0
    assert "this run:" in loud.read_text()
    assert json.loads(quiet.read_text())["steps"] == 6
    assert "this run:" in (tmp_path / "b" / "train.log").read_text()


def test_quiet_leaves_mistakes_and_what_follows_two_dashes(here, calls, capsys):
    assert main(["eval", "knn", "--quiet"]) == 2
    assert "required" in capsys.readouterr().err
    assert without_quiet(["list", "--", "--quiet"]) == (["list", "--", "--quiet"], False)


@pytest.mark.parametrize(("settings", "bar"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_no_color_keeps_lines_plain(monkeypatch, settings, bar):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as rich knows a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert progress_bar("x").disable is not bar
    with hushed():
        assert progress_bar("x").disable


# --- terminals ------------------------------------------------------------------------------------------------------


def test_python_m_ssl_vit_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "ssl_vit", "--version"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"ssl-vit {ssl_vit.__version__}\n")


@pytest.mark.fault
def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "ssl_vit", "pretrain", "--help"]
    restore = {"preexec_fn": lambda: signal.signal(signal.SIGPIPE, signal.SIG_IGN)}
    done = subprocess.run(command, env=ENVIRONMENT, stdout=writing, stderr=subprocess.PIPE, text=True, **restore)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_standard_streams_that_are_closed_are_no_files_of_the_run(closed, tmp_path):
    """What is opened next must not get their numbers: whatever is printed would be written into it."""
    code = (
        "import os, ssl_vit.cli, ssl_vit.__main__ as program\n"
        "def main():\n"
        "    kept = open('kept', 'w')\n"
        "    os.write(2, b'printed by a library')\n"
        "    return 3 + (kept.fileno() < 3)\n"
        "ssl_vit.cli.main = main\n"
        "raise SystemExit(program.run())\n"
    )
    line = f'"{sys.executable}" -c "$CODE" {closed}'
    done = subprocess.run(["bash", "-c", line], env=ENVIRONMENT | {"CODE": code}, cwd=tmp_path)
    assert (done.returncode, (tmp_path / "kept").read_text()) == (3, "")


def test_a_folder_that_is_gone_is_said(capsys, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run("list methods") == 2
    assert "is gone; change into another one" in capsys.readouterr().err


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"COLUMNS": "20"}, {"LANG": "C", "TERM": "dumb"}])
def test_poor_terminals_get_their_answer(settings):
    command = [sys.executable, "-m", "ssl_vit", "pretrain", "--help"]
    done = subprocess.run(command, env=ENVIRONMENT | settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "train.epochs: an integer" in done.stdout


def test_the_matrix_has_every_family_and_method_or_the_reason(capsys) -> None:
    assert main(["matrix", "--json"]) == 0
    rows = {row["family"]: row for row in json.loads(capsys.readouterr().out)}
    families = {row.family for row in list_backbones()}
    assert rows.keys() == families
    assert all(set(list_methods()) <= row.keys() for row in rows.values())
    refused = {(name, family) for family, row in rows.items() for name in list_methods() if row[name] is not None}
    assert refused == {("mae", family) for family in families - {"vision_transformer", "deit"}}
    assert main(["matrix", "swin_transformer"]) == 0
    title, line, reason = capsys.readouterr().out.splitlines()
    assert title.split() == ["family", "models", *list_methods()]
    assert line.split()[2:] == ["(1)" if name == "mae" else "✓" for name in list_methods()]
    assert reason.startswith("(1) not with mae: it is no plain ViT")
    assert main(["matrix", "nosuch*"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["matrix", "*dinov3*", "--json"]) == 0  # no family's name, but names of models
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["family"], row["dinov2"], row["ibot"]) == ("eva", None, None)
    assert row["models"] == len(list_backbones("*dinov3*"))
