"""Evaluate an exported model on a test set or on your own pictures.

    python evaluate.py runs/001/model.pt
    python evaluate.py model.pt --dataset mnist --predictions predictions.csv
    python evaluate.py model.pt photo.png more/*.png

It needs the exported file and the data, not the code that trained the model. An exported file is a program:
evaluate only files from people whose code you would run.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data import DataError, load_split
from logging_utils import compute_metrics, exit_status, keep_freed_memory, prediction_rows, write_predictions
from model import EVAL_BATCH_SIZE, ModelError, load_exported, pick_device, predict_logits, read_intact

MNIST_LIKE = ("mnist", "mnist-format", "qmnist", "synthetic")  # light digits on black
MAX_BARS = 10  # classes whose scores are shown for a picture; if there are more, the best ones


class PictureError(Exception):
    """A picture cannot be read. The message says which one and why."""


@dataclass
class Exported:
    """An exported model and what its metadata says about it."""

    path: str
    model: nn.Module
    classes: list[str]
    shape: tuple[int, ...]  # (C, H, W) of its images
    dataset: str  # what it was trained on
    torch_version: str  # of the training


def load(path: str, device: torch.device) -> Exported:
    """Load an exported model. Raises ModelError if train.py did not write the file, or if it is damaged."""
    if not os.path.isfile(path):
        raise ModelError(f"{path} does not exist or is not a file. Export a model first.")
    try:
        model, metadata = load_exported(read_intact(path), device)
    except Exception as error:  # torch raises errors of any type for damaged files
        problem = f"{path} is damaged, not an exported model, or without metadata.json"
        raise ModelError(f"{problem}. Use a file that train.py exported.") from error
    try:
        classes = [str(name) for name in metadata["classes"]]
        channels, height, width = (int(size) for size in metadata["input"]["shape"][1:])
        dataset, version = str(metadata["dataset"]), str(metadata["torch"])
    except (LookupError, TypeError, ValueError) as error:
        problem = f"{path} has no classes, input shape, dataset or torch in its metadata"
        raise ModelError(f"{problem}. Use a file that train.py exported.") from error
    return Exported(path, model, classes, (channels, height, width), dataset, version)


def checked_logits(exported: Exported, images: Tensor, batch_size: int) -> Tensor:
    """Logits (N, K) of images (N, C, H, W), on the CPU. Raises ModelError if the exported program fails."""
    try:
        logits = predict_logits(exported.model, images, batch_size).float().cpu()
    except Exception as error:  # a program of somebody else can raise anything
        last_line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(f"{exported.path} fails on these images: {last_line}") from error
    expected = [len(images), len(exported.classes)]
    if list(logits.shape) != expected:
        shapes = f"logits of shape {list(logits.shape)}, not {expected}"
        raise ModelError(f"{exported.path} gives {shapes}. Use a file that train.py exported.")
    if not logits.isfinite().all():
        raise ModelError(f"{exported.path} gives logits that are NaN or infinite. Train it again.")
    return logits


# ----------------------------------------------------------------------------------------------------------
# A test set


def evaluate_test_set(exported: Exported, args: argparse.Namespace, device: torch.device) -> None:
    """Print metrics, speed and the accuracy of each class."""
    name = args.dataset or exported.dataset
    height = exported.shape[1]
    dataset, classes, images, labels = load_split(name, args.data_dir, train=False, image_size=height)
    check_fit(exported, dataset, classes, images)

    images, batch_size = images.to(device), min(args.batch_size, len(images))
    checked_logits(exported, images[:batch_size], batch_size)  # TorchScript compiles in its first calls
    start = time.perf_counter()
    logits = checked_logits(exported, images, batch_size)
    seconds = time.perf_counter() - start

    metrics, correct = compute_metrics(logits, labels), logits.argmax(1) == labels
    print(f"data      {dataset}, {len(images):,} test images")
    print(f"accuracy  {metrics.pop('acc'):.2f} %")
    print(f"wrong     {metrics.pop('wrong')}")
    print(f"loss      {metrics.pop('test_loss'):.4f}")
    for metric, value in metrics.items():  # metrics added to compute_metrics
        print(f"{metric:8}  {value:.4g}")
    print(f"speed     {len(images) / seconds:,.0f} images/s on {device}")
    print("class     accuracy")
    for k, name in enumerate(classes):
        of_class = correct[labels == k]
        right, count = of_class.sum().item(), len(of_class)
        print(f"{name:8}  {100 * right / max(count, 1):.2f} %  {count - right} of {count} wrong")
    if args.predictions is not None:
        write_predictions(args.predictions, prediction_rows(logits, labels))
        print(f"wrote     {args.predictions}")


def check_fit(exported: Exported, dataset: str, classes: list[str], images: Tensor) -> None:
    """Raise ModelError if the model was trained on other classes or on images of another shape."""
    shape = tuple(images.shape[1:])
    if (exported.classes, exported.shape) == (classes, shape):
        return
    trained_on = f"{len(exported.classes)} classes of {list(exported.shape)}"
    found = f"{len(classes)} classes of {list(shape)}"
    if trained_on == found:  # then the names of the classes differ
        trained_on, found = (f"{names[0]}, {names[1]} ..." for names in (exported.classes, classes))
    cure = f"Choose the --dataset that it was trained on, {exported.dataset}."
    raise ModelError(f"{exported.path} is for {trained_on} (C, H, W), {dataset} has {found}. {cure}")


# ----------------------------------------------------------------------------------------------------------
# Your own pictures


def evaluate_pictures(exported: Exported, args: argparse.Namespace, device: torch.device) -> None:
    """Print the guess and the scores for each picture."""
    images, remarks = read_pictures(args.pictures, exported)
    logits = checked_logits(exported, images.to(device), args.batch_size)
    block = "\u2588" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    for path, scores, remark in zip(args.pictures, logits.softmax(1), remarks):
        guess = int(scores.argmax())
        shown_remark = f"  ({remark})" if remark else ""
        print(f"\n{path}  {exported.classes[guess]}  {100 * scores[guess]:.1f} %{shown_remark}")
        few = len(exported.classes) <= MAX_BARS
        for k in range(len(exported.classes)) if few else scores.topk(MAX_BARS).indices.tolist():
            bar = block * round(40 * float(scores[k]))
            print(f"  {exported.classes[k]:8} {100 * scores[k]:5.1f} %  {bar}".rstrip())
    if args.predictions is not None:
        rows = prediction_rows(logits, torch.zeros(len(logits), dtype=torch.int64))
        ids = ['"{}"'.format(path.replace('"', '""')) for path in args.pictures]
        rows = [[path, guess, "", *scores] for path, (_, guess, _, *scores) in zip(ids, rows)]
        write_predictions(args.predictions, rows)
        print(f"\nwrote {args.predictions}")


def read_pictures(paths: list[str], exported: Exported) -> tuple[Tensor, list[str]]:
    """Read pictures as images (N, C, H, W) for the model, and what was done to each. Raises PictureError."""
    try:
        from sources import errors, folders, photos
    except ImportError as error:  # it is missing, or another folder of that name
        if error.name != "sources":
            raise
        cure = "Copy it next to evaluate.py."
        raise PictureError(f"Your own pictures need the folder sources. {cure}") from error
    channels, height, width = exported.shape
    is_digit_model = exported.dataset in MNIST_LIKE and exported.shape == (1, 28, 28)
    images, remarks = [], []
    for path in paths:
        try:
            picture = folders.read_picture(path)
        except errors.SourceError as error:
            raise PictureError(str(error)) from error
        if is_digit_model:
            image, remark = photos.like_mnist(picture.convert("L"))
        else:
            image = folders.to_pixels(picture, channels, height, width)
            remark = "" if picture.size == (width, height) else "resized"
        images.append(image)
        remarks.append(remark)
    return torch.stack(images), remarks


# ----------------------------------------------------------------------------------------------------------
# The command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    usage = "%(prog)s [options] MODEL.pt [PICTURE ...]"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], usage=usage, allow_abbrev=False)
    add = parser.add_argument
    add("model", metavar="MODEL.pt", help="file that train.py exported, .pt or .pt2")
    add("pictures", metavar="PICTURE", nargs="*", help="your own pictures, instead of a test set")
    names = "auto, mnist, fashion_mnist, kmnist, qmnist, cifar10, synthetic"
    add("--dataset", help=f"test set: {names}, or a folder [what the model was trained on]")
    add("--data_dir", default="data", help="folder of the data sets [data]")
    add("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda, cuda:1 [auto]")
    add("--batch_size", type=int, default=EVAL_BATCH_SIZE, help=f"images at a time [{EVAL_BATCH_SIZE}]")
    add("--predictions", metavar="OUT.csv", help="write id, guess, truth and scores of every image there")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, not {args.batch_size}")
    inputs = {Path(path).resolve() for path in (args.model, *args.pictures)}
    if args.predictions is not None and Path(args.predictions).resolve() in inputs:
        parser.error("--predictions would replace the model or a picture")
    return args


def evaluate(args: argparse.Namespace) -> None:
    keep_freed_memory()
    device = pick_device(args.device)
    exported = load(args.model, device)
    print(f"model     {args.model}, trained on {exported.dataset} with torch {exported.torch_version}")
    if args.pictures:
        evaluate_pictures(exported, args, device)
    else:
        evaluate_test_set(exported, args, device)


def main() -> int:
    cures = {DataError: "Check --dataset and --data_dir.", ModelError: "", PictureError: ""}
    return exit_status(lambda: evaluate(parse_args()), cures)


if __name__ == "__main__":
    sys.exit(main())
