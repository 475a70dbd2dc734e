"""The open door: methods of strangers by file, by module and by entry point, and every mistake in one line."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import ssl_vit
from ssl_vit import plugins
from ssl_vit.cli import main
from ssl_vit.config import load_config
from ssl_vit.errors import UserError
from ssl_vit.methods import config_class, list_methods, method_class
from ssl_vit.registry import METHODS, UnknownName, register_method
from tests.plugged import BROKEN, METHOD, TWO_FILES, package


@pytest.fixture(autouse=True)
def own_plugins():
    """No test leaves a plugin behind."""
    with plugins.withdrawn_after():
        yield


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def error_of(capsys, *argv: str) -> str:
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0].removeprefix("ssl-vit: error: ")


def light(*argv: str, path: str = "") -> tuple[int, str, set[str]]:
    """A command in a process of its own: exit code, what it printed, and what is heavy and was imported."""
    code = (
        "import sys\nfrom ssl_vit.cli import main\ntry:\n    code = main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    code = stop.code\n"
        "print({'torch', 'timm', 'lightning'} & set(sys.modules))\nexit(code)"
    )
    root = str(Path(ssl_vit.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, *filter(None, [path])])}
    done = subprocess.run([sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True)
    *said, heavy = done.stdout.splitlines()
    return done.returncode, "\n".join(said) + done.stderr, set() if heavy == "set()" else set(eval(heavy))


# --- by file --------------------------------------------------------------------------------------------------------


def test_a_method_in_one_file_is_a_method_like_ours(tmp_path, capsys):
    file = write(tmp_path / "my_varcov.py", METHOD)
    assert "varcov" not in list_methods()
    assert main(["list", "methods", "varc*", "--plugin", file]) == 0
    assert "the outputs keep their spread" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["pretrain", "--help", "--method", "varcov", "--plugin", file])
    help_text = capsys.readouterr().out
    assert "method.spread: a number ≥ 0 (25.0)\n      Weight of the variance term (paper: 25)." in help_text
    assert "varcov" not in list_methods()  # of the commands before, and of no other


def test_a_file_is_imported_once_and_noted_in_the_configuration(tmp_path, caplog):
    file = write(
        tmp_path / "counted.py", f"{METHOD}\nimport builtins\nbuiltins.count = getattr(builtins, 'count', 0) + 1\n"
    )
    for _ in range(2):
        with plugins.withdrawn_after():
            plugins.use([file])
            config = load_config(flags={"data.path": "images", "method.name": "varcov", "method.spread": 1.0})
            with caplog.at_level("INFO", "ssl_vit"):
                plugins.announce()
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    assert config.plugins == {file: digest}
    assert sys.modules["counted"].builtins.count == 1
    assert caplog.messages[0] == f"plugin {file} (sha256 {digest[:12]}): method varcov"
    plugins.use([file])
    assert method_class("varcov").__module__ == "counted"
    assert type(config) is type(load_config(flags={"data.path": "images"}))


def test_in_two_files_the_configuration_needs_no_torch(tmp_path):
    for name, text in TWO_FILES.items():
        write(tmp_path / name, text)
    file = str(tmp_path / "two_files.py")
    code, said, heavy = light("pretrain", "--help", "--method", "twofold", "--plugin", file)
    assert (code, heavy) == (0, set())
    assert "method.spread: a number ≥ 0 (25.0)" in said
    code, said, heavy = light(
        "pretrain", ".", "--out", "x", "--method", "twofold", "--plugin", file, "--set", "method.sprad=1"
    )
    assert (code, heavy) == (2, set())
    assert "method.sprad: unknown key; did you mean method.spread?" in said
    plugins.use([file])
    assert method_class("twofold").__module__ == "two_files_loss"
    before = load_config(flags={"data.path": "images", "method.name": "twofold"}).plugins
    write(tmp_path / "two_files_loss.py", TWO_FILES["two_files_loss.py"] + "\n# changed\n")
    assert load_config(flags={"data.path": "images", "method.name": "twofold"}).plugins != before  # the loss counts


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["pretrain", "--help"],
        ["list", "--help"],
        ["pretrain", "--help", "--method", "dino"],
        ["pretrain", ".", "--out", "x", "--method", "varcov", "--set", "train.epocs=3"],
        ["pretrain", ".", "--out", "x", "--set", "train.epocs=3"],
    ],
)
def test_a_file_with_torch_is_not_imported_before_its_names_are_needed(tmp_path, argv):
    file = write(tmp_path / "my_varcov.py", METHOD)
    code, said, heavy = light(*argv, "--plugin", file)
    assert (code, heavy) == (0 if "--help" in argv else 2, set()), said
    assert "varcov" not in said.replace("my_varcov.py", "") or "train.epocs" in said


# --- by entry point -------------------------------------------------------------------------------------------------


def test_an_installed_package_is_known_by_its_metadata_and_imported_when_its_name_is_used(tmp_path):
    site = package(tmp_path, "strange", {"ssl_vit.methods": {"varcov": "strange.varcov"}}, {"varcov.py": METHOD})
    for argv in (
        ["--help"],
        ["list", "methods"],
        ["pretrain", "--help"],
        ["pretrain", ".", "--set", "a.b=1", "--out", "x"],
    ):
        code, said, heavy = light(*argv, path=site)
        assert (code, heavy) == (2 if "--set" in argv else 0, set()), said
    said = light("list", "methods", path=site)[1]
    assert "of the package strange 1.5 (entry point strange.varcov); ssl-vit list methods varcov says more" in said
    code, said, _ = light("list", "methods", "varcov", path=site)
    assert code == 0
    assert "the outputs keep their spread" in said
    assert "did you mean varcov?" in light("pretrain", ".", "--method", "varcof", "--out", "x", path=site)[1]


@pytest.mark.parametrize(
    ("points", "files", "name", "expected"),
    [
        (
            {"dino": "strange.m"},
            {"m.py": ""},
            "dino",
            "'dino' is taken: ssl_vit.methods.dino_config and the package strange 1.5",
        ),
        (
            {"a": "strange.m"},
            {"m.py": "import nosuchmodule"},
            "a",
            "can't be imported for the method 'a': ModuleNotFoundError: No module",
        ),
        ({"a": "strange.m"}, {"m.py": ""}, "a", "announces the method 'a' and does not register it"),
    ],
)
def test_packages_that_announce_what_they_do_not_have(tmp_path, points, files, name, expected):
    site = package(tmp_path, "strange", {"ssl_vit.methods": points}, files)
    code, said, _ = light("pretrain", ".", "--out", "x", "--method", name, path=site)
    assert code == 2
    assert expected in said
    assert said.count("\n") == 1
    assert light("--help", path=site)[0] == 0


def test_two_packages_with_one_name_are_both_named(tmp_path):
    site = [
        package(tmp_path / name, name, {"ssl_vit.methods": {"a": f"{name}.m"}}, {"m.py": ""}) for name in ("one", "two")
    ]
    said = light("list", "methods", "a", path=os.pathsep.join(site))[1]
    assert "the method 'a' is taken: the package one 1.5" in said
    assert "and the package two 1.5" in said


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_plugin_is_refused_in_one_line(tmp_path, capsys, text, expected):
    file = write(tmp_path / "broken.py", text)
    said = error_of(
        capsys, "pretrain", str(tmp_path), "--out", str(tmp_path / "run"), "--plugin", file, "--method", "mine"
    )
    assert expected.format(file=file) in said
    assert not (tmp_path / "run").exists()


def test_names_of_files_that_are_not_there(tmp_path, capsys):
    (tmp_path / "text.txt").touch()
    for given, expected in (
        ("nope.py", "no such file; expected a Python file"),
        (f"{tmp_path}/", "a folder; expected a Python file"),
        (f"{tmp_path}/text.txt", "whose name ends in .py"),
        ("nosuchmodule", "no such module; install it, or give a file, nosuchmodule.py"),
        ("nosuch.module", "can't be found: ModuleNotFoundError: No module named 'nosuch'"),
        ("", "expected a Python file or module after it"),
    ):
        assert expected in error_of(capsys, "list", "methods", f"--plugin={given}")


def test_two_files_with_one_name_are_both_named(tmp_path, capsys):
    files = [write(tmp_path / f"{name}.py", METHOD) for name in ("first", "second")]
    said = error_of(capsys, "list", "methods", *(f"--plugin={file}" for file in files))
    assert "the method 'varcov' is taken" in said
    assert all(f"{file} line" in said for file in files)


def test_a_configuration_alone_imports_nothing(tmp_path, capsys):
    file = write(tmp_path / "my_varcov.py", METHOD)
    with plugins.withdrawn_after():
        plugins.use([file])
        config = load_config(flags={"data.path": str(tmp_path), "method.name": "varcov"})
    run = tmp_path / "run"
    run.mkdir()
    write(run / "config.yaml", ssl_vit.config.dump(config))
    resume = ["pretrain", str(tmp_path), "--out", str(run), "--resume"]
    line = (run / "config.yaml").read_text().splitlines().index("plugins:") + 2
    where = f"({run}/config.yaml line {line})"
    said = error_of(capsys, *resume)
    assert said.startswith(f"plugins: {file} is needed")
    assert said.endswith(f"add --plugin {file} (in Python: plugins=['{file}']) {where}")
    assert error_of(capsys, "bench", str(tmp_path), "--config", str(run / "config.yaml")) == said
    write(tmp_path / "other.py", METHOD.replace("varcov", "other"))
    assert error_of(capsys, *resume, "--plugin", str(tmp_path / "other.py")) == said
    write(Path(file), METHOD + "\n# changed\n")
    said = error_of(capsys, *resume, "--plugin", file)
    assert said.startswith(f"plugins: {file} has changed since the run began (its sha256 was ")
    assert said.endswith(f"restore it, or begin a new run with a configuration that does not list it {where}")
    (tmp_path / "elsewhere").mkdir()
    moved = write(tmp_path / "elsewhere" / "renamed.py", METHOD)  # the same, in another place
    with plugins.withdrawn_after():
        plugins.use([moved])
        assert list(load_config([run / "config.yaml"]).plugins) == [moved]


# --- in Python ------------------------------------------------------------------------------------------------------


def test_what_is_imported_by_hand_needs_no_flag_and_is_noted_too(tmp_path, monkeypatch):
    write(tmp_path / "by_hand.py", METHOD.replace("varcov", "by_hand"))
    monkeypatch.syspath_prepend(tmp_path)
    import by_hand  # type: ignore[import-not-found]

    config = load_config(flags={"data.path": "images", "method.name": "by_hand"})
    assert config.plugins == {
        str(tmp_path / "by_hand.py"): hashlib.sha256((tmp_path / "by_hand.py").read_bytes()).hexdigest()
    }
    write(tmp_path / "config.yaml", ssl_vit.config.dump(config))
    assert load_config([tmp_path / "config.yaml"]) == config
    with plugins.withdrawn_after():
        plugins.use([str(tmp_path / "by_hand.py")])
        assert method_class("by_hand") is by_hand.VarCov  # not imported twice
        assert load_config([tmp_path / "config.yaml"]) == config
    assert method_class("by_hand") is by_hand.VarCov  # hers, not the plugin's
    METHODS.entries.pop("by_hand")


def test_a_cell_may_be_run_again_and_a_name_is_not_given_twice():
    def cell(thing: str) -> None:
        code = f"@register_method('cell', loss='a:b')\nclass {thing}: pass"
        exec(compile(code, "<cell>", "exec"), {"register_method": register_method, "__name__": "__main__"})

    cell("First")
    cell("First")
    with pytest.raises(UserError, match=r"'cell' is taken: __main__\.Second and __main__\.First register it"):
        cell("Second")
    METHODS.entries.pop("cell")
    with pytest.raises(UserError, match=r"'dino' is taken: .*test_plugins.py line \d+ and .*dino_config"):
        register_method("dino", loss="a:b")(type("Mine", (), {}))
    with pytest.raises(TypeError, match="give config=Config on a Method, or loss="):
        register_method("mine")
    with pytest.raises(UnknownName, match="unknown method 'dinosaur'; did you mean dino\\?"):
        config_class("dinosaur")


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        (
            "del found['optim.lr']",
            'gives no value for optim.lr, which is "auto"; add "optim.lr": (value, "why") to what',
        ),
        (
            "found['method.spred'] = 1.0, 'why'",
            "gives a value for method.spred, which is no setting; did you mean method.",
        ),
    ],
)
def test_a_recipe_that_forgets_or_misspells_a_key_is_one_line(tmp_path, capsys, end, expected):
    recipe = METHOD.replace("varcov", "forgetful").replace("return optimiser_choices(", "found = optimiser_choices(")
    file = write(
        tmp_path / "f.py", recipe.replace("epochs=10.0)", f"epochs=10.0)\n        {end}\n        return found")
    )
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.new("RGB", (40, 40), (index * 60, 0, 0)).save(tmp_path / "images" / f"{index}.png")
    argv = ["pretrain", str(tmp_path / "images"), "--out", str(tmp_path / "run"), "--method", "forgetful"]
    said = error_of(capsys, *argv, "--plugin", file, "--set", "train.batch_size=4")
    assert said.startswith(f"{file}: choose() of 'forgetful' {expected}")
    assert not (tmp_path / "run").exists()
