"""Data sets by name: which ones there are, how they are downloaded and read.

torchvision knows where each set is and what its files hold. It is imported inside functions because that
takes more than a second, and synthetic digits and folders of pictures do without its sets.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from sources.drawn import draw_digits
from sources.errors import NotDownloadedError, SourceError, warn
from sources.folders import read_folder

DEFAULT_DATA_DIR = "data"  # the default of the programs' --data_dir
DOWNLOAD_STALL = 10  # seconds to wait for a silent mirror

# name -> the class in torchvision.datasets, and the folder below `data_dir` that its files are unpacked to
TORCHVISION_SETS = {
    "mnist": ("MNIST", "MNIST/raw"),
    "fashion_mnist": ("FashionMNIST", "FashionMNIST/raw"),
    "kmnist": ("KMNIST", "KMNIST/raw"),
    "qmnist": ("QMNIST", "QMNIST/raw"),
    "cifar10": ("CIFAR10", "."),
}
DATASET_NAMES = ("auto", *TORCHVISION_SETS, "synthetic")  # a folder's path is accepted, too


class DownloadError(SourceError):
    """No mirror gave all files of a data set."""


def resolve_dataset(dataset: str, data_dir: Path, download: bool = True, train: bool = True) -> str:
    """Return the name of the data set that is meant, after downloading what is missing.

    Without `train`, MNIST's test set is enough.

    "auto" means "mnist". It becomes "synthetic", with a warning, if no mirror gives MNIST and `data_dir`
    holds nothing, or is the default and has no trace of MNIST. A folder becomes its absolute path, so that
    it cannot be taken for a name.

    Raises SourceError if the data set is unknown, or if files are missing and cannot be downloaded. With
    `download=False` nothing is downloaded or created.
    """
    if dataset in ("synthetic", "mnist-format"):  # the second one is what a run found in MNIST's files
        return dataset
    if dataset not in DATASET_NAMES:
        folder = os.path.abspath(os.path.expanduser(dataset))
        if os.path.isfile(folder):
            raise SourceError(f"{dataset} is a file. Unpack it, and name the folder of the pictures.")
        if not os.path.isdir(folder):
            moved = " If it has moved, name the new place." if os.path.isabs(dataset) else ""
            known = ", ".join(DATASET_NAMES)
            raise SourceError(f"--dataset {dataset} is neither a folder nor one of {known}.{moved}")
        return folder
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise SourceError(f"{data_dir} is not a folder. Choose another --data_dir.")

    name = "mnist" if dataset == "auto" else dataset
    root = data_dir / TORCHVISION_SETS[name][1]
    files, halves = expected_files(name), (True, False) if train else (False,)
    if name == "mnist":
        if all(path.exists() for half in halves for path in find_mnist(data_dir, half)):
            return name
        files = files if train else [file for file in files if file.startswith("t10k")]
    missing = [root / file for file in files if not os.path.lexists(root / file)]
    if not missing:
        return name
    place = missing[0].parent
    cure = f"Put its files into {place}, name the folder with --data_dir, or choose another data set."
    found = visible_names(data_dir)
    if found:
        cure += f" ({data_dir} holds {', '.join(found[:5])}{' ...' * (len(found) > 5)}, which is not that."
        cure += " The folder of your own pictures is for --dataset.)"
    if not download:
        raise NotDownloadedError(f"{missing[0]} is missing. {cure}")
    has_trace = any(visible_names(root)) or any("ubyte" in file for file in found)
    try:
        download_dataset(name, data_dir)
    except (DownloadError, OSError) as error:
        problem = f"{missing[0]} is missing, and downloading it failed: {cause(error)}."
        may_draw = not has_trace and (not found or data_dir == Path(DEFAULT_DATA_DIR))
        if dataset == "auto" and isinstance(error, DownloadError) and may_draw:
            warn(problem)
            warn("using synthetic digits, drawn by a program, instead of MNIST.")
            return "synthetic"
        raise SourceError(f"{problem} {cure}") from error
    return name


def find_mnist(data_dir: Path, train: bool) -> list[Path]:
    """The files of MNIST's images and labels: where torchvision has them or a folder off, packed or not."""
    paths = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{'train' if train else 't10k'}-{kind}-ubyte"
        names = [n + end for end in ("", ".gz") for n in (name, name.replace("-idx", ".idx"))]
        places = [data_dir / folder / n for folder in ("MNIST/raw", "MNIST", "raw", "") for n in names]
        paths.append(next(filter(Path.exists, places), places[0]))
    return paths


def visible_names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name[0] != ".") if folder.is_dir() else []


def read_dataset(
    name: str, data_dir: Path, train: bool, image_size: int, channels: int | None = None, keep: bool = True
) -> tuple[list[str], Tensor, Tensor]:
    """Read the training or the test half of a data set.

    Args:
        name: what `resolve_dataset` returned.
        image_size, channels: what a folder's pictures are converted to: height and width, and 1 (grey) or 3,
            or None for what they have. Other data sets keep their own.
        keep: whether a folder's decoded pictures may be written to its cache.

    Returns the K class names, images uint8 (N, C, H, W) and labels int64 (N,). Raises SourceError if files
    are missing or damaged.
    """
    if name == "synthetic":
        images, labels = draw_digits(60_000, seed=0) if train else draw_digits(10_000, seed=1)
        return [str(digit) for digit in range(10)], images, labels
    if name in TORCHVISION_SETS:
        return read_torchvision(name, data_dir, train)
    return read_folder(Path(name), train, image_size, channels, keep)


def read_torchvision(name: str, data_dir: Path, train: bool) -> tuple[list[str], Tensor, Tensor]:
    folder = (data_dir / TORCHVISION_SETS[name][1] / expected_files(name)[0]).parent
    cure = "Delete it to download it again."
    try:
        split = torchvision_class(name)(data_dir, train=train)
    except Exception as error:  # torchvision raises many types for damaged files
        raise SourceError(f"{folder} is missing or damaged. {cure}") from error
    images, labels = torch.as_tensor(split.data), torch.as_tensor(split.targets)
    # To (N, C, H, W).
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    labels = labels if labels.dim() == 1 else labels[:, 0]  # QMNIST has the class, the writer and more
    if len(images) != len(labels) or labels.max() >= len(split.classes):
        raise SourceError(f"The images and labels in {folder} do not match. {cure}")
    classes = [title.split(" - ")[0] for title in split.classes]  # QMNIST's are "0 - zero", "1 - one" ...
    return classes, images, labels.long()


def torchvision_class(name: str) -> type:
    import torchvision.datasets

    return getattr(torchvision.datasets, TORCHVISION_SETS[name][0])


def expected_files(name: str) -> list[str]:
    """The unpacked files of a data set, relative to its folder in TORCHVISION_SETS."""
    if name == "cifar10":
        cifar = torchvision_class(name)
        files = [file for file, _ in cifar.train_list + cifar.test_list] + [cifar.meta["filename"]]
        return [f"{cifar.base_folder}/{file}" for file in files]
    return [Path(url).stem for url, _ in list_archives(name)[0]]  # without .gz


def list_archives(name: str) -> list[list[tuple[str, str]]]:
    """The (URL, MD5) of each packed file of a data set: one such list per mirror."""
    source = torchvision_class(name)
    if name == "cifar10":
        return [[(source.url, source.tgz_md5)]]
    if name == "qmnist":
        return [source.resources["train"] + source.resources["test"]]
    return [[(mirror + file, md5) for file, md5 in source.resources] for mirror in source.mirrors]


def download_dataset(name: str, data_dir: Path) -> None:
    """Put the missing files of a data set into `data_dir`: all of them or none.

    Raises DownloadError if no mirror gives all files, OSError if they cannot be written.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    root, problems = data_dir / TORCHVISION_SETS[name][1], {}  # cause -> the URLs that gave it
    data_dir.mkdir(parents=True, exist_ok=True)
    for archives in list_archives(name):
        with tempfile.TemporaryDirectory(dir=data_dir) as scratch, socket_timeout(DOWNLOAD_STALL):
            try:
                for url, md5 in archives:
                    packed = root / Path(url).name
                    if packed.is_file():  # used if its MD5 is right, else downloaded again
                        shutil.copyfile(packed, Path(scratch, packed.name))
                    download_and_extract_archive(url, scratch, md5=md5, remove_finished=True)
            except (RuntimeError, URLError, TimeoutError, ConnectionError, HTTPException) as error:
                problems.setdefault(cause(error).rstrip("."), []).append(url)
                continue
            for file in filter(Path.is_file, Path(scratch).rglob("*")):
                target = root / file.relative_to(scratch)
                if not os.path.lexists(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
            return
    raise DownloadError("; ".join(f"{why} ({', '.join(urls)})" for why, urls in problems.items()))


def cause(error: Exception) -> str:
    """What an error says, in one line and without the number that the system gives it."""
    reason = getattr(error, "reason", error)  # URLError wraps the system's error
    if not isinstance(reason, OSError) or not reason.strerror:
        return " ".join(str(error).split())
    return f"{reason.strerror}: {reason.filename}" if reason.filename else reason.strerror


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Limit how long a socket waits for an answer. torchvision sets no limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
