"""The charts of the page as SVG."""

import math

import numpy as np

from page import figures
from page.elements import Element, h, run_class
from page.figures import Run

MAX_CURVE = 80  # points of a curve
LEFT, RIGHT, TOP, BOTTOM = 36, 8, 8, 30  # the margins of a chart
LETTER, LINE = 6.5, 13  # width of a letter and height of a line of text


def round_ticks(high: float, count: int = 4, whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to the first that is not below `high`."""
    power = 10.0 ** math.floor(math.log10(max(high, 1e-9) / count))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * count >= high)
    step = max(step, 1.0) if whole else step
    return [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]


class Chart:
    """An SVG with two axes. `x` and `y` map values to its coordinates."""

    def __init__(
        self, xs: list[float], ys: list[float], size: tuple[int, int] = (260, 168), log: bool = False
    ):
        self.xs, self.ys, self.log, self.parts, self.curves = xs, ys, log, [], []
        self.size, self.right, self.bottom = size, size[0] - RIGHT, size[1] - BOTTOM

    def x(self, value: float) -> float:
        low, high = self.xs[0], self.xs[-1]
        return LEFT + (value - low) / ((high - low) or 1) * (self.right - LEFT)

    def y(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.ys[0], self.ys[-1], value))
        return self.bottom - (value - low) / ((high - low) or 1) * (self.bottom - TOP)

    def axes(self, x_title: str, y_format: str = "{:,.10g}", x_ticks: list[float] | None = None) -> None:
        for value in self.ys:
            y = round(self.y(value), 1)
            self.parts.append(h("line", x1=LEFT, x2=self.right, y1=y, y2=y, class_="grid"))
            self.text(y_format.format(value), LEFT - 4, y + 4, "end")
        for value in x_ticks or self.xs:
            self.text(f"{value:,.10g}", self.x(value), self.bottom + 13)
        self.text(x_title, (LEFT + self.right) / 2, self.size[1] - 3)

    def text(self, text: str, x: float, y: float, anchor: str = "middle", kind: str | None = None) -> None:
        self.parts.append(h("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=kind))

    def curve(self, run: int, points: list[tuple[float, float]]) -> None:
        places = [(self.x(x), self.y(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        self.parts.append(h("polyline", points=path, class_=run_class(run)))
        self.curves.append(np.array(places))

    def dot(self, run: int, x: float, y: float, radius: float, title: str, **attributes) -> None:
        place = {"cx": f"{self.x(x):.1f}", "cy": f"{self.y(y):.1f}", "r": f"{radius:.1f}"}
        self.parts.append(h("circle", h("title", title), **place, class_=run_class(run), **attributes))

    def labels(self, texts: dict[int, str], corner: str) -> None:
        """One line of text per run: in this corner, in another if they hide a curve, or below the chart."""
        wide, high = LETTER * max(map(len, texts.values())) + 4, LINE * len(texts) + 4
        points = np.concatenate([dense(curve) for curve in self.curves] or [np.empty((0, 2))])

        def place(corner: str) -> tuple[float, float]:
            left = LEFT if corner.endswith("left") else self.right - wide
            return left, TOP if corner.startswith("upper") else self.bottom - high

        def is_free(corner: str) -> bool:
            inside = points - place(corner)
            return not ((0 < inside) & (inside < (wide, high))).all(1).any()

        corners = filter(is_free, (corner, "lower right", "upper left", "upper right", "lower left"))
        if corner := next(corners, None):
            left, top = place(corner)
        else:
            corner, left, top = "below left", LEFT, self.size[1]
            self.size = self.size[0], self.size[1] + high
        x, anchor = (left + 4, "start") if corner.endswith("left") else (self.right - 2, "end")
        for line, (run, text) in enumerate(texts.items(), 1):
            self.text(text, x, top + LINE * line - 1, anchor, f"label {run_class(run)}")

    def figure(self, title: str, hint: str, summary: str) -> Element:
        box = f"0 0 {self.size[0]} {self.size[1]}"
        svg = h("svg", *self.parts, viewBox=box, role="img", aria_label=f"{title}: {summary}")
        return h("figure", h("figcaption", title, " ", h("span", hint, class_="hint")), svg)


def dense(curve: np.ndarray) -> np.ndarray:
    """Points (M, 2) of the lines between the points (N, 2) of a curve."""
    steps = np.linspace(0, 1, 20)[:, None, None]
    return (curve[:1] if len(curve) == 1 else curve[:-1] + steps * np.diff(curve, axis=0)).reshape(-1, 2)


def named(texts: dict[int, str], runs: list[Run]) -> str:
    return ", ".join(f"{runs[r].label} {text}" for r, text in texts.items())


def wrong_chart(runs: list[Run], epochs: list[int]) -> Element | None:
    """Wrong guesses by epoch, one curve per run directory. The runs' own epochs are marked."""
    curves = {run.path.resolve(): (i, run) for i, run in reversed(list(enumerate(runs))) if run.history}
    counts = {
        path: [(e, one.wrong.sum()) for e, one in run.history.items()] for path, (_, run) in curves.items()
    }
    points = [point for curve in counts.values() for point in curve]
    if len({epoch for epoch, _ in points}) < 2:
        return None
    last = max(epoch for epoch, _ in points)
    first, most = min(epoch for epoch, _ in points), max(count for _, count in points)
    chart = Chart([first, last], round_ticks(max(1, 1.1 * most), whole=True))
    ticks = [tick for tick in round_ticks(last, 8, whole=True) if chart.xs[0] <= tick <= last]
    chart.axes("epoch", x_ticks=ticks)
    for path, (i, _) in sorted(curves.items(), key=lambda item: item[1][0]):
        chart.curve(i, counts[path])
        for epoch, count in counts[path]:
            position = epochs.index(epoch) if epoch in epochs else None
            chart.dot(i, epoch, count, 3, f"epoch {epoch}: {count:,} wrong", data_view=position)
    here = {i: run for i, run in enumerate(runs) if run.history}
    labels = {}
    for i, run in sorted(here.items(), key=lambda item: -item[1].wrong.sum()):  # from the top
        chart.dot(i, run.epoch, run.wrong.sum(), 5, f"{run.label}: {run.wrong.sum():,} wrong")
        labels[i] = f"{run.short_label} {run.wrong.sum():,}"
    chart.labels(labels, "upper right")
    texts = {i: f"{run.wrong.sum():,}" for i, run in here.items()}
    return chart.figure("Wrong by epoch", "click a point", named(texts, runs))


def loss_chart(runs: list[Run]) -> Element | None:
    curves, titles = {}, figures.directory_titles(runs)
    for i in titles:
        run = runs[i]
        if run.losses is not None and len(run.losses):
            parts = np.array_split(run.losses, min(len(run.losses), MAX_CURVE))
            curves[i] = [tuple(part.mean(0)) for part in parts]
    if not curves:
        return None
    steps, values = zip(*(point for curve in curves.values() for point in curve))
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    rounds = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    inside = [i for i, value in enumerate(rounds) if min(values) <= value <= max(values)]
    low, high = (min(inside), max(inside)) if inside else (0, 0)
    ys = rounds[max(low - 1, 0) : high + 2]
    chart = Chart(round_ticks(max(steps), 3), ys[:: math.ceil(len(ys) / 6)], log=True)
    chart.ys = sorted({*chart.ys, ys[-1]})
    chart.axes("step")
    for i, curve in curves.items():
        chart.curve(i, curve)
    last_values = {i: f"{curve[-1][1]:.3g}" for i, curve in curves.items()}
    names = figures.directory_titles(runs, short=True)
    chart.labels({i: f"{names[i]} {value}" for i, value in last_values.items()}, "upper right")
    return chart.figure("Training loss", "by step", named(last_values, runs))


def review_chart(runs: list[Run]) -> Element:
    """How many of the errors are found when the least sure images are reviewed first."""
    count = len(runs[0].ids)
    marked = max(1, round(count / 50))  # 200 of MNIST's 10,000
    chart = Chart(round_ticks(min(count, marked * 2.5), 5, whole=True), round_ticks(100))
    chart.axes("images reviewed", "{:.0f} %")
    places = np.unique(np.linspace(1, min(count, chart.xs[-1]), MAX_CURVE).astype(int))
    texts = {}
    for i, run in enumerate(runs):
        found, total = figures.review_counts(run), run.wrong.sum()
        texts[i] = f"{found[marked - 1]:,} of {total:,}"
        if total:
            chart.curve(i, [(0, 0), *((k, 100 * found[k - 1] / total) for k in places)])
            chart.dot(
                i, marked, 100 * found[marked - 1] / total, 4, f"{marked:,} least sure: {texts[i]} errors"
            )
    chart.labels({i: f"{runs[i].short_label} {text}" for i, text in texts.items()}, "lower right")
    return chart.figure("Review curve", f"{marked:,} least sure", named(texts, runs))


def reliability_chart(runs: list[Run]) -> Element:
    chart = Chart(round_ticks(100, 5), round_ticks(100))
    chart.axes("score of the guess, %", "{:.0f} %")
    ends = {"x1": chart.x(0), "x2": chart.x(100), "y1": chart.y(0), "y2": chart.y(100)}
    chart.parts.append(h("line", **ends, class_="ideal"))
    texts = {}
    for i, run in enumerate(runs):
        counts, confidence, accuracy = figures.calibration(run)
        chart.curve(i, list(zip(100 * confidence, 100 * accuracy)))
        for n, x, y in zip(counts, 100 * confidence, 100 * accuracy):
            radius = 1.5 + 3 * math.sqrt(n / len(run.ids))
            chart.dot(i, x, y, radius, f"{figures.counted(n)}: score {x:.1f} %, right {y:.1f} %")
        texts[i] = f"ECE {100 * figures.calibration_error(run):.2f} %"
    chart.labels({i: f"{runs[i].short_label} {text}" for i, text in texts.items()}, "lower right")
    return chart.figure("Reliability", "right by score", named(texts, runs))


def map_chart() -> Element:
    """The axes of the data map, and the area that page.js fills."""
    chart = Chart([0, 0.1, 0.2, 0.3, 0.4, 0.5], round_ticks(1), (560, 260))
    chart.axes("spread of the truth score over the epochs")
    wide, high = chart.right - LEFT, chart.bottom - TOP
    parts = (h("path", id="dots"), h("path", id="crosses"), h("rect", id="box"))
    place = {"x": LEFT, "y": TOP, "width": wide, "height": high, "viewBox": f"0 0 {wide} {high}"}
    chart.parts.append(h("svg", *parts, id="area", **place))
    # No image is in the two right corners, because a mean m allows a spread of at most sqrt(m (1 - m)).
    for y, zone in ((0.94, "← easy"), (0.84, "ambiguous ↓"), (0.03, "← hard or mislabelled")):
        chart.text(zone, chart.right, chart.y(y), "end", "label")
    name = "data map: mean of the truth score against its spread"
    return h("svg", *chart.parts, id="map", viewBox="0 0 560 260", role="img", aria_label=name)
