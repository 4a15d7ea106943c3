"""Runs of more than 100 classes, made up, with all their scores for the tests to count with."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from logging_utils import prediction_rows, write_predictions


class Made:
    """The predictions of some epochs: truth (N,), and by epoch guess (N,), scores (N, K) and wrong (N,)."""

    def __init__(self, count: int, num_classes: int, seed: int, epochs: int = 1):
        random = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(num_classes, (count,), generator=torch.Generator().manual_seed(5))
        images, neighbours = torch.arange(count), (self.labels * 7 + 3) % num_classes
        logits = 1.2 * torch.randn(count, num_classes, generator=random)
        logits[images, neighbours] += 3 * torch.rand(count, generator=random)  # pairs that are confused
        self.logits = []
        for epoch in range(epochs):
            logits = logits + 0.3 * torch.randn(count, num_classes, generator=random)
            logits[images, self.labels] += 2 * torch.rand(count, generator=random) * (epoch + 1)
            self.logits.append(logits)
        self.num_classes, self.truth = num_classes, self.labels.numpy()
        self.scores = [logits.softmax(1).numpy() for logits in self.logits]
        self.guess = [scores.argmax(1) for scores in self.scores]
        self.wrong = [guess != self.truth for guess in self.guess]

    def write_csv(self, path: Path, epoch: int = 0) -> Path:
        """As train.py and evaluate.py write it: with the ten best scores."""
        write_predictions(path, prediction_rows(self.logits[epoch], self.labels), self.num_classes)
        return path

    def write_all_scores(self, path: Path, epoch: int = 0) -> Path:
        """As other programs write it: with a column per class."""
        lines = ["id,guess,truth," + ",".join(f"score_{k}" for k in range(self.num_classes))]
        for n, scores in enumerate(self.scores[epoch].tolist()):
            lines.append(
                f"{n},{self.guess[epoch][n]},{self.truth[n]}," + ",".join(f"{s:.9g}" for s in scores)
            )
        path.write_text("\n".join(lines) + "\n")
        return path

    def write_run(self, path: Path, classes: list[str] | None = None) -> Path:
        """A run directory with every epoch."""
        (path / "predictions").mkdir(parents=True)
        for epoch in range(len(self.logits)):
            self.write_csv(path / f"predictions/epoch-{epoch + 1:03d}.csv", epoch)
        (path / "config.json").write_text(json.dumps({"classes": classes} if classes else {}))
        (path / "summary.json").write_text("{}")
        return path

    def truth_score(self, epoch: int = 0) -> np.ndarray:
        return self.scores[epoch][np.arange(len(self.truth)), self.truth]

    def pairs(self, epoch: int = 0) -> dict[tuple[int, int], int]:
        """How often each pair of truth and guess is confused."""
        wrong = self.wrong[epoch]
        found, counts = np.unique(
            np.stack([self.truth[wrong], self.guess[epoch][wrong]], 1), axis=0, return_counts=True
        )
        return {tuple(pair): count for pair, count in zip(found.tolist(), counts.tolist())}


def write_random_best(path: Path, count: int, num_classes: int, seed: int) -> None:
    """The ten best scores of random guesses, most of them wrong."""
    rng = np.random.default_rng(seed)
    first, steps = rng.integers(num_classes, size=count), rng.integers(1, 50, (count, 9)).cumsum(1)
    classes = np.column_stack([first, (first[:, None] + steps) % num_classes])
    scores = -np.sort(-rng.dirichlet(np.ones(11), count)[:, :10])
    columns = {"id": range(count), "guess": first, "truth": np.arange(count) % num_classes}
    is_truth = classes == columns["truth"][:, None]
    columns["truth_score"] = np.where(is_truth.any(1), (scores * is_truth).sum(1), rng.random(count) / 1000)
    for i in range(10):
        columns |= {f"best_{i + 1}": classes[:, i], f"best_{i + 1}_score": scores[:, i]}
    pd.DataFrame(columns).to_csv(path, index=False, float_format="%.9g")
