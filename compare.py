"""Look at predictions and compare them: a summary in the terminal and one HTML page that needs nothing else.

    python compare.py runs/001                          look at the last epoch of a run
    python compare.py runs/001@1 runs/001@6             compare its epochs
    python compare.py runs/001 runs/002 other.csv       compare models; a CSV may come from evaluate.py

The page holds everything it shows, pictures too, and asks no server for anything: open it, keep it, mail it.
"""

import argparse
import base64
import html
import io
import itertools
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import itables
import numpy as np
import pandas as pd
from PIL import Image

from data import DataError, load_data, load_split
from logging_utils import exit_status, replacing

ALL_RIGHT = "all right"
EXACT_PICTURE = 48  # pixels up to which a picture is kept exactly: ten thousand make a few megabytes
MAX_CLASSES = 100  # their matrices and score bars are still readable
USED_FACTS = {
    "classes": list,
    "dataset": str,
    "data_dir": str,
    "val_size": int,
    "image_size": int,
    "parameters": int,
}
RUN_FACTS = {"run_dir", "data_dir", "classes", "parameters"}  # in config.json, but not settings to compare


class CompareError(Exception):
    """The predictions cannot be compared. The message says what, where, and what to do."""


# ----------------------------------------------------------------------------------------------------------
# Reading


@dataclass
class Run:
    """One model's predictions, all arrays in the order of the ids."""

    name: str
    path: Path  # of the run directory or the CSV file
    ids: np.ndarray  # (N,)
    truth: np.ndarray  # (N,) int
    guess: np.ndarray  # (N,) int
    scores: np.ndarray  # (N, K) float, rows of probabilities
    epoch: int | None = None
    config: dict | None = None  # of the run directory, if it came from one
    metrics: pd.DataFrame | None = None  # its metrics.csv
    seconds: float | None = None  # of training until this epoch

    @property
    def label(self) -> str:
        return self.name if self.epoch is None else f"{self.name}@{self.epoch}"

    @property
    def wrong(self) -> np.ndarray:
        return self.guess != self.truth

    @property
    def truth_score(self) -> np.ndarray:
        return self.scores[np.arange(len(self.ids)), self.truth]

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats; a score that underflowed to 0 counts as the smallest float32."""
        return float(-np.log(np.maximum(self.truth_score, np.finfo(np.float32).tiny)).mean())


def load_run(argument: str) -> Run:
    """The predictions an argument stands for: a run directory, RUN@EPOCH, or a CSV file."""
    path, epoch = Path(argument), None
    if not os.path.exists(path) and (match := re.fullmatch(r"(.+)@(\d{1,9})", argument)):
        path, epoch = Path(match[1]), int(match[2])
    if os.path.isfile(path) and epoch is None:
        return Run(path.stem, path, *read_predictions(path))
    if not os.path.isdir(path):
        raise CompareError(f"{argument} is neither a run directory, RUN@EPOCH nor a predictions CSV")
    files = {
        int(file.stem[6:]): file
        for file in (path / "predictions").glob("epoch-*.csv")
        if file.stem[6:].isdecimal()
    }
    if not files:
        raise CompareError(
            f"{path} is not a run: it has no predictions/epoch-001.csv. Train one: python train.py"
        )
    epoch = max(files) if epoch is None else epoch
    if epoch not in files:
        raise CompareError(f"{path} has no epoch {epoch}, only {', '.join(map(str, sorted(files)))}")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        for name, kind in USED_FACTS.items():
            if not isinstance(config.get(name, kind()), kind):
                raise ValueError(f"{name} is {config[name]!r:.40}")
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        seconds = float(sum(summary["train_seconds"][:epoch]))
        metrics = pd.read_csv(path / "metrics.csv")[["step", "epoch", "loss", "wrong"]].astype(float)
        metrics = metrics.where(metrics.abs() < 1e9)  # no curve has a place for infinity
    except (
        OSError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise CompareError(
            f"{path} is damaged ({error}). Name its CSV file instead: {files[epoch]}"
        ) from error
    return Run(path.resolve().name, path, *read_predictions(files[epoch]), epoch, config, metrics, seconds)


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids, truths, guesses (N,) and scores (N, K) of a predictions file, sorted by id."""
    try:
        table = pd.read_csv(path, compression=None, low_memory=False)
    except (OSError, ValueError, ArithmeticError) as error:  # pandas' own errors are ValueErrors
        raise CompareError(f"{path} cannot be read as CSV: {str(error).splitlines()[0]}") from error
    columns = [name for name in table.columns if name.startswith("score_")]
    missing = {"id", "guess", "truth", "score_0", "score_1"} - set(table.columns)
    if missing:
        raise CompareError(
            f"{path} has no column {', '.join(sorted(missing))}. evaluate.py writes such files"
        )
    if columns != [f"score_{k}" for k in range(len(columns))]:
        raise CompareError(
            f"{path}: the score columns must be score_0 to score_{len(columns) - 1}, in order"
        )
    if len(columns) > MAX_CLASSES:
        raise CompareError(f"{path} has {len(columns)} classes, a page has room for {MAX_CLASSES}")
    if table.empty:
        raise CompareError(f"{path} has no rows")
    try:
        numbers = (
            table[["id", "truth", "guess", *columns]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
        )
    except (ArithmeticError, ValueError) as error:  # integers of hundreds of digits
        raise CompareError(f"{path} has a number that is too large") from error
    bad = ~np.isfinite(numbers)
    bad[:, :3] |= (numbers[:, :3] > 2**53) | (numbers[:, :3] < 0) | (numbers[:, :3] % 1 != 0)
    bad[:, 1:3] |= numbers[:, 1:3] >= len(columns)
    bad[:, 3:] |= (numbers[:, 3:] < 0) | (numbers[:, 3:] > 1)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        name = ["id", "truth", "guess", *columns][column]
        raise CompareError(f"{path}, line {row + 2}: {name} cannot be {str(table[name].iloc[row])[:40]!r}")
    order = numbers[:, 0].argsort(kind="stable")
    ids, truth, guess = numbers[order, :3].astype(np.int64).T
    if (ids[1:] == ids[:-1]).any():
        raise CompareError(f"{path} has id {ids[1:][ids[1:] == ids[:-1]][0]} twice")
    return ids, truth, guess, numbers[order, 3:]


def tell_apart(runs: list[Run]) -> None:
    """Make sure that no two labels are the same: by the runs' paths, or, where these are too, by number."""
    for distinct in (lambda i, run: str(run.path), lambda i, run: f"{run.path} ({i + 1})"):
        labels = [run.label for run in runs]
        for i, run in enumerate(runs):
            if labels.count(labels[i]) > 1:
                run.name = distinct(i, run)


def check_same_test_set(runs: list[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.scores.shape[1] != first.scores.shape[1]:
            classes = first.scores.shape[1], run.scores.shape[1]
            raise CompareError(f"{first.label} has {classes[0]} classes, {run.label} has {classes[1]}")
        only = np.setxor1d(first.ids, run.ids)
        if len(only):
            has, lacks = (first, run) if only[0] in first.ids else (run, first)
            raise CompareError(f"not the same test set: {has.label} has id {only[0]}, {lacks.label} has not")
        differ = np.flatnonzero(first.truth != run.truth)
        if len(differ):
            at = differ[0]
            truths = f"{first.truth[at]} in {first.label}, {run.truth[at]} in {run.label}"
            raise CompareError(f"not the same test set: the truth of id {first.ids[at]} is {truths}")


def load_pictures(runs: list[Run], dataset: str | None, data_dir: str | None) -> list[str]:
    """A picture for every id, as the address of an HTML image. Raises CompareError where there are none."""
    config = next((run.config for run in runs if run.config), {})
    dataset = dataset or config.get("dataset", "mnist")
    data_dir = data_dir or config.get("data_dir", "data")
    size = config.get("image_size", 28)
    cure = (
        "Name the --dataset and --data_dir they are from, or add --no_images for the page without pictures"
    )
    try:
        if config.get("val_size"):
            data = load_data(dataset, data_dir, config["val_size"], size)
            images, labels = data.test_images, data.test_labels
        else:
            _, _, images, labels = load_split(dataset, data_dir, False, size, download=False)
    except DataError as error:
        raise CompareError(f"no pictures: {error} {cure}") from error
    ids, truth = runs[0].ids, runs[0].truth
    if ids[-1] >= len(images) or (labels.numpy()[ids] != truth).any():
        raise CompareError(
            f"no pictures: {dataset} in {data_dir} is not the test set of {runs[0].label}. {cure}"
        )
    return [picture_address(images[i].permute(1, 2, 0).squeeze(2).numpy()) for i in ids]


def picture_address(pixels: np.ndarray) -> str:
    """Pixels (H, W) or (H, W, 3) as the address of an HTML image: exact, or where they are many, small."""
    buffer, kind = io.BytesIO(), "png" if max(pixels.shape[:2]) <= EXACT_PICTURE else "jpeg"
    Image.fromarray(pixels).save(buffer, kind, quality=85)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


# ----------------------------------------------------------------------------------------------------------
# Comparing


def verdicts(runs: list[Run]) -> np.ndarray:
    """(N,) words on how the runs did on each image. "fixed" and "broken" is what the second of two did."""
    wrong = np.stack([run.wrong for run in runs])  # (R, N)
    guesses = np.stack([run.guess for run in runs])
    same = (guesses == guesses[0]).all(0)
    choices = {ALL_RIGHT: ~wrong.any(0)}
    if len(runs) == 1:
        return np.where(wrong[0], "wrong", ALL_RIGHT)
    choices["all wrong, same guess"] = wrong.all(0) & same
    choices["all wrong, different"] = wrong.all(0) & ~same
    if len(runs) == 2:
        choices["fixed"], choices["broken"] = wrong[0] & ~wrong[1], wrong[1] & ~wrong[0]
    return np.select(list(choices.values()), list(choices), "disagree")


@dataclass
class Pair:
    """Two runs on the same images."""

    before: Run
    after: Run

    @property
    def fixed(self) -> int:
        return int((self.before.wrong & ~self.after.wrong).sum())

    @property
    def broken(self) -> int:
        return int((self.after.wrong & ~self.before.wrong).sum())

    @property
    def both_wrong(self) -> int:
        return int((self.before.wrong & self.after.wrong).sum())

    @property
    def p_value(self) -> float:
        """Exact McNemar test: the chance that `fixed` + `broken` fair coins fall at least this unevenly."""
        count, fewer = self.fixed + self.broken, min(self.fixed, self.broken)
        ways = tail = 1  # ways to choose k of count, and their sum over k = 0 .. fewer
        for k in range(1, fewer + 1):
            ways = ways * (count - k + 1) // k
            tail += ways
        return min(1.0, 2 * tail / 2**count)

    @property
    def words(self) -> str:
        p = "p < 1e-15" if self.p_value < 1e-15 else f"p = {self.p_value:.2g}"
        if self.p_value >= 0.05:
            return f"no evidence of a difference, {p}"
        better = self.after if self.fixed > self.broken else self.before
        return f"{better.label} is better, {p}"


def most_confused(run: Run, classes: list[str], count: int = 5) -> list[str]:
    pairs = pd.Series(list(zip(run.truth[run.wrong], run.guess[run.wrong]))).value_counts()
    pairs = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [f"{classes[truth]} taken for {classes[guess]} ({n})" for (truth, guess), n in pairs]


def differing_settings(runs: list[Run]) -> dict[str, list[str]]:
    """The settings in which the run directories among `runs` differ: name -> a value for each run."""
    configs = [run.config for run in runs]
    names = dict.fromkeys(name for config in configs if config for name in config if name not in RUN_FACTS)
    rows = {name: ["" if c is None else str(c.get(name, "")) for c in configs] for name in names}
    known = [i for i, config in enumerate(configs) if config is not None]
    return {name: row for name, row in rows.items() if len({row[i] for i in known}) > 1}


def print_summary(runs: list[Run], pairs: list[Pair], classes: list[str]) -> None:
    width = max(len(run.label) for run in runs)
    print(f"{'run':{width}}   wrong    images  accuracy    loss")
    for run in runs:
        wrong, count = run.wrong.sum(), len(run.ids)
        accuracy = 100 * (1 - wrong / count)
        print(f"{run.label:{width}}  {wrong:6,}  {count:8,}  {accuracy:6.2f} %  {run.loss:6.4f}")
    for pair in pairs:
        print(
            f"{pair.before.label} -> {pair.after.label}: {pair.fixed} fixed, {pair.broken} broken, ", end=""
        )
        print(f"{pair.both_wrong} wrong in both; {pair.words}")
    for run in runs:
        print(f"most confused in {run.label}: {', '.join(most_confused(run, classes)) or 'nothing'}")


# ----------------------------------------------------------------------------------------------------------
# The page. Text from files and names goes through `escape`, everywhere.

escape = html.escape


def run_heads(runs: list[Run]) -> str:
    """A table's column heads, one a run, in the colour of the run."""
    return "".join(
        f'<th scope="col" class="r{i % 6}">{escape(run.label)}</th>' for i, run in enumerate(runs)
    )


def runs_section(runs: list[Run], pairs: list[Pair]) -> str:
    def cell(value) -> str:
        return f"<td>{'&ndash;' if value in (None, '') else escape(str(value))}</td>"

    facts = {
        "epoch": [run.epoch for run in runs],
        "data set": [run.config and run.config.get("dataset") for run in runs],
        "accuracy": [f"{100 * (1 - run.wrong.mean()):.2f} %" for run in runs],
        "wrong": [f"{run.wrong.sum():,} of {len(run.ids):,}" for run in runs],
        "loss": [f"{run.loss:.4f}" for run in runs],
        "parameters": [run.config and f"{run.config.get('parameters', 0):,}" for run in runs],
        "training time": [run.seconds and f"{run.seconds:.1f} s" for run in runs],
    }
    rows = [f'<tr><th scope="row">{name}</th>{"".join(map(cell, row))}</tr>' for name, row in facts.items()]
    for name, row in differing_settings(runs).items():
        rows.append(f'<tr class="setting"><th scope="row">{escape(name)}</th>{"".join(map(cell, row))}</tr>')
    verdict = "".join(
        f"<li><b>{escape(pair.before.label)} &rarr; {escape(pair.after.label)}</b>: {pair.fixed} fixed, "
        f"{pair.broken} broken, {pair.both_wrong} wrong in both. {escape(pair.words)}</li>"
        for pair in pairs
    )
    table = f"<table class=plain><tr><td></td>{run_heads(runs)}</tr>{''.join(rows)}</table>"
    return f'<h2>Runs</h2><div class="scroll">{table}</div><ul>{verdict}</ul>'


def line_chart(title: str, curves: dict[int, list[tuple[float, float]]], marks: bool, log: bool) -> str:
    """An SVG of curves by run number. `marks` writes values at their points, `log` makes y logarithmic."""
    width, height, left, bottom = 520, 240, 46, 26
    scale, unscale = (math.log10, lambda y: 10**y) if log else (float, float)
    xs = [x for points in curves.values() for x, _ in points]
    ys = [scale(y) for points in curves.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys) if log else 0.0, max(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = (x - x0) / ((x1 - x0) or 1), (scale(y) - y0) / ((y1 - y0) or 1)
        return left + 14 + right * (width - left - 44), height - bottom - up * (height - bottom - 24)

    parts = [f'<line x1="{left}" y1="{height - bottom}" x2="{width}" y2="{height - bottom}" class="axis"/>']
    spacing = next(s for s in (n * 10**e for e in range(9) for n in (1, 2, 5)) if (x1 - x0) / s <= 8)
    for x in range(math.ceil(x0 / spacing) * spacing, math.floor(x1) + 1, spacing):
        parts.append(f'<text x="{place(x, 1)[0]:.1f}" y="{height - 8}">{x:,}</text>')
    decades = [10.0**e for e in range(math.ceil(y0), math.floor(y1) + 1)] if log else []
    for value in decades if len(decades) > 1 else [unscale(y0), unscale((y0 + y1) / 2), unscale(y1)]:
        parts.append(f'<text x="{left}" y="{place(x0, value)[1] + 4:.1f}" class="left">{value:.3g}</text>')
    for i, points in curves.items():
        placed = [place(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="r{i % 6}" points="{path}"/>')
        for (x, y), (_, value) in zip(placed, points) if marks else ():
            parts.append(f'<circle class="r{i % 6}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
            beside = y - 7 if i % 2 == 0 else y + 15  # so that two curves keep their numbers apart
            parts.append(f'<text class="r{i % 6}" x="{x:.1f}" y="{beside:.1f}">{value:,.0f}</text>')
    chart = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{title}</figcaption>{chart}</figure>"


def curves_section(runs: list[Run]) -> str:
    wrong, loss, seen = {}, {}, set()
    for i, run in enumerate(runs):
        if run.metrics is None or run.path.resolve() in seen:
            continue
        seen.add(run.path.resolve())
        epochs = run.metrics.dropna(subset=["epoch", "wrong"])
        wrong[i] = list(zip(epochs["epoch"], epochs["wrong"]))
        steps = run.metrics.dropna(subset=["step", "loss"])
        bins = steps.groupby(
            np.arange(len(steps)) * 300 // max(len(steps), 300)
        ).mean()  # 300 points at most
        loss[i] = [(x, y) for x, y in zip(bins["step"], bins["loss"]) if y > 0]
    if not any(wrong.values()) or not any(loss.values()):
        return ""
    labels = "".join(f'<li class="r{i % 6}">{escape(runs[i].name)}</li>' for i in wrong)
    charts = line_chart("Wrong guesses by epoch", wrong, marks=True, log=False)
    charts += line_chart("Training loss by step", loss, marks=False, log=True)
    return f'<h2>Wrong guesses over time</h2><ul class="legend">{labels}</ul><div class="row">{charts}</div>'


def score_bars(runs: list[Run], classes: list[str]) -> list[str]:
    """An SVG for every image: a group of bars for each class, one bar a run, the exact scores on hover."""
    count, wide = len(classes), 8 / len(runs)
    heights = [np.rint(run.scores * 30).astype(int).tolist() for run in runs]
    exact = [[[f"{score:.3g}" for score in row] for row in run.scores.tolist()] for run in runs]
    names = [escape(name) for name in classes]
    cells = []
    for n in range(len(runs[0].ids)):
        bars = ""
        for r, rows in enumerate(heights):
            tops = ((k, height) for k, height in enumerate(rows[n]) if height)
            path = "".join(
                f"M{10 * k + 1 + r * wide:g} 30v-{height}h{wide:g}v{height}" for k, height in tops
            )
            bars += f'<path class="r{r % 6}" d="{path}"/>'
        values = "\n".join(f"{names[k]}: {'  '.join(rows[n][k] for rows in exact)}" for k in range(count))
        cells.append(f'<svg class="bars" viewBox="0 0 {10 * count} 38">{bars}<title>{values}</title></svg>')
    return cells


def axis_labels(classes: list[str]) -> str:
    """The class names below the score bars: one picture behind all of them, as a CSS background."""
    texts = "".join(
        f'<text x="{10 * k + 5}" y="37" text-anchor="middle">{escape(name[:2])}</text>'
        for k, name in enumerate(classes)
    )
    size = f'viewBox="0 0 {10 * len(classes)} 38"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="8" fill="#888">{texts}</svg>'
    return f'url("data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}")'


def predictions_table(runs: list[Run], classes: list[str], pictures: list[str] | None) -> pd.DataFrame:
    names = np.array([escape(name) for name in classes])
    labels = [escape(run.label) for run in runs]
    first = runs[0]
    columns: dict[str, object] = {}
    if pictures:
        columns["image"] = [
            f'<img src="{address}" alt="image {i}">' for i, address in zip(first.ids, pictures)
        ]
    columns["id"] = first.ids
    columns["truth"] = names[first.truth]
    for label, run in zip(labels, runs):
        columns[f"guess {label}"] = names[run.guess]
    columns["verdict"] = verdicts(runs)
    columns["scores"] = score_bars(runs, classes)
    for label, run in zip(labels, runs):
        columns[f"truth score {label}"] = run.truth_score.round(4)
    return pd.DataFrame(columns)


def groups_section(runs: list[Run], classes: list[str], pictures: list[str] | None) -> str:
    rows = []
    for guess, name in enumerate(classes):
        chosen = [np.flatnonzero(run.wrong & (run.guess == guess)) for run in runs]
        if any(len(picks) for picks in chosen):
            cells = "".join(wrong_group(run, picks, classes, pictures) for run, picks in zip(runs, chosen))
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    body = "".join(rows) or f'<tr><td colspan="{len(runs) + 1}">nothing is wrong</td></tr>'
    table = f'<table class="groups"><tr><th scope="col">guess</th>{run_heads(runs)}</tr>{body}</table>'
    return f'<h2>Wrong guesses, grouped by guess</h2><div class="scroll">{table}</div>'


def wrong_group(run: Run, picks: np.ndarray, classes: list[str], pictures: list[str] | None) -> str:
    """A cell: how many of a run's wrong guesses these are, what they truly are, and their pictures."""
    if not len(picks):
        return "<td>0</td>"
    counts = np.bincount(run.truth[picks], minlength=len(classes))
    unit = 44 / counts.max()  # pixels
    bars = "".join(
        f'<span title="{escape(classes[k])}: {counts[k]}"><i style="height:{counts[k] * unit:.1f}px"></i>'
        f"{escape(classes[k][:6])}</span>"
        for k in np.flatnonzero(counts)
    )
    thumbs = "".join(
        f'<img src="{pictures[n]}" alt="image {run.ids[n]}" title="id {run.ids[n]}, truth '
        f'{escape(classes[run.truth[n]])}, score of the guess {run.scores[n, run.guess[n]]:.3f}">'
        for n in (picks if pictures else ())
    )
    return f'<td><b>{len(picks)}</b><div class="truths">{bars}</div><div>{thumbs}</div></td>'


def confusion_section(runs: list[Run], classes: list[str]) -> str:
    count = len(classes)
    names = [escape(name) for name in classes]
    tables = []
    for r, run in enumerate(runs):
        matrix = np.bincount(run.truth * count + run.guess, minlength=count**2).reshape(count, count)
        darkest = max(1, (matrix - np.diag(np.diag(matrix))).max())
        rows = []
        for truth in range(count):
            cells = ""
            for guess, n in enumerate(matrix[truth]):
                kind = "same" if truth == guess else "other"
                shade = 0 if truth == guess else n / darkest
                button = f'<button data-run="{r}" data-truth="{truth}" data-guess="{guess}">{n}</button>'
                cells += f'<td class="{kind}" style="--shade:{shade:.2f}">{button if n else ""}</td>'
            rows.append(f'<tr><th scope="row">{names[truth]}</th>{cells}</tr>')
        heads = "".join(f'<th scope="col">{name}</th>' for name in names)
        title = f'<caption class="r{r % 6}">{escape(run.label)}: truth down, guess across</caption>'
        tables.append(f'<table class="confusion">{title}<tr><td></td>{heads}</tr>{"".join(rows)}</table>')
    hint = "<p>Press a number to see its images in the table above.</p>"
    return f'<h2>Confusion</h2>{hint}<div class="scroll row">{"".join(tables)}</div>'


def build_page(runs: list[Run], pairs: list[Pair], classes: list[str], pictures: list[str] | None) -> str:
    table = predictions_table(runs, classes, pictures)
    drawn = [i for i, name in enumerate(table.columns) if name in ("image", "scores")]
    interactive = itables.to_html_datatable(
        table,
        table_id="predictions",
        classes="display compact",
        language={"searchBuilder": {"title": {"0": "Query", "_": "Query (%d)"}}},
        connected=False,
        allow_html=True,
        showIndex=False,
        maxBytes=0,
        column_filters=False,
        warn_on_undocumented_option=False,
        layout={
            "top1": "searchBuilder",
            "topStart": "buttons",
            "topEnd": "search",
            "bottomStart": "info",
            "bottomEnd": "paging",
        },
        buttons=[
            "pageLength",
            {"extend": "csvHtml5", "text": "Download CSV", "exportOptions": {"columns": ":not(.drawn)"}},
        ],
        columnDefs=[{"targets": drawn, "className": "drawn", "orderable": False, "searchable": False}],
        searchBuilder={"columns": [i for i in range(table.shape[1]) if i not in drawn]},
        rowGroup={
            "enable": False,
            "dataSrc": table.columns.get_loc("truth"),
            "startRender": itables.JavascriptFunction(GROUP_HEAD),
        },
        lengthMenu=[10, 25, 50, 100, 500],
        pageLength=25,
        order=[],
        scrollX=True,
    )
    groups = [i for i, name in enumerate(table.columns) if name.startswith(("truth", "guess", "verdict"))]
    groups = [i for i in groups if not table.columns[i].startswith("truth score")]
    options = "".join(f'<option value="{i}">{table.columns[i]}</option>' for i in groups)
    legend = "".join(f'<li class="r{i % 6}">{escape(run.label)}</li>' for i, run in enumerate(runs))
    bundle = itables.javascript.generate_init_offline_itables_html(
        Path(itables.__file__).parent / "html/dt_bundle.js"
    )
    facts = {
        "names": classes,
        "cells": [escape(name) for name in classes],  # as the table holds them
        "labels": [run.label for run in runs],
        "truth": table.columns.get_loc("truth"),
        "start": [{"condition": "!=", "data": "verdict", "type": "string", "value": [ALL_RIGHT]}],
        "guesses": [table.columns.get_loc(f"guess {escape(run.label)}") for run in runs],
    }
    title = escape(" vs ".join(run.label for run in runs))
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{CSS.replace("LABELS", axis_labels(classes))}</style>
</head>
<body>
<h1>{title}</h1>
{runs_section(runs, pairs)}
{curves_section(runs)}
<h2 id="table">Predictions</h2>
<ul class="legend">{legend}</ul>
<label>group by <select id="group"><option value="">nothing</option>{options}</select></label>
<button id="everything">show all images</button> <output id="cell"></output>
{interactive}
{groups_section(runs, classes, pictures)}
{confusion_section(runs, classes)}
{bundle}
<script type="application/json" id="facts">{json.dumps(facts).replace("<", chr(92) + "u003c")}</script>
<script type="module">{JAVASCRIPT.replace("ITABLES", re.search(r"_itables_[0-9a-z_]+", bundle)[0])}</script>
</body>
</html>
"""
    return page


CSS = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --faint: #8888;
  --r0: #0072b2; --r1: #d55e00; --r2: #009e73; --r3: #b0528a; --r4: #8a6d00; --r5: #2a9fd6; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --back: #161616;
  --r0: #4aa8e0; --r1: #ff8a3d; --r2: #2ec79a; --r3: #e48fc2; --r4: #d9b93b; --r5: #7fc9ef; } }
* { print-color-adjust: exact }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  max-width: 1200px; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2.5rem }
.scroll { overflow-x: auto } .row { display: flex; flex-wrap: wrap; gap: 1.5rem }
.r0 { --c: var(--r0) } .r1 { --c: var(--r1) } .r2 { --c: var(--r2) }
.r3 { --c: var(--r3) } .r4 { --c: var(--r4) } .r5 { --c: var(--r5) }
th[class^=r], caption, .legend li { color: var(--c); max-width: 24rem; overflow-wrap: anywhere }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 1rem }
.legend li::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .4em;
  background: var(--c) }
table.plain, table.groups, table.confusion { border-collapse: collapse }
.plain td, .plain th, .groups td, .groups th { border-bottom: 1px solid var(--faint); padding: .25rem .8rem;
  text-align: left; vertical-align: top; overflow-wrap: anywhere }
.setting { font-style: italic }
figure { margin: 0; flex: 1 1 320px; max-width: 560px } figure svg { width: 100% }
svg text { font-size: 11px; text-anchor: middle; fill: var(--text) } svg text.left { text-anchor: end }
svg text[class^=r] { fill: var(--c); font-weight: 600 } svg circle { fill: var(--c) }
svg polyline { fill: none; stroke: var(--c); stroke-width: 2 } .axis { stroke: var(--faint) }
.bars { width: 158px; height: 60px; display: block; background: LABELS 0 0 / 100% 100% no-repeat }
.bars path { fill: var(--c) }
img { width: 42px; height: 42px; object-fit: contain; image-rendering: pixelated; background: #000 }
.groups { width: 100% } .groups th:first-child { width: 1px }
.groups td { min-width: 260px } .groups td > div { margin: .3rem 0 } .groups img { margin: 1px }
.groups th { white-space: nowrap }
.truths { display: flex; gap: 3px; align-items: end }
.truths span { font-size: 11px; min-width: 16px; text-align: center }
.truths i { display: block; width: 14px; margin: auto; background: var(--faint) }
.confusion td { padding: 0; text-align: center; background: rgb(213 94 0 / calc(var(--shade) * .8)) }
.confusion th { font-weight: 400; padding: 0 .3rem } .confusion caption { text-align: left }
.confusion button { all: unset; cursor: pointer; min-width: 2.4rem; padding: .2rem 0 }
.confusion button:focus-visible { outline: 2px solid } .confusion .same { opacity: .4 }
@media print { .dt-layout-row:not(.dt-layout-table), label, #everything { display: none } }
"""

# How many images the filter leaves in a group, on all pages of the table.
GROUP_HEAD = """function (rows, group) {
  const column = new rows.constructor("#predictions").rowGroup().dataSrc();
  const values = new rows.constructor("#predictions").column(column, { search: "applied" }).data().toArray();
  return group + ": " + values.filter(value => String(value) === String(group)).length + " images";
}"""

JAVASCRIPT = """
const { default: DataTable, set_or_remove_dark_class: followTheme } = await window.ITABLES;
followTheme();
const facts = JSON.parse(document.getElementById("facts").textContent);
while (!DataTable.isDataTable("#predictions")) await new Promise(requestAnimationFrame);
const table = new DataTable.Api("#predictions");
const [group, cellShown] = ["group", "cell"].map(id => document.getElementById(id));
let cell = null;  // run, truth, guess: the cell of a confusion matrix whose images are shown

const showCell = chosen => {
  cell = chosen;
  const [truth, guess] = cell ? [facts.names[cell.truth], facts.names[cell.guess]] : [];
  cellShown.textContent = cell ? `truth ${truth}, guess ${guess} by ${facts.labels[cell.run]}` : "";
  table.search.fixed("cell", cell && ((text, row) =>
    row[facts.truth] == facts.cells[cell.truth] && row[facts.guesses[cell.run]] == facts.cells[cell.guess]));
};
const query = criteria => { table.search(""); table.searchBuilder.rebuild({ criteria, logic: "AND" }); };
document.getElementById("everything").onclick = () => { showCell(null); query([]); };
for (const button of document.querySelectorAll(".confusion button")) button.onclick = () => {
  showCell({ ...button.dataset });
  query([]);
  document.getElementById("table").scrollIntoView();
};

const regroup = () => {
  const column = Number(group.value);
  table.order.fixed(group.value ? { pre: [[column, "asc"]] } : {});
  if (group.value) table.rowGroup().dataSrc(column).rowGroup().enable(); else table.rowGroup().disable();
  table.draw();
};
group.onchange = regroup;

// The view is what follows the # in the address, so that a link to it can be shared.
if (location.hash) {
  const view = JSON.parse(decodeURIComponent(location.hash.slice(1)));
  showCell(view.cell);
  table.search(view.search).order(view.order).searchBuilder.rebuild(view.builder);
  group.value = view.group;
  regroup();
} else query(facts.start);
table.on("draw", () => {
  const builder = table.searchBuilder.getDetails();
  const view = { cell, search: table.search(), order: table.order(), builder, group: group.value };
  history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(view)));
});
document.documentElement.dataset.ready = "yes";
"""

# ----------------------------------------------------------------------------------------------------------
# The command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"error: {message} (see python compare.py --help)\n")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directory (its last epoch), RUN@EPOCH or CSV"
    )
    parser.add_argument("--out", default="compare.html", help="page to write [compare.html]")
    parser.add_argument("--dataset", help="where the pictures are from [the first run's data set]")
    parser.add_argument("--data_dir", help="folder of the data sets [the first run's]")
    parser.add_argument("--no_images", action="store_true", help="leave the pictures out")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> None:
    runs = [load_run(argument) for argument in args.runs]
    tell_apart(runs)
    check_same_test_set(runs)
    count = runs[0].scores.shape[1]
    named = [run.config["classes"] for run in runs if run.config and "classes" in run.config]
    classes = [str(name) for name in (named[0] if named and len(named[0]) == count else range(count))]
    pairs = [Pair(*pair) for pair in itertools.combinations(runs, 2)]
    print_summary(runs, pairs, classes)
    pictures = None if args.no_images else load_pictures(runs, args.dataset, args.data_dir)
    page = build_page(runs, pairs, classes, pictures)
    try:
        with replacing(Path(args.out)) as scratch:
            scratch.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise CompareError(f"--out {args.out}: {error.strerror}. Choose another path") from error
    print(f"page  {args.out} ({len(page.encode()) / 1e6:.1f} MB)")


def main() -> int:
    return exit_status(lambda: compare(parse_args()), CompareError)


if __name__ == "__main__":
    sys.exit(main())
