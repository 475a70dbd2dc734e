"""The schema, the strict YAML, the messages: against goldens, PyYAML and DINO's published numbers."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ssl_vit.config import ResolvedConfig, RunConfig, check_data, check_out, dump, load_config
from ssl_vit.config.document import MAX_BYTES, read_text, scalar
from ssl_vit.config.paths import check_new
from ssl_vit.config.problems import known_keys
from ssl_vit.config.schema import TrainConfig
from ssl_vit.data.plan import View
from ssl_vit.errors import ConfigError, UserError
from ssl_vit.methods import config_class, list_methods, method_class
from ssl_vit.run.facts import Facts
from ssl_vit.run.plan import resolve_config

DATA = {"data.path": "images"}


def problems(files=(), sets=(), flags=DATA):
    with pytest.raises(ConfigError) as caught:
        load_config(files, sets, flags)
    return caught.value.problems


def write(folder, text, name="run.yaml"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- messages -------------------------------------------------------------------------------------------------------


def test_all_mistakes_are_listed_at_once_with_their_place_and_the_nearest_right_key(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "train:\n  epoch: 10\n  batch_size: '64'\noptim:\n  lr: -1\nmethod: {outdim: 5}\n"
    write(tmp_path, text)
    assert problems(["run.yaml"], ["train.seed=1.5"], DATA | {"train.epochs": "ten"}) == [
        "method.outdim: unknown key; did you mean method.out_dim? (run.yaml line 6)",
        "optim.lr: expected a number > 0 or auto, got -1 (run.yaml line 5)",
        "train.epochs: expected an integer ≥ 1 or auto, got 'ten' (--epochs)",
        "train.batch_size: expected an integer ≥ 1 or auto, got '64' (run.yaml line 3)",
        "train.seed: expected an integer ≥ 0 and < 4294967296, got 1.5 (--set train.seed=1.5)",
        "train.epoch: unknown key; did you mean train.epochs? (run.yaml line 2)",
    ]


ARGUMENT = "an integer or a number or true or false or text or [an integer or a number, …]"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs=0", "train.epochs: expected an integer ≥ 1 or auto, got 0"),
        ("train.epochs=true", "train.epochs: expected an integer ≥ 1 or auto, got true"),
        ("train.epochs=1.0", "train.epochs: expected an integer ≥ 1 or auto, got 1.0"),
        ("train.nodes=auto", "train.nodes: expected an integer ≥ 1, got 'auto'"),
        ("train.compile=yes", "train.compile: expected true or false or auto, got 'yes'"),
        ("train.precision=bf16", "train.precision: expected 32-true or bf16-mixed or 16-mixed or auto, got 'bf16'"),
        ("train=3", "train: expected a section of keys, got 3"),
        ("train=", "train: expected a section of keys, got nothing"),
        ("optim.lr=.nan", "optim.lr: expected a number > 0 or auto, got nan"),
        ("optim.lr=-.inf", "optim.lr: expected a number > 0 or auto, got -inf"),
        ("optim.lr=1e999", "optim.lr: expected a number > 0 or auto, got inf"),
        ("data.max_bad=1.5", "data.max_bad: expected a number ≥ 0 and ≤ 1, got 1.5"),
        ("data.val=''", "data.val: expected non-empty text or null, got ''"),
        ("data.val=2024", "data.val: expected non-empty text or null, got 2024"),
        ("backbone.args.depth=", f"backbone.args.depth: expected {ARGUMENT}, got"),
        ("backbone.args={a: .nan}", f"backbone.args.a: expected {ARGUMENT}, got"),
        ("backbone.args=3", "backbone.args: expected keys and values, got 3"),
        (
            "method.local_scale=[0.4, 0.05]",
            "method.local_scale: expected two numbers with 0 < low ≤ high ≤ 1, got [0.4",
        ),
        (
            "method.local_scale=[0.4]",
            "method.local_scale: expected [a number ≥ 0 and ≤ 1, a number ≥ 0 and ≤ 1] or aut",
        ),
        ("method.momentum=1", "method.momentum: expected a number ≥ 0 and < 1 or auto, got 1"),
        ("method.name=dina", "method.name: unknown method 'dina'; did you mean dino?"),
        ("method.name=3", "method.name: expected dino, got 3"),
        ("nonsense", "--set nonsense: expected key.path=value, as in --set train.epochs=100"),
        (".a=1", "--set .a=1: expected key.path=value"),
        ("train.epochs=[1", "--set train.epochs=[1 line 1: not YAML: "),
        ("train.epochs=*a", "--set train.epochs=*a line 1: anchors and aliases"),
    ],
)
def test_wrong_values(setting, message):
    [found] = problems(sets=[setting])
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.epoch", "did you mean train.epochs?"),
        ("optim.epochs", "did you mean train.epochs?"),  # the wrong section
        ("epochs", "did you mean train.epochs?"),
        ("trian", "did you mean train?"),
        ("backbone.nme", "did you mean backbone.name?"),  # not method.name
        ("method.nme", "did you mean method.name?"),
        ("train.learning", f"train has {', '.join(TrainConfig.model_fields)}"),
        ("zzzz", "a configuration has data, backbone, method, optim, train, adapt, health, plugins"),
    ],
)
def test_unknown_keys_get_the_nearest_right_name(key, hint):
    assert problems(sets=[f"{key}=1"]) == [f"{key}: unknown key; {hint} (--set {key}=1)"]


def test_a_dotted_key_in_a_file_is_explained(tmp_path):
    [found] = problems([write(tmp_path, "train.epochs: 3")])
    assert "write epochs on a line of its own, indented, under train:" in found


def test_min_lr_above_lr_is_refused():
    assert problems(sets=["optim.lr=1e-3", "optim.min_lr=0.1"]) == [
        "optim.min_lr: expected at most optim.lr, 0.001, got 0.1 (--set optim.min_lr=0.1)"
    ]
    assert load_config(sets=["optim.lr=1e-3", "optim.min_lr=1e-3"], flags=DATA).optim.min_lr == 1e-3


def test_missing_data_says_what_it_is():
    [found] = problems(flags={})
    assert found.startswith("data.path: missing; expected non-empty text or non-empty [non-empty text, …]: Folder")


def test_thousands_of_mistakes_stay_readable(tmp_path):
    lines = problems([write(tmp_path, "".join(f"key{n}: {n}\n" for n in range(4000)))])
    assert len(lines) == 51
    assert lines[-1] == "… and 3950 more mistakes"


# --- layers ---------------------------------------------------------------------------------------------------------


def test_files_merge_left_to_right_then_sets_then_flags(tmp_path):
    first = write(tmp_path, "train: {epochs: 1, batch_size: 8, seed: 1}\nbackbone: {args: {depth: 4}}", "a.yaml")
    second = write(tmp_path, "train: {epochs: 2, batch_size: 9}\nbackbone: {args: {num_heads: 2}}", "b.yaml")
    config = load_config([first, second], ["train.epochs=3"], DATA | {"train.epochs": "4", "data.workers": 0})
    assert (config.train.epochs, config.train.batch_size, config.train.seed) == (4, 9, 1)
    assert config.backbone.args == {"depth": 4, "num_heads": 2}
    assert config.data.workers == 0
    assert load_config([first, second], ["train.epochs=3"], DATA).train.epochs == 3
    assert load_config([second, first], (), DATA).train.epochs == 1


def test_text_flags_are_text_whatever_they_look_like():
    config = load_config(flags={"data.path": "2024", "data.val": "true", "backbone.name": "1e3"})
    assert (config.data.path, config.data.val, config.backbone.name) == ("2024", "true", "1e3")


def test_sets_take_yaml():
    sets = ["method.local_scale=[0.1, 0.3]", "backbone.args={depth: 4, rope: no}", "data.val='1'", "optim.lr=1e-3"]
    config = load_config(sets=sets, flags=DATA)
    assert config.method.local_scale == (0.1, 0.3)
    assert config.backbone.args == {"depth": 4, "rope": "no"}
    assert (config.data.val, config.optim.lr) == ("1", 0.001)


def test_python_builds_the_same_object():
    by_hand = RunConfig(data={"path": "images"}, method=config_class("dino")(out_dim=64), train={"epochs": 3})
    assert by_hand == load_config(sets=["method.out_dim=64", "train.epochs=3"], flags=DATA)
    with pytest.raises(ValidationError, match="frozen"):
        by_hand.train.epochs = 4


# --- YAML -----------------------------------------------------------------------------------------------------------

# YAML 1.2.2, core schema, section 10.3.2.
CORE_SCHEMA = [
    *[(text, None) for text in ("", "~", "null", "Null", "NULL")],
    *[(text, True) for text in ("true", "True", "TRUE")],
    *[(text, False) for text in ("false", "False", "FALSE")],
    *[("0", 0), ("-19", -19), ("+12", 12), ("010", 10)],
    *[("0.", 0.0), ("-0.0", -0.0), (".5", 0.5), ("+12e03", 12000.0), ("-2E+05", -2e5), ("1e-3", 0.001)],
    *[(".inf", float("inf")), ("-.Inf", float("-inf")), ("+.INF", float("inf"))],
    *[(text, text) for text in ("no", "on", "1_000", "1:30", "2024-01-01", "nan", "1e", "e3", ".", "-", "٣")],
]


@pytest.mark.parametrize(("text", "value"), CORE_SCHEMA)
def test_plain_scalars_follow_the_core_schema(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_lines_are_those_of_the_keys():
    text = "# a recipe\ntrain:\n  epochs: 3   # few\n\n  seed:\n    7\nmethod: {}\n"
    assert read_text(text, "x") == [(("train", "epochs"), 3, 3), (("train", "seed"), 7, 5), (("method",), {}, 7)]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "--- # nothing\n...\n"])
def test_an_empty_file_changes_nothing(tmp_path, text):
    assert load_config([write(tmp_path, text)], (), DATA) == load_config(flags=DATA)


BOMB = "a: &a [x, x]\n" + "".join(f"{n}: &{n} [*{p}, *{p}, *{p}]\n" for p, n in zip("abcdefg", "bcdefgh", strict=True))
HOSTILE = {
    "alias bomb": (BOMB, "line 1: anchors and aliases (& and *) are not allowed"),
    "alias": ("train: *x", "line 1: anchors and aliases"),
    "merge key": ("train: &t {seed: 1}\noptim: {<<: *t}", "line 1: anchors and aliases"),
    "python tag": (
        'a: !!python/object/apply:os.system ["touch owned"]',
        "line 1: tags (tag:yaml.org,2002:python/objec",
    ),
    "harmless tag": ("train: {epochs: !!int '3'}", "line 1: tags (tag:yaml.org,2002:int)"),
    "tag on a key": ("!!str train: {}", "line 1: tags"),
    "class path": ("class_path: os.system", "class_path: unknown key"),
    "duplicate key": ("train:\n  seed: 1\n  seed: 2", "line 3: train.seed is given twice"),
    "duplicate section": ("train: {seed: 1}\ntrain: {seed: 1}", "line 2: train is given twice"),
    "nan": ("optim: {lr: .nan}", "optim.lr: expected a number > 0 or auto, got nan"),
    "tab": ("train:\n\tepochs: 3", "line 2: a tab; indent with spaces"),
    "tab after spaces": ("train:\n  \tepochs: 3", "line 2: a tab; indent with spaces"),
    "UTF-16": ("train: {}".encode("utf-16"), "not UTF-8 text (UTF-16?); save it as UTF-8"),
    "Latin-1": ("data: {path: Müll}".encode("latin-1"), "not UTF-8 text (byte 14)"),
    "control character": ("a: \x07", "not text"),
    "deep list": ("a: " + "[" * 100_000, "line 1: more than a configuration holds (8 levels"),
    "deep mapping": ("{a: " * 100_000, "line 1: more than a configuration holds"),
    "long list": ("a: [" + "1," * 100_000 + "1]", "line 1: more than a configuration holds (8 levels, 10000 keys"),
    "two documents": ("train: {}\n---\ntrain: {}", "line 2: a second document"),
    "a list": ("- train", "line 1: expected keys and values"),
    "a word": ("train", "line 1: expected keys and values"),
    "list as key": ("? [a, b]\n: 1", "line 1: a key must be one word"),
    "keys in a list": ("method: {local_scale: [{a: 1}]}", "line 1: keys inside a list"),
    "huge integer": ("train: {epochs: " + "9" * 5000 + "}", "train.epochs: expected an integer ≥ 1 or auto, got inf"),
    "not YAML": ("train: {seed: 1", "line 1: not YAML: "),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    text, message = HOSTILE[case]
    [found] = problems([write(tmp_path, text)])
    assert message in found
    assert "run.yaml" in found
    assert len(found) < 300
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_files_too_large_or_not_regular_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"read {path}"))
    large, pipe = tmp_path / "large.yaml", tmp_path / "pipe"
    with large.open("wb") as file:
        file.truncate(100 * 2**20)
    os.mkfifo(pipe)
    assert problems([large, pipe, tmp_path, "/dev/zero", tmp_path / "none.yaml"]) == [
        f"{large}: 104857600 bytes; a configuration has at most {MAX_BYTES}",
        f"{pipe}: not a regular file",
        f"{tmp_path}: not a regular file",
        "/dev/zero: not a regular file",
        f"{tmp_path}/none.yaml: no such file",
    ]


def test_a_byte_order_mark_of_utf8_is_no_mistake(tmp_path):
    assert load_config([write(tmp_path, "\ufefftrain: {seed: 7}")], (), DATA).train.seed == 7


def auto(values):
    return st.just("auto") | values


TEXT = st.text(min_size=1) | st.sampled_from(
    ["no", "null", "1e-3", "0x1F", "1:30", "2024-01-01", "~", "- a", "a: b", "#"]
)
COUNTS = st.integers(1, 10**30)
RATES = st.floats(0, exclude_min=True, allow_infinity=False)
SCALES = st.tuples(*[st.floats(0.01, 1)] * 2).map(lambda pair: tuple(sorted(pair)))
CONFIGS = st.fixed_dictionaries(
    {
        "data": st.fixed_dictionaries({"path": TEXT, "val": st.none() | TEXT, "max_bad": st.floats(0, 1)}),
        "backbone": st.fixed_dictionaries(
            {
                "args": st.dictionaries(
                    st.text(), TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
                )
            }
        ),
        "method": st.fixed_dictionaries({"out_dim": auto(COUNTS), "local_scale": auto(SCALES)}),
        "optim": st.fixed_dictionaries({"lr": auto(RATES), "clip": auto(RATES)}),
        "train": st.fixed_dictionaries({"epochs": auto(COUNTS), "compile": auto(st.booleans())}),
    }
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONFIGS)
def test_a_dumped_configuration_reproduces_itself(tmp_path, values):
    config = RunConfig.model_validate(values)
    text = dump(config)
    path = write(tmp_path, text)
    assert load_config([path]) == config
    assert dump(load_config([path])) == text
    assert yaml.safe_load(text) == config.model_dump(mode="json")  # a second reader, of YAML 1.1


# --- schema and methods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list_methods())
def test_every_key_is_described_and_every_method_introduces_itself(method):
    assert [path for path, field in known_keys(method).items() if not field.description] == []
    config = config_class(method)
    assert config().name == method
    for fact in (config.idea, config.needs, config.choose_when):
        assert fact.strip()
        assert "\n" not in fact


@pytest.mark.parametrize("method", list_methods())
def test_the_method_has_its_loss_beside_its_config(method):
    assert method_class(method).__module__ == f"ssl_vit.methods.{method}"


def test_unknown_methods_are_named_with_the_nearest():
    with pytest.raises(UserError, match="unknown method 'dina'; did you mean dino\\?"):
        config_class("dina")
    with pytest.raises(UserError, match="unknown method 'base_config'"):
        method_class("base_config")


def test_dino_views_are_the_official_ones():
    """Crops and probabilities of arXiv 2104.14294's released training code."""
    official = config_class("dino")(local_crops=8, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), local_size=96)
    plan = official.views(224)
    shared = {"ratio": (3 / 4, 4 / 3), "interpolation": "bicubic", "flip_p": 0.5, "gray_p": 0.2}
    shared |= {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "blur_sigma": (0.1, 2.0)}
    assert plan.views == (
        View("global1", 1, 224, (0.4, 1.0), blur_p=1.0, solarize_p=0.0, **shared),
        View("global2", 1, 224, (0.4, 1.0), blur_p=0.1, solarize_p=0.2, **shared),
        View("local", 8, 96, (0.05, 0.4), blur_p=0.5, solarize_p=0.0, **shared),
    )
    assert plan.crops() == 10
    assert plan.pixels() == 174_080  # 2 x 224² + 8 x 96²


def test_dino_without_local_crops_needs_no_local_size():
    plan = config_class("dino")(local_crops=0, global_scale=(0.4, 1.0)).views(32)
    assert [view.name for view in plan.views] == ["global1", "global2"]


def test_a_resolved_configuration_has_nothing_left_to_decide():
    facts = Facts(100, 64, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=0, cpus=4, bfloat16=False)
    resolved, _ = resolve_config(load_config(flags=DATA), facts)
    assert isinstance(resolved, ResolvedConfig)
    tree = resolved.model_dump() | {"optim": resolved.optim.model_dump() | {"lr": "auto"}}
    with pytest.raises(ValueError, match=r"still auto: optim\.lr "):
        ResolvedConfig.model_validate(tree)


# --- paths ----------------------------------------------------------------------------------------------------------


def test_a_run_is_never_lost_by_mistake(tmp_path):
    run, files, file = tmp_path / "run", tmp_path / "files", tmp_path / "file"
    for folder, name in ((run, "config.yaml"), (files, "thesis.tex")):
        folder.mkdir()
        (folder / name).touch()
    file.touch()
    (tmp_path / "empty").mkdir()

    for free in ("new", "new/below", "empty"):
        check_out(tmp_path / free)
    check_out(run, resume=True)
    check_out(run, overwrite=True)
    for out, options, message in [
        (run, {}, "a run; add --resume to go on"),
        (run, {"resume": True, "overwrite": True}, "give one of them"),
        (files, {}, "exists, and nothing is overwritten"),
        (files, {"overwrite": True}, "exists, and nothing is overwritten"),
        (files, {"resume": True}, "no run to resume"),
        (tmp_path / "new", {"resume": True}, "no run to resume"),
        (file, {}, "exists, and nothing is overwritten"),
        (file / "below" / "it", {}, "a file is where"),
    ]:
        with pytest.raises(UserError, match=message):
            check_out(out, **options)


def test_a_run_without_settings_starts_again_whatever_was_asked(tmp_path):
    """It was stopped while it looked at the images: nothing was learnt."""
    (tmp_path / ".lock").touch()
    (tmp_path / "train.log").touch()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / ".config.yaml.7.partial").touch()
    for options in ({}, {"resume": True}, {"overwrite": True}):
        assert not check_out(tmp_path, **options), options
    (tmp_path / "config.yaml").touch()
    assert check_out(tmp_path, resume=True)
    (tmp_path / "config.yaml").rename(tmp_path / "thesis.tex")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"nothing is overwritten|no run to resume"):
            check_out(tmp_path, **options)


def test_a_project_with_a_config_of_its_own_is_no_run(tmp_path):
    for name in ("config.yaml", "thesis.tex"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="nothing is overwritten"):
        check_out(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("/proc/run", r"/proc: not writable \("),
        ("/proc/run/below", r"/proc: not writable \("),
        ("n" * 256, "nnn: File name too long; choose another name"),
        ("n" * 256 + "/below", "File name too long; choose another name"),
        ("n/" * 2048, "File name too long; choose another name"),
        ("loop", "exists, and nothing is overwritten"),
        ("loop/run", "Too many levels of symbolic links"),
    ],
)
def test_where_nothing_can_be_made_is_said_at_once(out, message, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=message):
        check_out(tmp_path / out)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a file system")
def test_a_read_only_file_system_is_named(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(UserError, match=rf"{tmp_path}: not writable \(Read-only file system\)"):
            check_out(tmp_path / "run")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_job_that_slurm_starts_again_goes_on_with_its_own_run(tmp_path, monkeypatch):
    """Even where it was told to overwrite, as the same command is given again; another job's run isn't its own."""
    (tmp_path / "config.yaml").touch()
    (tmp_path / "environment.json").write_text('{"slurm_job": "17"}')
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        assert check_out(tmp_path, **options)
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    assert not check_out(tmp_path, overwrite=True)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    with pytest.raises(UserError, match="a run; add --resume"):
        check_out(tmp_path)


def test_new_files_are_new(tmp_path):
    check_new(tmp_path / "a.npz")
    (tmp_path / "a.npz").touch()
    with pytest.raises(UserError, match="exists, and nothing is overwritten"):
        check_new(tmp_path / "a.npz")


def test_missing_images_are_named(tmp_path):
    def config(**data):
        return RunConfig(data={key: str(path) for key, path in data.items()})

    check_data(config(path=tmp_path, val=tmp_path))
    with pytest.raises(UserError, match="none: no such folder; expected images to learn from"):
        check_data(config(path=tmp_path / "none"))
    with pytest.raises(UserError, match="val: no such folder; expected one sub-folder of images a class"):
        check_data(config(path=tmp_path, val=tmp_path / "val"))


def test_a_key_of_older_versions_is_taken_where_it_changes_nothing(tmp_path: Path) -> None:
    """As config.yaml of a run that began before has it."""
    old = tmp_path / "config.yaml"
    old.write_text("data:\n  path: images\n  augment: exact\n")
    assert load_config([old]) == load_config(flags={"data.path": "images"})
    old.write_text("data:\n  path: images\n  augment: fast\n")
    with pytest.raises(
        ConfigError, match=r"^data.augment: no longer a setting; .*; remove it \(.*config.yaml line 3\)$"
    ):
        load_config([old])


def test_words_written_out_find_their_initials() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(sets=["optim.learning_rate=0.1", "optim.weight_decays=0.1"], flags={"data.path": "images"})
    assert "optim.learning_rate: unknown key; did you mean optim.lr?" in caught.value.problems[0]
    assert "did you mean optim.weight_decay?" in caught.value.problems[1]


@pytest.mark.parametrize(("gpus", "numba", "chosen"), [(0, True, "numba"), (0, False, "torch"), (2, True, "torch")])
def test_colours_are_numbas_on_a_cpu_that_has_it(gpus, numba, chosen):
    facts = Facts(100, 64, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=gpus, cpus=4, bfloat16=False, numba=numba)
    config, decisions = resolve_config(load_config(flags=DATA), facts)
    assert config.data.kernels == chosen
    assert next(d.why for d in decisions if d.key == "data.kernels")


def test_kernels_that_are_not_installed_are_refused():
    facts = Facts(100, 64, lambda: ((0.5,) * 3, (0.25,) * 3), gpus=0, cpus=4, bfloat16=False, numba=False)
    with pytest.raises(
        UserError, match=r"^data.kernels: numba is not installed; pip install 'ssl_vit\[numba\]', or set"
    ):
        resolve_config(load_config(flags=DATA | {"data.kernels": "numba"}), facts)
