import numpy
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw

from sources.drawn import pen_paths
from sources.photos import background, keep_large, like_mnist, thicken


def photograph(digit: int, seed: int) -> Image.Image:
    """A tilted digit by a ballpoint pen on paper, with noise, in uneven light with the edge of a shadow."""
    rng = numpy.random.default_rng(seed)
    digits, paths = pen_paths()
    path = paths[digits == digit][seed % 2].T  # (points, 2), in 20 x 20
    height, width = 800, 600
    corner = torch.tensor([rng.integers(60, 240), rng.integers(60, 440)])
    points = (path * 14 + corner).tolist()
    ink = Image.new("L", (width, height))
    for a, b in zip(points, points[1:]):
        if abs(a[0] - b[0]) + abs(a[1] - b[1]) < 60:  # else the pen is lifted
            ImageDraw.Draw(ink).line([*a, *b], fill=255, width=7)
    ink = numpy.asarray(ink.rotate(rng.uniform(-8, 8))) / 255
    down, across = numpy.mgrid[0:height, 0:width]
    light = (0.5 + 0.5 * across / width) * numpy.where(across + down / 2 > rng.integers(300, 800), 1, 0.8)
    pixels = 220 * (1 - 0.75 * ink) * light + rng.normal(0, 10, ink.shape)
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def test_photo_of_a_digit_is_made_like_mnists():
    for digit in range(10):
        image, remark = like_mnist(photograph(digit, seed=digit))
        assert remark == "dark on light: inverted; centred and scaled as MNIST's digits are"
        ink = image[0].float()
        assert image.shape == (1, 28, 28) and image.dtype == torch.uint8 and ink.max() == 255
        rows, columns = (ink.amax(d).nonzero().flatten() for d in (1, 0))
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) in (18, 19)  # a box of 20
        places = torch.arange(28) + 0.5
        centre = [float((ink.sum(1 - d) * places).sum() / ink.sum()) for d in (0, 1)]
        assert centre == pytest.approx([14, 14], abs=0.75)
        assert 0.05 < (ink > 127).float().mean() < 0.3  # lines as thick as MNIST's


def test_picture_of_mnists_size_keeps_its_pixels():
    pixels = numpy.zeros((28, 28), dtype="uint8")
    pixels[5:23, 13:16] = numpy.arange(100, 154).reshape(18, 3)
    image, remark = like_mnist(Image.fromarray(pixels))
    assert (image[0].numpy() == pixels).all() and remark == ""
    image, remark = like_mnist(Image.fromarray(255 - pixels))
    assert (image[0].numpy() == pixels).all() and remark == "dark on light: inverted"


def test_picture_without_a_digit_is_only_made_smaller():
    image, remark = like_mnist(Image.new("L", (300, 200), 90))
    assert remark == "no digit found"
    assert image.shape == (1, 28, 28) and image.dtype == torch.uint8 and (image == 90).all()
    grainy = numpy.random.default_rng(0).normal(90, 10, (200, 300)).astype("uint8")
    image, remark = like_mnist(Image.fromarray(grainy))
    assert remark == "no digit found" and (image.float() - 90).abs().max() < 20


def test_background_is_the_median_of_the_surroundings():
    pixels = numpy.random.default_rng(0).uniform(0, 255, (64, 48)).astype("float32")  # not made coarser
    windows = sliding_window_view(numpy.pad(pixels, 15, mode="edge"), (31, 31))
    assert background(pixels) == pytest.approx(numpy.median(windows, axis=(2, 3)))


def flood_fill(mask):
    """The connected parts of a mask, each a set of (row, column)."""
    left, parts = set(zip(*map(list, mask.nonzero()))), []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            part.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        parts.append(part)
    return parts


def test_large_parts_inside_the_picture_are_kept():
    rng = numpy.random.default_rng(0)
    for share in (0, 0.05, 0.15, 0.25, 0.35, 0.5, 1):
        for _ in range(10):
            mask = rng.random((18, 22)) < share
            parts = flood_fill(mask)
            inside = [part for part in parts if all(0 < i < 17 and 0 < j < 21 for i, j in part)] or parts
            large = [part for part in inside if 7 * len(part) >= max(map(len, inside))]
            assert set(zip(*keep_large(mask).nonzero())) == set().union(*large)


def test_lines_get_a_tenth_of_the_height_and_no_wider():
    for width in (2, 4, 6, 9):
        ink = numpy.zeros((60, 40))
        ink[:, 15 : 15 + width] = 1
        thick = thicken(ink)
        assert (thick[30] > 0.5).sum() == max(width, 6)
        grown = (len(thick) - 60) // 2
        windows = sliding_window_view(numpy.pad(ink, 2 * grown), (2 * grown + 1,) * 2)
        assert (thick == windows.max((2, 3))).all()
