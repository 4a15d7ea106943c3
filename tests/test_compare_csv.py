"""What compare.py makes of CSV files that other programs write, and of those that nobody should open."""

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import assert_one_line_error

import compare
from page.joining import share_classes, share_test_set
from page.reading import CompareError, read_predictions

GUESS, TRUTH = [0, 1, 2, 1], [0, 1, 2, 2]
SCORES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.05, 0.05, 0.9], [0.25, 0.5, 0.25]])
NAMES = ["ant", "bee", "cat"]


HEADER = "id,guess,truth,score_0,score_1,score_2"


def table(header: str, *columns) -> str:
    """A CSV file of columns, of which a two-dimensional one counts as several."""
    parts = [
        part for column in columns for part in (np.asarray(column).T if np.ndim(column) > 1 else [column])
    ]
    return "\n".join([header, *(",".join(map(str, row)) for row in zip(*parts))]) + "\n"


def scored(scores, header: str = HEADER) -> str:
    return table(header, range(4), GUESS, TRUTH, scores)


def named(values: list[int], names: list[str] = NAMES) -> list[str]:
    return [names[k] for k in values]


def with_names(header: str, names: list[str] = NAMES, *more) -> str:
    return table(header, range(4), named(GUESS, names), named(TRUTH, names), *more)


PLAIN, LOGITS = scored(SCORES), np.log(SCORES) + 3
SHUFFLED = [SCORES[:, 2], SCORES[:, 0], TRUTH, SCORES[:, 1], GUESS, range(4)]
GOOD = {  # what a file may look like
    "plain": PLAIN,
    "byte order mark": "\ufeff" + PLAIN,
    "utf-16": PLAIN.encode("utf-16"),
    "utf-32": PLAIN.encode("utf-32"),
    "the index of pandas": PLAIN.replace("id,", ",", 1),
    "a Markdown table": PLAIN.replace(",", " | ").replace("_2\n", "_2\n---|:-:|---:|---|---|---\n"),
    "semicolons": PLAIN.replace(",", ";"),
    "a line for Excel": "\ufeffsep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n"),
    "tabs": PLAIN.replace(",", "\t"),
    "blanks after commas": PLAIN.replace(",", ", "),
    "a comma at every end": PLAIN.replace("\n", ",\n"),
    "windows lines, blank ones": "\r\n" + PLAIN.replace("\n", "\r\n") + "\r\n",
    "lines of old Macs": PLAIN.replace("\n", "\r"),
    "quotes": PLAIN.replace("0.7", '"0.7"').replace("guess", '"guess"'),
    "decimal commas": PLAIN.replace(",", ";").replace(".", ","),
    "quoted decimal commas": PLAIN.replace("0.7", '"0,7"'),
    "other columns": table(
        f"split,note,{HEADER},score_max,p_value", ["test"] * 4, ['"ä, b"'] * 4, range(4), GUESS, TRUTH,
        SCORES, "abcd", range(4),
    ),
    "columns in another order": table("score_2,score_0,truth,score_1,guess,id", *SHUFFLED),
    "capitals": PLAIN.replace("id,guess,truth", "ID,Guess,Truth").replace("score", "Score"),
    "names of scikit-learn": scored(SCORES, "image_id,y_pred,y_true,proba_0,proba_1,proba_2"),
    "label and prediction": scored(SCORES, "sample id,Prediction,Label,prob 0,prob 1,prob 2"),
    "target and pred": scored(SCORES, "idx,pred,target,p[0],p[1],p[2]"),
    "float classes": table(HEADER, range(4), map(float, GUESS), map(float, TRUTH), SCORES),
    "float ids": PLAIN.replace("\n0,", "\n0.0,").replace("\n3,", "\n3.0,"),
    "percent": scored(100 * SCORES),
    "percent signs, decimal commas": scored([[f'"{100 * v:.0f},000 %"' for v in row] for row in SCORES]),
    "few percent signs": scored([[f"{100 * v:g}{' %' if v > 0.5 else ''}" for v in row] for row in SCORES]),
    "percent signs": scored([[f"{100 * score:g}\u00a0%" for score in row] for row in SCORES]),
    "logits": scored(LOGITS),
    "logits by name": scored(np.log(SCORES), "id,guess,truth,logit_0,logit_1,logit_2"),
    "half as much": scored(SCORES / 2),
    "no guess": table("id,truth,score_0,score_1,score_2", range(4), TRUTH, SCORES),
    "empty guess": table(HEADER, range(4), [""] * 4, TRUTH, SCORES),
    "names in the rows": with_names(HEADER, NAMES, SCORES),
    "names in an order that the guesses show": with_names(HEADER, NAMES[::-1], SCORES),
    "names in the columns": scored(SCORES, "id,guess,truth,score_ant,score_bee,score_cat"),
    "names in tidymodels": with_names(".row,.pred_class,obs,.pred_ant,.pred_bee,.pred_cat", NAMES, SCORES),
    "names in Azure ML": with_names(
        "id,Scored Labels,label," + ",".join(f"Scored Probabilities_{name}" for name in NAMES), NAMES, SCORES
    ),
    "names in both": with_names("id,guess,truth,prob_ant,prob_bee,prob_cat", NAMES, SCORES),
    "names in prediction, scores in predicted": table(
        "id,truth,prediction,predicted,score_ant,score_bee,score_cat",
        range(4), named(TRUTH), named(GUESS), SCORES.max(1), SCORES,
    ),
    "columns called like the classes": with_names("id,guess,truth,note,ant,bee,cat", NAMES, "abcd", SCORES),
    "classes from one": table(
        "id,guess,truth,score_1,score_2,score_3", range(4), np.add(GUESS, 1), np.add(TRUTH, 1), SCORES
    ),
    "classes from minus one": table(
        "id,guess,truth,p(-1),p(0),p(1)", range(4), np.subtract(GUESS, 1), np.subtract(TRUTH, 1), SCORES
    ),
    "classes as scikit-learn has them": scored(SCORES, "id,guess,truth,proba_0.0,proba_1.0,proba_2.0"),
    "and the highest score": table(
        "id,guess,truth,proba_0.0,proba_1.0,proba_2.0,proba_max", range(4), GUESS, TRUTH, SCORES,
        SCORES.max(1),
    ),
    "classes as pandas has them": table("id,guess,truth,0.0,1.0,2.0", range(4), GUESS, TRUTH, SCORES),
    "halves": table(
        "id,guess,truth,p_0.5,p_1.0,p_1.5", range(4), np.add(GUESS, 1) / 2, np.add(TRUTH, 1) / 2, SCORES
    ),
    "a number among names": table(
        "id,guess,truth,p_1.0,p_bee,p_sea", range(4), named(GUESS, ["1.0", "bee", "sea"]),
        named(TRUTH, ["1.0", "bee", "sea"]), SCORES,
    ),
    "zeros before the classes": table(
        "id,guess,truth,p_000,p_001,p_002", range(4), [f"00{k}" for k in GUESS], [f"00{k}" for k in TRUTH],
        SCORES,
    ),
    "votes": scored((20 * SCORES).astype(int)),
    "percent, one sum of 90": scored(SCORES * [[90], [100], [100], [100]]),
    "names in two lines": with_names('id,guess,truth,p_a,"p_b\nc",p_d', ["a", '"b\nc"', "d"], SCORES),
    "a class called None": with_names("id,guess,truth,p_None,p_a,p_nan", ["None", "a", "nan"], SCORES),
}  # fmt: skip
CLASSES = {
    **{kind: NAMES for kind in GOOD if kind.startswith(("names in", "columns called"))},
    "names in an order that the guesses show": NAMES[::-1],
    "names in two lines": ["a", "b\nc", "d"],
    "classes from one": ["1", "2", "3"],
    "classes from minus one": ["-1", "0", "1"],
    "halves": ["0.5", "1", "1.5"],
    "a number among names": ["1", "bee", "sea"],
    "a class called None": ["None", "a", "nan"],
}
REMARKS = {
    **{kind: "in percent" for kind in GOOD if kind.startswith(("percent", "few percent"))},
    **{kind: "softmax" for kind in GOOD if kind.startswith("logits")},
    "the index of pandas": "the first column, which has no name, is taken for the id",
    "half as much": "do not sum to 1 (0.5 in line 2)",
    "votes": "do not sum to 1 (20 in line 2)",
    **{kind: "the class with the highest score" for kind in ("no guess", "empty guess")},
}


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_clear_is_read(kind):
    content = GOOD[kind]
    found = read_predictions("mine.csv", content if isinstance(content, bytes) else content.encode())
    guess = GUESS if kind not in ("no guess", "empty guess") else SCORES.argmax(1)
    assert found.ids.tolist() == [0, 1, 2, 3]
    assert found.guess.tolist() == list(guess) and found.truth.tolist() == TRUTH
    assert found.scores.values == pytest.approx(SCORES)
    assert found.classes == CLASSES.get(kind)
    if kind == "percent, one sum of 90":
        assert "in percent" in found.remarks[0] and "do not sum to 1 (0.9 in line 2)" in found.remarks[1]
    else:
        assert [REMARKS[kind] in text for text in found.remarks] == ([True] if kind in REMARKS else [])


def test_a_class_that_no_label_has_is_a_class():
    labels = [1, 2, 2]
    for names in (NAMES, "012"):
        for last in (SCORES[:3], np.round(50 * SCORES[:3]).astype(int)):
            for other, values in (("width", [3.5, 2, 1]), ("fold", [0, 0, 0]), ("2020", [7, 7, 8])):
                head = f"id,truth,{','.join(names)},{other}"
                text = table(head, range(3), named(labels, names), last, values)
                found = read_predictions("mine.csv", text.encode())
                assert found.scores.values == pytest.approx(SCORES[:3], abs=0.03)
                assert found.guess.tolist() == [0, 1, 2]
    logits = table("id,truth,0,1,2,2020", range(3), labels, LOGITS[:3], [7, 7, 8])
    found = read_predictions("mine.csv", logits.encode())
    assert found.scores.values == pytest.approx(SCORES[:3])
    unclear = table("id,truth,ant,bee,cat,fold", range(3), named(labels), LOGITS[:3], [0, 0, 1])
    found = read_predictions("mine.csv", unclear.encode())
    assert found.remarks[0].startswith("warning: ant, fold: taken for no class, because no image is of it")


def test_predictions_of_weka_are_read():
    """With and without the distribution. In the first, its titles are blank but for one."""
    start = ("inst#,actual,predicted,error", range(1, 5), named(TRUTH, ["1:a", "2:b", "3:c"]))
    rest = named(GUESS, ["1:a", "2:b", "3:c"]), ["", "", "", "+"]
    starred = [[f"{'*' if score == max(row) else ''}{score}" for score in row] for row in SCORES]
    for title, values in (("prediction", SCORES.max(1)), ("distribution,,", starred)):
        text = table(f"{start[0]},{title}", *start[1:], *rest, values)
        found = read_predictions("mine.csv", text.encode())
        assert found.ids.tolist() == [1, 2, 3, 4] and found.classes == ["1:a", "2:b", "3:c"]
        assert found.guess.tolist() == GUESS and found.truth.tolist() == TRUTH and found.remarks == []


def test_percent_signs_say_what_scores_are():
    text = table(
        "id,truth,score_0,score_1", range(3), [0, 1, 1], [["80 %", "60 %"], ["0.5 %", "1 %"], ["9%", "90%"]]
    )
    found = read_predictions("mine.csv", text.encode())
    assert found.scores.values[:2] == pytest.approx(np.array([[4 / 7, 3 / 7], [1 / 3, 2 / 3]]))
    mixed = table("id,truth,score_0,score_1", range(3), [0, 1, 1], [["97 %", 3], ["4 %", 96], ["10 %", 90]])
    assert read_predictions("mine.csv", mixed.encode()).guess.tolist() == [0, 1, 1]


def test_logits_with_decimal_commas_are_no_thousands():
    text = 'id,guess,truth,score_0,score_1\n0,0,0,"1,234","-2,345"\n1,1,0,"-1,500","0,250"\n'
    scores = 1 / (1 + np.exp([-3.579, 1.75]))  # of class 0
    assert read_predictions("mine.csv", text.encode()).scores.values[:, 0] == pytest.approx(scores)


def test_observation_number_is_no_truth():
    found = read_predictions("mine.csv", b"filename,obs,label,pred\na,0,0,0\nb,1,1,1\nc,2,1,0\n")
    assert found.truth.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    "column, high",
    [("score_1", 1), ("score_0", 0), ("score", 1), ("prob_pos", 1), ("y_score_Neg", 0), ("logit", 1)],
)
def test_one_column_holds_the_scores_of_two_classes(column, high):
    scores = np.array([0.1, 0.8, 0.4])
    values = np.log(scores / (1 - scores)) if column == "logit" else scores
    guess = [high, 1 - high, high] if scores[0] > 0.5 else [1 - high, high, 1 - high]
    labels = named(guess, ["neg", "pos"]) if column[-3:] in ("Neg", "pos") else guess
    text = table(f"id,guess,truth,{column}", range(3), labels, labels, values)
    found = read_predictions("mine.csv", text.encode())
    values = found.scores.values
    assert values[:, high] == pytest.approx(scores) and values.sum(1) == pytest.approx(1)
    assert found.guess.tolist() == guess


def test_half_of_a_decision_function_is_below_0():
    scores = np.array([-3.0, 2.0, 1.0, 0.5])
    text = table("id,guess,truth,score", range(4), [0, 1, 1, 1], [0, 1, 1, 1], scores)
    found = read_predictions("mine.csv", text.encode())
    assert found.scores.values[:, 1] == pytest.approx(1 / (1 + np.exp(-scores)))


TWO = ["defect", "ok"]  # the column of a detector is of the first class of these


@pytest.mark.parametrize(
    "scores, guess, owner, of_second",
    [
        ([0.9, 0.2, 0.3, 0.8], [0, 1, 1, 0], "defect", [0.1, 0.8, 0.7, 0.2]),
        ([0.9, 0.2, 0.3, 0.8], [1, 0, 0, 1], "ok", [0.9, 0.2, 0.3, 0.8]),
        ([0.3, 0.02, 0.01, 0.2], [0, 1, 1, 0], "defect", [0.7, 0.98, 0.99, 0.8]),  # a threshold of 0.1
        ([0.9, 0.8, 0.7, 0.5], [0, 1, 1, 0], "the guess", [0.1, 0.8, 0.7, 0.5]),
        ([0.9, 0.8, 0.7, 0.5], [1, 1, 1, 1], "ok", [0.9, 0.8, 0.7, 0.5]),
        ([0.1, 0.2, 0.3, 0.5], [1, 1, 1, 1], "defect", [0.9, 0.8, 0.7, 0.5]),
    ],
)
def test_guesses_show_whose_scores_one_column_holds(scores, guess, owner, of_second):
    text = table(
        "filename,y_true,y_score,y_pred", "abcd", named([0, 1, 1, 1], TWO), scores, named(guess, TWO)
    )
    found = read_predictions("mine.csv", text.encode())
    assert found.classes == TWO and found.scores.values[:, 1] == pytest.approx(np.array(of_second))
    assert f"y_score is taken for the score of {owner}, because that fits the guesses" in found.remarks


def test_without_guesses_one_column_is_of_the_second_class_and_that_is_said():
    scores = [0.9, 0.2, 0.3, 0.8]
    for labels, classes, owner, other in (
        ([1, 0, 0, 1], None, "1", "0"),
        (["yes", "no", "no", "yes"], ["no", "yes"], "yes", "no"),
        ([1, -1, -1, 1], ["-1", "1"], "1", "-1"),
        ([0, 1, 1, 0], None, "1", "0"),
        (["defect", "ok", "ok", "defect"], TWO, "ok", "defect"),
    ):
        text = table("id,truth,score", range(4), labels, scores)
        found = read_predictions("mine.csv", text.encode())
        assert found.classes == classes and found.scores.values[:, 1] == pytest.approx(scores)
        remark, cure = found.remarks[0].split(". ")
        assert f"score is taken for the score of {owner}" in remark
        assert cure == f"If it is that of {other}, name the column score_{other}"
        assert remark.startswith("warning: ") == (labels[0] in (0, "defect"))
        assert ("and so 4 of 4 guesses are wrong" in remark) == (labels[0] in (0, "defect"))

        cured = read_predictions("mine.csv", text.replace("score", f"score_{other}").encode())
        assert cured.scores.values[:, 0] == pytest.approx(scores) and len(cured.remarks) == 1
    text = table("id,truth,score,label", range(4), [0, 1, 1, 0], [0.9, 0.8, 0.7, 0.6], [0, 1, 1, 1])
    with pytest.raises(CompareError, match="score is never below 0.5, .* Add a column guess, or .* score_1"):
        read_predictions("mine.csv", text.encode())  # as from a pipeline that calls its guess "label"
    with pytest.raises(
        CompareError, match="has one class, and score may be of another. Name it .* score_ok"
    ):
        read_predictions("mine.csv", table("id,truth,score", range(4), ["ok"] * 4, scores).encode())


@pytest.mark.parametrize("by_name", ["guess", "truth"])
def test_one_column_of_scores_is_used_if_only_guesses_or_truths_have_names(by_name):
    labels = {"guess": [1, 0, 0, 1], "truth": [1, 0, 0, 0]}
    labels[by_name] = named(labels[by_name], TWO)
    scores = [0.9, 0.2, 0.3, 0.8]
    found = read_predictions(
        "mine.csv", table("id,guess,truth,score", range(4), *labels.values(), scores).encode()
    )
    assert found.guess.tolist() == [1, 0, 0, 1] and found.truth.tolist() == [1, 0, 0, 0]
    assert found.classes == TWO and found.scores.values[:, 1] == pytest.approx(np.array(scores))
    assert found.remarks[0].startswith("warning: classes 0 to 1 are taken for defect, ok, in this order.")
    assert found.remarks[1:] == ["score is taken for the score of ok, because that fits the guesses"]


def test_order_of_numbered_truths_beside_named_guesses_is_told():
    found = read_predictions("mine.csv", table("id,guess,truth", range(2), TWO, [0, 1]).encode())
    assert found.truth.tolist() == found.guess.tolist() == [0, 1]
    assert found.remarks[0].startswith("warning: classes 0 to 1 are taken for defect, ok, in this order.")
    text = table("id,truth,p_true,p_false", range(2), [0, 1], [0.1, 0.9], [0.9, 0.1])
    found = read_predictions("mine.csv", text.encode())
    assert found.remarks[0].startswith("warning: classes 0 to 1 are taken for true, false, in this order.")


@pytest.mark.parametrize(
    ("guess", "truth"),
    [
        (["Cat", "Dog"], ["cat", "dog"]),
        ([1, 2], [0, 1]),
        (["[0.1 0.9]", "[0.8 0.2]"], ["cat", "dog"]),
        ([0, 1], [1, 0]),
    ],
)
def test_fewer_right_guesses_than_by_chance_are_warned_of(guess, truth):
    text = table("id,guess,truth", range(20), 10 * guess, 10 * truth)
    (remark,) = read_predictions("mine.csv", text.encode()).remarks
    assert remark.startswith("warning: 0 of 20 guesses are right, no more than by chance. Check that")
    good = table("id,guess,truth", range(20), 10 * guess, 10 * guess)
    assert read_predictions("mine.csv", good.encode()).remarks == []


def test_guesses_and_truths_of_two_classes_that_differ_are_warned_of():
    text = table("id,guess,truth,score", range(20), 10 * [0, 1], 10 * [-1, 1], 10 * [0.2, 0.9])
    *_, remark = read_predictions("mine.csv", text.encode()).remarks
    assert remark.startswith("warning: the guesses are 0 and 1, and the truths -1 and 1. Check that")
    columns = range(20), 10 * ["a", "b"], 10 * ["a", "c"], *[[1 / 3] * 20] * 3
    text = table("id,guess,truth,score_a,score_b,score_c", *columns)
    assert read_predictions("mine.csv", text.encode()).remarks == []


def test_one_column_of_scores_is_not_used_if_there_is_one_class():
    text = table("id,guess,truth,score_ok", range(3), ["ok"] * 3, ["ok"] * 3, [0.9, 0.8, 0.7])
    found = read_predictions("mine.csv", text.encode())
    assert found.scores is None and found.classes == ["ok"]
    assert found.remarks == ["the column score_ok is not used, because there is only one class"]


BEST = "id,guess,truth,best_1,best_1_score,best_2,best_2_score"


@pytest.mark.parametrize(
    "text",
    [
        scored(SCORES[:, [1, 2, 0]]),
        with_names("id,guess,truth,p_bee,p_cat,p_ant", NAMES, SCORES),
        table("id,guess,truth,score_pos", range(4), ["neg", "pos"] * 2, ["neg"] * 4, [0.9, 0.1, 0.9, 0.5]),
        table(BEST, range(4), GUESS, TRUTH, [1, 2, 0, 0], [0.9] * 4, [2, 0, 1, 1], [0.1] * 4),
    ],
)
def test_guesses_that_contradict_most_scores_are_warned_of(text):
    (remark,) = read_predictions("mine.csv", text.encode()).remarks
    found = "warning: the guess is not the class with the highest score for [34] of 4 images. Check which"
    assert re.match(found, remark), remark


def test_rounding_errors_and_names_as_ids():
    text = (
        "filename,guess,truth,score_0,score_1\nimg/2.png,0,0,1.0000000000000002,-1e-17\nimg/10.png,1,1,0,1\n"
    )
    found = read_predictions("mine.csv", text.encode())
    assert found.ids.tolist() == ["img/10.png", "img/2.png"] and found.guess.tolist() == [1, 0]
    assert found.scores.values.tolist() == [[0, 1], [1, 0]]
    found = read_predictions("mine.csv", b"id,guess,truth\n12345678901234567890,0,1\n5,1,1\n")
    assert found.ids.tolist() == ["12345678901234567890", "5"] and found.scores is None


COLUMNS = ",".join(f"score_{k}" for k in range(200_000))
BAD = {  # file, and words of the error
    "no id": (
        PLAIN.replace("id,guess,", "nr,,", 1),
        ["no column id. ", "without a name", "It needs id, and"],
    ),
    "other columns": ("a,b\n1,2\n", ["no column id. It has a, b. It needs id, and guess and truth, or"]),
    "no truth": (
        "filename,pred\na,b\n",
        ["no column truth, and no scores. It has filename, pred. It needs"],
    ),
    "blanks as separators": (PLAIN.replace(",", " "), ["score_1 alone. Separate columns by commas"]),
    "an edge of Markdown": ("|a|b|\n|1|2|\n", ["no column id"]),
    "lists in cells": (
        'id,truth,probs\n0,1,"[0.2, 0.8]"\n',
        ["line 2: probs cannot be '[0.2, 0.8]'. Write the score of each class to a column of its own"],
    ),
    "thousands": (
        'id,truth,score_0,score_1\n0,1,"2,345",655\n1,0,12,988\n',
        ["line 2: score_0 cannot be '2,345': write 1,234 as 1234 or"],
    ),
    "two files in one": (
        "id,guess,truth\n0,1,1\nid,guess,truth\n1,0,0\n",
        ["line 3: id cannot be 'id': it repeats the first line"],
    ),
    "two truths": (PLAIN.replace("score_2", "truth"), ["mine.csv has two columns truth. Remove"]),
    "a short header": ("i.1\n1,bee,bee,0\n", ["no column id"]),
    "row names of R": (
        "id,guess,truth\n1,0,1,1\n2,1,0,0\n",
        ["4 values for 3 columns", "in R: row.names = FALSE"],
    ),
    "a class without a column": (
        table("id,truth,score_0.5,score_1,score_2", range(4), [0.5, 1, 2, 2.5], SCORES),
        ["truth cannot be '2.5': the columns of scores are of 0.5, 1, 2."],
    ),
    "names and numbers without scores": (
        table("id,guess,truth", range(4), ["ant", "bee", "sea", "ant"], [7] * 4),
        ["truth cannot be '7': the classes are ant, bee, sea."],
    ),
    "both kinds of lines": (PLAIN.replace("0,0,0,", "0,0,0,1,1,1\r1,1,1,1,"), ["line 3: 7 values"]),
    "an empty guess": (PLAIN.replace("\n1,1,", "\n1,,"), ["line 3", "guess is empty"]),
    "an empty truth": (
        PLAIN.replace("\n1,1,1,", "\n1,1,,"),
        ["line 3: truth is empty. Correct it, or remove the row."],
    ),
    "an empty score": (PLAIN.replace("0.8", ""), ["line 3", "score_1 is empty"]),
    "one damaged score": (
        PLAIN.replace("0.8", "8.0"),
        ["line 3", "score_1 cannot be '8.0': scores are from 0 to 1 or in percent. If they are logits"],
    ),
    "scores in the place of guesses": (
        table("id,pred,truth", range(4), [0.9, 0.2, 0.0, 1.0], [1, 0, 0, 1]),
        ["line 2: pred cannot be '0.9': it is no class. If it is a score, call the column score"],
    ),
    "scores as guesses beside names": (
        table("id,pred,truth", range(4), [1.0, 0.2, 0.1, 0.9], ["yes", "no", "no", "yes"]),
        ["line 3: pred cannot be '0.2': it is no class"],
    ),
    "an infinite logit": (scored(LOGITS).replace("\n2,2,2,", "\n2,2,2,1e999,9,"), ["line 4"]),
    "all scores 0": (PLAIN.replace("0.7,0.2,0.1", "0,0,0"), ["line 2", "all scores are 0"]),
    "an unknown class": (PLAIN.replace("\n3,1,2", "\n3,1,7"), ["line 5", "truth cannot be '7'", "0 to 2"]),
    "an unknown name": (
        with_names("id,guess,truth,p_ant,p_bee,p_cat", NAMES, SCORES).replace("3,bee,cat", "3,bee,cow"),
        ["line 5", "truth cannot be 'cow'", "ant, bee, cat"],
    ),
    "more names than scores": (
        with_names("id,guess,truth,score_0,score_1", NAMES, SCORES[:, :2] / 0.9),
        ["3 class names", "2 numbered score columns", "score_ant"],
    ),
    "ranks as timm writes them": (
        table(
            "filename,index_0,index_1,prob_0,prob_1", "abc", [7, 1, 4], [2, 0, 3], [0.9, 0.8, 0.7], [0.1] * 3
        ),
        ["index_0 beside prob_0", "Call the classes best_1, best_2 ..., and their scores best_1_score"],
    ),
    "nothing": ("", ["mine.csv is empty"]),
    "only blank lines": ("\n \n", ["mine.csv is empty"]),
    "a class twice": (PLAIN.replace("score_2", "score_1"), ["two columns of scores for one class"]),
    "bytes that are no text": (PLAIN.replace("\n0,", "\n\udcff,"), ["cannot be read as CSV", "UTF-8"]),
    "no rows": (HEADER, ["no rows"]),
    "a line too long": ("id,guess,truth\n0,0,0\n1,1,1,1,1,1,1\n", ["line 3: 7 values for 3 columns"]),
    "decimal commas": (PLAIN.replace("0.7", "0,7"), ["line 2: 7 values for 6 columns"]),
    "200,000 columns": (f"id,guess,truth,{COLUMNS}\n", ["first line of more than 1,000,000 bytes"]),
    "6,003 columns": ("id,guess,truth" + ",x" * 6000 + "\n0,0,0\n", ["6,003 columns"]),
    "1,001 scores": (
        f"id,guess,truth,{','.join(COLUMNS.split(',')[:1001])}\n0,0,0,1{',0' * 1000}\n",
        ["1,001 classes", "room for 1,000"],
    ),
    "1,001 labels": (table("id,guess,truth", range(1001), range(1001), range(1001)), ["1,001 classes"]),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_clear_is_refused(kind):
    text, words = BAD[kind]
    with pytest.raises(CompareError) as refused:
        read_predictions("mine.csv", text.encode(errors="surrogateescape"))
    assert all(word in str(refused.value) for word in words), refused.value
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


def test_files_with_names_numbers_and_without_scores_are_joined(main, tmp_path):
    header = "id,guess,truth,score_cat,score_ant,score_bee"
    moved = with_names(header, NAMES, SCORES[:, [2, 0, 1]])
    names = PLAIN.replace("score_0,score_1,score_2", "score_ant,score_bee,score_cat")
    guessed = table("id,guess,score_ant,score_bee,score_cat", range(4), named(GUESS), SCORES)
    write(
        tmp_path, plain=PLAIN, named=names, moved=moved, bare=with_names("id,guess,truth"), guessed=guessed
    )
    for names, remark in (
        (("named", "moved"), ""),
        (("plain", "named"), ""),
        (("named", "bare"), "no scores in bare"),
        (("plain", "guessed"), "plain: warning: classes 0 to 2 are taken for ant, bee, cat, in this order."),
    ):
        result = main("compare.py", *(f"{name}.csv" for name in names), "--no_images", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "0 fixed, 0 broken, 1 wrong in both" in result.stdout and remark in result.stdout
        assert "warning" in remark or "warning" not in result.stdout
        assert "cat taken for bee (1)" in result.stdout
    other = table("id,guess,truth", range(4), ["ant", "cow"] * 2, named(TRUTH))
    write(
        tmp_path,
        other=other,
        two=table("id,guess,truth,score_1", range(4), [0, 1] * 2, [0, 1] * 2, [0.4] * 4),
    )
    result = main("compare.py", "named.csv", "--no_images", "other.csv", cwd=tmp_path)
    assert_one_line_error(result, "other has the class cow", "ant, bee, cat")
    result = main("compare.py", "named.csv", "two.csv", "--no_images", cwd=tmp_path)
    assert_one_line_error(result, "named has 3 classes, two has 2")
    write(tmp_path, unlabelled=table("id,guess,score_0,score_1,score_2", range(4), GUESS, SCORES))
    result = main("compare.py", "named.csv", "unlabelled.csv", "--no_images", cwd=tmp_path)
    assert "unlabelled: warning: classes 0 to 2 are taken for ant, bee, cat, in this order." in result.stdout
    write(tmp_path, reversed=table("id,guess,truth", range(4), GUESS, [2 - k for k in TRUTH]))
    result = main("compare.py", "named.csv", "reversed.csv", "--no_images", cwd=tmp_path)
    assert_one_line_error(result, "the truth of id 0 is ant in named, cat in reversed. ", "or write names")
    texts = PLAIN, table("id,score_0,score_1,score_2", range(4), SCORES)
    runs = [compare.make_run(str(n), Path(), read_predictions("", t.encode())) for n, t in enumerate(texts)]
    runs[0].config = {"classes": ["0", "1", "2"]}  # as MNIST's are: numbers need no order
    assert share_test_set(runs, share_classes(runs)) == ["the truth of 1 is that of 0"]
    write(tmp_path, less=with_names("id,guess,truth").rpartition("3,")[0])
    result = main("compare.py", "named.csv", "less.csv", "--no_images", cwd=tmp_path)
    assert_one_line_error(result, "named has id 3, less does not. Compare predictions of the same images.")


def test_predictions_of_pictures_have_no_truth(main, tmp_path):
    """As `evaluate.py PICTURES --predictions` writes them: paths as ids, and an empty truth."""
    ids = ['"my ""best"".png"', "a.png", '"b,c.png"', "d.png"]
    text = table(HEADER, ids, GUESS, [""] * 4, SCORES)
    other = table(HEADER, ids, [0, 1, 0, 0], [""] * 4, SCORES)
    write(tmp_path, mine=text, other=other, known=table("id,guess,truth", ids, [0] * 4, TRUTH))
    result = main("compare.py", "mine.csv", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the truth of mine is unknown" in result.stdout and "no pictures: mine" in result.stdout
    result = main("compare.py", "mine.csv", "other.csv", cwd=tmp_path)
    assert "mine and other guess the same for 2 of 4 images" in result.stdout
    result = main("compare.py", "mine.csv", "known.csv", cwd=tmp_path)
    assert "the truth of mine is that of known" in result.stdout and "1 wrong in both" in result.stdout
    assert_one_line_error(
        main("compare.py", "mine.csv", "--suspects", "s.csv", cwd=tmp_path),
        "--suspects s.csv needs the truth",
    )


def test_suspects_have_the_names_of_the_input_and_no_suggestion_if_the_label_is_likely(main, tmp_path):
    ids = [f"img/{n}.jpg" for n in range(4)]
    text = table("filename,pred,label,p_ant,p_bee,p_cat", ids, named(GUESS), named(TRUTH), SCORES)
    agreed = text.replace("3.jpg,bee,cat,0.25,0.5,0.25", "3.jpg,cat,cat,0,0.5,0.5")
    write(tmp_path, mine=text, agreed=agreed)
    result = main("compare.py", "mine.csv", "--suspects", "s.csv", cwd=tmp_path)
    header, *rows, suspects, _ = result.stdout.split("(--suspects FILE writes more)\n")[1].splitlines()
    assert header.split() == ["id", "label", "suggested", "margin"] and suspects.startswith(
        "suspects  s.csv"
    )
    assert [row.split() for row in rows] == [["img/3.jpg", "cat", "bee", "-0.5000"]]
    assert (tmp_path / "s.csv").read_text().splitlines() == [
        "id,truth,suggested,margin",
        "img/3.jpg,cat,bee,-0.5",
        "img/0.jpg,ant,,0.4",
        "img/1.jpg,bee,,0.6",
        "img/2.jpg,cat,,0.8",
    ]
    result = main("compare.py", "agreed.csv", cwd=tmp_path)
    assert "\nsuspected label errors: none\n" in result.stdout


def test_nothing_that_is_named_is_replaced_or_waited_for(main, tmp_path):
    write(tmp_path, mine=PLAIN)
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "link.csv").symlink_to("mine.csv")
    for name in ("pipe.csv", "/dev/zero"):
        assert_one_line_error(
            main("compare.py", name, "--no_images", cwd=tmp_path), name, "is not a run directory"
        )
    for flag in ("--out", "--suspects"):
        result = main("compare.py", "mine.csv", "--no_images", flag, "link.csv", cwd=tmp_path)
        assert_one_line_error(result, f"{flag} link.csv would replace")
    result = main("compare.py", "mine.csv", "--out", "new", "--suspects", "new", cwd=tmp_path)
    assert_one_line_error(result, "--suspects new would replace")
    assert (tmp_path / "mine.csv").read_text() == PLAIN


@pytest.fixture
def mailed(tmp_path) -> Path:
    """A run directory of two epochs."""
    (tmp_path / "run" / "predictions").mkdir(parents=True)
    for epoch in (1, 2):
        (tmp_path / "run" / "predictions" / f"epoch-00{epoch}.csv").write_text(PLAIN)
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "summary.json").write_text("{}")
    (tmp_path / "run" / "model.pt").write_text("weights")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["config.json", "model.pt", "predictions/epoch-001.csv"])
def test_files_of_a_run_are_not_replaced(main, mailed, name):
    before = (mailed / name).read_bytes()
    for argument in (mailed, f"{mailed}@2"):
        result = main("compare.py", argument, "--no_images", "--suspects", mailed / name, cwd=mailed.parent)
        assert_one_line_error(result, f"{name} would replace another argument's file")
    assert (mailed / name).read_bytes() == before


@pytest.mark.parametrize(
    "name, text",
    [
        ("config.json", '{"data_dir": "a\\u0000b"}'),
        ("config.json", '{"dataset": "\\u001b[31m"}'),
        ("config.json", '{"val_size": -1}'),
        ("config.json", f'{{"image_size": {10**40}}}'),
        ("config.json", f'{{"parameters": {"9" * 5000}}}'),
        ("config.json", "[" * 100_000),
        ("config.json", "[1]"),
        ("config.json", '{"a": "\x00'),
        ("summary.json", '{"train_seconds": [1, "x"]}'),
        ("summary.json", '{"train_seconds": 5}'),
        ("metrics.csv", "step,epoch,loss\n1,1,high\n"),
        ("metrics.csv", "step,loss," + "," * 200_000 + "\n"),
        ("predictions/epoch-002.csv", "id\x00,guess"),
    ],
)
def test_run_that_came_by_mail_is_refused_in_one_line(name, text, main, mailed):
    (mailed / name).write_text(text)
    result = main("compare.py", "run", "--no_images", cwd=mailed.parent)
    assert_one_line_error(result, "run")
    assert result.stdout == "" and result.stderr.isascii() and len(result.stderr) < 1000


def test_pipes_in_a_run_are_refused_at_once(main, mailed):
    (mailed / "predictions/epoch-001.csv").unlink()
    os.mkfifo(mailed / "predictions/epoch-001.csv")
    result = main("compare.py", "run", "--no_images", cwd=mailed.parent)
    assert result.returncode == 0 and "an epoch is left out: run/predictions/epoch-001.csv" in result.stdout
    os.mkfifo(mailed / "metrics.csv")
    assert_one_line_error(
        main("compare.py", "run", "--no_images", cwd=mailed.parent), "is not a file of at most"
    )


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_packed_files_are_read(ending, main, tmp_path):
    write(tmp_path, mine=PLAIN)
    path = tmp_path / f"mine.csv.{ending}"
    pd.read_csv(tmp_path / "mine.csv").to_csv(path, index=False)
    result = main("compare.py", "mine.csv", path.name, "--no_images", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    assert f"mine.csv -> {path.name}: 0 fixed, 0 broken, 1 wrong in both" in result.stdout
    result = main("compare.py", path.name, "--no_images", cwd=tmp_path)
    assert "\nmine       1  " in result.stdout

    path.write_bytes(
        path.read_bytes()[:-60] if ending == "zip" else path.read_bytes()[: 40 + 500 * (ending == "tar")]
    )
    result = main("compare.py", path.name, "--no_images", cwd=tmp_path)
    assert_one_line_error(result, f"{path.name} cannot be unpacked")


def test_archives_are_read_if_one_file_is_in_them(main, tmp_path, monkeypatch):
    """Besides folders, and what macOS adds."""

    def write_zip(*members: str) -> subprocess.CompletedProcess:
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            for name in members:
                archive.writestr(name, PLAIN.encode("utf-16"))
        return main("compare.py", "mine.zip", "--no_images", cwd=tmp_path)

    result = write_zip("results/", "results/mine.csv", "__MACOSX/results/._mine.csv")
    assert result.returncode == 0 and "\nmine       1  " in result.stdout
    assert_one_line_error(write_zip("a.csv", "b.csv"), "mine.zip is not CSV: unpack it")
    assert_one_line_error(write_zip("results/"), "mine.zip is not CSV: unpack it")
    monkeypatch.setattr("page.table.MAX_UNPACKED", 100)
    assert_one_line_error(write_zip("a.csv"), "mine.zip unpacks to more than 100 bytes")


def test_outputs_and_pictures_that_are_missing_are_told_before_the_summary(main, tmp_path):
    ten = ",".join(f"score_{k}" for k in range(10))
    write(tmp_path, mine=table(f"id,truth,{ten}", range(10), range(10), np.eye(10)))
    for flags in (
        ("--data_dir", "nowhere"),
        ("--dataset", "nowhere"),
        ("--no_images", "--out", "nowhere/page.html"),
        ("--no_images", "--suspects", "nowhere/s.csv"),
    ):
        result = main("compare.py", "mine.csv", *flags, cwd=tmp_path)
        assert_one_line_error(result, "nowhere")
        assert "wrong" not in result.stdout and os.listdir(tmp_path) == ["mine.csv"]


def test_names_do_not_reach_the_terminal_as_control_characters(main, mailed):
    (mailed / "config.json").write_text(json.dumps({"classes": ["\x1b[2Jant", "b\nee", "c\x07at"]}))
    moved = mailed.rename(mailed.parent / "\x1b]0;run")
    result = main("compare.py", moved.name, moved.name + "@1", "--no_images", cwd=moved.parent)
    assert result.returncode == 0 and "c\\x07at taken for b\\nee (1)" in result.stdout
    assert not {"\x1b", "\x07"} & {*result.stdout, *result.stderr}
    result = main("compare.py", moved.name + "@3", cwd=moved.parent)
    assert_one_line_error(result, "has no epoch 3, only 1, 2")
    assert "\x1b" not in result.stderr


def test_nothing_is_created_or_downloaded_for_a_config(main, mailed, monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("the network is used"))
    for dataset, val_size in (("mnist", 0), ("cifar10", 5), ("auto", 5), ("nowhere/pictures", 0)):
        config = {"dataset": dataset, "data_dir": "new/data", "val_size": val_size}
        (mailed / "config.json").write_text(json.dumps(config))
        assert_one_line_error(main("compare.py", "run", cwd=mailed.parent), "no pictures for the page")
    assert os.listdir(mailed.parent) == ["run"]


def test_hint_names_the_interpreter_that_was_typed(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["/opt/my python3", "compare.py"])
    with pytest.raises(CompareError, match="Train one: '/opt/my python3' .*train.py"):
        compare.load_run(str(tmp_path))


@pytest.mark.parametrize("columns", ["guess truth score_0 score_1", "guess truth", "truth score_0 score_1"])
def test_numbers_beside_names_are_told_to_be_in_the_order_of_the_names(columns):
    values = {"guess": "0 1 1", "truth": "dog cat dog", "score_0": "0.9 0.2 0.1", "score_1": "0.1 0.8 0.9"}
    names = columns.split()
    rows = zip("abc", *(values[name].split() for name in names))
    text = "\n".join([",".join(["id", *names]), *map(",".join, rows)])
    found = read_predictions("mine.csv", text.encode())
    assert found.truth.tolist() == [1, 0, 1] and found.guess.tolist() == [0, 1, 1]
    assert found.remarks[0].startswith("warning: classes 0 to 1 are taken for cat, dog, in this order.")
    named = text.replace("score_0", "score_cat").replace("score_1", "score_dog")
    if named != text:
        assert not any("in this order" in remark for remark in read_predictions("b", named.encode()).remarks)
