"""Image sets as uint8 tensors in memory, and shuffled, distorted batches of them.

Images are what the files hold: uint8, (N, C, H, W), 0 to 255. Labels are int64, (N,). Scaling to floats is
the model's first line, so that no caller can get it wrong. To train on other pictures, return an `ImageData`
of them from `load_data`. MNIST is read here, everything else in modules that a copy can do without.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_MATRIX, MAX_SHIFT = 0.14, 2.0  # see `distort`; chosen on a hold-out of MNIST
# The MD5 of MNIST's files, unpacked: the training set's two, the test set's two.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DataError(Exception):
    """The data cannot be had as asked for. The message says what, where, and what to do."""


@dataclass(frozen=True)
class ImageData:
    """A training set and a set to evaluate on: images uint8 (N, C, H, W), labels int64 (N,)."""

    name: str  # what it really is: "mnist-format" for other pictures in MNIST's files
    classes: list[str]  # the K names; label k is classes[k]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> "ImageData":
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)})


def load_data(dataset="auto", data_dir: str | Path = "data", val_size=0, image_size=28) -> ImageData:
    """Load a data set: a name in sources.py, or a folder of pictures.

    With `val_size` so many training images are held out and take the place of the test set: the same ones
    for every seed, so that runs can be compared image by image.

    Raises DataError where the data is missing or damaged, or `val_size` leaves nothing to train on.
    """
    name, classes, images, labels = load_split(dataset, data_dir, True, image_size)
    if val_size >= len(images):
        raise DataError(f"--val_size {val_size} leaves nothing of {len(images)} images. Hold out fewer.")
    if val_size:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        images, labels = images[order], labels[order]
        test_images, images = images[:val_size], images[val_size:]
        test_labels, labels = labels[:val_size], labels[val_size:]
    else:
        test_name, _, test_images, test_labels = load_split(name, data_dir, False, image_size)
        name = name if name == test_name else "mnist-format"
    shape, test_shape = list(images.shape[1:]), list(test_images.shape[1:])
    if shape != test_shape or min(shape[1:]) < 4:
        raise DataError(
            f"{data_dir}: images of {shape} and {test_shape}, not of one shape, 4 pixels or more"
        )
    return ImageData(name, classes, images, labels, test_images, test_labels)


def load_split(dataset: str, data_dir: str | Path, train: bool, image_size=28, download=True):
    """One half of a data set: what it really is, its classes, images (N, C, H, W), labels (N,).

    "auto" is "mnist", or with a warning "synthetic" where there is no trace of MNIST and no way to it. The
    files give shape and classes; a folder's pictures are resized to `image_size` x `image_size`.

    Raises DataError where a file is missing or damaged, or images and labels do not belong together.
    """
    raw = Path(data_dir) / "MNIST" / "raw"
    at_hand = all(os.path.exists(raw / file) for file in MNIST_MD5)
    if dataset == "mnist-format" or (dataset in ("auto", "mnist") and at_hand):
        return load_mnist(raw, train)
    try:
        from sources import datasets
        from sources.errors import SourceError
    except ModuleNotFoundError as error:
        if error.name != "sources":
            raise
        raise DataError("The folder sources is missing. Copy it too, or choose another data set.") from error
    try:
        name = datasets.resolve_dataset(dataset, Path(data_dir), download)
        if name == "mnist":
            return load_mnist(raw, train)
        return name, *datasets.read_dataset(name, Path(data_dir), train, image_size)
    except SourceError as error:
        raise DataError(str(error)) from error


def load_mnist(raw: Path, train: bool) -> tuple[str, list[str], Tensor, Tensor]:
    """One half of MNIST, or under the name "mnist-format" of other pictures in files of its names."""
    images_file, labels_file = (raw / file for file in MNIST_MD5 if file.startswith("train") == train)
    (images, own_images), (labels, own_labels) = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels) or labels.max() > 9:
        found = f"{len(images)} images, {len(labels)} labels up to {labels.max()}, not as many up to 9"
        raise DataError(f"{images_file}, {labels_file.name}: {found}. Delete both to download them again.")
    name = "mnist" if own_images and own_labels else "mnist-format"
    return name, [str(digit) for digit in range(10)], images[:, None], labels.long()


def read_idx(path: Path, dimensions: int) -> tuple[Tensor, bool]:
    """The uint8 values of an IDX file, and whether it is MNIST's own, by its MD5.

    An IDX file is a big-endian int32 magic number, 0x800 (for uint8) + dimensions, an int32 size for each
    dimension, and the values. (torchvision has a reader too; importing it would take longer than all else
    before training, and 0.2 GB.)

    Raises DataError where it is of another format, cut short, or as large as MNIST's own and not the same.
    """
    cure = "Choose another --data_dir, or delete the file and run train.py to download it."
    try:
        content = bytearray(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. {cure}") from error
    magic, *sizes = (int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(dimensions + 1))
    header, size = 4 * (dimensions + 1), math.prod(sizes)
    if magic != 0x800 + dimensions or len(content) != header + size or size == 0:
        found = f"{len(content):,} bytes, magic number {magic}, sizes {sizes}"
        raise DataError(f"{path} is damaged, or no IDX file of {dimensions} dimensions: {found}. {cure}")
    genuine = hashlib.md5(content, usedforsecurity=False).hexdigest() == MNIST_MD5[path.name]
    if not genuine and sizes[0] == (60_000 if path.name.startswith("train") else 10_000):
        raise DataError(f"{path} is damaged, or another data set of MNIST's size: its MD5 differs. {cure}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(sizes), genuine


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of uint8 images (N, C, H, W), one a channel, in 0..255.

    Exact, from a count of each value. MNIST's training set gives 33.32 and 78.57 (0.1307 and 0.3081 of 255).
    """
    values = torch.arange(256, dtype=torch.float64)
    counts = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    shares = torch.stack(counts).double() / images[:, 0].numel()  # (C, 256)
    mean = shares @ values
    std = (shares @ values.square() - mean.square()).clamp(min=1e-6).sqrt()  # never a division by 0
    return mean.float(), std.float()


def batches(
    images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator, augment=0.0, rank=0, world=1
) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield all images once in random order: (images (B, C, H, W), labels (B,), share).

    B is `batch_size`, in the last batch what is left. Of `world` processes each gets its part of a batch;
    `share` is that part, times `world`: 1.0 if all have as many. With `augment` above 0 images are float32,
    each distorted with up to so much of full strength. All random numbers of the epoch are drawn at once and
    on the CPU: the same on every device and in every process, and no step waits for them.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    strengths = augment * (2 * torch.rand(len(images), 2, 3, generator=generator) - 1)
    matrices = distortions(strengths, *images.shape[2:]).to(images.device)
    for picks, moves in zip(order.split(batch_size), matrices.split(batch_size)):
        if len(picks) < world:  # nobody goes without
            picks, moves = picks.repeat(world), moves.repeat(world, 1, 1)
        own, moves = picks.tensor_split(world)[rank], moves.tensor_split(world)[rank]
        part = distort(images[own], moves) if augment else images[own]
        yield part, labels[own], len(own) * world / len(picks)


def distortions(strengths: Tensor, height: int, width: int) -> Tensor:
    """Matrices (N, 2, 3) for `distort` that shift, turn, scale and shear by strengths (N, 2, 3) in -1..1.

    A matrix takes each place of the result, from -1 to 1 across the image, to where its pixel comes from.
    Its last column shifts, strength 1 by MAX_SHIFT pixels to the left and up.
    """
    full = [[MAX_MATRIX, MAX_MATRIX, 2 * MAX_SHIFT / side] for side in (width, height)]
    return torch.eye(2, 3) + strengths * torch.tensor(full)


def distort(images: Tensor, matrices: Tensor) -> Tensor:
    """Move the pixels of each image (B, C, H, W) by its matrix (B, 2, 3): float32, 0 from outside."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images.float(), grid, align_corners=False)
