"""What compare.py makes of more than 100 classes. tests/test_page.py looks at such a page in a browser."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import assert_one_line_error
from many_classes import Made, write_random_best

import compare
from page import arrays, figures
from page.reading import CompareError, read_predictions

# Three images of a model that may have any number of classes, with the three best of each.
GUESS, TRUTH, TRUTH_SCORES = [2, 7, 299], [2, 9, 1], [0.7, 0.001, 0.3]
BEST = [[2, 250, 0], [7, 3, 2], [299, 1, 7]]
SCORES = np.array([[0.7, 0.2, 0.05], [0.6, 0.2, 0.1], [0.5, 0.3, 0.1]])
NAMES = [f"kind {k:03d}" for k in range(300)]


def columns(name="best_{}", score="best_{}_score", scores=SCORES, best=BEST, **more) -> dict[str, list]:
    ranks = {}
    for i in range(len(best[0])):
        ranks[name.format(i + 1)] = [row[i] for row in best]
        ranks[score.format(i + 1)] = [row[i] for row in scores]
    return {"id": range(3), "guess": GUESS, "truth": TRUTH} | more | ranks


def table(columns: dict[str, list]) -> str:
    filled = {name: values for name, values in columns.items() if values is not None}
    return "\n".join([",".join(filled), *(",".join(map(str, row)) for row in zip(*filled.values()))]) + "\n"


def named(values: list[int]) -> list[str]:
    return [NAMES[k] for k in values]


PLAIN = columns(truth_score=TRUTH_SCORES)
WITH_NAMES = columns(
    best=[named(row) for row in BEST], guess=named(GUESS), truth=named(TRUTH), truth_score=TRUTH_SCORES
)
GOOD = {  # what a file with the best scores may look like
    "plain": table(PLAIN),
    "no truth score": table(columns()),
    "no truth": table(columns(truth=None)),
    "empty truth": table(columns(truth=[""] * 3, truth_score=["nan"] * 3)),
    "no guess": table(columns(guess=None)),
    "semicolons and decimal commas": table(PLAIN).replace(",", ";").replace(".", ","),
    "percent": table(columns(scores=100 * SCORES, truth_score=[70, 0.1, 30])),
    "other names": table(columns("top{}", "top{}_prob", true_prob=TRUTH_SCORES)),
    "other names again": table(columns("Top-{} label", "Top-{} probability")),
    "more columns": table(columns(top5=[1, 1, 1]) | {"score": [1, 0, 1], "score_max": [0.7, 0.6, 0.5]}),
    "columns in another order": table(dict(reversed(PLAIN.items()))),
    "the best last": table(columns(scores=SCORES[:, ::-1], best=[row[::-1] for row in BEST])),
    "float classes": table(PLAIN | {"best_1": [2.0, 7.0, 299.0], "truth": [2.0, 9.0, 1.0]}),
    "names": table(WITH_NAMES),
}
NO_TRUTH_SCORE = "no truth score", "no guess", "other names again", "more columns", "the best last"


@pytest.mark.parametrize("kind", GOOD)
def test_best_scores_are_read(kind):
    found = read_predictions("mine.csv", GOOD[kind].encode())
    seen = sorted({*np.ravel(BEST), *TRUTH})
    classes = found.classes or NAMES
    assert (found.classes is None) == (kind != "names") and found.scores.more_classes
    assert found.scores.num_classes == (len(seen) if kind == "names" else 300)
    assert [classes[k] for k in found.guess] == named(GUESS)
    assert [[classes[k] for k in row[:3]] for row in found.scores.classes] == [named(row) for row in BEST]
    assert found.scores.values[:, :3] == pytest.approx(SCORES)
    if kind in ("no truth", "empty truth"):
        assert found.truth is None
        return
    assert [classes[k] for k in found.truth] == named(TRUTH)
    if kind in NO_TRUTH_SCORE:
        assert found.scores.lacks(found.truth).tolist() == [False, True, False]
    else:
        assert found.scores.of(found.truth) == pytest.approx(TRUTH_SCORES)


BAD = {
    "no score of a class": (columns() | {"best_2_score": None}, ["no column best_2_score"]),
    "no class of a score": (columns() | {"best_3": None}, ["no column best_3."]),
    "an empty class": (columns(best=[[2, "", 0], *BEST[1:]]), ["line 2: best_2 is empty"]),
    "an empty score": (columns() | {"best_2_score": [0.2, "", 0.3]}, ["line 3: best_2_score is empty"]),
    "a class twice": (columns(best=[*BEST[:2], [299, 1, 299]]), ["line 4: one class is there twice"]),
    "logits": (columns(scores=[[900, 8, 7], [950, 3, 2], [5, 4, -3]]), ["'900'", "from 0 to 1"]),
    "a damaged score": (columns() | {"best_1_score": [0.7, 6.0, 0.5]}, ["line 3: best_1_score", "'6.0'"]),
    "a damaged truth score": (columns(truth_score=[0.7, -1, 0.3]), ["line 3: truth_score cannot be '-1.0'"]),
    "another truth score": (
        columns(truth_score=[0.1, 0.001, 0.3]),
        ["line 2: truth_score cannot be '0.1': the best scores say 0.7."],
    ),
    "a truth score above the best": (
        columns(truth_score=[0.7, 0.4, 0.3]),
        ["line 3: truth_score cannot be '0.4': the best scores say at most 0.1."],
    ),
    "a truth below 0": (columns() | {"truth": [2, -1, 1]}, ["line 3: truth cannot be '-1'", "from 0"]),
    "a damaged class": (columns(best=[[2, 2.5, 0], *BEST[1:]]), ["line 2: best_2", "class numbers"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_damaged_best_scores_are_refused(kind):
    values, words = BAD[kind]
    with pytest.raises(CompareError) as refused:
        read_predictions("mine.csv", table(values).encode())
    assert all(word in str(refused.value) for word in words), refused.value


def test_true_classes_that_are_never_among_the_best_are_told():
    for values, name in ((columns(), "9"), (WITH_NAMES, "kind 009")):
        found = read_predictions("mine.csv", table(values).encode())
        assert found.remarks == [f"warning: 1 true classes are never among the best, such as {name}"]
    found = read_predictions("mine.csv", table(columns() | {"truth": GUESS}).encode())
    assert found.remarks == []


def test_sums_above_one_are_divided_and_told():
    found = read_predictions("mine.csv", table(columns(scores=[[0.9, 0.8, 0.7], *SCORES[1:]])).encode())
    assert found.scores.values[:, :3].sum(1) == pytest.approx([1, 0.9, 0.9])
    assert "do not sum to 1 (2.4 in line 2)" in found.remarks[0]


@pytest.fixture(scope="module")
def made() -> list[Made]:
    """Two models of 300 classes, of three epochs and of one."""
    return [Made(600, 300, seed=1, epochs=3), Made(600, 300, seed=2)]


@pytest.mark.parametrize("scale", ["probabilities", "percent", "logits"])
def test_all_scores_are_reduced_to_the_best(made, scale, tmp_path):
    one = made[0]
    file = one.write_all_scores(tmp_path / "all.csv")
    if scale != "probabilities":
        header, *lines = file.read_text().splitlines()
        values = 100 * one.scores[0] if scale == "percent" else one.logits[0].numpy()
        heads = [line.split(",", 3)[:3] for line in lines]
        lines = [",".join([*head, *map(str, row)]) for head, row in zip(heads, values.tolist())]
        file.write_text("\n".join([header, *lines]))
    found = read_predictions("all.csv", file.read_bytes())
    best = read_predictions("best.csv", one.write_csv(tmp_path / "best.csv").read_bytes())
    assert found.scores.num_classes == 300 and not found.scores.more_classes
    assert np.array_equal(found.scores.classes[:, :10], best.scores.classes[:, :10])
    assert found.scores.values[:, :10] == pytest.approx(best.scores.values[:, :10], rel=1e-5)
    assert found.scores.of(found.truth) == pytest.approx(one.truth_score(), rel=1e-5)
    assert found.scores.full()[:, 17] == pytest.approx(one.scores[0][:, 17], abs=0.1)


def lines_of(result) -> list[str]:
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_error_about_the_truth_names_the_classes(main, tmp_path):
    changed = WITH_NAMES | {"truth": named([2, 9, 7])} | {"truth_score": [0.7, 0.001, 0.1]}
    for name, content in (("a", WITH_NAMES), ("b", changed)):
        (tmp_path / f"{name}.csv").write_text(table(content))
    result = main("compare.py", "a.csv", "b.csv", cwd=tmp_path)
    assert_one_line_error(result, "the truth of id 2 is kind 001 in a, kind 007 in b")


def test_runs_epochs_and_files_are_compared(made, main, tmp_path):
    a, b = made
    a.write_run(tmp_path / "a", NAMES), b.write_run(tmp_path / "b", NAMES)
    a.write_csv(tmp_path / "best.csv", 2), a.write_all_scores(tmp_path / "all.csv", 2)
    lines = (tmp_path / "best.csv").read_text().splitlines()
    (tmp_path / "blind.csv").write_text(
        "\n".join(re.sub(r"^(\d+,\d+),\d+,[^,]+", r"\1,,", x) for x in lines)
    )
    bare = ["id,guess,truth", *(",".join(line.split(",")[:3]) for line in lines[1:])]
    for name in ("bare", "other"):
        (tmp_path / f"{name}.csv").write_text("\n".join(bare))

    def check(first: str, second: str, wrong: list, losses: list) -> list[str]:
        lines = lines_of(main("compare.py", first, second, "--no_images", cwd=tmp_path))
        table = lines.index(next(line for line in lines if line.startswith("run ")))
        for line, mask, loss in zip(lines[table + 1 :], wrong, losses):
            assert line.split()[1:3] == [f"{mask.sum()}", "600"] and line.endswith(loss)
        fixed, broken, both = (wrong[0] & ~wrong[1]), (wrong[1] & ~wrong[0]), (wrong[0] & wrong[1])
        found = f"{fixed.sum()} fixed, {broken.sum()} broken, {both.sum()} wrong in both"
        assert found in lines[table + 3]
        return lines

    loss = [f"{-np.log(one.truth_score(epoch)).mean():.4f}" for one, epoch in ((a, 0), (a, 2), (b, 0))]
    lines = check("a", "b", [a.wrong[2], b.wrong[0]], [loss[1], loss[2]])
    (truth, guess), count = max(a.pairs(2).items(), key=lambda item: (item[1], [-k for k in item[0]]))
    assert f"most confused in a@3: {NAMES[truth]} taken for {NAMES[guess]} ({count}), " in lines[4]
    assert len(lines) < 20 and max(map(len, lines)) < 250
    check("a@1", "a", [a.wrong[0], a.wrong[2]], [loss[0], loss[1]])
    same = [a.wrong[2]] * 2
    check("best.csv", "all.csv", same, [loss[1]] * 2)
    check("a", "all.csv", same, [loss[1]] * 2)
    assert "the truth of blind is that of all" in check("blind.csv", "all.csv", same, [])[0]
    assert "no scores in bare" in check("a", "bare.csv", same, ["–"] * 2)[0]
    lines = check("bare.csv", "other.csv", same, ["–"] * 2)
    assert lines[-1].startswith("page  compare.html")


def test_score_of_the_truth_that_no_file_tells_is_an_equal_share(made, main, tmp_path):
    file = made[0].write_csv(tmp_path / "mine.csv")
    rows = list(csv.DictReader(file.read_text().splitlines()))
    scores = [[float(row[f"best_{i}_score"]) for i in range(1, 11)] for row in rows]
    listed = [[row[f"best_{i}"] for i in range(1, 11)].count(row["truth"]) for row in rows]
    file.write_text(table({name: [row[name] for row in rows] for name in rows[0] if name != "truth_score"}))
    result = lines_of(main("compare.py", "mine.csv", "--no_images", cwd=tmp_path))
    assert (
        f"mine does not tell the score of the truth of {listed.count(0)} images: it counts as" in result[0]
    )
    shares = (1 - np.sum(scores, axis=1)) / 290
    expected = np.where(listed, made[0].truth_score(), shares)
    assert result[2].endswith(f"{-np.log(expected).mean():.4f}")


def test_names_in_the_epochs_of_a_run_may_differ(main, tmp_path):
    """Each file mentions only the names of its best classes."""
    (tmp_path / "run/predictions").mkdir(parents=True)
    for epoch, best in ((1, BEST), (2, [[2, 250, 0], [9, 8, 5], [1, 4, 6]])):
        guess = named([row[0] for row in best])
        values = columns(best=[named(row) for row in best], guess=guess, truth=named(TRUTH))
        (tmp_path / f"run/predictions/epoch-00{epoch}.csv").write_text(table(values))
    for name in ("config", "summary"):
        (tmp_path / f"run/{name}.json").write_text("{}")
    lines = lines_of(main("compare.py", "run@1", "run", "--no_images", cwd=tmp_path))
    assert "2 fixed, 0 broken, 0 wrong in both" in "".join(lines) and "left out" not in "".join(lines)
    assert any("most confused in run@1: kind 001 taken for kind 299 (1)" in line for line in lines)


def test_few_classes_with_best_scores_have_all_scores_on_the_page(main, tmp_path):
    few = columns(best=[[2, 1, 0], [7, 3, 2], [4, 1, 7]], guess=[2, 7, 4])
    (tmp_path / "few.csv").write_text(table(few))
    full = np.full((3, 10), np.nan)
    for n, row in enumerate([[2, 1, 0], [7, 3, 2], [4, 1, 7]]):
        full[n, row] = SCORES[n]
    full = np.where(np.isnan(full), ((1 - SCORES.sum(1)) / 7)[:, None], full)
    scores = {f"score_{k}": full[:, k] for k in range(10)}
    (tmp_path / "full.csv").write_text(table({"id": range(3), "guess": [2, 7, 4], "truth": TRUTH} | scores))
    lines = lines_of(main("compare.py", "few.csv", "full.csv", "--no_images", cwd=tmp_path))
    assert len({line.split()[-1] for line in lines if re.match(r"(few|full) +2 ", line)}) == 1
    assert "few has the best scores alone: the other classes share what these leave" in lines
    page = (tmp_path / "compare.html").read_text()
    assert 'class="matrix' not in page and "ten-best" not in re.search("<html[^>]*>", page)[0]


def test_too_many_classes_are_refused_in_one_line(main, tmp_path):
    best = [[2, 250, 1000], [7, 3, 2], [299, 1, 7]]
    (tmp_path / "above.csv").write_text(table(columns(best=best)))
    lines_of(main("compare.py", "above.csv", "--no_images", cwd=tmp_path))  # eight classes, numbered freely
    wide = {f"{kind}_{k}{end}": [0, 0, 0] for k in range(1001) for kind, end in (("score", ""),)}
    (tmp_path / "wide.csv").write_text(table({"id": range(3), "guess": GUESS, "truth": TRUTH} | wide))
    result = main("compare.py", "wide.csv", "--no_images", cwd=tmp_path)
    assert_one_line_error(result, "wide.csv has 1,001 classes", "room for 1,000")
    run = Made(3, 300, seed=1).write_run(tmp_path / "run", [str(k) for k in range(1001)])
    assert_one_line_error(main("compare.py", run, cwd=tmp_path), "run@1 has 1,001 classes", "room for 1,000")
    Made(3, 300, seed=1).write_all_scores(tmp_path / "all.csv")
    Made(3, 301, seed=1).write_all_scores(tmp_path / "more.csv")
    result = main("compare.py", "all.csv", "more.csv", "--no_images", cwd=tmp_path)
    assert_one_line_error(result, "all has 300 classes, more has 301")


def rows_of(html: str) -> list[list[str]]:
    """The cells of a table as text."""
    rows = re.findall("<tr>(.*?)</tr>", html)
    return [
        [re.sub("<.*?>", "", cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows
    ]


def test_page_without_javascript_shows_the_most_frequent_and_the_worst(made, main, tmp_path):
    a, b = made
    a.write_run(tmp_path / "a", NAMES), b.write_run(tmp_path / "b", NAMES)
    lines_of(main("compare.py", "a", "b", "--no_images", cwd=tmp_path))
    page = (tmp_path / "compare.html").read_text()
    assert len(page) < 1e6
    groups, pairs = re.findall("<table.*?</table>", re.search("<noscript><h2>(.*?)</noscript>", page)[1])

    counts = [a.pairs(2), b.pairs(0)]
    assert f"The 20 most frequent of {len({*counts[0], *counts[1]})} confused pairs" in pairs
    found = rows_of(pairs)[1:]
    totals = [sum(pair.get(key, 0) for pair in counts) for key in {*counts[0], *counts[1]}]
    assert [int(x) + int(y) for _, _, x, y in found] == sorted(totals, reverse=True)[:20]
    for truth, guess, *by_run in found:
        pair = NAMES.index(truth), NAMES.index(guess)
        assert by_run == [str(run.get(pair, 0)) for run in counts]

    wrong = [np.bincount(one.guess[e][one.wrong[e]], minlength=300) for one, e in ((a, 2), (b, 0))]
    assert f"The 20 guesses with the most wrong images, of {np.count_nonzero(wrong[0] + wrong[1])}" in groups
    found = rows_of(groups)[1:]
    assert [int(re.match(r"\d+", x)[0]) + int(re.match(r"\d+", y)[0]) for _, x, y in found] == sorted(
        wrong[0] + wrong[1], reverse=True
    )[:20]
    assert all(x.count("×") <= 8 and y.count("×") <= 8 for _, x, y in found)

    per_class = re.search('<section data-view="2">.*', re.search('<div id="classes">.*', page)[0])[0]
    images = np.bincount(a.truth, minlength=300)
    words = f"The 50 classes with the lowest F1, of {np.count_nonzero(images)} with images and 300 in all."
    assert words in per_class
    run = figures.Run("a", Path("a"), np.arange(600), a.truth, a.guess[2], compare.certain(a.guess[2], 300))
    f1 = {NAMES[k]: f"{value:.2f}" for k, value in enumerate(figures.class_measures(run)[:, 2])}
    found = rows_of(re.search("<table.*?</table>", per_class)[0])[1:]
    assert len(found) == 50 and [row[4] for row in found] == [f1[row[0]] for row in found]
    lowest = [min(float(row[4]), float(row[7])) for row in found]
    assert lowest == sorted(lowest) and all(images[NAMES.index(row[0])] == int(row[1]) > 0 for row in found)


def test_margins_agree_with_those_of_all_scores(made, main, tmp_path):
    one = made[0]
    lines_of(
        main("compare.py", one.write_run(tmp_path / "a"), "--no_images", "--suspects", "s.csv", cwd=tmp_path)
    )
    rows = list(csv.DictReader((tmp_path / "s.csv").read_text().splitlines()))
    logs = np.mean([np.log(np.maximum(one.truth_score(e), 1e-4)) for e in range(3)], axis=0)
    margins = 2 * np.exp(logs) - 1
    assert [int(row["id"]) for row in rows[:50]] == margins.argsort(kind="stable")[:50].tolist()
    others = sum(one.scores)
    others[np.arange(600), one.truth] = -1
    agreeing = [int(row["suggested"]) == others[int(row["id"])].argmax() for row in rows]
    assert np.mean(agreeing) > 0.9  # the sum of the best scores may have another maximum


@pytest.mark.parametrize("epochs", [1, 20])
def test_page_stays_small(epochs, tmp_path, monkeypatch):
    """50,000 images, 1,000 classes, two runs: less than 20 MB. Images and limits are a hundredth here."""
    for name in ("EXACT_SCORES", "PAST_SCORES"):
        monkeypatch.setattr(arrays, name, getattr(arrays, name) // 100)
    for r in "ab":
        (tmp_path / r / "predictions").mkdir(parents=True)
        for epoch in range(1, epochs + 1):
            file = tmp_path / r / f"predictions/epoch-{epoch:03d}.csv"
            write_random_best(file, 500, 1000, seed=100 * ord(r) + epoch)
        for name in ("config", "summary"):
            (tmp_path / r / f"{name}.json").write_text("{}")
    out = tmp_path / "page.html"
    runs = [str(tmp_path / r) for r in "ab"]
    compare.compare(compare.parse_args([*runs, "--no_images", "--out", str(out)]))
    packed = int(re.search(r'data-bytes="(\d+)" id="arrays"', out.read_text())[1])
    assert 100 * 1.25 * packed < 19e6  # 1.25 characters a byte; the rest has less than 1 MB
