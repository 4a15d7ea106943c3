"""Evaluate an exported model on a test set: metrics, accuracy per class, and a predictions file if asked.

    python evaluate.py runs/001/model.pt
    python evaluate.py model.pt --dataset mnist --predictions predictions.csv

Needs the exported file and the data, not the code the model was trained with. A TorchScript file is a
program: evaluate only files from people whose code you would run.
"""

import argparse
import sys
import time

from data import DATASETS, DataError, find_dataset, load_split
from logging_utils import measure, prediction_rows, write_predictions
from model import ModelError, infer, load_torchscript, pick_device


class OutputError(Exception):
    """The predictions cannot be written where they were asked for."""


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
    parser.add_argument("--batch_size", type=int, default=1000, help="images at a time [1000]")
    parser.add_argument(
        "--predictions", metavar="OUT.csv", help="write id, guess, truth, scores of every image there"
    )
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        parser.error(f"--batch_size must be at least 1, not {args.batch_size}")
    return args


def evaluate(args: argparse.Namespace) -> None:
    device = pick_device(args.device)
    model, metadata = load_torchscript(args.model)
    dataset = find_dataset(args.dataset or metadata["dataset"], args.data_dir)
    dataset, images, labels = load_split(
        dataset, args.data_dir, train=False
    )  # uint8 (N, C, H, W), int64 (N,)
    classes = metadata["classes"]
    if list(images.shape[1:]) != metadata["input"]["shape"][1:]:
        raise ModelError(
            f"{args.model} takes images (C, H, W) = {metadata['input']['shape'][1:]}, {dataset} has "
            f"{list(images.shape[1:])}. Choose the --dataset it was trained on, {metadata['dataset']}"
        )
    if labels.max() >= len(classes):
        raise ModelError(
            f"{args.model} knows {len(classes)} classes, {dataset} has a label {labels.max()}. "
            f"Choose the --dataset it was trained on, {metadata['dataset']}"
        )
    model, images = model.to(device), images.to(device)
    infer(model, images[: args.batch_size])  # TorchScript compiles at its first calls
    start = time.perf_counter()
    logits = infer(model, images, args.batch_size).cpu()  # (N, K)
    seconds = time.perf_counter() - start

    metrics, correct = measure(logits, labels), logits.argmax(1) == labels
    print(
        f"model     {args.model}, trained on {metadata['dataset']} with torch {metadata['torch']}\n"
        f"data      {dataset}, {len(images):,} test images\n"
        f"accuracy  {metrics['acc']:.2f} %\n"
        f"wrong     {metrics['wrong']}\n"
        f"loss      {metrics['test_loss']:.4f}\n"
        f"speed     {len(images) / seconds:,.0f} images/s on {device}\n"
        f"class     accuracy"
    )
    for k, name in enumerate(classes):
        of_class = labels == k
        right, count = correct[of_class].sum(), of_class.sum()
        print(f"{name:8}  {100 * right / count:.2f} %  {count - right} of {count} wrong")
    if args.predictions:
        try:
            write_predictions(args.predictions, prediction_rows(logits, labels))
        except OSError as error:
            raise OutputError(f"--predictions {args.predictions}: {error.strerror}") from error
        print(f"wrote     {args.predictions}")


def main() -> int:
    try:
        evaluate(parse_args())
    except (DataError, ModelError, OutputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
