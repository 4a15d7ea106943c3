"""Evaluate an exported model on a test set: metrics, accuracy per class, and a predictions file if asked.

    python evaluate.py runs/001/model.pt
    python evaluate.py model.pt --dataset mnist --predictions predictions.csv

Needs the exported file and the data, not the code the model was trained with. A TorchScript file is a
program: evaluate only files from people whose code you would run.
"""

import argparse
import sys
import time
from pathlib import Path

from data import CLASSES, DATASETS, DataError, find_dataset, load_split
from logging_utils import exit_status, measure, prediction_rows, write_predictions
from model import INFER_BATCH, ModelError, infer, load_torchscript, pick_device


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.error = lambda message: parser.exit(
        2, f"error: {message} (python evaluate.py --help lists every setting)\n"
    )
    parser.add_argument("model", metavar="MODEL.pt", help="file that train.py exported")
    parser.add_argument(
        "--dataset", choices=DATASETS, help="test set [the one of the data the model was trained on]"
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
    if args.predictions is not None and Path(args.predictions).resolve() == Path(args.model).resolve():
        parser.error("--predictions would replace the model")
    return args


def evaluate(args: argparse.Namespace) -> None:
    device = pick_device(args.device)
    model, metadata = load_torchscript(args.model, device)
    try:
        classes, shape = [str(name) for name in metadata["classes"]], list(metadata["input"]["shape"])[1:]
        trained_on, version = str(metadata["dataset"]), str(metadata["torch"])
    except (LookupError, TypeError) as error:
        raise ModelError(
            f"{args.model} has no classes, input shape, dataset or torch in its metadata"
        ) from error
    dataset = find_dataset(args.dataset or trained_on, args.data_dir)
    dataset, images, labels = load_split(dataset, args.data_dir, train=False)  # (N, C, H, W), (N,)
    if shape != list(images.shape[1:]) or len(classes) != len(CLASSES):
        takes, has = f"{len(classes)} classes of {shape}", f"{len(CLASSES)} of {list(images.shape[1:])}"
        cure = f"Choose the --dataset it was trained on, {trained_on}"
        raise ModelError(f"{args.model} is for {takes} (C, H, W), {dataset} has {has}. {cure}")

    images, batch_size = images.to(device), min(args.batch_size, len(images))
    try:
        infer(model, images[:batch_size])  # not timed: TorchScript compiles at its first call
        start = time.perf_counter()
        logits = infer(model, images, batch_size).float().cpu()  # (N, K)
    except Exception as error:  # a program by someone else, which may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(f"{args.model} fails on these images: {reason}") from error
    seconds = time.perf_counter() - start
    if logits.shape != (len(images), len(classes)):
        shapes = f"{list(logits.shape)} logits, not {[len(images), len(classes)]}"
        raise ModelError(f"{args.model} gives {shapes}. Use a model.pt that train.py exported")
    if not logits.isfinite().all():
        raise ModelError(f"{args.model} gives logits that are no numbers. Train it again")

    metrics, correct = measure(logits, labels), logits.argmax(1) == labels
    print(
        f"model     {args.model}, trained on {trained_on} with torch {version}\n"
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


def main() -> int:
    return exit_status(lambda: evaluate(parse_args()), DataError, ModelError)


if __name__ == "__main__":
    sys.exit(main())
