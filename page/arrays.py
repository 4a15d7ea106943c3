"""The numbers and pictures of the page as compact bytes, which data.js unpacks."""

import io
import math
import zlib

import numpy as np
from PIL import Image

from page import figures
from page.figures import Run
from page.scores import BEST

MAX_LOSSLESS_SIDE = 48  # pixels; larger pictures, and coloured ones, are compressed with loss
SHEET_PIXELS = 4_000_000  # of one sheet of pictures, so that a browser decodes only what it shows
MANY = 20_000  # pictures; more have 32 shades
EXACT_SCORES = 1_250_000  # more are rounded to 3 digits and 5 decimals, or the page would be too large
PAST_SCORES = 3_000_000  # of other epochs; with more, fewer than the ten best of each image are kept
NONE = 65535  # the number of no class


def base85(data: bytes) -> str:
    """Encode four bytes as five characters from # to w. ! stands for <, so that no data can end a script."""
    words = np.frombuffer(data + bytes(-len(data) % 4), dtype=">u4")
    digits = np.stack([words // 85**power % 85 for power in (4, 3, 2, 1, 0)], axis=1).astype(np.uint8) + 35
    digits[digits == ord("<")] = ord("!")
    return digits.tobytes().decode("ascii")


def sheets(pictures: np.ndarray) -> tuple[dict, list[bytes]]:
    """Put pictures (N, H, W, C) on sheets. Returns the layout of all sheets, and each as WebP."""
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
    """The values of the runs' scores, and how many digits of them are right.

    Files that train.py writes hold float32 values in nine digits. Others may hold float64 values.
    """
    scores = [run.scores.values for run in runs]
    singles = [values.astype(np.float32) for values in scores]
    if sum(values.size for values in scores) > EXACT_SCORES:
        # Round to 10 significant bits and to zero: zero bits take no room when compressed.
        rounded = [((s.view(np.uint32) + 0x2000) & 0xFFFFC000).view(np.float32) for s in singles]
        return [np.where(s < 1e-5, np.float32(0), s) for s in rounded], 3
    if all((abs(s - values) <= 5e-9 * values).all() for s, values in zip(singles, scores)):
        return singles, 9
    return scores, 17


def all_scores(run: Run, history: list[Run], exact: np.ndarray) -> list[np.ndarray]:
    """Whole percents of the other epochs (N, K, E - 1), then the exact scores of all classes (N, K)."""
    others = [np.rint(100 * one.scores.values).astype(np.uint8) for one in history if one.epoch != run.epoch]
    return [np.stack(others, axis=2) if others else np.empty(0, np.uint8), bytes_by_place(exact)]


def best_scores(
    run: Run, history: list[Run], exact: np.ndarray, count: int
) -> tuple[list[np.ndarray], list[list[int]]]:
    """Classes (M, N) and scores (M, N) of each epoch, exact or whole percents; how many are best, and M."""
    parts, widths = [], []
    for one in history:
        scores, values = run.scores, exact
        if one.epoch != run.epoch:
            scores = one.scores.best(count)
            for classes in (one.truth, one.guess):
                scores = scores.adding(classes, one.scores.of(classes))
            values = np.rint(100 * scores.values).astype(np.uint8)
        classes = np.where(values > 0, scores.classes, NONE)
        classes[:, 0] ^= one.guess  # mostly 0 then, which takes no room
        parts += [class_numbers(classes.T), bytes_by_place(values.T)]
        widths.append([scores.num_best, values.shape[1]])
    return parts, widths


def arrays(
    runs: list[Run], views: list[list[Run]], margins: np.ndarray, suggested: np.ndarray
) -> tuple[dict, bytes]:
    """All numbers of the page, compressed. `unpack` in data.js reads them in the same order."""
    count, full = len(runs[0].ids), runs[0].scores.classes is None
    exact, digits = exact_scores(runs)
    past = count * sum(max(0, len(run.history) - 1) for run in runs)
    parts = [
        class_numbers(runs[0].truth if runs[0].has_truth else np.full(count, NONE)),
        class_numbers(suggested),
        bytes_by_place(margins.astype("<f4")),
    ]
    parts += [figures.verdicts(view).astype(np.uint8) for view in views]
    widths = []  # by run and epoch, only of many classes
    for run, scores in zip(runs, exact):
        history = list(run.history.values()) or [run]
        scores = scores.astype(scores.dtype.newbyteorder("<"))
        parts += [class_numbers(one.guess) for one in history]
        if full:
            parts += all_scores(run, history, scores)
        else:
            best, width = best_scores(run, history, scores, max(1, min(BEST, PAST_SCORES // max(1, past))))
            parts, widths = parts + best, [*widths, width]
        truth_scores = np.stack([one.truth_score for one in history])
        for values in (truth_scores.mean(0), truth_scores.std(0)):
            parts.append(bytes_by_place(np.rint(65535 * values).astype("<u2")))
        parts += [values.astype(np.uint8) for values in figures.learning(run)]
    facts = {"count": count, "digits": digits, "widths": widths}
    return facts, zlib.compress(b"".join(part.tobytes() for part in parts), 9)


def class_numbers(classes: np.ndarray) -> np.ndarray:
    return bytes_by_place(classes.astype("<u2"))


def bytes_by_place(values: np.ndarray) -> np.ndarray:
    """The first byte of every value, then every second byte ... This order compresses better."""
    values = np.ascontiguousarray(values)
    return np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize).T)
