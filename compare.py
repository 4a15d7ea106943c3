"""Look at predictions and compare them: a summary in the terminal and one self-contained HTML page.

    python compare.py runs/001                          look at the last epoch of a run
    python compare.py runs/001@1 runs/001@6             compare two epochs of it
    python compare.py runs/001 runs/002 other.csv       compare models; evaluate.py writes such CSV files

The page holds everything it shows, pictures included. It loads nothing from a network.
Open it, keep it, mail it.
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
from scipy.stats import binomtest

from data import DataError, load_data, load_split
from logging_utils import atomic_write, exit_status

ALL_RIGHT = "all right"
MAX_PNG_SIDE = 48  # pixels; larger pictures become JPEG, so that 10,000 take a few megabytes
MAX_CLASSES = 100  # more make confusion matrices and score bars unreadable
# The keys of config.json that are used here. Each may be missing.
CONFIG_TYPES = {
    "classes": list,
    "dataset": str,
    "data_dir": str,
    "val_size": int,
    "image_size": int,
    "parameters": int,
}
NOT_SETTINGS = {"run_dir", "data_dir", "classes", "parameters"}  # keys that are not compared as settings


class CompareError(Exception):
    """The predictions cannot be compared. The message says what is wrong, where, and what to do."""


# ----------------------------------------------------------------------------------------------------------
# Reading


@dataclass
class Run:
    """One model's predictions. All arrays are sorted by id."""

    name: str
    path: Path  # the run directory or the CSV file
    ids: np.ndarray  # (N,)
    truth: np.ndarray  # (N,) int
    guess: np.ndarray  # (N,) int
    scores: np.ndarray  # (N, K) float, each row sums to 1
    # The rest is None if the predictions come from a CSV file.
    epoch: int | None = None
    config: dict | None = None  # config.json
    metrics: pd.DataFrame | None = None  # metrics.csv: step, epoch, loss, wrong
    seconds: float | None = None  # training time up to this epoch, if the run recorded it

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
        """Mean cross entropy in nats. A score of 0 counts as the smallest normal float32."""
        return float(-np.log(np.maximum(self.truth_score, np.finfo(np.float32).tiny)).mean())


def load_run(argument: str) -> Run:
    """Load the predictions that an argument names: a run directory, RUN@EPOCH, or a CSV file."""
    path, epoch = Path(argument), None
    if not os.path.exists(path) and (match := re.fullmatch(r"(.+)@(\d{1,9})", argument)):
        path, epoch = Path(match[1]), int(match[2])
    if os.path.isfile(path) and epoch is None:
        return Run(path.stem, path, *read_predictions(path))
    if not os.path.isdir(path):
        raise CompareError(f"{argument} is not a run directory, RUN@EPOCH or a predictions CSV.")
    files = {}  # epoch -> its predictions file
    for file in (path / "predictions").glob("epoch-*.csv"):
        number = file.stem.removeprefix("epoch-")
        if number.isdecimal():
            files[int(number)] = file
    if not files:
        found = f"{path} is not a run: it has no predictions/epoch-001.csv."
        raise CompareError(f"{found} Train one with python train.py.")
    epoch = max(files) if epoch is None else epoch
    if epoch not in files:
        raise CompareError(f"{path} has no epoch {epoch}, only {', '.join(map(str, sorted(files)))}.")
    try:
        config = read_config(path / "config.json")
        seconds = read_train_seconds(path / "summary.json", epoch)
        metrics = read_metrics(path / "metrics.csv", files)
    except Exception as error:  # a damaged file can raise anything
        cure = f"Name its CSV file instead: {files[epoch]}"
        raise CompareError(f"{path} is damaged ({error}). {cure}") from error
    return Run(path.resolve().name, path, *read_predictions(files[epoch]), epoch, config, metrics, seconds)


def read_config(path: Path) -> dict:
    config = json.loads(path.read_text(encoding="utf-8"))
    for name, kind in CONFIG_TYPES.items():
        if config.get(name) is not None and not isinstance(config[name], kind):
            raise ValueError(f"{name} is {config[name]!r:.40}")
    return config


def read_train_seconds(path: Path, epoch: int) -> float | None:
    """Training time up to an epoch. None if the loop did not measure it."""
    times = json.loads(path.read_text(encoding="utf-8")).get("train_seconds") or []
    measured = all(times[:epoch])  # no 0 and no null
    return float(sum(times[:epoch])) if times and measured else None


def read_metrics(path: Path, predictions: dict[int, Path]) -> pd.DataFrame:
    """Step, epoch, loss and wrong of metrics.csv, NaN where a row has no value.

    If the file has no column `wrong`, it is counted from the predictions files (epoch -> file).
    """
    metrics = pd.read_csv(path)
    if "wrong" not in metrics:
        counts = []
        for epoch, file in sorted(predictions.items()):
            table = pd.read_csv(file, usecols=["guess", "truth"])
            counts.append((epoch, (table["guess"] != table["truth"]).sum()))
        metrics = pd.concat([metrics, pd.DataFrame(counts, columns=["epoch", "wrong"])])
    if "loss" not in metrics:
        metrics["loss"] = np.nan
    metrics = metrics[["step", "epoch", "loss", "wrong"]].astype(float)
    return metrics.where(metrics.abs() < 1e9)  # a chart cannot show infinity


def read_predictions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read ids, truths, guesses (N,) and scores (N, K) of a predictions file, sorted by id."""
    try:
        table = pd.read_csv(path, compression=None, low_memory=False)
    except (OSError, ValueError, ArithmeticError) as error:  # pandas' own errors are ValueErrors
        raise CompareError(f"{path} cannot be read as CSV: {str(error).splitlines()[0]}.") from error
    score_names = [name for name in table.columns if name.startswith("score_")]
    names, count = ["id", "truth", "guess", *score_names], len(score_names)
    missing = {"id", "guess", "truth", "score_0", "score_1"} - set(table.columns)
    if missing:
        absent = ", ".join(sorted(missing))
        raise CompareError(f"{path} has no column {absent}. Use a CSV file that evaluate.py wrote.")
    if score_names != [f"score_{k}" for k in range(count)]:
        raise CompareError(f"{path}: the score columns must be score_0 to score_{count - 1}, in order.")
    if count > MAX_CLASSES:
        raise CompareError(f"{path} has {count} classes. A page has room for {MAX_CLASSES}.")
    if table.empty:
        raise CompareError(f"{path} has no rows.")
    try:
        numbers = table[names].apply(pd.to_numeric, errors="coerce").to_numpy(float)  # (N, 3 + K)
    except (ArithmeticError, ValueError) as error:  # integers of hundreds of digits
        raise CompareError(f"{path} has a number that is too large.") from error
    bad = ~np.isfinite(numbers)
    with np.errstate(invalid="ignore"):  # an infinite value has no remainder
        bad[:, :3] |= (numbers[:, :3] > 2**53) | (numbers[:, :3] < 0) | (numbers[:, :3] % 1 != 0)
    bad[:, 1:3] |= numbers[:, 1:3] >= count
    bad[:, 3:] |= (numbers[:, 3:] < 0) | (numbers[:, 3:] > 1)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        name = names[column]
        value = str(table[name].iloc[row])[:40]
        raise CompareError(f"{path}, line {row + 2}: {name} cannot be {value!r}.")
    order = numbers[:, 0].argsort(kind="stable")
    ids, truth, guess = numbers[order, :3].astype(np.int64).T
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise CompareError(f"{path} has id {repeated[0]} twice.")
    return ids, truth, guess, numbers[order, 3:]


def make_labels_unique(runs: list[Run]) -> None:
    """Rename runs whose labels are equal: first to their paths, then to their paths and numbers."""
    for new_name in (lambda i, run: str(run.path), lambda i, run: f"{run.path} ({i + 1})"):
        labels = [run.label for run in runs]
        for i, run in enumerate(runs):
            if labels.count(labels[i]) > 1:
                run.name = new_name(i, run)


def check_same_test_set(runs: list[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        counts = first.scores.shape[1], run.scores.shape[1]
        if counts[0] != counts[1]:
            raise CompareError(f"{first.label} has {counts[0]} classes, {run.label} has {counts[1]}.")
        unshared = np.setxor1d(first.ids, run.ids)
        if len(unshared):
            has, lacks = (first, run) if unshared[0] in first.ids else (run, first)
            found = f"{has.label} has id {unshared[0]}, {lacks.label} does not"
            raise CompareError(f"The test sets differ: {found}.")
        differing = np.flatnonzero(first.truth != run.truth)
        if len(differing):
            n = differing[0]
            truths = f"{first.truth[n]} in {first.label}, {run.truth[n]} in {run.label}"
            raise CompareError(f"The test sets differ: the truth of id {first.ids[n]} is {truths}.")


def load_pictures(runs: list[Run], dataset: str | None, data_dir: str | None) -> list[str] | None:
    """Load the picture of every id, as a data URL. None if no data set is named.

    The data set is the first that a run names. If all runs are CSV files, it is MNIST.
    Raises CompareError if the data set is not available or is another one.
    """
    with_config = [run for run in runs if run.config is not None]
    naming = [run for run in with_config if run.config.get("dataset")]
    if with_config and not naming and dataset is None:
        print(f"no pictures: {with_config[0].label} names no data set; --dataset NAME adds them")
        return None
    config = (naming or with_config)[0].config if with_config else {}
    dataset = dataset or config.get("dataset") or "mnist"
    data_dir = data_dir or config.get("data_dir") or "data"
    val_size, image_size = config.get("val_size") or 0, config.get("image_size") or 28
    cure = "Set --dataset and --data_dir, or add --no_images for a page without pictures."
    try:
        if val_size:
            data = load_data(dataset, data_dir, val_size, image_size)
            images, labels = data.eval_images, data.eval_labels
        else:
            _, _, images, labels = load_split(dataset, data_dir, False, image_size, download=False)
    except DataError as error:
        raise CompareError(f"There are no pictures for the page: {error} {cure}") from error
    ids, truth = runs[0].ids, runs[0].truth
    if ids[-1] >= len(images) or (labels.numpy()[ids] != truth).any():
        found = f"{dataset} in {data_dir} is not the test set of {runs[0].label}."
        raise CompareError(f"There are no pictures for the page: {found} {cure}")
    return [data_url(images[i].permute(1, 2, 0).squeeze(2).numpy()) for i in ids]


def data_url(pixels: np.ndarray) -> str:
    """Pixels (H, W) or (H, W, 3) as a data URL: a lossless PNG, or JPEG for a large picture."""
    buffer, kind = io.BytesIO(), "png" if max(pixels.shape[:2]) <= MAX_PNG_SIDE else "jpeg"
    Image.fromarray(pixels).save(buffer, kind, quality=85)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


# ----------------------------------------------------------------------------------------------------------
# Comparing


def verdicts(runs: list[Run]) -> np.ndarray:
    """For each image one phrase (N,) that says how the runs did.

    Of two runs, "fixed" means that only the second is right, "broken" that only the first is.
    """
    wrong = np.stack([run.wrong for run in runs])  # (R, N)
    if len(runs) == 1:
        return np.where(wrong[0], "wrong", ALL_RIGHT)
    guesses = np.stack([run.guess for run in runs])
    same = (guesses == guesses[0]).all(0)
    masks = {
        ALL_RIGHT: ~wrong.any(0),
        "all wrong, same guess": wrong.all(0) & same,
        "all wrong, different": wrong.all(0) & ~same,
    }
    if len(runs) == 2:
        masks["fixed"], masks["broken"] = wrong[0] & ~wrong[1], wrong[1] & ~wrong[0]
    return np.select(list(masks.values()), list(masks), "disagree")


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
        """Exact McNemar test: a two-sided binomial test that `fixed` and `broken` are equally likely."""
        count = self.fixed + self.broken
        return float(binomtest(self.fixed, count).pvalue) if count else 1.0

    @property
    def verdict_text(self) -> str:
        p_value = self.p_value
        p = "p < 1e-15" if p_value < 1e-15 else f"p = {p_value:.2g}"
        if p_value >= 0.05:
            return f"no evidence of a difference, {p}"
        better = self.after if self.fixed > self.broken else self.before
        return f"{better.label} is better, {p}"


def most_confused(run: Run, classes: list[str], count: int = 5) -> list[str]:
    pairs = pd.Series(list(zip(run.truth[run.wrong], run.guess[run.wrong]))).value_counts()
    pairs = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [f"{classes[truth]} taken for {classes[guess]} ({n})" for (truth, guess), n in pairs]


def differing_settings(runs: list[Run]) -> dict[str, list[str]]:
    """The settings that differ between the run directories among `runs`: name -> one value per run."""
    configs = [run.config for run in runs]
    known = [config for config in configs if config is not None]
    names = dict.fromkeys(name for config in known for name in config if name not in NOT_SETTINGS)
    rows = {}
    for name in names:
        if len({str(config.get(name, "")) for config in known}) > 1:
            rows[name] = ["" if config is None else str(config.get(name, "")) for config in configs]
    return rows


def print_summary(runs: list[Run], pairs: list[Pair], classes: list[str]) -> None:
    width = max(len(run.label) for run in runs)
    print(f"{'run':{width}}   wrong    images  accuracy    loss")
    for run in runs:
        wrong, count = run.wrong.sum(), len(run.ids)
        accuracy = 100 * (1 - wrong / count)
        print(f"{run.label:{width}}  {wrong:6,}  {count:8,}  {accuracy:6.2f} %  {run.loss:6.4f}")
    for pair in pairs:
        counts = f"{pair.fixed} fixed, {pair.broken} broken, {pair.both_wrong} wrong in both"
        print(f"{pair.before.label} -> {pair.after.label}: {counts}; {pair.verdict_text}")
    for run in runs:
        print(f"most confused in {run.label}: {', '.join(most_confused(run, classes)) or 'nothing'}")


# ----------------------------------------------------------------------------------------------------------
# The page. All text from files and names must pass through `escape`.

escape = html.escape


def column_heads(runs: list[Run]) -> str:
    """One table column head per run, in the colour of the run."""
    heads = (f'<th scope="col" class="r{i % 6}">{escape(run.label)}</th>' for i, run in enumerate(runs))
    return "".join(heads)


def runs_section(runs: list[Run], pairs: list[Pair]) -> str:
    def cell(value) -> str:
        return f"<td>{'&ndash;' if value in (None, '') else escape(str(value))}</td>"

    configs = [run.config or {} for run in runs]
    parameters = [config.get("parameters") for config in configs]
    facts = {
        "epoch": [run.epoch for run in runs],
        "data set": [config.get("dataset") for config in configs],
        "accuracy": [f"{100 * (1 - run.wrong.mean()):.2f} %" for run in runs],
        "wrong": [f"{run.wrong.sum():,} of {len(run.ids):,}" for run in runs],
        "loss": [f"{run.loss:.4f}" for run in runs],
        "parameters": [None if count is None else f"{count:,}" for count in parameters],
        "training time": [None if run.seconds is None else f"{run.seconds:.1f} s" for run in runs],
    }
    rows = [f'<tr><th scope="row">{name}</th>{"".join(map(cell, row))}</tr>' for name, row in facts.items()]
    for name, row in differing_settings(runs).items():
        rows.append(f'<tr class="setting"><th scope="row">{escape(name)}</th>{"".join(map(cell, row))}</tr>')
    items = []
    for pair in pairs:
        names = f"<b>{escape(pair.before.label)} &rarr; {escape(pair.after.label)}</b>"
        counts = f"{pair.fixed} fixed, {pair.broken} broken, {pair.both_wrong} wrong in both"
        items.append(f"<li>{names}: {counts}. {escape(pair.verdict_text)}</li>")
    table = f"<table class=plain><tr><td></td>{column_heads(runs)}</tr>{''.join(rows)}</table>"
    return f'<h2>Runs</h2><div class="scroll">{table}</div><ul>{"".join(items)}</ul>'


def line_chart(title: str, curves: dict[int, list[tuple[float, float]]], marks: bool, log: bool) -> str:
    """An SVG of curves, run number -> points. `marks` writes values at the points, `log` scales y."""
    width, height, left, bottom = 520, 240, 46, 26
    scale, unscale = (math.log10, lambda y: 10**y) if log else (float, float)
    xs = [x for points in curves.values() for x, _ in points]
    ys = [scale(y) for points in curves.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys) if log else 0.0, max(ys)

    def to_svg(x: float, y: float) -> tuple[float, float]:
        right, up = (x - x0) / ((x1 - x0) or 1), (scale(y) - y0) / ((y1 - y0) or 1)
        return left + 14 + right * (width - left - 44), height - bottom - up * (height - bottom - 24)

    parts = [f'<line x1="{left}" y1="{height - bottom}" x2="{width}" y2="{height - bottom}" class="axis"/>']
    spacing = next(s for s in (n * 10**e for e in range(9) for n in (1, 2, 5)) if (x1 - x0) / s <= 8)
    for x in range(math.ceil(x0 / spacing) * spacing, math.floor(x1) + 1, spacing):
        parts.append(f'<text x="{to_svg(x, 1)[0]:.1f}" y="{height - 8}">{x:,}</text>')
    decades = [10.0**e for e in range(math.ceil(y0), math.floor(y1) + 1)] if log else []
    for value in decades if len(decades) > 1 else [unscale(y0), unscale((y0 + y1) / 2), unscale(y1)]:
        parts.append(f'<text x="{left}" y="{to_svg(x0, value)[1] + 4:.1f}" class="left">{value:.3g}</text>')
    for i, points in curves.items():
        svg_points = [to_svg(x, y) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in svg_points)
        parts.append(f'<polyline class="r{i % 6}" points="{path}"/>')
        for (x, y), (_, value) in zip(svg_points, points) if marks else ():
            parts.append(f'<circle class="r{i % 6}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
            text_y = y - 7 if i % 2 == 0 else y + 15  # the numbers of two curves must not overlap
            parts.append(f'<text class="r{i % 6}" x="{x:.1f}" y="{text_y:.1f}">{value:,.0f}</text>')
    chart = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{title}</figcaption>{chart}</figure>"


def curves_section(runs: list[Run]) -> str:
    """The charts over time, one curve per run directory. A chart without a point is left out."""
    wrong, loss, seen = {}, {}, set()
    for i, run in enumerate(runs):
        if run.metrics is None or run.path.resolve() in seen:
            continue
        seen.add(run.path.resolve())
        epochs = run.metrics.dropna(subset=["epoch", "wrong"])
        wrong[i] = list(zip(epochs["epoch"], epochs["wrong"]))
        steps = run.metrics.dropna(subset=["step", "loss"])
        bins = np.arange(len(steps)) * 300 // max(len(steps), 300)  # at most 300 points
        means = steps.groupby(bins).mean()
        loss[i] = [(x, y) for x, y in zip(means["step"], means["loss"]) if y > 0]
    charts = ""
    if any(wrong.values()):
        charts += line_chart("Wrong guesses by epoch", wrong, marks=True, log=False)
    if any(loss.values()):
        charts += line_chart("Training loss by step", loss, marks=False, log=True)
    if not charts:
        return ""
    labels = "".join(f'<li class="r{i % 6}">{escape(runs[i].name)}</li>' for i in wrong)
    return f'<h2>Wrong guesses over time</h2><ul class="legend">{labels}</ul><div class="row">{charts}</div>'


def score_bars(runs: list[Run], classes: list[str]) -> list[str]:
    """An SVG for every image: per class a group of bars, one bar a run. Hovering shows the exact scores."""
    count, wide = len(classes), 8 / len(runs)
    heights = [np.rint(run.scores * 30).astype(int).tolist() for run in runs]
    exact = [[[f"{score:.3g}" for score in row] for row in run.scores.tolist()] for run in runs]
    names = [escape(name) for name in classes]
    cells = []
    for n in range(len(runs[0].ids)):
        paths = ""
        for r, rows in enumerate(heights):
            lefts = (10 * k + 1 + r * wide for k in range(count))
            bars = (f"M{x:g} 30v-{high}h{wide:g}v{high}" for x, high in zip(lefts, rows[n]) if high)
            paths += f'<path class="r{r % 6}" d="{"".join(bars)}"/>'
        values = "\n".join(f"{names[k]}: {'  '.join(rows[n][k] for rows in exact)}" for k in range(count))
        title = f"<title>{values}</title>"
        cells.append(f'<svg class="bars" viewBox="0 0 {10 * count} 38">{paths}{title}</svg>')
    return cells


def axis_labels(classes: list[str]) -> str:
    """The class names below the score bars: one SVG behind all of them, as a CSS background."""
    texts = ""
    for k, name in enumerate(classes):
        texts += f'<text x="{10 * k + 5}" y="37" text-anchor="middle">{escape(name[:2])}</text>'
    size = f'viewBox="0 0 {10 * len(classes)} 38"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="8" fill="#888">{texts}</svg>'
    return f'url("data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}")'


def predictions_table(runs: list[Run], classes: list[str], pictures: list[str] | None) -> pd.DataFrame:
    names = np.array([escape(name) for name in classes])
    labels = [escape(run.label) for run in runs]
    first = runs[0]
    columns: dict[str, object] = {}
    if pictures:
        columns["image"] = [f'<img src="{url}" alt="image {i}">' for i, url in zip(first.ids, pictures)]
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
        groups = [np.flatnonzero(run.wrong & (run.guess == guess)) for run in runs]
        if any(len(indices) for indices in groups):
            cells = "".join(group_cell(run, group, classes, pictures) for run, group in zip(runs, groups))
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    body = "".join(rows) or f'<tr><td colspan="{len(runs) + 1}">nothing is wrong</td></tr>'
    table = f'<table class="groups"><tr><th scope="col">guess</th>{column_heads(runs)}</tr>{body}</table>'
    return f'<h2>Wrong guesses, grouped by guess</h2><div class="scroll">{table}</div>'


def group_cell(run: Run, indices: np.ndarray, classes: list[str], pictures: list[str] | None) -> str:
    """A table cell for some wrong guesses of a run: how many, a bar per true class, and the pictures."""
    if not len(indices):
        return "<td>0</td>"
    counts = np.bincount(run.truth[indices], minlength=len(classes))
    unit = 44 / counts.max()  # pixels per image
    bars = thumbs = ""
    for k in np.flatnonzero(counts):
        bar = f'<i style="height:{counts[k] * unit:.1f}px"></i>'
        bars += f'<span title="{escape(classes[k])}: {counts[k]}">{bar}{escape(classes[k][:6])}</span>'
    for n in indices if pictures else ():
        score = f"score of the guess {run.scores[n, run.guess[n]]:.3f}"
        title = f"id {run.ids[n]}, truth {escape(classes[run.truth[n]])}, {score}"
        thumbs += f'<img src="{pictures[n]}" alt="image {run.ids[n]}" title="{title}">'
    return f'<td><b>{len(indices)}</b><div class="truths">{bars}</div><div>{thumbs}</div></td>'


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


def interactive_table(table: pd.DataFrame) -> str:
    """The predictions as an HTML table that can be sorted, searched, queried, grouped and downloaded."""
    svg_columns = [i for i, name in enumerate(table.columns) if name in ("image", "scores")]
    download = {"extend": "csvHtml5", "text": "Download CSV", "exportOptions": {"columns": ":not(.drawn)"}}
    return itables.to_html_datatable(
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
        buttons=["pageLength", download],
        columnDefs=[{"targets": svg_columns, "className": "drawn", "orderable": False, "searchable": False}],
        searchBuilder={"columns": [i for i in range(table.shape[1]) if i not in svg_columns]},
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


def build_page(runs: list[Run], pairs: list[Pair], classes: list[str], pictures: list[str] | None) -> str:
    table = predictions_table(runs, classes, pictures)
    groups = [i for i, name in enumerate(table.columns) if name.startswith(("truth", "guess", "verdict"))]
    groups = [i for i in groups if not table.columns[i].startswith("truth score")]
    options = "".join(f'<option value="{i}">{table.columns[i]}</option>' for i in groups)
    legend = "".join(f'<li class="r{i % 6}">{escape(run.label)}</li>' for i, run in enumerate(runs))
    bundle_file = Path(itables.__file__).parent / "html/dt_bundle.js"
    bundle = itables.javascript.generate_init_offline_itables_html(bundle_file)
    facts = {
        "names": classes,
        "cells": [escape(name) for name in classes],  # the class names as they stand in the table
        "labels": [run.label for run in runs],
        "truth": table.columns.get_loc("truth"),
        "start": [{"condition": "!=", "data": "verdict", "type": "string", "value": [ALL_RIGHT]}],
        "guesses": [table.columns.get_loc(f"guess {escape(run.label)}") for run in runs],
    }
    title = escape(" vs ".join(run.label for run in runs))
    return f"""<!doctype html>
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
{interactive_table(table)}
{groups_section(runs, classes, pictures)}
{confusion_section(runs, classes)}
{bundle}
<script type="application/json" id="facts">{json.dumps(facts).replace("<", chr(92) + "u003c")}</script>
<script type="module">{JAVASCRIPT.replace("ITABLES", re.search(r"_itables_[0-9a-z_]+", bundle)[0])}</script>
</body>
</html>
"""


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

# The head of a group: how many of its images pass the filter, on all pages of the table.
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
let cell = null;  // {run, truth, guess} of the confusion cell whose images are shown

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

// The address holds the view after its #, so that a link to the view can be shared.
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
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], usage="%(prog)s [options] RUN [RUN ...]", allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directory (its last epoch), RUN@EPOCH, or CSV file")
    add("--out", default="compare.html", help="page to write [compare.html]")
    add("--dataset", help="data set of the pictures [that of the first run that names one]")
    add("--data_dir", help="folder of the data sets [that of the same run]")
    add("--no_images", action="store_true", help="make the page without pictures")
    return parser.parse_args(argv)


def compare(args: argparse.Namespace) -> None:
    runs = [load_run(argument) for argument in args.runs]
    make_labels_unique(runs)
    check_same_test_set(runs)
    count = runs[0].scores.shape[1]
    named = next((run.config["classes"] for run in runs if run.config and run.config.get("classes")), [])
    classes = [str(name) for name in (named if len(named) == count else range(count))]
    pairs = [Pair(*pair) for pair in itertools.combinations(runs, 2)]
    print_summary(runs, pairs, classes)
    pictures = None if args.no_images else load_pictures(runs, args.dataset, args.data_dir)
    page = build_page(runs, pairs, classes, pictures)
    try:
        with atomic_write(Path(args.out)) as scratch:
            scratch.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise CompareError(f"--out {args.out}: {error.strerror}. Choose another path.") from error
    print(f"page  {args.out} ({len(page.encode()) / 1e6:.1f} MB)")


def main() -> int:
    return exit_status(lambda: compare(parse_args()), {CompareError: ""})


if __name__ == "__main__":
    sys.exit(main())
