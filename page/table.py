"""The columns of a CSV file, as numbers and as text."""

import csv
import io
import itertools
import re
import unicodedata
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from page.packed import unpack
from page.scores import MAX_FULL

MAX_CELL = 2**31 - 1  # characters
MAX_UNPACKED = 2**30  # bytes
# No CSV: control characters near the start (archives, spreadsheets, models), or JSON, HTML and PDF.
CONTROL = rb"[\0-\x08\x0e-\x19\x1c-\x1f]"
OTHER_KIND = re.compile(rb"(?s:.){0,500}?" + CONTROL + rb'|\s*(\{|<|%PDF|\[\s*[\[{"])')
RULE = re.compile(rb"\n[ \t|:+-]*---[ \t|:+-]*(?=\r?\n)")  # below the titles of a Markdown table
EXCEL_LINE = re.compile(rb'(\xef\xbb\xbf)?"?sep=."?(?=[\r\n])')  # tells Excel the separator
MAX_CLASSES = 1_000
MAX_COLUMNS, MAX_HEADER = 5_000, 1_000_000  # columns, and bytes of their names
CHUNK = 1_000_000  # values of a wide file that are parsed at a time
NEEDED = (
    "It needs id, and guess and truth, or scores: score_0, score_1 ... or the best: best_1, best_1_score ..."
)


class CompareError(Exception):
    """The predictions cannot be compared. The message says what is wrong, where, and what to do."""


def shrink(table: pd.DataFrame, places: list[int] | tuple) -> pd.DataFrame:
    """The table with float32 instead of float64 in some columns."""
    return table.astype({place: np.float32 for place in places if table[place].dtype == float})


def to_nfc(text: str) -> str:
    """Text with each accented letter as one character, as Linux writes file names; macOS writes two."""
    return unicodedata.normalize("NFC", text)


class Table:
    """The columns of a file, which may be packed. Raises CompareError if it is no CSV file."""

    def __init__(self, name: str, content: bytes):
        try:
            content = unpack(content, MAX_UNPACKED)
        except Exception as error:  # the libraries raise errors of many types
            raise CompareError(f"{name} cannot be unpacked: {error}. Pack or copy it again.") from error
        if len(content) > MAX_UNPACKED:
            raise CompareError(
                f"{name} unpacks to more than {MAX_UNPACKED:,} bytes. Leave out some columns."
            )
        if first := EXCEL_LINE.match(content):
            content = content[first.end() :]  # what is left of the line is blank
        self.name, self.content = name, content
        self.encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        if content[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
            self.encoding = "utf-32"
        if self.encoding == "utf-8-sig" and OTHER_KIND.match(content.removeprefix(b"\xef\xbb\xbf")):
            raise CompareError(f"{name} is not CSV: unpack it, or save it as CSV in UTF-8. {NEEDED}")
        start = content[:MAX_HEADER].decode(self.encoding, errors="replace")
        unquoted = re.sub('"[^"]*"', "-", start).splitlines()
        self.separator = max(",;\t|", key=next((line for line in unquoted if line.strip()), "").count)
        if self.separator == "|":
            self.content = RULE.sub(b"\n", content, count=1)
        lines = io.StringIO(start, newline=None)
        try:
            header = next((row for _, row in self.rows(lines)), [])
        except csv.Error as error:
            raise CompareError(f"{name} cannot be read as CSV: {error}. {NEEDED}") from error
        if len(content) > MAX_HEADER and not lines.read(1):
            raise CompareError(f"{name} has a first line of more than {MAX_HEADER:,} bytes. {NEEDED}")
        self.header = [to_nfc(text.strip()) for text in header]
        if not header:
            raise CompareError(f"{name} is empty. {NEEDED}")
        if len(self.header) > MAX_COLUMNS:
            found = f"{name} has {len(self.header):,} columns"
            raise CompareError(f"{found}. A page has room for {MAX_CLASSES:,} classes.")

    def read(self, places: list[int], scores: list[int] | tuple = ()) -> None:
        """Read the columns at some places of the header; many columns of scores as float32."""
        places, many = [*{*places, *scores}], scores if len(scores) > MAX_FULL else ()
        options = {"sep": self.separator, "encoding": self.encoding, "usecols": places, "index_col": False}
        options |= {"header": 0, "names": range(len(self.header))}
        options |= {"low_memory": False, "chunksize": CHUNK // len(places) if many else len(self.content)}
        options |= {"keep_default_na": False, "na_values": [""], "skipinitialspace": True}
        try:
            with warnings.catch_warnings(), np.errstate(over="ignore"):
                warnings.simplefilter("ignore", pd.errors.ParserWarning)  # a separator ends each line
                with pd.read_csv(io.BytesIO(self.content), **options) as chunks:
                    parts = [shrink(part, many) for part in chunks]
                self.columns = pd.concat(parts, ignore_index=True)
            self.check_width()
        except (OSError, ValueError, ArithmeticError, LookupError, csv.Error) as error:  # also pandas' own
            reason = str(error).splitlines()[0].rstrip(".")
            raise CompareError(f"{self.name} cannot be read as CSV: {reason}. Save it as UTF-8.") from error

    def lines(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(self.content), self.encoding)

    def rows(self, lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
        """The rows that are not blank, and the number of the line in which each begins, from 1."""
        limit = csv.field_size_limit(MAX_CELL)
        try:
            reader, number = csv.reader(lines, delimiter=self.separator, skipinitialspace=True), 1
            for row in reader:
                if len(row) > 1 or "".join(row).strip():
                    yield number, row
                number = reader.line_num + 1
        finally:
            csv.field_size_limit(limit)

    def line(self, row: int) -> int:
        """The number of the line in which a row of values begins, as an editor counts."""
        return next((number for number, _ in itertools.islice(self.rows(self.lines()), row + 1, None)), 0)

    def check_width(self) -> None:
        """Refuse rows with more values than the header has names, of which pandas would drop some."""
        width, separator, lines = len(self.header), self.separator, self.lines()
        if b'"' in self.content:
            rows = self.rows(lines)
        else:  # each row is a line, and few lines need to be split
            wide = (line for line in enumerate(lines, 1) if line[1].count(separator) >= width)
            rows = ((number, line.split(separator)) for number, line in wide)
        for number, row in rows:
            if len(row) > width and "".join(row[width:]).strip():
                found = f"{self.name}, line {number}: {len(row)} values for {width} columns"
                cure = "Name each column (in R: row.names = FALSE), and quote values that hold a separator"
                raise CompareError(f"{found}. {cure}.")

    def refuse(self, row: int, place: int, reason: str = "") -> None:
        """Raise CompareError for a value."""
        value = self.columns[place].iloc[row]
        is_empty = value is None or value != value or value == ""
        problem = "is empty" if is_empty else f"cannot be '{value!s:.40}'"
        if not reason and str(value).startswith("["):
            reason = ". Write the score of each class to a column of its own, such as score_0"
        reason = reason or ". Correct it, or remove the row"
        column = self.header[place] or "the first column"
        raise CompareError(f"{self.name}, line {self.line(row)}: {column} {problem}{reason}.")

    def refuse_columns(self, missing: str) -> None:
        """Raise CompareError for columns that the file lacks."""
        names = [name[:30] or "one without a name" for name in self.header[:20]]
        found = ", ".join([*names, *(["..."] if len(self.header) > 20 else [])])
        found += " alone. Separate columns by commas, semicolons or tabs" * (len(self.header) == 1)
        raise CompareError(f"{self.name} has no column {missing}. It has {found}. {NEEDED}")

    def numbers(self, place: int, dtype: type = float) -> np.ndarray:
        """Values (N,). Percent signs and decimal commas are understood."""
        column = self.columns[place]
        try:
            if not pd.api.types.is_numeric_dtype(column):
                text = column.astype(str).str.strip()
                grouped = text.str.fullmatch(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
                if self.separator == "," and grouped.any() and not (text.str.contains(",") & ~grouped).any():
                    cure = ": write 1,234 as 1234 or, if it is near 1, as 1.234"
                    self.refuse(int(grouped.argmax()), place, cure)
                text = text.str.removesuffix("%").str.strip().str.replace(",", ".", regex=False)
                column = pd.to_numeric(text, errors="coerce")
            with np.errstate(over="ignore"):
                values = column.to_numpy(dtype)
        except (ArithmeticError, ValueError) as error:  # integers of hundreds of digits
            problem = f"{self.name}: {self.header[place]} has a number that is too large"
            raise CompareError(f"{problem}.") from error
        if not np.isfinite(values).all():
            self.refuse(int(np.isfinite(values).argmin()), place)
        return values

    def in_percent(self, places: list[int]) -> bool:
        """Whether most values of some columns end with a percent sign."""
        texts = self.columns[places].select_dtypes(exclude="number").astype(str)
        return sum(t.str.rstrip().str.endswith("%").mean() for _, t in texts.items()) > len(places) / 2

    def matrix(self, places: list[int]) -> np.ndarray:
        """Float values (N, M) of several columns."""
        dtype = np.float32 if len(places) > MAX_FULL else float
        values = np.empty((len(self.columns), len(places)), dtype)
        for column, place in enumerate(places):
            values[:, column] = self.numbers(place, dtype)
        return values

    def ids(self, place: int) -> np.ndarray:
        """Whole numbers (N,), or text if they are anything else. JavaScript knows integers up to 2^53."""
        column = self.columns[place]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            values = column.to_numpy()
            with np.errstate(invalid="ignore"):  # an infinite value has no remainder
                bad = ~(values >= 0) | (values % 1 != 0)
            if bad.any():
                self.refuse(int(bad.argmax()), place)
            return values.astype(np.int64) if values.max() <= 2**53 else values.astype(str).astype(object)
        texts = self.texts(place)
        if len(again := np.flatnonzero(texts == self.header[place])):
            self.refuse(int(again[0]), place, ": it repeats the first line. Remove this line")
        return texts

    def texts(self, place: int) -> np.ndarray:
        """Text values (N,), objects. None may be empty."""
        column = self.columns[place]
        texts = column.astype(str).str.strip().to_numpy(object)
        if not self.content.isascii():
            texts = np.array([to_nfc(text) for text in texts], object)
        empty = column.isna().to_numpy() | (texts == "")
        if empty.any():
            self.refuse(int(empty.argmax()), place)
        return texts

    def labels(self, place: int) -> np.ndarray:
        """Class numbers (N,) int64, which may be written 3 or 3.0, or names (N,) as text, such as 0.5."""
        column = self.columns[place]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            values = column.to_numpy(float)
            if (np.isfinite(values) & (abs(values) < 2**31) & (np.rint(values) == values)).all():
                return values.astype(np.int64)
            return np.array([text.removesuffix(".0") for text in self.texts(place)], object)
        return self.texts(place)
