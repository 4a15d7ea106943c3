"""What a run records: its directory, its prediction tables, its terminal lines, and a W&B run.

The run directory is the source of truth. A loop of your own needs `RunLogger`, `log_step` and `log_epoch`.
"""

import csv
import ctypes
import hashlib
import itertools
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
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
INIT_TIMEOUT, FINISH_TIMEOUT = 20, 30  # seconds to wait for W&B's server, at the start and at the end


class RunError(Exception):
    """The run cannot be recorded or continued. The message says what, where, and what to do."""


class RunDirError(RunError):
    """The run directory is in use, or its files are missing or damaged."""


# ---- Predictions: one schema for the CSV files, the W&B table, evaluate.py and compare.py ----
def prediction_columns(num_classes: int) -> list[str]:
    return ["id", "guess", "truth", *(f"score_{k}" for k in range(num_classes))]


def prediction_rows(logits: Tensor, labels: Tensor) -> list[list]:
    """Logits (N, K) and labels (N,) to N rows of `prediction_columns`. Scores are softmax probabilities."""
    columns = zip(logits.argmax(1).tolist(), labels.tolist(), logits.softmax(1).tolist())
    return [[i, guess, truth, *scores] for i, (guess, truth, scores) in enumerate(columns)]


def write_predictions(path: str | Path, rows: list[list]) -> None:
    """Write rows of `prediction_columns`; id and truth may be text. 9 digits restore a float32 exactly."""
    num_classes = len(rows[0]) - 3
    line = "%s,%d,%s" + ",%.9g" * num_classes + "\n"
    text = ",".join(prediction_columns(num_classes)) + "\n" + "".join([line % tuple(row) for row in rows])
    with atomic_write(path) as scratch:
        scratch.write_bytes(text.encode(errors="backslashreplace"))


def compute_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, cross entropy in nats, wrong guesses, calibration error, of logits (N, K) and labels (N,).

    A metric that you add here appears in metrics.csv, in summary.json, on the terminal and on W&B.
    """
    wrong = (logits.argmax(1) != labels).sum().item()
    loss = F.cross_entropy(logits, labels).item()
    ece = expected_calibration_error(logits.softmax(1), labels)
    return {"acc": 100 * (len(labels) - wrong) / len(labels), "test_loss": loss, "wrong": wrong, "ece": ece}


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
    """Yield a scratch path, and rename it to `path` after the block. Raises OSError."""
    path = Path(path).resolve()  # follow a symbolic link
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a file that can be replaced")
    scratch = path.with_name(f".{path.name}.partial")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, record: dict) -> None:
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """The content of a JSON file, or {} if it is missing or damaged."""
    with suppress(Exception):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


# ---- The run ----
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


class RunLogger:
    """Records a training run in its directory, on the terminal and on W&B. Use it in a `with` block.

    Args:
        run_dir: a new or empty directory, or that of the run to resume; None is the next number in runs/.
        config: settings for config.json and W&B. Read here, if present: epochs, dataset, img_count (rows of
            the W&B table, 10,000) and log_images (how many of them get a picture, 320).
        classes, images: K names; the evaluation images, uint8 or floats in 0..1, (N, 1 or 3, H, W), or None.
        resumed_epoch: the last finished epoch of the run to resume; None starts a new run.
        rank, world_size: of this process. Rank 0 alone writes; every rank calls `log_step` and `flush`.

    Raises RunDirError, RunError (a wrong WANDB_* variable) or ValueError (images), and leaves nothing new.
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
        self.shape = (None if images is None else len(images), len(classes))  # of an epoch's logits
        dummy = torch.zeros(1, len(classes)), torch.zeros(1, dtype=torch.int64)  # for the metrics' names
        self.columns = ["step", "epoch", "loss", *compute_metrics(*dummy)]
        with ExitStack() as undo:
            self.run_dir = create_run_dir(run_dir) if resumed_epoch is None else Path(run_dir)
            found = set(os.listdir(self.run_dir))
            if resumed_epoch is None and not found <= LEFTOVERS:
                raise RunDirError(f"{self.run_dir} is not empty. Choose another one, or resume its run.")
            self.lock = FileLock(self.run_dir / LOCK, timeout=0)
            try:
                self.lock.acquire()  # the system releases it, however this process ends
            except Timeout:
                raise RunDirError(f"Another process is writing to {self.run_dir}.") from None
            undo.callback(self.lock.release)
            if not found:
                undo.callback(shutil.rmtree, self.run_dir, ignore_errors=True)
            history = self.restore_history(resumed_epoch) if resumed_epoch else []
            wandb_id = read_json(self.run_dir / "config.json").get("wandb_id")
            self.config = config | dict(classes=classes, run_dir=str(self.run_dir)) | describe_environment()
            self.wandb = WandbRun(self.run_dir, self.config, classes, images, wandb_id)
            undo.callback(self.wandb.finish, 1)
            write_json(self.run_dir / "config.json", {**self.config, "wandb_id": self.wandb.id or wandb_id})
            (self.run_dir / "predictions").mkdir(exist_ok=True)
            with atomic_write(self.run_dir / "metrics.csv") as scratch:
                scratch.write_text(",".join(self.columns) + "\n" + "".join(history), encoding="utf-8")
            undo.pop_all()

    def restore_history(self, epochs: int) -> list[str]:
        """Restore the summary of some epochs. Returns their lines of metrics.csv, in today's columns."""
        metrics, summary = self.run_dir / "metrics.csv", self.run_dir / "summary.json"
        try:
            self.summary = dict(json.loads(summary.read_text(encoding="utf-8")))
            for key in ("finished", "sha256"):  # the run has more epochs to train now
                self.summary.pop(key, None)
            self.summary["train_seconds"] = list(self.summary["train_seconds"])[:epochs]
            with open(metrics, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= epochs]
            return [",".join([row.get(column, "") for column in self.columns]) + "\n" for row in rows]
        except Exception as error:  # damage of any kind
            raise RunDirError(f"{metrics} or {summary} is missing or damaged. Start a new run.") from error

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
            self.wandb.attempt(self.wandb.log_losses, steps, losses)
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
        write_predictions(self.run_dir / "predictions" / f"epoch-{epoch:03d}.csv", rows)
        self.append_metrics([[step, epoch, "", *(f"{value:.9g}" for value in metrics.values())]])
        record = {"epoch": epoch, "dataset": self.config.get("dataset", "unknown"), **metrics}
        self.summary["train_seconds"].append(round(seconds, 3))
        self.summary.update(record)
        write_json(self.run_dir / "summary.json", self.summary)
        self.wandb.attempt(self.wandb.log_epoch, step, record, rows)
        of_total = f"/{self.config['epochs']}" if "epochs" in self.config else ""
        values = "  ".join(f"{name} {round(value, 4):.10g}" for name, value in metrics.items())
        print(f"epoch {epoch}{of_total}  {values}  {seconds:.1f} s", flush=True)

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
        self.wandb.attempt(self.wandb.log_model, [self.run_dir / name for name in contents], metadata)
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        record = {**self.summary, "sha256": digests, "finished": self.summary["epoch"]}
        write_json(self.run_dir / "summary.json", record)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if self.rank == 0:
            self.wandb.finish(exit_code=0 if error_type is None else 1)
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
    """A run on W&B. It never prompts: WANDB_MODE decides, else it is online if an API key is set up."""

    def __init__(self, run_dir: Path, config: dict, classes, images: Tensor | None, resume_id: str | None):
        self.config, self.classes, self.images = config, classes, images
        self.pictures = {}  # id -> wandb.Image
        self.folder = run_dir.resolve()
        # W&B reads its upload folders and its silence from the environment only.
        data_dir = f"{self.folder}/wandb"
        wanted = {"WANDB_DATA_DIR": data_dir, "WANDB_CACHE_DIR": f"{data_dir}/cache", "WANDB_SILENT": "true"}
        self.env_set = {name: value for name, value in wanted.items() if not os.environ.get(name)}
        os.environ.update(self.env_set)
        import wandb  # takes half a second, and the other programs do not need it

        self.wandb = wandb
        try:
            self.run = self.start(resume_id)
        except (wandb.Error, ValueError) as error:  # ValueError: a variable of the wrong type
            self.restore_environment()
            raise RunError(f"W&B: {error!r:.200}. Fix WANDB_*, or set WANDB_MODE=disabled.") from error
        self.disabled = self.run.disabled
        self.id = None if self.run.offline or self.run.disabled else self.run.id

    def start(self, resume_id: str | None):
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
        resume = {"id": resume_id, "resume": "allow"} if resume_id and mode != "offline" else {}
        try:
            return self.wandb.init(mode=mode, config=self.config, **options, **resume)
        except self.wandb.Error as error:
            print(f"W&B: offline, because of {error!r:.200}", file=sys.stderr)
            return self.wandb.init(mode="offline", config=self.config, **options)

    def attempt(self, method: Callable, *arguments) -> None:
        """Call one of the methods below. After an error one line says so, and W&B gets nothing more."""
        try:
            if not self.disabled:
                method(*arguments)
        except Exception as error:  # of any type: the run's own files are complete without W&B
            self.disabled = True
            print(f"W&B: no further records, because of {error!r:.200}", file=sys.stderr)

    def log_losses(self, steps: Iterable[int], losses: Iterable[float]) -> None:
        for step, loss in zip(steps, losses):
            self.run.log({"loss": loss}, step)

    def log_epoch(self, step: int, record: dict, rows: list[list]) -> None:
        for metric in record:
            self.run.define_metric(metric, step_metric=None if metric == "epoch" else "epoch")
        guesses, truths = [row[1] for row in rows], [row[2] for row in rows]
        chart = self.wandb.plot.confusion_matrix(y_true=truths, preds=guesses, class_names=self.classes)
        self.run.log({**record, TABLE: self.table(rows), "confusion": chart}, step, commit=True)

    def table(self, rows: list[list]):
        """The W&B table of `rows`, with pictures of the first ones and of every wrong guess."""
        names, columns = self.classes, prediction_columns(len(self.classes))
        if names == [str(k) for k in range(len(names))]:
            names = range(len(names))  # W&B sorts integers by value
        columns.insert(1, "image")
        kinds = [int, self.wandb.Image, type(names[0]), type(names[0]), *[float] * len(names)]
        table = self.wandb.Table(columns=columns, dtype=kinds)
        table.data = [  # set directly, to skip W&B's check of every cell, which takes most of the time
            [i, self.picture(i, guess != truth), names[guess], names[truth], *scores]
            for i, guess, truth, *scores in rows[: self.config.get("img_count", 10_000)]
        ]
        return table

    def picture(self, index: int, wrong: bool):
        """The picture of an image, made once; None if this image is not shown."""
        limit = self.config.get("log_images", 320)
        if self.images is None or not (wrong or limit == "all" or index < int(limit)):
            return None
        if index not in self.pictures:
            pixels = self.images[index].permute(1, 2, 0).squeeze(2)  # (H, W, 3), or (H, W) if C is 1
            self.pictures[index] = self.wandb.Image(pixels.numpy())
        return self.pictures[index]

    def log_model(self, paths: list[Path], metadata: dict) -> None:
        artifact = self.wandb.Artifact("model", type="model", metadata=metadata)
        for path in paths:
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def finish(self, exit_code: int) -> None:
        """Upload what is left, for FINISH_TIMEOUT seconds at most. `wandb sync` uploads it later."""
        self.attempt(self.run.finish, exit_code)
        if self.disabled:
            with suppress(Exception):  # else wandb raises again at exit, if its service has died
                self.wandb.teardown(exit_code)
        self.restore_environment()

    def restore_environment(self) -> None:
        for name in self.env_set:
            os.environ.pop(name, None)

    def sync_hint(self) -> str:
        """The run's address on W&B, or the command that uploads it."""
        if self.run.disabled:
            return "disabled by WANDB_MODE"
        if self.run.offline or self.disabled:
            return f"wandb sync {shlex.quote(os.path.relpath(Path(self.run.dir).parent))}"
        return self.run.url


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
    """Run a program. What its user can fix (RunError, OSError, `cures`) ends in one line and status 2."""
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
    except RuntimeError as error:  # gloo raises it if another process has ended
        if "by peer" not in str(error):
            raise
        message, status = f"rank {os.environ.get('RANK')} stops, because another process did", 1
    with suppress(BrokenPipeError):  # stderr may be closed too
        print(message, file=sys.stderr)
    return status
