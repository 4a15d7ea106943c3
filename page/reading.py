"""Read CSV files of predictions as people write them: which column is which, and what its values mean.

train.py and evaluate.py write id, guess, truth, and score_0 ... score_{K-1}, or with more than 100 classes
truth_score and the ten best: best_1, best_1_score ... best_10, best_10_score. Other programs use other
names, separators and scales, or pack the file. What is clear is accepted, and a remark says what was
changed.
"""

import re
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from page.scores import MAX_FULL, Scores
from page.table import MAX_CLASSES, NEEDED, CompareError, Table

ROUNDING, MAX_GAP = 1e-3, 0.02  # how far a score may be outside 0..1, and the sum of an image's from 1
# Names of columns without capitals, blanks and signs. The first that a file has is taken.
ALIASES = {
    "id": "id imageid imgid sampleid exampleid index idx image img filename file filepath imagepath path "
    "fname rowid rowids rowindex row",
    "guess": "guess prediction predictions predicted pred preds predictedlabel predictedclass predlabel "
    "predclass labelpred predict ypred yhat output scoredlabels",
    "truth": "truth groundtruth gt true truelabel trueclass ytrue target targets actual label labels class "
    "y obs",
}
PREFIX = r"(\.pred|scores?|(?:scored )?prob(?:s|a|as|ability|abilities)?|p|softmax|logits?)"
SEPARATORS = r"\s_.:\-\[("
SCORE_NAME = re.compile(  # score_3, prob[cat], y_score_-1, .pred_cat
    rf"(?:y_?)?{PREFIX}[{SEPARATORS}]+?(-\d+|[^{SEPARATORS}].*?)[\])]?", re.IGNORECASE | re.DOTALL
)
NUMBER = r"-?\d+(\.\d+)?"
ONE_SCORE = re.compile(r"(?:y_?)?" + PREFIX, re.IGNORECASE)  # of one of two classes, see `two_classes`
BEST_NAME = re.compile(r"(best|top)[\W_]*(\d{1,3})(?:[\W_]*(.+))?", re.IGNORECASE)  # best_1, top1_prob
RANKED_CLASS = re.compile(r"(?:index|idx|label|class|pred|prediction)[\W_]*(\d{1,3})", re.IGNORECASE)
TRUTH_SCORE = re.compile(r"(?:truth|true|label|target)[\W_]*" + PREFIX, re.IGNORECASE)
UNNAMED = "", "unnamed0"  # as pandas writes the index of a DataFrame, and R the names of rows
GUESS_REMARK = "the guess is the class with the highest score"


@dataclass
class Predictions:
    """The rows of a file, sorted by id."""

    ids: np.ndarray  # (N,) int64, or text
    guess: np.ndarray  # (N,) int64
    truth: np.ndarray | None  # (N,) int64; None if the file has none
    scores: Scores | None  # None if the file has none
    classes: list[str] | None  # K names; None if the file has only numbers for them
    remarks: list[str] = field(default_factory=list)


def read_predictions(name: str, content: bytes) -> Predictions:
    """The predictions in the content of a CSV file, which errors call `name`. Raises CompareError."""
    table = Table(name, content)
    roles, columns = find_columns(table.header)
    best = find_best_columns(table, roles) if len(columns) < 2 else {}
    columns = [] if best else columns
    if "id" not in roles:
        table.refuse_columns("id")
    table.read([*roles.values(), *best], [*best.values(), *columns])
    for role in ("guess", "truth"):
        if role in roles and len(table.columns) and table.columns[roles[role]].isna().all():
            best.pop(roles.pop(role), None)
    remarks = []
    if not best and not columns and (columns := find_columns_of_classes(table, roles, remarks)):
        table.read([*roles.values()], columns)
    if not best and not columns and len(roles) < 3:
        missing = ", ".join(role for role in ALIASES if role not in roles)
        table.refuse_columns(f"{missing}, and no scores")
    for place in roles.values():
        if table.header.count(table.header[place]) > 1:
            raise CompareError(f"{name} has two columns {table.header[place]}. Remove or rename one.")
    refuse_ranked_scores(table, columns)
    refuse_fractions(table, roles)
    if len(columns) > MAX_CLASSES:
        raise CompareError(f"{name} has {len(columns):,} classes. A page has room for {MAX_CLASSES:,}.")
    if table.columns.empty:
        raise CompareError(f"{name} has no rows. {NEEDED}")

    ids = table.ids(roles["id"])
    if plain_name(table.header[roles.pop("id")]) in UNNAMED:
        remarks.append("the first column, which has no name, is taken for the id")
    if best:
        classes, labels, scores = read_best_scores(table, roles, best, remarks)
    else:
        classes, labels, scores = read_all_scores(table, roles, columns, remarks)
    if scores and "guess" in roles:
        against = np.count_nonzero(scores.of(labels["guess"]) < scores.values.max(1) - ROUNDING)
        if against > len(ids) / 2:
            found = (
                f"the guess is not the class with the highest score for {against:,} of {len(ids):,} images"
            )
            remarks.append(f"warning: {found}. Check which class each column of scores belongs to")
    if "truth" in labels:
        warn_of_other_names(labels, classes, scores is not None, remarks)
    order = ids.argsort(kind="stable")
    ids = ids[order]
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise CompareError(f"{name} has id {repeated[0]} twice. Keep one row per image.")
    truth = labels["truth"][order] if "truth" in labels else None
    return Predictions(ids, labels["guess"][order], truth, scores and scores.take(order), classes, remarks)


def read_all_scores(table: Table, roles: dict[str, int], places: list[int], remarks: list[str]):
    """The names of the classes, the labels and the scores, from a column of scores per class.

    No names if the classes are only numbered, no scores without such columns: None.
    """
    names = [score_suffix(table.header[place]) for place in places]
    labels = {role: table.labels(place) for role, place in roles.items()}
    values = to_probabilities(table, places, remarks) if places else None  # (N, K)
    if len(places) == 1:
        values, names = two_classes(table, places[0], labels, values[:, 0], remarks)
    classes, labels, values = resolve_classes(table, roles, labels, values, names, remarks)
    if "guess" not in labels:
        if values is None:
            table.refuse_columns("guess")
        labels["guess"] = values.argmax(1)
        remarks.append(GUESS_REMARK)
    scores = values if values is None else Scores(values)
    if scores and scores.num_classes > MAX_FULL:
        scores = scores.best()
        for wanted in labels.values():
            scores = scores.adding(wanted, Scores(values).of(wanted))
    return classes, labels, scores


def read_best_scores(table: Table, roles: dict[str, int], best: dict[int, int], remarks: list[str]):
    """The same from columns of the best classes: `best` has the places of classes and of their scores."""
    ranks = [place for place in best if place != roles.get("truth")]
    values = to_best_probabilities(table, [*best.values()], len(ranks), remarks)  # (N, M or M + 1)
    places = roles | {place: place for place in ranks}
    labels = {role: table.labels(place) for role, place in places.items()}
    texts = [role for role, values in labels.items() if values.dtype == object]
    if 0 < len(texts) < len(labels):
        row = next((n for n, text in enumerate(labels[texts[0]]) if not re.fullmatch(r"\d+(\.0)?", text)), 0)
        table.refuse(row, places[texts[0]], ": other columns have class numbers")
    for role, column in labels.items() if not texts else ():
        if column.min() < 0:
            table.refuse(int(column.argmin()), places[role], ": classes are numbered from 0")
    classes, labels, _ = resolve_classes(table, places, labels, None, [], remarks)
    count = len(classes) if classes else 1 + max(1, *(column.max() for column in labels.values()))
    found = np.stack([labels.pop(place) for place in ranks], axis=1)  # (N, M)
    repeated = (np.diff(np.sort(found)) == 0).any(1)
    if repeated.any():
        line = f"{table.name}, line {table.line(int(repeated.argmax()))}"
        raise CompareError(f"{line}: one class is there twice among the best. Name each once.")
    order = (-values[:, : len(ranks)]).argsort(1, kind="stable")
    found, sorted_values = (np.take_along_axis(x, order, 1) for x in (found, values[:, : len(ranks)]))
    if "guess" not in labels:
        labels["guess"] = found[:, 0]
        remarks.append(GUESS_REMARK)
    if "truth" in labels:
        never = np.setdiff1d(labels["truth"], [*np.unique(found), *labels["guess"]])
        if len(never):
            example = classes[never[0]] if classes else never[0]
            remarks.append(f"warning: {len(never)} true classes are never among the best, such as {example}")
    scores = Scores(sorted_values, found, count, more_classes=True)
    if len(ranks) == len(best):
        return classes, labels, scores
    truth, truth_score = labels["truth"], values[:, -1]
    listed = np.where(scores.lacks(truth), truth_score.clip(max=sorted_values[:, -1]), scores.of(truth))
    off = abs(listed - truth_score) > MAX_GAP
    if off.any():
        row = int(off.argmax())
        limit = "at most " if scores.lacks(truth)[row] else ""
        table.refuse(row, best[roles["truth"]], f": the best scores say {limit}{listed[row]:.4g}")
    return classes, labels, scores.adding(truth, truth_score)


# ---- Columns ----
def plain_name(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def find_columns(header: list[str]) -> tuple[dict[str, int], list[int]]:
    """The places of id, guess and truth, as far as they are there, and of the scores."""
    plain = [plain_name(name) for name in header]
    roles = {}
    for role, aliases in ALIASES.items():
        found = [plain.index(alias) for alias in aliases.split() if alias in plain]
        roles |= {role: found[0]} if found else {}
    if {"inst", "actual", "predicted"} <= {*plain}:  # of Weka, whose "prediction" is a score
        roles = {"id": plain.index("inst")} | roles | {"guess": plain.index("predicted")}
    if plain[0] in UNNAMED and header.count(header[0]) == 1:
        roles.setdefault("id", 0)
    groups = {}  # prefix -> places
    for place, name in enumerate(header):
        if place not in roles.values() and (match := SCORE_NAME.fullmatch(name)):
            groups.setdefault(match[1].lower(), []).append(place)
    if groups:
        largest = max(groups.values(), key=len)
        numbered = [p for p in largest if re.fullmatch(NUMBER, SCORE_NAME.fullmatch(header[p])[2])]
        return roles, numbered if len(numbered) > 1 else largest  # also with a score_max
    single = [p for p, name in enumerate(header) if p not in roles.values() and ONE_SCORE.fullmatch(name)]
    return roles, single[:1]


def find_best_columns(table: Table, roles: dict[str, int]) -> dict[int, int]:
    """The places of the best classes (best_1 ...) and of their scores, and of the truth and its score."""
    groups = {}  # prefix -> the places of classes by rank, and of scores by rank
    for place, name in enumerate(table.header):
        if match := BEST_NAME.fullmatch(name):
            of_score = match[3] and re.fullmatch(PREFIX, match[3], re.IGNORECASE)
            group = groups.setdefault(match[1].lower(), ({}, {}))
            group[bool(of_score)].setdefault(int(match[2]), place)
    names, scores = max(groups.values(), key=lambda group: len(group[1]), default=({}, {}))
    if not scores:
        return {}
    missing = [f"best_{rank}" for rank in scores if rank not in names]
    missing += [f"best_{rank}_score" for rank in names if rank not in scores]
    if missing:
        table.refuse_columns(", ".join(missing))
    of_truth = [place for place, name in enumerate(table.header) if TRUTH_SCORE.fullmatch(name)]
    best = {names[rank]: scores[rank] for rank in sorted(scores)}
    return best | ({roles["truth"]: of_truth[0]} if of_truth and "truth" in roles else {})


def find_columns_of_classes(table: Table, roles: dict[str, int], remarks: list[str]) -> list[int]:
    """The places of scores whose columns have just the classes' names, as from pandas.DataFrame(scores).

    The labels may lack the first or the last classes. Their columns stand beside the others, and the scores
    of all images have about the same sum only with them; or their names are the numbers before or after.
    """
    seen = {str(label) for role in roles if role != "id" for label in {*table.labels(roles[role])}}
    places = [p for p in range(len(table.header)) if p not in roles.values()]
    named = [p for p in places if score_suffix(table.header[p]) in seen]
    if not len(named) == len(seen) > 1:
        return []
    start, end = places.index(named[0]), places.index(named[-1]) + 1
    suffixes = [score_suffix(table.header[place]) for place in places]
    if all(name.isdecimal() for name in seen):
        while end < len(places) and suffixes[end] == str(int(suffixes[end - 1]) + 1):
            end += 1
        while start > 0 and suffixes[start - 1] == str(int(suffixes[start]) - 1):
            start -= 1
    if end - start == len(places):
        return places
    table.read([*roles.values()], places)
    some = table.columns[places].head(200_000 // len(places)).astype(str)
    plain = some.replace({",": ".", r"\s*%$": ""}, regex=True)
    values = plain.apply(pd.to_numeric, errors="coerce").to_numpy()  # (N, places)
    for first in range(start, -1, -1):
        sums = values[:, first:].cumsum(1)[:, end - first - 1 :]  # (N, J): up to end, end + 1 ...
        middle = np.median(sums, 0)
        even = (abs(sums - middle) <= MAX_GAP * middle).all(0)
        if even.any():
            return places[first : end + int(even.argmax())]
    numeric = ~np.isnan(values).any(0)
    left_out = [table.header[p] for k, p in enumerate(places) if numeric[k] and not start <= k < end]
    if left_out and not all(name.isdecimal() for name in seen):
        found = f"warning: {', '.join(left_out):.100}: taken for no class, because no image is of it"
        remarks.append(f"{found}. If it is one, call the columns of all classes score_CLASS")
    return places[start:end]


def refuse_ranked_scores(table: Table, columns: list[int]) -> None:
    """Refuse index_0, index_1 ..., prob_0, prob_1 ..., as timm writes them: prob_0 is not of class 0."""
    ranks = {score_suffix(table.header[place]) for place in columns}
    ranked = [text for text in table.header if (m := RANKED_CLASS.fullmatch(text)) and m[1] in ranks]
    if len(ranked) > 1 and (np.diff(table.matrix(columns)) <= 0).all():
        found = f"{table.name} has {ranked[0]} beside {table.header[columns[0]]}, and scores that only fall"
        cure = "Call the classes best_1, best_2 ..., and their scores best_1_score, best_2_score ..."
        raise CompareError(f"{found}: they are of the best classes. {cure}")


def refuse_fractions(table: Table, roles: dict[str, int]) -> None:
    """Refuse fractions in one column of labels if the other one has none: they are scores."""
    found = {}  # place -> the first row with a fraction, or None
    for place in (place for role, place in roles.items() if role != "id"):
        column = pd.to_numeric(table.columns[place], errors="coerce").astype(float)
        rows = np.flatnonzero((column % 1 > 0).to_numpy())
        found[place] = int(rows[0]) if len(rows) else None
    if len({row is None for row in found.values()}) > 1:
        place, row = next(item for item in found.items() if item[1] is not None)
        table.refuse(row, place, ": it is no class. If it is a score, call the column score")


def score_suffix(name: str) -> str:
    """The class in the name of a score column. A number is written 3 instead of 003 or 3.0."""
    match = SCORE_NAME.fullmatch(name)
    return re.sub(r"^(-?)0*(\d+?)(\.0+)?$", r"\1\2", match[2] if match else name)


# ---- Scores ----
def in_scales(values: np.ndarray) -> dict[int, np.ndarray]:
    """Which rows (N,) may be in each scale."""
    lowest, highest = values.min(1), values.max(1)
    return {scale: (lowest >= -ROUNDING) & (highest <= scale + ROUNDING) for scale in (1, 100)}


def to_probabilities(table: Table, places: list[int], remarks: list[str]) -> np.ndarray:
    """Scores (N, K) in 0..1 that sum to 1, from probabilities, percents or logits.

    Most rows decide which of them they are, so that a damaged value does not pass as a logit. Whole numbers
    from 0 are counts, such as votes. A single column holds the scores of one of two classes.
    """
    values = table.matrix(places)
    single = values.shape[1] == 1
    sums, in_range = values.sum(1), in_scales(values)
    percent = table.in_percent(places)
    fits = {1: in_range[1] & (not percent), 100: in_range[100] & (single | percent | (abs(sums - 100) < 2))}
    are_logits = table.header[places[0]].lower().startswith("logit")
    are_logits |= (values.min(1) < -ROUNDING).mean() > 0.1
    scale = next((s for s, rows in fits.items() if rows.mean() > 0.5), None)
    are_counts = scale is None and not (are_logits or single or (values % 1).any())
    if are_logits or (scale is None and not are_counts):
        remarks.append("the scores are logits, and the page shows their softmax")
        logits = np.hstack([0 * values, values]) if single else values
        logits -= logits.max(1, keepdims=True)  # in place, as below, because they may take much memory
        np.exp(logits, out=logits)
        logits /= logits.sum(1, keepdims=True)
        return logits[:, -1:] if single else logits
    if scale == 100:
        remarks.append("the scores are in percent")
    if not are_counts:
        if not in_range[scale].all():
            row = int(in_range[scale].argmin())
            place = int(np.maximum(-values[row], values[row] - scale).argmax())
            cure = "If they are logits, call the columns logit_CLASS"
            table.refuse(row, places[place], f": scores are from 0 to 1 or in percent. {cure}")
        values /= scale
        values.clip(0, 1, out=values)
    if single:
        return values
    sums = values.sum(1)
    off = abs(sums - 1) > MAX_GAP
    if not sums.all():
        row = int(sums.argmin())
        raise CompareError(
            f"{table.name}, line {table.line(row)}: all scores are 0. An image needs one above 0."
        )
    return divide_by_sum(table, values, sums, off, remarks)


def to_best_probabilities(table: Table, places: list[int], count: int, remarks: list[str]) -> np.ndarray:
    """The scores (N, M) of the best classes in 0..1, from probabilities or percents.

    The first `count` columns are of different classes, so that they sum to 1 at most.
    """
    values = table.matrix(places)
    fits = in_scales(values)
    scale = next((scale for scale, rows in fits.items() if rows.mean() > 0.5), 1)
    if not fits[scale].all():
        row = int(fits[scale].argmin())
        place = int(np.maximum(-values[row], values[row] - scale).argmax())
        table.refuse(row, places[place], ": scores of the best classes are from 0 to 1 or in percent")
    if scale == 100:
        remarks.append("the scores are in percent")
    values = (values / scale).clip(0, 1)
    sums = values[:, :count].sum(1)
    return divide_by_sum(table, values, sums, sums > 1 + MAX_GAP, remarks)


def divide_by_sum(
    table: Table, values: np.ndarray, sums: np.ndarray, off: np.ndarray, remarks: list[str]
) -> np.ndarray:
    """The values, those of the images `off` divided by their sum."""
    if not off.any():
        return values
    example = f"{sums[off][0]:.4g} in line {table.line(int(off.argmax()))}"
    found = f"warning: the scores of {off.sum():,} images do not sum to 1 ({example})"
    remarks.append(f"{found}; they are divided by their sum, also for the loss")
    return np.where(off[:, None], values / sums[:, None], values)


def two_classes(table: Table, place: int, labels: dict, values: np.ndarray, remarks: list[str]) -> tuple:
    """The scores (N, 2) of both classes, from a column (N,) for one of them, and the classes' names.

    If the column is not called after a class, the guesses show which class it belongs to. Without guesses it
    is the second one, as in scikit-learn. None and no names if there are not two classes. Beside two names,
    labels 0 and 1 become these names.
    """
    column = table.header[place]
    name = score_suffix(column)
    written, numbers = kinds_of_labels(labels)
    if len(written) == 2 and numbers and {*numbers} <= {0, 1}:
        remarks.append(order_remark(written))
        for role, found in labels.items():
            labels[role] = found if found.dtype == object else np.array(written, object)[found]
    seen = set().union(*(found.tolist() for found in labels.values()))
    ordered = sorted(seen, key=lambda label: (isinstance(label, str), label))
    names = ["0", "1"] if seen <= {0, 1} else [str(label) for label in ordered]
    name = next((known for known in names if known.casefold() == name.casefold()), name)
    if len(names) == 1 and name not in names:
        if name == column:  # it names no class
            cure = f"Name it after its class, such as score_{names[0]:.40}"
            raise CompareError(f"{table.name} has one class, and {column} may be of another. {cure}.")
        names = sorted([*names, name])
    if len(names) != 2:
        found = "is only one class" if len(names) == 1 else "are more than two classes"
        remarks.append(f"the column {column} is not used, because there {found}")
        return None, []
    if name in names:
        is_second = np.full(len(values), name == names[1])
    elif "guess" in labels:
        is_second = match_guesses(labels["guess"].astype(str) == names[1], values)
        owner = names[int(is_second[0])] if len({*is_second}) == 1 else "the guess"
        remarks.append(f"{column} is taken for the score of {owner:.40}, because that fits the guesses")
    elif values.min() >= 0.5 - ROUNDING:
        found = f"{table.name}: {column} is never below 0.5, so that it may be that of the guess"
        raise CompareError(f"{found}. Add a column guess, or name it after its class: score_{names[1]:.40}.")
    else:
        is_second = np.full(len(values), name != "0")
        owner, other = names[::-1] if name != "0" else names
        remark = f"{column} is taken for the score of {owner:.40}"
        guess = np.where(is_second == (values > 0.5), names[1], names[0])
        wrong = np.count_nonzero(guess != labels["truth"].astype(str)) if "truth" in labels else 0
        if wrong > len(values) / 2:
            remark = f"warning: {remark}, and so {wrong:,} of {len(values):,} guesses are wrong"
        remarks.append(f"{remark}. If it is that of {other:.40}, name the column score_{other:.40}")
    values = np.where(is_second, values, 1 - values)
    return np.stack([1 - values, values], axis=1), names


def match_guesses(guess: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether each of the scores (N,) is of the second of two classes: (N,).

    `guess` (N,) says whether the second class was guessed. Either all scores are of one class, or each is of
    the class that was guessed.
    """
    if guess.all() or not guess.any():
        return guess == (values.mean() >= 0.5)
    if values.min() >= 0.5 - ROUNDING:  # only scores of the guess are never below a half
        return guess
    return np.full(len(values), values[guess].mean() >= values[~guess].mean())


# ---- Classes ----
def warn_of_other_names(
    labels: dict, classes: list[str] | None, has_scores: bool, remarks: list[str]
) -> None:
    """Warn if guesses and truths (N,) seem to name the classes in different ways.

    Then far fewer guesses are right than by chance, or both are of two classes, but of different ones: 0 and
    1, -1 and 1.
    """
    guess, truth = labels["guess"], labels["truth"]
    size = 1 + max(guess.max(), truth.max())
    by_chance = np.bincount(guess, minlength=size) @ np.bincount(truth, minlength=size) / len(guess)
    right = np.count_nonzero(guess == truth)
    pairs = [np.unique(values).tolist() for values in (guess, truth)]
    if len(guess) < 10:
        return
    if right <= by_chance / 2:
        found = f"{right:,} of {len(guess):,} guesses are right, no more than by chance"
    elif not has_scores and pairs[0] != pairs[1] and len(pairs[0]) == len(pairs[1]) == 2:
        names = [" and ".join(classes[k] if classes else str(k) for k in pair) for pair in pairs]
        found = f"the guesses are {names[0]:.100}, and the truths {names[1]:.100}"
    else:
        return
    remarks.append(f"warning: {found}. Check that guesses, truths and scores name the classes alike")


def resolve_classes(
    table: Table, roles: dict, labels: dict, scores: np.ndarray | None, names: list[str], remarks: list[str]
):
    """The classes' names, or None if they are only numbered; the labels as places among them; the scores.

    `names` are those of the score columns; without scores the classes are those that the labels name.
    """
    written, numbers = kinds_of_labels(labels)
    if scores is None:
        numbered = not written and 0 <= numbers[0] and numbers[-1] < MAX_CLASSES
        names = [str(k) for k in range(max(2, numbers[-1] + 1))] if numbered else written or numbers
        names = [str(name) for name in names]
    else:
        numbered = sorted(names) == sorted(map(str, range(len(names))))
    if len(names) > MAX_CLASSES:
        raise CompareError(f"{table.name} has {len(names):,} classes. A page has room for {MAX_CLASSES:,}.")
    if len({*names}) < len(names):
        raise CompareError(f"{table.name} has two columns of scores for one class. Remove one.")
    if numbered and scores is not None:
        in_order = [str(k) for k in range(len(names))]
        scores = scores if names == in_order else scores[:, np.argsort([int(name) for name in names])]
        names = in_order
        if not {*written} <= {*names}:
            names = match_names(table, labels.get("guess"), scores, written)
    guess = labels.get("guess")
    named_guesses = guess is not None and guess.dtype == object  # they show the order of the classes
    if written and names == written and (numbers if scores is None else numbered and not named_guesses):
        remarks.append(order_remark(names))
    by_number = numbered or not all(re.fullmatch(NUMBER, name) for name in names)
    if by_number and not numbered and not written and guess is None:  # nothing shows the order
        remarks.append(order_remark(names))
    places = {name: k for k, name in enumerate(names)}
    for role, values in labels.items():
        if values.dtype != object and by_number:
            found = np.where((values >= 0) & (values < len(names)), values, -1)
        else:
            unique, inverse = np.unique(values.astype(str), return_inverse=True)
            found = [places.get(name, places.get(score_suffix(name), -1)) for name in unique.tolist()]
            found = np.array(found)[inverse]
        if found.min() < 0:
            known = f"{names[0]} to {names[-1]}" if numbered else ", ".join(names)
            source = "the classes are" if scores is None else "the columns of scores are of"
            table.refuse(int(found.argmin()), roles[role], f": {source} {known:.200}")
        labels[role] = found.astype(np.int64)
    return None if numbered and not written else names, labels, scores


def kinds_of_labels(labels: dict[str, np.ndarray]) -> tuple[list[str], list[int]]:
    """The class names and the class numbers in some columns of labels (N,), sorted."""
    written = {name for values in labels.values() if values.dtype == object for name in values}
    numbers = {n for values in labels.values() if values.dtype != object for n in values.tolist()}
    return sorted(written), sorted(numbers)


def order_remark(names: list[str]) -> str:
    found = f"classes 0 to {len(names) - 1} are taken for {', '.join(names):.100}, in this order"
    return f"warning: {found}. If it is another, write names in every column"


def match_names(table: Table, guess: np.ndarray | None, scores: np.ndarray, names: list[str]) -> list[str]:
    """The names of numbered score columns: as the highest scores of the guesses say, or alphabetical."""
    count, highest = scores.shape[1], scores.argmax(1)
    named = guess is not None and guess.dtype == object
    columns = {name: np.bincount(highest[guess == name]).argmax() for name in {*guess}} if named else {}
    by_column = {k: name for name, k in columns.items()}
    if {*by_column.values()} == {*names}:
        return [by_column.get(k, str(k)) for k in range(count)]
    if len(names) == count and not (named and (np.searchsorted(names, list(guess)) == highest).mean() < 0.5):
        return names
    found = f"{len(names)} class names ({', '.join(names):.100})"
    cure = f"Name the columns after the classes: score_{names[0]:.40} ..."
    raise CompareError(f"{table.name}: {found} do not fit {count} numbered score columns. {cure}")
