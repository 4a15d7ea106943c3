"""Look at predictions and compare them: a summary in the terminal and one self-contained HTML page.

    python compare.py runs/001                          look at a run
    python compare.py runs/001@1 runs/001@5             compare two epochs of it
    python compare.py runs/001 runs/002 other.csv       compare models, also those of other programs

evaluate.py writes such CSV files, and `page/reading.py` says what else is read.

The page holds everything it shows: pictures, and the predictions of all epochs, or of up to 20 if there are
more. It loads nothing from a network. Open it, keep it, mail it.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

try:
    import numpy as np
    import pandas as pd

    from data import DataError, digest, load_data, load_split
    from page.figures import Run, answer, confused_pairs, counted, label_margins, make_pairs
    from page.joining import is_epoch_of, make_labels_unique, share_classes, share_test_set
    from page.reading import Predictions, read_predictions
    from page.render import render_page
    from page.scores import certain
    from page.table import CompareError, Table
    from program import (
        atomic_write,
        check_writable,
        exit_status,
        files_of_run,
        printable,
        read_file,
        shorten,
        start_command,
    )
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    needed = "data.py, program.py, the folder page, and the packages of requirements.txt"
    print(f"error: {error.name} is missing. compare.py needs {needed}.", file=sys.stderr)
    sys.exit(2)

MAX_EPOCHS = 20  # a longer run is shown at so many of its epochs
MIN_SUSPECTS = 100  # rows of the file that --suspects writes, if there are so many images
MAX_RECORD = 2**24  # bytes of config.json and summary.json
# The keys of config.json that are used here, and the largest number. Each may be missing.
CONFIG_TYPES = {
    "classes": (list, None),
    "dataset": (str, None),
    "data_dir": (str, None),
    "val_size": (int, 2**31),
    "image_size": (int, 4096),
    "parameters": (int, 10**15),
}


# ----------------------------------------------------------------------------------------------------------
# Reading


def load_run(argument: str) -> Run:
    """Load the predictions that an argument names: a run directory, RUN@EPOCH, or a CSV file."""
    path, epoch = Path(argument), None
    if not os.path.exists(path) and (match := re.fullmatch(r"(.+)@(\d{1,9})", argument)):
        path, epoch = Path(match[1]), int(match[2])
    if os.path.isfile(path) and epoch is None:
        name = re.sub(r"(?<=.)(\.(csv|tsv|txt|tar))+$", "", path.stem)  # as in mine.csv.gz
        return make_run(name, path, read_csv(path, say))
    if not os.path.isdir(path):
        raise CompareError(f"{argument} is not a run directory, RUN@EPOCH or a predictions CSV.")
    files = {}  # epoch -> its predictions file
    for file in (path / "predictions").glob("epoch-*.csv"):
        number = file.stem.removeprefix("epoch-")
        if number.isdecimal():
            files[int(number)] = file
    if not files:
        found = f"{path} is not a run: it has no predictions/epoch-001.csv."
        raise CompareError(f"{found} Train one: {start_command('train')}")
    pinned = epoch is not None
    epoch = epoch if pinned else max(files)
    if epoch not in files:
        known = sorted(files)
        some = (
            ", ".join(map(str, known)) if len(known) < 20 else f"{len(known)} from {known[0]} to {known[-1]}"
        )
        raise CompareError(f"{path} has no epoch {epoch}, only {some}.")
    record = path / "config.json"
    try:
        config = read_config(record)
        record = path / "summary.json"
        seconds = read_train_seconds(record, files)
        record = path / "metrics.csv"
        losses = read_losses(record) if record.exists() else None
    except Exception as error:  # a damaged file can raise anything
        reason = getattr(error, "strerror", None) or error
        cure = f"Name the run's CSV file instead: {files[epoch]}"
        raise CompareError(f"{record} is missing or damaged ({reason!s:.200}). {cure}") from error
    run = make_run(path.resolve().name, path, read_csv(files[epoch], say))
    run = replace(run, epoch=epoch, config=config, losses=losses, seconds=seconds[epoch], pinned=pinned)
    for e in choose_epochs(sorted(files), epoch):
        if e == epoch:
            run.history[e] = run
        elif (other := read_other_epoch(files[e], run)) is not None:
            answers = dict(guess=other.guess, truth=other.truth, scores=other.scores, classes=other.classes)
            run.history[e] = replace(run, epoch=e, seconds=seconds[e], **answers)
    return run


def say(text: str) -> None:
    """Print a line that may hold names from files."""
    print(printable(text))


def read_csv(path: Path, tell=lambda remark: None) -> Predictions:
    """Read a predictions file, and tell what was done to its values."""
    try:
        content = read_file(path)
    except OSError as error:
        raise CompareError(f"{path} cannot be read: {error.strerror or error}. Name a CSV file.") from error
    predictions = read_predictions(str(path), content)
    for remark in predictions.remarks:
        tell(f"{path}: {remark}")
    return predictions


def make_run(name: str, path: Path, found: Predictions) -> Run:
    """The Run of a predictions file. Its guesses, and scores of 1, stand for what it does not have."""
    truth = found.guess if found.truth is None else found.truth
    count = len(found.classes or range(max(2, found.guess.max() + 1, truth.max() + 1)))
    scores = found.scores or certain(found.guess, count)
    has = {"has_truth": found.truth is not None, "has_scores": found.scores is not None}
    return Run(name, path, found.ids, truth, found.guess, scores, classes=found.classes, **has)


def choose_epochs(epochs: list[int], chosen: int) -> list[int]:
    """At most MAX_EPOCHS of the epochs, evenly spaced: with the chosen one and the last three."""
    if len(epochs) <= MAX_EPOCHS:
        return epochs
    places = np.linspace(0, len(epochs) - 1, MAX_EPOCHS - 3).round().astype(int)
    return sorted({chosen, *epochs[-3:], *(epochs[i] for i in places)})


def read_other_epoch(path: Path, run: Run) -> Run | None:
    """Another epoch of a run. None, and a printed line, if the file does not fit."""
    try:
        other = make_run(run.name, path, read_csv(path))
        if is_epoch_of(run, other):
            return other
        reason = f"{path} has other images or classes than {run.label}."
    except CompareError as error:
        reason = str(error)
    say(f"an epoch is left out: {reason}")
    return None


def read_record(path: Path) -> dict:
    record = json.loads(read_file(path, MAX_RECORD))
    if not isinstance(record, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return record


def read_config(path: Path) -> dict:
    config = read_record(path)
    for name, (kind, largest) in CONFIG_TYPES.items():
        value = config.get(name)
        good = value is None or isinstance(value, kind)
        good = good and not (kind is str and value and printable(value) != value)
        if not good or (kind is int and value is not None and not 0 <= value <= largest):
            raise ValueError(f"{name} is {value!r:.40}")
    return config


def read_train_seconds(path: Path, epochs: Iterable[int]) -> dict[int, float | None]:
    """Training time up to each epoch. None if the loop did not measure it."""
    times = read_record(path).get("train_seconds") or []
    measured = {epoch: times and all(times[:epoch]) for epoch in epochs}  # no 0 and no null
    return {epoch: float(sum(times[:epoch])) if measured[epoch] else None for epoch in epochs}


def read_losses(path: Path) -> np.ndarray:
    """Steps and training losses (S, 2) of metrics.csv, without 0 and infinity, which a chart cannot show."""
    table = Table(path.name, read_file(path))
    if "loss" not in table.header:
        return np.empty((0, 2))
    places = [table.header.index(name) for name in ("step", "loss")]
    table.read(places)
    step, loss = (table.columns[place].to_numpy(float) for place in places)
    shown = (0 <= step) & (step < 1e9) & (0 < loss) & (loss < 1e9)
    return np.stack([step[shown], loss[shown]], axis=1)


def load_pictures(runs: list[Run], dataset: str | None, data_dir: str | None) -> tuple:
    """Load the picture of every id: uint8 (N, H, W, 1 or 3), and its path (N,) in a folder of pictures.

    The data set is the first that a run names, or MNIST for CSV files alone, of ten classes without names.
    Without a data set there are no pictures, and in other data sets than folders no paths: None.
    Raises CompareError if the data set is not available or is another one.
    """
    with_config = [run for run in runs if run.config is not None]
    with_dataset = [run for run in with_config if run.config.get("dataset")]
    ids, truth = runs[0].ids, runs[0].truth
    numbered, may_be_mnist = ids.dtype != object, runs[0].scores.num_classes == 10 and not runs[0].classes
    if dataset is None and not (numbered and (with_dataset or (may_be_mnist and not with_config))):
        reason = (
            "names no data set" if numbered else f"has ids like {ids[0]!s:.40}, not places in a test set"
        )
        advice = "; --dataset NAME adds them" if numbered else ""
        say(f"no pictures: {(with_config or runs)[0].label} {reason}{advice}")
        return None, None
    config = (with_dataset or with_config)[0].config if with_config else {}
    dataset = dataset or config.get("dataset") or "mnist"
    data_dir = data_dir or config.get("data_dir") or "data"
    val_size, image_size = config.get("val_size") or 0, config.get("image_size") or 28
    cure = "Set --dataset and --data_dir, or add --no_images for a page without pictures."
    try:
        if val_size:
            data = load_data(dataset, data_dir, val_size, image_size, download=False)
            name, images, labels = data.name, data.eval_images, data.eval_labels
        else:
            name, _, images, labels = load_split(dataset, data_dir, False, image_size, download=False)
    except DataError as error:
        raise CompareError(f"There are no pictures for the page: {error} {cure}") from error
    differs = not numbered or ids[-1] >= len(images)
    if differs or (runs[0].has_truth and (labels.numpy()[ids] != truth).any()):
        found = f"{dataset} in {data_dir} is not the test set of {runs[0].label}."
        raise CompareError(f"There are no pictures for the page: {found} {cure}")
    first = images[: ids[-1] + 1] if with_dataset else images[:1]
    sampled = digest(first[:: first.numel() // 2**28 + 1], labels[: len(first)])  # as ImageData.fingerprint
    for run in with_dataset:
        record = run.config.get("data_sha256")
        if isinstance(record, list) and sampled not in record:
            say(f"warning: the pictures of {dataset} are not those that {run.label} was evaluated on")
    if images.shape[1] not in (1, 3):
        say(f"no pictures: the images of {dataset} have {images.shape[1]} channels, not 1 or 3")
        return None, None
    pictures, paths = images[ids].permute(0, 2, 3, 1).numpy(), None
    if os.path.isabs(name):  # a folder
        from sources.folders import list_pictures

        paths = np.array(list_pictures(Path(name), train=bool(val_size)), object)[ids]
    return pictures, paths


# ----------------------------------------------------------------------------------------------------------
# The terminal


def most_confused(run: Run, classes: list[str]) -> list[str]:
    pairs = [values[:5].tolist() for values in confused_pairs([run])]
    names = [shorten(name) for name in classes]
    return [f"{names[truth]} taken for {names[guess]} ({n})" for truth, guess, (n,) in zip(*pairs)]


def print_summary(runs: list[Run], classes: list[str]) -> None:
    width = max(len(run.label) for run in runs)
    say(f"{'run':{width}}   wrong    images  accuracy    loss")
    for run in runs:
        wrong, accuracy = (f"{run.wrong.sum():,}", f"{run.accuracy:.2f} %") if run.has_truth else ("–", "–")
        loss = f"{run.loss:.4f}" if run.has_truth and run.has_scores else "–"
        say(f"{run.label:{width}}  {wrong:>6}  {len(run.ids):8,}  {accuracy:>8}  {loss:>6}")
    if not runs[0].has_truth:
        say("".join(answer(runs)))
        return
    for pair in make_pairs(runs):
        counts = f"{pair.fixed:,} fixed, {pair.broken:,} broken, {pair.both_wrong:,} wrong in both"
        say(f"{pair.before.label} -> {pair.after.label}: {counts}; {pair.verdict_text}")
    for run in runs:
        say(f"most confused in {run.label}: {', '.join(most_confused(run, classes)) or 'nothing'}")


def print_suspects(run: Run, classes: list[str], margins: np.ndarray, suggested: np.ndarray) -> None:
    suspects = [n for n in margins.argsort(kind="stable")[:10] if margins[n] < 0]
    if not suspects:
        say("suspected label errors: none")
        return
    say("suspected label errors: the lowest margins (--suspects FILE writes more)")
    rows = [("id", "label", "suggested", "margin")]
    for n in suspects:
        names = shorten(classes[run.truth[n]]), shorten(classes[suggested[n]])
        rows.append((str(run.ids[n]), *names, f"{margins[n]:.4f}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        say("  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def write_suspects(
    path: str, run: Run, classes: list[str], margins: np.ndarray, suggested: np.ndarray
) -> None:
    """Write the images whose margin is negative, lowest first, or MIN_SUSPECTS images if that is more.

    Without a negative margin, the runs agree with the label, and `suggested` is empty.
    """
    count = max(MIN_SUSPECTS, int((margins < 0).sum()))
    order = margins.argsort(kind="stable")[:count]
    names = np.array([*classes, ""], object)
    suggested = np.where(margins < 0, suggested, -1)
    columns = {
        "id": run.ids,
        "truth": names[run.truth],
        "suggested": names[suggested],
        "margin": margins.round(6),
    }
    table = pd.DataFrame({name: values[order] for name, values in columns.items()})
    write_file(path, "--suspects", table.to_csv(index=False, lineterminator="\n"))
    say(f"suspects  {path} ({counted(len(order))})")


# ----------------------------------------------------------------------------------------------------------
# The command line


@contextmanager
def naming(flag: str, path: str) -> Iterator[None]:
    """Name the flag in errors of the file that it asks for."""
    try:
        yield
    except OSError as error:
        raise CompareError(f"{flag} {path}: {error.strerror}. Choose another path.") from error


def write_file(path: str, flag: str, text: str) -> None:
    with naming(flag, path), atomic_write(Path(path)) as scratch:
        scratch.write_bytes(text.encode(errors="backslashreplace"))  # text gets other line ends on Windows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]  # python -OO leaves it out
    usage = "%(prog)s [options] RUN [RUN ...]"
    parser = argparse.ArgumentParser(description=summary, usage=usage, allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run directory (its last epoch), RUN@EPOCH, or CSV file")
    add("--out", default="compare.html", help="page to write [compare.html]")
    add("--suspects", help="also write this CSV file of images that may have a wrong label")
    add("--dataset", help="data set of the pictures [that of the first run that names one]")
    add("--data_dir", help="folder of the data sets [that of the same run]")
    add("--no_images", action="store_true", help="make the page without pictures")
    return parser.parse_intermixed_args(argv)  # flags may stand between runs


def files_of(argument: str) -> Iterator[str]:
    """The paths of a CSV file, or of what train.py wrote to a run directory."""
    yield os.path.realpath(argument)
    yield from files_of_run(os.path.realpath(re.sub(r"@\d{1,9}$", "", argument)))


def compare(args: argparse.Namespace) -> None:
    taken = {path for argument in args.runs for path in files_of(argument)}
    for flag, path in (("--out", args.out), ("--suspects", args.suspects)):
        if path is None:
            continue
        if os.path.realpath(path) in taken:
            raise CompareError(f"{flag} {path} would replace another argument's file. Choose another path.")
        taken.add(os.path.realpath(path))
        with naming(flag, path):  # before the work, because it can take long
            check_writable(Path(path))
    runs = [load_run(argument) for argument in args.runs]
    make_labels_unique(runs)
    classes = share_classes(runs)
    for remark in share_test_set(runs, classes):
        say(remark)
    complete = runs[0].has_truth and runs[0].has_scores
    margins, suggested = label_margins(runs)
    if args.suspects and not complete:
        raise CompareError(f"--suspects {args.suspects} needs the truth and the scores of every image.")
    pictures, paths = (None, None) if args.no_images else load_pictures(runs, args.dataset, args.data_dir)
    print_summary(runs, classes)
    for run in runs if paths is not None else ():
        for one in run.with_history:
            one.ids = paths  # it says more than a number
    if complete:
        print_suspects(runs[0], classes, margins, suggested)
    if args.suspects:
        write_suspects(args.suspects, runs[0], classes, margins, suggested)
    page = render_page(runs, classes, pictures, margins, suggested)
    write_file(args.out, "--out", page)
    say(f"page  {args.out} ({len(page.encode(errors='backslashreplace')) / 1e6:.1f} MB)")


def main() -> int:
    return exit_status(lambda: compare(parse_args()), CompareError)


if __name__ == "__main__":
    sys.exit(main())
