"""What machines, networks, disks and people do to a run, really done to it.

The short version runs with all tests, `python -m pytest -m faults` runs the long one. Both end with a table
of how many faults of each kind were injected and survived.
"""

import csv
import http.server
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
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHORT, assert_one_line_error, contents, environment, run, write_mnist_files
from PIL import Image
from test_logging_utils import records

from model import load_exported

pytestmark = pytest.mark.faults
TRAIN = ROOT / "train.py"


def times(short: int, long: int):
    """Run a test with `short` faults always, with `long` on demand."""
    return pytest.mark.parametrize("count", [short, pytest.param(long, marks=pytest.mark.long)])


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    return write_mnist_files(tmp_path_factory.mktemp("tiny"), train=640, test=100)


@pytest.fixture(scope="session")
def settings(tiny_dir) -> list[str]:
    return ["--data_dir", str(tiny_dir), *SHORT, "--run_dir", "run"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, settings) -> dict[str, bytes]:
    """What a run leaves that nothing happened to."""
    cwd = tmp_path_factory.mktemp("whole")
    assert run("train.py", *settings, cwd=cwd, WANDB_MODE="disabled").returncode == 0
    return contents(cwd / "run")


def start(settings: list[str], cwd: Path, program: str | None = None, **options) -> subprocess.Popen:
    """Start train.py, or a Python program that imports it, without waiting."""
    command = [sys.executable, *(["-c", program] if program else [TRAIN]), *settings]
    env = environment(PYTHONPATH=str(ROOT), **options.pop("env", {"WANDB_MODE": "disabled"}))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, cwd=cwd, env=env, **{**pipes, **options})


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
        else:
            load_exported(path)


def assert_resume_completes(settings: list[str], cwd: Path, whole: dict[str, bytes]) -> None:
    """After a fault the run goes on, or begins where it had not yet, and ends as if nothing had happened."""
    begun = (cwd / "run" / "config.json").exists()
    result = run("train.py", *settings, *(["--resume"] if begun else []), cwd=cwd, WANDB_MODE="disabled")
    assert result.returncode == 0, result.stderr
    assert contents(cwd / "run") == whole
    assert not list((cwd / "run").rglob("*.partial"))


@times(2, 30)
def test_killed_at_a_random_moment(count, settings, whole, tmp_path, faults):
    began = time.monotonic()
    assert run("train.py", *settings, cwd=tmp_path, WANDB_MODE="disabled").returncode == 0
    duration = time.monotonic() - began
    for i in range(count):
        cwd = tmp_path / str(i)
        cwd.mkdir()
        process = start(settings, cwd)
        time.sleep(duration * random.uniform(0.3, 1))  # before that it imports
        process.kill()
        process.communicate()
        assert_every_file_is_whole(cwd)
        assert_resume_completes(settings, cwd, whole)
        faults("SIGKILL at a random moment")


KILL_AT_REPLACE = """
import os, signal, sys, train
at, replace, seen = int(sys.argv.pop()), os.replace, 0
def killing(*paths):
    global seen
    seen += 1
    if seen == (at + 1) // 2:
        if at % 2 == 0:
            replace(*paths)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
os.replace = killing
sys.exit(train.main())
"""


@times(2, 20)
def test_killed_just_before_or_after_a_file_gets_its_name(count, settings, whole, tmp_path, faults):
    for at in range(1, 21) if count == 20 else (8, 17):  # ten files get their names in such a run
        cwd = tmp_path / str(at)
        cwd.mkdir()
        process = start([*settings, str(at)], cwd, KILL_AT_REPLACE)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert_every_file_is_whole(cwd)
        assert_resume_completes(settings, cwd, whole)
        faults("SIGKILL before or after a file got its name")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_run_between_two_steps(number, settings, whole, tmp_path, faults):
    process = start([*settings, "--log_images", "5"], tmp_path, env={"WANDB_MODE": "offline"})
    assert process.stdout.readline() and "epoch 1/2" in process.stdout.readline()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert error == f"stopped by {number.name}: python train.py --run_dir run --resume goes on\n"
    assert_every_file_is_whole(tmp_path)
    assert_resume_completes(settings, tmp_path, whole)
    faults("SIGTERM, Ctrl-C")


SLOW_FINISH = """
import sys, time, logging_utils, train
logging_utils.WandbRun.finish = lambda *_, **__: (print("finishing", flush=True), time.sleep(60))
sys.exit(train.main())
"""


def test_second_ctrl_c_ends_at_once(settings, tmp_path, faults):
    process = start([*settings, "--epochs", "50"], tmp_path, SLOW_FINISH)
    assert process.stdout.readline() and "epoch 1/50" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    while "finishing" not in process.stdout.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=5)
    assert process.returncode == -signal.SIGINT
    assert_every_file_is_whole(tmp_path)
    faults("second Ctrl-C")


@times(3, 12)
def test_full_disk(count, settings, whole, tmp_path, faults):
    """The system refuses to let any file grow beyond a limit; with each limit another file is the first."""
    limits = [100, 500, 1500, 3000, 8000, 14000, 50_000, 200_000, 240_000, 400_000, 600_000, 700_000]
    for limit in limits if count == len(limits) else (100, 8000, 400_000):
        cwd = tmp_path / str(limit)
        cwd.mkdir()

        def bound(limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = start(settings, cwd, preexec_fn=bound)
        _, error = process.communicate()
        assert process.returncode == 2 and error.count("\n") == 1, error
        assert error.startswith("error: ") and "run" in error
        assert_every_file_is_whole(cwd)
        assert_resume_completes(settings, cwd, whole)
        faults("a file that cannot grow")


def test_places_that_cannot_be_written(finished, tiny_dir, small_dir, tmp_path, faults):
    data = ("--data_dir", small_dir)
    assert_one_line_error(run("train.py", *data, "--run_dir", "/proc/run", cwd=tmp_path), "/proc/run")
    model = finished / "model.pt"
    predictions = ("--predictions", "/proc/p.csv")
    assert_one_line_error(run("evaluate.py", model, *data, *predictions, cwd=tmp_path), "/proc/p.csv")
    page = ("--out", "/proc/page.html", "--no_images")
    assert_one_line_error(run("compare.py", finished, *page, cwd=tmp_path), "/proc/page.html")
    assert os.listdir(tmp_path) == []
    faults("a place that cannot be written", 3)


# ----------------------------------------------------------------------------------------------------------
# W&B

BUCKET = {"id": "x", "name": "run", "project": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}}
ANSWERS = {  # to the queries of a run that starts and logs
    "upsertBucket": {"upsertBucket": {"bucket": {**BUCKET, "config": "{}"}, "inserted": True}},
    "query Viewer": {"viewer": {"id": "v", "entity": "e", "username": "u", "teams": {"edges": []}}},
    "query ArtifactType": {"project": {"artifact": None}},
}


class WandbServer(http.server.ThreadingHTTPServer):
    """As much of W&B's server as a run needs to start, and a fault, if it is one of those below."""

    def __init__(self, fault: str):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0))).decode(errors="replace")
                server.bodies.append(body)
                data = next((answer for query, answer in ANSWERS.items() if query in body), {})
                if fault == "answers slowly":
                    time.sleep(1.5)
                status = {"answers 500": 500, "refuses the key": 401}.get(fault, 200)
                content = json.dumps({"data": data}).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                if fault == "dies in mid-run" and "upsertBucket" in body:
                    threading.Thread(target=server.shutdown).start()
                    server.socket.close()

            do_GET = do_PUT = do_POST

            def log_message(self, *_):
                pass

        self.bodies = []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        pass

    def server_close(self):
        self.shutdown()  # or its thread would ask the closed socket for ever
        super().server_close()


IMPATIENT = (
    "import sys, logging_utils as l, train; l.INIT_TIMEOUT = l.FINISH_TIMEOUT = 4; sys.exit(train.main())"
)


@pytest.mark.parametrize("fault", ["answers 500", "refuses the key", "answers slowly", "dies in mid-run"])
def test_wandb_server_that_fails(fault, settings, whole, tmp_path, faults):
    server = WandbServer(fault)
    url = f"http://127.0.0.1:{server.server_port}"
    env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url}
    out, error = start([*settings, "--log_images", "5"], tmp_path, IMPATIENT, env=env).communicate(
        timeout=120
    )
    server.server_close()
    assert contents(tmp_path / "run") == whole and (tmp_path / "run" / "model.pt").exists(), error
    assert [line for line in error.splitlines() if line.startswith("W&B: ")], error
    assert "wandb sync run/wandb/" in out
    faults("W&B's server fails")


STOP_AFTER_ONE = """
import sys, train
save = train.save_checkpoint
def save_and_stop(path, epoch, *rest):
    save(path, epoch, *rest)
    raise KeyboardInterrupt
train.save_checkpoint = save_and_stop
sys.exit(train.main())
"""


STOP_IN_THE_FIRST = """
import sys, train
def stop(*arguments):
    raise KeyboardInterrupt
train.infer = stop
sys.exit(train.main())
"""


@pytest.mark.parametrize("program", [STOP_AFTER_ONE, STOP_IN_THE_FIRST])
def test_online_run_goes_on_as_the_same_wandb_run(program, settings, whole, tmp_path):
    server = WandbServer("none")
    url = f"http://127.0.0.1:{server.server_port}"
    env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url}
    start(settings, tmp_path, program, env=env).communicate(timeout=120)
    first = json.loads((tmp_path / "run/config.json").read_text())["wandb_id"]
    server.bodies.clear()
    out, error = start(["--run_dir", "run", "--resume"], tmp_path, env=env).communicate(timeout=120)
    server.server_close()
    assert contents(tmp_path / "run") == whole, error
    started = [json.loads(body)["variables"] for body in server.bodies if "upsertBucket" in body]
    assert started and started[0]["name"] == first, started


WANDB_DIES = """
import subprocess, sys, train
save = train.save_checkpoint
def save_and_kill(path, epoch, *rest):
    save(path, epoch, *rest)
    subprocess.run(["pkill", "-9", "-P", str(__import__("os").getpid()), "wandb"])
train.save_checkpoint = save_and_kill
sys.exit(train.main())
"""


def test_wandb_process_killed_in_mid_run(settings, whole, tmp_path, faults):
    process = start(settings, tmp_path, WANDB_DIES, env={"WANDB_MODE": "offline"})
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert error.startswith("W&B: no further records, because: ") and "Traceback" not in error
    assert "wandb sync run/wandb/offline-run" in out
    assert contents(tmp_path / "run") == whole
    faults("W&B's process killed")


SICK = """
import sys, train
real, calls = train.F.cross_entropy, 0
def sick(*arguments, **options):
    global calls
    calls += 1
    return real(*arguments, **options) * (float(VALUE) if calls == 15 else 1)
train.F.cross_entropy = sick
sys.exit(train.main())
"""


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_loss_that_is_no_number(value, settings, whole, tmp_path, faults):
    process = start(settings, tmp_path, SICK.replace("VALUE", repr(value)), env={"WANDB_MODE": "offline"})
    _, error = process.communicate()
    assert process.returncode == 2, error
    assert error.startswith(f"error: the loss is {value} in epoch 2, step 14. ") and error.count("\n") == 1
    assert records(tmp_path / "run")["exit"][0]["exit_code"] == 1  # failed, says W&B
    assert_every_file_is_whole(tmp_path)
    assert_resume_completes(settings, tmp_path, whole)
    faults("a loss that is no number")


# ----------------------------------------------------------------------------------------------------------
# Several at once, strange surroundings, long use


@times(1, 5)
def test_two_processes_on_one_run_dir(count, settings, whole, tmp_path, faults):
    for i in range(count):
        cwd = tmp_path / str(i)
        cwd.mkdir()
        both = [start(settings, cwd) for _ in range(2)]
        errors = [process.communicate()[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 2], errors
        loser = errors[0] if both[0].returncode else errors[1]
        assert loser.startswith("error: ") and loser.count("\n") == 1 and "--run_dir run" in loser
        assert contents(cwd / "run") == whole
        faults("two processes on one run")


def test_runs_that_number_themselves_in_the_same_second(settings, whole, tmp_path, faults):
    both = [start(settings[:-2], tmp_path) for _ in range(2)]
    for process in both:
        assert process.communicate() and process.returncode == 0
    assert sorted(os.listdir(tmp_path / "runs")) == ["001", "002"]
    assert all(contents(tmp_path / "runs" / name) == whole for name in ("001", "002"))
    faults("runs named in the same second", 2)


SURROUNDINGS = {
    "no HOME": "env -u HOME {python} {train} {settings}",
    "a HOME that cannot be written": "env HOME=/proc {python} {train} {settings}",
    "LC_ALL=C": "env LC_ALL=C {python} {train} {settings}",
    "ASCII output": "env PYTHONIOENCODING=ascii {python} {train} {settings}",
    "no output at all": "{python} {train} {settings} >&- 2>&-",
    "python -O": "{python} -O {train} {settings}",
    "python -W error": "{python} -W error -W ignore::ResourceWarning {train} {settings}",
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_strange_surroundings(name, settings, whole, tmp_path, faults):
    cwd = tmp_path / "Größe 图 folder"
    cwd.mkdir()
    words = {"python": sys.executable, "train": TRAIN, "settings": " ".join(settings)}
    command, env = SURROUNDINGS[name].format(**words), environment(WANDB_MODE="offline")
    result = subprocess.run(["sh", "-c", command], cwd=cwd, env=env, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert contents(cwd / "run") == whole
    faults("strange surroundings")


def test_reader_that_leaves(settings, whole, tmp_path, faults):
    command = f"{sys.executable} {TRAIN} {' '.join(settings)} | head -1"
    env = environment(WANDB_MODE="disabled")
    result = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert result.stderr == "stopped: nothing reads the output any more\n"
    assert_every_file_is_whole(tmp_path)
    both = f"set -o pipefail; {command.replace(' | ', ' 2>&1 | ')}".replace(
        "--run_dir run", "--run_dir both"
    )
    status = subprocess.run(["bash", "-c", both], cwd=tmp_path, env=env, capture_output=True).returncode
    assert status == 128 + signal.SIGPIPE  # its message had nowhere to go
    assert_resume_completes(settings, tmp_path, whole)
    faults("output into `head`")


LEAKS = """
import gc, os, sys, threading, torch, train
from pathlib import Path
def state():
    gc.collect()
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
    left = os.listdir(os.environ["TMPDIR"])
    return memory, threading.active_count(), len(os.listdir("/proc/self/fd")), len(left)
settings, count = sys.argv[1:-1], int(sys.argv[-1])
for i in range(count):
    sys.argv[1:] = [*settings, "--run_dir", f"run{i}"]
    assert train.main() == 0
    if i == 2:
        before = state()
after = state()
print(before, after, file=sys.stderr)
assert after[0] - before[0] < 6 * (count - 3) + 30, "memory"  # MiB
assert after[1:3] == before[1:3], "threads, files"
assert after[3] <= before[3] + 100, "temporary files"  # W&B keeps those of its last 100 artifacts
"""


@times(5, 20)
def test_runs_in_one_process_leave_nothing_behind(count, settings, tmp_path, faults):
    arguments = [*settings[:-2], "--epochs", "1", "--img_count", "20", "--log_images", "5", str(count)]
    (tmp_path / "tmp").mkdir()
    env = {"WANDB_MODE": "offline", "TMPDIR": str(tmp_path / "tmp")}
    process = start(arguments, tmp_path, LEAKS, env=env)
    _, error = process.communicate()
    assert process.returncode == 0, error
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
    for _ in range(100):
        assert (
            run("train.py", *flags, cwd=tmp_path, TMPDIR=str(temporary), WANDB_MODE="offline").returncode
            == 0
        )
    assert len(os.listdir(tmp_path / "runs")) == 100 and left_behind(temporary) == []
    mine = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True)
    assert mine.stdout == ""
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


def fuzz(kind: str, count: int, seed: int, folder: str, data_dir: str) -> None:
    """Feed `count` mutated files of a kind to the program that reads them. Runs in a process of its own."""
    import compare
    import evaluate

    rng, run_dir = random.Random(seed), Path(folder) / "run"
    path = run_dir / {"predictions": "predictions/epoch-002.csv"}.get(kind, kind)
    if kind == "picture.png":
        Image.effect_noise((90, 60), 50).save(path)
    original = path.read_bytes()
    program = compare
    if kind in ("model.pt", "model.pt2"):
        program, sys.argv = evaluate, ["evaluate.py", str(path), "--data_dir", data_dir]
    elif kind == "picture.png":
        program, sys.argv = evaluate, ["evaluate.py", str(run_dir / "model.pt"), str(path)]
    else:
        sys.argv = ["compare.py", str(run_dir), "--out", f"{folder}/page.html", "--data_dir", data_dir]
    for i in range(count):
        if path.suffix == ".json" and i % 2:  # well-formed, but of wrong types
            name = rng.choice(list(json.loads(original)))
            text = json.dumps({**json.loads(original), name: "VALUE"})
            path.write_text(text.replace('"VALUE"', rng.choice(TEXT_VALUES)))
        else:
            path.write_bytes(mutate(original, rng))
        signal.alarm(60)  # a hang ends the process
        status = program.main()
        assert status in (0, 2), status
    signal.alarm(0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    assert peak < 2, f"{peak} GiB"


FUZZ = (
    "import sys; from test_faults import fuzz; kind, n, *rest = sys.argv[1:]; fuzz(kind, int(n), 0, *rest)"
)


TEXTS = ["predictions", "config.json", "summary.json", "metrics.csv"]


@pytest.mark.parametrize("kind", ["model.pt", "model.pt2", "picture.png", *TEXTS])
@times(20, 400)
def test_mutated_files_end_in_one_line(kind, count, finished, small_dir, tmp_path, faults):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("wandb"))
    path = f"{ROOT}:{ROOT / 'tests'}"
    command = [sys.executable, "-c", FUZZ, kind, str(count), str(tmp_path), str(small_dir)]
    result = subprocess.run(command, env=environment(PYTHONPATH=path), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr[-3000:]
    assert len(lines) <= count
    faults("mutated files", count)
