"""Whoever reads images goes on where a process that reads them is lost: each batch comes once, in order."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ssl_vit.data import detection, segmentation
from ssl_vit.data import source as reading
from ssl_vit.data.annotations import Annotations
from ssl_vit.data.decode import decode
from ssl_vit.data.detection import DetectionDataset
from ssl_vit.data.evalset import EvalDataset, EvalLoader
from ssl_vit.data.scenes import scenes_in_order, share_of, training_scenes
from ssl_vit.data.segmentation import Pair, SegmentationDataset
from ssl_vit.data.sources import open_source
from ssl_vit.errors import RunFailed
from ssl_vit.eval import segmentation as scored
from ssl_vit.proposals import create_prior
from ssl_vit.proposals.propose import propose
from tests.data.photo import save_photos

NAMES = [f"{i:03}.png" for i in range(9)]
SIZE = (40, 48)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_photos(tmp_path / "images", 9, SIZE)
    return tmp_path / "images"


def boxes(images: Path) -> DetectionDataset:
    found = Annotations(str(images), ("cat",))
    for name in NAMES:
        found.add(name, SIZE, lambda _: [])
    return DetectionDataset(found, 28, training=False)


def in_scores(images: Path) -> list[int]:
    loader = EvalLoader(EvalDataset(open_source(images), 28), 2, 1, rows=range(8, -1, -1))
    return [index for batch in loader for index in batch.index.tolist()][::-1]


def in_scenes(images: Path) -> list[int]:
    return [scene.index for scenes in scenes_in_order(boxes(images), batch_size=2, workers=1) for scene in scenes]


def in_steps(images: Path) -> list[int]:
    """As they are read without workers, once the fault has been."""

    def order(workers: int) -> list[int]:
        steps = training_scenes(dataset, chosen, batch_size=2, steps=7, seed=1, first=3, workers=workers)
        return [scene.index for scenes in steps for scene in scenes]

    dataset, chosen = boxes(images), share_of(9, 1.0, 0)
    lasting = order(1)
    assert lasting == order(0)
    assert len(lasting) == 8
    return [*range(9)]


def in_masks(images: Path) -> list[int]:
    masks = images.parent
    for name in NAMES:
        Image.new("L", SIZE[::-1]).save(masks / name)
    pairs = [Pair(images / name, masks / name) for name in NAMES]
    read = scored._batches(SegmentationDataset(pairs, 16), 2)
    return [NAMES.index(sample.name) for _, good, _ in read for sample in good]


def in_proposals(images: Path) -> list[int]:
    found = propose(open_source(images), create_prior("random", count=3), images.parent / "boxes", workers=1)
    return [index for index in range(len(found)) if len(found[index])]


READERS = (in_scores, in_scenes, in_steps, in_masks, in_proposals)


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens at the fifth image, the first time alone where there is one of it."""
    happens: list[Callable[[], None]] = []

    def faulty(path: object, *how: object, **options: object) -> object:
        if str(path).endswith("004.png") and not (tmp_path / f"happened-{len(happens)}").exists():
            (tmp_path / "happened-1").touch()
            happens[0]()
        return decode(path, *how, **options)  # type: ignore[arg-type]

    for module in (reading, detection, segmentation):
        monkeypatch.setattr(module, "decode", faulty)
    monkeypatch.setattr(scored, "worker_count", lambda *_: 1)
    return happens


@pytest.mark.fault
@pytest.mark.parametrize("reads", READERS)
def test_a_worker_that_is_killed_costs_nothing(
    reads: Callable[[Path], list[int]],
    images: Path,
    fault: list[Callable[[], None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault.append(lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert reads(images) == [*range(9)]
    assert re.search(r"was lost \(killed by SIGKILL\).*, at 004\.png: they are started anew \(1 of 3", caplog.text)


def forget() -> None:
    raise MemoryError


@pytest.mark.fault
@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSTOP), r"no batch came for too long \(1 seconds\)"),
        (lambda: time.sleep(60), r"no batch came for too long \(1 seconds\)"),
        (forget, "memory ran out while images were read"),
    ],
    ids=["stopped", "hangs", "has no memory"],
)
def test_other_faults_of_scores(
    happens: Callable[[], None],
    said: str,
    images: Path,
    fault: list[Callable[[], None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    fault.append(happens)
    loader = EvalLoader(EvalDataset(open_source(images), 28), 2, 1, timeout=1)
    assert [index for batch in loader for index in batch.index.tolist()] == [*range(9)]
    assert re.search(rf"{said}.*, at 004\.png: they are started anew \(1 of 3", caplog.text)


@pytest.mark.fault
def test_an_image_that_kills_again_and_again_ends_a_score(
    images: Path, fault: list[Callable[[], None]], caplog: pytest.LogCaptureFixture
) -> None:
    fault += [lambda: os.kill(os.getpid(), signal.SIGKILL)] * 2
    with pytest.raises(RunFailed, match=r"SIGKILL.*, at 004.png; use fewer workers, .* then give the command again"):
        in_scores(images)
    assert caplog.text.count("they are started anew") == 3
