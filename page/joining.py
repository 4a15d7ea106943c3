"""Bring runs together: the same images and truths, the classes in one order, labels that differ."""

import numpy as np

from page.figures import Run
from page.reading import order_remark
from page.scores import MAX_FULL, Scores, certain
from page.table import MAX_CLASSES, CompareError, to_nfc


def make_labels_unique(runs: list[Run]) -> None:
    """Rename runs whose labels are equal: first to their paths, then to their paths and numbers."""
    for new_name in (lambda i, run: str(run.path), lambda i, run: f"{run.path} ({i + 1})"):
        labels = [run.label for run in runs]
        for i, run in enumerate(runs):
            if labels.count(labels[i]) > 1:
                for one in run.with_history:
                    one.name = new_name(i, run)


def is_epoch_of(run: Run, other: Run) -> bool:
    """Whether both have the same images, truths and classes. A file may mention only some of the classes."""
    if (run.has_truth, run.has_scores) != (other.has_truth, other.has_scores):
        return False
    if run.scores.more_classes:
        alike = other.scores.more_classes and (run.classes is None) == (other.classes is None)
    else:
        alike = run.classes == other.classes and run.scores.num_classes == other.scores.num_classes
    truths = [one.truth if one.classes is None else np.array(one.classes)[one.truth] for one in (run, other)]
    return alike and np.array_equal(run.ids, other.ids) and (not run.has_truth or np.array_equal(*truths))


def natural(name: str) -> tuple:
    """The key that sorts names, numbers by their value."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def share_classes(runs: list[Run]) -> list[str]:
    """Bring the classes of all runs into one order. Returns their names."""
    full = [run for run in runs if not run.scores.more_classes]  # they tell how many classes there are
    for run in full[1:]:
        counts = full[0].scores.num_classes, run.scores.num_classes
        if counts[0] != counts[1]:
            found = f"{full[0].label} has {counts[0]} classes, {run.label} has {counts[1]}"
            raise CompareError(f"{found}. Compare models of the same classes.")
    every = [one for run in runs for one in run.with_history]
    written = sorted({name for one in every for name in one.classes or []}, key=natural)
    configured = [run.config["classes"] for run in runs if run.config and run.config.get("classes")]
    lists = [
        *([to_nfc(str(name)) for name in names] for names in configured),
        *(run.classes for run in full),
    ]
    lists = [names for names in lists if names and (not full or len(names) == full[0].scores.num_classes)]
    names = lists[0] if lists else written
    largest = max(one.scores.num_classes for one in every)
    count = full[0].scores.num_classes if full else len(names) or largest
    if count > MAX_CLASSES:
        raise CompareError(f"{runs[0].label} has {count:,} classes. A page has room for {MAX_CLASSES:,}.")
    names = names if len(names) == count else [str(k) for k in range(count)]
    places = {name: k for k, name in enumerate(names)}
    for one in every:
        size = one.scores.num_classes
        unknown = [name for name in one.classes if name not in places] if one.classes else range(count, size)
        if unknown:
            found = f"{one.label} has the class {unknown[0]}, which is none of {', '.join(names):.200}"
            raise CompareError(f"{found}. Compare models of the same classes.")
        moved = np.array([places[name] for name in one.classes] if one.classes else range(size))
        if size < count or (moved != np.arange(count)).any():
            one.scores = one.scores.renumber(moved, count)
            one.guess, one.truth = moved[one.guess], moved[one.truth]
    return names


def share_test_set(runs: list[Run], names: list[str]) -> list[str]:
    """Check that all runs are of the same images and truths. Returns remarks on what some of them lack.

    If no run has the truth, the guesses of the first stand for it. If one has no scores, none has.
    """
    named = names != [str(k) for k in range(len(names))]
    numbered = [run for run in runs if named and not (run.classes or (run.config or {}).get("classes"))]
    confirmed = any(run.has_truth and run not in numbered for run in runs)  # below, by the truths
    remarks = [f"{r.label}: {order_remark(names)}" for r in numbered if not (r.has_truth and confirmed)]
    labelled = [run for run in runs if run.has_truth]
    source = (labelled or runs)[0]
    for run in runs:
        unshared = sorted({*source.ids.tolist()} ^ {*run.ids.tolist()}, key=lambda id: (str(type(id)), id))
        if unshared:
            has, lacks = (source, run) if unshared[0] in source.ids else (run, source)
            found = f"{has.label} has id {unshared[0]}, {lacks.label} does not"
            raise CompareError(f"The test sets differ: {found}. Compare predictions of the same images.")
        differing = np.flatnonzero(source.truth != run.truth) if run.has_truth else []
        if len(differing):
            n = differing[0]
            truths = f"{names[source.truth[n]]} in {source.label}, {names[run.truth[n]]} in {run.label}"
            found = f"the truth of id {source.ids[n]} is {truths}"
            cure = "Compare predictions with the same truths"
            cure += ", or write names instead of numbers" * (source in numbered or run in numbered)
            raise CompareError(f"The test sets differ: {found}. {cure}.")
    without_truth = [run.label for run in runs if not run.has_truth]
    if without_truth:
        known = f"that of {source.label}" if labelled else "unknown, so that only the guesses are shown"
        remarks.append(f"the truth of {', '.join(without_truth)} is {known}")
    without_scores = [run.label for run in runs if not run.has_scores]
    if without_scores:
        remarks.append(f"no scores in {', '.join(without_scores)}: the page leaves out what needs them")
    for run in runs:
        for one in run.with_history:
            one.truth = source.truth if labelled else source.guess
            one.has_truth, one.has_scores = bool(labelled), not without_scores
            if without_scores:
                one.scores = certain(one.guess, one.scores.num_classes)
        lacking = run.scores.lacks(run.truth).sum() if run.has_truth and run.has_scores else 0
        if lacking:
            found = f"{run.label} does not tell the score of the truth of {lacking:,} images"
            remarks.append(f"{found}: it counts as an equal share of what the best scores leave")
        if run.has_scores and run.scores.classes is not None and run.scores.num_classes <= MAX_FULL:
            remarks.append(
                f"{run.label} has the best scores alone: the other classes share what these leave"
            )
        for one in run.with_history:
            known = one.scores
            one.scores = Scores(known.full()) if known.num_classes <= MAX_FULL else known.best()
            for classes in (one.truth, one.guess):
                one.scores = one.scores.adding(classes, known.of(classes))
    return remarks
