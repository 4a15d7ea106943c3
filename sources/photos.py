"""Photos of handwritten digits, made like MNIST's images."""

import numpy
import torch
from numpy import ndarray
from PIL import Image
from scipy import ndimage
from torch import Tensor

PHOTO_SIDE = 224  # pixels of the longer side of a photo while the digit is looked for
BACKGROUND_SIDE = 64  # the same, to measure the background
BOX = numpy.ones((3, 3))  # a pixel and its eight neighbours


def like_mnist(picture: Image.Image) -> tuple[Tensor, str]:
    """Make a grey picture of a digit like MNIST's: uint8 (1, 28, 28), and a remark on what was done.

    MNIST's digits are light on black and scaled into 20 x 20 pixels. Their centre of mass is in the middle
    of 28 x 28 pixels. A photo has uneven light, grain and often thin lines. So the background is taken off,
    specks are dropped, and thin lines are drawn thicker. A picture of 28 x 28 pixels is only inverted, if it
    is dark on light.
    """
    is_mnist_size = picture.size == (28, 28)
    if not is_mnist_size:
        scale = PHOTO_SIDE / max(picture.size)
        picture = picture.resize([max(8, round(side * scale)) for side in picture.size], reducing_gap=3)
    pixels = numpy.asarray(picture, dtype=numpy.float32)  # (H, W)
    paper = background(pixels)
    dark_on_light = ((pixels - paper) ** 3).sum() < 0  # strokes cover less of the picture than paper does
    remarks = ["dark on light: inverted"] if dark_on_light else []
    if is_mnist_size:
        return to_image(255 - pixels if dark_on_light else pixels), "; ".join(remarks)

    # Division by the paper makes a stroke in shadow as strong as one in light.
    ink = (1 - pixels / paper.clip(min=1)) * 255 if dark_on_light else pixels - paper
    ink = ndimage.uniform_filter(ink.clip(min=0), 5, mode="constant")  # without grain
    mask = keep_large(ink > 0.4 * ink.max())
    if ink.max() < 25 or not mask.any():
        return to_image(resize(pixels, (28, 28), Image.Resampling.BOX)), "no digit found"
    strokes = (ink / (0.8 * ink[mask].mean())).clip(max=1) * mask
    strokes = thicken(strokes[ndimage.find_objects(mask.astype(int))[0]])

    shape = [max(1, round(20 * side / max(strokes.shape))) for side in strokes.shape]
    digit = resize(strokes, shape, Image.Resampling.BILINEAR)
    centre = ndimage.center_of_mass(digit)  # 0 is the middle of the first pixel
    top, left = (int(min(max(round(13.5 - c), 0), 28 - side)) for c, side in zip(centre, shape))
    image = numpy.zeros((28, 28))
    image[top : top + shape[0], left : left + shape[1]] = digit / digit.max()
    remarks.append("centred and scaled as MNIST's digits are")
    return to_image((255 * image).round()), "; ".join(remarks)


def to_image(pixels: ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype("uint8"))[None]


def resize(pixels: ndarray, shape: tuple[int, int], method: Image.Resampling) -> ndarray:
    return numpy.asarray(Image.fromarray(pixels).resize((shape[1], shape[0]), method))


def background(pixels: ndarray) -> ndarray:
    """The brightness of the paper at each pixel (H, W): the median of a wide area, which keeps shadows."""
    shape = [max(1, round(BACKGROUND_SIDE * side / max(pixels.shape))) for side in pixels.shape]
    coarse = resize(pixels, shape, Image.Resampling.BOX)
    median = ndimage.median_filter(coarse, size=31, mode="nearest")
    return resize(median, pixels.shape, Image.Resampling.BILINEAR)


def keep_large(mask: ndarray) -> ndarray:
    """Keep the connected parts of a mask (H, W) that have at least a seventh of the size of the largest.

    Parts at the border are left out, because they are shadows or the edge of the paper, unless all are.
    """
    parts, _ = ndimage.label(mask, BOX)
    sizes = numpy.bincount(parts.ravel(), minlength=2)
    sizes[0] = 0  # what is not in the mask
    inside = sizes.copy()
    inside[numpy.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = 0
    sizes = inside if inside.any() else sizes
    return sizes[parts] * 7 >= max(sizes.max(), 1)


def thicken(ink: ndarray) -> ndarray:
    """Make lines (H, W) at least a tenth as wide as the digit is high, like a felt pen's in MNIST."""
    mask = ink > 0.5
    edge = mask & ~ndimage.binary_erosion(mask, BOX, border_value=1)
    line_width = 2 * mask.sum() / max(edge.sum(), 1)
    grow = round((max(ink.shape) / 10 - line_width) / 2)
    return ndimage.grey_dilation(numpy.pad(ink, grow), 2 * grow + 1) if grow > 0 else ink
