"""Images as they are stored (idx files, class folders) and as a network takes them."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from widthwise.luts.errors import BadInput

__all__ = [
    "Images",
    "InvalidData",
    "Size",
    "View",
    "batched",
    "check_same_classes",
    "open_folder",
    "pixels",
    "read_idx",
]

Size = tuple[int, int]
"""Height and width in pixels."""

_CROP_PADDING = 4


class InvalidData(BadInput, ValueError):
    """Data that is unknown, missing, corrupt, or cannot be given the shape asked for."""


@dataclass(frozen=True)
class View:
    """How stored images become network input: light augmentation, resize, normalise, repeat grey."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: Size | None = None
    repeat: int = 1
    crop: bool = False
    flip: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Float ``(N, repeat·C, H, W)`` from stored ``(N, C, h, w)``; uint8 counts as 0–1."""
        unit = 255.0 if images.dtype == torch.uint8 else 1.0
        images = self._augmented(images).float()
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = torch.nn.functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        mean, std = (torch.tensor(values).mul(unit).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return images.sub(mean).div_(std).repeat(1, self.repeat, 1, 1)

    @property
    def plain(self) -> View:
        """The same without augmentation."""
        return replace(self, crop=False, flip=False)

    def _augmented(self, images: Tensor) -> Tensor:
        """Each image shifted by up to 4 pixels each way, black coming in, and every second one mirrored.

        All in one look-up on what is stored: a training loader's time goes here.
        """
        if not (self.crop or self.flip):
            return images
        count, channels, height, width = images.shape
        rows, columns = torch.arange(height).repeat(count, 1), torch.arange(width).repeat(count, 1)
        if self.crop:
            images = torch.nn.functional.pad(images, (_CROP_PADDING,) * 4)
            top, left = torch.randint(0, 2 * _CROP_PADDING + 1, (2, count, 1))
            rows, columns = rows + top, columns + left
        if self.flip:
            mirrored = torch.rand(count) < 0.5
            columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        pixels_of = rows[:, :, None] * images.shape[-1] + columns[:, None, :]
        flat = pixels_of.view(count, 1, -1).expand(-1, channels, -1)
        return images.flatten(2).gather(2, flat).view(count, channels, height, width)

    def image(self, image: Any) -> Tensor:
        """The same for one PIL image."""
        return self(pixels(image)[None])[0]


class Images(Dataset[tuple[Tensor, int]]):
    """Images held in memory, viewed a batch at a time.

    One call per batch instead of one per image keeps the loader at a few µs per image; a chain of
    torchvision transforms per image would cost as much as the forward pass of a small network.
    """

    def __init__(self, images: Tensor, labels: Tensor, view: View) -> None:
        self.images, self.labels, self.view = images, labels.long(), view

    @property
    def targets(self) -> list[int]:
        """All labels, as torchvision's data sets name them."""
        return self.labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.__getitems__([index])
        return images[0], int(labels[0])

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """What torch's loader calls with a whole batch of indices, where a data set has it; see :func:`batched`."""
        chosen = torch.as_tensor(indices)
        return self.view(self.images[chosen]), self.labels[chosen]

    @property
    def plain(self) -> Images:
        """The same images without augmentation."""
        return Images(self.images, self.labels, self.view.plain)


def batched(fetched: Any) -> Any:
    """A loader's ``collate_fn``: batches of :class:`Images` as they come, of other data sets as torch makes them."""
    return fetched if isinstance(fetched, tuple) else default_collate(fetched)


def read_idx(path: Path, axes: int, help: str) -> Tensor:
    """The unsigned bytes of a gzipped idx file (magic 0, 0, 8, axes; big-endian sizes; bytes), uint8."""
    import gzip

    import numpy as np

    if not path.is_file():
        raise InvalidData(f"no file {path}; {help}")
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidData(f"{path} is not a whole gzip file ({error}); {help}") from error
    header = 4 + 4 * axes
    if len(content) < header or content[:4] != bytes([0, 0, 8, axes]):
        raise InvalidData(f"{path} is no idx file of bytes with {axes} axes (it begins {content[:4].hex()}); {help}")
    sizes = struct.unpack(f">{axes}I", content[4:header])
    if len(content) - header != math.prod(sizes):
        raise InvalidData(f"{path} holds {len(content) - header} bytes, its header promises {sizes}; {help}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(sizes).copy())


def open_folder(folder: Path, transform: Callable[[Any], Tensor] | None = None) -> Any:
    """torchvision's ImageFolder, with errors that name what is wrong."""
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(str(folder), transform=transform, loader=_open_image)
    except OSError as error:  # FileNotFoundError: no such folder, no class folder in it, or a class without images
        reason = str(error).splitlines()[0]
        raise InvalidData(f"no images in {folder}: {reason} It needs {folder.name}/<class>/ with images") from error


def check_same_classes(train: Any, test: Any) -> None:
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InvalidData(f"{train.root} and {test.root} differ in the classes {', '.join(odd[:5])}; make them equal")


def _open_image(path: str) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidData(f"{path} is no readable image ({error}); replace or delete it") from error


def pixels(image: Any) -> Tensor:
    """uint8 ``(3, H, W)`` of a PIL image."""
    import numpy as np

    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
