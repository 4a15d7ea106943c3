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
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

PROJECT = "table-quickstart"  # on W&B, unless WANDB_PROJECT says otherwise
TABLE = "test_predictions"
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
    line = "%d,%d,%d" + ",%.9g" * scores + "\n"
    with replacing(Path(path)) as scratch, open(scratch, "w", newline="") as file:
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
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, record: dict) -> None:
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(record, indent=2) + "\n")


def check_unused(run_dir: str | Path) -> None:
    """Raise RunError where the directory of a new run already holds something."""
    if Path(run_dir).is_dir() and any(Path(run_dir).iterdir()):
        raise RunError(f"--run_dir {run_dir} is in use. Add --resume to go on with it, or choose another.")


def create_run_dir(run_dir: str | None) -> Path:
    """Make the directory of a run: the one named, new or empty, else the next free number below runs/.

    Raises RunError where it is in use or cannot be written.
    """
    try:
        path = next_run_dir() if run_dir is None else Path(run_dir)
        path.mkdir(parents=True, exist_ok=True)
        check_unused(path)
        (path / "predictions").mkdir()  # fails if another run came in between
        return path
    except OSError as error:
        raise RunError(
            f"--run_dir {error.filename}: {error.strerror}. Choose one you can write to."
        ) from error


def next_run_dir() -> Path:
    """Make runs/001, or the next after the highest number there."""
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
# The run


class RunLogger:
    """Everything a training run writes down and shows.

    Args:
        run_dir: from `create_run_dir`, or that of the run to resume.
        config: every setting and what it runs on, for config.json and W&B. Of these the logger itself uses
            dataset, epochs, img_count (rows of the W&B table) and log_images (how many have pictures).
        data: has train_images, which are counted, and test_images, uint8 (N, C, H, W), for the pictures.
    """

    def __init__(self, run_dir: Path, config: dict, data):
        self.run_dir, self.dataset, self.epochs = run_dir, config["dataset"], config["epochs"]
        self.img_count = config["img_count"]
        self.train_count, self.test_images = len(data.train_images), data.test_images.cpu()
        every = config["log_images"] == "all"
        self.watched = len(self.test_images) if every else int(config["log_images"])
        self.pictures = {}  # id -> wandb.Image, each built once
        self.losses = []  # of the steps since the last fetch, on the device
        self.step = 0
        self.summary = {"train_seconds": []}
        if not (run_dir / "config.json").exists():
            (run_dir / "metrics.csv").write_text("step,epoch,loss,acc,test_loss,wrong\n")
            write_json(run_dir / "config.json", config)
        self.wandb_run, self.borrowed = start_wandb(run_dir, config)

    def resume(self, epoch: int) -> None:
        """Forget what was written after the end of `epoch`, so that it is not there twice."""
        metrics, summary = self.run_dir / "metrics.csv", self.run_dir / "summary.json"
        try:
            header, *rows = metrics.read_text().splitlines(keepends=True)
            kept = [row for row in rows if row.count(",") == 5 and int(row.split(",")[1]) <= epoch]
            if epoch:
                self.summary = json.loads(summary.read_text())
                self.summary["train_seconds"] = self.summary["train_seconds"][:epoch]
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{metrics} or {summary} is missing or damaged. Start a new run.") from error
        with replacing(metrics) as scratch:
            scratch.write_text(header + "".join(kept))

    def track(self, epoch: int, batches: Iterable) -> Iterator:
        """Pass an epoch's (images, labels) through, timed, with a progress bar on a terminal."""
        start = time.perf_counter()
        self.epoch = epoch
        title = f"epoch {epoch}/{self.epochs}"
        with tqdm(total=self.train_count, unit=" images", desc=title, disable=None, leave=False) as self.bar:
            for images, labels in batches:
                yield images, labels
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
        losses = torch.stack(self.losses).tolist()
        self.losses.clear()
        with open(self.run_dir / "metrics.csv", "a") as file:
            for step, loss in enumerate(losses, self.step - len(losses) + 1):
                file.write(f"{step},{self.epoch},{loss:.9g},,,\n")
                self.wandb_run.log({"loss": loss})
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
        with open(self.run_dir / "metrics.csv", "a") as file:
            acc, loss, wrong = (metrics[name] for name in ("acc", "test_loss", "wrong"))
            file.write(f"{self.step},{self.epoch},,{acc:.9g},{loss:.9g},{wrong}\n")
        self.summary.update(epoch=self.epoch, dataset=self.dataset, **metrics)
        write_json(self.run_dir / "summary.json", self.summary)
        self.wandb_run.log(
            {"epoch": self.epoch, "dataset": self.dataset, **metrics, TABLE: self.table(rows)}
        )
        seconds = self.summary["train_seconds"][-1]
        epoch = f"epoch {self.epoch}/{self.epochs}"
        print(f"{epoch}  loss {loss:.3f}  accuracy {acc:.2f} %  {wrong} wrong  {seconds:.1f} s", flush=True)

    def table(self, rows: list[list]):
        """The W&B table of `rows`: watched and wrong ones with their picture."""
        import wandb

        columns = prediction_columns(len(rows[0]) - 3)
        types = [int, wandb.Image, int, int, *[float] * (len(columns) - 3)]
        table = wandb.Table(columns=["id", "image", *columns[1:]], dtype=types)
        # Typed above and filled at once: add_data checks every cell, which takes longer than all the rest.
        table.data = [[row[0], self.picture(row), *row[1:]] for row in rows[: self.img_count]]
        return table

    def picture(self, row: list):
        """The picture of a row's image, built once; None where the row is neither watched nor wrong."""
        import wandb

        index, guess, truth = row[:3]
        if index >= self.watched and guess == truth:
            return None
        if index not in self.pictures:
            image = self.test_images[index].permute(1, 2, 0).squeeze(2)  # (H, W, C), (H, W) if C is 1
            self.pictures[index] = wandb.Image(image.numpy())
        return self.pictures[index]

    def log_model(self, path: Path, metadata: dict) -> None:
        """Hand the exported model to W&B as an artifact of type "model"."""
        import wandb

        artifact = wandb.Artifact("model", type="model", metadata=metadata)
        artifact.add_file(str(path), name="model.pt")
        self.wandb_run.log_artifact(artifact)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        self.wandb_run.finish(exit_code=0 if error_type is None else 1)
        for name in self.borrowed:
            os.environ.pop(name, None)

    def how_to_see(self) -> str:
        """Where the run is on W&B, or the command that puts it there."""
        if self.wandb_run.disabled:
            return "disabled by WANDB_MODE"
        if self.wandb_run.offline:
            return f"wandb sync {shlex.quote(os.path.relpath(Path(self.wandb_run.dir).parent))}"
        return self.wandb_run.url


def wandb_mode() -> str | None:
    """The value of WANDB_MODE, None where it is not set. Raises RunError where it is none that we know."""
    mode = os.environ.get("WANDB_MODE") or None
    if mode not in (None, "online", "offline", "disabled"):
        raise RunError(f"WANDB_MODE is {mode}. Unset it, or use online, offline or disabled.")
    return mode


def start_wandb(run_dir: Path, config: dict):
    """Start a W&B run without asking anything: as WANDB_MODE says, else online with a key, else offline.

    Returns the run, and the environment variables that were set for it; a user's own value of one wins.
    """
    folder = run_dir.resolve()
    defaults = {  # what W&B takes from the environment alone
        "WANDB_DATA_DIR": str(folder / "wandb"),  # artifacts wait there, else in the home directory
        "WANDB_CACHE_DIR": str(folder / "wandb" / "cache"),
        "WANDB_SILENT": "true",  # its ten lines; we print one
    }
    borrowed = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(borrowed)
    import wandb  # here, because it takes most of a second, and the other programs do without

    options = {
        "project": os.environ.get("WANDB_PROJECT", PROJECT),
        "name": os.environ.get("WANDB_NAME", run_dir.name),
        "dir": os.environ.get("WANDB_DIR", folder),
        "settings": wandb.Settings(init_timeout=INIT_TIMEOUT, finish_timeout=FINISH_TIMEOUT),
        "config": config,
    }
    mode = wandb_mode()
    try:
        if mode in (None, "online") and not wandb.login(prompt=False, verify=False):
            if mode:
                print("W&B: offline, because no API key is set up (wandb login does it)", file=sys.stderr)
            mode = "offline"
        run = wandb.init(mode=mode, **options)
    except wandb.Error as error:
        print(f"W&B: offline, because: {str(error).splitlines()[0]}", file=sys.stderr)
        try:
            run = wandb.init(mode="offline", **options)
        except wandb.Error as again:
            raise RunError(
                f"W&B: {str(again).splitlines()[0]}. Mend WANDB_* or set WANDB_MODE=disabled."
            ) from again
    except ValueError as error:  # from its settings' types
        raise RunError(
            f"W&B refuses its environment: {' '.join(str(error).split())}. Mend WANDB_*."
        ) from error
    run.define_metric("epoch")
    for metric in ("acc", "test_loss", "wrong"):
        run.define_metric(metric, step_metric="epoch")
    return run, borrowed
