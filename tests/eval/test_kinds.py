"""Every kind of score and every setting: the same answer from Python and the command line, before torch is there."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from typing import get_args

import pytest

from ssl_vit.cli import main
from ssl_vit.errors import ConfigError, UserError
from ssl_vit.eval import kinds
from ssl_vit.eval.api import evaluate
from ssl_vit.eval.corruptions import CORRUPTIONS
from ssl_vit.eval.embed import embed
from ssl_vit.eval.kind import ReadoutOptions, as_typed
from ssl_vit.eval.kinds import kind_class, list_kinds
from ssl_vit.eval.kinds.robustness import Corruption
from tests.test_cli import light, python

READOUT = {"layers": "last0", "pooling": "middle", "precision": "float16"}
FEATURES = READOUT | {"seed": -1, "max_bad": 2}
PAIRS = {
    "seeds": (1, 1),
    "share": (0, 50),
    "steps": 0,
    "size": "large",
    "batch": 0,
    "lr": 0,
    "backbone_lr": -1e-3,
    "composite": 9,
    "composite_shared": -1,
    "train_images": "",
    "val_images": "",
}
WRONG = {  # a value outside each setting's range
    "anomaly": {"coreset": 0, "neighbourhood": 2, "smooth": -1, "masks": ""} | FEATURES,
    "augmented": {"epochs": 0, "batch": 2.5, "lr": (0.1, 0)} | FEATURES,
    "budget": {"keep": (0.5, 1.5), "gmacs": (0,), "seed": -1},
    "clustering": FEATURES,
    "detection": {"detector": "yolo", "max_bad": 2} | PAIRS,
    "fewshot": {"shots": (1, 0), "share": (100,), "draws": 1} | FEATURES,
    "finetune": {"epochs": 0, "batch": 3, "lr": 0, "layer_decay": 1.5, "mixup": -0.1, "cutmix": math.inf}
    | {
        "preset": "light3",
        "optimizer": "adam",
        "weight_decay": -1,
        "drop": 1,
        "diversify": -1,
        "distill": "warm",
        "teacher": "",
    }
    | FEATURES,
    "grid": {"depths": ()} | FEATURES,
    "knn": {"k": (20, 0), "temperature": (0.07, 0)} | FEATURES,
    "labelfree": {"k": 0, "views": 1} | FEATURES,
    "linear": FEATURES,
    "logistic": FEATURES,
    "retrieval": {"k": (0,)} | FEATURES,
    "robustness": {"corruptions": ("all", "fog"), "severities": 9, "hide": (101,), "shuffle": (1,), "radius": (256,)}
    | FEATURES,
    "segmentation": {"head": ("unet",), "ignore": (65536,)} | PAIRS | FEATURES,
    "shapebias": FEATURES,
    "sharpness": {"images": 0, "iterations": 0, "span": 0, "places": 2, "seed": -1},
}
SETTINGS = [(kind, name) for kind in list_kinds() for name in kind_class(kind).settings()]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Weights and images that hold nothing: whoever opened them would say something else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "weights.pth").touch()
    return tmp_path


def folders_of(kind):
    return dict.fromkeys(kind_class(kind).folders, "images")


def command(kind, *more):
    return ["eval", kind, "weights.pth", *(f"--{name}=images" for name in kind_class(kind).folders), *more]


def told(argv, capsys):
    """The lines that a refused command prints, without what stands before each."""
    assert main(argv) == 2
    return [line.removeprefix("ssl-vit: error: ") for line in capsys.readouterr().err.splitlines()]


def flag(name):
    return f"--{name.replace('_', '-')}"


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_a_default_is_taken_as_it_is_and_as_it_would_be_typed(kind, name):
    entry = kind_class(kind)
    default = entry.settings()[name].default
    for given in (default, as_typed(default)):
        assert getattr(entry.of({name: given}, f"eval {kind}"), name) == default
    assert entry.settings()[name].description


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_what_is_out_of_range_gets_the_same_line_from_python_and_the_command_line(kind, name, files, capsys):
    value = WRONG[kind][name]
    with pytest.raises(ConfigError) as error:
        evaluate(kind, "weights.pth", **folders_of(kind), **{name: value})
    [line] = error.value.problems
    assert line.startswith(f"eval {kind}: {name}: expected ")
    assert f", got '{as_typed(value)}'" in line
    assert told(command(kind, f"{flag(name)}={as_typed(value)}"), capsys) == [line]


@pytest.mark.parametrize(("kind", "name"), SETTINGS)
def test_a_setting_that_is_spelt_wrongly_is_answered_with_the_right_one(kind, name, files, capsys):
    wrong = name + name[-1]
    with pytest.raises(UserError, match=f"^eval {kind}: {wrong}: unknown key; did you mean {name}\\?$"):
        evaluate(kind, "weights.pth", **folders_of(kind), **{wrong: 1})
    [line] = told(command(kind, f"{flag(wrong)}=1"), capsys)
    assert line.startswith(f"unknown flag {flag(wrong)}; did you mean {flag(name)}?")


@pytest.mark.parametrize("kind", list_kinds())
def test_help_has_every_setting_with_its_docstring_and_default(kind, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as stop:
        main(["eval", kind, "--help"])
    assert stop.value.code == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert kind_class(kind).__doc__ in lines
    for name, field in kind_class(kind).settings().items():
        [line] = [line for line in lines if line.startswith(f"{flag(name)} ")]
        assert " ".join(field.description.split()) in line
        assert line.endswith(f"; default {as_typed(field.default) or 'none'}.")


def test_help_and_mistakes_load_no_torch(files):
    helps = [["eval", "--help"], *(["eval", kind, "--help"] for kind in list_kinds())]
    wrong = [command(kind, f"{flag(name)}={as_typed(WRONG[kind][name])}") for kind, name in SETTINGS]
    assert light(helps + wrong, cwd=files) == [[0] * len(helps) + [2] * len(wrong), []]


@pytest.mark.parametrize(
    ("kind", "name", "given", "expected"),
    [
        ("knn", "k", "5,10", (5, 10)),
        ("knn", "k", [5, 10], (5, 10)),
        ("knn", "k", 5, (5,)),
        ("knn", "temperature", "plain,1", (math.inf, 1.0)),
        ("linear", "layers", "last4", (-4, -3, -2, -1)),
        ("linear", "layers", "8,-1", (8, -1)),
        ("linear", "layers", 8, (8,)),
        ("fewshot", "share", "", ()),
        ("robustness", "hide", (50,), (50.0,)),
        ("finetune", "lr", "1e-2", 0.01),
        ("detection", "steps", "7", 7),
        ("detection", "lr", "auto", "auto"),
        ("detection", "backbone_lr", 1, 1.0),
    ],
)
def test_text_and_typed_values_are_read_alike(kind, name, given, expected):
    found = getattr(kind_class(kind).of({name: given}, kind), name)
    assert (found, type(found)) == (expected, type(expected))


def test_all_mistakes_are_told_at_once_with_the_nearest_right_name(files, capsys):
    given = {"corruptions": "snows,fog", "severities": "0", "pooling": "means"}
    with pytest.raises(ConfigError) as error:
        evaluate("robustness", "weights.pth", train="images", vall="images", **given)
    ends = ["; did you mean snow?", "got '0'", "; did you mean mean?", "vall: unknown key; did you mean val?"]
    assert len(error.value.problems) == len(ends)
    assert all(any(line.endswith(end) for line in error.value.problems) for end in ends)
    lines = told(command("robustness", *(f"--{name}={value}" for name, value in given.items())), capsys)
    assert lines == [line for line in error.value.problems if "vall" not in line]


def test_what_is_missing_or_not_for_this_kind_is_named(files):
    with pytest.raises(UserError, match="eval knn: needs --val DIR, labelled images to score on"):
        evaluate("knn", "weights.pth", train="images")
    with pytest.raises(UserError, match=r"^eval detection: layers: unknown key; .* has detector, max_bad, seeds"):
        evaluate("detection", "weights.pth", train="images", val="images", layers="last4")
    (files / "weights.pth").write_bytes(b"\0")
    with pytest.raises(UserError, match="eval detection: features: no features are kept"):
        evaluate("detection", "weights.pth", train="images", val="images", features="kept")


@pytest.mark.parametrize(("name", "value"), READOUT.items())
def test_embed_refuses_the_same(name, value, files, capsys):
    with pytest.raises(UserError) as error:
        embed("weights.pth", "images", "new.npz", **{name: value})
    assert told(["embed", "weights.pth", "images", "--out=new.npz", f"--{name}={value}"], capsys) == [str(error.value)]
    assert str(error.value).startswith(f"embed: {name}: expected ")
    assert ReadoutOptions().values().keys() == READOUT.keys()


def test_the_corruptions_to_choose_from_are_those_there_are():
    assert get_args(Corruption) == tuple(CORRUPTIONS)


FILE = '''
"""A score of one's own."""

from __future__ import annotations

from ssl_vit.eval.job import Job, Outcome
from ssl_vit.eval.kind import VAL, FeatureKind, Number
from ssl_vit.eval.kinds import register_kind
from ssl_vit.settings import Positive


@register_kind("spread")
class Spread(FeatureKind):
    """Features are measured by how far they are spread."""

    folders = VAL

    power: Number[Positive] = 2.0
    """Power of the distances."""

    def score(self, job: Job) -> Outcome:
        """The mean distance from the mean, to that power."""
        features = job.features(job.unlabelled("val"), "val").features
        spread = float((abs(features - features.mean(0)) ** self.power).mean())
        return Outcome({"spread": spread}, {"power": self.power})
'''


def test_a_new_kind_is_one_file(run, images, tmp_path, capsys, monkeypatch):
    (tmp_path / "spread.py").write_text(FILE)
    monkeypatch.setattr(kinds, "_REGISTERED", dict(kinds._REGISTERED))
    spec = importlib.util.spec_from_file_location("spread", tmp_path / "spread.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "spread", module)
    spec.loader.exec_module(module)
    assert "spread" in list_kinds()
    argv = ["eval", "spread", str(run), "--val", str(images / "val")]
    assert main([*argv, "--power", "1"]) == 0
    typed = json.loads(capsys.readouterr().out)
    assert typed == evaluate("spread", run, val=images / "val", power=1)
    assert typed["spread"]["spread"] > 0
    assert typed["protocol"]["power"] == 1.0
    assert told([*argv, "--power", "0"], capsys) == ["eval spread: power: expected a number > 0, got '0'"]
    with pytest.raises(UserError, match=r"^spread: there is a score 'spread' already"):
        spec.loader.exec_module(module)


def test_a_name_that_is_taken_is_refused_also_before_its_file_is_imported():
    code = """
from ssl_vit.errors import UserError
from ssl_vit.eval.kind import FeatureKind
from ssl_vit.eval.kinds import kind_class, register_kind
try:
    register_kind("knn")(FeatureKind)
except UserError as error:
    print(error, "|", kind_class("knn").__module__)
"""
    said = "ssl_vit.eval.kind: there is a score 'knn' already; register it by another name | ssl_vit.eval.kinds.knn\n"
    assert python(code).stdout == said
