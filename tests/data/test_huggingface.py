"""Datasets of the library `datasets` against the pixels they were made of, and what is wrong with them in real life."""

import io
import logging
import os
import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from ssl_vit.config import load_config
from ssl_vit.config.paths import check_data
from ssl_vit.data import dataset_name
from ssl_vit.data.decode import BadImage, decode, image_size
from ssl_vit.data.loader import build_loader
from ssl_vit.data.pack import pack
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.sources import open_source
from ssl_vit.errors import RunFailed, UserError
from tests.data.photo import photo

PLAN = ViewPlan((View("v", 2, 8, scale=(0.5, 1.0), flip_p=0.5),))
NAMES = ["dog", "cat"]  # not in the order of the alphabet, as in many a dataset
ROWS = 12


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photo(20, 24 + number, number)).save(file, "PNG")
    return file.getvalue()


def made(images: list | None = None, **columns) -> datasets.Dataset:
    """Twelve images; every third is a cat."""
    rows = (
        [{"bytes": png(i), "path": f"shot{i}.png" if i % 2 else None} for i in range(ROWS)]
        if images is None
        else images
    )
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    labels = [int(i % 3 == 0) for i in range(len(rows))]
    kinds |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict({"image": rows, "label": labels, **columns}, features=datasets.Features(kinds))


@pytest.fixture
def saved(tmp_path):
    made(caption=["words"] * ROWS).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_folder_is_recognised(saved):
    source = open_source(saved)
    assert [source.name(i) for i in (0, 1)] == ["row 0", "row 1: shot1.png"]
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0 if i % 3 == 0 else 1 for i in range(ROWS)]
    assert source.types == {"png": 6, "unnamed": 6}
    assert source.fingerprint["bytes"] == sum(len(png(i)) for i in range(ROWS))
    for i in range(ROWS):
        np.testing.assert_array_equal(decode(source.path(i)), photo(20, 24 + i, i))
        assert image_size(source.path(i)) == (20, 24 + i)


def test_other_rows_are_other_images_in_the_order_that_the_user_gave(saved):
    chosen = [7, 3, 3, 11]
    source, whole = open_source(datasets.load_from_disk(saved).select(chosen)), open_source(saved)
    assert len(source) == 4
    for i, row in enumerate(chosen):
        np.testing.assert_array_equal(decode(source.path(i)), photo(20, 24 + row, row))
        assert source.label(i) == whole.label(row)
    assert [source.name(i) for i in (0, 3)] == ["row 0: shot7.png", "row 3: shot11.png"]
    assert source.fingerprint["bytes"] == sum(len(png(row)) for row in chosen)
    shuffled = open_source(datasets.load_from_disk(saved).shuffle(seed=1))
    assert shuffled.fingerprint["bytes"] == whole.fingerprint["bytes"]
    assert shuffled.fingerprint != whole.fingerprint, "a resumed run would read other images"


def test_a_folder_of_images_is_read_as_the_library_does(tmp_path):
    """`hf:FOLDER` for what load_dataset understands: the same classes and pixels as the folder itself."""
    for i in range(6):
        (tmp_path / "root" / "train" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(20, 24, i)).save(tmp_path / "root" / "train" / "ab"[i % 2] / f"{i}.png")
    source, folder = open_source(f"hf:{tmp_path / 'root'}"), open_source(tmp_path / "root" / "train")
    assert source.root.endswith("root,split=train")
    assert (source.classes, sorted(source.labels)) == (folder.classes, sorted(folder.labels))
    assert source.fingerprint["bytes"] == folder.fingerprint["bytes"]
    of_folder = {folder.name(i): decode(folder.path(i)) for i in range(6)}
    for i in range(6):
        name = f"{source.classes[source.label(i)]}/{source.name(i).rpartition(' ')[2]}"
        np.testing.assert_array_equal(decode(source.path(i)), of_folder[name])


def test_splits_columns_and_configurations(tmp_path):
    two = made().add_column("mask", [{"bytes": png(99), "path": None}] * ROWS, feature=datasets.Image())
    datasets.DatasetDict({"train": two, "extra": two.select(range(5))}).save_to_disk(tmp_path / "d")
    with pytest.raises(
        UserError, match=r"2 columns of images among image \(Image\), label \(ClassLabel\), mask \(Image\)"
    ):
        open_source(tmp_path / "d")
    assert len(open_source(f"hf:{tmp_path / 'd'},column=image")) == ROWS, "the split called train"
    masks = open_source(f"hf:{tmp_path / 'd'},column=mask,split=extra")
    assert len(masks) == 5
    np.testing.assert_array_equal(decode(masks.path(4)), photo(20, 24 + 99, 99))
    for text, problem in {
        ",split=test": r"no split test; its splits are train \(12 rows\), extra \(5 rows\)",
        ",split=extra,column=label": "no column of images called label among",
        ",config=plain": "was written by save_to_disk",
        ",splits=train": r"'splits=train' is not understood; choose by config=…, split=…, column=…, revision=…",
        ",split=": "'split=' is not understood",
        ",split=extra,split=train": "not understood",
    }.items():
        with pytest.raises(UserError, match=problem):
            open_source(f"hf:{tmp_path / 'd'}{text}")
    made().to_parquet(tmp_path / "p" / "plain" / "a.parquet")
    (tmp_path / "p" / "README.md").write_text(
        "---\nconfigs:\n- {config_name: one, data_files: plain/*}\n- {config_name: two, data_files: plain/*}\n---\n"
    )
    with pytest.raises(UserError, match=r"Config name is missing.*one.*two"):
        open_source(f"hf:{tmp_path / 'p'}")
    assert open_source(f"hf:{tmp_path / 'p'},config=two").classes == ("cat", "dog")


def test_what_can_not_be_learnt_from_is_refused(saved, tmp_path):
    dataset = datasets.load_from_disk(saved)
    for wrong, problem in {
        dataset.to_iterable_dataset(): "a stream loses images when a run is resumed",
        dataset.with_transform(lambda rows: rows): "has a transform",
        dataset.remove_columns(
            "image"
        ): r"no columns of images among label \(ClassLabel\), caption \(Value\); dataset.cast",
        made([{"bytes": None, "path": "https://a/b.png"}]): "row 0 holds an address",
        made([]): "no images",
    }.items():
        with pytest.raises(UserError, match=problem):
            open_source(wrong)
    with pytest.raises(UserError, match=r"no such folder: \./nothing"):
        open_source("hf:./nothing")
    assert open_source(dataset.with_format("torch")).classes == ("cat", "dog"), "how it is shown elsewhere is no matter"


def test_the_hub_is_asked_for_what_was_named_and_nothing_else(monkeypatch, saved):
    asked = []

    def load(path, config, revision):
        asked.append((path, config, revision))
        if path == "mine/gone":
            raise ConnectionError("no\nnetwork")
        return datasets.DatasetDict({"train": datasets.load_from_disk(saved)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    check_data(load_config(flags={"data.path": "hf:mine/set", "data.val": "hf:mine/set,split=test"}))
    assert asked == [], "a look at the settings fetches nothing"
    assert open_source("hf:mine/set,config=c,revision=v1").root == "hf:mine/set,config=c,revision=v1,split=train"
    with pytest.raises(UserError, match=r"^hf:mine/gone: cannot be had \(ConnectionError: no network\)"):
        open_source("hf:mine/gone")
    assert asked == [("mine/set", "c", "v1"), ("mine/gone", None, None)]
    monkeypatch.setattr(dataset_name.importlib.util, "find_spec", lambda name: None)
    for path in ("hf:mine/set", saved):
        with pytest.raises(UserError, match=r"pip install 'ssl_vit\[datasets\]'"):
            open_source(path)


def test_labels_that_not_every_row_has_are_none():
    assert open_source(made()).classes == ("cat", "dog")
    unknown = (
        made().remove_columns("label").add_column("label", [0, 1, -1] * 4, feature=datasets.ClassLabel(names=NAMES))
    )
    missing = (
        made().remove_columns("label").add_column("label", [0, None] * 6, feature=datasets.ClassLabel(names=NAMES))
    )
    assert open_source(unknown).classes == open_source(missing).classes == ()


def test_bad_rows_are_named_and_counted(tmp_path, caplog):
    Image.fromarray(photo(20, 24, 5)).save(tmp_path / "there.png")
    images = [{"bytes": png(i), "path": None} for i in range(40)]
    images[3] = {"bytes": png(3)[:200], "path": "cut.png"}
    images[5] = {"bytes": None, "path": str(tmp_path / "there.png")}
    images[7] = {"bytes": None, "path": str(tmp_path / "gone.png")}
    images[9] = None
    source = open_source(made(images))
    np.testing.assert_array_equal(decode(source.path(5)), photo(20, 24, 5))
    for row, reason in {3: "truncated|OSError", 7: "No such file", 9: "no image in this row"}.items():
        with pytest.raises(BadImage, match=reason):
            decode(source.path(row))
    loader = build_loader(
        source, PLAN, batch_size=10, seed=0, total_steps=4, max_bad=0.1, bad_list=tmp_path / "bad.jsonl"
    )
    with caplog.at_level(logging.WARNING):
        seen = [index for batch in loader for index in batch.index.tolist()]
    assert set(loader.bad.files) == {"row 3: cut.png", "row 7: gone.png", "row 9"}
    assert all(row not in seen for row in (3, 7, 9))
    assert "row 9 could not be read" in caplog.text
    with pytest.raises(RunFailed, match=r"of 40 images .* could not be read.*row "):
        list(build_loader(source, PLAN, batch_size=10, seed=0, total_steps=4, max_bad=0.05))


def test_workers_and_resuming_change_nothing(saved):
    source = open_source(saved)

    def batches(**options):
        loader = build_loader(source, PLAN, batch_size=4, seed=0, total_steps=6, **options)
        return [(batch.index.tolist(), batch.pixels.numpy().tobytes()) for batch in loader]

    whole = batches()
    for epoch in (whole[:3], whole[3:]):
        assert sorted(index for indices, _ in epoch for index in indices) == list(range(ROWS))
    assert batches(workers=2) == whole
    assert batches(workers=2, start_step=4) == whole[4:]
    other_process = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(decode(other_process.path(2)), decode(source.path(2)))


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_process_that_reads_all_rows_keeps_no_memory_of_them(tmp_path, on_disk):
    """64 MB of rows; what a forked reader has of its own, in bytes, before and after."""
    noise = np.random.default_rng(0).bytes(64 * 2**20)
    dataset = made([{"bytes": noise[i * 2**15 : (i + 1) * 2**15], "path": None} for i in range(2048)])
    if on_disk:
        dataset.save_to_disk(tmp_path / "large")
        dataset = datasets.load_from_disk(tmp_path / "large")
    source = open_source(dataset)
    receiving, sending = os.pipe()
    if (child := os.fork()) == 0:
        before = _own_memory()
        read = sum(len(source.path(i).rows.read(i)) for i in range(len(source)))
        os.write(sending, f"{read} {before} {_own_memory()}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    read, before, after = map(int, os.read(receiving, 100).split())
    assert read == len(noise)
    assert after - before < 8e6


def _own_memory() -> int:
    with open("/proc/self/smaps_rollup") as lines:
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))


def test_packed_rows_keep_files_and_classes(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "headers"))
    source = open_source(saved)
    pack(source, tmp_path / "set")
    packed = open_source(tmp_path / "set")
    assert packed.classes == source.classes
    row_of = {packed.name(i).partition(":")[2]: i for i in range(ROWS)}
    assert {"cat/00000000.png", "dog/00000001-shot1.png"} < set(row_of)
    for i in range(ROWS):
        at = row_of[f"{source.path(i).name.removesuffix('.png')}.png"]
        np.testing.assert_array_equal(decode(packed.path(at)), photo(20, 24 + i, i))
        assert packed.label(at) == source.label(i)
