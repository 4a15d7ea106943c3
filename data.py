"""Image sets as uint8 tensors in memory, and shuffled, distorted batches of them.

The model scales the pixels. To train on your own data, return an `ImageData` from `load_data`. MNIST is read
here; the folder sources/, which is optional in a copy, downloads it and reads everything else.
"""

import gzip
import hashlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Generator, Tensor, nn

MAX_MATRIX, MAX_SHIFT = 0.14, 2.0  # see `make_thetas`; chosen on a hold-out of MNIST
MIN_ROUND = 3000  # fewest images in a round of `MarginSampler`: fewer would be learned by heart
MNIST_DIGESTS = {  # of the training set and the test set, see `digest`
    60_000: "d18cfd466eb143ac1097fde604dba9eec4116885869d04cc648b510949f9e88c",
    10_000: "a0863a96c44e5666edbb30c4071ee79ca0514c621e6349c5967fc78e7305c891",
}


class DataError(Exception):
    """The data are missing, damaged or unusable. The message says what, where, and what to do."""


@dataclass(frozen=True)
class ImageData:
    """A training set and a set to evaluate on: images uint8 (N, C, H, W), labels int64 (N,)."""

    name: str  # what the images really are: "mnist-format" for other images in files of MNIST's names
    classes: list[str]  # the K names; label k is classes[k]
    train_images: Tensor
    train_labels: Tensor
    eval_images: Tensor  # the test set, or images held out of the training set
    eval_labels: Tensor

    def __post_init__(self):
        """Raise DataError for other kinds of data, which would train wrongly or fail much later."""
        are_texts = all(isinstance(text, str) for text in (self.name, *self.classes))
        if not are_texts or not isinstance(self.classes, list) or len(self.classes) < 2:
            problem = f"The name is {self.name!r}, the classes are {self.classes!r}"
            raise DataError(f"{problem}. Give a name (str), and a list of two or more class names (str).")
        for split in ("eval", "train"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            kinds = [(v.dtype, v.dim()) if torch.is_tensor(v) else type(v) for v in (images, labels)]
            if kinds != [(torch.uint8, 4), (torch.int64, 1)]:
                problem = f"{split}_images and {split}_labels have the types and dimensions {kinds}"
                raise DataError(f"{problem}. Give tensors: uint8 (N, C, H, W) and int64 (N,).")
            low, high = labels.aminmax() if len(labels) else (0, 0)
            if not 0 < len(images) == len(labels) or not 0 <= low <= high < len(self.classes):
                found = f"{split}: {len(images)} images, {len(labels)} labels from {low} to {high}"
                raise DataError(f"{found}. Give images, each with a label of 0 to {len(self.classes) - 1}.")
        shapes = [list(images.shape[1:]) for images in (self.train_images, self.eval_images)]
        if shapes[0] != shapes[1] or min(shapes[0][1:]) < 4:
            problem = f"The images to train and to evaluate on are {shapes[0]} and {shapes[1]} (C, H, W)"
            raise DataError(f"{problem}. Use one shape, of 4 pixels or more a side.")

    def to(self, device: torch.device) -> "ImageData":
        """Move to a device, or only the labels, if the images need more than half of a GPU's free memory."""
        tensors = {name: value for name, value in vars(self).items() if torch.is_tensor(value)}
        room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else math.inf
        fits = sum(value.nbytes for value in tensors.values()) <= room
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if fits or v.dim() == 1})

    def fingerprint(self) -> list[str]:
        """Digests of the labels, and of the images (up to 256 MB of them, evenly spaced), of both sets."""
        sets = (self.train_images, self.train_labels), (self.eval_images, self.eval_labels)
        return [digest(images[:: images.numel() // 2**28 + 1], labels) for images, labels in sets]


def load_data(dataset="auto", data_dir="data", val_size=0, image_size=28, download=True) -> ImageData:
    """Load a data set: "mnist", a name that sources/ knows, or the path of a folder of pictures.

    With `val_size`, that many training images, always the same, replace the test set. So does a fifth of a
    folder without a test set. Do not write to a folder's images: they may be mapped. Raises DataError.
    """
    name, classes, images, labels = load_split(dataset, data_dir, True, image_size, download)
    if os.path.isabs(name):  # a folder: the pictures to hold out come first
        from sources.folders import held_out_size

        val_size = val_size or held_out_size(Path(name), len(images))
    elif val_size:
        order = torch.randperm(len(images), generator=Generator().manual_seed(0))
        images, labels = images[order], labels[order]
    if val_size >= len(images):
        raise DataError(f"--val_size {val_size} leaves no training image of {len(images)}. Hold out fewer.")
    if val_size:
        eval_images, images = images.tensor_split((val_size,))
        eval_labels, labels = labels.tensor_split((val_size,))
    else:
        split = load_split(name, data_dir, False, image_size, download, images.shape[1])
        eval_name, _, eval_images, eval_labels = split
        name = name if name == eval_name else "mnist-format"
    return ImageData(name, classes, images, labels, eval_images, eval_labels)


def load_split(dataset: str, data_dir, train: bool, image_size=28, download=True, channels=None) -> tuple:
    """One split of a data set: name, classes, images (N, C, H, W), labels (N,). Raises DataError.

    "auto" is MNIST, or synthetic digits, with a warning, if MNIST cannot be downloaded. Pictures of a folder
    get `image_size` pixels a side, and `channels` (1 or 3) if given. A folder without a test set gives all
    its pictures for both splits, those to hold out first.
    """
    data_dir = Path(os.path.expanduser(data_dir))
    raw, prefix = data_dir / "MNIST" / "raw", "train" if train else "t10k"
    images_file, labels_file = raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte"
    if not (dataset in ("auto", "mnist", "mnist-format") and images_file.exists() and labels_file.exists()):
        try:
            from sources import datasets, errors
        except ImportError as error:  # it is missing, or another folder of that name
            if error.name != "sources":
                raise
            raise DataError(f"Only MNIST in {raw} is read. Copy sources/, or edit load_split.") from error
        try:
            name = datasets.resolve_dataset(dataset, data_dir, download, train)
            if name not in ("mnist", "mnist-format"):
                return name, *datasets.read_dataset(name, data_dir, train, image_size, channels, download)
            images_file, labels_file = datasets.find_mnist(data_dir, train)
        except errors.SourceError as error:
            raise DataError(str(error)) from error

    images = read_idx(images_file, dimensions=3)[:, None]  # (N, 1, H, W)
    labels = read_idx(labels_file, dimensions=1).long()  # (N,)
    if len(images) != len(labels) or labels.max() > 9:
        found = f"{len(images)} images, {len(labels)} labels of 0 to {labels.max()}"
        raise DataError(f"{images_file}, {labels_file.name}: {found}. Each image needs one of 0 to 9.")
    known = MNIST_DIGESTS.get(len(images))
    if known and digest(images, labels) != known:
        problem = f"{images_file} or {labels_file.name} is damaged, or another data set of MNIST's size"
        raise DataError(f"{problem}. Delete both to download them again, or choose another --data_dir.")
    return "mnist" if known else "mnist-format", [str(digit) for digit in range(10)], images, labels


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The uint8 values of an IDX file, the format of MNIST, packed if its name says so. Raises DataError.

    Format: big-endian int32 0x800 (uint8) + dimensions, then the size of each dimension, then the values.
    (torchvision reads it too, but its import takes 1.7 s and 0.2 GB.)
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise ValueError("not a file")
        content = path.read_bytes()
        content = bytearray(gzip.decompress(content) if path.suffix == ".gz" else content)
    except Exception as error:  # gzip raises several types for damaged files
        reason = getattr(error, "strerror", None) or f"it is damaged ({error})"
        raise DataError(f"{path}: {reason}. Put it there again, or choose another --data_dir.") from error
    magic, *sizes = (int.from_bytes(content[4 * i : 4 * i + 4], "big") for i in range(dimensions + 1))
    header, size = 4 * (dimensions + 1), math.prod(sizes)
    if magic != 0x800 + dimensions or len(content) != header + size or size == 0:
        found = f"{len(content):,} bytes, magic number {magic}, sizes {sizes}"
        problem = f"{path} is damaged or not an IDX file of {dimensions} dimensions: {found}"
        raise DataError(f"{problem}. Delete it to download it again, or choose another --data_dir.")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(sizes)


def digest(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of uint8 images and int64 labels. It is the same wherever the data set's files are."""
    content = hashlib.sha256()
    for part in images.split(256):
        content.update(part.cpu().contiguous().numpy())
    content.update(labels.cpu().contiguous().view(torch.uint8).numpy())
    return content.hexdigest()


def pixel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,), in 0..1, of uint8 images (N, C, H, W). MNIST: 0.1307 and 0.3081."""
    images = images[:: images.numel() // 2**28 + 1]  # of more than 256 MB a part is enough
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = [torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]
    frequencies = torch.stack(counts).double() / images[:, 0].numel()  # (C, 256)
    mean = frequencies @ values
    std = (frequencies @ values.square() - mean.square()).clamp(min=1e-6).sqrt()  # not 0: it is a divisor
    return mean.float(), std.float()


class MarginSampler(nn.Module):
    """Chooses what each round of training takes: all images first, then those that the net is unsure of.

    They are `fraction` (0..1) of all N images, MIN_ROUND at least, in whole batches: the lowest margins.
    The margin of an image is the difference of its two highest logits when it was last trained on. Labels
    play no part, so wrong ones are not taken more often. (A Module, so that a checkpoint can hold it.)
    """

    def __init__(self, num_images: int, batch_size: int, fraction: float):
        super().__init__()
        size = max(fraction * num_images, MIN_ROUND)
        self.size = math.ceil(size / batch_size) * batch_size  # whole batches
        self.register_buffer("margins", torch.full((num_images,), -1.0))  # (N,); -1: not known

    def choose(self, limit: int) -> Tensor:
        """The indices (M,) of the images of the next round, at most `limit`, on the CPU."""
        unseen = int((self.margins < 0).sum())
        chosen = self.margins.argsort(stable=True)[: min(limit, max(self.size, unseen))]
        self.margins[chosen] = -1  # until `update`
        return chosen.cpu()

    def update(self, indices: Tensor, logits: Tensor) -> None:
        """Note the logits (B, K) of the images at `indices` (B,)."""
        best, second = logits.topk(2).values.unbind(1)
        self.margins[indices] = best - second

    def end_round(self) -> None:
        """Share the margins among the processes: each knows those of its own part."""
        if dist.is_initialized():
            dist.all_reduce(self.margins, dist.ReduceOp.MAX)


def batches(
    images: Tensor, labels: Tensor, batch_size, generator, augment=0.0, sampler=None, rank=0, world_size=1
) -> Iterator[tuple[Tensor, Tensor, float, Tensor]]:
    """Yield an epoch in batches: images (B, C, H, W), labels int64 (B,), weight, indices (B,).

    An epoch is as many images as the set has: each once, in random order, or in rounds of those that
    `sampler` chooses. B is this process's part of `batch_size`; `weight` is local size x world size / batch
    size, so that the average over processes is the mean over the batch. `indices` are the images' places in
    the set. Images are uint8, or with `augment` float32 in 0..1, distorted by up to `augment` times full
    strength. All tensors are on the device of `labels`. The random numbers of a round are drawn on the CPU
    before its first step: they are the same for every device, and no step waits for them.
    """
    left = len(images)
    while left > 0:
        chosen = sampler.choose(left) if sampler else torch.arange(left)
        left -= len(chosen)
        order = chosen[torch.randperm(len(chosen), generator=generator)].to(labels.device)
        strengths = augment * (2 * torch.rand(len(order), 2, 3, generator=generator) - 1)
        thetas = make_thetas(strengths, *images.shape[2:]).to(labels.device)
        parts = order, labels[order], thetas, order.to(images.device)  # indices for both devices
        for batch in zip(*(values.split(batch_size) for values in parts)):
            if len(batch[0]) < 2 * world_size:  # repeat: each process needs two images, for its batch norms
                batch = [values.repeat(2 * world_size, *[1] * (values.dim() - 1)) for values in batch]
            indices, targets, local_thetas, places = (v.tensor_split(world_size)[rank] for v in batch)
            pixels = images[places]
            if pixels.device != labels.device:  # copied ahead, while the GPU still works on earlier batches
                pixels = pixels.pin_memory().to(labels.device, non_blocking=True)
            pixels = distort(pixels, local_thetas) if augment else pixels
            yield pixels, targets, len(indices) * world_size / len(batch[0]), indices
        if sampler:
            sampler.end_round()


def make_thetas(strengths: Tensor, height: int, width: int) -> Tensor:
    """Thetas (N, 2, 3) for `F.affine_grid`: random shift, rotation, scale and shear by strengths (N, 2, 3).

    A theta maps output to input coordinates, both in -1..1. Strength 1 shifts MAX_SHIFT pixels left and up.
    """
    full = [[MAX_MATRIX, MAX_MATRIX, 2 * MAX_SHIFT / side] for side in (width, height)]
    return torch.eye(2, 3) + strengths * torch.tensor(full)


def distort(images: Tensor, thetas: Tensor) -> Tensor:
    """Transform uint8 images (B, C, H, W) by thetas (B, 2, 3): float32 in 0..1, 0 outside the image."""
    grid = F.affine_grid(thetas, list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images.float() / 255, grid, align_corners=False)
