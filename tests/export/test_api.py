"""export(): a run's weights, copied whole and proven, or not at all."""

import pytest
import timm
import torch

from ssl_vit.errors import RunFailed, UserError
from ssl_vit.export.api import export
from ssl_vit.export.target import verified
from tests.export.conftest import written


@pytest.fixture
def run(vit, tmp_path):
    written(vit, tmp_path / "run" / "export", mean=(0.5,) * 3, std=(0.2,) * 3, description={})
    return tmp_path / "run"


def test_in_place(run):
    result = export(run)
    assert result.folder == run / "export"
    assert result.consumer == f"timm {timm.__version__}"
    assert result.max_difference == 0


def test_a_copy_is_the_same_and_loads(run, vit, tmp_path):
    result = export(run, out=tmp_path / "deep" / "copy")
    for path in (run / "export").iterdir():
        assert (result.folder / path.name).read_bytes() == path.read_bytes()
    assert f"verified in timm {timm.__version__}, outputs within 0" in (result.folder / "README.md").read_text()
    keys = [line.split("\t") for line in (result.folder / "keys.tsv").read_text().splitlines()[1:]]
    assert {key: key for key in vit.model.state_dict()} == {ours: theirs for ours, theirs, _ in keys}
    names = {}
    exec(result.snippet, names)
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(names["model"](image), vit(image).pooled)


@pytest.mark.fault
def test_corrupted_weights_never_get_out(run, tmp_path):
    path = run / "export" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or changed"):
        export(run, out=tmp_path / "copy")
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(UserError, match="did you mean timm"):
        export(run, to="tim")
    with pytest.raises(UserError, match=r"--to ultralytics: no target: .*use --to torchvision"):
        export(run, to="ultralytics")
    with pytest.raises(UserError, match="nowhere"):
        export(tmp_path / "nowhere")
    with pytest.raises(UserError, match="never overwritten"):
        export(run, out=run)


def test_a_network_that_magnifies_rounding_may_differ_by_a_few_times_its_own():
    ours = [torch.tensor([1.0, -2.0])]
    theirs, exact = [ours[0] + 6e-4], [ours[0].double() + 3e-4]  # 3e-4 and 1.5e-4 of the largest
    assert verified("x", ours, theirs, exact=lambda: exact).max_difference == pytest.approx(3e-4, rel=1e-3)
    for spared in (None, lambda: [ours[0].double() + 1e-4]):
        with pytest.raises(RunFailed, match=r"outputs differ by 3\.0e-04"):
            verified("x", ours, theirs, exact=spared)
