"""Every fingerprint of an official model in this folder; and that the check itself can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssl_vit.backbones.shapes import ShapesAlone
from tests.golden import make, names, verify
from tests.golden.names import RULES, entry_of, model_of, name_of

FILES = sorted(Path(__file__).parent.glob("*__*.json"))
QUICK, LARGE = 15_000_000, 40_000_000  # parameters; a case whose variants all have more has its smallest, if not large


def _case(file: Path) -> object:
    golden = json.loads(file.read_text())
    sizes = [json.loads(other.read_text())["params"] for other in file.parent.glob(f"{golden['case']}__*.json")]
    marks = [pytest.mark.slow] if golden["params"] > min(max(QUICK, min(sizes)), LARGE) else []
    return pytest.param(golden, id=file.stem, marks=marks)


@pytest.mark.parametrize("golden", [_case(file) for file in FILES])
def test_equals_the_official_model(golden):
    verdict = verify.verify(golden)
    assert verdict.passed, str(verdict)


@pytest.fixture(scope="module")
def golden():
    return json.loads((Path(__file__).parent / "t2t__t2t_vit_7.json").read_text())


def _run(tmp_path, capsys, golden, **changes):
    file = tmp_path / "golden.json"
    file.write_text(json.dumps({**golden, **changes}))
    status = verify.main([str(file)])
    return status, capsys.readouterr().out


def test_passes_a_file_it_has_never_seen(tmp_path, capsys, golden):
    status, printed = _run(tmp_path, capsys, golden)
    assert (status, printed[:4]) == (0, "ok  ")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"params": 4_310_223}, "official 4,310,223"),
        ({"mean": 0.5}, "deviation"),
        ({"case": "unheard_of"}, "no model for case 'unheard_of'"),
        ({"variant": "t2t_vit_8"}, "no variant 't2t_vit_8' of t2t"),
        ({"out": [2, 999]}, "shape [2, 1000], the official one [2, 999]"),
    ],
)
def test_fails_with_a_plain_line(tmp_path, capsys, golden, changes, says):
    status, printed = _run(tmp_path, capsys, golden, **changes)
    assert status == 1
    assert printed.startswith("FAIL")
    assert printed.count("\n") == 1
    assert says in printed


def test_a_parameter_without_an_official_name_fails(tmp_path, capsys, golden):
    keys = {name: shape for name, shape in golden["keys"].items() if name != "norm.bias"}
    status, printed = _run(tmp_path, capsys, golden, keys=keys)
    assert status == 1
    assert "missing ['norm.bias']" in printed


@pytest.mark.parametrize("place", ["first16", "row1_first8", "mean", "std", "l2"])
def test_each_part_of_a_fingerprint_counts(place):
    output = torch.randn(2, 1000)
    fingerprint = {
        "out": [2, 1000],
        "first16": output[0, :16].tolist(),
        "row1_first8": output[1, :8].tolist(),
        "mean": output.mean().item(),
        "std": output.std().item(),
        "l2": output.norm().item(),
    }
    assert verify.compare(output, fingerprint) < 1e-6
    value = fingerprint[place]
    changed = [*value[:-1], value[-1] + 0.01] if isinstance(value, list) else value + 0.05
    assert verify.compare(output, {**fingerprint, place: changed}) > verify.TOLERANCE


def test_in_float64_one_changed_constant_fails(monkeypatch):
    golden = json.loads((Path(__file__).parent / "transcnn__TransCNN_Tiny.json").read_text())

    def wrong(case: str, variant: str) -> torch.nn.Module:
        model = names.model_of(case, variant)
        norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
        norm.eps *= 1.01
        return model

    monkeypatch.setattr(verify, "model_of", wrong)
    verdict = verify.verify(golden)
    assert not verdict.passed
    assert verdict.deviation < 1e-4  # float32's tolerance would have let it pass


def test_weights_are_damped_by_the_names_that_a_pattern_finds():
    shapes = {"a.proj.weight": [4, 3], "a.proj.bias": [4], "projector.weight": [4]}
    plain, damped = (verify.fill_official(shapes, damp) for damp in ({}, {r"\.proj\.": 0.5, r"proj\.bias$": 0.5}))
    assert torch.equal(damped["a.proj.weight"], plain["a.proj.weight"] / 2)
    assert torch.equal(damped["a.proj.bias"], plain["a.proj.bias"] / 4)
    assert torch.equal(damped["projector.weight"], plain["projector.weight"])


def test_a_golden_is_remade_from_a_model_and_its_names():
    def official() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 5, 2), torch.nn.Flatten())

    shapes = {"0.weight": [5, 3, 2, 2], "0.bias": [5]}
    old = {"params": 65, "input": [2, 3, 7, 7], "keys": shapes, "damp": {"bias": 2.0}}
    made = make.remade(official, old)
    weights = verify.fill_official(shapes, {"bias": 2.0})
    out = torch.nn.functional.conv2d(
        verify.image_input([2, 3, 7, 7]).double(), weights["0.weight"].double(), weights["0.bias"].double()
    )
    assert made["dtype"] == "float64"
    assert verify.compare(out.flatten(1), made) < 1e-12
    with pytest.raises(ValueError, match="another variant"):
        make.remade(official, {**old, "keys": {"0.weight": [5, 3, 2, 2]}})


def test_nan_never_passes():
    output = torch.full((2, 10), float("nan"))
    flat = {"out": [2, 10], "first16": [0.0] * 10, "row1_first8": [0.0] * 8, "mean": 0.0, "std": 1.0, "l2": 1.0}
    assert not verify.Verdict(verify.compare(output, flat), verify.TOLERANCE, 1, 1).passed


def test_every_fingerprint_has_a_model_of_its_own():
    found = {}
    for golden in (json.loads(file.read_text()) for file in FILES):
        entry_of(golden["case"], golden["variant"])
        name = name_of(golden["case"], golden["variant"])
        assert name is None or found.setdefault((golden["case"], name), golden["variant"]) == golden["variant"]
    assert {case for case, _ in found} <= RULES.keys()


PUBLISHED = {  # variants without a fingerprint here: parameters
    ("cait", "cait_XXS36_224"): 17_299_720,
    ("dino", "vit_tiny_p8"): 5_526_720,
    ("dino", "DINOHead_384_65536"): 22_352_128,
    ("moby", "MoBYMLP_768"): 4_206_848,
    ("beit", "pretrain_base_abspos"): 92_089_856,
    ("esvit", "swin_small_patch4_window14_224"): 48_968_298,
    ("swin", "swin_s"): 49_606_258,
    ("volo", "volo_d2"): 58_678_336,
    ("resmlp", "resmlp_24"): 30_020_680,
}


@pytest.mark.parametrize(("case", "variant"), PUBLISHED)
def test_any_published_variant_is_known_by_its_name(case, variant):
    with torch.device("meta"), ShapesAlone():
        model = model_of(case, variant)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[case, variant]
