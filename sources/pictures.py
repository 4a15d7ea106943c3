"""One picture file: its pixels in 8 bits, upright and resized, whatever its kind, mode and depth."""

import os
import warnings
from pathlib import Path

import numpy
import torch
from numpy import ndarray
from PIL import Image, ImageOps
from torch import Tensor

from sources.errors import SourceError

# What Pillow can read, without films, stubs, and kinds that need another program to draw them.
FORMATS = {"AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "SGI", "TGA"}
FORMATS |= {"TIFF", "WEBP"}
GREY_MODES = ("1", "L", "LA", "La")  # of 8 bits or less; modes of more bits begin with I or F
DEPTHS = (8, 10, 12, 14, 16)  # bits of a sensor


def is_picture_name(path: str | Path) -> bool:
    """Whether a path ends as a picture's does, and is not hidden."""
    path = Path(path)
    return path.name[0] != "." and Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def open_picture(path: str | Path, min_side: int | None = None) -> Image.Image:
    """Open a picture file of any kind, upright, in its own mode. Raises SourceError.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if its sides are `min_side` pixels or more then.
    """
    if not os.path.exists(path):
        raise SourceError(f"{path} does not exist. Check its name.")
    if not os.path.isfile(path):  # opening a pipe would wait for ever
        raise SourceError(f"{path} is not a file. Save the picture in a file.")
    try:
        Image.init()
        formats = [name for name in FORMATS if name in Image.OPEN]
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=formats) as file:
            if min_side is not None:
                file.draft(None, (min_side, min_side))
            return ImageOps.exif_transpose(file)  # the camera's orientation
    except PermissionError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}. Check its permissions.") from error
    except Exception as error:  # Pillow raises many types for damaged files
        problem = f"{path} cannot be read as a picture: {error}".rstrip(".")
        raise SourceError(f"{problem}. Remove it or save it again.") from error


def read_picture(path: str | Path) -> Image.Image:
    """Open a picture file of any kind: upright, 8 bits a channel, transparent parts on white or black.

    Raises SourceError if it is missing or damaged.
    """
    picture = open_picture(path)
    return to_8_bits(picture, full_range(extrema(picture)) if is_deep(picture) else None)


def is_deep(picture: Image.Image) -> bool:
    """Whether a picture has more than 8 bits a channel."""
    return picture.mode[0] in "IF"


def extrema(picture: Image.Image) -> tuple[float, float]:
    """The lowest and the highest finite value."""
    values = numpy.asarray(picture, dtype=numpy.float64)
    values = values[numpy.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def full_range(found: tuple[float, float]) -> tuple[float, float]:
    """The values that become 0 and 255, from the lowest and the highest value found.

    It is 0 to 1, or as many values as a sensor of 8, 10, 12, 14 or 16 bits has. So a darker set of the same
    sensor has the same range. Negative values shift it.
    """
    low, high = min(found[0], 0.0), found[1]
    if high - low < 2:
        return low, low + 1
    return low, next((low + 2**bits - 1 for bits in DEPTHS if high - low < 2**bits), high)


def to_8_bits(picture: Image.Image, value_range: tuple[float, float] | None) -> Image.Image:
    """Scale a picture of more than 8 bits from its range to 0..255, and put transparent parts on paper."""
    if is_deep(picture):
        low, high = value_range
        values = numpy.nan_to_num(numpy.asarray(picture, dtype=numpy.float64), nan=low)
        scaled = (values.clip(low, high) - low) * (255 / (high - low))
        return Image.fromarray(scaled.round().astype(numpy.uint8))
    if picture.mode == "LAB":
        return picture.convert("RGB")  # Pillow makes it grey in no other way
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    paper = Image.new("RGBA", picture.size, "black" if has_white_ink(picture) else "white")
    return Image.alpha_composite(paper, picture)


def has_white_ink(picture: Image.Image) -> bool:
    """Whether what is drawn in an RGBA picture is nearer to white than to black, in every channel."""
    pixels = numpy.asarray(picture.resize((32, 32), Image.Resampling.BOX), dtype=numpy.float64)
    weights = pixels[..., 3:]  # alpha
    ink = (pixels[..., :3] * weights).sum((0, 1)) / max(weights.sum(), 1)
    return ink.min() > 127


def to_pixels(picture: Image.Image, channels: int, height: int, width: int) -> Tensor:
    """Resize a picture and return its pixels, uint8 (C, H, W)."""
    picture = picture.convert("L" if channels == 1 else "RGB")
    pixels = numpy.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels.reshape(height, width, channels).transpose(2, 0, 1).copy())


def decode_picture(path: str, size: int, value_range: tuple | None) -> ndarray | tuple[float, float]:
    """The pixels of a file, uint8 (1 or 3, size, size): 1 if the picture is grey, whatever its mode.

    If the picture has more than 8 bits and no range is given, its lowest and highest value instead.
    Raises SourceError.
    """
    picture = open_picture(path, size)
    if is_deep(picture) and value_range is None:
        return extrema(picture)
    picture = to_8_bits(picture, value_range)
    pixels = to_pixels(picture, 1 if picture.mode in GREY_MODES else 3, size, size).numpy()
    return pixels[:1] if (pixels == pixels[:1]).all() else pixels
