"""A run on W&B. train.py fills it while it trains, publish.py from a run directory, at any time later."""

import csv
import gc
import logging
import os
import queue
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROJECT, TABLE = "table-quickstart", "test_predictions"  # on W&B: the project, and the key of the table
INIT_TIMEOUT, FINISH_TIMEOUT = 20, 30  # seconds that W&B waits for its server, at the start and at the end
INIT_WAIT = 30  # seconds after which a service that W&B waits for is killed
EPOCH_WAIT, END_WAIT = 10, 40  # seconds that training waits for W&B at most, in an epoch and at the end
MAX_ROWS, MAX_CELLS = 10_000, 200_000  # of a table, if the user sets no number of rows
MAX_WRONG_PICTURES = 1000  # in a table; each takes about a millisecond
MAX_CONFUSION = 100  # classes; W&B cuts larger charts
QUEUE_SIZE = 64  # records (losses of 50 steps, or an epoch) on their way to W&B


class RunError(Exception):
    """The run cannot be recorded or continued. The message says what, where, and what to do."""


def reason(error: Exception) -> str:
    """What an error of W&B says, in one line."""
    text = " ".join(str(error).split()).partition(" [type=")[0]  # pydantic adds how it came to it
    return textwrap.shorten(f"{type(error).__name__}: {text}", 200, placeholder=" ...").rstrip(":. ")


def pictured_ids(config: dict, rows: list[list]) -> list[int]:
    """The ids in the W&B table of `rows` that get a picture: the first, and 1,000 wrong guesses at most."""
    shown = shown_rows(config, rows)
    limit = config.get("log_images", 320)
    first = len(shown) if limit == "all" else min(int(limit), len(shown))
    wrong = [i for i, guess, truth, *_ in shown if guess != truth]
    return sorted({*range(first), *wrong[:MAX_WRONG_PICTURES]})


def shown_rows(config: dict, rows: list[list]) -> list[list]:
    """The first rows, for the W&B table: `img_count` of them, or as many as take it about a second."""
    columns = len(rows[0]) + 1  # the picture's
    return rows[: config.get("img_count") or min(MAX_ROWS, MAX_CELLS // columns)]


def read_table(path: Path) -> tuple[list[str], list[list]]:
    """The columns and rows of a predictions file of a run. Raises any error."""
    with open(path, newline="", encoding="utf-8") as file:
        columns, *lines = csv.reader(file)
    kinds = [float if "score" in name else int for name in columns]
    return columns, [[kind(value) for kind, value in zip(kinds, line)] for line in lines]


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
        # W&B reads these from the environment only. Sending error reports would delay the program's end.
        data_dir = f"{self.folder}/wandb"
        wanted = {"WANDB_DATA_DIR": data_dir, "WANDB_CACHE_DIR": f"{data_dir}/cache", "WANDB_SILENT": "true"}
        wanted["WANDB_ERROR_REPORTING"] = "false"
        given = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
        self.env_empty = [name for name, value in given.items() if not value]
        for name in self.env_empty:  # an empty variable counts as not set; W&B would refuse many
            del os.environ[name]
        self.env_set = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(self.env_set)
        import wandb  # takes half a second, and the other programs do not need it

        self.wandb = wandb
        self.callers_run = None  # a W&B run that the caller has open: its service is never killed
        started = threading.Event()

        def watch() -> None:  # W&B would wait long, or for ever, for a service that hangs
            while not started.wait(INIT_WAIT):
                if not self.callers_run:
                    kill_service()

        threading.Thread(target=watch, daemon=True).start()
        try:
            self.run = self.start(run_id, again)
        except Exception as error:
            self.restore_environment()
            raise RunError(f"W&B: {reason(error)}. Fix WANDB_*, or set WANDB_MODE=disabled.") from error
        finally:
            started.set()
        self.first_step = self.run.starting_step  # W&B has the steps before
        self.log_level = logging.getLogger("wandb").level
        logging.getLogger("wandb").setLevel(logging.CRITICAL)  # else a full disk gives thousands of lines
        # W&B leaves a temporary folder to the garbage collector, and Python warns of that.
        warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)
        self.id = run_id or (secrets.token_hex(4) if self.run.disabled else self.run.id)
        self.jobs = queue.Queue(QUEUE_SIZE)  # (method, arguments), or None at the end
        self.patience = self.epoch_wait  # seconds left to wait in this epoch
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def start(self, run_id: str | None, again: bool):
        """Start the wandb.Run: offline if there is no API key, or no server that answers."""
        if "WANDB_SERVICE" in os.environ:  # else setup() starts W&B's process, and hangs if it dies
            self.callers_run = getattr(self.wandb.setup(), "most_recent_active_run", self.wandb.run)
        mode = os.environ.get("WANDB_MODE")
        if mode in (None, "online") and not self.wandb.login(prompt=False, verify=False):
            if mode:
                print("W&B: offline, because no API key is set up (run wandb login)", file=sys.stderr)
            mode = "offline"
        defaults = {"project": PROJECT, "name": self.folder.name, "dir": str(self.folder)}
        options = {key: os.environ.get(f"WANDB_{key.upper()}", value) for key, value in defaults.items()}
        limits = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT}
        if "WANDB_SILENT" in self.env_set:  # not read any more if the caller has used W&B before
            limits["silent"] = True
        options["settings"] = self.wandb.Settings(**limits, finish_timeout_raises=True)
        options |= {"config": self.config, "id": run_id}
        if self.callers_run:  # leave it alone; $WANDB_RUN_ID may be its id
            options |= {"reinit": "create_new", "id": run_id or secrets.token_hex(4)}
        resume = {"resume": "allow"} if run_id and mode != "offline" and not again else {}
        try:
            with silent_stderr(), self.outside_sweep():  # stderr: W&B's service would print its crash
                return self.wandb.init(mode=mode, **options, **resume)
        except ValueError:  # a variable of the wrong type
            raise
        except Exception as error:  # W&B has many types for a service that is dead
            options["id"] = secrets.token_hex(4)  # W&B does not give up the id of the run that failed
            if not self.callers_run:
                with silent_stderr(), suppress(Exception, SystemExit):
                    self.wandb.teardown()  # of a service that is dead
            with silent_stderr(), self.outside_sweep():
                # It raises the same error again if a variable is wrong.
                run = self.wandb.init(mode="offline", **options)
            print(f"W&B: offline, because of {reason(error)}", file=sys.stderr)
            return run

    @contextmanager
    def outside_sweep(self) -> Iterator[None]:
        """A run beside one of the caller's is no trial of its sweep, or W&B would give it the same id."""
        if not self.callers_run:
            yield
            return
        settings = self.wandb.setup().settings
        saved = settings.sweep_id, settings.sweep_param_path
        settings.sweep_id = settings.sweep_param_path = None
        try:
            yield
        finally:
            settings.sweep_id, settings.sweep_param_path = saved

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
                self.give_up(f"of {reason(error)}")

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
        columns, rows = read_table(predictions)
        self.staging.mkdir(parents=True, exist_ok=True)
        staged_before = set(os.listdir(self.staging))
        charts = {TABLE: self.table(columns, rows)}
        if len(self.classes) <= MAX_CONFUSION:
            classes = {"y_true": [row[2] for row in rows], "preds": [row[1] for row in rows]}
            charts["confusion"] = self.wandb.plot.confusion_matrix(**classes, class_names=self.classes)
        self.run.log(record | charts, step, commit=True)
        charts.clear()  # W&B's temporary files go with them
        self.remove_copies(staged_before)

    def table(self, columns: list[str], rows: list[list]):
        """The W&B table of a predictions file, with the pictures of `pictured_ids`."""
        names = self.classes
        if names == [str(k) for k in range(len(names))]:
            names = range(len(names))  # W&B sorts integers by value
        is_score = ["score" in name for name in columns[1:]]  # the other columns hold classes
        kinds = [int, self.wandb.Image, *(float if score else type(names[0]) for score in is_score)]
        table = self.wandb.Table(columns=[columns[0], "image", *columns[1:]], dtype=kinds)
        pictured = set() if self.images is None else set(pictured_ids(self.config, rows))
        table.data = [  # set directly, to skip W&B's check of every cell, which takes most of the time
            [
                i,
                self.picture(i) if i in pictured else None,
                *(value if score else names[value] for value, score in zip(values, is_score)),
            ]
            for i, *values in shown_rows(self.config, rows)
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
        if not self.ended and not self.callers_run:
            kill_service()  # else this process would wait for it at its end
            with suppress(Exception, SystemExit):  # now, because W&B would raise it at the end
                self.wandb.teardown(exit_code)
        shutil.rmtree(self.scratch, ignore_errors=True)
        logging.getLogger("wandb").setLevel(self.log_level)
        self.restore_environment()
        if self.ended and "WANDB_SILENT" in self.env_set:  # W&B keeps it for all runs of this process
            loud = self.wandb.Settings(silent=False)
            self.wandb.setup(loud)
            self.wandb.termsetup(loud, None)

    def end(self, exit_code: int) -> None:
        if not self.disabled and exit_code == 0:
            self.log_held()
        self.run.finish(exit_code)
        self.ended = True

    def restore_environment(self) -> None:
        for name in self.env_set:
            os.environ.pop(name, None)
        os.environ.update(dict.fromkeys(self.env_empty, ""))

    def address(self, publish: str) -> str:
        """The run's address on W&B, or the command that sends it there; `publish` starts publish.py."""
        if self.run.disabled:
            return "disabled by WANDB_MODE"
        publish = f"{publish} {shlex.quote(self.config['run_dir'])}"
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
