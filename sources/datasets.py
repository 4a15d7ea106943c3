"""The data sets by name: which there are, how they are downloaded, and all but MNIST read by torchvision.

Used by data.py where MNIST is not at hand, or not what was asked for.
"""

import os
import shutil
import socket
import sys
import tempfile
from contextlib import redirect_stdout
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from data import MNIST_MD5, DataError, beside, load_mnist

DOWNLOAD_STALL = 10  # seconds without an answer after which a mirror is given up

# The classes in torchvision.datasets, which know the sources of each, and where below --data_dir they are.
TORCHVISION = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": ("KMNIST", "KMNIST/raw"),
    "qmnist": ("QMNIST", "QMNIST/raw"),
    "cifar10": ("CIFAR10", "cifar-10-batches-py"),
}
NAMES = ("auto", *TORCHVISION, "synthetic")  # or a folder of pictures


class DownloadError(Exception):
    """No mirror gave the files."""


def find(dataset: str, data_dir: Path) -> str:
    """The data set that is meant, downloaded now if it is missing, or the absolute path of a folder.

    Raises DataError where it is not to be had.
    """
    if dataset == "synthetic":
        return dataset
    if dataset not in NAMES:
        if not Path(dataset).is_dir():
            raise DataError(f"--dataset {dataset} is neither a folder nor one of {', '.join(NAMES)}")
        return os.path.abspath(dataset)  # which no other data set is called
    name = "mnist" if dataset == "auto" else dataset
    folder = data_dir / TORCHVISION[name][1]
    try:
        if data_dir.exists() and not data_dir.is_dir():
            raise NotADirectoryError(f"--data_dir {data_dir} is not a folder")
        files = {file.name for file in folder.glob("*")}
        if name == "mnist":
            missing = [folder / file for file in MNIST_MD5 if file not in files]
        else:
            missing = [] if any(not file.endswith(".gz") for file in files) else [folder]
        if missing:
            download(name, data_dir, str(missing[0]))
    except (OSError, DownloadError) as error:
        if dataset == "auto" and isinstance(error, DownloadError) and not files:
            print(f"WARNING: {error}", file=sys.stderr)
            print("WARNING: using digits drawn by a program (synthetic) instead of MNIST", file=sys.stderr)
            return "synthetic"
        cure = f"Put its files into {folder}, choose another --data_dir, or take --dataset synthetic."
        raise DataError(f"{error}. {cure}") from error
    return name


def torchvision_class(name: str) -> type:
    import torchvision.datasets  # here, because it is slow, and the stand-in does without

    return getattr(torchvision.datasets, TORCHVISION[name][0])


def download(name: str, data_dir: Path, missing: str) -> None:
    """Put the missing files of a data set into `data_dir`: whole or not at all, and without hanging.

    Raises DownloadError where no mirror gave them, OSError where they could not be written.
    """
    kind, problems = torchvision_class(name), []
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


def load_split(dataset: str, data_dir: Path, train: bool, image_size: int, download: bool):
    """What load_split of data.py promises, for all but MNIST that is at hand."""
    name = find(dataset, data_dir) if download else dataset
    if name == "mnist":
        return load_mnist(data_dir / "MNIST" / "raw", train)
    if name == "synthetic":
        draw_digits = beside("sources.drawn").draw_digits
        images, labels = draw_digits(60_000, seed=0) if train else draw_digits(10_000, seed=1)
        return name, [str(digit) for digit in range(10)], images, labels
    if name not in TORCHVISION:
        return beside("sources.photos").load_folder(Path(name), train, image_size)
    return load_torchvision(name, data_dir, train)


def load_torchvision(name: str, data_dir: Path, train: bool) -> tuple[str, list[str], Tensor, Tensor]:
    place = TORCHVISION[name][1]
    try:
        part = torchvision_class(name)(data_dir, train=train)
    except Exception as error:  # torchvision raises what it likes at damaged files
        raise DataError(
            f"{data_dir / place} is missing or damaged. Delete it; train.py downloads it."
        ) from error
    images, labels = torch.as_tensor(part.data), torch.as_tensor(part.targets)
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    labels = labels if labels.dim() == 1 else labels[:, 0]  # QMNIST's have more to say
    if len(images) != len(labels) or labels.max() >= len(part.classes):
        raise DataError(
            f"{data_dir / place}: images and labels do not match. Delete it; train.py downloads it."
        )
    return name, [words.split(" - ")[0] for words in part.classes], images, labels.long()
