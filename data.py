"""Image sets as uint8 tensors in memory, shuffled batches of them, and stand-in digits for where MNIST is out of reach.

Images are what the files hold: uint8, (N, C, H, W), 0 to 255. Labels are int64, (N,). Scaling to floats is the
model's first line, so nothing here or in any caller can get it wrong. To train on your own pictures, return an
`ImageData` with your tensors from `load_data`.
"""

import gzip
import hashlib
import http.client
import math
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

DATASETS = ("auto", "mnist", "synthetic")
DOWNLOAD_STALL = 10  # seconds without a byte before a mirror is given up
DOWNLOAD_LIMIT = 60  # seconds for one file from one mirror, however steadily it trickles

# The MD5 of MNIST's four files once unpacked; torchvision holds those of the packed ones.
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
    """A training set and the set to evaluate on: uint8 images (N, C, H, W), int64 labels (N,)."""

    name: str  # what the pictures really are: "mnist", "synthetic", or "mnist-format" for other files in its layout
    classes: list[str]  # K names; label k is classes[k]
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def to(self, device: torch.device) -> "ImageData":
        tensors = (self.train_images, self.train_labels, self.test_images, self.test_labels)
        return ImageData(self.name, self.classes, *(tensor.to(device) for tensor in tensors))


def load_data(dataset: str = "auto", data_dir: str | Path = "data", val_size: int = 0) -> ImageData:
    """Load a data set, or draw the stand-in.

    With `val_size` the set to evaluate on is that many images held out of the training set instead of the test set:
    the same ones whatever the run's seed, so that runs can be compared image by image.

    Raises DataError where the data is missing, damaged, or too small for `val_size`.
    """
    name = find_dataset(dataset, data_dir)
    train_name, train_images, train_labels = load_split(name, data_dir, train=True)
    if val_size:
        if val_size >= len(train_images):
            raise DataError(f"--val_size {val_size} leaves nothing to train on: there are {len(train_images)} "
                            "training images. Hold out fewer.")
        order = torch.randperm(len(train_images), generator=torch.Generator().manual_seed(0))
        held_out, kept = order[:val_size], order[val_size:]
        test_images, test_labels = train_images[held_out], train_labels[held_out]
        train_images, train_labels = train_images[kept], train_labels[kept]
    else:
        test_name, test_images, test_labels = load_split(name, data_dir, train=False)
        train_name = train_name if train_name == test_name else "mnist-format"
    if train_images.shape[1:] != test_images.shape[1:]:
        raise DataError(f"{data_dir}: training images are {tuple(train_images.shape[1:])}, test images "
                        f"{tuple(test_images.shape[1:])}. Use two sets of one shape.")
    classes = [str(digit) for digit in range(10)]
    return ImageData(train_name, classes, train_images, train_labels, test_images, test_labels)


def batches(images: Tensor, labels: Tensor, batch_size: int, generator: torch.Generator, max_shift: int = 0):
    """Yield each image once, in a random order, as (images (B, C, H, W), labels (B,)); the last batch may be smaller.

    With `max_shift` each image is moved by up to that many pixels each way. All random numbers of the epoch are
    drawn at once, on the CPU: the same on every device, and nothing to wait for between the steps.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    offsets = torch.randint(0, 2 * max_shift + 1, (len(images), 2), generator=generator).to(images.device)
    for picks, moves in zip(order.split(batch_size), offsets.split(batch_size)):
        yield shift(images[picks], moves, max_shift) if max_shift else images[picks], labels[picks]


def shift(images: Tensor, offsets: Tensor, margin: int) -> Tensor:
    """Cut each image (B, C, H, W) out of its zero-padded self at its own offset (B, 2) in 0 .. 2 * margin."""
    height, width = images.shape[2:]
    windows = F.pad(images, (margin,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2m+1, 2m+1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


# ---------------------------------------------------------------------------------------------------------------------
# MNIST


def find_dataset(dataset: str, data_dir: str | Path) -> str:
    """The data set to use: "mnist" (downloaded now where its files are missing) or "synthetic".

    "auto" falls back to the stand-in, with a warning, only where there is no trace of MNIST and none to download.

    Raises DataError where MNIST was asked for, or is there in part, and cannot be completed.
    """
    if dataset == "synthetic":
        return "synthetic"
    raw = Path(data_dir) / "MNIST" / "raw"
    try:
        missing = [name for name in MNIST_MD5 if not (raw / name).exists()]
        if not missing:
            return "mnist"
        in_part = any(raw.glob("*ubyte*"))
        print(f"downloading MNIST (11 MB) to {raw}", file=sys.stderr)
        for name in missing:
            download(name, raw)
        return "mnist"
    except OSError as error:
        if dataset != "auto" or not isinstance(error, DownloadError) or in_part:
            raise DataError(f"{error}. Put MNIST's four files into {raw}, choose another --data_dir, or use "
                            "--dataset synthetic.") from error
        print(f"WARNING: {error}.\nWARNING: training on the stand-in digits (synthetic) instead of MNIST.",
              file=sys.stderr)
        return "synthetic"


class DownloadError(OSError):
    """No mirror gave the file."""


def download(name: str, raw: Path) -> None:
    """Put one of MNIST's files, unpacked, into `raw`, complete or not at all.

    It comes from `name`.gz in the same folder if that is there, else from torchvision's mirrors in turn. Never hangs:
    a mirror has DOWNLOAD_STALL seconds to send a byte and DOWNLOAD_LIMIT to send the file.
    """
    from torchvision.datasets import MNIST

    packed_name, packed_md5 = next(pair for pair in MNIST.resources if pair[0] == f"{name}.gz")
    local = raw / packed_name
    sources = [local.resolve().as_uri()] if local.exists() else []
    sources += [mirror + packed_name for mirror in MNIST.mirrors]
    problems = []
    for source in sources:
        try:
            packed = fetch(source)
            if hashlib.md5(packed, usedforsecurity=False).hexdigest() != packed_md5:
                raise OSError("incomplete or damaged (MD5 differs)")
        except (OSError, http.client.HTTPException) as error:
            problems.append(f"{source}: {getattr(error, 'reason', error)}")
            continue
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw) as scratch:  # renamed only when whole
            unpacked = Path(scratch) / name
            unpacked.write_bytes(gzip.decompress(packed))
            unpacked.replace(raw / name)
        return
    raise DownloadError(f"{raw / name} is not there and could not be downloaded ({'; '.join(problems)})")


def fetch(url: str) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_LIMIT
    parts = []
    with urllib.request.urlopen(url, timeout=DOWNLOAD_STALL) as response:
        while part := response.read1(1 << 16) if hasattr(response, "read1") else response.read(1 << 16):
            parts.append(part)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {DOWNLOAD_LIMIT} s")
    return b"".join(parts)


def load_split(name: str, data_dir: str | Path, train: bool) -> tuple[str, Tensor, Tensor]:
    """One half of a data set: its real name, uint8 images (N, C, H, W), int64 labels (N,)."""
    if name == "synthetic":
        return "synthetic", *(draw_digits(60_000, seed=0) if train else draw_digits(10_000, seed=1))
    from torchvision.datasets import MNIST  # here, because only this needs it: a second of every start-up

    raw = Path(data_dir) / "MNIST" / "raw"
    images_file, labels_file = (raw / file for file in list(MNIST_MD5)[0 if train else 2:][:2])
    genuine = check_idx(images_file, dimensions=3) & check_idx(labels_file, dimensions=1)
    mnist = MNIST(data_dir, train=train)
    images, labels = mnist.data[:, None], mnist.targets
    if len(images) != len(labels):
        raise DataError(f"{labels_file} has {len(labels)} labels for the {len(images)} images of {images_file.name}. "
                        "Delete both and run again to download them.")
    if labels.max() > 9:
        raise DataError(f"{labels_file} has a label {labels.max()}, outside 0 to 9. "
                        "Delete it and run again to download it.")
    return "mnist" if genuine else "mnist-format", images, labels


def check_idx(path: Path, dimensions: int) -> bool:
    """Whether a file is MNIST's own, by its MD5; where it is not, it must at least be whole.

    An IDX file starts with a big-endian int32, 0x800 (uint8 data) + its number of dimensions, and an int32 size each.

    Raises DataError where the file is not in that format, is cut short, or has MNIST's length and other content.
    """
    cure = "Delete it and run again to download it."
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). {cure}") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() == MNIST_MD5[path.name]:
        return True
    magic, *sizes = (int.from_bytes(content[at:at + 4], "big") for at in range(0, 4 * (dimensions + 1), 4))
    if magic != 0x800 + dimensions:
        kind = "images" if dimensions == 3 else "labels"
        raise DataError(f"{path} is not an IDX file of {kind} (it starts with {magic}, not {0x800 + dimensions}). {cure}")
    expected = 4 * (dimensions + 1) + math.prod(sizes)
    if len(content) != expected or 0 in sizes:
        raise DataError(f"{path} is damaged: {len(content):,} bytes where its header promises {expected:,}. {cure}")
    if sizes[0] in (60_000, 10_000):
        raise DataError(f"{path} is damaged, or another data set under MNIST's name: its MD5 differs. {cure}")
    return False


# ---------------------------------------------------------------------------------------------------------------------
# The stand-in: digits drawn as a pen would, in MNIST's shape, sizes and format

# Each line is a digit and one way to write it: points of the pen's path in a 20 x 20 box, x right and y down. The path
# is a smooth curve through its points, a point given twice makes a corner, and a bar lifts the pen.
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
    """The digits (V,) of PEN_PATHS and their paths (V, 2, PEN_POINTS), points evenly spaced along the ink."""
    digits, paths = [], []
    for line in PEN_PATHS.strip().splitlines():
        digit, strokes = line.split(" ", 1)
        curves = []
        for stroke in strokes.split("|"):
            knots = torch.tensor([[float(x) for x in point.split(",")] for point in stroke.split()])  # (knots, 2)
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
    """Draw `count` digits: uint8 images (count, 1, 28, 28), int64 labels (count,); the same ones for the same seed.

    A pen path is wobbled, slanted, rotated and stretched at random, then scaled into a 20 x 20 box and centred on its
    ink, as MNIST's digits were. Ink spreads from each point of the path as a Gaussian, which is a product of one in x
    and one in y, so that a whole image is one small matrix product.
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
    angle, slant, stretch = uniform(-0.1, 0.1), uniform(-0.7, 0.2), uniform(-0.25, 0.25).exp()  # radians, ratios
    cos, sin = angle.cos(), angle.sin()
    rows = torch.cat([cos * stretch, cos * slant - sin], 2), torch.cat([sin * stretch, sin * slant + cos], 2)
    paths = torch.cat(rows, 1) @ paths  # (N, 2, 2) @ (N, 2, points)

    pen = uniform(0.55, 1.25)  # standard deviation of the ink around the path, in pixels
    size = paths.amax(2, keepdim=True) - paths.amin(2, keepdim=True)
    paths = paths * (20 - 2 * pen) * uniform(0.95, 1.05) / size.amax(1, keepdim=True)
    paths = paths - paths.mean(2, keepdim=True) + 14 + torch.randn(count, 2, 1, generator=generator) * 0.3

    pixels = torch.arange(28)[:, None] + 0.5
    across, down = (torch.exp(-0.5 * ((pixels - paths[:, axis, None]) / pen) ** 2) for axis in (0, 1))  # (N, 28, points)
    spacing = step_lengths(paths).median(1).values.view(-1, 1, 1)
    ink = down @ across.transpose(1, 2) * spacing / (pen * math.sqrt(2 * math.pi))  # (N, 28, 28), 1 along the path
    ink = torch.sigmoid(10 * (ink - 0.45)) - math.exp(-4.5) / (1 + math.exp(-4.5))  # paper 0, pen 1, a soft edge
    grain = torch.randn(ink.shape, generator=generator) * 0.04 * (ink > 0.02)
    return ((ink + grain) * 255).clamp(0, 255).to(torch.uint8)
