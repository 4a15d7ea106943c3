"""Make the pictures in this folder: python docs/make_pictures.py"""

import sys
from pathlib import Path

import torch
from PIL import Image

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

from data import draw_digits  # noqa: E402


def contact_sheet(path: Path, columns: int = 24) -> None:
    """The first stand-in digits of each class, a row a class."""
    images, labels = draw_digits(2000, seed=0)
    rows = [torch.cat(list(images[labels == digit, 0][:columns]), dim=1) for digit in range(10)]
    sheet = Image.fromarray(255 - torch.cat(rows).numpy())
    sheet.resize((sheet.width * 3 // 2, sheet.height * 3 // 2), Image.Resampling.LANCZOS).save(
        path, optimize=True
    )


if __name__ == "__main__":
    contact_sheet(DOCS / "synthetic.png")
