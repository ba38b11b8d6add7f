"""Training data by name: ``load_data("digits")`` gives loaders for training and testing and says what is in them.

    digits                    scikit-learn's 1,797 grey 8×8 digits; needs no file
    fashion-mnist[:PATH]      the idx files of Debian's dataset-fashion-mnist, 28×28 grey
    cifar10-jpeg:PATH         a folder with train/<class>/*.jpg and test/<class>/*.jpg, read into memory
    imagefolder:PATH          a folder with train/<class>/* and val/<class>/* (or test/), read as it is used
    path/to/file.py:loaders   your own function; it returns (train, test) or (train, test, classes)

Nothing is ever downloaded: where a file is missing the error says how to get it.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from widthwise.pruning.images import (
    Images,
    InvalidData,
    Size,
    View,
    batched,
    check_same_classes,
    open_folder,
    pixels,
    read_idx,
)

__all__ = ["Data", "InvalidData", "load_data"]

_FASHION = Path("/usr/share/datasets/fashion-mnist")
_FASHION_HELP = "run 'apt-get install dataset-fashion-mnist', or name the folder: fashion-mnist:PATH"
_FORMS = "digits, fashion-mnist[:PATH], cifar10-jpeg:PATH, imagefolder:PATH, path/to/file.py:FUNCTION"

# The split is part of what "digits" means: a network trained under one seed must not meet its test images
# in the training set of another.
_DIGITS_SPLIT_SEED = 0
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DEFAULT_FOLDER_SIZE = (224, 224)  # what torchvision's and timm's ImageNet classifiers take


@dataclass(frozen=True)
class Data:
    """Loaders and what they hold.

    Args:
        name: the name it was loaded by.
        train: shuffled batches ``(images, labels)``: float32 ``(N, C, H, W)``, int64 ``(N,)``.
        test: the held-out batches, in a fixed order, never augmented.
        classes: labels run from 0 to ``classes - 1``.
        sample_shape: ``(C, H, W)`` of one image.
    """

    name: str
    train: DataLoader[Any]
    test: DataLoader[Any]
    classes: int
    sample_shape: tuple[int, int, int]


@dataclass(frozen=True)
class _Options:
    batch_size: int
    seed: int
    image_size: Size | None
    channels: int | None
    limit: int | None
    workers: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InvalidData(f"batch_size must be at least 1, got {self.batch_size}")
        if self.limit is not None and self.limit < 1:
            raise InvalidData(f"limit must be at least 1 example, got {self.limit}; leave it out to use all")
        if self.image_size is not None and (len(self.image_size) != 2 or min(self.image_size) < 1):
            raise InvalidData(f"image_size must be (height, width) in pixels, got {self.image_size}")

    def repeat(self, stored: int) -> int:
        """How often stored channels are repeated to give the channels asked for."""
        if self.channels is None or self.channels == stored:
            return 1
        if stored != 1 or self.channels < 1:
            raise InvalidData(
                f"the images have {stored} channels and can't become {self.channels}; only grey ones are repeated. "
                f"Ask for channels={stored}, or convert them in your own file.py:loaders"
            )
        return self.channels

    def choose(self, labels: list[int]) -> list[int]:
        """Indices of the examples to use: at random by ``seed``, and as evenly as can be from all classes."""
        if self.limit is None or self.limit >= len(labels):
            return list(range(len(labels)))
        shuffled = random.Random(self.seed).sample(range(len(labels)), len(labels))
        met: Counter[int] = Counter()
        rank = {}
        for index in shuffled:
            rank[index] = met[labels[index]]
            met[labels[index]] += 1
        return sorted(sorted(shuffled, key=rank.__getitem__)[: self.limit])


def load_data(
    name: str,
    *,
    batch_size: int = 64,
    seed: int = 0,
    image_size: Size | None = None,
    channels: int | None = None,
    limit: int | None = None,
    workers: int = 0,
) -> Data:
    """The data set called ``name``, as loaders.

    Fashion-MNIST and CIFAR-10 are augmented for training (crop after padding by 4, flip), an image folder is
    flipped, digits are left alone. Values are normalised with the data set's usual mean and std (CIFAR-10 and
    folders: ImageNet's). Augmentation draws from torch's global generator, which ``train`` seeds.

    Args:
        name: see the module docstring.
        batch_size: examples per batch. A last training batch of one is dropped: batch norm can't train on it.
        seed: order of the training batches, and which examples ``limit`` keeps (all classes alike).
        image_size: ``(height, width)`` in pixels to resize to, bilinear and without cropping; default: as stored
            (an image folder, whose images differ in size: 224×224).
        channels: repeat grey images to so many channels, for a network that takes RGB.
        limit: use at most so many training and so many test examples.
        workers: processes that prepare batches; worth it for a folder of large images only.

    Raises:
        InvalidData: unknown name, missing or corrupt files, or an impossible shape.

    Example:
        >>> data = load_data("digits", batch_size=32)
        >>> data.classes, data.sample_shape, len(data.train.dataset), len(data.test.dataset)
        (10, (1, 8, 8), 1437, 360)
    """
    options = _Options(batch_size, seed, image_size, channels, limit, workers)
    kind, _, where = name.partition(":")
    if kind == "digits" and not where:
        return _digits(name, options)
    if kind == "fashion-mnist":
        return _fashion(name, Path(where) if where else _FASHION, options)
    if kind == "cifar10-jpeg" and where:
        return _cifar(name, Path(where), options)
    if kind == "imagefolder" and where:
        return _folder(name, Path(where), options)
    path, _, function = name.rpartition(":")
    if path.endswith(".py") and function.isidentifier():
        return _custom(name, Path(path), function, options)
    raise InvalidData(f"unknown data {name!r}; known are {_FORMS}")


def _digits(name: str, options: _Options) -> Data:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images = torch.from_numpy(source.images).float()[:, None]
    labels = torch.from_numpy(source.target)
    train, test = train_test_split(
        range(len(labels)), test_size=0.2, stratify=source.target, random_state=_DIGITS_SPLIT_SEED
    )
    mean, std = float(images[train].mean()), float(images[train].std())
    view = View((mean,), (std,), options.image_size, options.repeat(1))
    return _in_memory(name, (images[train], labels[train], view), (images[test], labels[test], view), 10, options)


def _fashion(name: str, folder: Path, options: _Options) -> Data:
    def part(prefix: str) -> tuple[Tensor, Tensor]:
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 3, _FASHION_HELP)
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 1, _FASHION_HELP)
        if not 0 < len(images) == len(labels):
            raise InvalidData(f"{folder}: {len(images)} {prefix} images but {len(labels)} labels; {_FASHION_HELP}")
        if int(labels.max()) > 9:
            raise InvalidData(f"{folder}: {prefix} label {int(labels.max())} is not one of 10 classes; {_FASHION_HELP}")
        return images[:, None], labels

    view = View((0.2860,), (0.3530,), options.image_size, options.repeat(1))
    augmented = replace(view, crop=True, flip=True)
    return _in_memory(name, (*part("train"), augmented), (*part("t10k"), view), 10, options)


def _cifar(name: str, folder: Path, options: _Options) -> Data:
    train, test = open_folder(folder / "train"), open_folder(folder / "test")
    check_same_classes(train, test)
    view = View(_IMAGENET_MEAN, _IMAGENET_STD, options.image_size, options.repeat(3))
    augmented = replace(view, crop=True, flip=True)
    parts = (*_decode(train, options), augmented), (*_decode(test, options), view)
    return _in_memory(name, *parts, len(train.classes), options)


def _decode(folder: Any, options: _Options) -> tuple[Tensor, Tensor]:
    """All of a folder's images of one size, decoded once: uint8 ``(N, 3, H, W)``, and labels.

    Decoding again every epoch would cost about as much as training a ResNet-20 on a GPU.
    """
    images, labels = [], []
    for index in options.choose(folder.targets):
        path, label = folder.samples[index]
        images.append(pixels(folder.loader(path)))
        labels.append(label)
        if images[-1].shape != images[0].shape:
            raise InvalidData(
                f"{path} is {images[-1].shape[2]}×{images[-1].shape[1]}, others are "
                f"{images[0].shape[2]}×{images[0].shape[1]}; use imagefolder:PATH for images of different sizes"
            )
    return torch.stack(images), torch.tensor(labels)


def _folder(name: str, folder: Path, options: _Options) -> Data:
    held_out = next((folder / part for part in ("val", "test") if (folder / part).is_dir()), None)
    if held_out is None:
        raise InvalidData(f"{folder} has neither val/ nor test/; imagefolder:PATH needs train/<class>/ and one of them")
    size = options.image_size or _DEFAULT_FOLDER_SIZE
    view = View(_IMAGENET_MEAN, _IMAGENET_STD, size, options.repeat(3))
    train = open_folder(folder / "train", replace(view, flip=True).image)
    test = open_folder(held_out, view.image)
    check_same_classes(train, test)
    return Data(name, *_loaders(train, test, options), len(train.classes), (3, *size))


def _in_memory(
    name: str,
    train: tuple[Tensor, Tensor, View],
    test: tuple[Tensor, Tensor, View],
    classes: int,
    options: _Options,
) -> Data:
    parts = [Images(images, labels, view) for images, labels, view in (train, test)]
    channels, height, width = parts[1][0][0].shape
    return Data(name, *_loaders(parts[0], parts[1], options), classes, (channels, height, width))


def _loaders(train: Any, test: Any, options: _Options) -> tuple[DataLoader[Any], DataLoader[Any]]:
    train, test = (Subset(part, options.choose(part.targets)) for part in (train, test))
    return (
        DataLoader(
            train,
            options.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(options.seed),
            drop_last=len(train) > options.batch_size and len(train) % options.batch_size == 1,
            num_workers=options.workers,
            collate_fn=batched,
        ),
        DataLoader(test, options.batch_size, num_workers=options.workers, collate_fn=batched),
    )


def _custom(name: str, path: Path, function: str, options: _Options) -> Data:
    make = getattr(_import_file(path), function, None)
    if not callable(make):
        raise InvalidData(f"{path} has no function {function!r}; define one that returns (train, test) loaders")
    try:
        made = make()
    except Exception as error:
        raise InvalidData(f"{name} raised {type(error).__name__}: {error}") from error
    pair = isinstance(made, tuple | list) and len(made) in (2, 3)
    if not (pair and all(isinstance(loader, DataLoader) for loader in made[:2])):
        raise InvalidData(f"{name} must return (train, test) or (train, test, classes), two DataLoaders; got {made!r}")
    shape, classes = _inspect(name, made[0], made[1], made[2] if len(made) == 3 else None)
    if options.limit is not None:
        raise InvalidData(f"limit doesn't reach into {name}; limit the examples in the function itself")
    wanted = (options.channels or shape[0], *(options.image_size or shape[1:]))
    if wanted != shape:
        raise InvalidData(f"{name} gives images of shape {shape}, the network needs {wanted}; resize in the function")
    return Data(name, made[0], made[1], classes, shape)


def _import_file(path: Path) -> ModuleType:
    import importlib.util
    import sys

    if not path.is_file():
        raise InvalidData(f"no file {path}; data of your own is named path/to/file.py:FUNCTION")
    module_name = f"_widthwise_data_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py file has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling (worker processes) look the module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise InvalidData(f"{path} can't be imported: {type(error).__name__}: {error}") from error
    return module


def _inspect(
    name: str, train: DataLoader[Any], test: DataLoader[Any], classes: int | None
) -> tuple[tuple[int, int, int], int]:
    """Sample shape, and the number of classes where the data set doesn't say: one pass over the test labels."""
    batch = next(iter(test), None)
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        raise InvalidData(f"{name}: test batches must be pairs of tensors (images, labels), got {type(batch).__name__}")
    if batch[0].ndim != 4:
        raise InvalidData(f"{name}: images must be (N, C, H, W), got shape {tuple(batch[0].shape)}")
    if classes is None and hasattr(train.dataset, "classes"):
        classes = len(train.dataset.classes)
    if classes is None:
        classes = 1 + max(int(labels.max()) for _, labels in test)
    channels, height, width = batch[0].shape[1:]
    return (channels, height, width), classes
