"""Image sets as uint8 tensors in memory, and shuffled, distorted batches of them.

Images are what the files hold: uint8, (N, C, H, W), 0 to 255. Labels are int64, (N,). Scaling to floats is
the model's first line, so that no caller can get it wrong. To train on other pictures, return an `ImageData`
of them from `load_data`.
"""

import hashlib
import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from http.client import HTTPException
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_MATRIX, MAX_SHIFT = 0.14, 2.0  # see `distort`; chosen on a hold-out of MNIST
DOWNLOAD_STALL = 10  # seconds without an answer after which a mirror is given up

# The names in torchvision.datasets, which know the sources of each, and where below --data_dir they are.
TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": ("KMNIST", "KMNIST/raw"),
    "qmnist": ("QMNIST", "QMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}
DATASETS = ("auto", *TORCHVISION, "synthetic")  # or a folder of pictures
# The MD5 of MNIST's files, unpacked: the training set's two, the test set's two.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DataError(Exception):
    """The data cannot be had as asked for. The message says what, where, and what to do."""


class DownloadError(Exception):
    """No mirror gave the files."""


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
        tensors = {name: value.to(device) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **tensors)


def load_data(dataset="auto", data_dir: str | Path = "data", val_size=0, image_size=28) -> ImageData:
    """Load a data set: a name in DATASETS, or a folder of pictures.

    With `val_size` so many training images are held out and take the place of the test set: the same ones
    for every seed, so that runs can be compared image by image.

    Raises DataError where the data is missing or damaged, or `val_size` leaves nothing to train on.
    """
    name = find_dataset(dataset, data_dir)
    name, classes, train_images, train_labels = load_split(name, data_dir, True, image_size)
    if val_size:
        count = len(train_images)
        if val_size >= count:
            raise DataError(
                f"--val_size {val_size} leaves nothing of {count} images to train on. Hold out fewer."
            )
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        held_out, kept = order[:val_size], order[val_size:]
        test_images, test_labels = train_images[held_out], train_labels[held_out]
        train_images, train_labels = train_images[kept], train_labels[kept]
    else:
        test_name, _, test_images, test_labels = load_split(name, data_dir, False, image_size)
        name = name if name == test_name else "mnist-format"
    shapes = tuple(train_images.shape[1:]), tuple(test_images.shape[1:])
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{data_dir}: training and test images differ in shape, {shapes}. Use sets that match."
        )
    return ImageData(name, classes, train_images, train_labels, test_images, test_labels)


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
    full = [
        [MAX_MATRIX, MAX_MATRIX, 2 * MAX_SHIFT / width],
        [MAX_MATRIX, MAX_MATRIX, 2 * MAX_SHIFT / height],
    ]
    return torch.eye(2, 3) + strengths * torch.tensor(full)


def distort(images: Tensor, matrices: Tensor) -> Tensor:
    """Move the pixels of each image (B, C, H, W) by its matrix (B, 2, 3): float32, 0 from outside."""
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images.float(), grid, align_corners=False)


def find_dataset(dataset: str, data_dir: str | Path) -> str:
    """The data set to load, downloaded now if it is missing.

    "auto" is "mnist", or with a warning "synthetic", only where there is no trace of MNIST and no way to it.

    Raises DataError where the one asked for is not to be had.
    """
    if dataset in ("synthetic", "mnist-format"):
        return dataset
    if dataset not in DATASETS:
        if not Path(dataset).is_dir():
            raise DataError(f"--dataset {dataset} is neither a folder nor one of {', '.join(DATASETS)}")
        return os.path.abspath(dataset)  # which no other data set is called
    name = "mnist" if dataset == "auto" else dataset
    folder = Path(data_dir) / TORCHVISION[name][1]
    try:
        if Path(data_dir).exists() and not Path(data_dir).is_dir():
            raise NotADirectoryError(f"--data_dir {data_dir} is not a folder")
        files = {file.name for file in folder.glob("*")}
        if name == "mnist":
            missing = [folder / file for file in MNIST_MD5 if file not in files]
        else:
            missing = [] if any(not file.endswith(".gz") for file in files) else [folder]
        if missing:
            download(name, Path(data_dir), str(missing[0]))
    except (OSError, DownloadError) as error:
        if dataset == "auto" and isinstance(error, DownloadError) and not files:
            print(f"WARNING: {error}", file=sys.stderr)
            print("WARNING: using digits drawn by a program (synthetic) instead of MNIST", file=sys.stderr)
            return "synthetic"
        cure = f"Put its files into {folder}, choose another --data_dir, or take --dataset synthetic."
        raise DataError(f"{error}. {cure}") from error
    return name


def source(name: str) -> type:
    """A class of torchvision.datasets, imported only here because that is slow."""
    import torchvision.datasets

    return getattr(torchvision.datasets, TORCHVISION[name][0])


def download(name: str, data_dir: Path, missing: str) -> None:
    """Put the missing files of a data set into `data_dir`: whole or not at all, and without hanging.

    Raises DownloadError where no mirror gave them, OSError where they could not be written.
    """
    kind, problems = source(name), []
    packed = list((data_dir / TORCHVISION[name][1]).glob("*.gz"))
    data_dir.mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_STALL)  # torchvision has no limit of its own
    try:
        for mirror in getattr(kind, "mirrors", [name]):
            of_mirror = type(kind.__name__, (kind,), {"mirrors": [mirror]})
            with tempfile.TemporaryDirectory(dir=data_dir) as scratch, redirect_stdout(sys.stderr):
                (Path(scratch) / TORCHVISION[name][1]).mkdir(parents=True)
                for file in packed:  # used where they are what they should be
                    shutil.copy(file, Path(scratch) / TORCHVISION[name][1])
                try:
                    for train in (True, False):
                        of_mirror(scratch, train=train, download=True)
                except (RuntimeError, URLError, TimeoutError, ConnectionError, HTTPException) as error:
                    problems.append(f"{mirror}: {' '.join(str(error).split())}")
                    continue
                for file in Path(scratch).rglob("*"):
                    target = data_dir / file.relative_to(scratch)
                    if file.is_file() and file.suffix != ".gz" and not target.exists():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        file.replace(target)
                return
    finally:
        socket.setdefaulttimeout(patience)
    raise DownloadError(f"{missing} is missing and could not be downloaded ({'; '.join(problems)})")


def load_split(name: str, data_dir: str | Path, train: bool, image_size=28):
    """One half of a data set by `find_dataset`: real name, classes, images (N, C, H, W), labels (N,).

    The files give shape and classes; a folder's pictures are resized to `image_size` x `image_size`.

    Raises DataError where a file is damaged, or images and labels do not belong together.
    """
    if name in ("auto", "mnist", "mnist-format"):
        return load_mnist(Path(data_dir) / "MNIST" / "raw", train)
    if name == "synthetic":
        draw_digits = beside("synthetic").draw_digits
        images, labels = draw_digits(60_000, seed=0) if train else draw_digits(10_000, seed=1)
        return name, [str(digit) for digit in range(10)], images, labels
    if name not in TORCHVISION:
        return beside("pictures").load_folder(Path(name), train, image_size)
    try:
        part = source(name)(data_dir, train=train)
    except Exception as error:  # torchvision raises what it likes at damaged files
        folder = Path(data_dir) / TORCHVISION[name][1]
        raise DataError(f"{folder} is missing or damaged. Delete it; train.py downloads it.") from error
    images, labels = torch.as_tensor(part.data), torch.as_tensor(part.targets)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    labels = labels if labels.dim() == 1 else labels[:, 0]  # QMNIST's have more to say
    if len(images) != len(labels) or labels.max() >= len(part.classes):
        folder = Path(data_dir) / TORCHVISION[name][1]
        raise DataError(f"{folder}: images and labels do not match. Delete it; train.py downloads it.")
    return name, [words.split(" - ")[0] for words in part.classes], images, labels.long()


def beside(name: str) -> ModuleType:
    """A module of ours that nobody needs who trains on other data: imported only where it is used."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(f"{error}: copy {name}.py too, or choose another --dataset") from error


def load_mnist(raw: Path, train: bool) -> tuple[str, list[str], Tensor, Tensor]:
    """One half of MNIST, or under the name "mnist-format" of other pictures in files of its names."""
    images_file, labels_file = (raw / file for file in MNIST_MD5 if file.startswith("train") == train)
    (images, own_images), (labels, own_labels) = read_idx(images_file, 3), read_idx(labels_file, 1)
    if len(images) != len(labels):
        counts = f"{len(images)} images, {labels_file.name} {len(labels)} labels"
        raise DataError(f"{images_file} has {counts}. Delete both and run again to download them.")
    if labels.max() > 9:
        raise DataError(
            f"{labels_file} has a label {labels.max()}, not 0 to 9. Delete it to download it again."
        )
    name = "mnist" if own_images and own_labels else "mnist-format"
    return name, [str(digit) for digit in range(10)], images[:, None], labels.long()


def read_idx(path: Path, dimensions: int) -> tuple[Tensor, bool]:
    """The uint8 values of an IDX file, and whether it is MNIST's own, by its MD5.

    An IDX file is a big-endian int32 magic number, 0x800 (for uint8) + dimensions, an int32 size for each
    dimension, and the values. (torchvision has a reader too; importing it would take longer than all else
    before training, and 0.2 GB.)

    Raises DataError where it is of another format, cut short, or as large as MNIST's own and not the same.
    """
    cure = "Delete it and run again to download it."
    try:
        content = bytearray(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there. Choose another --data_dir; train.py downloads it.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. {cure}") from error
    magic, *sizes = (int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(dimensions + 1))
    if magic != 0x800 + dimensions:
        kind = "images" if dimensions == 3 else "labels"
        raise DataError(
            f"{path} is no IDX file of {kind}: it starts with {magic}, not {0x800 + dimensions}. {cure}"
        )
    header = 4 * (dimensions + 1)
    if len(content) != header + math.prod(sizes) or 0 in sizes:
        promised = header + math.prod(sizes)
        raise DataError(
            f"{path} is damaged: {len(content):,} bytes, its header promises {promised:,}. {cure}"
        )
    genuine = hashlib.md5(content, usedforsecurity=False).hexdigest() == MNIST_MD5[path.name]
    if not genuine and sizes[0] == (60_000 if path.name.startswith("train") else 10_000):
        raise DataError(f"{path} is damaged, or another data set of MNIST's size: its MD5 differs. {cure}")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(sizes), genuine
