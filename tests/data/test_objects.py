"""Datasets that a Python program hands over, against what torchvision itself reads."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR10, FakeData, ImageFolder

from ssl_vit.config import load_config
from ssl_vit.config.paths import check_data
from ssl_vit.data.decode import BadImage, decode, image_size
from ssl_vit.data.evalset import EvalDataset, EvalLoader
from ssl_vit.data.loader import build_loader
from ssl_vit.data.plan import View, ViewPlan
from ssl_vit.data.scan import scan
from ssl_vit.data.sources import open_source
from ssl_vit.errors import RunFailed, UserError
from tests.data.photo import photo, save_photos

PLAN = ViewPlan((View("v", 2, 8, scale=(0.5, 1.0), flip_p=0.5),))
NAMES = ["ship", "cat", "frog"]


def cifar(root, seed: int = 0) -> CIFAR10:
    """CIFAR-10's own files, of 24 images of noise."""
    folder = root / CIFAR10.base_folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    parts = {
        f"data_batch_{i}": {"data": rng.integers(0, 256, (12, 3072), np.uint8), "labels": [0, 1, 2] * 4} for i in (1, 2)
    }
    sums = {}
    for name, content in (parts | {"batches.meta": {"label_names": NAMES}}).items():
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    class Small(CIFAR10):
        train_list = [[name, sums[name]] for name in parts]  # noqa: RUF012  # as its parent spells it
        test_list = train_list
        meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}  # noqa: RUF012  # likewise

    return Small(str(root))


def test_cifar(tmp_path):
    dataset = cifar(tmp_path)
    source = open_source(dataset)
    assert len(source) == 24
    assert source.classes == ("cat", "frog", "ship"), "sorted, as folders are"
    for i in (0, 13, 23):
        image, target = dataset[i]
        np.testing.assert_array_equal(decode(source.path(i)), np.asarray(image))
        assert source.classes[source.label(i)] == NAMES[target]
    assert image_size(source.path(0)) == (32, 32)
    assert (source.name(5), source.types) == ("row 5", {"PIL image": 24})
    assert scan(source)["bytes"] is None


def test_what_a_resumed_run_compares(tmp_path):
    first = open_source(cifar(tmp_path / "a")).fingerprint
    assert open_source(cifar(tmp_path / "b")).fingerprint == first, "elsewhere, and the same images"
    assert open_source(cifar(tmp_path / "c", seed=1)).fingerprint != first
    assert open_source(Subset(cifar(tmp_path / "a"), range(23))).fingerprint != first
    reordered = Subset(cifar(tmp_path / "a"), [1, 0, *range(2, 24)])
    assert open_source(reordered).fingerprint != first


def test_an_image_folder_is_the_folder(tmp_path):
    for name in ("b", "a"):
        save_photos(tmp_path / name, 4, suffix="png")
    folder, dataset = open_source(tmp_path), open_source(ImageFolder(str(tmp_path)))
    assert (dataset.classes, dataset.labels.tolist()) == (folder.classes, folder.labels.tolist())

    def batches(source):
        return [b.pixels.numpy().tobytes() for b in build_loader(source, PLAN, batch_size=4, seed=0, total_steps=4)]

    assert batches(dataset) == batches(folder)


def test_subsets_of_subsets_keep_their_labels(tmp_path):
    inner = Subset(cifar(tmp_path), range(3, 20))
    source = open_source(Subset(inner, [4, 0]))
    assert [source.classes[label] for label in source.labels] == [NAMES[i % 3] for i in (7, 3)]


def test_labels_without_names_and_none_at_all():
    class Numbered(FakeData):
        targets = torch.tensor([5, 10, 7, 5])

    assert open_source(FakeData(4)).classes == ()
    source = open_source(Numbered(4))
    assert source.classes == ("10", "5", "7")
    assert [source.classes[label] for label in source.labels] == ["5", "10", "7", "5"]
    Numbered.targets = [[0, 1]] * 4  # attributes, as CelebA's
    assert open_source(Numbered(4)).classes == ()
    Numbered.targets = [0, -1, 1, 0]  # STL-10's unlabelled part
    assert open_source(Numbered(4)).classes == ()


class Stream(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (FakeData(4, transform=transforms.ToTensor()), "FakeData: has a transform, and views are made here"),
        (Subset(FakeData(4, transform=transforms.RandomCrop(8)), [0]), "Subset: has a transform"),
        ([torch.zeros(3, 8, 8)], "item 0: expected a PIL image, found torch.Tensor; give a dataset of images"),
        (["a.png"], "a.png: no such folder"),
        (Stream(), "a stream loses images when a run is resumed"),
        ({"a": 1}, "python:builtins.dict: not understood"),
        (iter([1]), "not understood"),
        ([], "holds no images"),
    ],
    ids=["transform", "transform of a subset", "tensor", "name", "stream", "mapping", "iterator", "nothing"],
)
def test_what_can_not_be_learnt_from_is_refused(wrong, problem):
    with pytest.raises(UserError, match=problem):
        open_source(wrong)


def test_a_transform_of_labels_alone_is_no_matter(tmp_path):
    save_photos(tmp_path / "a", 2)
    assert len(open_source(ImageFolder(str(tmp_path), target_transform=str))) == 2


def test_what_stands_for_an_object_names_no_folder():
    with pytest.raises(
        UserError, match=r"python:a\.B: a dataset that a Python program handed over; go on in that program"
    ):
        check_data(load_config(flags={"data.path": "python:a.B"}))


class Spoilt(FakeData):
    """Its third image can't be read; its sixth is no image."""

    def __getitem__(self, index):
        if index == 2:
            raise OSError("the disk is gone")
        return (torch.zeros(1) if index == 5 else super().__getitem__(index)[0]), 0


def test_bad_items_are_named_and_counted(tmp_path):
    source = open_source(Spoilt(40, (3, 20, 24)))
    with pytest.raises(BadImage, match="the disk is gone"):
        decode(source.path(2))
    loader = build_loader(source, PLAN, batch_size=10, seed=0, total_steps=4, max_bad=0.1, workers=2)
    seen = [index for batch in loader for index in batch.index.tolist()]
    assert len(seen) == 40
    assert set(loader.bad.files) == {"row 2", "row 5"}
    assert not {2, 5} & set(seen)
    with pytest.raises(RunFailed, match=r"2 of 40 images \(5.0%\) could not be read"):
        list(build_loader(source, PLAN, batch_size=10, seed=0, total_steps=4, max_bad=0.04))


def test_labelled_images_to_score_on(tmp_path):
    dataset = cifar(tmp_path)
    source = open_source(dataset)
    (batch,) = EvalLoader(EvalDataset(source, 32, 32), 24)
    np.testing.assert_array_equal(batch.images.numpy(), dataset.data.transpose(0, 3, 1, 2))
    assert [source.classes[label] for label in batch.labels] == [NAMES[target] for target in dataset.targets]


def test_an_image_that_was_turned_in_its_file_stands_upright(tmp_path):
    """torchvision hands over the pixels as they lie, and what the camera said beside them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a").mkdir()
    Image.fromarray(photo(20, 30)).save(tmp_path / "a" / "1.png", exif=exif)
    np.testing.assert_array_equal(
        decode(open_source(ImageFolder(str(tmp_path))).path(0)), decode(str(tmp_path / "a" / "1.png"))
    )
