"""A run on W&B. train.py fills it while it trains, publish.py from a run directory, at any time later.

Both use `WandbRun`. It starts this file as a program, in which `Recorder` talks to W&B: building tables
does not hold up training, and training goes on if W&B fails.
"""

import csv
import gc
import json
import logging
import os
import pickle
import queue
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import warnings
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

PROGRAM = os.path.abspath(__file__)
PROJECT, TABLE = "table-quickstart", "test_predictions"  # on W&B: the project, and the key of the table
INIT_TIMEOUT, FINISH_TIMEOUT = 20, 30  # seconds that W&B waits for its server, at the start and at the end
INIT_WAIT = 30  # seconds after which a process that has not started the run is killed
EPOCH_WAIT, END_WAIT = 10, 40  # seconds that training waits for W&B at most, in an epoch and at the end
MAX_ROWS, MAX_CELLS = 10_000, 200_000  # of a table, if the user sets no number of rows
MAX_WRONG_PICTURES = 1000  # in a table; each takes about a millisecond
MAX_CONFUSION = 100  # classes; W&B cuts larger charts
# What W&B writes to its own log about losses, files and artifacts that its server has refused. Left out are
# hardware figures that are too long, and files that it cannot watch, because it sends these at the end.
LOST = "filestream: (?!system)|runfiles: (?!error watching)|file transfer: upload|sender: failed to log"
REFUSED = rf'"level":"ERROR[^"]*","msg":("(?:{LOST})(?:[^"\\]|\\.)*")'
PID = b"process of W&B: "  # on Windows the process says its number, after what others print
ON_WINDOWS = sys.platform == "win32"
NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)  # Python ignores SIGPIPE, but our caller may not
QUEUE_SIZE = 64  # records (losses of 50 steps, or an epoch) on their way to W&B


class RunError(Exception):
    """The run cannot be recorded or continued. The message says what, where, and what to do."""


def reason(error: Exception) -> str:
    """What an error of W&B says, in one line."""
    text = " ".join(str(error).split()).partition(" [type=")[0]  # pydantic appends what it was given
    return textwrap.shorten(f"{type(error).__name__}: {text}", 200, placeholder=" ...").rstrip(":. ")


def pictured_ids(config: dict, rows: list[list]) -> list[int]:
    """The ids in the W&B table of `rows` that get a picture: the first, and 1,000 wrong guesses at most."""
    shown = shown_rows(config, rows)
    limit = config.get("log_images", 320)
    first = len(shown) if limit == "all" else min(int(limit), len(shown))
    wrong = [i for i, guess, truth, *_ in shown if guess != truth]
    return sorted({*range(first), *wrong[:MAX_WRONG_PICTURES]})


def shown_rows(config: dict, rows: list[list]) -> list[list]:
    """The rows of the W&B table: the first `img_count`, or as many as W&B builds in about a second."""
    columns = len(rows[0]) + 1  # and the picture
    return rows[: config.get("img_count") or min(MAX_ROWS, MAX_CELLS // columns)]


def read_table(path: Path) -> tuple[list[str], list[list]]:
    """The columns and rows of a predictions file of a run. Raises any error."""
    with open(path, newline="", encoding="utf-8") as file:
        columns, *lines = csv.reader(file)
    kinds = [float if "score" in name else int for name in columns]
    return columns, [[kind(value) for kind, value in zip(kinds, line)] for line in lines]


class WandbRun:
    """A run on W&B. Records wait in a queue. Training waits a bounded time at most.

    It never prompts: WANDB_MODE decides, else it is online if an API key is set up. After an error or a wait
    that is too long, one line says so, and W&B gets nothing more.

    Args:
        run_dir, config, classes: as in RunLogger. W&B's own files go to `run_dir`.
        images: id -> uint8 (C, H, W), of every picture that a table may show; or None.
        run_id: of the W&B run to resume, or None.
        replace: whether to replace the run of that id on W&B, instead of resuming it.
        waits: seconds to wait for W&B at most, in an epoch and at the end, if not the defaults.

    Attributes: `mode` is online, offline or disabled; it `gave_up` if W&B gets nothing more. W&B has the
    steps before `first_step`. It `lacked_part` of the run if an earlier process did not send all.
    """

    def __init__(self, run_dir, config, classes, images, run_id, replace=False, waits=None):
        self.config, self.images = config, images
        self.folder = run_dir.resolve()
        self.epoch_wait, self.end_wait = waits or (EPOCH_WAIT, END_WAIT)
        self.patience = self.epoch_wait  # seconds left to wait in this epoch
        self.gave_up = self.ended = self.lacked_part = False
        self.stderr = sys.stderr  # kept, because an export redirects sys.stderr
        self.process = self.socket = self.temporary = None
        self.mode, self.first_step, self.url, self.dir = "disabled", 0, "", ""
        if os.environ.get("WANDB_MODE") != "disabled":
            started = self.start(classes, run_id, replace)
            self.mode, run_id, self.first_step, self.url, self.dir = started
        self.id = run_id or secrets.token_hex(4)
        self.killed = False  # by `kill`: then its end is not reported
        self.jobs = queue.Queue(QUEUE_SIZE)  # (method of Recorder, arguments), or None at the end
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()

    def start(self, classes, run_id, replace) -> tuple:
        """Start the process, and the run in it. If that fails, try again offline. Raises RunError."""
        wanted = os.environ.get("WANDB_MODE") or None
        # Why it is offline, if it is. Nothing is said if the user asked for neither mode and has no key.
        problem = "no API key is set up (run wandb login)" if wanted == "online" else None
        settings = {"init_timeout": INIT_TIMEOUT, "finish_timeout": FINISH_TIMEOUT, "silent": True}
        settings |= {"finish_timeout_raises": True, "x_stats_pid": os.getpid()}
        plain = json.loads(json.dumps([self.config, classes], default=str))  # no types of other modules
        for mode in (wanted, "offline"):
            begin, timer = time.monotonic(), threading.Timer(INIT_WAIT, self.kill)  # W&B may wait for ever
            timer.start()
            try:
                self.launch()
                place = sys.path, sys.argv, self.folder
                started = self.call("start", *place, settings, *plain, mode, run_id, replace)
                if started[0] == "offline" and problem:
                    print(f"W&B: offline, because {problem}", file=sys.stderr)
                return started
            except BaseException as error:
                self.kill()
                if not isinstance(error, RunError):
                    raise
                late = time.monotonic() - begin >= INIT_WAIT
                problem = f"it has not started within {INIT_WAIT} s" if late else str(error)
            finally:
                timer.cancel()
                timer.join()  # it must not kill the next process
        raise RunError(f"W&B cannot start, because {problem}. Fix WANDB_*, or set WANDB_MODE=disabled.")

    def launch(self) -> None:
        """Start the process. Its stdin is a socket to this one. Raises RunError."""
        try:
            self.temporary = tempfile.mkdtemp(prefix="wandb-")
            self.socket, theirs = socket.socketpair()
            with theirs:
                for end in (self.socket, theirs):
                    end.setblocking(True)  # the caller may have set a default timeout
                options = {"stdin": theirs, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                options["env"] = environment(self.folder)
                options["env"] |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self.temporary)
                options["start_new_session"] = True  # Ctrl-C does not reach it
                if ON_WINDOWS:  # where stdin cannot be a socket, and a process has no session but a console
                    options |= {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                    options["creationflags"] = subprocess.CREATE_NO_WINDOW
                self.process = subprocess.Popen([sys.executable, PROGRAM], **options)
                if ON_WINDOWS:
                    self.share(theirs)
        except (OSError, TypeError) as error:  # TypeError: sys.executable is None
            raise RunError(f"{sys.executable} cannot start its process ({reason(error)})") from error

    def share(self, theirs: socket.socket) -> None:
        """Give a socket to the process, which says its number: in a venv, Popen has that of a launcher."""
        with self.process.stdin as stdin, self.process.stdout as stdout:
            pid = next((line for line in stdout if line.startswith(PID)), b"")
            stdin.write(theirs.share(int(pid.removeprefix(PID) or 0)))

    def call(self, method: str, *arguments):
        """Call a method of Recorder in the process. Raises RunError: a reason, to be put after "because"."""
        try:
            self.socket.sendall(pickle.dumps((method, arguments)), NO_SIGPIPE)
            with self.socket.makefile("rb") as stream:
                result, problem, stopped = pickle.load(stream)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise RunError("its process has ended") from error
        if stopped:  # by the button on the run's page
            signal.raise_signal(signal.SIGINT)
        if problem:
            raise RunError(problem)
        return result

    def submit(self, method: str, *arguments) -> None:
        """Have Recorder call `log_losses`, `log_epoch` or `log_model`. Waits only if the queue is full."""
        started = time.monotonic()
        try:
            if not self.gave_up and self.mode != "disabled":
                self.jobs.put((method, arguments), timeout=max(0, self.patience))
        except queue.Full:
            self.give_up(f"it holds up training for more than {self.epoch_wait} s an epoch")
        self.patience -= time.monotonic() - started
        if method == "log_epoch":
            self.patience = self.epoch_wait

    def work(self) -> None:
        """What the thread does: hand what is in the queue to the process, until there is None."""
        while job := self.jobs.get():
            method, arguments = job
            try:
                if self.gave_up and method != "end":
                    continue
                send = self.log_epoch if method == "log_epoch" else partial(self.call, method)
                send(*arguments)
                self.ended = method == "end"
            except RunError as error:
                if not self.killed:
                    self.give_up(str(error))
            except Exception as error:  # of any type: the run's own files are complete without W&B
                self.give_up(f"of {reason(error)}")

    def log_epoch(self, step: int, record: dict, predictions: str) -> None:
        """Send the pictures that the process lacks, one by one. Then have it log the epoch and its table."""
        needed = self.call("read_epoch", predictions)
        for index in needed if self.images is not None else ():
            pixels = self.images[index].permute(1, 2, 0).squeeze(2)  # (H, W, 3), or (H, W) if C is 1
            self.call("add_picture", index, pixels.numpy())
        self.call("log_epoch", step, record)

    @property
    def lacks_part(self) -> bool:
        """Whether W&B may lack part of the run, so that publish.py has to replace the W&B run.

        An online run lacks part until it has ended: if it is killed, nobody knows which uploads W&B has.
        """
        return self.lacked_part or self.gave_up or (self.mode == "online" and not self.ended)

    def give_up(self, problem: str) -> None:
        if not self.gave_up:
            self.gave_up = True
            print(f"W&B: no further records, because {problem}", file=self.stderr)

    def finish(self, exit_code: int) -> None:
        """Wait for the uploads, `end_wait` seconds at most. publish.py sends what is missing then."""
        end = time.monotonic() + self.end_wait
        try:
            jobs = [("end", (exit_code,))] if self.process else []
            for job in (*jobs, None):
                with suppress(queue.Full):
                    self.jobs.put(job, timeout=max(0, end - time.monotonic()))
            self.thread.join(max(0, end - time.monotonic()))
            if self.thread.is_alive():
                self.give_up(f"it has not ended within {self.end_wait} s")
            if self.ended:
                with suppress(subprocess.TimeoutExpired):
                    self.process.wait(max(1, end - time.monotonic()))
        finally:  # also after a second Ctrl-C, in a notebook
            self.kill()

    def kill(self) -> None:
        """Kill the process and W&B's own: they may hang and ignore other signals. Delete temporary files."""
        self.killed = True
        if self.process:
            kill_service(self.process.pid)
            self.process.kill()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        if self.socket:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)  # a forked process may have a copy of it
            self.socket.close()
        for folder in filter(None, (self.temporary, self.folder / "wandb/tmp")):
            shutil.rmtree(folder, ignore_errors=True)

    def address(self, publish: str) -> str:
        """The run's address on W&B, or `publish`, the command that sends it there."""
        if self.mode == "disabled":
            return "disabled by WANDB_MODE or `wandb disabled`"
        if self.mode == "offline" or self.gave_up:
            return publish
        return f"{self.url}\n      {publish}" if self.lacks_part else self.url


def environment(folder: Path) -> dict[str, str]:
    """The environment of the process: this one, with W&B's files in `folder`. Raises RunError."""
    main = sys.modules["__main__"]
    defaults = {
        "WANDB_DATA_DIR": f"{folder}/wandb",
        "WANDB_CACHE_DIR": f"{folder}/wandb/cache",
        "WANDB_ERROR_REPORTING": "false",  # it delays the end
        "WANDB_PROGRAM": getattr(main, "__file__", None) or "python",
        "PYTHONSAFEPATH": "1",  # a module beside this file may be named like one of Python's
    }
    if os.path.expanduser("~") == "~":  # a user without an entry in /etc/passwd, as in a container
        defaults["HOME"] = f"{folder}/wandb"  # W&B refuses to start without a home directory
    # An empty variable counts as not set; W&B would refuse many.
    given = {name: value for name, value in os.environ.items() if value or not name.startswith("WANDB_")}
    wandb = sys.modules.get("wandb") if given.pop("WANDB_SERVICE", None) else None
    if wandb:  # the caller has used W&B, and perhaps wandb.login or wandb.setup
        try:
            session = wandb.setup()
        except Exception as error:  # W&B's process, which WANDB_SERVICE names, is not there
            raise RunError(f"of {reason(error)}") from error
        for name in ("api_key", "base_url", "entity", "mode"):
            if value := getattr(session.settings, name):
                defaults[f"WANDB_{name.upper()}"] = value
        # The caller's run, perhaps a trial of a sweep, is not continued.
        if getattr(session, "most_recent_active_run", wandb.run):
            for name in ("RUN_ID", "SWEEP_ID", "SWEEP_PARAM_PATH", "RESUME"):
                given.pop(f"WANDB_{name}", None)
    return defaults | given


def kill_service(parent: int) -> None:
    """Kill the wandb-core that a process has started."""
    if sys.platform == "darwin":
        subprocess.run(["pkill", "-KILL", "-P", str(parent), "wandb-core"])
    if ON_WINDOWS:  # kills the process, too
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(parent)], capture_output=True)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):  # it has ended, or is another program
            pid, rest = stat.read_text().split(" (wandb-core) ")
            if int(rest.split()[1]) == parent:
                os.kill(int(pid), signal.SIGKILL)


# ---- In the process ----
class Recorder:
    """The run on W&B. `WandbRun.call` calls its methods."""

    stopped = False  # whether the run is to stop: the answer to the next call says it

    def start(self, path, argv, folder, settings, config, classes, mode, run_id, replace) -> tuple:
        """Start the wandb.Run as if in the caller's program. Returns mode, id, first step, url, dir."""
        sys.path, sys.argv = path, argv
        import wandb

        self.wandb, self.folder, self.config, self.classes = wandb, folder, config, classes
        self.pictures, self.staged_pictures = {}, {}  # id -> wandb.Image; content -> path
        self.held = None  # the last (record, step) of losses
        if replace:  # not resume, whatever the user's variable says
            os.environ.pop("WANDB_RESUME", None)
        self.scratch, self.staging = folder / "wandb/tmp", folder / "wandb/artifacts/staging"
        if mode in (None, "online") and not wandb.login(prompt=False, verify=False):
            mode = "disabled" if wandb.setup().settings.mode == "disabled" else "offline"
        defaults = {"project": PROJECT, "name": folder.name, "dir": str(folder)}
        options = {key: os.environ.get(f"WANDB_{key.upper()}", value) for key, value in defaults.items()}
        resume = {"resume": "allow"} if run_id and mode != "offline" and not replace else {}
        options |= {"config": config, "id": run_id, "mode": mode}
        # The stop button on the run's page calls this. W&B copies a method together with its object.
        settings["stop_fn"] = lambda: setattr(self, "stopped", True)
        self.run = run = wandb.init(**options, **resume, settings=wandb.Settings(**settings))
        mode = "disabled" if run.disabled else "offline" if run.offline else "online"
        url = run.url if mode == "online" else ""
        run_id = run_id or (None if run.disabled else run.id)
        return mode, run_id, run.starting_step, url, run.settings.sync_dir

    def log_losses(self, steps: Iterable[int], losses: Iterable[float]) -> None:
        """Hold each loss until the next one comes. The last one of an epoch goes into the epoch's record."""
        for step, loss in zip(steps, losses):
            self.log_held()
            self.held = {"loss": loss}, step

    def log_held(self) -> None:
        if self.held and self.held[1] >= self.run.starting_step:
            self.run.log(*self.held, commit=True)
        self.held = None

    def read_epoch(self, predictions: str) -> list[int]:
        """Read a predictions file of the run directory. Returns the ids of the pictures that are needed."""
        self.columns, self.rows = read_table(self.folder / predictions)
        self.pictured = set(pictured_ids(self.config, self.rows))
        return sorted(self.pictured - self.pictures.keys())

    def log_epoch(self, step: int, record: dict) -> None:
        """Log the metrics in `record`, and the table and the confusion matrix of what `read_epoch` read."""
        print(" ".join([f"{name} {value}" for name, value in record.items()]))  # to the run's log on W&B
        if self.held and self.held[1] == step:
            record, self.held = self.held[0] | record, None
        self.log_held()
        if step < self.run.starting_step:
            return
        for metric in record.keys() - {"loss"}:
            self.run.define_metric(metric, step_metric=None if metric == "epoch" else "epoch")
        self.staging.mkdir(parents=True, exist_ok=True)
        staged_before = set(os.listdir(self.staging))
        charts = {TABLE: self.table()}
        if len(self.classes) <= MAX_CONFUSION:
            classes = {"y_true": [row[2] for row in self.rows], "preds": [row[1] for row in self.rows]}
            charts["confusion"] = self.wandb.plot.confusion_matrix(**classes, class_names=self.classes)
        self.run.log(record | charts, step, commit=True)
        charts.clear()  # W&B's temporary files go with them
        self.remove_copies(staged_before)

    def table(self):
        """The W&B table of what `read_epoch` read."""
        columns, names = self.columns, self.classes
        if names == [str(k) for k in range(len(names))]:
            names = range(len(names))  # W&B sorts integers by value
        is_score = ["score" in name for name in columns[1:]]  # the other columns hold classes
        kinds = [int, self.wandb.Image, *(float if score else type(names[0]) for score in is_score)]
        table = self.wandb.Table(columns=[columns[0], "image", *columns[1:]], dtype=kinds)
        table.data = [  # set directly, to skip W&B's check of every cell, which takes most of the time
            [
                i,
                self.pictures.get(i) if i in self.pictured else None,
                *(value if score else names[value] for value, score in zip(values, is_score)),
            ]
            for i, *values in shown_rows(self.config, self.rows)
        ]
        return table

    def add_picture(self, index: int, pixels) -> None:
        """Keep a picture, uint8 (H, W) or (H, W, 3), as a file: W&B would keep its own in $TMPDIR."""
        from PIL import Image

        self.scratch.mkdir(parents=True, exist_ok=True)
        path = self.scratch / f"{index}.png"
        Image.fromarray(pixels).save(path)
        self.pictures[index] = self.wandb.Image(str(path))

    def remove_copies(self, staged_before: set[str]) -> None:
        """Delete the spare copies that W&B 0.31 keeps of a table. Keep the one that its artifact names.

        W&B also copies each picture in every epoch. Those copies become hard links to the first one.
        """
        for _ in range(100):  # W&B keeps the last 100 artifacts in memory, each with a file in $TMPDIR
            self.wandb.Artifact("none", type="none")
        gc.collect()
        for path in Path(self.run.dir, "media/table").glob("*") if self.run.offline else ():
            with suppress(PermissionError):  # Windows keeps a file that W&B's own process still reads
                path.unlink()
        ours = os.environ["WANDB_DATA_DIR"] == f"{self.folder}/wandb"
        if not ours or not self.wandb.__version__.startswith("0.31."):
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

    def log_model(self, names: list[str], metadata: dict) -> None:
        artifact = self.wandb.Artifact("model", type="model", metadata=metadata)
        for name in names:
            artifact.add_file(str(self.folder / name))
        self.run.log_artifact(artifact)

    def end(self, exit_code: int) -> None:
        if exit_code == 0:
            self.log_held()
        self.run.finish(exit_code)
        log = ""
        with suppress(OSError, AttributeError):  # another version of W&B may have no such log
            log = Path(self.run.settings.log_internal).read_text("utf-8", errors="replace")
        if not self.run.offline and (refused := re.search(REFUSED, log)):
            raise ConnectionError(json.loads(refused[1]))  # finish() does not say it


def serve() -> None:
    """What the process does: answer calls until there are no more."""
    if ON_WINDOWS:
        os.write(1, b"\n%b%d\n" % (PID, os.getpid()))
        shared = socket.fromshare(sys.stdin.buffer.read())
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    else:
        shared = socket.socket(fileno=os.dup(0))
    stream = shared.makefile("rwb")
    os.dup2(1, 0)  # /dev/null instead of the socket, because W&B's own process inherits stdin
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    sys.stdout.reconfigure(errors="backslashreplace")
    for number in (signal.SIGINT, signal.SIGTERM):  # the caller says when to stop
        signal.signal(number, signal.SIG_IGN)
    logging.disable()  # a full disk would give thousands of lines
    warnings.simplefilter("ignore")
    recorder, method = Recorder(), None
    while method != "end":
        try:
            method, arguments = pickle.load(stream)
        except (OSError, EOFError):  # the caller has ended
            if ON_WINDOWS:  # elsewhere W&B's own process ends with this one
                with suppress(Exception):
                    recorder.wandb.teardown(1)
            os._exit(1)
        try:
            answer = getattr(recorder, method)(*arguments), None
        except (Exception, SystemExit) as error:
            answer, recorder.held = (None, f"of {reason(error)}"), None
        pickle.dump((*answer, recorder.stopped), stream)
        recorder.stopped = False
        stream.flush()


def end_with(parent: int) -> None:
    """End this process when its parent has ended, even if a process forked from that has the socket."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    serve()
