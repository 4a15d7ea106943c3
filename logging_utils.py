"""What a run records: its directory, its prediction tables, its terminal lines, and a W&B run.

The run directory is the source of truth. A loop of your own needs `RunLogger`, `log_step` and `log_epoch`.
"""

import csv
import ctypes
import gc
import hashlib
import io
import itertools
import json
import logging
import math
import os
import platform
import queue
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from importlib.metadata import distributions
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

PROJECT, TABLE = "table-quickstart", "test_predictions"  # on W&B: the project, and the key of the table
LOCK = ".lock"  # in a run directory, held by the process that writes to it
LEFTOVERS = {LOCK, ".config.json.partial", "wandb"}  # left by a run killed in its first seconds
FETCH_EVERY = 50  # steps between two fetches of the losses; each fetch waits for the device
INIT_TIMEOUT, FINISH_TIMEOUT = 20, 30  # seconds that W&B waits for its server, at the start and at the end
EPOCH_WAIT, END_WAIT = 10, 40  # seconds that training waits for W&B at most, in an epoch and at the end
MAX_FILE = 2**30  # bytes that are read of a file in a run directory
NO_MEMORY = "can't allocate memory"  # in torch's error on a CPU
QUEUE_SIZE = 64  # records (losses of 50 steps, or an epoch) on their way to W&B


class RunError(Exception):
    """The run cannot be recorded or continued. The message says what, where, and what to do."""


# ---- Predictions: one schema for the CSV files, the W&B table, evaluate.py and compare.py ----
def prediction_columns(num_classes: int) -> list[str]:
    return ["id", "guess", "truth", *(f"score_{k}" for k in range(num_classes))]


def prediction_rows(logits: Tensor, labels: Tensor) -> list[list]:
    """Logits (N, K) and labels (N,) to N rows of `prediction_columns`.

    Scores are softmax probabilities, rounded to the 9 digits that restore a float32 exactly.
    """
    scores = [[float(f"{score:.9g}") for score in row] for row in logits.softmax(1).tolist()]
    columns = zip(logits.argmax(1).tolist(), labels.tolist(), scores)
    return [[i, guess, truth, *scores] for i, (guess, truth, scores) in enumerate(columns)]


def write_predictions(path: str | Path, rows: list[list]) -> None:
    """Write rows of `prediction_columns`; id and truth may be text."""
    num_classes = len(rows[0]) - 3
    line = "%s,%d,%s" + ",%.9g" * num_classes + "\n"
    text = ",".join(prediction_columns(num_classes)) + "\n" + "".join([line % tuple(row) for row in rows])
    with atomic_write(path) as scratch:
        scratch.write_bytes(text.encode(errors="backslashreplace"))


def read_rows(path: Path) -> list[list]:
    """The rows that `write_predictions` wrote, if their ids and truths are numbers. Raises any error."""
    lines = csv.reader(io.StringIO(read_file(path).decode(), newline=""))
    next(lines)
    return [[int(i), int(guess), int(truth), *map(float, scores)] for i, guess, truth, *scores in lines]


def compute_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, cross entropy in nats, wrong guesses, calibration error, of logits (N, K) and labels (N,).

    A metric that you add here appears in metrics.csv, in summary.json, on the terminal and on W&B.
    """
    wrong = (logits.argmax(1) != labels).sum().item()
    loss = F.cross_entropy(logits, labels).item()
    ece = expected_calibration_error(logits.softmax(1), labels)
    return {"acc": 100 * (1 - wrong / len(labels)), "test_loss": loss, "wrong": wrong, "ece": ece}


def expected_calibration_error(scores: Tensor, labels: Tensor, num_bins: int = 15) -> float:
    """How far the guesses' scores are from their accuracy, in percent, of scores (N, K) and labels (N,).

    Guesses are put into bins of equal width by their score. Each bin counts by its number of guesses.
    """
    confidence, guess = scores.double().cpu().max(1)
    bins = (confidence * num_bins).ceil().long().clamp(1, num_bins) - 1
    gaps = confidence - (guess == labels.cpu()).double()
    sums = gaps.new_zeros(num_bins).index_add(0, bins, gaps)
    return 100 * sums.abs().sum().item() / len(labels)


# ---- Files ----
@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a scratch path, and after the block flush it to the disk and rename it. Raises OSError."""
    path = Path(path).resolve()  # follow a symbolic link
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a file that can be replaced")
    scratch = path.with_name(f".{path.name}.partial")
    try:
        yield scratch
        sync(scratch)
        os.replace(scratch, path)
        sync(path.parent)
    except OSError as error:
        error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        scratch.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when a file's content, or a directory's entries, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, record: dict) -> None:
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def write_tensors(path: Path, record: dict) -> None:
    content = io.BytesIO()  # written by us, because torch hides the system's reason for a failed write
    torch.save(record, content)
    with atomic_write(path) as scratch:
        scratch.write_bytes(content.getbuffer())


def read_file(path: str | Path, limit: int = MAX_FILE) -> bytes:
    """The content of a file of at most `limit` bytes. Never waits for a pipe or a device. Raises OSError."""
    if os.path.exists(path) and not (os.path.isfile(path) and os.path.getsize(path) <= limit):
        raise OSError(f"{path} is not a file of at most {limit:,} bytes")
    return Path(path).read_bytes()


def read_json(path: Path) -> dict:
    """The content of a JSON file, or {} if it is missing or damaged."""
    with suppress(Exception):
        return dict(json.loads(read_file(path)))
    return {}


# ---- The run ----
def holds_run(run_dir: str | Path) -> bool:
    """Whether a directory holds a run to go on with. A run killed in its first seconds leaves none.

    Raises RunError if it holds something else, or what must not be read or written.
    """
    root = Path(run_dir)
    if root.is_symlink() and not root.exists():
        raise RunError(f"{run_dir} is a link to {os.readlink(root)}, which does not exist.")
    for path in root.rglob("*"):
        logs_of_wandb = path.match("wandb/*run-*/logs/*")  # links to its cache, wherever that is
        if path.is_symlink() and not logs_of_wandb and not path.resolve().is_relative_to(root.resolve()):
            raise RunError(f"{path} is a link that leads out of the run directory. Remove it.")
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RunError(f"{path} is not a file. Remove it.")
    names = set(os.listdir(root)) if root.exists() else set()
    if names <= LEFTOVERS or "config.json" in names:
        return "config.json" in names
    problem = f"{run_dir} is not empty: it holds {min(names - LEFTOVERS)}, but no config.json to --resume"
    raise RunError(f"{problem}. Choose another --run_dir.")


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


def describe_environment() -> dict:
    """Hardware, package versions, and the git commit of this code; "dirty" if files differ from it."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]  # the hash, not a tag
    options = {"cwd": Path(__file__).resolve().parent, "capture_output": True, "text": True}
    git = subprocess.run(command, **options).stdout.strip() if shutil.which("git") else ""
    gpu = torch.cuda.is_initialized()
    return {
        "hardware": torch.cuda.get_device_name() if gpu else torch.cpu.get_capabilities()["cpu_name"],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{found.name: found.version for found in distributions() if found.name in ("torchvision", "wandb")},
        "commit": git.removesuffix("-dirty") or None,
        "dirty": git.endswith("-dirty") if git else None,
    }


def pictured_ids(config: dict, rows: list[list]) -> list[int]:
    """The ids in the W&B table of `rows` that get a picture: the first ones, and every wrong guess."""
    limit = config.get("log_images", 320)
    first = len(rows) if limit == "all" else int(limit)
    shown = rows[: config.get("img_count", 10_000)]
    return [i for i, guess, truth, *_ in shown if i < first or guess != truth]


class RunLogger:
    """Records a training run in its directory, on the terminal and on W&B. Use it in a `with` block.

    Args:
        run_dir: a new or empty directory, or that of the run to resume; None is the next number in runs/.
        config: settings for config.json and W&B. Read here, if present: epochs, dataset, img_count (rows of
            the W&B table, 10,000) and log_images (how many of them get a picture, 320).
        classes, images: K names; the evaluation images, uint8 or floats in 0..1, (N, 1 or 3, H, W), or None.
        resumed_epoch: the last finished epoch of the run to resume; None starts a new run.
        rank, world_size: of this process. Rank 0 alone writes; every rank calls `log_step` and `flush`.

    Raises RunError (the directory, or a WANDB_* variable) or ValueError (images), and leaves nothing new.
    """

    def __init__(self, run_dir, config, classes, images=None, resumed_epoch=None, rank=0, world_size=1):
        self.run_dir, self.rank, self.world_size = run_dir, rank, world_size
        self.pending = []  # (epoch, step, loss) since the last fetch; the losses are on the device
        self.latest_loss = math.nan
        self.summary = {"train_seconds": []}
        if rank > 0:
            return
        if images is not None:
            images = (255 * images).round() if images.is_floating_point() else images
            shaped = images.dim() == 4 and images.shape[1] in (1, 3)
            if not shaped or not 0 <= images.min() <= images.max() <= 255:
                raise ValueError("images must be uint8, or floats in 0..1, of shape (N, 1 or 3, H, W)")
            images = images.to("cpu", torch.uint8)
        self.images = images
        self.shape = (None if images is None else len(images), len(classes))  # of an epoch's logits
        dummy = torch.zeros(1, len(classes)), torch.zeros(1, dtype=torch.int64)  # for the metrics' names
        self.columns = ["step", "epoch", "loss", *compute_metrics(*dummy)]
        if run_dir is not None and holds_run(run_dir) and resumed_epoch is None:
            raise RunError(f"{run_dir} is not empty. Add --resume to go on, or choose another --run_dir.")
        with ExitStack() as undo:
            self.run_dir = create_run_dir(run_dir) if resumed_epoch is None else Path(run_dir)
            was_empty = not os.listdir(self.run_dir)
            self.lock = FileLock(self.run_dir / LOCK, timeout=0)
            try:
                self.lock.acquire()  # the system releases it, however this process ends
            except Timeout:
                problem = f"Another process is writing to {self.run_dir}."
                raise RunError(f"{problem} Choose another --run_dir.") from None
            undo.callback(self.lock.release)
            if was_empty:
                undo.callback(shutil.rmtree, self.run_dir, ignore_errors=True)
            history = self.restore_history(resumed_epoch) if resumed_epoch else []
            saved = read_json(self.run_dir / "config.json")
            self.config = config | dict(classes=classes, run_dir=str(self.run_dir)) | describe_environment()
            self.wandb = WandbRun(self.run_dir, self.config, classes, images, saved.get("wandb_id"))
            undo.callback(self.wandb.finish, 1)
            last_step = int(history[-1].split(",")[0]) if history else -1
            gap = not self.wandb.run.offline and self.wandb.first_step <= last_step
            self.wandb.lacks_part = gap or bool(saved.get("wandb_lacks_part"))
            if history:  # without "finished": there are more epochs to train now
                write_json(self.run_dir / "summary.json", self.summary)
            self.write_config()
            (self.run_dir / "predictions").mkdir(exist_ok=True)
            with atomic_write(self.run_dir / "metrics.csv") as scratch:
                scratch.write_text(",".join(self.columns) + "\n" + "".join(history), encoding="utf-8")
            undo.pop_all()

    def write_config(self) -> None:
        extra = {"wandb_id": self.wandb.id, "wandb_lacks_part": self.wandb.lacks_part}
        write_json(self.run_dir / "config.json", self.config | extra)

    def restore_history(self, epochs: int) -> list[str]:
        """Restore the summary of some epochs. Returns their lines of metrics.csv, in today's columns."""
        metrics, summary = self.run_dir / "metrics.csv", self.run_dir / "summary.json"
        try:
            reader = csv.DictReader(io.StringIO(read_file(metrics).decode(), newline=""))
            rows = [row for row in reader if int(row["epoch"]) <= epochs]
            self.summary = dict(json.loads(read_file(summary)))
            math.fsum(self.summary[name] for name in reader.fieldnames[3:])  # none may be missing, or text
            for key in ("finished", "sha256"):
                self.summary.pop(key, None)
            self.summary["train_seconds"] = list(self.summary["train_seconds"])[:epochs]
            return [",".join([row.get(column, "") for column in self.columns]) + "\n" for row in rows]
        except Exception as error:  # damage of any kind
            problem = f"{metrics} or {summary} is missing or damaged ({error!r:.100})"
            raise RunError(f"{problem}. Choose another --run_dir.") from error

    def log_step(self, epoch: int, step: int, loss: Tensor) -> None:
        """Record the loss () of a training step. It stays on its device until the next fetch."""
        self.pending.append((epoch, step, loss.detach()))
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
            self.append_metrics([[*row, *empty] for row in zip(steps, epochs, map("{:.9g}".format, losses))])
            self.wandb.submit(self.wandb.log_losses, steps, losses)
        for epoch, step, loss in zip(epochs, steps, losses):
            if not math.isfinite(loss):
                cure = "Lower the learning rate or train in fp32. The last finished epoch is kept."
                raise RunError(f"The loss is {loss} in epoch {epoch}, step {step}. {cure}")

    def log_epoch(self, epoch: int, step: int, logits: Tensor, labels: Tensor, seconds=0.0) -> None:
        """Record an epoch: its last step, logits (N, K) and labels (N,) of the evaluation images."""
        self.flush()
        if logits.shape != (self.shape[0] or len(labels), self.shape[1]) or len(logits) != len(labels):
            raise ValueError(f"logits {list(logits.shape)} do not match images, classes {self.shape}")
        rows, metrics = prediction_rows(logits, labels), compute_metrics(logits, labels)
        metrics = {key: value.item() if torch.is_tensor(value) else value for key, value in metrics.items()}
        predictions = self.run_dir / "predictions" / f"epoch-{epoch:03d}.csv"
        self.save_pictures(rows)
        write_predictions(predictions, rows)
        self.append_metrics([[step, epoch, "", *(f"{value:.9g}" for value in metrics.values())]])
        sync(self.run_dir / "metrics.csv")
        record = {"epoch": epoch, "dataset": self.config.get("dataset", "unknown"), **metrics}
        self.summary["train_seconds"].append(round(seconds, 3))
        self.summary.update(record)
        write_json(self.run_dir / "summary.json", self.summary)
        self.wandb.submit(self.wandb.log_epoch, step, record, predictions)
        of_total = f"/{self.config['epochs']}" if "epochs" in self.config else ""
        values = "  ".join(f"{name} {round(value, 4):.10g}" for name, value in metrics.items())
        print(f"epoch {epoch}{of_total}  {values}  {seconds:.1f} s", flush=True)

    def save_pictures(self, rows: list[list]) -> None:
        """Add the pictures of the W&B table to pictures.pt, from which publish.py takes them."""
        if self.images is None:
            return
        path = self.run_dir / "pictures.pt"
        known = torch.load(path, weights_only=True)["ids"].tolist() if path.exists() else []
        ids = sorted({*known, *pictured_ids(self.config, rows)})
        if ids != known:
            write_tensors(path, {"ids": torch.tensor(ids), "images": self.images[ids]})

    def append_metrics(self, rows: list[list]) -> None:
        """Add rows to metrics.csv: all of them, or none if the disk is full."""
        path = self.run_dir / "metrics.csv"
        size = path.stat().st_size
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write("".join([",".join(map(str, row)) + "\n" for row in rows]))
        except OSError as error:
            os.truncate(path, size)
            error.filename = str(path)
            raise

    def log_model(self, contents: dict[str, bytes], metadata: dict) -> None:
        """Write an exported model, and to summary.json its SHA-256 and that the run is finished."""
        for name, content in contents.items():
            with atomic_write(self.run_dir / name) as scratch:
                scratch.write_bytes(content)
        self.wandb.submit(self.wandb.log_model, [self.run_dir / name for name in contents], metadata)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        record = {**self.summary, "sha256": digests, "finished": self.summary["epoch"]}
        write_json(self.run_dir / "summary.json", record)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if self.rank == 0:
            self.wandb.finish(exit_code=0 if error_type is None else 1)
            if self.wandb.disabled:
                self.wandb.lacks_part = True
                with suppress(OSError):
                    self.write_config()
            self.lock.release()


def progress(batches: Iterable, count: int, title: str, log: RunLogger) -> Iterator:
    """Pass batches (images, labels, ...) through, with a progress bar if there is a terminal."""
    with tqdm(total=count, desc=title, unit=" images", disable=log.rank > 0 or None, leave=False) as bar:
        for batch in batches:
            yield batch
            bar.set_postfix(loss=f"{log.latest_loss:.3f}", refresh=False)
            bar.update(len(batch[1]) * log.world_size)


# ---- W&B ----
class WandbRun:
    """A run on W&B. A thread of its own talks to W&B, so that training waits a bounded time at most.

    It never prompts: WANDB_MODE decides, else it is online if an API key is set up. After an error or a wait
    that is too long, one line says so, and W&B gets nothing more.

    Args:
        run_dir, config, classes: as in RunLogger. W&B's own files go to `run_dir`.
        images: id -> uint8 (C, H, W), of every picture that a table may show; or None.
        run_id: of the run on W&B to go on with, or None.
        again: whether to begin that run again, instead of adding to it.
        waits: seconds to wait for W&B at most, in an epoch and at the end, if not the defaults.
    """

    def __init__(self, run_dir, config, classes, images, run_id, again=False, waits=None):
        self.config, self.classes, self.images = config, classes, images
        self.pictures, self.staged_pictures = {}, {}  # id -> wandb.Image; content -> path
        self.held = None  # the last (record, step) of losses
        self.folder = run_dir.resolve()
        self.scratch, self.staging = self.folder / "wandb/tmp", self.folder / "wandb/artifacts/staging"
        self.epoch_wait, self.end_wait = waits or (EPOCH_WAIT, END_WAIT)
        self.disabled = self.ended = self.lacks_part = False
        # W&B reads these from the environment only. Its error reports would hold up the end of the program.
        data_dir = f"{self.folder}/wandb"
        wanted = {"WANDB_DATA_DIR": data_dir, "WANDB_CACHE_DIR": f"{data_dir}/cache", "WANDB_SILENT": "true"}
        wanted["WANDB_ERROR_REPORTING"] = "false"
        self.env_set = {name: value for name, value in wanted.items() if not os.environ.get(name)}
        os.environ.update(self.env_set)
        import wandb  # takes half a second, and the other programs do not need it

        self.wandb = wandb
        try:
            self.run = self.start(run_id, again)
        except (wandb.Error, ValueError) as error:  # ValueError: a variable of the wrong type
            self.restore_environment()
            raise RunError(f"W&B: {error!r:.200}. Fix WANDB_*, or set WANDB_MODE=disabled.") from error
        self.first_step = self.run.starting_step  # W&B has the steps before
        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # else a full disk gives thousands of lines
        warnings.filterwarnings(
            "ignore", "Implicitly cleaning up", ResourceWarning
        )  # W&B's, when it forgets
        self.id = run_id or (secrets.token_hex(4) if self.run.disabled else self.run.id)
        self.jobs = queue.Queue(QUEUE_SIZE)  # (method, arguments), or None at the end
        self.patience = self.epoch_wait  # seconds left to wait in this epoch
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def start(self, run_id: str | None, again: bool):
        """Start the wandb.Run: offline if there is no API key, or no server that answers."""
        mode = os.environ.get("WANDB_MODE") or None
        if mode in (None, "online") and not self.wandb.login(prompt=False, verify=False):
            if mode:
                print("W&B: offline, because no API key is set up (run wandb login)", file=sys.stderr)
            mode = "offline"
        defaults = {"project": PROJECT, "name": self.folder.name, "dir": str(self.folder)}
        options = {key: os.environ.get(f"WANDB_{key.upper()}") or value for key, value in defaults.items()}
        limits = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT}
        options["settings"] = self.wandb.Settings(**limits, finish_timeout_raises=True)
        options |= {"config": self.config, "id": run_id}
        options["reinit"] = "create_new" if self.wandb.run else None  # leave a run of the caller's alone
        resume = {"resume": "allow"} if run_id and mode != "offline" and not again else {}
        try:
            with silent_stderr():  # of W&B's service, which else prints its crash
                return self.wandb.init(mode=mode, **options, **resume)
        except self.wandb.Error as error:
            print(f"W&B: offline, because of {error!r:.200}", file=sys.stderr)
            with silent_stderr():
                return self.wandb.init(mode="offline", **options)

    def submit(self, method: Callable, *arguments) -> None:
        """Have the thread call `log_losses`, `log_epoch` or `log_model`. Waits only if its queue is full."""
        started = time.monotonic()
        try:
            if not self.disabled and not self.run.disabled:
                self.jobs.put((method, arguments), timeout=max(0, self.patience))
        except queue.Full:
            self.give_up(f"it holds up training for more than {self.epoch_wait} s an epoch")
        self.patience -= time.monotonic() - started
        if method == self.log_epoch:
            self.patience = self.epoch_wait

    def work(self) -> None:
        """What the thread does: call what is in the queue, until there is None."""
        while job := self.jobs.get():
            method, arguments = job
            try:
                if not self.disabled or method == self.end:
                    method(*arguments)
            except Exception as error:  # of any type: the run's own files are complete without W&B
                self.give_up(f"of {error!r:.200}")

    def give_up(self, reason: str) -> None:
        if not self.disabled:
            self.disabled = True
            print(f"W&B: no further records, because {reason}", file=sys.stderr)

    def log_losses(self, steps: Iterable[int], losses: Iterable[float]) -> None:
        """Each loss waits for the next one, because the last of an epoch goes into the epoch's record."""
        for step, loss in zip(steps, losses):
            self.log_held()
            self.held = {"loss": loss}, step

    def log_held(self) -> None:
        if self.held and self.held[1] >= self.first_step:
            self.run.log(*self.held, commit=True)
        self.held = None

    def log_epoch(self, step: int, record: dict, predictions: Path) -> None:
        """Log the metrics in `record`, and the table and the confusion matrix of a predictions file."""
        if self.held and self.held[1] == step:
            record, self.held = self.held[0] | record, None
        self.log_held()
        if step < self.first_step:
            return
        for metric in record.keys() - {"loss"}:
            self.run.define_metric(metric, step_metric=None if metric == "epoch" else "epoch")
        rows = read_rows(predictions)
        classes = {"y_true": [row[2] for row in rows], "preds": [row[1] for row in rows]}
        classes["class_names"] = self.classes
        self.staging.mkdir(parents=True, exist_ok=True)
        staged_before = set(os.listdir(self.staging))
        charts = {TABLE: self.table(rows), "confusion": self.wandb.plot.confusion_matrix(**classes)}
        self.run.log(record | charts, step, commit=True)
        charts.clear()  # W&B's temporary files go with them
        self.remove_copies(staged_before)

    def table(self, rows: list[list]):
        """The W&B table of `rows`, with pictures of the first ones and of every wrong guess."""
        names, columns = self.classes, prediction_columns(len(self.classes))
        if names == [str(k) for k in range(len(names))]:
            names = range(len(names))  # W&B sorts integers by value
        columns.insert(1, "image")
        kinds = [int, self.wandb.Image, type(names[0]), type(names[0]), *[float] * len(names)]
        table = self.wandb.Table(columns=columns, dtype=kinds)
        pictured = set() if self.images is None else set(pictured_ids(self.config, rows))
        table.data = [  # set directly, to skip W&B's check of every cell, which takes most of the time
            [i, self.picture(i) if i in pictured else None, names[guess], names[truth], *scores]
            for i, guess, truth, *scores in rows[: self.config.get("img_count", 10_000)]
        ]
        return table

    def picture(self, index: int):
        """The picture of an image, made once. W&B gets a file, because it would keep its own in $TMPDIR."""
        if index not in self.pictures:
            from PIL import Image

            pixels = self.images[index].permute(1, 2, 0).squeeze(2)  # (H, W, 3), or (H, W) if C is 1
            self.scratch.mkdir(parents=True, exist_ok=True)
            path = self.scratch / f"{index}.png"
            Image.fromarray(pixels.numpy()).save(path)
            self.pictures[index] = self.wandb.Image(str(path))
        return self.pictures[index]

    def remove_copies(self, staged_before: set[str]) -> None:
        """Remove the copies that W&B 0.31 keeps of a table, but for the one that its artifact names.

        Of each picture it keeps a copy an epoch. They become one file with many names.
        """
        for _ in range(100):  # W&B keeps the last 100 artifacts in memory, each with a file in $TMPDIR
            self.wandb.Artifact("none", type="none")
        gc.collect()
        for path in Path(self.run.dir, "media/table").glob("*") if self.run.offline else ():
            path.unlink()
        if not self.wandb.__version__.startswith("0.31.") or "WANDB_DATA_DIR" not in self.env_set:
            return
        tables = {}  # content -> (time, path) of the last copy
        for path in [self.staging / name for name in set(os.listdir(self.staging)) - staged_before]:
            with suppress(OSError):  # it is uploaded already, or the file system has no links
                content, copy = path.read_bytes(), (path.stat().st_mtime_ns, path)
                if content.startswith(b'{"_type": "table"'):
                    first, tables[content] = sorted([copy, tables.get(content, copy)])
                    if first[0] < tables[content][0]:  # W&B names the last one
                        first[1].unlink()
                elif (known := self.staged_pictures.setdefault(content, path)).exists() and known != path:
                    os.link(known, self.scratch / "link")
                    os.replace(self.scratch / "link", path)

    def log_model(self, paths: list[Path], metadata: dict) -> None:
        artifact = self.wandb.Artifact("model", type="model", metadata=metadata)
        for path in paths:
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def finish(self, exit_code: int) -> None:
        """Wait for the uploads, `end_wait` seconds at most. publish.py sends what is missing then."""
        end = time.monotonic() + self.end_wait
        for job in ((self.end, (exit_code,)), None):
            with suppress(queue.Full):
                self.jobs.put(job, timeout=max(0, end - time.monotonic()))
        self.thread.join(max(0, end - time.monotonic()))
        if self.thread.is_alive():
            self.give_up(f"it has not ended within {self.end_wait} s")
        if not self.ended:
            kill_service()  # else this process would wait for it at its end
            with suppress(Exception, SystemExit):  # now, because W&B would raise it at the end
                self.wandb.teardown(exit_code)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.restore_environment()

    def end(self, exit_code: int) -> None:
        if not self.disabled and exit_code == 0:
            self.log_held()
        self.run.finish(exit_code)
        self.ended = True

    def restore_environment(self) -> None:
        for name in self.env_set:
            os.environ.pop(name, None)

    def address(self) -> str:
        """The run's address on W&B, or the command that sends it there."""
        if self.run.disabled:
            return "disabled by WANDB_MODE"
        publish = shlex.join([sys.orig_argv[0], "publish.py", self.config["run_dir"]])
        if self.run.offline or self.disabled:
            return publish
        return f"{self.run.url}\n      {publish}" if self.lacks_part else self.run.url


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Give the programs that are started in the block no stderr."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def kill_service() -> None:
    """Kill W&B's process. If it hangs or is stopped, it obeys nothing else."""
    if sys.platform == "darwin":
        subprocess.run(["pkill", "-KILL", "-P", str(os.getpid()), "wandb-core"])
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):  # it has ended, or is another program
            pid, rest = stat.read_text().split(" (wandb-core) ")
            if int(rest.split()[1]) == os.getpid():
                os.kill(int(pid), signal.SIGKILL)


# ---- The program: memory, signals, exit status ----
def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors, which saves 5 to 20 % of the training time on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt  # its first arguments are from malloc.h
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: keep blocks up to this size, the largest possible
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: keep so many bytes at most


@contextmanager
def stop_signals(hint: str) -> Iterator[Callable[[], None]]:
    """Yield a function that stops the program if SIGINT or SIGTERM came; a second one ends it at once."""
    received, handlers = [], {}

    def note(number: int, frame) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    def stop_if_asked() -> None:
        if received:
            raise KeyboardInterrupt(received[0], hint)  # `exit_status` reads both

    with suppress(ValueError):  # outside the main thread
        handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop_if_asked
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def exit_status(program: Callable[[], object], cures: dict[type[Exception], str]) -> int:
    """Run a program. What its user can fix (also OSError, memory) ends in one line and status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # fd closed: the next opened file would get it, and our prints
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # for names that the terminal cannot show
    status = 2
    try:
        program()
        sys.stdout.flush()  # now, while a closed pipe can still be caught
        return 0
    except (RunError, *cures) as error:
        cure = next((cures[kind] for kind in cures if isinstance(error, kind)), "")
        message = " ".join(f"error: {error} {cure}".split())
    except BrokenPipeError:  # `| head` closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again at exit
        message, status = "stopped: nothing reads the output any more", 128 + signal.SIGPIPE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        message = f"error: {where}{error.strerror or error}. Check the name, the space and the permissions."
    except KeyboardInterrupt as stop:
        number, hint = stop.args or (signal.SIGINT, "")
        message, status = f"stopped by {signal.Signals(number).name}{hint and ': '}{hint}", 128 + number
    except (RuntimeError, MemoryError) as error:
        if "by peer" in str(error):  # gloo raises it if another process has ended, which says why
            return 1
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and NO_MEMORY not in str(error):
            raise
        message = "error: out of memory. Lower --batch_size, or the layers' --l1_size and --l2_size."
    with suppress(BrokenPipeError):  # stderr may be closed too
        if is_first_to_fail():
            print(printable(message), file=sys.stderr)
    return status


def is_first_to_fail() -> bool:
    """Whether this process is the one of its torchrun job that says why the job ends."""
    rank = os.environ.get("RANK", "0")
    if not dist.is_initialized():
        return rank == "0"  # each has the same reason
    with suppress(Exception):  # rank 0 may have ended
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(*address, timeout=timedelta(seconds=5)).add("failed processes", 1) == 1
    return rank == "0"


def printable(text: str) -> str:
    """Text with its control characters escaped, which else could rewrite what the terminal shows."""
    return "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])
