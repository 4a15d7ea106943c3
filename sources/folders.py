"""Folders of picture files as a data set."""

import os
import warnings
from pathlib import Path

import numpy
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sources.errors import SourceError

MIN_CLASSES, MAX_CLASSES = 2, 100


def read_folder(folder: Path, train: bool, image_size: int) -> tuple[list[str], Tensor, Tensor]:
    """Read the pictures in FOLDER/train/CLASS/ or FOLDER/test/CLASS/, resized to image_size x image_size.

    Hidden folders are left out. All images are grey (C = 1) if all pictures in both halves are.

    Returns the K class names, images uint8 (N, C, H, W) and labels int64 (N,). Raises SourceError if the
    folder has another form or a picture cannot be read.
    """
    classes = class_names(folder / "train")
    if not MIN_CLASSES <= len(classes) <= MAX_CLASSES:
        found = f"{len(classes)} classes, not {MIN_CLASSES} to {MAX_CLASSES}"
        raise SourceError(f"{folder / 'train'} has {found}. Each class needs a folder of its own there.")
    for name in class_names(folder / "test"):
        if name not in classes:
            raise SourceError(
                f"{folder} has a class {name} in test, but no {name} in train. Add or remove it."
            )

    samples = {half: list_samples(folder / half, classes) for half in ("train", "test")}
    chosen = samples["train" if train else "test"]
    if not chosen:
        empty = folder / ("train" if train else "test")
        raise SourceError(f"{empty} has no pictures. Put them into a folder for each class.")
    channels = 1 if all(is_grey(path) for half in samples.values() for path, _ in half) else 3
    images = [to_pixels(read_picture(path), channels, image_size, image_size) for path, _ in chosen]
    return classes, torch.stack(images), torch.tensor([label for _, label in chosen])


def class_names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != ".")
    except OSError as error:
        cure = "A data set's folder needs train/CLASS/ and test/CLASS/ with pictures in them."
        raise SourceError(f"{folder} cannot be read: {error.strerror}. {cure}") from error


def list_samples(folder: Path, classes: list[str]) -> list[tuple[str, int]]:
    """The (path, label) of each picture in the folder of a class, or below it, in a fixed order."""
    from torchvision.datasets.folder import make_dataset  # slow to import

    labels = {name: label for label, name in enumerate(classes)}
    return make_dataset(folder, labels, is_valid_file=is_picture_name, allow_empty=True)


def is_picture_name(path: str) -> bool:
    """Whether a path ends as a picture's does, and is not hidden."""
    name = Path(path).name
    return name[0] != "." and Path(name).suffix.lower() in Image.registered_extensions()


def to_pixels(picture: Image.Image, channels: int, height: int, width: int) -> Tensor:
    """Resize a picture and return its pixels, uint8 (C, H, W)."""
    picture = picture.convert("L" if channels == 1 else "RGB")
    pixels = numpy.array(picture.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).view(height, width, channels).permute(2, 0, 1).contiguous()


def read_picture(path: str | Path) -> Image.Image:
    """Open a picture file of any kind: upright, 8 bits a channel, transparent parts on white or black.

    More than 8 bits are scaled as a sensor of 8, 10, 12, 14 or 16 bits has them. Raises SourceError if the
    file is missing or damaged.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("not a file")  # opening a pipe would wait for ever
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)  # the camera's orientation
            if picture.mode[0] in "IF":  # more than 8 bits, or floats
                values = numpy.nan_to_num(numpy.asarray(picture, dtype=numpy.float64))
                values -= min(values.min(), 0)
                depth = next((bits for bits in (1, 8, 10, 12, 14, 16, 32) if values.max() < 2**bits), 64)
                values *= 255 / (2**depth - 1)
                picture = Image.fromarray(values.clip(0, 255).round().astype("uint8"))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                paper = "black" if has_white_ink(picture) else "white"
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, paper), picture)
            return picture
    except Exception as error:  # Pillow raises many types for damaged files
        raise SourceError(
            f"{path} cannot be read as a picture: {error}. Remove it or save it again."
        ) from error


def has_white_ink(picture: Image.Image) -> bool:
    """Whether what is drawn in an RGBA picture is nearer to white than to black."""
    pixels = numpy.asarray(picture.convert("LA"))  # (H, W, 2): brightness and alpha
    ink = pixels[..., 0][pixels[..., 1] > 127]
    return ink.size > 0 and bool(numpy.percentile(ink, 5) > 127)


def is_grey(path: str | Path) -> bool:
    try:
        with Image.open(path) as file:
            return file.mode in ("1", "L", "LA") or file.mode[0] in "IF"
    except Exception:
        return True  # read_picture reports the damage
