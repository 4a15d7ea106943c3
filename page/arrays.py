"""The numbers and pictures of the page as compact bytes, which page.js unpacks."""

import io
import math
import zlib

import numpy as np
from PIL import Image

from page import figures
from page.figures import Run

MAX_LOSSLESS_SIDE = 48  # pixels; larger pictures, and coloured ones, are compressed with loss
SHEET_PIXELS = 4_000_000  # of one sheet of pictures, so that a browser decodes only what it shows
MANY = 20_000  # pictures; more have 32 shades
EXACT_SCORES = 1_250_000  # more are rounded to 3 digits and 5 decimals, or the page would be too large


def base85(data: bytes) -> str:
    """Four bytes as five characters from # to w, ! instead of <, so that no text in it can end a script."""
    words = np.frombuffer(data + bytes(-len(data) % 4), dtype=">u4")
    digits = np.stack([words // 85**power % 85 for power in (4, 3, 2, 1, 0)], axis=1).astype(np.uint8) + 35
    digits[digits == ord("<")] = ord("!")
    return digits.tobytes().decode("ascii")


def sheets(pictures: np.ndarray) -> tuple[dict, list[bytes]]:
    """The pictures (N, H, W, C) on sheets, as WebP, and where they are there."""
    count, height, width, channels = pictures.shape
    columns = max(1, math.isqrt(SHEET_PIXELS // (height * width)))
    if count > MANY:
        pictures = pictures & 0xF8  # 32 shades, which compress to two thirds
    lossless = channels == 1 and max(height, width) <= MAX_LOSSLESS_SIDE
    quality = 50 if lossless else 80 if count * height * width < 50e6 else 50
    files = []
    for start in range(0, count, columns**2):
        tiles = pictures[start : start + columns**2]
        lines = math.ceil(len(tiles) / columns)
        sheet = np.zeros((lines * columns, height, width, channels), np.uint8)
        sheet[: len(tiles)] = tiles
        sheet = sheet.reshape(lines, columns, height, width, channels).swapaxes(1, 2)
        sheet = sheet.reshape(lines * height, columns * width, channels)
        buffer = io.BytesIO()
        image = Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).convert("RGB")
        image.save(buffer, "webp", lossless=lossless, quality=quality, method=2)
        files.append(buffer.getvalue())
    return {"columns": columns, "width": width, "height": height}, files


def exact_scores(runs: list[Run]) -> tuple[list[np.ndarray], int]:
    """The scores (N, K) of the runs, and how many digits of them are right.

    Files that train.py writes hold float32 values in nine digits. Others may hold float64 values.
    """
    scores = [run.scores for run in runs]
    singles = [values.astype(np.float32) for values in scores]
    if sum(values.size for values in scores) > EXACT_SCORES:
        # Round to 10 significant bits and to zero: zero bits take no room when compressed.
        rounded = [((s.view(np.uint32) + 0x2000) & 0xFFFFC000).view(np.float32) for s in singles]
        return [np.where(s < 1e-5, np.float32(0), s) for s in rounded], 3
    if all((abs(s - values) <= 5e-9 * values).all() for s, values in zip(singles, scores)):
        return singles, 9
    return scores, 17


def arrays(
    runs: list[Run], views: list[list[Run]], margins: np.ndarray, suggested: np.ndarray
) -> tuple[dict, bytes]:
    """All numbers of the page, compressed. `unpack` in page.js reads them in the same order."""
    count = len(runs[0].ids)
    exact, digits = exact_scores(runs)
    parts = [
        runs[0].truth.astype(np.uint8) if runs[0].has_truth else np.full(count, 255, np.uint8),
        suggested.astype(np.uint8),
        bytes_by_place(margins.astype("<f4")),
    ]
    parts += [figures.verdicts(view).astype(np.uint8) for view in views]
    for run, scores in zip(runs, exact):
        history = list(run.history.values()) or [run]
        parts += [one.guess.astype(np.uint8) for one in history]
        others = [np.rint(100 * one.scores).astype(np.uint8) for one in history if one.epoch != run.epoch]
        parts.append(np.stack(others, axis=2) if others else np.empty(0, np.uint8))  # (N, K, epochs)
        parts.append(bytes_by_place(scores.astype(scores.dtype.newbyteorder("<"))))
        truth_scores = np.stack([one.truth_score for one in history])
        for values in (truth_scores.mean(0), truth_scores.std(0)):
            parts.append(bytes_by_place(np.rint(65535 * values).astype("<u2")))
        parts += [values.astype(np.uint8) for values in figures.learning(run)]
    facts = {"count": count, "digits": digits}
    return facts, zlib.compress(b"".join(part.tobytes() for part in parts), 9)


def bytes_by_place(values: np.ndarray) -> np.ndarray:
    """The first byte of every value, then every second byte ... This order compresses better."""
    return np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize).T)
