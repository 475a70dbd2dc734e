"""Order, bit-identity over workers and restarts, bad files, lost workers."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_vit.data import loader as module
from ssl_vit.data import readers
from ssl_vit.data import source as reading
from ssl_vit.data.augment import augment
from ssl_vit.data.bad import BadList
from ssl_vit.data.batch import Batch, to_views
from ssl_vit.data.crops import make_views, sample_rng
from ssl_vit.data.decode import decode
from ssl_vit.data.loader import StepSampler, Views, build_loader, steps_per_epoch
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.sources import open_source
from ssl_vit.errors import RunFailed, UserError
from tests.data.photo import photo, save_photos

JITTER = {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_p": 0.8, "gray_p": 0.2, "flip_p": 0.5}
PLAN = ViewPlan(
    (
        View("global", 2, 16, scale=(0.4, 1.0), blur_p=0.5, **JITTER),
        View("local", 3, 8, scale=(0.05, 0.4), solarize_p=0.3, **JITTER),
    )
)


@pytest.fixture
def folder(tmp_path):
    save_photos(tmp_path / "images", 14)
    return tmp_path / "images"


def same(a: Batch, b: Batch) -> bool:
    pairs = zip([*a.views, *a.params, a.index], [*b.views, *b.params, b.index], strict=True)
    return a.bad == b.bad and all(torch.equal(x, y) for x, y in pairs)


def batches(folder, **options) -> list[Batch]:
    return list(build_loader(open_source(folder), PLAN, **{"batch_size": 4, "seed": 7, "total_steps": 8} | options))


def indices(sampler: StepSampler) -> list[list[int]]:
    return [[index for _, index in items] for items in sampler]


def test_an_epoch_reads_each_image_at_most_once_and_epochs_differ():
    sampler = StepSampler(103, 10, seed=1, total_steps=25)
    steps = list(sampler)
    assert [items[0][0] for items in steps] == [0] * 10 + [1] * 10 + [2] * 5
    epochs = [[index for items in steps[first : first + 10] for _, index in items] for first in (0, 10)]
    assert all(len(set(epoch)) == 100 and set(epoch) <= set(range(103)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] != sorted(epochs[0])
    assert set(epochs[0]) != set(epochs[1]), "what is left over differs from epoch to epoch"
    assert indices(StepSampler(103, 10, seed=2, total_steps=10)) != indices(
        StepSampler(103, 10, seed=1, total_steps=10)
    )


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_the_batch_of_one_process(world):
    one = indices(StepSampler(50, 8, seed=3, total_steps=9))
    parts = [indices(StepSampler(50, 8 // world, seed=3, total_steps=9, rank=r, world=world)) for r in range(world)]
    assert [list(chain(*step)) for step in zip(*parts, strict=True)] == one


def test_a_start_is_a_suffix_and_the_length_stays():
    whole = list(StepSampler(23, 5, seed=0, total_steps=11))
    for start in range(12):
        sampler = StepSampler(23, 5, seed=0, total_steps=11, start_step=start)
        assert list(sampler) == whole[start:]
        assert len(sampler) == 11
    assert steps_per_epoch(23, 5) == 4
    assert steps_per_epoch(23, 5, world=2) == 2


def test_batches_are_crop_major(folder):
    source, steps = open_source(folder), list(StepSampler(14, 4, seed=7, total_steps=5))
    for batch, items in zip(batches(folder, total_steps=5), steps, strict=True):
        assert [tuple(view.shape) for view in batch.views] == [(8, 3, 16, 16), (12, 3, 8, 8)]
        assert batch.index.tolist() == [index for _, index in items]
        for place, (epoch, index) in enumerate(items):
            views, params = make_views(decode(source.path(index)), PLAN, sample_rng(7, epoch, index))
            for kind in range(2):
                assert torch.equal(batch.views[kind][place::4], views[kind])
                assert torch.equal(batch.params[kind][place::4], params[kind])


def test_the_same_to_the_bit_for_any_workers_and_any_start(folder):
    (folder / "003.png").write_bytes(b"no image")
    options = {"max_bad": 0.2}
    alone = batches(folder, **options)
    assert any(batch.bad for batch in alone)
    assert all(same(a, b) for a, b in zip(alone, batches(folder, workers=2, **options), strict=True))
    for start in (1, 3, 5, 7):
        assert all(same(a, b) for a, b in zip(alone[start:], batches(folder, start_step=start, **options), strict=True))
    resumed = batches(folder, workers=2, start_step=4, **options)
    assert all(same(a, b) for a, b in zip(alone[4:], resumed, strict=True))
    assert not any(same(a, b) for a, b in zip(alone, batches(folder, seed=8, **options), strict=True))


def test_views_of_a_large_photo_are_those_of_the_whole_decode(tmp_path):
    """It is decoded at an eighth of its size."""
    picture = Image.fromarray(photo(150, 200)).resize((1600, 1200), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "large.jpg", quality=95)
    source = open_source(tmp_path)
    plan = ViewPlan((View("v", 8, 32, scale=(0.3, 1.0), flip_p=0.5),))
    drafted = Views(source, plan, seed=0)[[(0, 0)]].views[0]
    (whole,), _ = make_views(decode(source.path(0)), plan, sample_rng(0, 0, 0))
    assert not torch.equal(drafted, whole)
    assert (drafted.float() - whole.float()).abs().mean() < 2


def test_views_differ_from_epoch_to_epoch(folder):
    first, second = (
        {i: b.views[0][p] for b in part for p, i in enumerate(b.index.tolist())}
        for part in (batches(folder, total_steps=3), batches(folder, total_steps=6, start_step=3))
    )
    shared = set(first) & set(second)
    assert len(shared) >= 10
    assert not any(torch.equal(first[i], second[i]) for i in shared)


def test_bad_files_are_replaced_named_once_and_listed(folder, tmp_path, caplog):
    (folder / "003.png").write_bytes(b"no image")
    (folder / "005.png").write_bytes((folder / "005.png").read_bytes()[:300])
    listing = tmp_path / "bad_images.jsonl"
    with caplog.at_level(logging.WARNING, "ssl_vit.data"):
        read = batches(folder, total_steps=30, max_bad=0.2, bad_list=listing)
    assert all(len(batch.index) == 4 and not {3, 5} & set(batch.index.tolist()) for batch in read)
    assert sum(len(batch.bad) for batch in read) > 5, "met in every epoch"
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert sorted(message.split()[0] for message in messages) == ["003.png", "005.png"]
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == ["003.png", "005.png"]
    assert "truncated" in next(line["reason"] for line in lines if line["file"] == "005.png")
    replaced = {(b.index.tolist()[0]) for b in read if b.bad}
    assert len(replaced) > 1, "replacements differ"


def test_too_many_bad_files_end_the_run(folder, tmp_path):
    for number in (1, 2, 4):
        (folder / f"{number:03d}.png").write_bytes(b"")
    listing = tmp_path / "bad_images.jsonl"
    with pytest.raises(RunFailed) as caught:
        batches(folder, max_bad=0.15, bad_list=listing, total_steps=60)
    message = str(caught.value)
    assert "3 of 14 images (21.4%)" in message
    assert "15.0%" in message
    assert all(f"{number:03d}.png (empty" in message for number in (1, 2, 4))
    assert str(listing) in message
    assert "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_files_ends_the_run_at_once(folder, workers):
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(RunFailed, match=r"33 images in a row could not be read: .*\.png \(empty, or no"):
        batches(folder, max_bad=1.0, workers=workers)


def test_a_resumed_run_remembers_its_bad_files(tmp_path, caplog):
    path = tmp_path / "bad.jsonl"
    odd = "caf\udce9\n.jpg"
    BadList(10, 0.15, path).note([(odd, "broken")])
    caplog.clear()
    again = BadList(10, 0.15, path)
    again.note([(odd, "broken")])
    assert not caplog.records
    assert again.files == {odd: "broken"}
    with pytest.raises(RunFailed, match=r"2 of 10 images \(20.0%\).*caf\\xe9\\x0a.jpg \(broken\), b.jpg \(too\)"):
        again.note([("b.jpg", "too")])


@pytest.mark.parametrize("line", ['{"file": "a.jpg", "rea', '{"file": "a.jpg"}', "[1]"])
def test_a_damaged_list_of_bad_files_is_named(tmp_path, line):
    (tmp_path / "bad.jsonl").write_text(f'{{"file": "x", "reason": "y"}}\n{line}\n')
    with pytest.raises(UserError, match=r"bad.jsonl, line 2: expected"):
        BadList(10, 0.5, tmp_path / "bad.jsonl")


def test_fewer_images_than_a_global_batch(folder):
    with pytest.raises(UserError, match="14 images are fewer than a batch of 16"):
        batches(folder, batch_size=8, world=2)


def test_to_views_augments_each_view_with_its_parameters(folder):
    batch = batches(folder, total_steps=1)[0]
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    views = to_views(batch, mean, std, "cpu")
    assert [tuple(view.shape) for view in views] == [(8, 3, 16, 16), (12, 3, 8, 8)]
    for view, images, params in zip(views, batch.views, batch.params, strict=True):
        assert torch.equal(view, augment(images, params, mean, std))
    for view, same in zip(views, to_views(batch, mean, std, "cpu", channels_last=True), strict=True):
        assert torch.equal(view, same)
        assert view.is_contiguous()
        assert same.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.fault
def test_a_worker_that_is_killed_again_and_again_ends_the_run_and_the_image_is_named(folder, monkeypatch, caplog):
    def deadly(path, *how, **options):
        if str(path).endswith("003.png"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(path, *how, **options)

    monkeypatch.setattr(reading, "decode", deadly)
    with pytest.raises(RunFailed, match=r"was lost \(killed by SIGKILL\).*, at 003\.png; .*resume the run"):
        batches(folder, workers=1)
    assert caplog.text.count("they are started anew") == 3


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def forget() -> None:
    raise MemoryError


FAULTS = {
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), r"was lost \(killed by SIGKILL\)"),
    "stopped": (stop, r"no batch came for too long \(2 seconds\)"),
    "hangs": (lambda: time.sleep(120), r"no batch came for too long \(2 seconds\)"),
    "ends": (lambda: os._exit(7), r"was lost \(exit code 7\)"),
    "has no memory": (forget, "memory ran out while images were read"),
}


@pytest.mark.fault
@pytest.mark.parametrize("fault", FAULTS)
def test_lost_workers_are_started_anew_and_nothing_else_changes(fault, folder, tmp_path, monkeypatch, caplog):
    """It happens once, in one of two workers: the image is named, and the batches are the same to the bit."""
    happens, said = FAULTS[fault]

    def faulty(path, *how, **options):
        if str(path).endswith("003.png") and not (tmp_path / "happened").exists():
            (tmp_path / "happened").touch()
            happens()
        return decode(path, *how, **options)

    alone = batches(folder)
    monkeypatch.setattr(reading, "decode", faulty)
    started = time.monotonic()
    again = batches(folder, workers=2, timeout=2)
    assert time.monotonic() - started < 60
    assert re.search(rf"{said}.*, at .*003\.png.*: they are started anew \(1 of 3 times\)", caplog.text)
    assert len(again) == len(alone)
    assert all(same(a, b) for a, b in zip(alone, again, strict=True))


@pytest.mark.fault
def test_a_worker_killed_while_the_model_computes(folder):
    """No step is disturbed: the loss is noticed where a batch is awaited."""
    loader = build_loader(open_source(folder), PLAN, batch_size=4, seed=7, total_steps=40, workers=1)
    found = [next(read := iter(loader))]
    os.kill(loader._batches._loader._iterator._workers[0].pid, signal.SIGKILL)
    time.sleep(0.3)
    found += read
    assert all(same(a, b) for a, b in zip(batches(folder, total_steps=40), found, strict=True))


@pytest.mark.fault
def test_a_stopped_worker_is_not_waited_for_at_the_end(folder):
    """The interpreter ends although a worker can't."""
    code = """
        import os, signal, sys
        from ssl_vit.data.loader import build_loader
        from ssl_vit.data.plan import View, ViewPlan
        from ssl_vit.data.sources import open_source

        loader = build_loader(open_source(sys.argv[1]), ViewPlan((View("v", 1, 8),)), batch_size=2, seed=0,
                              total_steps=40, workers=1)
        next(iter(loader))
        os.kill(loader._batches._loader._iterator._workers[0].pid, signal.SIGSTOP)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    subprocess.run(arguments, check=True, timeout=120)


def test_batches_go_through_pipes_where_shared_memory_is_small(folder, monkeypatch, caplog):
    monkeypatch.setattr(readers.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    piped = batches(folder, workers=2)
    assert "batches go through pipes" in caplog.text
    assert not any(batch.pixels.is_shared() for batch in piped)
    assert all(same(a, b) for a, b in zip(batches(folder), piped, strict=True))


def test_other_errors_are_left_as_they_are(folder, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(reading, "decode", broken)
    with pytest.raises(RuntimeError, match="something else"):
        batches(folder)
    with pytest.raises(RuntimeError, match="something else"):
        batches(folder, workers=1)


@pytest.mark.fault
def test_signals_to_the_group_do_not_reach_the_workers(folder):
    code = """
        import os, signal, sys, time
        from ssl_vit.data.loader import build_loader
        from ssl_vit.data.plan import View, ViewPlan
        from ssl_vit.data.sources import open_source

        told = []
        if __name__ == "__main__":
            plan = ViewPlan((View("v", 1, 8),))
            source = open_source(sys.argv[1])
            batches = iter(build_loader(source, plan, batch_size=2, seed=0, total_steps=40, workers=1))
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda n, _: told.append(n))
            next(batches)
            os.killpg(0, signal.SIGINT)
            os.killpg(0, signal.SIGTERM)
            print(len(told), 1 + sum(1 for _ in batches))
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, start_new_session=True, timeout=600)
    assert done.stdout == "2 40\n", done.stderr


def test_order_is_uniform():
    places = np.array([np.argsort(module.epoch_order(6, seed, 0)) for seed in range(3000)])
    for image in range(6):
        assert np.abs(np.bincount(places[:, image], minlength=6) / 3000 - 1 / 6).max() < 0.035


def test_what_travels_is_one_buffer_in_shared_memory(folder):
    """All views are parts of it, at most 0.55 MB an image at the crops of DINO's recipe."""
    batch = batches(folder, workers=1, total_steps=1)[0]
    assert batch.pixels.is_shared()
    assert batch.pixels.nbytes == 4 * PLAN.bytes() == 4 * 3 * (2 * 16**2 + 3 * 8**2)
    start, end = batch.pixels.data_ptr(), batch.pixels.data_ptr() + batch.pixels.nbytes
    assert all(start <= view.data_ptr() < end for view in batch.views)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in batch.views)
    assert ViewPlan((View("global", 2, 224), View("local", 8, 96))).bytes() < 0.55e6
