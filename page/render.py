"""Fill page.html: what needs no JavaScript, the predictions as arrays, the pictures."""

import base64
import io
import itertools
import json
import math
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from page import charts, figures
from page.arrays import arrays, base85, sheets
from page.elements import Element, class_name, h, html, run_class, run_name, table
from page.figures import Run
from page.scores import MAX_FULL

MAX_PLAIN_PICTURES = 150  # on the page without JavaScript
SUSPECTS = 12  # on the first screen
SCRIPTS = ("elements.js", "data.js", "state.js", "page.js")  # one module, in this order
# What is shown of more than MAX_FULL classes.
WORST_CLASSES, PLAIN_PAIRS, PLAIN_GUESSES, PLAIN_TRUTHS = 50, 20, 20, 8


def scroll_box(element: Element) -> Element:
    """Arrow keys scroll it if it has the focus. Safari gives that to no scrolling element by itself."""
    return h("div", element, class_="scroll", tabindex=0)


def view_section(index: int, shown: bool, runs: list[Run], epochs: list[int]) -> Element:
    """The answer, the facts and the charts at one position of the slider."""
    headline, rest = figures.answer(runs)
    rows = figures.facts(runs).items()
    texts = {name: ["–" if value in (None, "") else value for value in row] for name, row in rows}
    cells = [
        [name, *(h("span", text, title=text) if len(text) > 9 else text for text in row)]
        for name, row in texts.items()
    ]
    heads = ["", *(run_name(i, run, "span") for i, run in enumerate(runs))]
    svgs = [charts.wrong_chart(runs, epochs) if runs[0].has_truth else None, charts.loss_chart(runs)]
    if runs[0].has_truth and runs[0].has_scores:
        svgs += [charts.review_chart(runs), charts.reliability_chart(runs)]
    width = f"min-width:{5.8 + 4.4 * len(runs):.1f}rem"
    facts = scroll_box(table(heads, cells, class_="facts", style=width)) if cells else None
    return h(
        "section",
        h("h1", h("strong", headline), rest, class_="answer"),
        h("div", facts, *svgs, class_="top"),
        data_view=index,
        hidden=None if shown else "",
    )


def class_section(index: int, shown: bool, runs: list[Run], classes: list[str]) -> Element:
    """Precision, recall, F1 and support per class; the agreement of three and more runs."""
    measures = [figures.class_measures(run) for run in runs]
    images = np.bincount(runs[0].truth, minlength=len(classes))
    names = ("preci\u00adsion", "recall", "F1")  # a soft hyphen, for paper
    heads = [
        "class",
        "images",
        *(h("span", run_name(i, run), h("br"), n) for i, run in enumerate(runs) for n in names),
    ]
    listed, hint = range(len(classes)), None
    if len(classes) > MAX_FULL:
        worst = np.min([run[:, 2] for run in measures], axis=0) + 1000 * (images == 0)
        listed = worst.argsort(kind="stable")[: min(WORST_CLASSES, np.count_nonzero(images))]
        found = f"The {len(listed)} classes with the lowest F1, of {np.count_nonzero(images):,} with images"
        hint = h("p", f"{found} and {len(classes):,} in all.", class_="hint")
    rows = [
        [class_name(classes[k]), f"{images[k]:,}", *(f"{m:.2f}" for run in measures for m in run[k])]
        for k in listed
    ]
    if len(runs) > 1:
        heads.append("change of F1")
        for row, change in zip(rows, (measures[-1] - measures[0])[listed, 2]):
            row.append(f"{change:+.2f}".replace("-", "−"))
    parts = [h("h2", "Per class"), hint, scroll_box(table(heads, rows, class_="facts"))]
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
    names = ["first", "second", "fixed", "broken", "wrong in both", "p"]
    rows = []
    for two, pair in zip(itertools.combinations(range(len(runs)), 2), pairs):
        counts = f"{pair.fixed:,}", f"{pair.broken:,}", f"{pair.both_wrong:,}"
        rows.append([*(run_name(i, runs[i], "span") for i in two), *counts, pair.p_text])
    tables.append(table(names, rows, class_="facts"))
    return [scroll_box(one) for one in tables]


def largest(counts: np.ndarray, limit: int) -> np.ndarray:
    """The classes in order; of more than MAX_FULL those with the most images, at most `limit`."""
    if len(counts) <= MAX_FULL:
        return np.arange(len(counts))
    return (-counts).argsort(kind="stable")[: min(limit, np.count_nonzero(counts))]


def plain_groups(runs: list[Run], classes: list[str], pictures: np.ndarray | None) -> Element:
    """Wrong guesses, grouped by guess: counts, true classes, and some of the pictures."""
    counts = sum(np.bincount(run.guess[run.wrong], minlength=len(classes)) for run in runs)
    guesses = largest(counts, PLAIN_GUESSES).tolist()
    budget = MAX_PLAIN_PICTURES // max(1, sum(len({*run.guess[run.wrong]} & {*guesses}) for run in runs))
    rows = []
    for guess in guesses:
        cells = []
        for run in runs:
            indices = np.flatnonzero(run.wrong & (run.guess == guess))
            truths = np.bincount(run.truth[indices], minlength=len(classes))
            shown = [k for k in largest(truths, PLAIN_TRUTHS) if truths[k]]
            names = [part for k in shown for part in (", ", h("bdi", classes[k]), f" ×{truths[k]}")][1:]
            hidden = np.count_nonzero(truths) - len(shown)
            names.append(f" and {hidden:,} more classes" if hidden else "")
            images = (
                [plain_picture(run, n, pictures) for n in indices[:budget]] if pictures is not None else []
            )
            cells.append(h("div", h("b", len(indices)), " ", *names, " ", *images))
        rows.append([classes[guess], *cells])
    heads = ["guess", *(run_name(i, run, "span") for i, run in enumerate(runs))]
    element = table(heads, rows, class_="facts left")
    if len(guesses) < min(len(classes), np.count_nonzero(counts)):
        found = f"The {len(guesses)} guesses with the most wrong images, of {np.count_nonzero(counts):,}"
        element.insert(0, h("caption", found))
    return scroll_box(element)


def plain_picture(run: Run, n: int, pictures: np.ndarray) -> Element:
    buffer = io.BytesIO()
    Image.fromarray(pictures[n].squeeze(2) if pictures.shape[3] == 1 else pictures[n]).save(buffer, "webp")
    url = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return h("img", src=url, alt=f"image {run.ids[n]}", width=42, height=42)


def plain_pairs(runs: list[Run], classes: list[str]) -> Element:
    """The most frequent of the confused pairs, instead of a matrix of many classes."""
    truths, guesses, counts = figures.confused_pairs(runs)
    shown = zip(truths[:PLAIN_PAIRS], guesses[:PLAIN_PAIRS], counts[:PLAIN_PAIRS].tolist())
    rows = [[classes[truth], classes[guess], *by_run] for truth, guess, by_run in shown]
    heads = ["truth", "guess", *(run_name(i, run, "span") for i, run in enumerate(runs))]
    element = table(heads, rows, class_="facts left")
    some = f"The {len(rows)} most frequent of " if len(rows) < len(truths) else ""
    element.insert(0, h("caption", f"{some}{len(truths):,} confused pairs"))
    return scroll_box(element)


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
        tables.append(scroll_box(element))
    return tables


def suspects_gallery(run: Run, classes: list[str], margins: np.ndarray, suggested: np.ndarray) -> Element:
    """The images with the lowest margins below 0. page.js puts their pictures where data-row is."""
    cards, suspects = [], np.flatnonzero(margins < 0)
    if not len(suspects):
        return h("p", "None: the runs give every label more than all other classes together.")
    for n in suspects[margins[suspects].argsort(kind="stable")][:SUSPECTS]:
        label, other = (h("b", class_name(classes[k])) for k in (run.truth[n], suggested[n]))
        text = h("div", "label ", label, h("br"), "or ", other, "?")
        cards.append(h("div", h("span", run.ids[n], data_row=n), text, class_="card"))
    return h("div", *cards, class_="gallery")


def learned_table(runs: list[Run]) -> Element:
    """How many images each run gets right since an epoch, for good; how many it forgot or never learned."""
    titles, short = (figures.directory_titles(runs, short) for short in (False, True))
    moving = {i: runs[i] for i in titles if len(runs[i].history) > 1}
    ends = ["forgotten", "never right"]
    epochs = sorted({epoch for run in moving.values() for epoch in run.history})
    rows = [[f"since epoch {epoch}"] for epoch in epochs] + [[end] for end in ends]
    for i, run in moving.items():
        places = [*run.history, *ends]
        counts = np.bincount(figures.learning(run)[0], minlength=len(places))
        for row, moment in zip(rows, [*epochs, *ends]):
            place = places.index(moment) if moment in places else None
            row.append("" if place is None else learned_bar(i, place, counts[place], len(run.ids)))
    names = (h("span", h("bdi", short[i]), class_=run_class(i), title=titles[i]) for i in moving)
    return table(["right", *names], rows, class_="facts learned")


def learned_bar(run: int, place: int, count: int, total: int) -> Element:
    """A bar whose length grows with the logarithm, up to `total`, and a button that filters the list."""
    part = math.log1p(count) / math.log1p(total)
    bar = h("i", style=f"width:calc((100% - 3.9em) * {part:.3f})")
    return h(
        "div",
        bar,
        h("button", f"{count:,}", data_run=run, data_learned=place),
        class_=f"bar {run_class(run)}",
    )


def binary(data: bytes, **attributes) -> Element:
    kind = "application/octet-stream"
    return h("script", base85(data), type=kind, data_bytes=len(data), **attributes)


def run_record(run: Run, title: str | None, short: str | None) -> dict:
    """What data.js needs to know of a run. It has a title if it is the first of its directory."""
    epochs = list(run.history) or [None]
    return {"title": title, "short": short, "epochs": epochs, "exact": epochs.index(run.epoch)}


def render_page(
    runs: list[Run],
    classes: list[str],
    pictures: np.ndarray | None,
    margins: np.ndarray,
    suggested: np.ndarray,
) -> str:
    """The page as one HTML text. Margins (N,) and suggested classes (N,) are those of `label_margins`."""
    figures.shorten_names(runs)
    epochs, views, start = figures.make_views(runs)
    record, data = arrays(runs, views, margins, suggested)
    ids = None if np.array_equal(runs[0].ids, np.arange(len(runs[0].ids))) else runs[0].ids.tolist()
    shown = [[list(run.history or [None]).index(run.epoch) for run in view] for view in views]
    titles, short_titles = (figures.directory_titles(runs, short) for short in (False, True))
    record |= {"classes": classes, "ids": ids, "start": start}
    record["runs"] = [run_record(run, titles.get(i), short_titles.get(i)) for i, run in enumerate(runs)]
    record["views"] = [
        {"epoch": e, "at": at, "labels": [r.label for r in view], "short": [r.short_label for r in view]}
        for e, at, view in zip(epochs, shown, views)
    ]
    suspected = np.count_nonzero(margins < 0)
    has_truth, has_scores = runs[0].has_truth, runs[0].has_scores
    complete = has_truth and has_scores
    record |= {"hasTruth": has_truth, "hasScores": has_scores, "complete": complete}
    known = figures.VERDICTS[min(len(runs), 3)]
    record["verdicts"] = known if runs[0].has_truth else figures.VERDICTS_WITHOUT_TRUTH
    record["about"] = f"{figures.shared_data_set(runs)}{figures.counted(len(runs[0].ids))}"
    record["tiles"], files = (None, []) if pictures is None else sheets(pictures)
    kinds = {
        "many": len(classes) > 12,
        "ten-best": len(classes) > MAX_FULL,
        "long": max(map(len, classes)) > 3,
        "mirrored": len(runs) == 2,
        "crowded": len(runs) > 2 and max(map(len, classes)) > 3,
        "still": len(views) == 1,
    }
    kinds |= {"no-truth": not has_truth, "incomplete": not complete}
    kinds["no-past"] = not complete or all(len(run.history) < 2 for run in runs)
    blobs = [binary(data, id="arrays"), *(binary(file, class_="sheet") for file in files)]
    text = json.dumps(record).replace("<", "\\u003c")
    plain = []
    if runs[0].has_truth:
        plain += [h("h2", "Wrong guesses, grouped by guess"), plain_groups(runs, classes, pictures)]
        plain.append(h("h2", "Confusion"))
        plain += [plain_pairs(runs, classes)] if len(classes) > MAX_FULL else plain_matrices(runs, classes)
    folder = Path(__file__).parent
    page, style = ((folder / name).read_text("utf-8") for name in ("page.html", "page.css"))
    script = "\n".join((folder / name).read_text("utf-8") for name in SCRIPTS)
    tops = (view_section(i, i == start, view, epochs) for i, view in enumerate(views))
    ends = (class_section(i, i == start, view, classes) for i, view in enumerate(views))
    return Template(page).substitute(
        title=html(h("title", " vs ".join(run.label for run in runs))),
        style=style,
        kind=" ".join(name for name, holds in kinds.items() if holds),
        tiles=";".join(f"--{name}:{value}" for name, value in (record["tiles"] or {}).items()),
        runs=len(runs),
        last=len(views) - 1,
        answers=html(*tops),
        plain=html(*plain),
        suspected=f"{suspected:,}" if suspected <= SUSPECTS else f"{SUSPECTS} of {suspected:,}",
        suspects=html(suspects_gallery(runs[0], classes, margins, suggested)),
        map=html(charts.map_chart()),
        learned=html(learned_table(runs)),
        classes=html(*ends),
        data=html(h("script", text, type="application/json", id="facts"), *blobs),
        script=script,
    )
