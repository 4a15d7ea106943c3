"""Fill page.html: charts and tables that need no JavaScript, the predictions as arrays, the pictures."""

import base64
import io
import json
import math
import zlib
from pathlib import Path
from string import Template
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from page import figures
from page.figures import Run

MAX_CURVE = 80  # points of a curve
MAX_PLAIN_PICTURES = 150  # on the page without JavaScript
MAX_LOSSLESS_SIDE = 48  # pixels; larger pictures, and coloured ones, are compressed with loss
SHEET_PIXELS = 4_000_000  # of one sheet of pictures, so that a browser decodes only what it shows
SUSPECTS = 12  # on the first screen
MANY = 20_000  # pictures; more have 32 shades
EXACT_SCORES = 1_250_000  # more are rounded to 3 digits and 5 decimals, or the page would be too large
LEFT, RIGHT, TOP, BOTTOM = 36, 8, 8, 30  # the margins of a chart

Element = ElementTree.Element


def h(tag: str, *children, **attributes) -> Element:
    """An HTML or SVG element. Text is escaped when it is written. `class_` is class, data_x is data-x."""
    names = {name: name.rstrip("_").replace("_", "-") for name in attributes}
    element = Element(tag, {names[k]: str(v) for k, v in attributes.items() if v is not None})
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            element.append(child)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + str(child)
        else:
            element.text = (element.text or "") + str(child)
    return element


def html(*elements: Element) -> str:
    return "".join(ElementTree.tostring(element, encoding="unicode", method="html") for element in elements)


def run_class(index: int) -> str:
    return f"r{index % 6}"


def run_name(index: int, run: Run, tag: str = "b") -> Element:
    return h(tag, h("bdi", run.label), class_=run_class(index))


def table(heads: list, rows: list[list], **attributes) -> Element:
    """A table; the first cell of each row is its head."""
    top = h("tr", *(h("th", head, scope="col") for head in heads))
    body = (h("tr", h("th", row[0], scope="row"), *(h("td", cell) for cell in row[1:])) for row in rows)
    return h("table", h("thead", top), h("tbody", *body), **attributes)


# ---- Charts ----
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
        self.xs, self.ys, self.log, self.parts = xs, ys, log, []
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
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        self.parts.append(h("polyline", points=path, class_=run_class(run)))

    def dot(self, run: int, x: float, y: float, radius: float, title: str, **attributes) -> None:
        place = {"cx": f"{self.x(x):.1f}", "cy": f"{self.y(y):.1f}", "r": f"{radius:.1f}"}
        self.parts.append(h("circle", h("title", title), **place, class_=run_class(run), **attributes))

    def labels(self, texts: dict[int, str]) -> None:
        """One line of text per run, in the lower right corner."""
        for line, (run, text) in enumerate(reversed(texts.items())):
            y = self.bottom - 6 - 13 * line
            self.text(text, self.right - 2, y, "end", f"label {run_class(run)}")

    def figure(self, title: str, hint: str, summary: str) -> Element:
        box = f"0 0 {self.size[0]} {self.size[1]}"
        svg = h("svg", *self.parts, viewBox=box, role="img", aria_label=f"{title}: {summary}")
        return h("figure", h("figcaption", title, " ", h("span", hint, class_="hint")), svg)


def short(name: str, length: int = 15) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


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
    chart = Chart([min(epoch for epoch, _ in points), last], round_ticks(max(count for _, count in points)))
    ticks = [tick for tick in round_ticks(last, 8, whole=True) if chart.xs[0] <= tick <= last]
    chart.axes("epoch", x_ticks=ticks)
    for path, (i, _) in sorted(curves.items(), key=lambda item: item[1][0]):
        chart.curve(i, counts[path])
        for epoch, count in counts[path]:
            position = epochs.index(epoch) if epoch in epochs else None
            chart.dot(i, epoch, count, 3, f"epoch {epoch}: {count:,} wrong", data_view=position)
    here = {i: run for i, run in enumerate(runs) if run.history}
    height = math.inf
    for i, run in sorted(here.items(), key=lambda item: item[1].wrong.sum()):
        x, count = chart.x(run.epoch), run.wrong.sum()
        chart.dot(i, run.epoch, count, 5, f"{run.label}: {count:,} wrong")
        height = min(chart.y(count) - 8, height - 13)
        anchor = "end" if x > chart.right / 2 else "start"
        chart.text(f"{short(run.label)} {count:,}", x, height, anchor, f"label {run_class(i)}")
    texts = {i: f"{run.wrong.sum():,}" for i, run in here.items()}
    return chart.figure("Wrong by epoch", "click a point", named(texts, runs))


def loss_chart(runs: list[Run]) -> Element | None:
    curves, seen = {}, set()
    for i, run in enumerate(runs):
        if run.losses is not None and len(run.losses) and run.path.resolve() not in seen:
            seen.add(run.path.resolve())
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
    for line, (i, value) in enumerate(last_values.items()):
        text = f"{short(runs[i].name)} {value}"
        chart.text(text, chart.right - 2, TOP + 12 + 13 * line, "end", f"label {run_class(i)}")
    return chart.figure("Training loss", "by step", named(last_values, runs))


def review_chart(runs: list[Run]) -> Element:
    """How many of the errors are found when the least sure images are reviewed first."""
    count = len(runs[0].ids)
    marked = max(1, round(count / 50))  # 200 of MNIST's 10,000
    chart = Chart(round_ticks(min(count, marked * 2.5), 5), round_ticks(100))
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
    chart.labels({i: f"{short(runs[i].label)} {text}" for i, text in texts.items()})
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
            chart.dot(i, x, y, radius, f"{n:,} images: score {x:.1f} %, right {y:.1f} %")
        texts[i] = f"ECE {100 * figures.calibration_error(run):.2f} %"
    chart.labels({i: f"{short(runs[i].label)} {text}" for i, text in texts.items()})
    return chart.figure("Reliability", "right by score", named(texts, runs))


def map_chart() -> Element:
    """The axes of the data map, and the area that page.js fills."""
    chart = Chart([0, 0.1, 0.2, 0.3, 0.4, 0.5], round_ticks(1), (560, 260))
    chart.axes("spread of the truth score over the epochs")
    wide, high = chart.right - LEFT, chart.bottom - TOP
    parts = (h("path", id="dots"), h("path", id="crosses"), h("rect", id="box"))
    place = {"x": LEFT, "y": TOP, "width": wide, "height": high, "viewBox": f"0 0 {wide} {high}"}
    chart.parts.append(h("svg", *parts, id="area", **place))
    for x, y, zone in (
        (0.005, 0.93, "easy"),
        (0.42, 0.5, "ambiguous"),
        (0.005, 0.04, "hard or mislabelled"),
    ):
        chart.text(zone, chart.x(x), chart.y(y), "start", "label")
    name = "data map: mean of the truth score against its spread"
    return h("svg", *chart.parts, id="map", viewBox="0 0 560 260", role="img", aria_label=name)


def suspects_gallery(run: Run, classes: list[str], margins: np.ndarray, suggested: np.ndarray) -> Element:
    """The images with the lowest margins. page.js puts their pictures into the elements with data-row."""
    cards = []
    for n in margins.argsort(kind="stable")[:SUSPECTS]:
        label, other = (h("b", h("bdi", classes[k])) for k in (run.truth[n], suggested[n]))
        text = h("div", "label ", label, h("br"), "runs ", other)
        cards.append(h("div", h("span", run.ids[n], data_row=n), text, class_="card"))
    return h("div", *cards, class_="gallery")


def learned_table(runs: list[Run]) -> Element:
    """How many images each run gets right since an epoch, for good; how many it forgot or never learned."""
    moving = {i: run for i, run in enumerate(runs) if len(run.history) > 1}
    ends = ["forgotten", "never right"]
    epochs = sorted({epoch for run in moving.values() for epoch in run.history})
    rows = [[f"since epoch {epoch}"] for epoch in epochs] + [[end] for end in ends]
    for i, run in moving.items():
        places = [*run.history, *ends]
        counts = np.bincount(figures.learning(run)[0], minlength=len(places))
        for row, moment in zip(rows, [*epochs, *ends]):
            place = places.index(moment) if moment in places else None
            row.append("" if place is None else learned_bar(i, place, counts[place]))
    return table(
        ["right", *(run_name(i, run, "span") for i, run in moving.items())], rows, class_="facts learned"
    )


def learned_bar(run: int, place: int, count: int) -> Element:
    """A bar whose length grows with the logarithm, and a button that filters the list."""
    bar = h("i", style=f"width:{12 * math.log10(1 + count):.1f}%")
    return h(
        "div",
        bar,
        h("button", f"{count:,}", data_run=run, data_learned=place),
        class_=f"bar {run_class(run)}",
    )


# ---- What is there without JavaScript ----
def view_section(index: int, shown: bool, runs: list[Run], epochs: list[int]) -> Element:
    """The answer, the facts and the charts at one position of the slider."""
    headline, rest = figures.answer(runs)
    rows = figures.facts(runs).items()
    cells = [[name, *("–" if value in (None, "") else value for value in row)] for name, row in rows]
    heads = ["", *(run_name(i, run, "span") for i, run in enumerate(runs))]
    charts = [wrong_chart(runs, epochs), loss_chart(runs), review_chart(runs), reliability_chart(runs)]
    top = [h("div", table(heads, cells, class_="facts"), class_="scroll"), *charts]
    return h(
        "section",
        h("h1", h("strong", headline), rest, class_="answer"),
        h("div", *top, class_="top"),
        data_view=index,
        hidden=None if shown else "",
    )


def class_section(index: int, shown: bool, runs: list[Run], classes: list[str]) -> Element:
    """Precision, recall, F1 and support per class; the agreement of three and more runs."""
    measures = [figures.class_measures(run) for run in runs]
    images = np.bincount(runs[0].truth, minlength=len(classes))
    names = ("precision", "recall", "F1")
    heads = [
        "class",
        "images",
        *(h("span", run_name(i, run), f" {n}") for i, run in enumerate(runs) for n in names),
    ]
    rows = [
        [name, f"{n:,}", *(f"{m:.2f}" for run in measures for m in run[k])]
        for k, (name, n) in enumerate(zip(classes, images))
    ]
    if len(runs) > 1:
        heads.append("change of F1")
        for row, change in zip(rows, measures[-1][:, 2] - measures[0][:, 2]):
            row.append(f"{change:+.2f}".replace("-", "−"))
    parts = [h("h2", "Per class"), h("div", table(heads, rows, class_="facts"), class_="scroll")]
    if len(runs) > 2:
        parts += [h("h2", "Agreement"), h("div", *agreement(runs), class_="pair")]
    return h("section", *parts, data_view=index, hidden=None if shown else "")


def agreement(runs: list[Run]) -> list[Element]:
    heads = [run_name(i, run, "span") for i, run in enumerate(runs)]
    same = [[f"{100 * (a.guess == b.guess).mean():.2f} %" for b in runs] for a in runs]
    shared = [[f"{(a.wrong & b.wrong).sum():,}" for b in runs] for a in runs]
    titles = {"the same guess": same, "wrong in both": shared}
    tables = []
    for title, cells in titles.items():
        rows = [[run_name(i, run, "span"), *row] for i, (run, row) in enumerate(zip(runs, cells))]
        tables.append(table([title, *heads], rows, class_="facts"))
    pairs = figures.make_pairs(runs)
    names = ["first, second", "fixed", "broken", "wrong in both", "p"]
    rows = [[p.names, f"{p.fixed:,}", f"{p.broken:,}", f"{p.both_wrong:,}", p.p_text] for p in pairs]
    return [*tables, table(names, rows, class_="facts")]


def plain_groups(runs: list[Run], classes: list[str], pictures: np.ndarray | None) -> Element:
    """Wrong guesses, grouped by guess: counts, true classes, and some of the pictures."""
    budget = MAX_PLAIN_PICTURES // max(1, sum(len({*run.guess[run.wrong]}) for run in runs))
    rows = []
    for guess, name in enumerate(classes):
        cells = []
        for run in runs:
            indices = np.flatnonzero(run.wrong & (run.guess == guess))
            truths = np.bincount(run.truth[indices], minlength=len(classes))
            text = ", ".join(f"{classes[k]} ×{truths[k]}" for k in np.flatnonzero(truths))
            images = (
                [plain_picture(run, n, pictures) for n in indices[:budget]] if pictures is not None else []
            )
            cells.append(h("div", h("b", len(indices)), f" {text} ", *images))
        rows.append([name, *cells])
    heads = ["guess", *(run_name(i, run, "span") for i, run in enumerate(runs))]
    return table(heads, rows, class_="facts left")


def plain_picture(run: Run, n: int, pictures: np.ndarray) -> Element:
    buffer = io.BytesIO()
    Image.fromarray(pictures[n].squeeze(2) if pictures.shape[3] == 1 else pictures[n]).save(buffer, "webp")
    url = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return h("img", src=url, alt=f"image {run.ids[n]}", width=42, height=42)


def plain_matrices(runs: list[Run], classes: list[str]) -> list[Element]:
    """The confusion matrix of each run, and of two runs the difference."""
    count = len(classes)
    counts = [np.bincount(run.truth * count + run.guess, minlength=count**2) for run in runs]
    matrices = {run.label: c.reshape(count, count) for run, c in zip(runs, counts)}
    if len(runs) == 2:
        difference = counts[1] - counts[0]
        matrices[f"{runs[1].label} minus {runs[0].label}"] = difference.reshape(count, count)
    tables = []
    for title, matrix in matrices.items():
        rows = [[name, *(n if n else "" for n in row)] for name, row in zip(classes, matrix.tolist())]
        element = table(["", *classes], rows, class_="facts")
        element.insert(0, h("caption", f"{title}: truth down, guess across"))
        tables.append(h("div", element, class_="scroll"))
    return tables


# ---- Data for page.js ----
def base85(data: bytes) -> str:
    """Four bytes as five characters from # to w, ! instead of <, so that no text in it can end a script."""
    words = np.frombuffer(data + bytes(-len(data) % 4), dtype=">u4")
    digits = np.stack([words // 85**power % 85 for power in (4, 3, 2, 1, 0)], axis=1).astype(np.uint8) + 35
    digits[digits == ord("<")] = ord("!")
    return digits.tobytes().decode("ascii")


def binary(data: bytes, **attributes) -> Element:
    kind = "application/octet-stream"
    return h("script", base85(data), type=kind, data_bytes=len(data), **attributes)


def sheets(pictures: np.ndarray) -> tuple[dict, list[bytes]]:
    """The pictures (N, H, W, C) on sheets, as WebP, and where they are there."""
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
    """The scores (N, K) of the runs, and how many digits of them are right.

    Files that train.py writes hold float32 values in nine digits. Others may hold float64 values.
    """
    scores = [run.scores for run in runs]
    singles = [values.astype(np.float32) for values in scores]
    if sum(values.size for values in scores) > EXACT_SCORES:
        # Round to 10 significant bits and to zero: zero bits take no room when compressed.
        rounded = [((s.view(np.uint32) + 0x2000) & 0xFFFFC000).view(np.float32) for s in singles]
        return [np.where(s < 1e-5, np.float32(0), s) for s in rounded], 3
    if all((abs(s - values) <= 5e-9 * values).all() for s, values in zip(singles, scores)):
        return singles, 9
    return scores, 17


def arrays(
    runs: list[Run], views: list[list[Run]], margins: np.ndarray, suggested: np.ndarray
) -> tuple[dict, bytes]:
    """All numbers of the page, compressed. `unpack` in page.js reads them in the same order."""
    count = len(runs[0].ids)
    exact, digits = exact_scores(runs)
    parts = [
        runs[0].truth.astype(np.uint8),
        suggested.astype(np.uint8),
        bytes_by_place(margins.astype("<f4")),
    ]
    parts += [figures.verdicts(view).astype(np.uint8) for view in views]
    for run, scores in zip(runs, exact):
        history = list(run.history.values()) or [run]
        parts += [one.guess.astype(np.uint8) for one in history]
        others = [np.rint(100 * one.scores).astype(np.uint8) for one in history if one.epoch != run.epoch]
        parts.append(np.stack(others, axis=2) if others else np.empty(0, np.uint8))  # (N, K, epochs)
        parts.append(bytes_by_place(scores.astype(scores.dtype.newbyteorder("<"))))
        truth_scores = np.stack([one.truth_score for one in history])
        for values in (truth_scores.mean(0), truth_scores.std(0)):
            parts.append(bytes_by_place(np.rint(65535 * values).astype("<u2")))
        parts += [values.astype(np.uint8) for values in figures.learning(run)]
    facts = {"count": count, "digits": digits}
    return facts, zlib.compress(b"".join(part.tobytes() for part in parts), 9)


def bytes_by_place(values: np.ndarray) -> np.ndarray:
    """The first byte of every value, then every second byte ... This order compresses better."""
    return np.ascontiguousarray(values.reshape(-1).view(np.uint8).reshape(-1, values.itemsize).T)


def run_record(run: Run) -> dict:
    epochs = list(run.history) or [None]
    return {"name": run.name, "epochs": epochs, "exact": epochs.index(run.epoch)}


def render_page(
    runs: list[Run],
    classes: list[str],
    pictures: np.ndarray | None,
    margins: np.ndarray,
    suggested: np.ndarray,
) -> str:
    """The page as one HTML text. Margins (N,) and suggested classes (N,) are those of `label_margins`."""
    epochs, views, start = figures.make_views(runs)
    record, data = arrays(runs, views, margins, suggested)
    ids = None if np.array_equal(runs[0].ids, np.arange(len(runs[0].ids))) else runs[0].ids.tolist()
    shown = [[list(run.history or [None]).index(run.epoch) for run in view] for view in views]
    labels = [[run.label for run in view] for view in views]
    record |= {"classes": classes, "ids": ids, "runs": [run_record(run) for run in runs], "start": start}
    record |= {
        "views": [{"epoch": e, "at": at, "labels": names} for e, at, names in zip(epochs, shown, labels)]
    }
    record["verdicts"] = figures.VERDICTS[min(len(runs), 3)]
    record["about"] = f"{figures.shared_data_set(runs)}{len(runs[0].ids):,} images"
    record["tiles"], files = (None, []) if pictures is None else sheets(pictures)
    kinds = {"many": len(classes) > 12, "mirrored": len(runs) == 2, "still": len(views) == 1}
    kinds["no-past"] = all(len(run.history) < 2 for run in runs)
    blobs = [binary(data, id="arrays"), *(binary(file, class_="sheet") for file in files)]
    text = json.dumps(record).replace("<", "\\u003c")
    plain = [h("h2", "Wrong guesses, grouped by guess"), plain_groups(runs, classes, pictures)]
    plain += [h("h2", "Confusion"), *plain_matrices(runs, classes)]
    folder = Path(__file__).parent
    page, style, script = ((folder / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    tops = (view_section(i, i == start, view, epochs) for i, view in enumerate(views))
    ends = (class_section(i, i == start, view, classes) for i, view in enumerate(views))
    return Template(page).substitute(
        title=html(h("title", " vs ".join(run.label for run in runs))),
        style=style,
        kind=" ".join(name for name, holds in kinds.items() if holds),
        tiles=";".join(f"--{name}:{value}" for name, value in (record["tiles"] or {}).items()),
        last=len(views) - 1,
        answers=html(*tops),
        plain=html(*plain),
        suspects=html(suspects_gallery(runs[0], classes, margins, suggested)),
        map=html(map_chart()),
        learned=html(learned_table(runs)),
        classes=html(*ends),
        data=html(h("script", text, type="application/json", id="facts"), *blobs),
        script=script,
    )
