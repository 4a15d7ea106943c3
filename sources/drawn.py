"""Synthetic digits: drawn by a program as with a pen, in the size and format of MNIST's images.

They replace MNIST on a machine that has neither its files nor a network.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Each line is a digit and one way to write it: points of the pen's path in a 20 x 20 box, x right, y down.
# The path is a smooth curve through the points. A point given twice makes a corner; a bar lifts the pen.
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
CURVE_POINTS = 512  # points of each stroke's curve before it is resampled
PEN_POINTS = 64  # points of a path, evenly spaced along the ink


def pen_paths() -> tuple[Tensor, Tensor]:
    """The V ways to write a digit: digits int64 (V,) and paths (V, 2, PEN_POINTS) in x and y."""
    digits, paths = [], []
    for line in PEN_PATHS.strip().splitlines():
        digit, strokes = line.split(" ", 1)
        curves = []
        for stroke in strokes.split("|"):
            points = [[float(x) for x in point.split(",")] for point in stroke.split()]
            curves.append(smooth_curve(torch.tensor(points).T[None], CURVE_POINTS)[0])
        curve = torch.cat(curves, dim=1)  # (2, strokes * CURVE_POINTS)
        lengths = step_lengths(curve[None])[0]
        lengths[CURVE_POINTS - 1 :: CURVE_POINTS] = 0  # no ink from one stroke to the next
        ink = F.pad(lengths.cumsum(0), (1, 0))
        evenly_spaced = torch.linspace(0, ink[-1].item(), PEN_POINTS)
        paths.append(curve[:, torch.searchsorted(ink, evenly_spaced)])
        digits.append(int(digit))
    return torch.tensor(digits), torch.stack(paths)


def smooth_curve(knots: Tensor, size: int) -> Tensor:
    """`size` points on the smooth curve through each row of knots: (N, 2, knots) to (N, 2, size)."""
    return F.interpolate(knots[..., None], size=(size, 1), mode="bicubic", align_corners=True)[..., 0]


def step_lengths(paths: Tensor) -> Tensor:
    """Distances (N, points - 1) between neighbours on paths (N, 2, points)."""
    return paths.diff(dim=2).square().sum(1).sqrt()


def draw_digits(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` digits: images uint8 (count, 1, 28, 28) and labels int64 (count,).

    The same seed gives the same digits. Each of the ten is equally likely.
    """
    generator = torch.Generator().manual_seed(seed)
    digits, paths = pen_paths()
    weights = 1 / digits.bincount()[digits]  # a digit with many ways to write it is not drawn more often
    ways = torch.multinomial(weights, count, replacement=True, generator=generator)
    images = torch.empty(count, 1, 28, 28, dtype=torch.uint8)
    for indices, out in zip(ways.split(250), images.split(250)):
        out[:, 0] = draw_paths(paths[indices], generator)
    return images, digits[ways]


def draw_paths(paths: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pen path (N, 2, points) once, in a random handwriting: images uint8 (N, 28, 28).

    As in MNIST, a digit is scaled into a box of 20 x 20 pixels, and the centre of its ink is put into the
    middle of the image.
    """
    count = len(paths)

    def uniform(low: float, high: float) -> Tensor:  # (N, 1, 1)
        return low + (high - low) * torch.rand(count, 1, 1, generator=generator)

    # The handwriting: bend, turn, slant and stretch each path.
    lengths = step_lengths(paths).sum(1).view(-1, 1, 1)
    wobble = torch.randn(count, 2, 7, generator=generator) * lengths / 45
    paths = paths + smooth_curve(wobble, paths.shape[2])
    angle, slant = uniform(-0.1, 0.1), uniform(-0.7, 0.2)  # radians, ratio
    stretch = uniform(-0.25, 0.25).exp()  # width to height
    cos, sin = angle.cos(), angle.sin()
    to_x = torch.cat([cos * stretch, cos * slant - sin], dim=2)
    to_y = torch.cat([sin * stretch, sin * slant + cos], dim=2)
    paths = torch.cat([to_x, to_y], dim=1) @ paths  # (N, 2, 2) @ (N, 2, points)

    # The place in the image.
    pen = uniform(0.55, 1.25)  # standard deviation of the ink across the path, in pixels
    size = paths.amax(2, keepdim=True) - paths.amin(2, keepdim=True)
    paths = paths * (20 - 2 * pen) * uniform(0.95, 1.05) / size.amax(1, keepdim=True)
    paths = paths - paths.mean(2, keepdim=True) + 14 + torch.randn(count, 2, 1, generator=generator) * 0.3

    # The ink: a Gaussian around each point. It is the product of one in x and one in y, so a matrix product
    # adds up all points of a path.
    pixels = torch.arange(28)[:, None] + 0.5
    across, down = (torch.exp(-0.5 * ((pixels - paths[:, axis, None]) / pen) ** 2) for axis in (0, 1))
    spacing = step_lengths(paths).median(1).values.view(-1, 1, 1)
    ink = down @ across.transpose(1, 2) * spacing  # (N, 28, 28)
    ink = ink / (pen * math.sqrt(2 * math.pi))  # 1 on the path
    sigmoid_of_paper = math.exp(-4.5) / (1 + math.exp(-4.5))
    ink = torch.sigmoid(10 * (ink - 0.45)) - sigmoid_of_paper  # 0 on paper, 1 under the pen, soft between
    grain = torch.randn(ink.shape, generator=generator) * 0.04 * (ink > 0.02)
    return ((ink + grain) * 255).clamp(0, 255).to(torch.uint8)
