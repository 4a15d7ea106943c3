"""The columns of a CSV file, as numbers and as text."""

import csv
import io
import warnings

import numpy as np
import pandas as pd

from page.scores import MAX_FULL

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


class Table:
    """The columns of a file. Raises CompareError if it is no CSV file."""

    def __init__(self, name: str, content: bytes):
        self.name, self.content = name, content
        self.encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        lines = content[:MAX_HEADER].decode(self.encoding, errors="replace").splitlines()
        line = next((line for line in lines if line.strip()), "")
        if len(lines) < 2 and len(content) >= MAX_HEADER:
            raise CompareError(f"{name} has a first line of more than {MAX_HEADER:,} bytes. {NEEDED}")
        self.separator = max(",;\t|", key=line.count)
        try:
            self.header = [text.strip() for text in next(csv.reader([line], delimiter=self.separator), [])]
        except csv.Error as error:
            raise CompareError(f"{name} cannot be read as CSV: {error}. {NEEDED}") from error
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

    def check_width(self) -> None:
        """Refuse lines with more values than the header has names, of which pandas would drop some."""
        width = len(self.header)
        lines = io.TextIOWrapper(io.BytesIO(self.content), self.encoding)
        for number, line in enumerate(lines, 1):
            if line.count(self.separator) >= width:
                values = next(csv.reader([line.strip()], delimiter=self.separator))
                if any(values[width:]):
                    found = f"{self.name}, line {number}: {len(values)} values for {width} columns"
                    raise CompareError(f"{found}. Put values with a separator into quotes.")

    def refuse(self, row: int, place: int, reason: str = "") -> None:
        """Raise CompareError for a value."""
        value = self.columns[place].iloc[row]
        is_empty = value is None or value != value or value == ""
        problem = "is empty" if is_empty else f"cannot be '{value!s:.40}'"
        raise CompareError(f"{self.name}, line {row + 2}: {self.header[place]} {problem}{reason}.")

    def refuse_columns(self, missing: str) -> None:
        """Raise CompareError for columns that the file lacks."""
        names = [name[:30] or "one without a name" for name in self.header[:20]]
        found = ", ".join([*names, *(["..."] if len(self.header) > 20 else [])])
        raise CompareError(f"{self.name} has no column {missing}. It has {found}. {NEEDED}")

    def numbers(self, place: int, dtype: type = float) -> np.ndarray:
        """Values (N,). Percent signs and decimal commas are understood."""
        column = self.columns[place]
        try:
            if not pd.api.types.is_numeric_dtype(column):
                text = column.astype(str).str.strip().str.removesuffix("%")
                column = pd.to_numeric(text.str.replace(",", ".", regex=False), errors="coerce")
            with np.errstate(over="ignore"):
                values = column.to_numpy(dtype)
        except (ArithmeticError, ValueError) as error:  # integers of hundreds of digits
            problem = f"{self.name}: {self.header[place]} has a number that is too large"
            raise CompareError(f"{problem}.") from error
        if not np.isfinite(values).all():
            self.refuse(int(np.isfinite(values).argmin()), place)
        return values

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
        return self.texts(place)

    def texts(self, place: int) -> np.ndarray:
        """Text values (N,), objects. None may be empty."""
        column = self.columns[place]
        texts = column.astype(str).str.strip().to_numpy(object)
        empty = column.isna().to_numpy() | (texts == "")
        if empty.any():
            self.refuse(int(empty.argmax()), place)
        return texts

    def labels(self, place: int) -> np.ndarray:
        """Class numbers (N,) int64, which may be written 3 or 3.0, or class names (N,) as text."""
        column = self.columns[place]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            values = column.to_numpy(float)
            if (np.isfinite(values) & (abs(values) < 2**31) & (np.rint(values) == values)).all():
                return values.astype(np.int64)
        return self.texts(place)
