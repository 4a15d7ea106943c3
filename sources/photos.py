"""Photos of handwritten digits, made like MNIST's images."""

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

SIDE = 224  # pixels of the longer side of a photo while the digit is looked for


def like_mnist(picture: Image.Image) -> tuple[Tensor, str]:
    """A grey picture of a digit as MNIST has them, uint8 (1, 28, 28), and what was done to it.

    MNIST's digits are light on black, scaled into 20 x 20 pixels, their centre of mass in the middle of 28 x
    28. In a photo the light is uneven, paper and sensor are grainy, and the pen may be thin: the paper's own
    brightness is taken off, specks are dropped, and thin lines are drawn thicker.
    """
    if exact := picture.size == (28, 28):
        pixels = pil_to_tensor(picture)[0].float()
    else:
        scale = SIDE / max(picture.size)
        size = [max(8, round(side * scale)) for side in picture.size]
        pixels = pil_to_tensor(picture.resize(size, reducing_gap=3))[0].float()  # (H, W)
    paper = paper_of(pixels)
    dark_on_light = bool(((pixels - paper) ** 3).sum() < 0)  # there is more paper than ink
    said = ["dark on light: inverted"] if dark_on_light else []
    if exact:
        image = 255 - pixels if dark_on_light else pixels
        return image.to(torch.uint8)[None], "; ".join(said)

    ink = (1 - pixels / paper.clamp(min=1)) * 255 if dark_on_light else pixels - paper  # as much in a shadow
    ink = F.avg_pool2d(ink.clamp(min=0)[None], 5, 1, 2)[0]  # without the grain
    mask = keep_large(ink > 0.4 * ink.max())
    if ink.max() < 25 or not mask.any():
        return F.interpolate(pixels[None, None], (28, 28), mode="area")[0].to(torch.uint8), "no digit found"
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    ink = (ink / (0.8 * ink[mask].mean())).clamp(max=1) * mask
    ink = thicken(ink[box])
    height, width = ink.shape
    size = [max(1, round(20 * side / max(height, width))) for side in (height, width)]
    small = F.interpolate(ink[None, None], size, mode="bilinear", antialias=True)[0, 0]
    small = small / small.max()
    places = [torch.arange(side) + 0.5 for side in size]
    centre = [float((small.sum(1 - d) * places[d]).sum() / small.sum()) for d in (0, 1)]
    top, left = (min(max(round(14 - centre[d]), 0), 28 - size[d]) for d in (0, 1))
    image = torch.zeros(1, 28, 28)
    image[0, top : top + size[0], left : left + size[1]] = small
    said.append("centred and scaled as MNIST's digits are")
    return (255 * image).round().to(torch.uint8), "; ".join(said)


def paper_of(pixels: Tensor) -> Tensor:
    """The brightness of the paper at each pixel (H, W): the median around it, which keeps shadows."""
    size = [max(1, round(64 * side / max(pixels.shape))) for side in pixels.shape]
    coarse = F.interpolate(pixels[None, None], size, mode="area")
    around = F.unfold(F.pad(coarse, [15] * 4, mode="replicate"), 31)  # (1, 31 * 31, places)
    paper = around.median(1).values.view(1, 1, *size)
    return F.interpolate(paper, pixels.shape, mode="bilinear")[0, 0]


def keep_large(mask: Tensor) -> Tensor:
    """Of the connected parts of a mask (H, W), those at least a seventh as large as the largest.

    What reaches the border is left out, as the edge of a shadow or of the paper does, unless all does.
    """
    names = torch.arange(1, mask.numel() + 1, dtype=torch.float64).view(mask.shape) * mask
    while True:  # each part takes the highest name in it
        spread = F.max_pool2d(names[None], 3, 1, 1)[0] * mask
        if (spread == names).all():
            break
        names = spread
    names = names.long()
    sizes = torch.bincount(names.flatten(), minlength=2)
    sizes[0] = 0
    inside = sizes.clone()
    inside[torch.cat([names[0], names[-1], names[:, 0], names[:, -1]])] = 0
    sizes = inside if inside.any() else sizes
    return sizes[names] * 7 >= max(int(sizes.max()), 1)


def thicken(ink: Tensor) -> Tensor:
    """Lines (H, W) at least a tenth as wide as the digit is high, as a felt pen's are in MNIST."""
    mask = ink > 0.5
    edge = mask & (-F.max_pool2d(-mask[None].float(), 3, 1, 1)[0] < 0.5)
    line = 2 * mask.sum() / edge.sum().clamp(min=1)  # its width, in pixels
    grow = round(float(max(ink.shape) / 10 - line) / 2)
    return F.max_pool2d(F.pad(ink, [grow] * 4)[None], 2 * grow + 1, 1, grow)[0] if grow > 0 else ink
