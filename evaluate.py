"""Evaluate an exported model: on a test set, or on pictures of one's own.

    python evaluate.py runs/001/model.pt
    python evaluate.py model.pt --dataset mnist --predictions predictions.csv
    python evaluate.py model.pt photo.png more/*.png

Needs the exported file and the data, not the code the model was trained with. Such a file is a program:
evaluate only files from people whose code you would run.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from data import DataError, load_split
from logging_utils import exit_status, measure, prediction_rows, write_predictions
from model import INFER_BATCH, ModelError, infer, load_exported, pick_device

DIGITS = ("mnist", "mnist-format", "qmnist", "synthetic")  # light ink on black, 20 of 28 pixels high
SHOWN = 10  # classes a picture's scores are shown of: all, or the best


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(
        2, f"error: {message} (python evaluate.py --help lists every setting)\n"
    )
    parser.add_argument("model", metavar="MODEL.pt", help="file that train.py exported, .pt or .pt2")
    parser.add_argument("pictures", metavar="PICTURE", nargs="*", help="instead of a test set")
    parser.add_argument(
        "--dataset", help="test set: a folder, or a name that train.py takes [what the model was trained on]"
    )
    parser.add_argument("--data_dir", default="data", help="folder of the data sets [data]")
    parser.add_argument(
        "--device", default="auto", help="auto (the GPU where there is one), cpu, cuda, cuda:1"
    )
    parser.add_argument(
        "--batch_size", type=int, default=INFER_BATCH, help=f"images at a time [{INFER_BATCH}]"
    )
    parser.add_argument(
        "--predictions", metavar="OUT.csv", help="write id, guess, truth, scores of every image there"
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, not {args.batch_size}")
    read = {Path(path).resolve() for path in (args.model, *args.pictures)}
    if args.predictions is not None and Path(args.predictions).resolve() in read:
        parser.error("--predictions would replace the model or a picture")
    return args


def evaluate(args: argparse.Namespace) -> None:
    device = pick_device(args.device)
    model, metadata = load_exported(args.model, device)
    try:
        classes = [str(name) for name in metadata["classes"]]
        channels, height, width = (int(size) for size in metadata["input"]["shape"][1:])
        trained_on, version = str(metadata["dataset"]), str(metadata["torch"])
    except (LookupError, TypeError, ValueError) as error:
        raise ModelError(
            f"{args.model} has no classes, input shape, dataset or torch in its metadata"
        ) from error
    print(f"model     {args.model}, trained on {trained_on} with torch {version}")
    shape = (channels, height, width)
    if args.pictures:
        evaluate_pictures(args, model, classes, shape, trained_on in DIGITS, device)
    else:
        evaluate_test_set(args, model, classes, shape, trained_on, device)


def evaluate_test_set(
    args: argparse.Namespace, model: nn.Module, classes: list[str], shape: tuple, trained_on: str, device
) -> None:
    dataset = args.dataset or trained_on
    dataset, names, images, labels = load_split(
        dataset, args.data_dir, False, shape[1]
    )  # (N, C, H, W), (N,)
    if shape != tuple(images.shape[1:]) or classes != names:
        takes, has = (
            f"{len(k)} classes of {list(s)}" for k, s in ((classes, shape), (names, images.shape[1:]))
        )
        if takes == has:
            takes, has = (f"{k[0]}, {k[1]} ..." for k in (classes, names))
        cure = f"Choose the --dataset it was trained on, {trained_on}"
        raise ModelError(f"{args.model} is for {takes} (C, H, W), {dataset} has {has}. {cure}")

    images, batch_size = images.to(device), min(args.batch_size, len(images))
    compute_logits(
        args.model, model, images[:batch_size], len(classes)
    )  # TorchScript compiles at first calls
    start = time.perf_counter()
    logits = compute_logits(args.model, model, images, len(classes), batch_size)
    seconds = time.perf_counter() - start

    metrics, correct = measure(logits, labels), logits.argmax(1) == labels
    print(
        f"data      {dataset}, {len(images):,} test images\n"
        f"accuracy  {metrics['acc']:.2f} %\n"
        f"wrong     {metrics['wrong']}\n"
        f"loss      {metrics['test_loss']:.4f}\n"
        f"speed     {len(images) / seconds:,.0f} images/s on {device}\n"
        f"class     accuracy"
    )
    for k, name in enumerate(classes):
        of_class = correct[labels == k]
        right, count = of_class.sum().item(), len(of_class)
        print(f"{name:8}  {100 * right / max(count, 1):.2f} %  {count - right} of {count} wrong")
    if args.predictions is not None:
        write_predictions(args.predictions, prediction_rows(logits, labels))
        print(f"wrote     {args.predictions}")


def compute_logits(
    path: str, model: nn.Module, images: Tensor, num_classes: int, batch_size: int = INFER_BATCH
) -> Tensor:
    """Logits (N, K) on the CPU. Raises ModelError where the file's program gives none."""
    try:
        logits = infer(model, images, batch_size).float().cpu()
    except Exception as error:  # a program by someone else, which may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(f"{path} fails on these images: {reason}") from error
    if logits.shape != (len(images), num_classes):
        shapes = f"{list(logits.shape)} logits, not {[len(images), num_classes]}"
        raise ModelError(f"{path} gives {shapes}. Use a model.pt that train.py exported")
    if not logits.isfinite().all():
        raise ModelError(f"{path} gives logits that are no numbers. Train it again")
    return logits


# ----------------------------------------------------------------------------------------------------------
# Pictures of one's own


def evaluate_pictures(
    args: argparse.Namespace, model: nn.Module, classes: list[str], shape: tuple, digits: bool, device
) -> None:
    try:
        from sources import folders, photos
        from sources.errors import SourceError
    except ModuleNotFoundError as error:
        if error.name != "sources":
            raise
        raise DataError("The folder sources is missing. Copy it to evaluate pictures.") from error
    images, remarks = [], []
    for path in args.pictures:
        try:
            picture = folders.read_picture(path)
        except SourceError as error:
            raise DataError(str(error)) from error
        if digits and shape == (1, 28, 28):
            image, remark = photos.like_mnist(picture.convert("L"))
        else:
            image = folders.to_pixels(picture, *shape)
            remark = "" if picture.size == (shape[2], shape[1]) else "resized"
        images.append(image)
        remarks.append(remark)
    logits = compute_logits(args.model, model, torch.stack(images).to(device), len(classes), args.batch_size)
    full = "\u2588" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    for path, scores, remark in zip(args.pictures, logits.softmax(1), remarks):
        guess = int(scores.argmax())
        print(f"\n{path}  {classes[guess]}  {100 * scores[guess]:.1f} %{remark and f'  ({remark})'}")
        shown = range(len(classes)) if len(classes) <= SHOWN else scores.topk(SHOWN).indices.tolist()
        for k in shown:
            print(
                f"  {classes[k]:8} {100 * scores[k]:5.1f} %  {full * round(40 * float(scores[k]))}".rstrip()
            )
    if args.predictions is not None:
        rows = prediction_rows(logits, torch.zeros(len(logits), dtype=torch.int64))
        quoted = ('"{}"'.format(path.replace('"', '""')) for path in args.pictures)
        write_predictions(args.predictions, [[i, row[1], "", *row[3:]] for i, row in zip(quoted, rows)])
        print(f"\nwrote {args.predictions}")


def main() -> int:
    return exit_status(lambda: evaluate(parse_args()), DataError, ModelError)


if __name__ == "__main__":
    sys.exit(main())
