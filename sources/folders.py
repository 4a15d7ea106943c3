"""Folders of pictures as a data set: which files belong to which split and class.

FOLDER/train/CLASS/*.png and FOLDER/test/CLASS/*.png, or val, valid, validation, testing; in any case;
    if there is none of these: eval, evaluation, holdout, dev, if train has all of their classes
FOLDER/CLASS/*.png, or FOLDER/train/CLASS/*.png alone: some pictures are held out to evaluate on
FOLDER/test/CLASS/*.png alone, to evaluate on
"""

import hashlib
import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sources.cache import UnreadableError, load_pixels
from sources.errors import SourceError, warn
from sources.pictures import is_picture_name

MIN_CLASSES, MAX_CLASSES = 2, 1000
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")  # evaluated on: the first that exists
# Evaluated on if none of these is there, but training pictures are. Signs are ignored: hold-out is holdout.
OTHER_TEST_NAMES = ("eval", "evaluation", "holdout", "heldout", "dev")
HELD_OUT = 5  # one of so many pictures is held out if there is no test set
# What systems and programs leave behind, beside hidden files; in lower case.
JUNK = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "thumbnails", "thumbs"}
JUNK |= {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__"}


@dataclass(frozen=True)
class Layout:
    """The folders of a data set that hold folders of classes."""

    root: Path
    train: Path | None
    test: Path | None  # None if pictures of `train` must be held out to evaluate on
    unused: list[Path]  # more test sets


def read_folder(
    folder: Path, train: bool, image_size: int, channels: int | None = None, keep: bool = True
) -> tuple[list[str], Tensor, Tensor]:
    """Read the pictures to train or to evaluate on, resized to image_size x image_size.

    The training pictures are in an order in which the first n, for any n, are the same part of every class.
    So these can be held out. Without a test set, the pictures to evaluate on are the same as to train on.
    An evaluation set of more than 8 bits has the scale of the training pictures, if there are any.

    Args:
        channels: 1 or 3, to convert the images to grey or to colour; None for 1 if all are grey, else 3.
        keep: whether to write the cache.

    Returns the K class names, images uint8 (N, C, H, W) and labels int64 (N,). The images may be mapped from
    a file, and must not be written to. Raises SourceError if the folder has another form or a picture cannot
    be read.
    """
    try:
        layout = find_layout(folder)
        classes = list_classes(layout)
        part, files, labels = choose_pictures(folder, layout, classes, train)
        images = load_images(layout, part, classes, files, image_size, keep)
    except OSError as error:
        problem = f"{error.filename} cannot be read: {error.strerror}"
        raise SourceError(f"{problem}. Check its permissions.") from error
    return classes, to_channels(images, channels or images.shape[1]), torch.tensor(labels)


def list_pictures(folder: Path, train: bool) -> list[str]:
    """The paths, relative to a folder, of the pictures that `read_folder` reads, in their order.

    Bytes that are no text are escaped. Raises OSError, and SourceError as `read_folder` does.
    """
    layout = find_layout(folder)
    part = layout.train if train else layout.test or layout.train
    files, _ = list_files(layout, part, list_classes(layout))
    paths = [os.path.relpath(layout.root / file, folder) for file in files]
    return [os.fsencode(path).decode(errors="backslashreplace") for path in paths]


def has_test_set(folder: Path) -> bool:
    """Whether some pictures in a folder are only to evaluate on. Raises OSError."""
    return find_layout(folder).test is not None


def held_out_size(folder: Path, count: int) -> int:
    """How many of `count` training pictures to hold out: none, or a fifth if there is no test set."""
    if has_test_set(folder):
        return 0
    size = max(1, count // HELD_OUT)
    warn(f"{folder} has no test set: {size:,} of its {count:,} pictures are held out to evaluate on")
    return size


# ---- Layout ----
def find_layout(folder: Path) -> Layout:
    """Find the parts of a data set. A folder that holds nothing but one other folder stands for that.

    Raises SourceError if two folders could be the same part.
    """
    while True:
        subfolders = visible_folders(folder)
        parts = find_parts(subfolders)
        train = [parts[name] for name in TRAIN_NAMES if name in parts]
        test = [parts[name] for name in TEST_NAMES if name in parts]
        if len(train) > 1:
            raise SourceError(f"{train[0]} and {train[1].name} beside it are both for training. Keep one.")
        if train and (known := class_folders(train[0]).keys()):  # Tiny ImageNet's val/images/ is no class
            test = [path for path in test if class_folders(path).keys() & known]
        if train and not test:
            test = find_other_tests(train[0], subfolders)
        if train or test:
            return Layout(folder, next(iter(train), None), next(iter(test), None), unused=test[1:])
        if len(subfolders) != 1 or not visible_folders(subfolders[0]):
            return Layout(folder, folder, None, [])
        folder = subfolders[0]


def find_parts(subfolders: list[Path]) -> dict[str, Path]:
    """Name of a part ("train", "val" ...) -> the subfolder that has it as its name, or as a word in it."""
    parts = {}
    names = TRAIN_NAMES + TEST_NAMES
    exact = {path for path in subfolders if path.name.lower() in names}
    candidates = {path for path in subfolders if visible_folders(path)}
    kinds = {path.name.lower() in TRAIN_NAMES for path in exact}
    # Pictures that lie in train/ and test/ themselves, or in one of them alone, have no classes, and are
    # refused later. Any other folder without folders in it is a class, whatever its name.
    if not candidates and (len(kinds) == 2 or len(subfolders) == 1):
        candidates = exact
    for path in sorted(candidates, key=lambda path: (path not in exact, path)):
        for word in re.split("[^a-z]+", path.name.lower()):
            if word not in names or (word in parts and path not in exact and parts[word] in exact):
                continue
            if (other := parts.setdefault(word, path)) != path:
                raise SourceError(
                    f"{other} and {path.name} beside it could both be the {word} set. Keep one."
                )
    for word, path in parts.items():
        while [inner.name for inner in visible_folders(path)] == [path.name]:  # from some archives
            path = parts[word] = path / path.name
    return parts


def find_other_tests(train: Path, subfolders: list[Path]) -> list[Path]:
    """The subfolders with other names of test sets that hold pictures, all of classes to train on."""
    found, known = {}, class_folders(train).keys()
    for path in subfolders:
        name, classes = re.sub("[^a-z]", "", path.name.lower()), class_folders(path).keys()
        if name in OTHER_TEST_NAMES and classes and classes <= known and holds_picture(path):
            found[name] = path
    return [found[name] for name in OTHER_TEST_NAMES if name in found]


def warn_of_layout(folder: Path, layout: Layout, part: Path, classes: list[str]) -> None:
    """Warn of pictures beside the parts, and of classes that may be something else."""
    parts = [path for path in (layout.train, layout.test, *layout.unused) if path]
    above = {place for path in parts for place in path.parents if place.is_relative_to(folder)}
    beside = []
    for entry in (entry for place in above for entry in os.scandir(place)):
        path = Path(entry.path)
        if path not in above and path not in parts and is_visible(path.name) and holds_picture(path):
            beside.append(os.path.relpath(path, folder))
    if beside:
        used = " and ".join(os.path.relpath(path, folder) for path in parts if path not in layout.unused)
        warn(f"{folder}: the pictures are those of {used}; not used: {some(sorted(beside))}")
    if inner := shared_subfolders(part):
        problem = f"the classes are taken to be {some(classes)}, not the folders in each of them"
        warn(f"{part}: {problem}: {some(inner)}")
    elif sets := [name for name, places in class_folders(part).items() if any(map(holds_parts, places))]:
        warn(f"{part}: {some(sets)} holds a training and a test set, and is taken to be a class")


def holds_picture(path: Path) -> bool:
    """Whether a path is a picture, or a folder with a picture anywhere in it."""
    names = [path] if os.path.isfile(path) else (name for _, _, names in os.walk(path) for name in names)
    return any(map(is_picture_name, names))


def holds_parts(place: Path) -> bool:
    names = {name.lower() for name in os.listdir(place)}
    return not names.isdisjoint(TRAIN_NAMES) and not names.isdisjoint(TEST_NAMES)


def shared_subfolders(part: Path) -> list[str]:
    """The folders that are in every class, if there are several and no pictures beside them."""
    found = []
    for places in class_folders(part).values():
        if any(is_picture_name(name) for place in places for name in os.listdir(place)):
            return []
        found.append({path.name for place in places for path in visible_folders(place)})
    shared = set.intersection(*found) if len(found) > 1 else set()
    return sorted(shared, key=class_order) if len(shared) > 1 else []


def is_visible(name: str) -> bool:
    return name[0] != "." and name.lower() not in JUNK


def visible_folders(folder: Path) -> list[Path]:
    return sorted(
        Path(entry.path)
        for entry in os.scandir(folder)
        if is_visible(entry.name) and os.path.isdir(entry.path)  # entry.is_dir() raises for a circular link
    )


def class_folders(part: Path) -> dict[str, list[Path]]:
    """Class name -> its folders: several if their names are the same text, written in different bytes.

    Bytes that are no text are escaped, because W&B refuses them.
    """
    classes = {}
    for path in visible_folders(part):
        name = os.fsencode(path.name).decode(errors="backslashreplace")
        classes.setdefault(unicodedata.normalize("NFC", name), []).append(path)
    return classes


def list_classes(layout: Layout) -> list[str]:
    """The names of all classes, in the order of the labels."""
    names = {name for place in (layout.train, layout.test) if place for name in class_folders(place)}
    return sorted(names, key=class_order)


def class_order(name: str) -> tuple:
    """The key that sorts class names: numbers by value, then others by name."""
    is_number = re.fullmatch(r"-?[0-9]{1,15}([.][0-9]{1,15})?", name)
    return (0, float(name), name) if is_number else (1, 0.0, name)


def choose_pictures(
    folder: Path, layout: Layout, classes: list[str], train: bool
) -> tuple[Path, list[str], list[int]]:
    """The part to train or to evaluate on, its pictures and their labels. Warns of what may surprise.

    Raises SourceError if there are too few classes or pictures.
    """
    part = layout.train if train else layout.test or layout.train
    if part is None or not (MIN_CLASSES if train else 1) <= len(classes) <= MAX_CLASSES:
        some_classes = f"{len(classes)} class{'es' * (len(classes) != 1)}"
        found = "no training pictures" if part is None else some_classes
        raise SourceError(refusal(folder, found))
    files, labels = list_files(layout, part, classes, report=True)
    present = set(labels)
    if not files:
        raise SourceError(refusal(part, "no pictures"))
    if train and len(present) < MIN_CLASSES:
        raise SourceError(refusal(part, f"pictures of {classes[labels[0]]} alone"))
    if train or not layout.train:
        warn_of_layout(folder, layout, part, classes)
    if train:
        if missing := [name for label, name in enumerate(classes) if label not in present]:
            warn(f"no training pictures of {len(missing)} of {len(classes)} classes: {some(missing)}")
    elif layout.unused:
        warn(f"evaluating on {layout.test}, not on {some([path.name for path in layout.unused])}")
    return part, files, labels


def list_files(
    layout: Layout, part: Path, classes: list[str], report: bool = False
) -> tuple[list[str], list[int]]:
    """The pictures of a part, relative to the root, and their labels. With `report`, warn of other files."""
    files, labels, skipped = [], [], Counter()
    for entry in os.scandir(part):
        if is_visible(entry.name) and is_picture_name(entry.name) and not os.path.isdir(entry.path):
            skipped["pictures outside of the classes"] += 1
    folders = class_folders(part)
    for label, name in enumerate(classes):
        for place in folders.get(name, ()):
            found = [os.path.relpath(path, layout.root) for path in walk(place, skipped)]
            files += sorted(path.replace(os.sep, "/") for path in found)  # the same order on Windows
            labels += [label] * len(found)
    if report and skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(10))
        warn(f"{part}: {sum(skipped.values()):,} files are skipped: {kinds}")
    if part == layout.train:
        order = hold_out_order(files, labels)
        files, labels = [files[i] for i in order], [labels[i] for i in order]
    return files, labels


def walk(folder: Path, skipped: Counter) -> list[str]:
    """The pictures in a folder and those below. Other files are counted by their kind."""
    found, seen = [], {str(path) for path in Path(os.path.realpath(folder)).parents}

    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        seen.add(os.path.realpath(place))  # a link may lead back, or up to other classes
        folders[:] = [
            name for name in folders if is_visible(name) and os.path.realpath(f"{place}/{name}") not in seen
        ]
        for name in filter(is_visible, names):
            if is_picture_name(name):
                found.append(os.path.join(place, name))
            else:
                skipped[kind_of_file(name)] += 1
    return found


def kind_of_file(name: str) -> str:
    return Path(name).suffix.lower() or "without extension"


def list_plain_folder(folder: str) -> tuple[list[str], str]:
    """The pictures that are directly in a folder, by name, and what else is in there, in words."""
    found, below, skipped = [], [], Counter()
    for name in sorted(filter(is_visible, os.listdir(folder))):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            below += [name] * holds_picture(Path(path))
        elif is_picture_name(name):
            found.append(path)
        else:
            skipped[kind_of_file(name)] += 1
    rest = [f"{count} {kind}" for kind, count in skipped.most_common(10)]
    return found, ", ".join([*rest, *([f"pictures in {some(below)}"] if below else [])])


def hold_out_order(files: list[str], labels: list[int]) -> list[int]:
    """Indices in an order in which any leading part has the same share of every class.

    Within a class, a digest of the names decides, so that new pictures hardly change which ones come first.
    """
    sizes, places, position = Counter(labels), Counter(), {}
    for i in sorted(range(len(files)), key=lambda i: hashlib.sha256(os.fsencode(files[i])).digest()):
        position[i] = (places[labels[i]] + 0.5) / sizes[labels[i]]
        places[labels[i]] += 1
    return sorted(position, key=position.get)  # it keeps the order of equal ones


def refusal(folder: Path, found: str) -> str:
    """Why a folder is refused: what was found, and what is needed."""
    names = [
        entry.name + "/" * os.path.isdir(entry.path)
        for entry in os.scandir(folder)
        if is_visible(entry.name)
    ]
    needed = "train/CLASS/ and test/CLASS/ (or val/), or CLASS/ alone"
    counts = f"{MIN_CLASSES} to {MAX_CLASSES:,} classes"
    found += f": it holds {some(sorted(names))}"
    hint = " Name the folder of MNIST's files with --data_dir." * any("-ubyte" in name for name in names)
    return f"{folder} has {found}. --dataset needs {needed}, with {counts}.{hint}"


def some(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "nothing") + more


# ---- Pixels ----
def load_images(
    layout: Layout, part: Path, classes: list[str], files: list[str], image_size: int, keep: bool
) -> Tensor:
    """The images of a part. Those to evaluate on have the scale of the training pictures.

    Raises UnreadableError. If training pictures cannot be read, it names those of the test set, too.
    """
    try:
        images, value_range = load_part(layout, part, files, image_size, keep)
    except UnreadableError as error:
        if part != layout.train or layout.test is None:
            raise
        test_files, _ = list_files(layout, layout.test, classes)
        try:
            load_part(layout, layout.test, test_files, image_size, keep=False)
        except UnreadableError as more:
            reasons, total = error.reasons | more.reasons, error.total + more.total
            raise UnreadableError(layout.root, reasons, total) from error
        raise
    if value_range and part != layout.train and layout.train:
        train_files, _ = list_files(layout, layout.train, classes)
        train_range = load_part(layout, layout.train, train_files, image_size, keep)[1]
        if train_range not in (None, value_range):
            images, _ = load_pixels(layout.root, files, "test", image_size, train_range, keep)
    return images


def load_part(
    layout: Layout, part: Path, files: list[str], image_size: int, keep: bool
) -> tuple[Tensor, tuple[float, float] | None]:
    """The images of a part, and the values that became 0..255 if some have more than 8 bits."""
    title = "train" if part == layout.train else "test"
    return load_pixels(layout.root, files, title, image_size, keep=keep)


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Images uint8 (N, 1 or 3, H, W) in grey (C = 1) or colour (C = 3). What is so already is not copied."""
    if channels not in (1, 3):  # of a model that cannot take pictures
        return images
    if channels == 1 and images.shape[1] == 3:
        grey = torch.empty_like(images[:, :1])
        weights = torch.tensor([19595, 38470, 7471]).int().view(3, 1, 1)  # red, green, blue in Pillow's "L"
        for part, out in zip(images.split(256), grey.split(256)):
            out.copy_((part.int() * weights).sum(1, keepdim=True) + 32768 >> 16)
        return grey
    return images.expand(-1, channels, -1, -1)
