"""How compare.py takes a CSV file apart: quotes, line numbers, accents, and files that are not CSV."""

import csv
import io
import json
import pickle
import unicodedata
import zipfile

import numpy as np
import pytest
from conftest import assert_one_line_error

from page.reading import read_predictions
from page.table import CompareError

HEADER = ["id", "guess", "truth", "score_0", "score_1"]
ROWS = [[n, n % 2, n % 2, 0.9 - 0.8 * (n % 2), 0.1 + 0.8 * (n % 2)] for n in range(6)]


def to_csv(rows: list[list], **options) -> str:
    out = io.StringIO()
    csv.writer(out, **options).writerows(rows)
    return out.getvalue()


def captioned(caption: str, title: str = "the\ncaption, a, b, c, d", **options) -> str:
    """A file whose second column is text."""
    rows = [HEADER, *ROWS]
    return to_csv([[row[0], caption if n else title, *row[1:]] for n, row in enumerate(rows)], **options)


LEGAL = {
    "breaks and commas": captioned("x, y\na, b, c, d, e, f, g, h"),
    "breaks of windows": captioned("x, y\r\na, b, c, d, e, f, g, h"),
    "breaks of old macs": captioned("x, y\ra, b, c, d, e, f, g, h", lineterminator="\r"),
    "more lines than columns": captioned("\n" * 20),
    "quotes in quotes": captioned('a ""big"", b\n"'),
    "everything quoted": captioned("a\nb, c, d, e, f, g", quoting=csv.QUOTE_ALL),
    "every tab quoted": captioned("a\tb\nc", delimiter="\t", quoting=csv.QUOTE_ALL),
    "semicolons": captioned("a; b\nc, d, e; f; g; h; i", delimiter=";"),
    "tabs": captioned("a\tb\tc\td\te\tf\tg\nh", delimiter="\t"),
    "blanks before quotes": captioned("a, b, c, d, e, f, g, h", "caption").replace(',"', ', "'),
    "a lone quote": captioned("pipe", "caption").replace("pipe", '5" pipe'),
    "a cell of 200,000 characters": captioned("x, " * 70_000),
    "a name of 200,000 characters": captioned("x", "caption, " * 25_000),
}


@pytest.mark.parametrize("kind", LEGAL)
def test_quoted_cells_may_hold_separators_and_line_breaks(kind):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        found = read_predictions("mine.csv", LEGAL[kind].encode(encoding))
        assert found.guess.tolist() == [0, 1, 0, 1, 0, 1] and found.ids.tolist() == [*range(6)]
        assert found.scores.values[:, 0] == pytest.approx([0.9, 0.1] * 3)


def test_limit_of_the_csv_module_is_the_callers_own():
    before = csv.field_size_limit(1000)
    try:
        read_predictions("mine.csv", LEGAL["a cell of 200,000 characters"].encode())
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


PLAIN = captioned("x", "caption")
SPREAD = {  # files whose rows are not in the lines that follow the first
    "one line a row": PLAIN,
    "blank lines": PLAIN.replace("\r\n", "\n\n"),
    "lines of blanks": "\n  \n" + PLAIN.replace("\r\n", "\n \t \n"),
    "lines of old macs": PLAIN.replace("\r\n", "\r\r"),
    "breaks in cells": captioned("x\ny\n\nz"),
    "breaks of windows in cells": captioned("x\r\ny\r\n\r\nz"),
    "both": captioned("x\ny\n\nz").replace("\r\n", "\r\n\r\n\r\n"),
    "empty cells": captioned(""),
}
DAMAGE = {  # of the row with id 4 -> the words of the error or the remark
    "0.9,0.1": {
        ",0.1": "score_0 is empty",
        "0.9,": "score_1 is empty",
        "0.9,0.1,7": "7 values for 6 columns",
        "0,0": "all scores are 0",
        "0.9,0.4": "do not sum to 1 (1.3 in line {})",
        "0.9,nought": "score_1 cannot be 'nought'",
    },
    "0,0,": {"0,5,": "truth cannot be '5'", "0,,": "truth is empty", "-1,0,": "guess cannot be '-1'"},
}


@pytest.mark.parametrize("kind", SPREAD)
def test_line_numbers_are_those_of_an_editor(kind):
    text = SPREAD[kind]
    start = text.index("\n4,") + 1 if "\n4," in text else text.index("\r4,") + 1
    number = len(io.StringIO(text[:start], newline=None).readlines()) + 1
    for old, cases in DAMAGE.items():
        for new, words in cases.items():
            damaged = text[:start] + text[start:].replace(old, new, 1)
            try:
                (found,) = read_predictions("mine.csv", damaged.encode()).remarks
            except CompareError as error:
                found = str(error)
            assert words.format(number) in found and f"line {number}" in found


def test_line_of_a_class_that_is_there_twice_is_that_of_an_editor():
    header = "id,note,truth,best_1,best_1_score,best_2,best_2_score"
    text = f'{header}\n\n0,"a\nb",0,0,0.6,1,0.4\n1,c,1,1,0.6,1,0.4\n'
    with pytest.raises(CompareError, match="mine.csv, line 5: one class is there twice"):
        read_predictions("mine.csv", text.encode())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_accents_are_the_same_in_one_character_or_two(encoding, main, tmp_path):
    """Linux writes "é" as one character, a Mac in the names of its files as two."""
    header = "id,guess,truth,score_café,score_naïve,score_Ångström"
    rows = [f"é{n}.png,{guess},café,{scores}" for n, (guess, scores) in enumerate(
        [("café", "0.8,0.1,0.1"), ("naïve", "0.1,0.8,0.1"), ("Ångström", "0.1,0.1,0.8")]
    )]  # fmt: skip
    for form in ("NFC", "NFD"):
        text = unicodedata.normalize(form, "\n".join([header, *rows, ""]))
        (tmp_path / f"{form}.csv").write_bytes(text.encode(encoding))
        bare = "\n".join(",".join(line.split(",")[:3]) for line in text.splitlines())
        (tmp_path / f"bare {form}.csv").write_bytes(bare.encode(encoding))
    for pair in (("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "bare NFD"), ("NFD", "bare NFC")):
        result = main("compare.py", *(f"{name}.csv" for name in pair), "--no_images", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert "0 fixed, 0 broken, 2 wrong in both" in result.stdout


def test_accents_in_the_classes_of_a_run_are_those_of_its_table(main, tmp_path):
    (tmp_path / "run/predictions").mkdir(parents=True)
    names = [unicodedata.normalize("NFD", name) for name in ("café", "naïve")]
    (tmp_path / "run/config.json").write_text(json.dumps({"classes": names}))
    (tmp_path / "run/summary.json").write_text("{}")
    text = "id,guess,truth\n0,café,café\n1,naïve,café\n"
    (tmp_path / "run/predictions/epoch-001.csv").write_text(text, encoding="utf-8")
    result = main("compare.py", "run", "--no_images", cwd=tmp_path)
    assert result.returncode == 0 and "café taken for naïve (1)" in result.stdout, result.stderr


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name in names:
            file.writestr(name, PLAIN)
    return out.getvalue()


def saved_array() -> bytes:
    out = io.BytesIO()
    np.save(out, np.eye(3))
    return out.getvalue()


RECORDS = [dict(zip(HEADER, row)) for row in ROWS]
OTHER_KINDS = {
    "model.pt": zipped("model/data.pkl", "model/version"),
    "predictions.npy": saved_array(),
    "predictions.pkl": pickle.dumps(RECORDS),
    "predictions.parquet": b"PAR1\x15\x04\x15\x10\x15\x14L\x15\x02\x15\x00\x12\x00\x00\x08\x1c",
    "predictions.xls": bytes.fromhex("d0cf11e0a1b11ae1") + bytes(16),
    "predictions.json": json.dumps(RECORDS, indent=2).encode(),
    "columns.json": json.dumps({"id": [0, 1]}).encode("utf-8-sig"),
    "rows.json": json.dumps([HEADER, *ROWS]).encode(),
    "predictions.jsonl": "\n".join(map(json.dumps, RECORDS)).encode(),
    "table.html": b"\n<table><tr><td>id</td></tr></table>",
    "paper.pdf": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
    "wide.txt": PLAIN.encode("utf-16")[2:],  # without the mark that tells the encoding
}


@pytest.mark.parametrize("name", OTHER_KINDS)
def test_file_of_another_kind_is_called_so(name, main, tmp_path):
    (tmp_path / name).write_bytes(OTHER_KINDS[name])
    result = main("compare.py", name, "--no_images", cwd=tmp_path)
    assert_one_line_error(result, f"{name} is not CSV: unpack it, or save it as CSV in UTF-8. It needs id")
    assert len(result.stderr) < 250 and result.stderr.isascii()
