"""Bring runs together: the same images and truths, the classes in one order, labels that differ."""

import numpy as np

from page.figures import Run
from page.reading import CompareError


def make_labels_unique(runs: list[Run]) -> None:
    """Rename runs whose labels are equal: first to their paths, then to their paths and numbers."""
    for new_name in (lambda i, run: str(run.path), lambda i, run: f"{run.path} ({i + 1})"):
        labels = [run.label for run in runs]
        for i, run in enumerate(runs):
            if labels.count(labels[i]) > 1:
                for one in (run, *run.history.values()):
                    one.name = new_name(i, run)


def with_history(run: Run) -> list[Run]:
    return [run, *(one for epoch, one in run.history.items() if epoch != run.epoch)]


def share_classes(runs: list[Run]) -> list[str]:
    """Bring the classes of all runs into one order. Returns their names."""
    scored = [run for run in runs if run.has_scores]
    for run in scored[1:]:
        counts = scored[0].scores.shape[1], run.scores.shape[1]
        if counts[0] != counts[1]:
            found = f"{scored[0].label} has {counts[0]} classes, {run.label} has {counts[1]}"
            raise CompareError(f"{found}. Compare models of the same classes.")
    written = sorted({name for run in runs for name in run.classes or []})
    configured = [run.config["classes"] for run in runs if run.config and run.config.get("classes")]
    lists = [*([str(name) for name in names] for names in configured), *(run.classes for run in scored)]
    lists = [names for names in lists if names and (not scored or len(names) == scored[0].scores.shape[1])]
    names = lists[0] if lists else written
    count = scored[0].scores.shape[1] if scored else len(names) or max(run.scores.shape[1] for run in runs)
    names = names if len(names) == count else [str(k) for k in range(count)]
    for run in runs:
        size = run.scores.shape[1]
        unknown = [name for name in run.classes if name not in names] if run.classes else range(count, size)
        if unknown:
            found = f"{run.label} has the class {unknown[0]}, which is none of {', '.join(names):.200}"
            raise CompareError(f"{found}. Compare models of the same classes.")
        places = np.array([names.index(name) for name in run.classes] if run.classes else range(size))
        if size < count or (places != np.arange(count)).any():
            for one in with_history(run):
                scores = np.zeros((len(one.ids), count))
                scores[:, places] = one.scores
                one.scores, one.guess, one.truth = scores, places[one.guess], places[one.truth]
    return names


def share_test_set(runs: list[Run]) -> list[str]:
    """Check that all runs are of the same images and truths. Returns remarks on what some of them lack.

    If no run has the truth, the guesses of the first stand for it. If one has no scores, none has.
    """
    remarks = []
    labelled = [run for run in runs if run.has_truth]
    source = (labelled or runs)[0]
    for run in runs:
        unshared = sorted({*source.ids.tolist()} ^ {*run.ids.tolist()}, key=lambda id: (str(type(id)), id))
        if unshared:
            has, lacks = (source, run) if unshared[0] in source.ids else (run, source)
            found = f"{has.label} has id {unshared[0]}, {lacks.label} does not"
            raise CompareError(f"The test sets differ: {found}.")
        differing = np.flatnonzero(source.truth != run.truth) if run.has_truth else []
        if len(differing):
            n = differing[0]
            truths = f"{source.truth[n]} in {source.label}, {run.truth[n]} in {run.label}"
            raise CompareError(f"The test sets differ: the truth of id {source.ids[n]} is {truths}.")
    without_truth = [run.label for run in runs if not run.has_truth]
    if without_truth:
        known = f"that of {source.label}" if labelled else "unknown, so that only the guesses are shown"
        remarks.append(f"the truth of {', '.join(without_truth)} is {known}")
    without_scores = [run.label for run in runs if not run.has_scores]
    if without_scores:
        remarks.append(f"no scores in {', '.join(without_scores)}: the page leaves out what needs them")
    for one in (one for run in runs for one in with_history(run)):
        one.truth = source.truth if labelled else source.guess
        one.has_truth, one.has_scores = bool(labelled), not without_scores
        one.scores = np.eye(one.scores.shape[1])[one.guess] if without_scores else one.scores
    return remarks
