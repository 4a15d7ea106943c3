"""What a run records: its directory, its prediction tables, its terminal lines.

The run directory is the source of truth. A loop of your own needs `RunLogger`, `log_step` and `log_epoch`.
"""

import csv
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import warnings
from contextlib import ExitStack, suppress
from operator import index
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from filelock import BaseFileLock, FileLock, Timeout
from torch import Tensor

from program import describe_environment, read_file, read_json, read_pictures, sync
from program import write_file, write_json, write_tensors
from wandb_run import RunError, WandbRun, pictured_ids

LOCK = ".lock"  # in a run directory, held by the process that writes to it
LEFTOVERS = {LOCK, ".config.json.partial", "wandb"}  # left by a run killed in its first seconds
FETCH_EVERY = 50  # steps between two fetches of the losses; each fetch waits for the device
DIVERGED = "Lower the learning rate or train in fp32. The last finished epoch is kept."
MAX_SCORES = 100  # classes: with more, a predictions file holds only the ten best scores


# ---- Predictions: one schema for the CSV files, the W&B table, evaluate.py and compare.py ----
def prediction_columns(num_classes: int) -> list[str]:
    """The columns of a predictions file. With more than MAX_SCORES classes it has the ten best scores."""
    if num_classes <= MAX_SCORES:
        return ["id", "guess", "truth", *(f"score_{k}" for k in range(num_classes))]
    best = [name for rank in range(1, 11) for name in (f"best_{rank}", f"best_{rank}_score")]
    return ["id", "guess", "truth", "truth_score", *best]


def prediction_rows(logits: Tensor, labels: Tensor) -> list[list]:
    """Logits (N, K), labels (N,) to N rows of `prediction_columns`, scores by softmax. Raises ValueError."""
    logits, labels = torch.as_tensor(logits).float(), torch.as_tensor(labels).long()
    if labels.shape != logits.shape[:-1] or not labels.clamp(0, logits.shape[-1] - 1).equal(labels):
        found = f"logits {list(logits.shape)} and labels {list(labels.shape)} do not match"
        raise ValueError(f"{found}: give (N, K) and (N,), each label from 0 to K - 1")
    if len(logits) > 1 and (logits >= 0).all() and (logits.sum(1) - 1).abs().max() < 0.01:
        raise ValueError("these are probabilities. Pass logits, or the logarithm of the probabilities")
    scores = logits.softmax(1)
    if scores.shape[1] > MAX_SCORES:
        best = torch.stack([part.float() for part in reversed(scores.topk(10))], dim=2).flatten(1)
        scores = torch.cat([scores.gather(1, labels[:, None]), best], dim=1)
    columns = zip(logits.argmax(1).tolist(), labels.tolist(), scores.tolist(), strict=True)
    return [[i, guess, truth, *values] for i, (guess, truth, values) in enumerate(columns)]


def write_predictions(path: str | Path, rows: list[list], num_classes: int) -> None:
    """Write rows of `prediction_columns`; id and truth may be text."""
    columns = prediction_columns(num_classes)
    line = "%s,%d,%s" + ",%.9g" * (len(columns) - 3) + "\n"  # 9 digits restore a float32 exactly
    text = ",".join(columns) + "\n" + "".join([line % tuple(row) for row in rows])
    write_file(path, text.encode(errors="backslashreplace"))


def compute_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, cross entropy in nats, wrong guesses, calibration error, of logits (N, K) and labels (N,).

    A metric that you add here appears in metrics.csv, in summary.json, on the terminal and on W&B.
    """
    wrong = (logits.argmax(1) != labels).sum().item()
    loss = F.cross_entropy(logits, labels).item()
    ece = expected_calibration_error(logits.softmax(1), labels)
    return {"acc": 100 * (len(labels) - wrong) / len(labels), "test_loss": loss, "wrong": wrong, "ece": ece}


def expected_calibration_error(scores: Tensor, labels: Tensor, num_bins: int = 15) -> float:
    """Mean distance, in percent, of scores (N, K) from the accuracy, over bins of the guesses' scores."""
    confidence, guess = scores.double().max(1)
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = confidence - (guess == labels).double()
    sums = gaps.new_zeros(num_bins).index_add(0, bins, gaps)
    return 100 * sums.abs().sum().item() / len(labels)


# ---- The run ----
def holds_run(run_dir: str | Path) -> bool:
    """Whether a directory holds a run to go on with. A run killed in its first seconds leaves none.

    Raises RunError if it holds something else, or what must not be read or written.
    """
    root = Path(run_dir)
    if root.is_symlink() and not root.exists():
        raise RunError(f"{run_dir} is a link to {os.readlink(root)}, which does not exist. Remove it.")
    for path in root.rglob("*"):
        logs_of_wandb = path.match("wandb/*run-*/logs/*")  # links to its cache, wherever that is
        target = Path(os.path.realpath(path))  # path.resolve() refuses links in a circle
        if path.is_symlink() and not logs_of_wandb and not target.is_relative_to(root.resolve()):
            raise RunError(f"{path} is a link that leads out of the run directory. Remove it.")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RunError(f"{path} is not a file. Remove it.")
    names = set(os.listdir(root)) if root.exists() else set()
    if names <= LEFTOVERS or "config.json" in names:
        return "config.json" in names
    problem = f"{run_dir} is not a run: it holds {min(names - LEFTOVERS)}, but no config.json"
    raise RunError(f"{problem}. Choose another run directory.")


def create_run_dir(run_dir: str | Path | None) -> Path:
    """Create the directory of a new run: the one given, or the next free number in runs/."""
    if run_dir is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        return Path(run_dir)
    Path("runs").mkdir(exist_ok=True)
    last = max((int(run.name) for run in Path("runs").iterdir() if run.name.isdecimal()), default=0)
    for number in itertools.count(last + 1):
        with suppress(FileExistsError):  # another run has just taken this number
            Path(f"runs/{number:03d}").mkdir()
            return Path(f"runs/{number:03d}")


def lock_run(run_dir: Path) -> BaseFileLock:
    """Lock a run directory; the system unlocks it if this process dies. Raises RunError or OSError."""
    path = run_dir / LOCK
    lock = FileLock(path, timeout=0)
    try:
        with warnings.catch_warnings(record=True, action="always") as warned:
            lock.acquire()
    except Timeout:
        # filelock warns of a disk without locks: the file itself is one there, and stays after a kill.
        killed = f", or delete {path} if it was killed" if warned else ""
        cure = f"Wait for it to end{killed}, or choose another run directory."
        raise RunError(f"Another process or RunLogger is writing to {run_dir}. {cure}") from None
    except OSError as error:
        error.filename = str(path)
        raise
    return lock


class RunLogger:
    """Records a training run in its directory, on the terminal and on W&B. Use it in a `with` block.

    Args:
        run_dir: a new or empty directory, or that of the run to resume; None is the next number in runs/.
        config: settings for config.json and W&B. Read here, if present: epochs, dataset, device, img_count
            (rows of the W&B table, 0 for 10,000 or less) and log_images (how many get a picture, 320).
        classes, images: K names; the evaluation images, uint8 or floats in 0..1, (N, 1 or 3, H, W), or None.
        resumed_epoch: the last finished epoch of the run to resume, or 0; None starts a new run.
        rank, world_size: of this process. Rank 0 alone writes; every rank calls `log_step` and `flush`.

    Attributes: `run_dir`; `config` and `summary`, as in the JSON files; `latest_loss`; `wandb`, a WandbRun.

    Raises RunError (the directory, or a WANDB_* variable) or ValueError (images), and leaves nothing new.
    """

    def __init__(self, run_dir, config, classes, images=None, resumed_epoch=None, rank=0, world_size=1):
        self.run_dir, self.rank, self.world_size = run_dir, rank, world_size
        self.pending = []  # (epoch, step, loss) since the last fetch; the losses are on the device
        self.latest_loss = math.nan
        self.pictured = []  # ids in pictures.pt
        self.summary = {"train_seconds": []}
        if rank > 0:
            return
        if images is not None:
            images = torch.as_tensor(images)
            scale = 255 if images.is_floating_point() or images.dtype == torch.bool else 1
            images = images if images.dtype == torch.uint8 else (scale * images.float()).round()
            shaped = images.dim() == 4 and len(images) > 0 and images.shape[1] in (1, 3)
            if not shaped or not 0 <= images.min() <= images.max() <= 255:
                raise ValueError("images must be uint8, or floats in 0..1, of shape (N, 1 or 3, H, W)")
            images = images.to("cpu", torch.uint8)
        self.images = images
        classes = [str(name) for name in classes]  # W&B refuses strings of numpy
        dummy = torch.zeros(1, len(classes)), torch.zeros(1, dtype=torch.int64)  # for the metrics' names
        self.columns = ["step", "epoch", "loss", *compute_metrics(*dummy)]
        if run_dir is not None and holds_run(run_dir) and resumed_epoch is None:
            raise RunError(f"{run_dir} holds a run. Resume it, or choose another run directory.")
        with ExitStack() as undo:
            self.run_dir = create_run_dir(run_dir) if resumed_epoch is None else Path(run_dir)
            was_empty = not os.listdir(self.run_dir)
            self.lock = lock_run(self.run_dir)
            undo.callback(self.lock.release)
            if was_empty:
                undo.callback(shutil.rmtree, self.run_dir, ignore_errors=True)
            history = self.restore_history(resumed_epoch) if resumed_epoch else []
            saved = read_json(self.run_dir / "config.json")
            config = config | {"classes": classes, "run_dir": str(self.run_dir)}
            self.config = config | describe_environment(config.get("device", "auto"))
            self.wandb = WandbRun(self.run_dir, self.config, classes, images, saved.get("wandb_id"))
            undo.callback(self.wandb.finish, 1)
            # Of a resumed run, W&B may lack steps, for example those that were recorded offline.
            last_step = int(history[-1].split(",")[0]) if history else -1
            gap = self.wandb.mode == "online" and self.wandb.first_step <= last_step
            self.wandb.lacked_part = gap or bool(history and saved.get("wandb_lacks_part"))
            if history:  # a resumed run is not finished any more
                write_json(self.run_dir / "summary.json", self.summary)
            self.write_config()
            (self.run_dir / "predictions").mkdir(exist_ok=True)
            lines = [",".join(self.columns) + "\n", *history]
            write_file(self.run_dir / "metrics.csv", "".join(lines).encode())
            undo.pop_all()

    def write_config(self) -> None:
        extra = {"wandb_id": self.wandb.id, "wandb_lacks_part": self.wandb.lacks_part}
        write_json(self.run_dir / "config.json", self.config | extra)

    def restore_history(self, epochs: int) -> list[str]:
        """Restore the summary, and the ids in pictures.pt. Returns the epochs' lines of metrics.csv."""
        try:
            path = self.run_dir / "metrics.csv"
            reader = csv.DictReader(io.StringIO(read_file(path).decode(), newline=""))
            rows = [row for row in reader if int(row["step"]) >= 0 and int(row["epoch"]) <= epochs]
            if not any(row["epoch"] == str(epochs) and not row["loss"] for row in rows):
                raise ValueError(f"no epoch {epochs}")
            history = [",".join([row.get(column, "") for column in self.columns]) + "\n" for row in rows]
            path = self.run_dir / "pictures.pt"
            if self.images is not None and path.exists():
                self.pictured = [*read_pictures(path)]
                self.images[self.pictured]  # IndexError if they are of other images
            path = self.run_dir / "summary.json"
            saved = json.loads(read_file(path)).items()
            self.summary = {key: value for key, value in saved if key not in ("finished", "sha256")}
            math.fsum(self.summary[name] for name in reader.fieldnames[3:])  # none may be missing, or text
            self.summary["train_seconds"] = list(self.summary["train_seconds"])[:epochs]
            return history
        except Exception as error:  # damage of any kind
            cure = "Choose another run directory."
            raise RunError(f"{path} is missing or damaged ({error!r:.100}). {cure}") from error

    def log_step(self, epoch: int, step: int, loss: Tensor) -> None:
        """Record the loss, one number, of a training step. It stays on its device until the next fetch."""
        self.pending.append((index(epoch), index(step), torch.as_tensor(loss).detach().reshape(())))
        if len(self.pending) == FETCH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Fetch the losses that are still on the device. Raises RunError if one is not finite."""
        if not self.pending:
            return
        epochs, steps, losses = zip(*self.pending)
        self.pending.clear()
        losses = torch.stack(losses)
        if self.world_size > 1:
            dist.all_reduce(losses)  # all ranks get the same losses, so they stop together
        losses = (losses / self.world_size).tolist()
        self.latest_loss = losses[-1]
        if self.rank == 0:
            empty = [""] * (len(self.columns) - 3)
            rows = zip(steps, epochs, losses)
            self.append_metrics([[step, epoch, f"{loss:.9g}", *empty] for step, epoch, loss in rows])
            self.wandb.submit("log_losses", steps, losses)
        for epoch, step, loss in zip(epochs, steps, losses):
            if not math.isfinite(loss):
                raise RunError(f"The loss is {loss} in epoch {epoch}, step {step}. {DIVERGED}")

    def log_epoch(self, epoch: int, step: int, logits: Tensor, labels: Tensor, seconds=0.0) -> None:
        """Record an epoch: its last step, logits (N, K), labels (N,). Raises RunError or ValueError."""
        self.flush()
        epoch, step = index(epoch), index(step)  # of a tensor, the files would get "tensor(1)"
        logits, labels = torch.as_tensor(logits).float().cpu(), torch.as_tensor(labels).long().cpu()
        expected = [len(labels if self.images is None else self.images), len(self.config["classes"])]
        if list(logits.shape) != expected:
            raise ValueError(f"logits {list(logits.shape)} do not match {expected} images and classes")
        if not logits.isfinite().all():
            raise RunError(f"The net gives NaN or infinity after step {step}, in epoch {epoch}. {DIVERGED}")
        rows, metrics = prediction_rows(logits, labels), compute_metrics(logits, labels)
        metrics = {key: value.item() if torch.is_tensor(value) else value for key, value in metrics.items()}
        predictions = f"predictions/epoch-{epoch:03d}.csv"
        ids = sorted({*self.pictured, *pictured_ids(self.config, rows)})
        if self.images is not None and ids != self.pictured:  # the W&B table's, for publish.py
            self.pictured = ids
            write_tensors(self.run_dir / "pictures.pt", dict(ids=torch.tensor(ids), images=self.images[ids]))
        write_predictions(self.run_dir / predictions, rows, logits.shape[1])
        self.append_metrics([[step, epoch, "", *(f"{value:.9g}" for value in metrics.values())]])
        sync(self.run_dir / "metrics.csv")
        record = {"epoch": epoch, "dataset": self.config.get("dataset", "unknown"), **metrics}
        self.summary["train_seconds"].append(round(seconds, 3))
        self.summary.update(record)
        write_json(self.run_dir / "summary.json", self.summary)
        self.wandb.submit("log_epoch", step, record, predictions)
        of_total = f"/{self.config['epochs']}" if self.config.get("epochs") else ""
        values = "  ".join(f"{name} {round(value, 4):.10g}" for name, value in metrics.items())
        print(f"epoch {epoch}{of_total}  {values}  {seconds:.1f} s", flush=True)

    def append_metrics(self, rows: list[list]) -> None:
        """Add rows to metrics.csv: all of them, or none if the disk is full."""
        path = self.run_dir / "metrics.csv"
        size = path.stat().st_size
        try:
            with open(path, "a", encoding="utf-8", newline="\n") as file:
                file.write("".join([",".join(map(str, row)) + "\n" for row in rows]))
        except OSError as error:
            os.truncate(path, size)
            error.filename = str(path)
            raise

    def log_model(self, contents: dict[str, bytes], metadata: dict) -> None:
        """Write an exported model, and to summary.json its SHA-256 and that the run is finished."""
        for name, content in contents.items():
            write_file(self.run_dir / name, content)
        self.wandb.submit("log_model", list(contents), metadata)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        record = {**self.summary, "sha256": digests, "finished": self.summary["epoch"]}
        write_json(self.run_dir / "summary.json", record)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        exit_code = 1
        try:
            if error_type is None:
                self.flush()  # the losses after the last recorded epoch
                exit_code = 0
            elif self.world_size == 1:  # other processes may have stopped at other steps
                with suppress(Exception):  # the caller's error is raised
                    self.flush()
        finally:
            if self.rank == 0:
                self.close(exit_code)

    def close(self, exit_code: int) -> None:
        """End the W&B run, and release the directory."""
        with ExitStack() as end:
            end.callback(self.lock.release)  # also after a second Ctrl-C, in a notebook
            self.wandb.finish(exit_code)
            if self.wandb.mode != "disabled":
                with suppress(OSError):  # then it still says that W&B may lack part of the run
                    self.write_config()
