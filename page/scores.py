"""The scores of images: of all classes, or of the best ones if there are many."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

MAX_FULL = 100  # classes; of more, the scores of the BEST best ones are kept
BEST = 10
BLOCK = 2_000_000  # scores


def blocks(images: int, num_classes: int) -> Iterator[slice]:
    """The images in parts whose scores of all classes do not need much memory."""
    size = max(1, BLOCK // num_classes)
    return (slice(start, start + size) for start in range(0, images, size))


@dataclass(eq=False)
class Scores:
    """The scores of N images for K classes.

    `values` is (N, K), one per class. Or it is (N, M), and `classes` (N, M) has the class of each score: the
    best in order, then perhaps the truth and the guess. None is there twice; -1 is no class, with score 0.
    """

    values: np.ndarray
    classes: np.ndarray | None = None
    num_classes: int = 0  # K
    more_classes: bool = False  # there may be more than K, which a file does not mention
    num_best: int = 0  # columns of the best classes

    def __post_init__(self):
        self.num_classes = self.num_classes or self.values.shape[1]
        self.num_best = self.num_best or self.values.shape[1]

    @property
    def rest(self) -> np.ndarray:
        """The score (N,) of each class that `classes` lacks: an equal share of what the others leave."""
        missing = self.num_classes - (self.classes >= 0).sum(1)
        return (1 - self.values.sum(1)).clip(0) / missing.clip(1)

    def lacks(self, classes: np.ndarray) -> np.ndarray:
        """Whether the score of one class (N,) per image is unknown: (N,)."""
        if self.classes is None:
            return np.zeros(len(classes), bool)
        return ~(self.classes == classes[:, None]).any(1)

    def of(self, classes: np.ndarray) -> np.ndarray:
        """The score (N,) of one class (N,) per image."""
        images = np.arange(len(self.values))
        if self.classes is None:
            return self.values[images, classes]
        places = (self.classes == classes[:, None]).argmax(1)
        return np.where(self.lacks(classes), self.rest, self.values[images, places])

    def full(self) -> np.ndarray:
        """The scores of all classes (N, K)."""
        if self.classes is None:
            return self.values
        values = np.repeat(self.rest[:, None], self.num_classes, axis=1)
        images, places = np.nonzero(self.classes >= 0)
        values[images, self.classes[images, places]] = self.values[images, places]
        return values

    def best(self, count: int = BEST) -> "Scores":
        """Only the scores of the best classes."""
        count = min(count, self.num_best)
        if self.classes is not None:
            return replace(
                self, values=self.values[:, :count], classes=self.classes[:, :count], num_best=count
            )
        parts = [self.values[images] for images in blocks(*self.values.shape)]
        classes = np.concatenate([np.sort(part.argpartition(-count, 1)[:, -count:]) for part in parts])
        values = np.take_along_axis(self.values, classes, 1)
        order = (-values).argsort(1, "stable")
        values, classes = (np.take_along_axis(x, order, 1) for x in (values, classes))
        return replace(self, values=values, classes=classes, num_best=count)

    def adding(self, classes: np.ndarray, values: np.ndarray) -> "Scores":
        """With the score (N,) of one class (N,) per image, where it is unknown."""
        lacking = self.lacks(classes)
        if not lacking.any():
            return self
        values = np.column_stack([self.values, np.where(lacking, values, 0)])
        classes = np.column_stack([self.classes, np.where(lacking, classes, -1)])
        return replace(self, values=values, classes=classes)

    def take(self, images) -> "Scores":
        """The scores of some images, or of all in another order."""
        classes = None if self.classes is None else self.classes[images]
        return replace(self, values=self.values[images], classes=classes)

    def renumber(self, places: np.ndarray, num_classes: int) -> "Scores":
        """With class k as class places[k], perhaps among more classes."""
        if self.classes is not None:
            return replace(self, classes=np.append(places, -1)[self.classes], num_classes=num_classes)
        values = np.zeros((len(self.values), num_classes))
        values[:, places] = self.values
        return Scores(values)


def certain(guess: np.ndarray, num_classes: int) -> Scores:
    """What stands for the scores where there are none: a score of 1 for the guess (N,)."""
    return Scores(np.ones((len(guess), 1)), guess[:, None], num_classes, more_classes=True)
