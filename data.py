"""Image sets as uint8 tensors in memory, shuffled batches, and digits drawn where MNIST is not to be had.

Images are what the files hold: uint8, (N, C, H, W), 0 to 255. Labels are int64, (N,). Scaling to floats is
the model's first line, so that no caller can get it wrong. To train on other pictures, return an `ImageData`
of them from `load_data`.
"""

import gzip
import hashlib
import http.client
import math
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

DATASETS = ("auto", "mnist", "synthetic")
CLASSES = [str(digit) for digit in range(10)]  # of each of them; label k is CLASSES[k]
MAX_TURN, MAX_SCALE, MAX_SHIFT = 8.0, 0.08, 2.0  # degrees, share, pixels: chosen on a hold-out of MNIST
DOWNLOAD_STALL = 10  # seconds without an answer after which a mirror is given up
DOWNLOAD_LIMIT = 60  # seconds for one file from one mirror, however steadily it trickles

# The MD5 of MNIST's files, unpacked: the training set's two, the test set's two.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


class DataError(Exception):
    """The data cannot be had as asked for. The message says what, where, and what to do."""


class DownloadError(OSError):
    """No mirror gave the file."""


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
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return ImageData(self.name, self.classes, *(tensor.to(device) for tensor in tensors))


def load_data(dataset: str = "auto", data_dir: str | Path = "data", val_size: int = 0) -> ImageData:
    """Load a data set, or draw the stand-in.

    With `val_size` so many training images are held out and take the place of the test set: the same ones
    for every seed, so that runs can be compared image by image.

    Raises DataError where the data is missing or damaged, or `val_size` leaves nothing to train on.
    """
    name = find_dataset(dataset, data_dir)
    name, train_images, train_labels = load_split(name, data_dir, train=True)
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
        test_name, test_images, test_labels = load_split(name, data_dir, train=False)
        name = name if name == test_name else "mnist-format"
    shapes = tuple(train_images.shape[1:]), tuple(test_images.shape[1:])
    if shapes[0] != shapes[1]:
        raise DataError(
            f"{data_dir}: training and test images differ in shape, {shapes}. Use sets that match."
        )
    return ImageData(name, CLASSES, train_images, train_labels, test_images, test_labels)


def batches(
    images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator, augment: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images once, in random order: (images (B, C, H, W), labels (B,)), the last B may be smaller.

    With `augment` above 0 they are float32, each distorted at random with up to so much of full strength.
    The random numbers of the whole epoch are drawn at once and on the CPU: the same on every device, and no
    step waits for them.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    draws = augment * (2 * torch.rand(len(images), 4, generator=generator) - 1).to(images.device)
    for picks, strengths in zip(order.split(batch_size), draws.split(batch_size)):
        picked = images[picks]
        yield distort(picked, strengths) if augment else picked, labels[picks]


def distort(images: Tensor, strengths: Tensor) -> Tensor:
    """Turn, scale and shift each image (B, C, H, W) with its strengths (B, 4) in -1..1: float32 in 0..255.

    A strength of 1 turns by MAX_TURN to the left, shrinks by MAX_SCALE, shifts by MAX_SHIFT left and up.
    What comes in from outside is 0.
    """
    height, width = images.shape[2:]
    turn, scale, left, up = strengths.unbind(1)
    angle, size = math.radians(MAX_TURN) * turn, 1 + MAX_SCALE * scale
    cos, sin = size * angle.cos(), size * angle.sin()
    # Where each pixel comes from, with the edges of the image at -1 and 1.
    x = torch.stack([cos, -sin * height / width, left * 2 * MAX_SHIFT / width], dim=1)
    y = torch.stack([sin * width / height, cos, up * 2 * MAX_SHIFT / height], dim=1)
    grid = F.affine_grid(torch.stack([x, y], dim=1), list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images.float(), grid, align_corners=False)


# ----------------------------------------------------------------------------------------------------------
# MNIST


def find_dataset(dataset: str, data_dir: str | Path) -> str:
    """The data set to load: "mnist", whose missing files are downloaded now, or "synthetic".

    "auto" becomes "synthetic", with a warning, only where there is no trace of MNIST and no way to get it.

    Raises DataError where MNIST was asked for, or is there in part, and cannot be completed.
    """
    if dataset == "synthetic":
        return "synthetic"
    if dataset not in (*DATASETS, "mnist-format"):
        raise DataError(
            f"{dataset} is no data set known here. Choose a --dataset from {', '.join(DATASETS)}"
        )
    raw = Path(data_dir) / "MNIST" / "raw"
    try:
        if Path(data_dir).exists() and not Path(data_dir).is_dir():
            raise NotADirectoryError(f"--data_dir {data_dir} is not a folder")
        traces = list(raw.glob("*ubyte*"))
        for name in MNIST_MD5:
            if not (raw / name).exists():
                download(name, raw)
    except OSError as error:
        if dataset == "auto" and isinstance(error, DownloadError) and not traces:
            print(f"WARNING: {error}", file=sys.stderr)
            print("WARNING: using digits drawn by a program (synthetic) instead of MNIST", file=sys.stderr)
            return "synthetic"
        cure = f"Put MNIST's four files into {raw}, choose another --data_dir, or take --dataset synthetic."
        raise DataError(f"{error}. {cure}") from error
    return "mnist"


def download(name: str, raw: Path) -> None:
    """Put one of MNIST's files, unpacked, into the folder `raw`: whole or not at all, and without hanging.

    It comes from `name`.gz in that folder if that is there and whole, else from torchvision's mirrors.

    Raises DownloadError where none of them gave it, OSError where it could not be written.
    """
    from torchvision.datasets import MNIST

    packed_md5 = dict(MNIST.resources)[f"{name}.gz"]
    local = raw / f"{name}.gz"
    urls = [local.resolve().as_uri()] if local.exists() else []
    problems = []
    for url in [*urls, *(f"{mirror}{name}.gz" for mirror in MNIST.mirrors)]:
        print(f"fetching {url}", file=sys.stderr)
        try:
            packed = fetch(url)
            if hashlib.md5(packed, usedforsecurity=False).hexdigest() != packed_md5:
                raise OSError("damaged or cut short, its MD5 differs")
        except (OSError, http.client.HTTPException) as error:
            problems.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw) as scratch:  # takes its name only when it is whole
            unpacked = Path(scratch) / name
            unpacked.write_bytes(gzip.decompress(packed))
            unpacked.replace(raw / name)
        return
    raise DownloadError(f"{raw / name} is missing and could not be downloaded ({'; '.join(problems)})")


def fetch(url: str) -> bytes:
    """The content at a URL. Raises OSError where it fails, stalls, or is not done within DOWNLOAD_LIMIT."""
    deadline = time.monotonic() + DOWNLOAD_LIMIT
    parts = []
    with urllib.request.urlopen(url, timeout=DOWNLOAD_STALL) as response:
        while part := response.read1(1 << 16):
            parts.append(part)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {DOWNLOAD_LIMIT} s")
    return b"".join(parts)


def load_split(name: str, data_dir: str | Path, train: bool) -> tuple[str, Tensor, Tensor]:
    """One half of a data set found by `find_dataset`: its real name, images (N, C, H, W), labels (N,).

    Raises DataError where a file is damaged, or images and labels do not belong together.
    """
    if name == "synthetic":
        return name, *(draw_digits(60_000, seed=0) if train else draw_digits(10_000, seed=1))
    # Imported here because it is slow, and drawn digits do without.
    from torchvision.datasets.mnist import read_image_file, read_label_file

    raw = Path(data_dir) / "MNIST" / "raw"
    images_file, labels_file = (raw / file for file in MNIST_MD5 if file.startswith("train") == train)
    genuine = [check_idx(images_file, dimensions=3), check_idx(labels_file, dimensions=1)]
    images, labels = read_image_file(str(images_file))[:, None], read_label_file(str(labels_file))
    if len(images) != len(labels):
        counts = f"{len(images)} images, {labels_file.name} {len(labels)} labels"
        raise DataError(f"{images_file} has {counts}. Delete both and run again to download them.")
    if labels.max() >= len(CLASSES):
        raise DataError(
            f"{labels_file} has a label {labels.max()}, not 0 to 9. Delete it to download it again."
        )
    return "mnist" if all(genuine) else "mnist-format", images, labels


def check_idx(path: Path, dimensions: int) -> bool:
    """Whether a file is MNIST's own, by its MD5. Any other must be whole, and not as large as MNIST's own.

    An IDX file is a big-endian int32 magic number, 0x800 (for uint8) + dimensions, an int32 size for each
    dimension, and the values.

    Raises DataError where it is not in that format, cut short, or MNIST's own with other content.
    """
    cure = "Delete it and run again to download it."
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there. Choose another --data_dir; train.py downloads it.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. {cure}") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() == MNIST_MD5[path.name]:
        return True
    magic, *sizes = (int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(dimensions + 1))
    if magic != 0x800 + dimensions:
        kind = "images" if dimensions == 3 else "labels"
        raise DataError(
            f"{path} is no IDX file of {kind}: it starts with {magic}, not {0x800 + dimensions}. {cure}"
        )
    promised = 4 * (dimensions + 1) + math.prod(sizes)
    if len(content) != promised or 0 in sizes:
        raise DataError(
            f"{path} is damaged: {len(content):,} bytes, its header promises {promised:,}. {cure}"
        )
    if sizes[0] == (60_000 if path.name.startswith("train") else 10_000):
        raise DataError(f"{path} is damaged, or another data set of MNIST's size: its MD5 differs. {cure}")
    return False


# ----------------------------------------------------------------------------------------------------------
# The stand-in: digits drawn as a pen would, in MNIST's shape, sizes and format

# Each line is a digit and one way to write it: points of the pen's path in a 20 x 20 box, x right, y down.
# The path is a smooth curve through its points; a point given twice makes a corner, a bar lifts the pen.
PEN_PATHS = """
0 10,0 5,2 2,8 3,15 8,20 14,18 18,11 16,3 10,0
0 12,1 6,1 1,8 2,17 9,20 17,16 19,7 14,1 9,2
1 10,0 10,7 10,13 10,20
1 6,4 11,0 10,7 10,13 10,20
1 6,4 11,0 10,7 10,13 10,20 | 4,20 10,20 16,20
2 3,5 6,1 12,0 16,4 14,10 8,15 2,20 2,20 8,19 13,19 18,19
2 3,4 9,0 15,3 13,10 7,17 2,18 4,14 9,17 13,20 19,18
2 3,4 8,0 14,4 10,11 4,16 4,19 8,16 13,19 17,19
3 3,2 10,0 15,3 13,8 7,9 7,9 14,10 17,15 12,20 6,20 2,17
3 3,1 9,0 15,1 12,5 8,9 8,9 15,11 16,16 11,20 3,19
4 5,0 4,5 2,11 2,11 9,12 18,11 | 15,1 14,8 13,14 12,20
4 13,20 13,13 14,6 14,0 14,0 9,6 2,13 2,13 10,13 18,13
4 4,1 3,7 8,11 15,8 | 16,1 14,8 13,14 12,20
5 16,0 11,0 5,1 5,1 4,5 4,9 4,9 10,7 16,11 14,17 8,20 2,18
5 4,9 10,7 16,11 14,17 8,20 2,18 | 4,9 5,5 5,1 5,1 10,1 17,0
6 13,0 8,4 4,10 4,16 9,20 15,18 15,13 10,11 4,14
6 10,0 6,5 3,12 5,19 11,20 16,16 13,12 7,13 4,16
7 2,2 8,2 16,1 16,1 13,7 10,13 8,20
7 3,9 3,2 3,2 10,2 17,1 17,1 14,10 13,20
7 2,6 5,1 11,0 16,3 14,9 11,14 9,20
7 2,4 3,1 10,2 17,1 17,1 13,8 10,14 9,20 | 6,11 11,11 16,10
8 14,3 9,0 4,4 8,9 14,14 12,20 6,20 4,15 10,9 15,4 13,1
8 15,2 8,1 6,6 12,11 14,16 10,20 5,17 8,11 14,6 14,1
9 15,4 10,0 5,3 4,8 10,9 15,4 15,4 14,10 13,15 12,20
9 14,3 8,1 3,6 7,10 13,7 15,1 15,1 16,8 14,16 8,20 3,18
"""
PEN_POINTS = 64  # points a path is drawn with


def pen_paths() -> tuple[Tensor, Tensor]:
    """The digits (V,) of PEN_PATHS and their paths (V, 2, PEN_POINTS), evenly spaced along the ink."""
    digits, paths = [], []
    for line in PEN_PATHS.strip().splitlines():
        digit, strokes = line.split(" ", 1)
        curves = []
        for stroke in strokes.split("|"):
            knots = torch.tensor(
                [[float(x) for x in point.split(",")] for point in stroke.split()]
            )  # (knots, 2)
            curves.append(smooth(knots.T[None], 512)[0])
        curve = torch.cat(curves, dim=1)
        lengths = step_lengths(curve[None])[0]
        lengths[511::512] = 0  # the pen is up
        ink = F.pad(lengths.cumsum(0), (1, 0))
        paths.append(curve[:, torch.searchsorted(ink, torch.linspace(0, ink[-1].item(), PEN_POINTS))])
        digits.append(int(digit))
    return torch.tensor(digits), torch.stack(paths)


def smooth(knots: Tensor, size: int) -> Tensor:
    """`size` points along the smooth curves through each row of knots: (N, 2, knots) to (N, 2, size)."""
    return F.interpolate(knots[..., None], size=(size, 1), mode="bicubic", align_corners=True)[..., 0]


def step_lengths(paths: Tensor) -> Tensor:
    """Distances (N, points - 1) between neighbours on paths (N, 2, points)."""
    return paths.diff(dim=2).square().sum(1).sqrt()


def draw_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` digits, the same for the same seed: uint8 (count, 1, 28, 28), labels int64 (count,).

    A pen path is wobbled, slanted, rotated and stretched at random, scaled into a 20 x 20 box and centred on
    its ink, as MNIST's digits were. Ink spreads from each point of the path as a Gaussian; that is one in x
    times one in y, so that a whole image is one small matrix product.
    """
    generator = torch.Generator().manual_seed(seed)
    digits, paths = pen_paths()
    evenly = 1 / digits.bincount()[digits]  # over the ten digits, however many ways there are to write one
    which = torch.multinomial(evenly, count, replacement=True, generator=generator)
    images = torch.empty(count, 1, 28, 28, dtype=torch.uint8)
    for part, out in zip(which.split(250), images.split(250)):
        out[:, 0] = draw(paths[part], generator)
    return images, digits[which]


def draw(paths: Tensor, generator: torch.Generator) -> Tensor:
    """Write each pen path (N, 2, points) once: uint8 images (N, 28, 28)."""
    count = len(paths)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    length = step_lengths(paths).sum(1).view(-1, 1, 1)
    wobble = torch.randn(count, 2, 7, generator=generator) * length / 45
    paths = paths + smooth(wobble, paths.shape[2])
    angle, slant, stretch = (
        uniform(-0.1, 0.1),
        uniform(-0.7, 0.2),
        uniform(-0.25, 0.25).exp(),
    )  # radians, ratios
    cos, sin = angle.cos(), angle.sin()
    rows = torch.cat([cos * stretch, cos * slant - sin], 2), torch.cat([sin * stretch, sin * slant + cos], 2)
    paths = torch.cat(rows, 1) @ paths  # (N, 2, 2) @ (N, 2, points)

    pen = uniform(0.55, 1.25)  # standard deviation of the ink around the path, in pixels
    size = paths.amax(2, keepdim=True) - paths.amin(2, keepdim=True)
    paths = paths * (20 - 2 * pen) * uniform(0.95, 1.05) / size.amax(1, keepdim=True)
    paths = paths - paths.mean(2, keepdim=True) + 14 + torch.randn(count, 2, 1, generator=generator) * 0.3

    pixels = torch.arange(28)[:, None] + 0.5
    across, down = (torch.exp(-0.5 * ((pixels - paths[:, axis, None]) / pen) ** 2) for axis in (0, 1))
    spacing = step_lengths(paths).median(1).values.view(-1, 1, 1)
    ink = (
        down @ across.transpose(1, 2) * spacing / (pen * math.sqrt(2 * math.pi))
    )  # (N, 28, 28), 1 along the path
    ink = torch.sigmoid(10 * (ink - 0.45)) - math.exp(-4.5) / (
        1 + math.exp(-4.5)
    )  # paper 0, pen 1, a soft edge
    grain = torch.randn(ink.shape, generator=generator) * 0.04 * (ink > 0.02)
    return ((ink + grain) * 255).clamp(0, 255).to(torch.uint8)
