"""Look at predictions and compare them: a summary in the terminal and one self-contained HTML page.

    python compare.py runs/001                          look at a run
    python compare.py runs/001@1 runs/001@6             compare two epochs of it
    python compare.py runs/001 runs/002 other.csv       compare models; evaluate.py writes such CSV files

The page holds everything it shows: pictures, and the predictions of all epochs. It loads nothing from a
network. Open it, keep it, mail it.
"""

import argparse
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from data import DataError, load_data, load_split
from page.figures import Run, label_margins, make_pairs
from page.render import render_page
from program import atomic_write, exit_status

MAX_CLASSES = 100  # more make confusion matrices and score bars unreadable
MAX_EPOCHS = 20  # a longer run is shown at so many of its epochs
MIN_SUSPECTS = 100  # rows of the file that --suspects writes, if there are so many images
# The keys of config.json that are used here. Each may be missing.
CONFIG_TYPES = {
    "classes": list,
    "dataset": str,
    "data_dir": str,
    "val_size": int,
    "image_size": int,
    "parameters": int,
}


class CompareError(Exception):
    """The predictions cannot be compared. The message says what is wrong, where, and what to do."""


# ----------------------------------------------------------------------------------------------------------
# Reading


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
    pinned, epoch = epoch is not None, max(files) if epoch is None else epoch
    if epoch not in files:
        raise CompareError(f"{path} has no epoch {epoch}, only {', '.join(map(str, sorted(files)))}.")
    try:
        config = read_config(path / "config.json")
        seconds = {e: read_train_seconds(path / "summary.json", e) for e in files}
        losses = read_losses(path / "metrics.csv") if (path / "metrics.csv").exists() else None
    except Exception as error:  # a damaged file can raise anything
        cure = f"Name its CSV file instead: {files[epoch]}"
        raise CompareError(f"{path} is damaged ({error}). {cure}") from error
    predictions = read_predictions(files[epoch])
    run = Run(path.resolve().name, path, *predictions, epoch, config, losses, seconds[epoch], pinned)
    for e in choose_epochs(sorted(files), epoch):
        if e == epoch:
            run.history[e] = run
        elif (other := read_other_epoch(files[e], run)) is not None:
            run.history[e] = replace(run, epoch=e, seconds=seconds[e], guess=other[0], scores=other[1])
    return run


def choose_epochs(epochs: list[int], chosen: int) -> list[int]:
    """At most MAX_EPOCHS of the epochs, evenly spaced: with the chosen one and the last three."""
    kept = {chosen, *epochs[-3:]}
    places = np.linspace(0, len(epochs) - 1, min(len(epochs), MAX_EPOCHS - 3)).round().astype(int)
    return epochs if len(epochs) <= MAX_EPOCHS else sorted(kept | {epochs[i] for i in places})


def read_other_epoch(path: Path, run: Run) -> tuple[np.ndarray, np.ndarray] | None:
    """Guesses and scores of another epoch of a run. None, and a printed line, if the file does not fit."""
    try:
        ids, truth, guess, scores = read_predictions(path)
        same = np.array_equal(ids, run.ids) and np.array_equal(truth, run.truth)
        if same and scores.shape == run.scores.shape:
            return guess, scores
        reason = f"{path} has other images or classes than {run.label}."
    except CompareError as error:
        reason = str(error)
    print(f"an epoch is left out: {reason}")
    return None


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


def read_losses(path: Path) -> np.ndarray:
    """Steps and training losses (S, 2) of metrics.csv, without 0 and infinity, which a chart cannot show."""
    metrics = pd.read_csv(path)
    if "loss" not in metrics:
        metrics["loss"] = np.nan
    step, loss = metrics[["step", "loss"]].to_numpy(float).T
    shown = (0 <= step) & (step < 1e9) & (0 < loss) & (loss < 1e9)
    return np.stack([step[shown], loss[shown]], axis=1)


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
                for one in (run, *run.history.values()):
                    one.name = new_name(i, run)


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


def load_pictures(runs: list[Run], dataset: str | None, data_dir: str | None) -> np.ndarray | None:
    """Load the picture of every id: uint8 (N, H, W, 1 or 3). None if no data set is named.

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
            data = load_data(dataset, data_dir, val_size, image_size, download=False)
            images, labels = data.eval_images, data.eval_labels
        else:
            _, _, images, labels = load_split(dataset, data_dir, False, image_size, download=False)
    except DataError as error:
        raise CompareError(f"There are no pictures for the page: {error} {cure}") from error
    ids, truth = runs[0].ids, runs[0].truth
    if ids[-1] >= len(images) or (labels.numpy()[ids] != truth).any():
        found = f"{dataset} in {data_dir} is not the test set of {runs[0].label}."
        raise CompareError(f"There are no pictures for the page: {found} {cure}")
    return images[ids].permute(0, 2, 3, 1).numpy()


# ----------------------------------------------------------------------------------------------------------
# The terminal


def most_confused(run: Run, classes: list[str], count: int = 5) -> list[str]:
    pairs = pd.Series(list(zip(run.truth[run.wrong], run.guess[run.wrong]))).value_counts()
    pairs = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:count]
    return [f"{classes[truth]} taken for {classes[guess]} ({n})" for (truth, guess), n in pairs]


def print_summary(runs: list[Run], classes: list[str], margins: np.ndarray, suggested: np.ndarray) -> None:
    width = max(len(run.label) for run in runs)
    print(f"{'run':{width}}   wrong    images  accuracy    loss")
    for run in runs:
        counts = f"{run.wrong.sum():6,}  {len(run.ids):8,}"
        print(f"{run.label:{width}}  {counts}  {run.accuracy:6.2f} %  {run.loss:6.4f}")
    for pair in make_pairs(runs):
        counts = f"{pair.fixed} fixed, {pair.broken} broken, {pair.both_wrong} wrong in both"
        print(f"{pair.before.label} -> {pair.after.label}: {counts}; {pair.verdict_text}")
    for run in runs:
        print(f"most confused in {run.label}: {', '.join(most_confused(run, classes)) or 'nothing'}")
    print("suspected label errors: the lowest margins (--suspects FILE writes more)")
    rows = [("id", "label", "runs say", "margin")]
    for n in margins.argsort(kind="stable")[:10]:
        names = classes[runs[0].truth[n]], classes[suggested[n]]
        rows.append((str(runs[0].ids[n]), *names, f"{margins[n]:.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def write_suspects(path: str, run: Run, margins: np.ndarray, suggested: np.ndarray) -> None:
    """Write the images whose margin is negative, lowest first, or MIN_SUSPECTS images if that is more."""
    count = max(MIN_SUSPECTS, int((margins < 0).sum()))
    order = margins.argsort(kind="stable")[:count]
    columns = {"id": run.ids, "truth": run.truth, "suggested": suggested, "margin": margins.round(6)}
    table = pd.DataFrame({name: values[order] for name, values in columns.items()})
    write_file(path, "--suspects", table.to_csv(index=False))
    print(f"suspects  {path} ({len(order)} images)")


# ----------------------------------------------------------------------------------------------------------
# The command line


def write_file(path: str, flag: str, text: str) -> None:
    try:
        with atomic_write(Path(path)) as scratch:
            scratch.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise CompareError(f"{flag} {path}: {error.strerror}. Choose another path.") from error


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], usage="%(prog)s [options] RUN [RUN ...]", allow_abbrev=False
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directory (its last epoch), RUN@EPOCH, or CSV file")
    add("--out", default="compare.html", help="page to write [compare.html]")
    add("--suspects", help="also write this CSV file of images that may have a wrong label")
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
    margins, suggested = label_margins(runs)
    print_summary(runs, classes, margins, suggested)
    if args.suspects:
        write_suspects(args.suspects, runs[0], margins, suggested)
    pictures = None if args.no_images else load_pictures(runs, args.dataset, args.data_dir)
    page = render_page(runs, classes, pictures, margins, suggested)
    write_file(args.out, "--out", page)
    print(f"page  {args.out} ({len(page.encode()) / 1e6:.1f} MB)")


def main() -> int:
    return exit_status(lambda: compare(parse_args()), {CompareError: ""})


if __name__ == "__main__":
    sys.exit(main())
