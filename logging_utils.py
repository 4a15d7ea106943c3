"""A run's record: its directory, its prediction tables, its progress on the terminal, and its W&B run.

The run directory is the source of truth, and W&B one sink of it:

    config.json      every setting, what it ran on, versions, commit
    metrics.csv      a row a training step (loss) and a row an epoch (acc, test_loss, wrong)
    predictions/     epoch-001.csv ...: id, guess, truth, score_0 ... of every test image
    summary.json     the last epoch's metrics, the seconds that each epoch took
    checkpoint.pt    what --resume needs
    model.pt         the TorchScript export
    wandb/           W&B's own files
"""

import errno
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
from functools import cache
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


# ----------------------------------------------------------------------------------------------------------
# Predictions: one schema for the CSV files, the W&B table, evaluate.py and compare.py


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
    with (
        replacing(Path(path)) as scratch,
        open(scratch, "w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(",".join(prediction_columns(scores)) + "\n")
        file.writelines(line % tuple(row) for row in rows)


def measure(logits: Tensor, labels: Tensor) -> dict:
    """Accuracy in percent, mean cross entropy in nats, and the number of wrong guesses of logits (N, K)."""
    wrong = (logits.argmax(1) != labels).sum().item()
    loss = F.cross_entropy(logits, labels).item()
    return {"acc": 100 * (1 - wrong / len(labels)), "test_loss": loss, "wrong": wrong}


# ----------------------------------------------------------------------------------------------------------
# Files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path to write to. It becomes `path` if all went well and is removed if not.

    A link is followed. Raises OSError where `path` is a folder, a device or another thing that is no file.
    """
    path = path.resolve()
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


def append(path: Path, text: str) -> None:
    """Add text to a file: all of it, or on an OSError nothing."""
    content = text.encode()
    with open(path, "ab", buffering=0) as file:
        size = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            os.truncate(path, size)
            error.filename = str(path)
            raise


def check_unused(run_dir: str | Path) -> None:
    """Raise RunError where the directory of a new run holds more than one leaves that was killed at once."""
    left = (LOCK, ".config.json.partial")
    if Path(run_dir).is_dir() and not set(os.listdir(run_dir)).issubset(left):
        raise RunError(f"--run_dir {run_dir} is in use. Add --resume to go on with it, or choose another.")


def create_run_dir(run_dir: str | None) -> Path:
    """Make the directory of a run: the one named, new or empty, else the next free number below runs/.

    Raises RunError where it is in use.
    """
    if run_dir is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        check_unused(run_dir)
        return Path(run_dir)
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    number = max((int(run.name) for run in runs.iterdir() if run.name.isdecimal()), default=0)
    while True:
        number += 1
        try:
            (runs / f"{number:03d}").mkdir()
            return runs / f"{number:03d}"
        except FileExistsError:
            pass  # another run took it a moment ago


def describe_environment(device: torch.device) -> dict:
    """Hardware, versions, and the git commit of this code; "dirty" where tracked files differ from it."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True)
        except FileNotFoundError:  # no git on this machine
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = torch.cpu.get_capabilities()["cpu_name"]
    return {
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "torchvision", "wandb")},
        "commit": commit,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")) if commit else None,
    }


# ----------------------------------------------------------------------------------------------------------
# The process


class Stopped(KeyboardInterrupt):
    """A signal ended the program. Arguments: the signal's number, what to tell the user."""


class StopSignals:
    """Holds back SIGINT and SIGTERM until `check` is called, so that they cut nothing in two.

    The second one ends the process at once.
    """

    def __init__(self, message: str):
        self.message, self.received = message, None

    def __enter__(self) -> "StopSignals":
        self.handlers = {n: signal.signal(n, self.note) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number: int, frame) -> None:
        self.received = number
        for each in self.handlers:
            signal.signal(each, signal.SIG_DFL)

    def check(self) -> None:
        """Raise Stopped if there was a signal."""
        if self.received is not None:
            raise Stopped(self.received, self.message)

    def __exit__(self, *error) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def exit_status(program: Callable[[], None], *errors: type[Exception]) -> int:
    """Run a program. What its user can mend, `errors` and OSErrors, becomes one line and status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: some file would get its number, and its output
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # for file names it cannot show
    try:
        program()
        sys.stdout.flush()  # now, where a pipe without a reader can still be caught
        return 0
    except errors as error:
        message, status = f"error: {error}".replace("\n", " "), 2
    except BrokenPipeError:  # by `| head`; Python itself would find it once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        message, status = "stopped: nothing reads the output any more", 128 + signal.SIGPIPE
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        cure = "Make room there or choose a place you can write to."
        if isinstance(error, FileNotFoundError):
            cure = "Check the name."
        message, status = f"error: {where}{error.strerror or error}. {cure}", 2
    except Stopped as stopped:
        number, advice = stopped.args
        message, status = f"stopped by {signal.Signals(number).name}: {advice}", 128 + number
    except KeyboardInterrupt:
        message, status = "interrupted", 128 + signal.SIGINT
    print(message, file=sys.stderr)
    return status


# ----------------------------------------------------------------------------------------------------------
# The run


def finished_epochs(run_dir: str | Path) -> int:
    """The epochs of a run that has exported its model, 0 where it has not."""
    try:
        summary = json.loads((Path(run_dir) / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    exported = isinstance(summary, dict) and "finished" in summary and (Path(run_dir) / "model.pt").exists()
    return summary["epoch"] if exported and isinstance(summary.get("epoch"), int) else 0


class RunLogger:
    """Everything a training run writes down and shows.

    Args:
        run_dir: from `create_run_dir`, or that of the run to resume.
        config: every setting and what it runs on, for config.json and W&B. Of these the logger itself uses
            dataset and epochs, and W&B's table img_count (its rows) and log_images (how many have pictures).
        data: has classes, train_images, to be counted, and test_images, uint8 (N, C, H, W), to be shown.
        resume_after: the epochs that the run to resume has finished; None for a new run.
        rank, world: this process's number and how many train; only number 0 writes and shows anything.

    Raises RunError where another process writes to the directory, or what it holds cannot be gone on with.
    """

    def __init__(
        self,
        run_dir: Path,
        config: dict,
        data,
        resume_after: int | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        self.run_dir, self.dataset, self.epochs = run_dir, config["dataset"], config["epochs"]
        self.classes, self.rank, self.world = data.classes, rank, world
        self.train_count = len(data.train_images) // world
        self.losses = []  # of the steps since the last fetch, on the device
        self.step = 0
        self.summary = {"train_seconds": []}
        if rank > 0:
            return
        self.lock = FileLock(run_dir / LOCK, timeout=0)
        try:
            self.lock.acquire()  # the system takes it back whatever becomes of this process
        except Timeout:
            raise RunError(f"another process is writing to --run_dir {run_dir}. Choose another.") from None
        try:
            if resume_after is None:
                check_unused(run_dir)
            write_json(run_dir / "config.json", config)
            (run_dir / "predictions").mkdir(exist_ok=True)
            self.start_metrics(resume_after or 0)
            self.wandb = WandbRun(run_dir, config, data, self.summary.get("wandb_id"))
            if self.wandb.id is not None:
                self.summary["wandb_id"] = self.wandb.id  # for --resume
            if resume_after is not None:
                print(f"going on after epoch {resume_after}", flush=True)
        except BaseException:
            self.lock.release()
            raise

    def start_metrics(self, epochs: int) -> None:
        """Begin metrics.csv, or forget what it got after the end of so many epochs: that comes again."""
        metrics, summary = self.run_dir / "metrics.csv", self.run_dir / "summary.json"
        kept = []
        if epochs:
            try:
                rows = metrics.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
                kept = [row for row in rows if int(row.split(",")[1]) <= epochs]
                self.summary = json.loads(summary.read_text(encoding="utf-8"))
                self.summary["train_seconds"] = self.summary["train_seconds"][:epochs]
            except (OSError, ValueError, LookupError, TypeError) as error:
                raise RunError(f"{metrics} or {summary} is missing or damaged. Start a new run.") from error
        with replacing(metrics) as scratch:
            scratch.write_text("step,epoch,loss,acc,test_loss,wrong\n" + "".join(kept), encoding="utf-8")

    def track(self, epoch: int, batches: Iterable) -> Iterator:
        """Pass an epoch's (images, labels, share) through, timed, with a progress bar on a terminal."""
        start = time.perf_counter()
        self.epoch = epoch
        title = f"epoch {epoch}/{self.epochs}"
        hidden = True if self.rank else None  # None: where there is no terminal
        with tqdm(
            total=self.train_count, unit=" images", desc=title, disable=hidden, leave=False
        ) as self.bar:
            for images, labels, share in batches:
                yield images, labels, share
                self.bar.update(len(labels))
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
                raise RunError(
                    f"the loss is {loss} in epoch {self.epoch}, step {step}. "
                    "Lower --lr or take --precision fp32. The last finished epoch is kept."
                )
        self.bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)

    def log_epoch(self, logits: Tensor, labels: Tensor) -> None:
        """Record an epoch by the test set's logits (N, K) and labels (N,)."""
        metrics = measure(logits, labels)
        rows = prediction_rows(logits, labels)
        write_predictions(self.run_dir / "predictions" / f"epoch-{self.epoch:03d}.csv", rows)
        acc, loss, wrong = (metrics[name] for name in ("acc", "test_loss", "wrong"))
        append(self.run_dir / "metrics.csv", f"{self.step},{self.epoch},,{acc:.9g},{loss:.9g},{wrong}\n")
        self.summary.update(epoch=self.epoch, dataset=self.dataset, **metrics)
        write_json(self.run_dir / "summary.json", self.summary)
        self.wandb.log_epoch(self.step, {"epoch": self.epoch, "dataset": self.dataset, **metrics}, rows)
        seconds = self.summary["train_seconds"][-1]
        epoch = f"epoch {self.epoch}/{self.epochs}"
        print(f"{epoch}  loss {loss:.3f}  accuracy {acc:.2f} %  {wrong} wrong  {seconds:.1f} s", flush=True)

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


# ----------------------------------------------------------------------------------------------------------
# W&B


class WandbRun:
    """A run on W&B. Nothing is asked: it is what WANDB_MODE says, else online with a key, else offline.

    Whatever goes wrong on W&B's side costs it the rest of the run and prints one line; training goes on.

    Raises RunError where the user's own WANDB_* settings are no good.
    """

    def __init__(self, run_dir: Path, config: dict, data, resume_id: str | None):
        self.images = data.test_images.cpu()  # uint8 (N, C, H, W), whose ids the tables' rows have
        self.classes, self.held_out = data.classes, config["val_size"]
        self.rows = config["img_count"]
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
        import wandb  # here, because it takes most of a second, and the other programs do without

        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT, finish_timeout_raises=True
        )
        options = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": os.environ.get("WANDB_NAME", run_dir.name),
            "dir": os.environ.get("WANDB_DIR", folder),
            "settings": settings,
            "config": config,
        }
        mode = wandb_mode()
        same = {"id": resume_id, "resume": "allow"} if resume_id else {}
        try:
            if mode in (None, "online") and not wandb.login(prompt=False, verify=False):
                if mode:
                    print(
                        "W&B: offline, because no API key is set up (wandb login does it)", file=sys.stderr
                    )
                mode = "offline"
            run = wandb.init(mode=mode, **options, **(same if mode != "offline" else {}))
        except wandb.Error as error:
            print(f"W&B: offline, because: {reason(error)}", file=sys.stderr)
            try:
                run = wandb.init(mode="offline", **options)
            except wandb.Error as again:
                raise RunError(f"W&B: {reason(again)}. Mend WANDB_* or set WANDB_MODE=disabled.") from again
        except ValueError as error:  # from its settings' types
            raise RunError(f"W&B refuses its environment: {reason(error)}. Mend WANDB_*.") from error
        self.run, self.lost = run, False
        self.id = None if run.offline or run.disabled else run.id
        self.attempt(self.define_metrics)
        self.attempt(lambda: self.folder.mkdir(parents=True, exist_ok=True))

    def define_metrics(self) -> None:
        self.run.define_metric("epoch")
        for metric in ("acc", "test_loss", "wrong"):
            self.run.define_metric(metric, step_metric="epoch")

    def attempt(self, action: Callable[[], None]) -> None:
        if self.lost:
            return
        try:
            action()
        except Exception as error:  # whatever it is, the run's own files are whole
            self.lost = True
            print(f"W&B: no further records, because: {reason(error)}", file=sys.stderr)

    def log_losses(self, steps: Iterable[int], losses: list[float]) -> None:
        self.attempt(lambda: [self.run.log({"loss": loss}, step) for step, loss in zip(steps, losses)])

    def log_epoch(self, step: int, metrics: dict, rows: list[list]) -> None:
        def log() -> None:
            charts = {TABLE: self.table(rows), "confusion": self.confusion(rows)}
            self.run.log({**metrics, **charts}, step, commit=True)

        self.attempt(log)

    def confusion(self, rows: list[list]):
        """W&B's chart of the guesses for each true class. Its own function for it imports pandas, slowly."""
        import wandb

        counts, classes = Counter((row[2], row[1]) for row in rows), list(enumerate(self.classes))
        columns = ["Actual", "Predicted", "nPredictions"]
        table = wandb.Table(columns=columns, dtype=[str, str, int])
        table.data = [[truth, guess, counts[i, j]] for i, truth in classes for j, guess in classes]
        fields = {column: column for column in columns}
        return wandb.plot_table("wandb/confusion_matrix/v1", table, fields)

    def table(self, rows: list[list]):
        """The W&B table of `rows`: watched and wrong ones with their picture."""
        import wandb

        columns = prediction_columns(len(rows[0]) - 3)
        numbered = self.classes == [str(k) for k in range(len(self.classes))]
        names = range(len(self.classes)) if numbered else self.classes  # as a guess or truth is shown
        types = [int, wandb.Image, type(names[0]), type(names[0]), *[float] * (len(columns) - 3)]
        table = table_class()(columns=["id", "image", *columns[1:]], dtype=types)
        table.folder = self.folder
        # Typed above and filled at once: add_data checks every cell, which takes longer than all the rest.
        table.data = [
            [row[0], self.picture(row), names[row[1]], names[row[2]], *row[3:]] for row in rows[: self.rows]
        ]
        return table

    def picture(self, row: list):
        """The picture of a row's image, written once; None where the row is neither watched nor wrong."""
        import wandb
        from PIL import Image

        index, guess, truth = row[:3]
        if index >= self.watched and guess == truth:
            return None
        if index not in self.pictures:
            image = self.images[index].permute(1, 2, 0).squeeze(2)  # (H, W, C), (H, W) if C is 1
            path = self.folder / f"{index}.png"
            with replacing(path) as scratch:
                Image.fromarray(image.numpy()).save(scratch, format="PNG")
            self.pictures[index] = wandb.Image(str(path))
        return self.pictures[index]

    def log_model(self, path: Path, metadata: dict) -> None:
        import wandb

        def log() -> None:
            artifact = wandb.Artifact("model", type="model", metadata=metadata)
            artifact.add_file(str(path), name="model.pt")
            best = self.held_out and self.is_best(metadata["metrics"])
            self.run.log_artifact(artifact, aliases=["latest", *(["best"] if best else [])])

        self.attempt(log)

    def is_best(self, metrics: dict) -> bool:
        """Whether no model of the project is better on images held out. Only the server knows: online."""
        import wandb

        if self.id is None:
            return False
        try:
            best = wandb.Api().artifact(f"{self.run.entity}/{self.run.project}/model:best")
        except (wandb.CommError, ValueError):  # there is none yet
            return True
        return metrics["acc"] > best.metadata["metrics"]["acc"]

    def finish(self, exit_code: int) -> None:
        """Upload what is left, for FINISH_TIMEOUT at most."""
        import wandb

        self.attempt(lambda: self.run.finish(exit_code=exit_code))
        if self.lost:
            with suppress(Exception):  # a process of W&B's that is gone would be missed at exit again
                wandb.teardown(exit_code)
        for name in self.borrowed:
            os.environ.pop(name, None)

    def how_to_see(self) -> str:
        """Where the run is on W&B, or the command that puts it there."""
        if self.run.disabled:
            return "disabled by WANDB_MODE"
        if self.run.offline or self.lost:
            return f"wandb sync {shlex.quote(os.path.relpath(Path(self.run.dir).parent))}"
        return self.run.url


def reason(error: Exception) -> str:
    """The start of an error's message, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@cache
def table_class() -> type:
    """wandb.Table for cells that are JSON as they are, but for pictures in column 1: `folder`/<id>.png.

    W&B converts cell by cell what it does not know to be plain, and copies each picture for each table. Both
    together take longer than all the rest.
    """
    import wandb

    class PredictionTable(wandb.Table):
        def to_json(self, target) -> dict:
            rows, self.data = self.data, []
            record = super().to_json(target)  # of everything but the rows
            self.data = rows
            record["nrows"] = len(rows)
            if "data" in record:
                record["data"] = [[row[0], self.picture(row, target), *row[2:]] for row in rows]
            return record

        def picture(self, row: list, artifact) -> dict | None:
            if row[1] is None:
                return None
            path = str(self.folder / f"{row[0]}.png")
            artifact.add_file(path, f"media/images/{row[0]}.png", policy="immutable")  # not copied
            return row[1].to_json(artifact)

    return PredictionTable


def wandb_mode() -> str | None:
    """The value of WANDB_MODE, None where it is not set. Raises RunError where it is none that we know."""
    mode = os.environ.get("WANDB_MODE") or None
    if mode not in (None, "online", "offline", "disabled"):
        raise RunError(f"WANDB_MODE is {mode}. Unset it, or use online, offline or disabled.")
    return mode
