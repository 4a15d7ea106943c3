"""Evaluate an exported model on a test set or on your own pictures.

    python evaluate.py runs/001/model.pt
    python evaluate.py model.pt --dataset mnist --predictions predictions.csv
    python evaluate.py model.pt photo.png more/

It needs the exported file and the data, not the code that trained the model. An exported file is a program:
evaluate only files from people whose code you would run.
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

try:
    import torch
    from torch import Tensor, nn
    from tqdm import tqdm

    from data import DataError, ImageData, digest, load_split
    from logging_utils import MAX_SCORES, compute_metrics, prediction_rows, write_predictions
    from model import (
        FORMAT,
        ModelError,
        eval_batch_size,
        first_reason,
        full_precision,
        load_exported,
        predict_logits,
        read_intact,
    )
    from program import (
        MAX_FILE,
        ConfigError,
        check_writable,
        display_width,
        exit_status,
        files_of_run,
        keep_freed_memory,
        lacks_memory,
        pick_device,
        printable,
        shorten,
        start_command,
    )
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    needed = "data.py, model.py, logging_utils.py, wandb_run.py, program.py, and requirements.txt's packages"
    print(f"error: {error.name} is missing. evaluate.py needs {needed}.", file=sys.stderr)
    sys.exit(2)

MNIST_LIKE = ("mnist", "mnist-format", "qmnist", "synthetic")  # light digits on black
DATASETS = ("mnist", "fashion_mnist", "kmnist", "qmnist", "cifar10", "synthetic")
MAX_BARS = 10  # classes whose scores are shown for a picture; if there are more, the best ones
MAX_SIDE = 10_000  # channels and pixels a side of an image; more is damage
CURE = "Use a file that train.py exported."


class PictureError(Exception):
    """A picture cannot be read. The message says which one and why."""


@dataclass
class Exported:
    """An exported model and what its metadata says about it."""

    path: str
    sha256: str  # of the file
    model: nn.Module
    device: torch.device  # of the model
    classes: list[str]
    shape: tuple[int, ...]  # (C, H, W) of its images
    dataset: str  # what it was trained on; a folder is "folder NAME"
    eval_sha256: str | None  # of the images that its metrics are of, see data.digest
    eval_count: int | None  # the number of these images
    torch_version: str  # of the training


# ---- The file ----
def load(path: str, device: torch.device) -> Exported:
    """Load an exported model. Raises ModelError if train.py did not write the file, or if it is damaged."""
    if "://" in path:
        raise ModelError(f"{path} is a URL. Download the file, and evaluate that.")
    if os.path.isdir(path):
        file = os.path.join(path, "model.pt")
        raise ModelError(f"{path} is a folder. Name the file in it, such as {file}.")
    if not os.path.exists(path):
        raise ModelError(f"{path} does not exist. Export one first: {start_command('train')}")
    if not os.path.isfile(path):
        raise ModelError(f"{path} is a pipe or a device. Copy what it gives into a file, and evaluate that.")
    if os.path.getsize(path) > MAX_FILE:
        raise ModelError(f"{path} has more than {MAX_FILE:,} bytes. {CURE}")
    try:
        with zipfile.ZipFile(path) as file:
            if sum(member.file_size for member in file.infolist()) > MAX_FILE:
                raise ModelError(f"{path} unpacks to more than {MAX_FILE:,} bytes. {CURE}")
        content = read_intact(path)
        model, metadata = load_exported(content, device)
    except (OSError, ModelError):
        raise
    except Exception as error:  # torch raises errors of any type
        raise ModelError(f"{path} {diagnose(path, error)}. {CURE}") from error
    if isinstance(metadata, dict) and metadata.get("format") not in (None, 1, FORMAT):  # the first had none
        raise ModelError(f"{path} was written by a newer version. Use the evaluate.py of that version.")
    try:
        classes = [str(name) for name in list(metadata["classes"])]
        shape = tuple(int(size) for size in metadata["input"]["shape"][1:])
        if len(shape) != 3 or not 0 < min(shape) <= max(shape) <= MAX_SIDE:
            raise ValueError("no size of an image")
        dataset, version = str(metadata["dataset"])[:200], str(metadata["torch"])[:200]
        of_eval = metadata.get("eval") or {}
        evaluated = of_eval.get("sha256"), int(of_eval["images"]) if "images" in of_eval else None
        if not classes or isinstance(metadata["classes"], str):
            raise ValueError("no list of classes")
    except Exception as error:  # what is missing or of another type
        problem = f"{path} says nothing usable on its classes, input shape, data set or torch version"
        raise ModelError(f"{problem}. {CURE}") from error
    sha256 = hashlib.sha256(content).hexdigest()
    return Exported(path, sha256, model, device, classes, shape, dataset, *evaluated, version)


def diagnose(path: str, error: Exception) -> str:
    """What a file is that cannot be loaded as an exported model."""
    with open(path, "rb") as file:
        start = file.read(3)
    if start[:2] != b"PK":
        # ONNX begins with its version (field 1, a number) and its producer (field 2, text).
        is_onnx = path.endswith(".onnx") or (start[:1] == b"\x08" and start[2:] == b"\x12")
        return "is an ONNX file" if is_onnx else "is not a file in torch's format, or in its old one"
    try:
        with zipfile.ZipFile(path) as file:
            members = file.namelist()
            if damaged := file.testzip():
                return f"is damaged, in {printable(damaged)}: copy it again"
            metadata = b"".join(file.read(name) for name in members if name.endswith("/extra/metadata.json"))
    except Exception:  # zipfile raises errors of many types
        return "is damaged or incomplete: copy it again"
    if any("/aotinductor/" in member for member in members):
        return "was compiled by AOTInductor for one kind of machine"
    if any(member.endswith(("/constants.pkl", "/archive_format")) for member in members):
        if not metadata:
            return "has no metadata.json in it"
        if isinstance(error, (json.JSONDecodeError, UnicodeError, RecursionError)):
            return "has a metadata.json that is not JSON"
        versions = f"torch {torch.__version__}"
        with suppress(Exception):  # the metadata may hold anything
            if (writer := str(json.loads(metadata)["torch"])[:40]) != torch.__version__:
                versions += f" (torch {printable(writer)} wrote it: try that one)"
        return f"cannot be loaded by {versions}: {printable(first_reason(error))}"
    if any(member.endswith("/data.pkl") for member in members):
        return "holds weights, a checkpoint or a pickled module, which torch.save wrote: no program to run"
    return "is a ZIP file, but not an exported model"


def checked_logits(exported: Exported, images: Tensor, batch_size: int | None) -> Tensor:
    """Logits (N, K) of images (N, C, H, W), on the CPU. Raises ModelError if the exported program fails.

    The images are moved to the model's device batch by batch, so they may be larger than its memory.
    """
    name, count, logits = exported.path, len(exported.classes), None
    try:
        with torch.inference_mode():
            answer = exported.model(images[:1].to(exported.device))
        if isinstance(answer, Tensor):
            logits = predict_logits(exported.model, images, batch_size, exported.device).float().cpu()
    except Exception as error:  # a program of somebody else can raise anything
        if lacks_memory(error):
            raise
        problem = f"{name} fails on these images: {printable(first_reason(error))}"
        cure = "It must take uint8 images (N, C, H, W), any number of them."
        raise ModelError(f"{problem}. {cure}") from error
    if logits is None:
        raise ModelError(f"{name} gives a {type(answer).__name__}, not logits. {CURE}")
    if list(logits.shape) != [len(images), count]:
        shapes = f"logits of shape {list(logits.shape)}, not {[len(images), count]}"
        raise ModelError(f"{name} gives {shapes}. {CURE}")
    if not logits.isfinite().all():
        raise ModelError(f"{name} gives logits that are NaN or infinite. Train it again.")
    spread = (logits[0] - logits[0].mean()).norm()  # int8 and bf16 may differ by a hundredth of it
    if not torch.dist(answer.float().cpu(), logits[:1]) <= 0.02 * max(1, spread):
        problem = "is random, or gives other logits for an image alone than in a batch"
        raise ModelError(f"{name} {problem}. {CURE}")
    # Probabilities add up to the same for all images: to 1, or to 1 over a temperature.
    total = logits[0].sum() if (logits != logits[0]).any() else torch.ones(())  # one image, or all alike
    if count > 1 and (logits >= 0).all() and torch.allclose(logits.sum(1), total, rtol=1e-3):
        raise ModelError(f"{name} gives probabilities, not logits. Export it without its last softmax.")
    return logits


def warn_of_sigmoid(logits: Tensor) -> None:
    """Warn if the logits (N, K) look like the output of a sigmoid: different, and all from 0 to 1."""
    if (logits != logits[0]).any() and 0 <= logits.min() <= logits.max() <= 1:
        remark = "as a sigmoid gives them; the scores and the loss are those of their softmax"
        print(f"WARNING: all logits are from 0 to 1, {remark}", file=sys.stderr)


# ---- A test set ----
def evaluate_test_set(exported: Exported, args: argparse.Namespace) -> None:
    """Print metrics, speed, and precision and recall of each class."""
    name = args.dataset or exported.dataset
    if not (args.dataset or name in (*DATASETS, "mnist-format")):  # no folder is read because a file says so
        problem = f"{args.model} was trained on {printable(name)}, which is not here"
        raise ModelError(f"{problem}: give --dataset FOLDER, or a NAME that data.py reads.")
    try:
        download = bool(args.dataset)  # nothing is downloaded because a file says so
        found = load_split(name, args.data_dir, False, exported.shape[1], download, exported.shape[0])
    except DataError as error:
        if not getattr(error.__cause__, "can_be_downloaded", False):
            raise
        raise DataError(f"{error} Or download it: --dataset {name}.") from error
    dataset, classes, images, labels = found
    if os.path.isabs(dataset) and set(classes) <= set(exported.classes):  # a folder may lack some of them
        labels = torch.tensor([exported.classes.index(name) for name in classes])[labels]
        classes = exported.classes
    check_fit(exported, dataset, classes, images)
    data = ImageData(dataset, classes, images[:1], labels[:1], images, labels)
    first = slice(exported.eval_count)  # in a folder without a test set, those that were held out come first
    same = digest(images[first], labels[first]) == exported.eval_sha256
    if same:
        labels = labels[first]
    elif os.path.isabs(dataset) and not import_sources().folders.has_test_set(Path(dataset)):
        remark = "so this is all pictures in it, also any that the model was trained on"
        print(f"WARNING: {printable(dataset)} has no test set, {remark}", file=sys.stderr)

    # A GPU gets all of them if they need at most half of its free memory.
    images = data.to(exported.device).eval_images[: len(labels)]
    two_batches = images[: 2 * (args.batch_size or eval_batch_size(images, exported.device))]
    checked_logits(exported, two_batches, args.batch_size)  # TorchScript compiles in its first calls
    start = time.perf_counter()
    logits = checked_logits(exported, images, args.batch_size)
    seconds = time.perf_counter() - start

    warn_of_sigmoid(logits)
    metrics = compute_metrics(logits, labels)
    remark = ", those that the model's own metrics are of" if same else ""
    print(f"data      {printable(dataset)}, {len(images):,} test images{remark}")
    print(f"accuracy  {metrics.pop('acc'):.2f} %")
    print(f"wrong     {metrics.pop('wrong')}")
    print(f"loss      {metrics.pop('test_loss'):.4f}")
    print(f"ece       {metrics.pop('ece'):.2f} %, the expected calibration error in 15 bins")
    for metric, value in metrics.items():  # metrics added to compute_metrics
        print(f"{metric:8}  {value:.4g}")
    print(f"speed     {len(images) / seconds:,.0f} images/s on {exported.device}\n")
    print_report(logits.argmax(1), labels, classes)
    if args.predictions is not None:
        write_predictions(args.predictions, prediction_rows(logits, labels), logits.shape[1])
        print(f"\nwrote     {printable(args.predictions)}")


def check_fit(exported: Exported, dataset: str, classes: list[str], images: Tensor) -> None:
    """Raise ModelError if the model was trained on other classes or on images of another shape."""
    counts, shapes = [len(exported.classes), len(classes)], [list(exported.shape), list(images.shape[1:])]
    if counts[0] != counts[1] or shapes[0] != shapes[1]:
        trained_on, found = (f"{n} classes of {shape} (C, H, W)" for n, shape in zip(counts, shapes))
    elif exported.classes != list(classes):
        k = next(k for k, names in enumerate(zip(exported.classes, classes)) if len(set(names)) > 1)
        trained_on, found = (f"class {k} called {names[k]}" for names in (exported.classes, classes))
    else:
        return
    cure = f"Choose the --dataset that it was trained on, {exported.dataset}."
    raise ModelError(printable(f"{exported.path} has {trained_on}, {dataset} has {found}. {cure}"))


def print_report(guesses: Tensor, labels: Tensor, classes: list[str]) -> None:
    """Print a table with the figures of scikit-learn's classification_report; - is a division by zero."""
    size, total = len(classes), len(labels)
    counts = torch.bincount(labels * size + guesses, minlength=size**2).view(size, size)  # [truth, guess]
    right, support, guessed = counts.diag(), counts.sum(1), counts.sum(0)
    figures = torch.stack([right / guessed, right / support, 2 * right / (support + guessed)], 1)  # (K, 3)
    known = figures.nan_to_num(0)
    macro, weighted = known[support + guessed > 0].mean(0), (known * support[:, None]).sum(0) / total

    names = [shorten(name) for name in (*classes, "macro avg", "weighted avg")]
    supports = [*support.tolist(), total, total]
    wrong = [*(support - right).tolist(), *2 * [total - int(right.sum())]]
    width = max(map(display_width, names))
    print(f"{'class':{width}}  precision  recall      f1  support  wrong")
    for name, row, count, errors in zip(names, [*figures, macro, weighted], supports, wrong):
        padding = " " * (width - display_width(name))
        precision, recall, f1 = ("-" if value.isnan() else f"{value:.4f}" for value in row)
        print(f"{name}{padding}  {precision:>9}  {recall:>6}  {f1:>6}  {count:>7}  {errors:>5}")


# ---- Your own pictures ----
def evaluate_pictures(exported: Exported, args: argparse.Namespace) -> None:
    """Print the guess and the scores for each picture. Raises PictureError for those that cannot be read."""
    paths, remarks = find_pictures(args.pictures)
    if args.predictions and os.path.realpath(args.predictions) in map(os.path.realpath, paths):
        raise PictureError(f"--predictions would replace the picture {args.predictions}. Name another file.")
    sources = import_sources()
    for remark in remarks:
        sources.errors.warn(remark)
    if exported.shape[0] not in (1, 3):
        found = f"{exported.shape[0]} channels, and a picture has 1 or 3"
        raise PictureError(f"{exported.path} takes images of {found}. Evaluate it on a test set.")
    pictures, failed = [], {}
    for path in tqdm(paths, unit=" pictures", leave=False, disable=None):  # no bar without a terminal
        try:
            pictures.append((path, *to_image(path, exported)))
        except PictureError as error:
            failed[path] = error
    if pictures:
        paths, images, remarks = zip(*pictures)
        logits = checked_logits(exported, torch.stack(images), args.batch_size)
        warn_of_sigmoid(logits)
        print_scores(exported.classes, paths, logits.softmax(1), remarks)
        if args.predictions is not None:
            rows = prediction_rows(logits, torch.zeros(len(logits), dtype=torch.int64))
            ids = ['"{}"'.format(path.replace('"', '""')) for path in paths]
            rows = [[path, guess, "", *scores] for path, (_, guess, _, *scores) in zip(ids, rows)]
            if len(exported.classes) > MAX_SCORES:
                rows = [[*row[:3], math.nan, *row[4:]] for row in rows]  # the score of the truth
            write_predictions(args.predictions, rows, logits.shape[1])
            print(f"\nwrote {printable(args.predictions)}")
    if failed:
        names, first = ", ".join(list(failed)[:10]), next(iter(failed.values()))
        names += ", ..." if len(failed) > 10 else ""
        several = f"{len(failed)} pictures cannot be read: {names}. The first: {first}"
        raise PictureError(several if len(failed) > 1 else first)


def print_scores(classes: list[str], paths: list[str], scores: Tensor, remarks: list[str]) -> None:
    """Print the guess for each picture, and a bar for each of its scores (N, K)."""
    block = "\u2588" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    names = [shorten(name) for name in classes]
    width = max(8, *map(display_width, names))
    for path, row, remark in zip(paths, scores, remarks):
        guess = int(row.argmax())
        shown_remark = f"  ({remark})" if remark else ""
        print(f"\n{printable(path)}  {names[guess]}  {100 * row[guess]:.1f} %{shown_remark}")
        few = len(names) <= MAX_BARS
        for k in range(len(names)) if few else row.topk(MAX_BARS).indices.tolist():
            padding = " " * (width - display_width(names[k]))
            bar = block * round(40 * float(row[k]))
            print(f"  {names[k]}{padding} {100 * row[k]:5.1f} %  {bar}".rstrip())


def import_sources():
    """The package sources, which reads pictures. Raises PictureError if it, or what it needs, is missing."""
    try:
        import sources.errors
        import sources.folders
        import sources.photos
        import sources.pictures
    except ImportError as error:
        cure = "Copy it next to evaluate.py, and install requirements.txt"
        raise PictureError(f"Your own pictures need the folder sources. {cure}: {error}.") from error
    return sources


def find_pictures(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The paths of pictures, and remarks on files left out. A folder stands for the picture files in it.

    Raises PictureError if a folder has none.
    """
    paths, remarks = [], []
    for path in arguments:
        found, skipped = [path], ""
        if os.path.isdir(path):
            found, skipped = import_sources().folders.list_plain_folder(path)
        if not found:
            holds = f", but {skipped}" if skipped else ""
            raise PictureError(f"{path} has no pictures in it{holds}. Name the folder that holds them.")
        remarks += [f"{path}: skipped: {skipped}"] if skipped else []
        paths += found
    return paths, remarks


def to_image(path: str, exported: Exported) -> tuple[Tensor, str]:
    """A picture as an image (C, H, W) for the model, and what was done to it. Raises PictureError."""
    sources = import_sources()
    channels, height, width = exported.shape
    try:
        picture = sources.pictures.read_picture(path)
    except sources.errors.SourceError as error:
        raise PictureError(str(error)) from error
    if exported.dataset in MNIST_LIKE and exported.shape == (1, 28, 28):
        return sources.photos.like_mnist(picture.convert("L"))
    image = sources.pictures.to_pixels(picture, channels, height, width)
    return image, "" if picture.size == (width, height) else "resized"


# ---- The command line ----
def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usage = "%(prog)s [options] MODEL.pt [PICTURE ...]"
    summary = (__doc__ or "").partition("\n")[0]  # python -OO leaves it out
    parser = argparse.ArgumentParser(description=summary, usage=usage, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL.pt", help="file that train.py exported, .pt or .pt2")
    text = "your own pictures or folders, instead of a test set"
    add("pictures", metavar="PICTURE", nargs="*", default=[], help=text)
    names = f"auto, {', '.join(DATASETS)}"
    add("--dataset", help=f"test set: {names}, or a folder [what the model was trained on]")
    add("--data_dir", default="data", help="folder of the data sets [data]")
    add("--device", default="auto", help="auto (a CUDA GPU if there is one), cpu, cuda, cuda:1 [auto]")
    add("--batch_size", type=int, help="images at a time [100 of MNIST, on a GPU 2,000]")
    add("--predictions", metavar="OUT.csv", help="write id, guess, truth and scores of every image there")
    args = parser.parse_intermixed_args(argv)  # flags may stand between pictures
    if args.batch_size is not None and args.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, not {args.batch_size}")
    if args.pictures and args.dataset is not None:
        parser.error("--dataset is for a test set. Leave it out, or leave out the pictures")
    inputs = {os.path.realpath(path) for path in (args.model, *args.pictures)}
    inputs.update(files_of_run(os.path.dirname(os.path.realpath(args.model))))
    if args.predictions is not None and os.path.realpath(args.predictions) in inputs:
        parser.error("--predictions would replace the model, a file of its run, or a picture")
    return args


@full_precision()
def evaluate(args: argparse.Namespace) -> None:
    keep_freed_memory()
    device = pick_device(args.device)
    if args.predictions is not None:  # before the work, because it can take long
        check_writable(Path(args.predictions))
    exported = load(args.model, device)
    trained = f"trained on {printable(exported.dataset)} with torch {printable(exported.torch_version)}"
    print(f"model     {printable(args.model)}, {trained}")
    print(f"sha256    {exported.sha256}")
    if args.pictures:
        evaluate_pictures(exported, args)
    else:
        evaluate_test_set(exported, args)


def main() -> int:
    return exit_status(lambda: evaluate(parse_args()), ConfigError, DataError, ModelError, PictureError)


if __name__ == "__main__":
    sys.exit(main())
