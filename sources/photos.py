"""Photos of handwritten digits, made like MNIST's images."""

from dataclasses import dataclass

import numpy
import torch
from numpy import ndarray
from PIL import Image
from scipy import ndimage
from torch import Tensor

SIDE = 224  # pixels of the longer side of a photo, or of a part of it, while a digit is looked for
NEAR = 56  # pixels: a digit that is smaller then is looked for again, enlarged
SMALLEST = 12  # pixels in the photo itself: smaller digits are often not recognized
WIDEST = 0.28  # of the longer side: what is dark over a larger square is a table or a shadow, not a line
NEIGHBOURS = numpy.ones((3, 3))  # a pixel and its eight neighbours

Box = tuple[slice, slice]  # rows and columns


@dataclass
class Digit:
    """A digit in a photo."""

    strokes: ndarray  # (h, w) in 0..1
    box: Box  # around the strokes, in the pixels in which they were found
    is_dark: bool  # dark on light
    is_one: bool  # the only digit in the photo


def like_mnist(picture: Image.Image) -> tuple[Tensor, str]:
    """Make a grey picture of a digit like MNIST's: uint8 (1, 28, 28), and a remark on what was done.

    MNIST's digits are light on black and scaled into 20 x 20 pixels. Their centre of mass is in the middle
    of 28 x 28 pixels. A picture of that size and with a plain background is only inverted, if it is dark on
    light. A picture and its negative give the same image.
    """
    picture = picture.convert("F")
    found, side = find_digit(picture)
    if found is None:
        return to_tensor(picture.resize((28, 28), Image.Resampling.BOX)), "no digit found"
    remarks = ["dark on light: inverted"] if found.is_dark else []
    pixels = 255 - numpy.asarray(picture) if found.is_dark else numpy.asarray(picture)
    if picture.size != (28, 28) or numpy.median(pixels) > 15:
        pixels = 255 * centred(thicken(found.strokes))
        remarks.append("centred and scaled as MNIST's digits are")
    if not found.is_one:
        remarks.append("more than one digit: crop the picture to one")
    if side < SMALLEST:
        remarks.append(f"the digit has only {side:.0f} pixels a side: take the photo from nearer")
    return to_tensor(pixels), "; ".join(remarks)


def to_tensor(pixels: ndarray | Image.Image) -> Tensor:
    return torch.from_numpy(numpy.asarray(pixels).round().clip(0, 255).astype("uint8"))[None]


def find_digit(picture: Image.Image) -> tuple[Digit | None, float]:
    """The digit in a photo, enlarged if it is small, or None. And its longer side in the photo's pixels."""
    found, scale = find_strokes(resize(picture, SIDE)), max(picture.size) / SIDE
    if found and max(found.strokes.shape) >= NEAR:
        return found, max(found.strokes.shape) * scale
    if whole := find_strokes(resize(picture, 2 * SIDE)):
        scale, side = scale / 2, max(whole.strokes.shape)
        rows, columns = whole.box
        corners = columns.start - side, rows.start - side, columns.stop + side, rows.stop + side
        corners = [min(max(place * scale, 0), end) for place, end in zip(corners, 2 * picture.size)]
        found = find_strokes(resize(picture.crop([round(place) for place in corners]), SIDE)) or whole
        found.is_one &= whole.is_one
        return found, side * scale
    found = found or fill_with_digit(resize(picture, SIDE))
    return found, max(found.strokes.shape) * scale if found else 0


def resize(picture: Image.Image, side: int) -> ndarray:
    """The pixels (H, W) of a picture, without grain, whose longer side becomes `side`."""
    size = [max(8, round(length * side / max(picture.size))) for length in picture.size]
    return ndimage.uniform_filter(numpy.asarray(picture.resize(size, reducing_gap=3)), 3)


def find_strokes(pixels: ndarray) -> Digit | None:
    """Find the largest part of a photo (H, W), floats in 0..255, that looks like ink, or None.

    Contrast counts more than size: the white between ruled lines is large, but in less contrast to them. An
    upright line is a one only if nothing else is ink: beside a digit it is a pen, or the hole of a narrow 0.
    """
    best = False, 0
    for is_dark in (True, False):
        ink, contrast, parts = find_ink(pixels if is_dark else 255 - pixels)
        for box, mask in parts:
            is_ink = likeness_to_ink(mask) > 0
            rank = is_ink, mask.size * contrast[box][mask].mean() ** 1.3
            if rank > best and (is_ink or is_upright_line(box, ink.shape)) and is_thin(mask):
                best, found = rank, (is_dark, ink, parts, box)
    if not any(best):
        return None
    is_dark, ink, parts, box = found
    mask, is_one = join_parts(ink.shape, parts, box)
    return cut_out(ink, mask, is_dark, is_one)


def fill_with_digit(pixels: ndarray) -> Digit | None:
    """A digit that fills its photo (H, W): no paper is around its lines. None if there is no contrast."""
    low, high = numpy.percentile(pixels, (2, 98))
    if high - low < 25:
        return None
    ink = ((high - pixels) / (high - low)).clip(0, 1)
    is_dark = likeness_to_ink(ink) > 0
    ink = ink if is_dark else 1 - ink
    return cut_out(ink, ink > 0.4, is_dark)


def cut_out(ink: ndarray, mask: ndarray, is_dark: bool, is_one: bool = True) -> Digit:
    """The digit that is the masked part of some ink (H, W)."""
    strokes = (ink / (0.8 * ink[mask].mean())).clip(max=1) * mask
    (box,) = ndimage.find_objects(mask.astype(int))
    return Digit(strokes[box], box, is_dark, is_one)


def find_ink(pixels: ndarray) -> tuple[ndarray, ndarray, list[tuple[Box, ndarray]]]:
    """Find what is darker than the paper around it, in a photo (H, W).

    Returns how dark each pixel is as a share of the paper's brightness, how much darker than the paper in
    0..255, and the connected parts: the box of each, and its mask (h, w) in there. A part without an edge
    nearly all around is no part: for example the paper between a line and a shadow.
    """
    paper = ndimage.grey_closing(pixels, 2 * [round(WIDEST * max(pixels.shape))], mode="nearest")
    contrast = (paper - pixels).clip(min=0)
    ink = contrast / (paper + 30)  # a stroke in shadow is as strong as one in light
    steepness = ndimage.morphological_gradient(pixels, 5)
    weakest = max(25, 0.15 * numpy.ptp(pixels))  # ruled lines are weaker, and what is between them
    is_ink = ink > 0.4 * ink.max()
    is_outline = is_ink & ~ndimage.binary_erosion(is_ink, NEIGHBOURS, border_value=1)
    labels, _ = ndimage.label(is_ink, NEIGHBOURS)
    parts = []
    for k, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == k
        if mask.sum() < 20 or (strength := contrast[box][mask].mean()) < weakest:
            continue
        if (steepness[box][mask & is_outline[box]] > 0.25 * strength).mean() > 0.9:
            parts.append((box, mask))
    return ink, contrast, parts


def likeness_to_ink(mask: ndarray) -> float:
    """Above 0 if a mask (h, w) covers little of its box, and less of the border than of the inside."""
    border = numpy.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    inside = mask[1:-1, 1:-1] if min(mask.shape) > 2 else mask
    return 0.5 - mask.mean() + inside.mean() - border.mean()


def is_thin(mask: ndarray) -> bool:
    """Whether a mask (h, w) is lines: nowhere wider than 0.4 of its longer side."""
    return 2 * ndimage.distance_transform_edt(numpy.pad(mask, 1)).max() < 0.4 * max(mask.shape)


def is_upright_line(box: Box, shape: tuple[int, int]) -> bool:
    """Whether a box could be that of a one, a straight stroke, which fills it. Margins reach the border."""
    rows, columns = box
    is_inside = all(side.start > 0 and side.stop < length for side, length in zip(box, shape))
    return is_inside and rows.stop - rows.start > 4 * (columns.stop - columns.start)


def join_parts(shape: tuple[int, int], parts: list[tuple[Box, ndarray]], main: Box) -> tuple[ndarray, bool]:
    """The mask (H, W) of a digit: its main part, and others near it. And whether it is the only digit."""

    def is_at_border(box: Box) -> bool:
        return any(side.start == 0 or side.stop == length for side, length in zip(box, shape))

    joined, is_one = numpy.zeros(shape, bool), True
    area, size = next((mask.size, mask.sum()) for box, mask in parts if box == main)
    height = main[0].stop - main[0].start
    for box, mask in parts:
        down, across = (max(a.start, b.start) - min(a.stop, b.stop) for a, b in zip(box, main))  # gaps
        if box == main:
            joined[box] |= mask
        elif 7 * mask.sum() < size or mask.size > 2 * area or is_at_border(box) > is_at_border(main):
            continue  # a speck, a frame or the table
        elif len(mask) > height / 2 and (across >= 0 or down > height / 4):
            is_one = False
        elif max(down, across) < height / 2:
            joined[box] |= mask
    rows, columns = ndimage.find_objects(joined.astype(int))[0]
    is_wide = columns.stop - columns.start > 1.8 * (rows.stop - rows.start)
    return joined, is_one and not is_wide


def centred(strokes: ndarray) -> ndarray:
    """Strokes (h, w) scaled into 20 x 20 pixels, with their centre of mass in the middle of 28 x 28."""
    shape = [max(1, round(20 * side / max(strokes.shape))) for side in strokes.shape]
    digit = numpy.asarray(Image.fromarray(strokes).resize(shape[::-1], Image.Resampling.BILINEAR))
    centre = ndimage.center_of_mass(digit)  # 0 is the middle of the first pixel
    top, left = (int(min(max(round(13.5 - c), 0), 28 - side)) for c, side in zip(centre, shape))
    image = numpy.zeros((28, 28))
    image[top : top + shape[0], left : left + shape[1]] = digit / digit.max()
    return image


def thicken(strokes: ndarray) -> ndarray:
    """Make lines (h, w) at least a tenth as wide as the digit is high, like a felt pen's in MNIST."""
    mask = strokes > 0.5
    edge = mask & ~ndimage.binary_erosion(mask, NEIGHBOURS, border_value=1)
    line_width = 2 * mask.sum() / max(edge.sum(), 1)
    grow = round((max(strokes.shape) / 10 - line_width) / 2)
    return ndimage.grey_dilation(numpy.pad(strokes, grow), 2 * grow + 1) if grow > 0 else strokes
