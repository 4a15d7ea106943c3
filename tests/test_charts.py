"""The labels of the page's charts, for any number of runs."""

from pathlib import Path

import numpy as np
import pytest

from page import charts
from page.figures import Run
from page.scores import Scores


def make_run(number: int, epochs: int = 5, images: int = 400) -> Run:
    """A run whose wrong guesses and losses become fewer, as those of the runs beside it."""
    generator = np.random.default_rng(number)
    truth = np.arange(images) % 3
    history = {}
    for epoch in range(1, epochs + 1):
        scores = generator.dirichlet((1, 1, 1), images)
        scores[np.arange(images), truth] += generator.random(images) * (epoch + 0.1 * number)
        scores = Scores(scores / scores.sum(1, keepdims=True))
        guess = scores.values.argmax(1)
        history[epoch] = Run(
            f"run-{number}", Path(f"runs/{number}"), np.arange(images), truth, guess, scores
        )
        history[epoch].epoch = epoch
    run = history[epochs]
    steps = np.arange(1, 100.0)
    run.history, run.losses = history, np.stack([steps, 2 / steps**0.5 + generator.random(99) / 20], axis=1)
    return run


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_labels_hide_no_curve_and_stay_in_the_chart(count):
    runs = [make_run(number) for number in range(count)]
    figures = [
        charts.wrong_chart(runs, [1, 2, 3, 4, 5]),
        charts.loss_chart(runs),
        charts.review_chart(runs),
        charts.reliability_chart(runs),
    ]
    for figure in figures:
        svg = figure.find("svg")
        curves = [line.get("points").split() for line in svg.findall("polyline")]
        curves = [np.array([point.split(",") for point in points], float) for points in curves]
        points = np.concatenate([charts.dense(curve) for curve in curves])
        labels = [text for text in svg.findall("text") if "label" in (text.get("class") or "")]
        assert len(curves) == len(labels) == count
        heights = [float(label.get("y")) for label in labels]
        assert min(np.diff(heights), default=charts.LINE) >= charts.LINE
        assert 0 < min(heights) and max(heights) < float(svg.get("viewBox").split()[3])
        for label, bottom in zip(labels, heights):
            x, width = float(label.get("x")), charts.LETTER * len(label.text)
            left = x if label.get("text-anchor") == "start" else x - width
            hidden = (points > (left, bottom - 9)) & (points < (left + width, bottom))
            assert not hidden.all(1).any(), (figure.find("figcaption").text, label.text)
