"""What a run keeps for its page while it goes on, that it changes nothing of what is learnt and can't end a run."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ssl_vit.backbones import create_backbone
from ssl_vit.cli import main
from ssl_vit.methods.mae import cut
from ssl_vit.report import inside, kept, watching
from ssl_vit.report.inside import attention, look, neighbours, plane
from ssl_vit.report.sample import Sample, read_sample, sample_size, spread
from ssl_vit.run.finish import completed
from tests.report.folders import Read
from tests.runs import command, finish_two, losses, weights

GREY = ((0.45,) * 3, (0.2,) * 3)
TINY = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def test_a_run_keeps_what_was_seen_at_the_start_and_at_the_end(whole_run: Path) -> None:
    start, now = kept.get(whole_run, "start.json"), kept.get(whole_run, "now.json")
    assert (start["step"], now["step"]) == (0, 30)
    assert start["map"] != now["map"]
    sample = kept.get(whole_run, kept.SAMPLE)
    assert len(sample["names"]) == len(now["map"]) == 24
    assert sample["classes"] == ["ash", "birch", "cedar"]
    for name in ("patches", "head-0", "head-1"):
        with Image.open(whole_run / "report" / f"now-{name}.png") as image:
            assert image.height == kept.PHOTO
    opening = kept.get(whole_run, kept.OPENING)
    assert opening["steps"] == 30
    assert dict(opening["rows"])["left out"] == "nothing"
    speeds = [json.loads(line) for line in (whole_run / "report" / kept.SPEED).read_text().splitlines()]
    assert [each["step"] for each in speeds] == [4, 8, 12, 16, 20, 24, 28, 30]


def broken(*args: object, **kwargs: object) -> NoReturn:
    raise OSError(28, "No space left on device")


def test_a_report_that_fails_changes_nothing_and_ends_nothing(
    whole_run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every picture and page fails, and the run is the same to the bit as the one whose report was whole."""
    for module, name in ((watching, "write_page"), (watching, "keep_views"), (inside, "look"), (kept, "put")):
        monkeypatch.setattr(module, name, broken)
    monkeypatch.setattr("ssl_vit.run.finish.write_page", broken)
    run = tmp_path / "run"
    assert (
        main(command(pictures / "train", run, "--val", str(pictures / "val"), data__workers=0, health__report=True))
        == 0
    )
    assert losses(run) == losses(whole_run)
    assert weights(run) == weights(whole_run)
    assert not (run / "report.html").exists()
    log = (run / "train.log").read_text()
    assert "the report: report.html can't be made ([Errno 28] No space left on device); the run goes on" in log
    assert (
        log.count("the report: ") == 6
    )  # the opening, the sample, views, pictures, and the page, meanwhile and at the end
    assert "Traceback" not in log


@pytest.mark.slow
@pytest.mark.dist
def test_of_two_processes_the_first_makes_the_report(pictures: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", tmp_path / "said"
    more = {"train__devices": 2, "data__workers": 0, "train__epochs": 2, "health__report": True}
    assert finish_two(command(pictures / "train", run, **more), said) == [0, 0], said.read_text()
    assert kept.get(run, "now.json")["step"] == 12
    assert "curves" in Read((run / "report.html").read_text()).sections
    assert "the report: " not in said.read_text()


def test_a_run_without_a_report(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(command(pictures / "train", run, data__workers=0, train__epochs=1)) == 0
    assert not (run / "report.html").exists()
    assert not (run / "report").exists()
    result = completed(run)
    assert result is not None
    assert "settings" in Read(result.report().read_text()).sections  # made later, from what there is


def test_the_result_in_a_notebook(whole_run: Path) -> None:
    result = completed(whole_run)
    assert result is not None
    shown = result._repr_html_()
    assert result.verdict is not None
    assert result.verdict.sentence.replace("'", "&#39;") in shown
    assert "timm.create_model" in shown
    assert str(whole_run / "report.html") in shown
    assert Read(shown).all("script") == []


def test_how_many_images_pictures_are_of() -> None:
    assert sample_size(10**9, 30, 32) == 30
    assert sample_size(0, 10**6, 32) == 24
    assert spread(100, 4) == [12, 37, 62, 87]
    assert spread(2, 8) == [0, 1]


def test_images_that_cant_be_read_are_done_without(pictures: Path, tmp_path: Path) -> None:
    from ssl_vit.data.sources import open_source

    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"none")
    sample = read_sample(open_source(tmp_path), 16, 6)
    assert sample.names == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert sample.images[:, 0].float().mean((1, 2)).tolist() == [0, 40, 80, 160, 200]


def sample_of(images: Tensor) -> Sample:
    count = len(images)
    return Sample(list(range(count)), [str(i) for i in range(count)], [-1] * count, images)


def vit(**more: Any) -> Any:
    torch.manual_seed(0)
    return create_backbone("vit_tiny_patch16_224", image_size=32, model_args=TINY | more)


def test_heads_look_where_timm_says() -> None:
    """The weights that timm itself computes where torch's fused attention is off."""
    backbone = vit().eval()
    images = torch.randn(3, 3, 32, 32)
    patches, heads = attention(backbone, images)
    assert heads is not None
    assert heads.shape == (3, 2, 4, 4)
    assert torch.equal(patches, backbone(images).patches)
    layer, seen = backbone.model.blocks[-1].attn, list[Tensor]()
    layer.fused_attn = False
    layer.attn_drop.register_forward_hook(lambda _, __, weights: seen.append(weights))
    backbone(images)
    torch.testing.assert_close(heads, seen[0][:, :, 0, 1:].unflatten(-1, (4, 4)))


def test_without_a_class_token_it_is_the_mean_over_patches() -> None:
    backbone = vit(class_token=False, global_pool="avg").eval()
    _, heads = attention(backbone, torch.randn(2, 3, 32, 32))
    assert heads is not None
    torch.testing.assert_close(heads.sum((2, 3)), torch.ones(2, 2))


@pytest.mark.parametrize("name", ["resnet10t", "swin_tiny_patch4_window7_224"])
def test_where_no_attention_is_over_the_whole_image_the_features_strength_is_shown(name: str) -> None:
    args = {"depths": [1, 1], "embed_dim": 24, "num_heads": [2, 4], "window_size": 2} if "swin" in name else {}
    backbone = create_backbone(name, image_size=32, model_args=args)
    images = torch.randint(0, 255, (4, 3, 32, 32), dtype=torch.uint8)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    seen = look(backbone, sample_of(images), GREY, nullcontext)
    assert sorted(seen.cells) == ["energy", "patches"]
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert backbone.training


def test_features_that_are_not_finite_are_said() -> None:
    backbone = vit()
    with torch.no_grad():
        backbone.model.blocks[0].norm1.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        look(backbone, sample_of(torch.zeros(3, 3, 32, 32, dtype=torch.uint8)), GREY, nullcontext)


def test_neighbours_are_the_nearest_others() -> None:
    unit = torch.nn.functional.normalize(torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    for query, near in neighbours(unit):
        order = (unit @ unit[query]).argsort(descending=True).tolist()
        assert [row for row, _ in near] == [row for row in order if row != query][: len(near)]


def test_the_plane_is_that_of_the_largest_variance() -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([9, 5, 1, 1, 1, 1])
    places, share = plane(rows)
    centred = (rows - rows.mean(0)).numpy()
    values = np.linalg.eigvalsh(centred.T @ centred)
    np.testing.assert_allclose(np.square(places).sum(0), values[::-1][:2])
    assert share == pytest.approx(values[-2:].sum() / values.sum())
    again, _ = plane(rows, -places)
    np.testing.assert_allclose(again, -places)


def test_one_image_over_and_over_has_a_plane() -> None:
    places, share = plane(torch.ones(5, 4, dtype=torch.float64))
    assert np.abs(places).max() < 1e-9
    assert share == 0


@pytest.mark.parametrize("method", ["mae", "simmim"])
def test_what_masked_methods_draw(method: str) -> None:
    """What is seen stands unchanged in what is painted, the rest is empty or the method's own; nothing changes."""
    from ssl_vit.methods import config_class, method_class
    from tests.methods.settings import SMALL

    backbone = create_backbone("vit_tiny_patch16_224", image_size=32, model_args=TINY, masked=method == "simmim")
    made = method_class(method)(config_class(method).model_validate(SMALL[method]), backbone, 32).eval()
    images, state = torch.randn(3, 3, 32, 32), torch.get_rng_state()
    with torch.no_grad():
        drawn, again = made.drawn(images), made.drawn(images)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    seen, painted, whole = (cut(each, 8) for each in (drawn["seen"], drawn["painted"], images))
    hidden = (seen == 0).all(-1)
    assert 0.3 < hidden.float().mean() < 0.9
    assert torch.equal(seen[~hidden], whole[~hidden])
    assert torch.equal(painted[~hidden], whole[~hidden])
    assert not torch.allclose(painted[hidden], whole[hidden])


def test_a_warning_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ssl_vit"), watching.harmless("it"):
        raise RuntimeError("out of\n  memory\nat once")
    assert [record.getMessage() for record in caplog.records] == [
        "the report: it can't be made (out of memory at once); the run goes on without it"
    ]
