"""Digits drawn as a pen would, in MNIST's shape, sizes and format: where MNIST itself is not to be had."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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
