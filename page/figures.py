"""What the page and the terminal say about predictions: the measures of a run, and runs compared."""

import itertools
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.special import bdtr

from page.scores import Scores, blocks

CALIBRATION_BINS = 15  # of equal width, as in Guo et al. 2017, "On Calibration of Modern Neural Networks"
SHORT = 13  # letters of a run's name where there is little room
MIN_SCORE = 1e-4  # a lower score of a label counts as this, so that no single epoch decides
# Of Linux, macOS or Windows; not the path of an address such as https://host/path.
ABSOLUTE_PATH = re.compile(
    r"(?:file://|(?<![\w:/\\.~-]))(?:/|[A-Za-z]:[\\/]+|\\\\+)[^\s/\\'\",;:][^\s'\",;:]*"
)
# How the runs did on an image, by their number. Of two, "fixed" means that only the second is right.
VERDICTS = {
    1: ["all right", "wrong"],
    2: ["all right", "fixed", "broken", "both wrong the same", "both wrong otherwise"],
    3: ["all right", "disagree", "all wrong the same", "all wrong otherwise"],
}
VERDICTS_WITHOUT_TRUTH = ["the same guess", "different guesses"]
# Keys of config.json that are not compared as settings.
NOT_SETTINGS = {
    "run_dir",
    "dataset",
    "data_dir",
    "classes",
    "parameters",
    "resume",
    "wandb_id",
    "wandb_lacks_part",
}


@dataclass(eq=False)
class Run:
    """One model's predictions at one epoch. All arrays are sorted by id."""

    name: str
    path: Path  # the run directory or the CSV file
    ids: np.ndarray  # (N,) int64, or text
    truth: np.ndarray  # (N,) int
    guess: np.ndarray  # (N,) int
    scores: Scores
    # If the file has no truth or no scores, the guesses of the first run and full scores stand for them.
    has_truth: bool = True
    has_scores: bool = True
    classes: list[str] | None = None  # the names in the CSV file, if it has any
    # The rest stays as it is if the predictions come from a CSV file.
    epoch: int | None = None
    config: dict | None = None  # config.json
    losses: np.ndarray | None = None  # (S, 2): step and training loss
    seconds: float | None = None  # training time up to this epoch, if the run recorded it
    pinned: bool = False  # given as RUN@EPOCH
    history: dict[int, "Run"] = field(default_factory=dict)  # epoch -> the run at that epoch
    short: str = ""  # the name in at most SHORT letters

    @property
    def label(self) -> str:
        return self.name if self.epoch is None else f"{self.name}@{self.epoch}"

    @property
    def short_label(self) -> str:
        return self.short if self.epoch is None else f"{self.short}@{self.epoch}"

    @property
    def wrong(self) -> np.ndarray:
        return self.guess != self.truth

    @property
    def accuracy(self) -> float:
        """In percent."""
        return 100 * (1 - self.wrong.mean())

    @property
    def confidence(self) -> np.ndarray:
        """The score of the guess (N,)."""
        return self.scores.of(self.guess)

    @property
    def truth_score(self) -> np.ndarray:
        return self.scores.of(self.truth)

    @property
    def loss(self) -> float:
        """Mean cross entropy in nats. A score of 0 counts as the smallest normal float32."""
        return float(np.log(1 / np.maximum(self.truth_score, np.finfo(np.float32).tiny)).mean())

    @property
    def with_history(self) -> list["Run"]:
        """The run, and then its other epochs."""
        return [self, *(one for epoch, one in self.history.items() if epoch != self.epoch)]

    def at(self, epoch: int) -> "Run":
        """The run at the last of its epochs that is not after `epoch`, or else at its first."""
        return self.history[max((e for e in self.history if e <= epoch), default=min(self.history))]


def make_views(runs: list[Run]) -> tuple[list[int | None], list[list[Run]], int]:
    """The positions of the page's slider: their epochs, the runs as each shows them, and the first shown.

    A run given as RUN@EPOCH stays there. If all are given like that, the slider moves the last one.
    """
    movable = [run for run in runs if len(run.history) > 1]
    moving = [run for run in movable if not run.pinned] or movable[-1:]
    if not moving:
        return [None], [runs], 0
    epochs = sorted({epoch for run in moving for epoch in run.history})
    views = [[run.at(epoch) if run in moving else run for run in runs] for epoch in epochs]
    return epochs, views, epochs.index(max(run.epoch for run in moving))


class Pair:
    """Two runs on the same images: what the second fixes and breaks, and whether that may be chance."""

    def __init__(self, before: Run, after: Run):
        self.before, self.after = before, after
        self.fixed = int((before.wrong & ~after.wrong).sum())
        self.broken = int((after.wrong & ~before.wrong).sum())
        self.both_wrong = int((before.wrong & after.wrong).sum())
        # Exact McNemar test: a two-sided binomial test that `fixed` and `broken` are equally likely.
        fewer, count = min(self.fixed, self.broken), self.fixed + self.broken
        self.p_value = min(1.0, 2 * float(bdtr(fewer, count, 0.5)))

    @property
    def better(self) -> Run | None:
        """The better run, or None without evidence."""
        if self.p_value >= 0.05:
            return None
        return self.after if self.fixed > self.broken else self.before

    @property
    def p_text(self) -> str:
        """The p-value; with more than one pair, after Holm's correction."""
        return "p < 1e-15" if self.p_value < 1e-15 else f"p = {self.p_value:.2g}"

    @property
    def verdict_text(self) -> str:
        verdict = f"{self.better.label} is better" if self.better else "no evidence of a difference"
        return f"{verdict}, {self.p_text}"


def make_pairs(runs: list[Run]) -> list[Pair]:
    """All pairs of runs. With more than one pair, the p-values are those of Holm's correction."""
    pairs = [Pair(*pair) for pair in itertools.combinations(runs, 2)]
    corrected = 0.0
    for i, pair in enumerate(sorted(pairs, key=lambda pair: pair.p_value)):
        corrected = max(corrected, min(1.0, (len(pairs) - i) * pair.p_value))
        pair.p_value = corrected
    return pairs


def directory_titles(runs: list[Run], short: bool = False) -> dict[int, str]:
    """Index of the first run of each directory -> its title: the name, with the epoch if names are equal."""
    places = {run.path.resolve(): i for i, run in reversed(list(enumerate(runs)))}
    names = [runs[i].name for i in places.values()]
    titles = {}
    for i in sorted(places.values()):
        name, label = (runs[i].short, runs[i].short_label) if short else (runs[i].name, runs[i].label)
        titles[i] = name if names.count(runs[i].name) == 1 else label
    return titles


def shorten_names(runs: list[Run]) -> None:
    """Name the runs without folders of the machine, and in few letters that tell them apart."""
    replace_absolute_paths(runs)
    names = sorted({run.name for run in runs})
    end = SHORT // 2
    short = [name if len(name) <= SHORT else f"{name[:end]}…{name[-end:]}" for name in names]
    if len({*short}) < len(names):  # long ones differ in their middle
        start = max(0, len(os.path.commonprefix(names)) - 3)
        parts = [f"…{name[start : start + SHORT - 2]}…" for name in names]
        short = [name if len(name) <= SHORT else part for name, part in zip(names, parts)]
    for run in runs:
        for one in run.with_history:
            one.short = short[names.index(run.name)]


def replace_absolute_paths(runs: list[Run]) -> None:
    """Rename runs that are named by absolute paths: to as many of the last parts as tell all names apart."""
    names = {run.name for run in runs}
    parts = {name: Path(name).parts if os.path.isabs(name) else [name] for name in names}
    for length in range(1, max(map(len, parts.values()))):
        tails = {name: "/".join(parts[name][-length:]) for name in names}
        if len({*tails.values()}) == len(names):
            for run in runs:
                for one in run.with_history:
                    one.name = tails.get(one.name, one.name)
            return


def without_folders(text: str) -> str:
    """The text with the last part of each absolute path: the page tells nothing of a machine's folders."""
    if os.path.isabs(text):
        return Path(text).name
    return ABSOLUTE_PATH.sub(lambda match: re.split(r"[\\/]", match[0].rstrip("\\/"))[-1], text)


def label_margins(runs: list[Run]) -> tuple[np.ndarray, np.ndarray]:
    """How well the label of each image fits the runs: margins (N,) in -1..1, and the best other class (N,).

    A margin is 2 s - 1: the score s of the label minus that of all other classes, where s is the geometric
    mean over all epochs of all runs. A mislabelled image has a low one.
    """
    views = {}  # an epoch of a run counts once, even if it is compared with itself
    for run in runs:
        for epoch, one in (run.history or {run.epoch: run}).items():
            views[run.path.resolve(), epoch] = one
    logs, suggested = np.zeros(len(runs[0].ids)), np.zeros(len(runs[0].ids), int)
    for run in views.values():
        logs += np.log(np.maximum(run.truth_score, MIN_SCORE)) / len(views)
    for images in blocks(len(logs), runs[0].scores.num_classes):
        others = sum(run.scores.take(images).full() for run in views.values())
        others[np.arange(len(others)), runs[0].truth[images]] = -1
        suggested[images] = others.argmax(1)
    return 2 * np.exp(logs) - 1, suggested


def verdicts(runs: list[Run]) -> np.ndarray:
    """How the runs did on each image (N,): a place in VERDICTS, or in VERDICTS_WITHOUT_TRUTH."""
    wrong, guess = np.stack([run.wrong for run in runs]), np.stack([run.guess for run in runs])  # (R, N)
    if not runs[0].has_truth:
        return (guess != guess[0]).any(0).astype(int)
    if len(runs) == 1:
        return wrong[0].astype(int)
    broken = (len(runs) == 2) & ~wrong[0]
    both = len(VERDICTS[min(len(runs), 3)]) - np.where((guess == guess[0]).all(0), 2, 1)
    return np.select([~wrong.any(0), wrong.all(0)], [0, both], 1 + broken)


def review_counts(run: Run) -> np.ndarray:
    """How many of the errors are among the k least sure images, for k = 1 ... N: (N,)."""
    return run.wrong[run.confidence.argsort(kind="stable")].cumsum()


def calibration(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, mean confidence and accuracy of each bin of confidence that is not empty."""
    bins = np.ceil(run.confidence * CALIBRATION_BINS).astype(int).clip(1) - 1  # (low, high]
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    confidence, right = (np.bincount(bins, x, CALIBRATION_BINS) for x in (run.confidence, ~run.wrong))
    filled = counts > 0
    return counts[filled], confidence[filled] / counts[filled], right[filled] / counts[filled]


def calibration_error(run: Run) -> float:
    """The expected calibration error, in 0..1."""
    counts, confidence, accuracy = calibration(run)
    return float((counts * abs(confidence - accuracy)).sum() / counts.sum())


def class_measures(run: Run) -> np.ndarray:
    """Precision, recall and F1 of each class in percent: (K, 3). A ratio without images is 0."""
    count = run.scores.num_classes
    hits = np.bincount(run.truth[~run.wrong], minlength=count)
    guesses, images = (np.bincount(x, minlength=count) for x in (run.guess, run.truth))
    parts = ((hits, guesses), (hits, images), (2 * hits, guesses + images))
    return np.stack([100 * part / np.maximum(whole, 1) for part, whole in parts], axis=1)


def confused_pairs(runs: list[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confused pairs, the most frequent first: truth (P,), guess (P,), and the count of each run (P, R)."""
    count = runs[0].scores.num_classes
    keys = [run.truth[run.wrong] * count + run.guess[run.wrong] for run in runs]
    pairs = np.unique(np.concatenate(keys))
    counts = [np.bincount(np.searchsorted(pairs, key), minlength=len(pairs)) for key in keys]
    counts = np.stack(counts, axis=1)
    order = (-counts.sum(1)).argsort(kind="stable")
    return pairs[order] // count, pairs[order] % count, counts[order]


def learning(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """For each image: the epoch since which all guesses are right, and how often a right guess turned wrong.

    The first is the place of that epoch among the E epochs, E if the last guess is wrong, E + 1 if all are.
    """
    wrong = np.stack([one.wrong for one in run.history.values()] or [run.wrong])  # (E, N)
    since = wrong.shape[0] - wrong[::-1].argmax(0)
    learned = np.where(wrong.any(0), since, 0) + wrong.all(0)
    return learned, (wrong[1:] & ~wrong[:-1]).sum(0)


def counted(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def answer(runs: list[Run]) -> tuple[str, str]:
    """Which run is better, as a headline and the figures behind it."""
    wrong = [f"{run.wrong.sum():,}" for run in runs]
    if not runs[0].has_truth:
        same, names = (verdicts(runs) == 0).sum(), " and ".join(run.label for run in runs)
        images = counted(len(runs[0].ids))
        if len(runs) == 1:
            return f"{names} guesses the classes of {images}", ": the truth is unknown"
        return f"{names} guess the same for {same:,} of {images}", ": the truth is unknown"
    if len(runs) == 1:
        headline = f"{runs[0].label} gets {wrong[0]} of {counted(len(runs[0].ids))} wrong"
        return headline, f": accuracy {runs[0].accuracy:.2f} %"
    pairs = make_pairs(runs)
    if len(runs) == 2:
        pair = pairs[0]
        counts = f"{pair.fixed:,} fixed and {pair.broken:,} broken by {runs[1].label}"
        headline = f"{pair.better.label} is better" if pair.better else "No evidence that either is better"
        return headline, f": {wrong[0]} against {wrong[1]} wrong, {counts} (McNemar {pair.p_text})"
    counts = f"{', '.join(wrong[:-1])} and {wrong[-1]} wrong"
    test = "McNemar with Holm's correction"
    best = min(runs, key=lambda run: run.wrong.sum())
    beaten = [pair for pair in pairs if pair.better is best]
    if not beaten:
        smallest = min(pairs, key=lambda pair: pair.p_value).p_text
        return "No evidence that any run is the best", f": {counts} (smallest {smallest}, {test})"
    names = " and ".join((pair.before if pair.after is best else pair.after).label for pair in beaten)
    worst = max(beaten, key=lambda pair: pair.p_value).p_text
    headline = f"{best.label} is better than {'all others' if len(beaten) == len(runs) - 1 else names}"
    return headline, f": {counts} ({worst.replace('=', '≤')}, {test})"


def differing_settings(runs: list[Run]) -> dict[str, list[str]]:
    """The settings that differ between the run directories among `runs`: name -> one value per run."""
    configs = [run.config for run in runs]
    known = [config for config in configs if config is not None]
    names = dict.fromkeys(name for config in known for name in config if name not in NOT_SETTINGS)
    rows = {}
    for name in names:
        if len({str(config.get(name, "")) for config in known}) > 1:
            texts = ["" if config is None else str(config.get(name, "")) for config in configs]
            rows[name] = [without_folders(text) for text in texts]
    return rows


def data_set_name(name: str) -> str:
    """What the page calls a data set."""
    return f"folder {Path(name).name}" if os.path.isabs(name) else without_folders(name)


def shared_data_set(runs: list[Run]) -> str:
    """The name of the data set and a comma, if it is one."""
    names = {run.config.get("dataset") for run in runs if run.config}
    return f"{data_set_name(names.pop())}, " if len(names) == 1 and None not in names else ""


def measures(runs: list[Run]) -> dict[str, list[str]]:
    rows = {
        "accuracy": [f"{run.accuracy:.2f} %" for run in runs],
        "wrong": [f"{run.wrong.sum():,}" for run in runs],
    }
    if runs[0].has_scores:
        rows["loss"] = [f"{run.loss:.4f}" for run in runs]
        rows["ECE"] = [f"{100 * calibration_error(run):.2f} %" for run in runs]
    return rows


def facts(runs: list[Run]) -> dict[str, list[str | None]]:
    """What is known of each run, and the settings that differ: name -> one text per run, or None."""
    configs = [run.config or {} for run in runs]
    parameters = [config.get("parameters") for config in configs]
    data_sets = [config.get("dataset") for config in configs]
    differ, data_sets = len({*data_sets}) > 1, [name and data_set_name(name) for name in data_sets]
    rows = {
        **({"data set": data_sets} if differ else {}),
        **(measures(runs) if runs[0].has_truth else {}),
        "parameters": [None if count is None else f"{count:,}" for count in parameters],
        "training": [None if run.seconds is None else f"{run.seconds:.1f} s" for run in runs],
    }
    known = {name: texts for name, texts in rows.items() if any(texts)}
    return {**known, **differing_settings(runs)}
