"""A run's record: its directory, its prediction tables, its progress on the terminal, and its W&B run.

The run directory is the source of truth, and W&B one sink of it. README.md lists what is in it.
"""

import ctypes
import errno
import itertools
import json
import math
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.metadata import version
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

PROJECT = "table-quickstart"  # on W&B, unless WANDB_PROJECT says otherwise
TABLE = "test_predictions"
LOCK = ".lock"  # in a run directory, held by the process that writes to it
FETCH_EVERY = 50  # steps between two fetches of the losses; each fetch waits for the device
INIT_TIMEOUT = 20  # seconds W&B's server has to answer at the start, or the run goes offline
FINISH_TIMEOUT = 30  # seconds W&B has to upload the rest at the end; `wandb sync` does it later


class RunError(Exception):
    """The run cannot be recorded, or cannot go on. The message says what, where, and what to do."""


# ---- Predictions: one schema for the CSV files, the W&B table, evaluate.py and compare.py ----


def prediction_columns(num_classes: int) -> list[str]:
    return ["id", "guess", "truth", *(f"score_{k}" for k in range(num_classes))]


def prediction_rows(logits: Tensor, labels: Tensor) -> list[list]:
    """Logits (N, K) and labels (N,) to N rows of `prediction_columns`; scores are softmax probabilities."""
    columns = zip(logits.argmax(1).tolist(), labels.tolist(), logits.softmax(1).tolist())
    return [[i, guess, truth, *scores] for i, (guess, truth, scores) in enumerate(columns)]


def write_predictions(path: str | Path, rows: list[list]) -> None:
    """Write rows of `prediction_columns` as CSV. Nine digits restore a float32 score exactly."""
    scores = len(rows[0]) - 3
    line = "%s,%d,%s" + ",%.9g" * scores + "\n"
    text = ",".join(prediction_columns(scores)) + "\n" + "".join([line % tuple(row) for row in rows])
    with replacing(path) as scratch:
        scratch.write_bytes(text.encode(errors="backslashreplace"))


def measure(logits: Tensor, labels: Tensor) -> dict:
    """Accuracy in percent, mean cross entropy in nats, and the number of wrong guesses of logits (N, K)."""
    wrong = (logits.argmax(1) != labels).sum().item()
    loss = F.cross_entropy(logits, labels).item()
    return {"acc": 100 * (1 - wrong / len(labels)), "test_loss": loss, "wrong": wrong}


# ---- Files ----


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a scratch path to write to. It becomes `path` if all went well and is removed if not.

    A link is followed. Raises OSError where `path` is a folder, a device or another thing that is no file.
    """
    path = Path(path).resolve()
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a file that can be replaced", str(path))
    scratch = path.with_name(f".{path.name}.partial")
    try:
        yield scratch
        os.replace(scratch, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say
        raise
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, record: dict) -> None:
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict:
    """What a JSON file holds, nothing where it is missing or damaged."""
    with suppress(Exception):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def append(path: Path, text: str) -> None:
    """Add text to a file: all of it, or on an OSError nothing."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        os.truncate(path, size)
        error.filename = str(path)
        raise


def create_run_dir(run_dir: str | None) -> Path:
    """Make the directory of a run: the one named, new or empty, else the next free number below runs/.

    Raises RunError where it is in use.
    """
    if run_dir is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        check_unused(run_dir)
        return Path(run_dir)
    Path("runs").mkdir(exist_ok=True)
    taken = max((int(run.name) for run in Path("runs").iterdir() if run.name.isdecimal()), default=0)
    for number in itertools.count(taken + 1):
        with suppress(FileExistsError):  # another run took it a moment ago
            Path(f"runs/{number:03d}").mkdir()
            return Path(f"runs/{number:03d}")


def check_unused(run_dir: str | Path) -> None:
    """Raise RunError where the directory of a new run holds more than one leaves that was killed at once."""
    if not set(os.listdir(run_dir)).issubset((LOCK, ".config.json.partial", "wandb")):
        raise RunError(f"--run_dir {run_dir} is in use. Add --resume to go on with it, or choose another.")


def describe_environment(device: torch.device) -> dict:
    """Hardware, versions, and the git commit of this code; "dirty" where tracked files differ from it."""
    here, gpu = Path(__file__).resolve().parent, device.type == "cuda"
    command = ["git", "-C", here, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):  # no git, or not its files
        git = ""
    return {
        "hardware": torch.cuda.get_device_name(device) if gpu else torch.cpu.get_capabilities()["cpu_name"],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "torchvision", "wandb")},
        "commit": git.removesuffix("-dirty") or None,
        "dirty": git.endswith("-dirty") if git else None,
    }


# ---- The process ----


@contextmanager
def stop_signals(advice: str) -> Iterator[Callable[[], None]]:
    """Hold back SIGINT and SIGTERM, so that they cut nothing in two; a second one ends the process at once.

    Yields a function that ends the program where there was one; `advice` is what the user is told then.
    """
    received = []

    def note(number: int, frame) -> None:
        received.append(number)
        for each in handlers:
            signal.signal(each, signal.SIG_DFL)

    def check() -> None:
        if received:
            raise KeyboardInterrupt(received[0], advice)

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def exit_status(program: Callable[[], None], *errors: type[Exception]) -> int:
    """Run a program. What its user can mend (`errors`, RunError, OSError) becomes one line and status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: some file would get its number, and its output
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # for file names it cannot show
    try:
        keep_freed_memory()
        program()
        sys.stdout.flush()  # now, where a pipe without a reader can still be caught
        return 0
    except (RunError, *errors) as error:
        message, status = f"error: {error}".replace("\n", " "), 2
    except BrokenPipeError:  # by `| head`; Python itself would find it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message, status = "stopped: nothing reads the output any more", 128 + signal.SIGPIPE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        missing = isinstance(error, FileNotFoundError)
        cure = "Check the name." if missing else "Make room there or choose a place you can write to."
        message, status = f"error: {where}{error.strerror or error}. {cure}", 2
    except KeyboardInterrupt as stopped:  # Python's own has no arguments, that of stop_signals has two
        number, *advice = stopped.args or (signal.SIGINT,)
        message, status = ": ".join([f"stopped by {signal.Signals(number).name}", *advice]), 128 + number
    with suppress(BrokenPipeError):  # if stderr went there too
        print(message, file=sys.stderr)
    return status


def keep_freed_memory() -> None:
    """Have the C library keep the memory of freed tensors for the next ones, where it is glibc.

    Else it gives that of large ones back to the system and gets it again, zeroed, in every training step:
    5 to 20 % of the time on a CPU. The numbers are malloc.h's; 32 MiB is the most it takes.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD: bytes from which memory is not kept
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD: bytes that are kept at most


# ---- The run ----


def finished_epochs(run_dir: str | Path) -> int:
    """The epochs of a run that has exported its model, 0 where it has not."""
    summary = read_json(Path(run_dir) / "summary.json")
    exported = "finished" in summary and (Path(run_dir) / "model.pt").exists()
    return summary["epoch"] if exported and isinstance(summary.get("epoch"), int) else 0


class RunLogger:
    """Everything a training run writes down and shows.

    Args:
        run_dir: from `create_run_dir`, or that of the run to resume.
        config: every setting, for config.json and W&B. Used here: epochs, dataset.
        data: has classes and test_images, uint8 (N, C, H, W), to be shown.
        finished: the epochs that the run to resume has behind it; None for a new run.
        rank, world: this process's number and how many train; only number 0 writes and shows anything.

    Raises RunError where another process writes to the directory, or what it holds cannot be gone on with.
    """

    def __init__(self, run_dir: Path, config: dict, data, finished: int | None = None, rank=0, world=1):
        self.run_dir, self.rank, self.world = run_dir, rank, world
        self.config = config = {**config, **describe_environment(data.test_images.device)}
        self.losses = []  # of the steps since the last fetch, on the device
        self.summary = {"train_seconds": []}
        if rank > 0:
            return
        self.lock = FileLock(run_dir / LOCK, timeout=0)
        try:
            self.lock.acquire()  # the system takes it back whatever becomes of this process
        except Timeout:
            raise RunError(f"another process is writing to --run_dir {run_dir}. Choose another.") from None
        if finished is None:
            check_unused(run_dir)
        kept, before = self.recall(finished) if finished else [], read_json(run_dir / "config.json")
        self.wandb = WandbRun(run_dir, config, data, before.get("wandb_id"))
        write_json(run_dir / "config.json", {**config, "wandb_id": self.wandb.id or before.get("wandb_id")})
        (run_dir / "predictions").mkdir(exist_ok=True)
        with replacing(run_dir / "metrics.csv") as scratch:
            scratch.write_text("step,epoch,loss,acc,test_loss,wrong\n" + "".join(kept), encoding="utf-8")
        if finished is not None:
            print(f"going on after epoch {finished}", flush=True)

    def recall(self, epochs: int) -> list[str]:
        """Take up the summary after so many epochs. Returns the lines of metrics.csv up to there."""
        metrics, summary = self.run_dir / "metrics.csv", self.run_dir / "summary.json"
        try:
            self.summary = json.loads(summary.read_text(encoding="utf-8"))
            self.summary["train_seconds"] = list(self.summary["train_seconds"])[:epochs]
            self.summary.pop("finished", None)  # it was, and has more epochs now
            lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
            return [line for line in lines if int(line.split(",")[1]) <= epochs]
        except Exception as error:  # damaged in whatever way
            raise RunError(f"{metrics} or {summary} is missing or damaged. Start a new run.") from error

    def track(self, epoch: int, batches: Iterable, count: int) -> Iterator:
        """Pass an epoch's batches of `count` images through, timed, with a progress bar on a terminal."""
        start = time.perf_counter()
        self.epoch, self.title = epoch, f"epoch {epoch}/{self.config['epochs']}"
        hidden = True if self.rank else None  # None: where there is no terminal
        options = {"desc": self.title, "unit": " images", "disable": hidden, "leave": False}
        with tqdm(total=count, **options) as self.bar:
            for images, labels, share in batches:
                yield images, labels, share
                self.bar.update(len(labels) * self.world)
            self.fetch_losses()
        self.summary["train_seconds"].append(round(time.perf_counter() - start, 3))

    def log_step(self, step: int, loss: Tensor) -> None:
        """Note the loss () of a training step, on its device: fetching each would stall each step."""
        self.step = step
        self.losses.append(loss.detach())
        if len(self.losses) == FETCH_EVERY:
            self.fetch_losses()

    def fetch_losses(self) -> None:
        """Write down the losses since the last fetch. Raises RunError where one is not finite."""
        if not self.losses:
            return
        fetched = torch.stack(self.losses)
        self.losses.clear()
        if self.world > 1:
            dist.all_reduce(fetched)  # so that all stop together where one of them is not finite
        losses = (fetched / self.world).tolist()
        steps = range(self.step - len(losses) + 1, self.step + 1)
        if self.rank == 0:
            lines = [f"{step},{self.epoch},{loss:.9g},,,\n" for step, loss in zip(steps, losses)]
            append(self.run_dir / "metrics.csv", "".join(lines))
            self.wandb.log_losses(steps, losses)
        for step, loss in zip(steps, losses):
            if not math.isfinite(loss):
                cure = "Lower --lr or take --precision fp32. The last finished epoch is kept."
                raise RunError(f"the loss is {loss} in epoch {self.epoch}, step {step}. {cure}")
        self.bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)

    def log_epoch(self, logits: Tensor, labels: Tensor) -> None:
        """Record an epoch by the test set's logits (N, K) and labels (N,)."""
        metrics, rows = measure(logits, labels), prediction_rows(logits, labels)
        write_predictions(self.run_dir / "predictions" / f"epoch-{self.epoch:03d}.csv", rows)
        acc, loss, wrong = metrics.values()
        append(self.run_dir / "metrics.csv", f"{self.step},{self.epoch},,{acc:.9g},{loss:.9g},{wrong}\n")
        metrics = {"epoch": self.epoch, "dataset": self.config["dataset"], **metrics}
        self.summary.update(metrics)
        write_json(self.run_dir / "summary.json", self.summary)
        self.wandb.log_epoch(self.step, metrics, rows)
        results = f"loss {loss:.3f}  accuracy {acc:.2f} %  {wrong} wrong"
        print(f"{self.title}  {results}  {self.summary['train_seconds'][-1]:.1f} s", flush=True)

    def log_model(self, path: Path, metadata: dict) -> None:
        """Record the exported model, the last thing a run makes."""
        self.wandb.log_model(path, metadata)
        write_json(self.run_dir / "summary.json", {**self.summary, "finished": True})

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        if self.rank == 0:
            self.wandb.finish(exit_code=0 if error_type is None else 1)
            self.lock.release()


# ---- W&B ----


def forgiven(method: Callable) -> Callable:
    """Make a method of WandbRun that may fail: W&B gets no more of the run then, and one line says so."""

    @wraps(method)
    def attempt(self, *arguments) -> None:
        try:
            if not self.lost:
                method(self, *arguments)
        except Exception as error:  # whatever it is, the run's own files are whole
            self.lost = True
            say(f"no further records, because: {reason(error)}")

    return attempt


class WandbRun:
    """A run on W&B. Nothing is asked: it is what WANDB_MODE says, else online with a key, else offline.

    Args as RunLogger's; of `config` it uses img_count, log_images (rows of the table, and how many of them
    have pictures) and val_size. `resume_id` is the id of the W&B run to go on with.

    Raises RunError where the user's own WANDB_* settings are no good.
    """

    def __init__(self, run_dir: Path, config: dict, data, resume_id: str | None):
        self.config, self.classes, self.images = config, data.classes, data.test_images.cpu()
        self.watched = len(self.images) if config["log_images"] == "all" else int(config["log_images"])
        self.pictures = {}  # id -> wandb.Image of a file in the folder of pictures
        folder = run_dir.resolve()
        self.folder = folder / "wandb" / "pictures"
        defaults = {  # what W&B takes from the environment alone; a user's own value wins
            "WANDB_DATA_DIR": str(folder / "wandb"),  # artifacts wait there, else in the home directory
            "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
            "WANDB_SILENT": "true",  # its ten lines; we print one
        }
        self.borrowed = {name: value for name, value in defaults.items() if name not in os.environ}
        os.environ.update(self.borrowed)
        import wandb  # here, because it takes half a second, and the other programs do without

        self.wandb = wandb
        self.run = self.start(folder, resume_id)
        self.lost = self.run.disabled  # no tables are made that nobody gets
        self.id = None if self.run.offline or self.run.disabled else self.run.id
        self.prepare()

    def start(self, folder: Path, resume_id: str | None):
        """The wandb.Run, offline where there is no key or no server."""
        wandb, limits = self.wandb, {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT}
        mode = os.environ.get("WANDB_MODE") or None
        try:
            options = {
                "project": os.environ.get("WANDB_PROJECT", PROJECT),
                "name": os.environ.get("WANDB_NAME", folder.name),
                "dir": os.environ.get("WANDB_DIR", folder),
                "config": self.config,
                "settings": wandb.Settings(**limits, finish_timeout_raises=True),
            }
            if mode in (None, "online") and not wandb.login(prompt=False, verify=False):
                if mode:
                    say("offline, because no API key is set up (wandb login does it)")
                mode = "offline"
            same = {"id": resume_id, "resume": "allow"} if resume_id and mode != "offline" else {}
            try:
                return wandb.init(mode=mode, **options, **same)
            except wandb.Error as error:
                say(f"offline, because: {reason(error)}")
                return wandb.init(mode="offline", **options)
        except (wandb.Error, ValueError) as error:  # ValueError: from its settings' types
            raise RunError(f"W&B: {reason(error)}. Mend WANDB_* or set WANDB_MODE=disabled.") from error

    @forgiven
    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run.define_metric("epoch")
        for metric in ("acc", "test_loss", "wrong"):
            self.run.define_metric(metric, step_metric="epoch")

    @forgiven
    def log_losses(self, steps: Iterable[int], losses: list[float]) -> None:
        for step, loss in zip(steps, losses):
            self.run.log({"loss": loss}, step)

    @forgiven
    def log_epoch(self, step: int, metrics: dict, rows: list[list]) -> None:
        charts = {TABLE: self.table(rows), "confusion": self.confusion(rows)}
        self.run.log({**metrics, **charts}, step, commit=True)

    def confusion(self, rows: list[list]):
        """W&B's chart of the guesses for each true class. Its own function for it imports pandas, slowly."""
        counts, classes = Counter((row[2], row[1]) for row in rows), list(enumerate(self.classes))
        columns = ["Actual", "Predicted", "nPredictions"]
        table = self.wandb.Table(columns=columns, dtype=[str, str, int])
        table.data = [[truth, guess, counts[i, j]] for i, truth in classes for j, guess in classes]
        return self.wandb.plot_table("wandb/confusion_matrix/v1", table, dict(zip(columns, columns)))

    def table(self, rows: list[list]):
        """The W&B table of `rows`: watched and wrong ones with their picture.

        It is filled, and made JSON, at once: W&B checks and converts cell by cell, and copies each picture
        for each table, which takes longer than all the rest.
        """
        numbered = self.classes == [str(k) for k in range(len(self.classes))]
        names, kind = (range(len(self.classes)), int) if numbered else (self.classes, str)
        columns = prediction_columns(len(self.classes))
        types = [int, self.wandb.Image, kind, kind, *[float] * len(self.classes)]
        table = self.wandb.Table(columns=["id", "image", *columns[1:]], dtype=types)
        rows = [
            [row[0], self.picture(*row[:3]), names[row[1]], names[row[2]], *row[3:]]
            for row in rows[: self.config["img_count"]]
        ]

        def to_json(target) -> dict:
            table.data = []
            record = {**self.wandb.Table.to_json(table, target), "nrows": len(rows)}
            table.data = rows
            if "data" in record:  # the table itself; else what the run's history says of it
                record["data"] = [[row[0], self.picture_json(row, target), *row[2:]] for row in rows]
            return record

        table.data, table.to_json = rows, to_json
        return table

    def picture(self, index: int, guess: int, truth: int):
        """The picture of an image, written once; None where it is neither watched nor guessed wrong."""
        from PIL import Image

        if index >= self.watched and guess == truth:
            return None
        if index not in self.pictures:
            image = self.images[index].permute(1, 2, 0).squeeze(2)  # (H, W, C), (H, W) if C is 1
            path = self.folder / f"{index}.png"
            with replacing(path) as scratch:
                Image.fromarray(image.numpy()).save(scratch, format="PNG")
            self.pictures[index] = self.wandb.Image(str(path))
        return self.pictures[index]

    def picture_json(self, row: list, artifact) -> dict | None:
        if row[1] is None:
            return None
        name = f"{row[0]}.png"
        artifact.add_file(str(self.folder / name), f"media/images/{name}", policy="immutable")  # not copied
        return row[1].to_json(artifact)

    @forgiven
    def log_model(self, path: Path, metadata: dict) -> None:
        artifact = self.wandb.Artifact("model", type="model", metadata=metadata)
        artifact.add_file(str(path), name="model.pt")
        best = ["best"] if self.config["val_size"] and self.id and self.is_best(metadata["metrics"]) else []
        self.run.log_artifact(artifact, aliases=["latest", *best])

    def is_best(self, metrics: dict) -> bool:
        """Whether no model of the project is better on images held out, which only the server knows."""
        try:
            best = self.wandb.Api().artifact(f"{self.run.entity}/{self.run.project}/model:best")
        except (self.wandb.CommError, ValueError):  # there is none yet
            return True
        return metrics["acc"] > best.metadata["metrics"]["acc"]

    @forgiven
    def upload(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)

    def finish(self, exit_code: int) -> None:
        """Upload what is left, for FINISH_TIMEOUT at most."""
        self.upload(exit_code)
        if self.lost:
            with suppress(Exception):  # a process of W&B's that is gone would be missed at exit again
                self.wandb.teardown(exit_code)
        for name in self.borrowed:
            os.environ.pop(name, None)

    def how_to_see(self) -> str:
        """Where the run is on W&B, or the command that puts it there."""
        if self.run.disabled:
            return "disabled by WANDB_MODE"
        if self.run.offline or self.lost:
            return f"wandb sync {shlex.quote(os.path.relpath(Path(self.run.dir).parent))}"
        return self.run.url


def say(problem: str) -> None:
    print(f"W&B: {problem}", file=sys.stderr)


def reason(error: Exception) -> str:
    """The start of an error's message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
