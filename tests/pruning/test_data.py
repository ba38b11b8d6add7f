from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from widthwise.luts.errors import BadInput
from widthwise.pruning.data import InvalidData, load_data
from widthwise.pruning.images import View

FASHION = Path("/usr/share/datasets/fashion-mnist")


def write_idx(path: Path, values: np.ndarray, magic: bytes | None = None) -> None:
    header = magic or bytes([0, 0, 8, values.ndim])
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + sizes + values.astype(np.uint8).tobytes()))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """Seven training and three test images of 3×5 pixels; image i is filled with 10·i."""
    for prefix, count in (("train", 7), ("t10k", 3)):
        images = np.broadcast_to(10 * np.arange(count)[:, None, None], (count, 3, 5))
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(count))
    return tmp_path


def write_folder(root: Path, parts: tuple[str, ...], size: tuple[int, int] = (7, 5)) -> Path:
    """Two classes, two images of ``size`` (width, height) each, in every part."""
    for part in parts:
        for label, name in enumerate(("ant", "bee")):
            (root / part / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGB", size, (100 * label, 50, index)).save(root / part / name / f"{index}.jpg", quality=95)
    return root


class TestDigits:
    def test_a_fifth_is_held_out_in_equal_shares(self) -> None:
        data = load_data("digits")
        assert (data.classes, data.sample_shape) == (10, (1, 8, 8))
        train, test = (torch.cat([y for _, y in loader]) for loader in (data.train, data.test))
        assert (len(train), len(test)) == (1437, 360)
        assert (torch.bincount(test) - 36).abs().max() <= 1
        assert train.dtype == torch.int64

    def test_training_images_have_zero_mean_and_unit_std(self) -> None:
        images = torch.cat([x for x, _ in load_data("digits").train])
        assert images.dtype == torch.float32
        torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
        torch.testing.assert_close(images.std(), torch.tensor(1.0), atol=1e-5, rtol=0)

    def test_the_split_is_the_same_for_every_seed_and_the_order_is_not(self) -> None:
        one, again, two = (load_data("digits", seed=seed) for seed in (1, 1, 2))
        assert torch.equal(torch.cat([x for x, _ in one.test]), torch.cat([x for x, _ in two.test]))
        first, same, other = (next(iter(data.train))[1] for data in (one, again, two))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_fits_a_network_made_for_larger_rgb_images(self) -> None:
        data = load_data("digits", image_size=(17, 13), channels=3, limit=20, batch_size=20)
        assert data.sample_shape == (3, 17, 13)
        images, _ = next(iter(data.test))
        assert images.shape == (20, 3, 17, 13)
        assert torch.equal(images[:, 0], images[:, 2])

    def test_limit_takes_from_all_classes_alike(self) -> None:
        data = load_data("digits", limit=53)
        for loader in (data.train, data.test):
            counts = torch.bincount(torch.cat([y for _, y in loader])).tolist()
            assert sorted(counts) == [5] * 7 + [6] * 3
        other = load_data("digits", limit=53, seed=1)
        assert not torch.equal(next(iter(data.test))[0], next(iter(other.test))[0])

    def test_a_last_training_batch_of_one_is_dropped(self) -> None:
        data = load_data("digits", limit=33, batch_size=16)
        assert [len(y) for _, y in data.train] == [16, 16]
        assert [len(y) for _, y in data.test] == [16, 16, 1]


class TestView:
    def test_normalises_bytes_as_fractions(self) -> None:
        view = View(mean=(0.5, 0.0), std=(0.25, 2.0))
        images = torch.tensor([255, 0], dtype=torch.uint8).view(1, 2, 1, 1)
        assert view(images).flatten().tolist() == [2.0, 0.0]

    def test_resizes_bilinearly(self) -> None:
        image = torch.tensor([[0.0, 1.0]]).view(1, 1, 1, 2)
        resized = View((0.0,), (1.0,), size=(1, 4))(image)
        torch.testing.assert_close(resized.flatten(), torch.tensor([0.0, 0.25, 0.75, 1.0]))

    def test_a_crop_shifts_by_at_most_four_pixels_and_fills_with_black(self) -> None:
        torch.manual_seed(0)
        image = torch.zeros(200, 1, 11, 13)
        image[:, :, 5, 6] = 1
        places = View((0.0,), (1.0,), crop=True)(image)[:, 0].nonzero()
        shifts = places[:, 1:] - torch.tensor([5, 6])
        assert len(places) == 200
        assert shifts.amin(0).tolist() == [-4, -4]
        assert shifts.amax(0).tolist() == [4, 4]

    def test_about_half_are_flipped_whole(self) -> None:
        torch.manual_seed(0)
        image = torch.tensor([1.0, 2.0, 3.0]).expand(200, 1, 1, 3)
        rows = View((0.0,), (1.0,), flip=True)(image)[:, 0, 0].tolist()
        assert 70 < rows.count([3.0, 2.0, 1.0]) < 130
        assert rows.count([3.0, 2.0, 1.0]) + rows.count([1.0, 2.0, 3.0]) == 200


class TestFashionMnist:
    def test_reads_idx_files(self, fashion: Path) -> None:
        data = load_data(f"fashion-mnist:{fashion}", batch_size=3)
        assert (data.classes, data.sample_shape, len(data.train.dataset)) == (10, (1, 3, 5), 7)  # type: ignore[arg-type]
        images, labels = next(iter(data.test))
        assert labels.tolist() == [0, 1, 2]
        torch.testing.assert_close(images[2], torch.full((1, 3, 5), (20 / 255 - 0.2860) / 0.3530))

    def test_missing_files_name_the_package(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="apt-get install dataset-fashion-mnist"):
            load_data(f"fashion-mnist:{tmp_path}")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"no gzip at all", "not a whole gzip file"),
            (gzip.compress(b"x" * 999)[:-12], "not a whole gzip file"),
            (gzip.compress(bytes([0, 0, 13, 3]) + bytes(12)), "no idx file"),
            (gzip.compress(b"\0\0"), "no idx file"),
            (gzip.compress(bytes([0, 0, 8, 3]) + struct.pack(">3I", 7, 3, 5) + bytes(104)), "104 bytes"),
        ],
    )
    def test_corrupt_files_are_named(self, fashion: Path, content: bytes, message: str) -> None:
        (fashion / "train-images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(InvalidData, match=message) as caught:
            load_data(f"fashion-mnist:{fashion}")
        assert "train-images-idx3-ubyte.gz" in str(caught.value)

    @pytest.mark.parametrize(("labels", "message"), [(np.arange(6), "6 labels"), (np.arange(4, 11), "label 10")])
    def test_labels_must_belong_to_the_images(self, fashion: Path, labels: np.ndarray, message: str) -> None:
        write_idx(fashion / "train-labels-idx1-ubyte.gz", labels)
        with pytest.raises(InvalidData, match=message):
            load_data(f"fashion-mnist:{fashion}")

    @pytest.mark.skipif(not FASHION.is_dir(), reason="needs: apt-get install dataset-fashion-mnist")
    def test_the_real_files(self) -> None:
        data = load_data("fashion-mnist", batch_size=1000)
        assert (len(data.train.dataset), len(data.test.dataset)) == (60_000, 10_000)  # type: ignore[arg-type]
        assert data.sample_shape == (1, 28, 28)
        images = torch.cat([x for x, _ in data.test])
        torch.testing.assert_close(images.mean(), torch.tensor(0.0), atol=0.01, rtol=0)
        assert torch.bincount(torch.cat([y for _, y in data.test])).tolist() == [1000] * 10


class TestFolders:
    def test_cifar_is_read_into_memory(self, tmp_path: Path) -> None:
        root = write_folder(tmp_path, ("train", "test"))
        data = load_data(f"cifar10-jpeg:{root}", batch_size=4)
        assert (data.classes, data.sample_shape) == (2, (3, 5, 7))
        for file in root.rglob("*.jpg"):
            file.unlink()
        images, labels = next(iter(data.test))
        assert (images.shape, labels.tolist()) == ((4, 3, 5, 7), [0, 0, 1, 1])
        # JPEG is a few levels off
        torch.testing.assert_close(images[2, 0, 0, 0], torch.tensor((100 / 255 - 0.485) / 0.229), atol=0.1, rtol=0)

    def test_cifar_images_are_of_one_size(self, tmp_path: Path) -> None:
        root = write_folder(tmp_path, ("train", "test"))
        Image.new("RGB", (8, 8)).save(root / "train" / "bee" / "1.jpg")
        with pytest.raises(InvalidData, match=r"bee.1\.jpg is 8×8, others are 7×5"):
            load_data(f"cifar10-jpeg:{root}")

    @pytest.mark.parametrize("held_out", ["val", "test"])
    def test_an_image_folder_is_resized(self, tmp_path: Path, held_out: str) -> None:
        root = write_folder(tmp_path, ("train", held_out))
        Image.new("L", (19, 23)).save(root / "train" / "ant" / "0.jpg")  # another size, and grey
        data = load_data(f"imagefolder:{root}", image_size=(12, 14), batch_size=4)
        assert (data.classes, data.sample_shape) == (2, (3, 12, 14))
        assert next(iter(data.train))[0].shape == (4, 3, 12, 14)
        assert load_data(f"imagefolder:{root}").sample_shape == (3, 224, 224)

    @pytest.mark.parametrize("kind", ["cifar10-jpeg", "imagefolder"])
    @pytest.mark.parametrize("keep", [0, 20, 300])
    def test_a_corrupt_image_is_named(self, tmp_path: Path, kind: str, keep: int) -> None:
        root = write_folder(tmp_path, ("train", "test"), size=(70, 50))
        broken = root / "train" / "bee" / "1.jpg"
        broken.write_bytes(broken.read_bytes()[:keep])
        with pytest.raises(InvalidData, match=r"bee.1\.jpg is no readable image"):
            list(load_data(f"{kind}:{root}").train)

    @pytest.mark.parametrize("kind", ["cifar10-jpeg", "imagefolder"])
    def test_an_empty_class_is_named(self, tmp_path: Path, kind: str) -> None:
        root = write_folder(tmp_path, ("train", "test"))
        for file in (root / "train" / "bee").iterdir():
            file.unlink()
        with pytest.raises(InvalidData, match="bee"):
            load_data(f"{kind}:{root}")

    def test_missing_folders_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="neither val/ nor test/"):
            load_data(f"imagefolder:{tmp_path}")
        with pytest.raises(InvalidData, match="train"):
            load_data(f"cifar10-jpeg:{tmp_path}")
        (tmp_path / "train").mkdir()
        with pytest.raises(InvalidData, match="class"):
            load_data(f"cifar10-jpeg:{tmp_path}")

    def test_both_parts_have_the_same_classes(self, tmp_path: Path) -> None:
        root = write_folder(tmp_path, ("train", "val"))
        (root / "val" / "bee").rename(root / "val" / "wasp")
        with pytest.raises(InvalidData, match="bee, wasp"):
            load_data(f"imagefolder:{root}")


CUSTOM = """
from __future__ import annotations
import torch
from torch.utils.data import DataLoader, TensorDataset

def loader(n):
    return DataLoader(TensorDataset(torch.zeros(n, 2, 5, 3), torch.arange(n)), batch_size=4)

def loaders():
    return loader(6), loader(7)

def counted():
    return loader(6), loader(7), 11

def flat():
    return [(DataLoader(TensorDataset(torch.zeros(4, 5), torch.arange(4))))] * 2

def single():
    return loader(6)

def broken():
    raise RuntimeError("no disk")
"""


class TestCustom:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "mine.py"
        path.write_text(CUSTOM)
        return path

    def test_calls_the_function(self, file: Path) -> None:
        data = load_data(f"{file}:loaders", image_size=(5, 3))
        assert (data.classes, data.sample_shape, len(data.train)) == (7, (2, 5, 3), 2)
        assert load_data(f"{file}:counted").classes == 11

    @pytest.mark.parametrize(
        ("function", "options", "message"),
        [
            ("absent", {}, "no function 'absent'"),
            ("single", {}, "must return"),
            ("flat", {}, r"must be \(N, C, H, W\)"),
            ("broken", {}, "RuntimeError: no disk"),
            ("loaders", {"limit": 3}, "limit"),
            ("loaders", {"channels": 3}, r"needs \(3, 5, 3\)"),
        ],
    )
    def test_what_does_not_fit(self, file: Path, function: str, options: dict[str, int], message: str) -> None:
        with pytest.raises(InvalidData, match=message):
            load_data(f"{file}:{function}", **options)  # type: ignore[arg-type]

    def test_a_file_that_is_not_there_or_does_not_import(self, file: Path) -> None:
        with pytest.raises(InvalidData, match="no file"):
            load_data(f"{file.parent / 'other.py'}:loaders")
        file.write_text("def (")
        with pytest.raises(InvalidData, match="SyntaxError"):
            load_data(f"{file}:loaders")


@pytest.mark.parametrize("name", ["", "mnist", "digits:here", "cifar10-jpeg", "imagefolder:", "file.py:", "file.py"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(BadInput, match=r"known are digits, fashion-mnist.*imagefolder:PATH"):
        load_data(name)


@pytest.mark.parametrize(
    "options", [{"batch_size": 0}, {"limit": 0}, {"image_size": (0, 8)}, {"channels": 0}], ids=lambda o: next(iter(o))
)
def test_impossible_options(options: dict[str, int]) -> None:
    with pytest.raises(InvalidData):
        load_data("digits", **options)  # type: ignore[arg-type]


def test_rgb_does_not_become_grey(tmp_path: Path) -> None:
    root = write_folder(tmp_path, ("train", "test"))
    with pytest.raises(InvalidData, match="3 channels and can't become 1"):
        load_data(f"cifar10-jpeg:{root}", channels=1)
