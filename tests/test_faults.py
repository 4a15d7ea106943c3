"""Faults of machines, networks, disks and people, injected into real runs.

The short version runs with all tests, `python -m pytest -m faults` runs the long one. Both end with a table
of how many faults of each kind were injected and survived. A function that ends in `return train.main()` is
a train.py to which something happens; it runs in a process of its own.
"""

import csv
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, SHORT, assert_one_line_error, contents
from PIL import Image
from programs import environment, left_running, run, start
from test_logging_utils import records
from wandb_server import WandbServer

import compare
import evaluate
import train
import wandb_run
from logging_utils import RunLogger
from model import load_exported
from wandb_run import PROGRAM

pytestmark = pytest.mark.faults
OFF = {"WANDB_MODE": "disabled"}


# Of faults that take the same path through our code, one is injected always, the others on demand.
on_demand = partial(pytest.param, marks=pytest.mark.long)


def times(short: int, long: int):
    """Run a test with `short` faults always, with `long` on demand."""
    return pytest.mark.parametrize("count", [short, on_demand(long)])


@pytest.fixture(scope="session")
def settings(tiny_dir) -> list[str]:
    """The flags of a run that starts, or goes on if it was stopped before."""
    return ["--data_dir", str(tiny_dir), *SHORT, "--run_dir", "run", "--resume"]


@pytest.fixture(scope="session")
def whole(once, settings) -> dict[str, bytes]:
    """What an undisturbed run leaves."""

    def fill(cwd: Path) -> None:
        assert run("train.py", *settings, cwd=cwd, **OFF).returncode == 0

    return contents(once("whole", fill) / "run")


def assert_every_file_is_whole(run_dir: Path) -> None:
    for path in run_dir.rglob("*"):
        if path.name.startswith(".") or "wandb" in path.parts or path.is_dir():
            continue
        if path.suffix == ".json":
            assert isinstance(json.loads(path.read_text()), dict)
        elif path.suffix == ".csv":
            text = path.read_text()
            rows = list(csv.reader(text.splitlines()))
            assert text.endswith("\n") and len({len(row) for row in rows}) == 1, path
            assert len(rows) == 101 or path.name == "metrics.csv"
        elif path.name == "checkpoint.pt":
            assert torch.load(path, weights_only=True)["epoch"] in (1, 2)
        elif path.name == "pictures.pt":
            pictures = torch.load(path, weights_only=True)
            assert len(pictures["ids"]) == len(pictures["images"]) > 0
        else:
            load_exported(path.read_bytes())


def assert_resume_completes(settings: list[str], cwd: Path, whole: dict[str, bytes]) -> None:
    """After a fault the same command line ends as if nothing had happened."""
    result = run("train.py", *settings, cwd=cwd, **OFF)
    assert result.returncode == 0, result.stderr
    assert contents(cwd / "run") == whole
    assert not list((cwd / "run").rglob("*.partial"))


@times(2, 30)
def test_killed_at_a_random_moment(count, settings, whole, tmp_path, faults):
    began = time.monotonic()
    assert run("train.py", *settings, cwd=tmp_path, **OFF).returncode == 0
    duration = time.monotonic() - began
    for i in range(count):
        cwd = tmp_path / str(i)
        cwd.mkdir()
        process = start("train.py", *settings, cwd=cwd, **OFF)
        time.sleep(duration * random.uniform(0, 1))
        process.kill()
        process.communicate()
        assert_every_file_is_whole(cwd)
        assert_resume_completes(settings, cwd, whole)
        faults("SIGKILL at a random moment")


@times(5, 20)
def test_one_line_is_killed_again_and_again_and_ends_with_the_same_bytes(
    count, settings, whole, tmp_path, faults
):
    for _ in range(count):  # the first seconds, the start of a resumed run and the epochs
        process = start("train.py", *settings, cwd=tmp_path, **OFF)
        time.sleep(random.uniform(0, 2.5))
        process.kill()
        process.communicate()
        assert_every_file_is_whole(tmp_path)
        faults("SIGKILL of one command line, again and again")
    assert_resume_completes(settings, tmp_path, whole)


def killed_at_replace(at: int) -> int:
    """Kill it just before (odd `at`) or after a file gets its name, the first file at 1 and 2."""
    replace, count = os.replace, 0

    def killing(*paths):
        nonlocal count
        count += 1
        if count == (at + 1) // 2:
            if at % 2 == 0:
                replace(*paths)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*paths)

    os.replace = killing
    return train.main()


@times(2, 20)
def test_killed_just_before_or_after_a_file_gets_its_name(count, settings, whole, tmp_path, faults):
    for at in range(1, 21) if count == 20 else (8, 17):  # ten files get their names in such a run
        cwd = tmp_path / str(at)
        cwd.mkdir()
        result = run(partial(killed_at_replace, at), *settings, cwd=cwd, **OFF)
        assert result.returncode == -signal.SIGKILL
        assert_every_file_is_whole(cwd)
        assert_resume_completes(settings, cwd, whole)
        faults("SIGKILL before or after a file got its name")


def slow_in_epoch_2() -> int:
    save = train.save_checkpoint

    def save_and_slow_down(*arguments):
        save(*arguments)
        real = train.F.cross_entropy
        train.F.cross_entropy = lambda *a, **options: (time.sleep(0.5), real(*a, **options))[1]

    train.save_checkpoint = save_and_slow_down
    return train.main()


@pytest.mark.parametrize(("number", "mode"), [(signal.SIGTERM, "disabled"), (signal.SIGINT, "offline")])
def test_signal_stops_the_run_between_two_steps(number, mode, settings, whole, tmp_path, faults):
    process = start(slow_in_epoch_2, *settings, "--log_images", 5, cwd=tmp_path, WANDB_MODE=mode)
    assert process.stdout.readline() and "epoch 1/2" in process.stdout.readline()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert error == f"stopped by {number.name}: continue with --run_dir run --resume\n"
    assert_every_file_is_whole(tmp_path)
    assert_resume_completes(settings, tmp_path, whole)
    faults("SIGTERM, Ctrl-C")


def slow_at_finish() -> int:
    wandb_run.WandbRun.finish = lambda *_, **__: (print("finishing", flush=True), time.sleep(60))
    return train.main()


def test_second_ctrl_c_ends_at_once(settings, tmp_path, faults):
    process = start(slow_at_finish, *settings, "--epochs", 50, cwd=tmp_path, **OFF)
    assert process.stdout.readline() and "epoch 1/50" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert any("finishing" in line for line in iter(process.stdout.readline, ""))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == -signal.SIGINT
    assert_every_file_is_whole(tmp_path)
    faults("second Ctrl-C")


def limited_files(size: int) -> int:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    return train.main()


@times(3, 12)
def test_full_disk(count, settings, whole, tmp_path, faults):
    """The system refuses to let any file grow beyond a limit; with each limit another file is the first."""
    limits = [100, 500, 1500, 3000, 8000, 14_000, 50_000, 100_000, 150_000, 200_000, 300_000, 370_000]
    for limit in limits if count == len(limits) else (100, 8000, 200_000):
        cwd = tmp_path / str(limit)
        cwd.mkdir()
        result = run(partial(limited_files, limit), *settings, cwd=cwd, **OFF)
        error = result.stderr
        assert result.returncode == 2 and error.count("\n") == 1, error
        assert error.startswith("error: run/")
        assert_every_file_is_whole(cwd)
        assert_resume_completes(settings, cwd, whole)
        faults("a file that cannot grow")


def test_places_that_cannot_be_written(main, finished, small_dir, tmp_path, faults):
    data = ("--data_dir", small_dir)
    assert_one_line_error(main("train.py", *data, "--run_dir", "/proc/run", cwd=tmp_path), "/proc/run")
    model = finished / "model.pt"
    predictions = ("--predictions", "/proc/p.csv")
    assert_one_line_error(main("evaluate.py", model, *data, *predictions, cwd=tmp_path), "/proc/p.csv")
    page = ("--out", "/proc/page.html", "--no_images")
    assert_one_line_error(main("compare.py", finished, *page, cwd=tmp_path), "/proc/page.html")
    assert os.listdir(tmp_path) == []
    faults("a place that cannot be written", 3)


# ----------------------------------------------------------------------------------------------------------
# W&B

WANDB_FAULTS = {  # fault -> the line that says so. The first six always, the others on demand.
    "refuses the losses": "W&B: no further records, because of ConnectionError: filestream: fatal error",
    "refuses the files": "W&B: no further records, because of ConnectionError: file transfer: upload",
    "refuses connections": "W&B: offline, because of ",
    "is silent": "W&B: offline, because of ",
    "answers slowly": "W&B: no further records, because it has not ended within 4 s",
    "dies in mid-run": "W&B: no further records, because it has not ended within 4 s",
    "answers 500": "W&B: offline, because of ",
    "refuses the key": "W&B: offline, because of ",
    "falls silent in mid-run": "W&B: no further records, because it has not ended within 4 s",
    "falls silent at the end": "W&B: no further records, because it has not ended within 4 s",
}


def impatient() -> int:
    """A train.py that does not wait long for W&B."""
    wandb_run.INIT_TIMEOUT, wandb_run.EPOCH_WAIT, wandb_run.END_WAIT = 4, 1, 4
    return train.main()


def with_short_queue(program) -> int:
    """A program that has to wait for W&B sooner."""
    wandb_run.QUEUE_SIZE = 8
    return program()


def read_times(process) -> list[tuple[float, str]]:
    """The lines of a program's output and when they came. The last is "", when the program has ended."""
    lines = [(time.monotonic(), line) for line in iter(process.stdout.readline, "")]
    process.wait()
    return [*lines, (time.monotonic(), "")]


@pytest.mark.first
@times(6, len(WANDB_FAULTS))
def test_wandb_server_that_fails(count, settings, whole, tmp_path, faults):
    """Without a fault the same run has an empty stderr: see test_online_run_ends_well."""
    with ExitStack() as stack:
        processes = {}
        for fault in list(WANDB_FAULTS)[:count]:  # all at once, because most of the time they wait
            server = stack.enter_context(WandbServer(fault))
            (tmp_path / fault).mkdir()
            flags = (*settings, "--log_images", 5)
            processes[fault] = start(impatient, *flags, cwd=tmp_path / fault, **server.env)
        pool = stack.enter_context(ThreadPoolExecutor(len(processes)))
        outputs = [pool.submit(read_times, process) for process in processes.values()]
        for (fault, process), output in zip(processes.items(), outputs):
            lines, error = output.result(), process.stderr.read()
            process.stdout.close(), process.stderr.close()
            assert process.returncode == 0, error
            run_dir = tmp_path / fault / "run"
            assert contents(run_dir) == whole and (run_dir / "model.pt").exists(), error
            assert error.startswith(WANDB_FAULTS[fault]) and error.count("\n") == 1, error
            times = {line.split()[0]: moment for moment, line in lines if line.strip()}
            assert "publish.py run\n" in "".join(line for _, line in lines)
            assert times["done"] - times["epoch"] < 4 + 10 and lines[-1][0] - times["done"] < 10, times
            faults("W&B's server fails")


def find_wandb(parent: int, of_wandb: bool) -> int | None:
    """Our process for W&B, which `parent` has started, or `of_wandb` W&B's own, which that has started."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(parent).children():
            if PROGRAM in process.cmdline():
                service = [child.pid for child in process.children() if child.name() == "wandb-core"]
                return next(iter(service), None) if of_wandb else process.pid
    return None


def wandb_signalled(name: str, of_wandb: bool = True) -> int:
    """After the first epoch one of the two processes for W&B gets a signal."""
    save = train.save_checkpoint

    def save_and_signal(run_dir, epoch, *rest):
        save(run_dir, epoch, *rest)
        if epoch == 1:
            os.kill(find_wandb(os.getpid(), of_wandb), getattr(signal, f"SIG{name}"))

    train.save_checkpoint = save_and_signal
    return impatient()


def wandb_stopped_at_its_start(of_wandb: bool, again: bool = False) -> int:
    """One of the two processes for W&B gets SIGSTOP as soon as it is there.

    With `again`, so does the one that is started instead.
    """

    def stop() -> None:
        for _ in range(1 + again):
            while (pid := find_wandb(os.getpid(), of_wandb)) in (None, *stopped):
                time.sleep(0.001)
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)

    stopped = []
    threading.Thread(target=stop, daemon=True).start()
    wandb_run.INIT_WAIT = 2 if again else 4  # without `again`, the second start must not take longer
    return impatient()


@pytest.mark.parametrize("of_wandb", [True, on_demand(False)])
def test_wandb_process_is_stopped_at_its_start(of_wandb, settings, whole, tmp_path, faults):
    with WandbServer() as server:
        program = partial(wandb_stopped_at_its_start, of_wandb)
        process = start(program, *settings, cwd=tmp_path, **server.env)
        started, lines, error = time.monotonic(), read_times(process), process.stderr.read()
    process.stdout.close(), process.stderr.close()
    assert process.returncode == 0, error
    assert error.startswith("W&B: offline, because ") and error.count("\n") == 1, error
    assert lines[0][0] - started < 4 + 10 and lines[-1][0] - lines[-2][0] < 10, lines
    assert contents(tmp_path / "run") == whole
    faults("W&B's process stopped, killed or crashed")


def test_wandb_process_that_never_starts_ends_the_program(settings, tmp_path):
    begin = time.monotonic()
    program = partial(wandb_stopped_at_its_start, True, again=True)
    result = run(program, *settings, cwd=tmp_path, WANDB_MODE="offline")
    assert_one_line_error(result, "or set WANDB_MODE=disabled.")
    assert time.monotonic() - begin < 2 * 2 + 12 and not (tmp_path / "run").exists()


SIGNALS = [("STOP", True), ("STOP", False), ("KILL", True), ("KILL", False), ("ABRT", True)]
SIGNALS += [on_demand("ABRT", False), on_demand("SEGV", True), on_demand("SEGV", False)]


@pytest.mark.parametrize(("name", "of_wandb"), SIGNALS)
def test_wandb_process_is_stopped_or_dies(name, of_wandb, settings, whole, tmp_path, faults):
    mode = "offline" if name == "KILL" else "online"
    with WandbServer() as server:
        env = {**server.env, "WANDB_MODE": mode}
        process = start(partial(wandb_signalled, name, of_wandb), *settings, cwd=tmp_path, **env)
        lines, error = read_times(process), process.stderr.read()
    process.stdout.close(), process.stderr.close()
    assert process.returncode == 0, error
    # A crash of W&B's process, a Go program, does not pour its stack over the terminal.
    assert error.startswith("W&B: no further records, because ") and error.count("\n") == 1, error
    times = {line.split()[0]: moment for moment, line in lines if line.strip()}
    assert times["done"] - times["epoch"] < 4 + 10 and lines[-1][0] - times["done"] < 10, times
    assert "publish.py run\n" in "".join(line for _, line in lines)
    assert contents(tmp_path / "run") == whole
    assert not left_running(tmp_path)
    faults("W&B's process stopped, killed or crashed")


@pytest.mark.parametrize("fault", ["falls silent in mid-run", on_demand("STOP")])
def test_training_does_not_wait_for_wandb_in_mid_run(fault, settings, tmp_path, faults):
    """The bound is EPOCH_WAIT in one epoch, 1 s here; then W&B is given up."""
    with WandbServer(None if fault == "STOP" else fault) as server:
        program = partial(wandb_signalled, "STOP") if fault == "STOP" else impatient
        program = partial(with_short_queue, program)
        process = start(program, *settings, "--epochs", 12, cwd=tmp_path, **server.env)
        lines, error = read_times(process), process.stderr.read()
    process.stdout.close(), process.stderr.close()
    assert process.returncode == 0, error
    moments = [moment for moment, line in lines if line.startswith("epoch ")]
    waits = sorted(later - earlier for earlier, later in zip(moments, moments[1:]))
    assert len(moments) == 12 and waits[-1] < 6 and waits[-2] < 5, waits
    (line,) = error.splitlines()
    assert line.startswith("W&B: no further records, because "), error
    assert lines[-1][0] - moments[-1] < 4 + 10 + 10
    faults("W&B hangs in mid-run")


def stopped_after_one_epoch() -> int:
    save = train.save_checkpoint

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    train.save_checkpoint = save_and_stop
    return train.main()


def stopped_in_the_first_epoch() -> int:
    def stop(*_):
        raise KeyboardInterrupt

    train.predict_logits = stop
    return train.main()


def test_online_run_is_resumed_as_the_same_wandb_run(settings, whole, tmp_path):
    with WandbServer() as server:
        for program in (stopped_in_the_first_epoch, stopped_after_one_epoch):
            stopped = run(program, *settings, cwd=tmp_path, **server.env)
            assert stopped.returncode == 130 and stopped.stderr == "stopped by SIGINT\n", stopped.stderr
        (started, *_) = server.asked("UpsertBucket")
        assert started["name"] == json.loads((tmp_path / "run/config.json").read_text())["wandb_id"]
        known = len(server.requests)
        result = run("train.py", "--run_dir", "run", "--resume", cwd=tmp_path, **server.env)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert contents(tmp_path / "run") == whole
    later = [each["name"] for kind, each in server.requests[known:] if kind == "UpsertBucket"]
    assert set(later) == {started["name"]}
    assert f"/runs/{started['name']}\n" in result.stdout
    steps = [json.loads(line)["_step"] for line in server.lines["wandb-history.jsonl"]]
    assert steps == list(range(1, 21))
    epochs = [json.loads(line).get("epoch") for line in server.lines["wandb-history.jsonl"]]
    assert (epochs[9], epochs[19]) == (1, 2)  # the row of an epoch's last step is complete


@pytest.fixture(params=[350, on_demand(0)], ids=["soon full", "full"])
def small_disk(request, tmp_path):
    """A folder on a file system of its own, with a few free KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    with suppress(OSError), open(folder / "filling", "wb") as file:
        file.write(bytes(2**20 - 2**10 * request.param))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_wandb_folder(small_disk, settings, whole, tmp_path, faults):
    env = {"WANDB_MODE": "offline", "WANDB_DIR": str(small_disk), "WANDB_DATA_DIR": str(small_disk)}
    result = run(impatient, *settings, "--log_images", "all", cwd=tmp_path, **env)
    assert result.returncode == 0 and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("W&B: no further records, because of OSError"), result.stderr
    assert contents(tmp_path / "run") == whole
    faults("W&B's folder is full")


def growing(epochs: int) -> int:
    """Log epochs of 10,000 rows. The status is 1 if an epoch leaves too much on the disk or in memory."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10_000, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(10_000) % 10
    logits = 8.0 * torch.nn.functional.one_hot(labels, 10) + 2.1 * torch.randn(
        10_000, 10, generator=generator
    )
    memory, disk, of_wandb = [], [], []
    with RunLogger("run", {}, [str(k) for k in range(10)], images) as log:
        for epoch in range(1, epochs + 1):
            noise = 1 + 0.05 * torch.randn(10_000, 10, generator=generator)
            log.log_epoch(epoch, epoch, logits * noise, labels)
            log.wandb.submit("log_losses", [], [])
            while (
                not log.wandb.jobs.empty() and log.wandb.thread.is_alive()
            ):  # the epoch before it is done then
                time.sleep(0.01)
            left = [path for path in Path(os.environ["TMPDIR"]).rglob("*") if path.is_file()]
            assert left == [], left
            pids = ["self", find_wandb(os.getpid(), of_wandb=False)]
            pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
            memory.append(sum(pages) * 4096 / 2**20)
            for sizes, folder in ((disk, "run"), (of_wandb, "run/wandb")):
                used = subprocess.run(["du", "-sk", folder], capture_output=True, text=True).stdout
                sizes.append(int(used.split()[0]) * 1024 / 1e6)
    print(memory, disk, of_wandb, file=sys.stderr)
    assert not log.wandb.gave_up
    growth, growth_of_wandb = ((sizes[-1] - sizes[1]) / (epochs - 2) for sizes in (disk, of_wandb))
    assert growth <= 4.5 and growth - growth_of_wandb <= 1.6, "MB on the disk an epoch"
    assert memory[-1] - memory[2] <= 20, "MiB of memory"
    return 0


@times(4, 50)
def test_nothing_grows(count, tmp_path, faults):
    (tmp_path / "tmp").mkdir()
    env = {"WANDB_MODE": "offline", "TMPDIR": str(tmp_path / "tmp")}
    process = start(partial(growing, count), cwd=tmp_path, **env)
    _, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    faults("epochs of 10,000 rows leave no more than promised", count)


def sick_in_call(number: int, value: str, gradient: bool) -> int:
    """A loss, or only its gradient, is not finite. Metrics call it, too: at the start, and each epoch."""
    real, calls = train.F.cross_entropy, 0

    def sick(*arguments, **options):
        nonlocal calls
        calls += 1
        loss = real(*arguments, **options)
        if calls == number and gradient:
            loss.register_hook(lambda one: one * float(value))
        return loss * float(value) if calls == number and not gradient else loss

    train.F.cross_entropy = sick
    return train.main()


@pytest.mark.parametrize("value", ["inf", "gradient", on_demand("nan")])
def test_loss_that_is_not_finite(value, settings, whole, tmp_path, faults):
    sick, problem = partial(sick_in_call, 15, value, False), f"The loss is {value} in epoch 2, step 13."
    if value == "gradient":  # of the last step of an epoch: no loss shows it
        sick, problem = partial(sick_in_call, 22, "inf", True), "after step 20, in epoch 2."
    result = run(sick, *settings, cwd=tmp_path, WANDB_MODE="offline")
    assert_one_line_error(result, problem, "The last finished epoch is kept")
    assert records(tmp_path / "run")["exit"][0]["exit_code"] == 1  # failed, says W&B
    assert_every_file_is_whole(tmp_path)
    assert_resume_completes(settings, tmp_path, whole)
    faults("a loss that is not finite")


# ----------------------------------------------------------------------------------------------------------
# Several at once, strange surroundings, long use


@times(1, 5)
def test_two_processes_on_one_run_dir(count, settings, whole, tmp_path, faults):
    for i in range(count):
        cwd = tmp_path / str(i)
        cwd.mkdir()
        both = [start("train.py", *settings, cwd=cwd, **OFF) for _ in range(2)]
        errors = [process.communicate()[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 2], errors
        loser = errors[0] if both[0].returncode else errors[1]
        assert loser.startswith("error: ") and loser.count("\n") == 1
        assert " run" in loser and "another run directory" in loser
        assert contents(cwd / "run") == whole
        faults("two processes on one run")


def test_runs_that_number_themselves_in_the_same_second(settings, whole, tmp_path, faults):
    both = [start("train.py", *settings[:-3], cwd=tmp_path, **OFF) for _ in range(2)]
    for process in both:
        assert process.communicate() and process.returncode == 0
    assert sorted(os.listdir(tmp_path / "runs")) == ["001", "002"]
    assert all(contents(tmp_path / "runs" / name) == whole for name in ("001", "002"))
    faults("runs named in the same second", 2)


def test_strange_surroundings(settings, whole, tmp_path, faults):
    """No HOME, another encoding of names, ASCII output, and warnings that are errors."""
    cwd = tmp_path / "Größe 图 folder"
    cwd.mkdir()
    strange = ["env", "-u", "HOME", "LC_ALL=C", "PYTHONIOENCODING=ascii", sys.executable, "-W", "error"]
    command, env = [*strange, ROOT / "train.py", *settings], environment(WANDB_MODE="offline")
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert contents(cwd / "run") == whole
    faults("strange surroundings", 4)


def test_home_that_cannot_be_written(settings, whole, tmp_path, faults):
    result = run("train.py", *settings, cwd=tmp_path, HOME="/proc", WANDB_MODE="offline")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert contents(tmp_path / "run") == whole
    faults("strange surroundings")


def without_output() -> int:
    """A train.py whose standard output and error were closed before Python started."""
    os.close(1), os.close(2)
    sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None
    return train.main()


def test_no_output_at_all(settings, whole, tmp_path, faults):
    assert run(without_output, *settings, cwd=tmp_path, WANDB_MODE="offline").returncode == 0
    assert contents(tmp_path / "run") == whole
    faults("strange surroundings")


def test_reader_that_leaves(settings, whole, tmp_path, faults):
    process = start("train.py", *settings, cwd=tmp_path, **OFF)
    process.stdout.readline()
    process.stdout.close()  # as `head -1` does
    assert process.stderr.read() == "stopped: nothing reads the output any more\n"
    assert process.wait() == 128 + signal.SIGPIPE
    process.stderr.close()
    assert_every_file_is_whole(tmp_path)
    assert_resume_completes(settings, tmp_path, whole)
    faults("output into `head`")


def many_runs(count: int) -> int:
    """Train again and again in one process. The exit status is 1 if something grows with each run."""

    def state() -> tuple[float, int, int, int]:
        gc.collect()
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
        left = os.listdir(os.environ["TMPDIR"])
        return memory, threading.active_count(), len(os.listdir("/proc/self/fd")), len(left)

    settings = sys.argv[1:]
    for i in range(count):
        sys.argv[1:] = [*settings, "--run_dir", f"run{i}"]
        assert train.main() == 0
        if i == 1:
            before = state()
    after = state()
    print(before, after, file=sys.stderr)
    assert after[0] - before[0] < 6 * (count - 2) + 30, "memory"  # MiB
    assert after[1:] == before[1:], "threads, files, temporary files"
    return 0


@times(3, 20)
def test_runs_in_one_process_leave_nothing_behind(count, settings, tmp_path, faults):
    flags = (*settings[:-3], "--epochs", 1, "--img_count", 20, "--log_images", 5)
    (tmp_path / "tmp").mkdir()
    env = {"WANDB_MODE": "offline", "TMPDIR": str(tmp_path / "tmp")}
    result = run(partial(many_runs, count), *flags, cwd=tmp_path, **env)
    assert result.returncode == 0, result.stderr
    assert left_behind(tmp_path / "tmp") == []
    faults("runs in one process", count)


def left_behind(folder: Path) -> list[str]:
    """Temporary files of programs that have ended, but for torch's empty folder for compiled code."""
    return [name for name in os.listdir(folder) if not name.startswith("torchinductor_")]


@pytest.mark.long
def test_a_hundred_short_runs_leave_nothing_behind(tiny_dir, tmp_path, faults):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    flags = ("--data_dir", tiny_dir, "--epochs", 1, "--img_count", 20)
    env = {"TMPDIR": str(temporary), "WANDB_MODE": "offline"}
    for _ in range(100):
        assert run("train.py", *flags, cwd=tmp_path, **env).returncode == 0
    assert len(os.listdir(tmp_path / "runs")) == 100 and left_behind(temporary) == []
    assert not left_running(tmp_path)
    faults("short runs in a row", 100)


# ----------------------------------------------------------------------------------------------------------
# Files that are not what they say


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Flip bits, cut, double, insert, or write a huge number somewhere."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 50))):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(6)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + rng.randrange(1, 100)]
        elif kind == 3:
            content[at:at] = content[at : at + rng.randrange(1, 1000)]
        elif kind == 4:
            content[at : at + 8] = rng.choice((b"\xff" * 8, b"\x7f" + b"\xff" * 7, bytes(8)))
        else:
            words = (
                b"null",
                b"[]",
                b"{}",
                b"1e999",
                b"-1",
                b"9" * 400,
                b'"',
                b",",
                b"\n",
                b"nan",
                b"\xff\xfe",
            )
            content[at:at] = rng.choice(words)
    return bytes(content)


TEXT_VALUES = ("null", "[]", "{}", '"x"', "-1", "1e999", "9" * 400, "true", '[["deep"]]', "[" * 5000)


def fuzz(kind: str, count: int, seed: int, folder: Path, data_dir: Path) -> int:
    """Feed `count` mutated files of a kind to the program that reads them."""
    rng, run_dir = random.Random(seed), folder / "run"
    path = run_dir / {"predictions": "predictions/epoch-002.csv"}.get(kind, kind)
    if kind == "picture.png":
        Image.effect_noise((90, 60), 50).save(path)
    original = path.read_bytes()
    program = compare
    if kind in ("model.pt", "model.pt2"):
        program, sys.argv = evaluate, ["evaluate.py", str(path), "--data_dir", str(data_dir)]
    elif kind == "picture.png":
        program, sys.argv = evaluate, ["evaluate.py", str(run_dir / "model.pt"), str(path)]
    else:
        sys.argv = ["compare.py", str(run_dir), "--out", f"{folder}/page.html", "--data_dir", str(data_dir)]
    for i in range(count):
        if path.suffix == ".json" and i % 2:  # well-formed, but of wrong types
            name = rng.choice(list(json.loads(original)))
            text = json.dumps({**json.loads(original), name: "VALUE"})
            path.write_text(text.replace('"VALUE"', rng.choice(TEXT_VALUES)))
        else:
            # zipfile takes a file with bytes in front, but torch does not.
            path.write_bytes(b"?" * 100 + original if i == 0 else mutate(original, rng))
        signal.alarm(60)  # a hang ends the process
        status = program.main()
        assert status in (0, 2), status
    signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < 2, f"{peak} GiB"
    return 0


TEXTS = ["predictions", "config.json", "summary.json", "metrics.csv"]


@pytest.mark.parametrize("kind", ["model.pt", "model.pt2", "picture.png", *TEXTS])
@times(20, 400)
def test_mutated_files_end_in_one_line(kind, count, finished, small_dir, tmp_path, faults):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("wandb"))
    result = run(partial(fuzz, kind, count, 0, tmp_path, small_dir), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stderr.splitlines()
    assert [line for line in lines if not line.startswith("error: ")] == []
    assert len(lines) <= count
    faults("mutated files", count)
