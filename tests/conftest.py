"""What the tests share: data to train on, programs to run, and one finished run to look at."""

import gc
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

for name in [name for name in os.environ if name.startswith("WANDB_")]:
    del os.environ[name]  # the user's account
os.environ.setdefault("VISIBLE_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "0,1"))  # for test_gpu.py
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the other tests are of the CPU
# One thread a process, because several run at once.
os.environ |= {"NETRC": os.devnull, "WANDB_CONFIG_DIR": os.devnull, "OMP_NUM_THREADS": "1"}

# No torch here: the process that hands out the tests does without it, and starts two seconds earlier.
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402
from programs import ROOT, run  # noqa: E402
from programs import environment as environment  # noqa: E402

# A run on a few images.
SETTINGS = {"epochs": 2, "batch_size": 64, "lr": 0.005, "l1_size": 16, "l2_size": 32}
SHORT = tuple(str(word) for name, value in SETTINGS.items() for word in (f"--{name}", value))


def write_idx(path: Path, values) -> None:
    """Write a tensor of integers as MNIST's files have them."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes((0x800 + values.dim()).to_bytes(4, "big") + sizes + values.byte().numpy().tobytes())


def write_mnist_files(folder: Path, train: int = 1500, test: int = 500) -> Path:
    """A data_dir with a few drawn digits in files of MNIST's names and format."""
    from sources.drawn import draw_digits

    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count, seed in (("train", train, 5), ("t10k", test, 6)):
        images, labels = draw_digits(count, seed)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images[:, 0])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture
def main(monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess]:
    """Call it like `run` to run a program inside the test's own process: fast, for input that is refused."""

    def call(program: str, *arguments, cwd: Path, **env: str) -> subprocess.CompletedProcess:
        with monkeypatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", [program, *map(str, arguments)])
            for name, value in env.items():
                patch.setenv(name, value)
            capsys.readouterr()
            try:
                status = importlib.import_module(Path(program).stem).main()
            except SystemExit as exit:
                status = exit.code
        return subprocess.CompletedProcess([program, *arguments], status, *capsys.readouterr())

    return call


def assert_one_line_error(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0]


def assert_usage_error(result: subprocess.CompletedProcess, *words: str) -> None:
    """What argparse refuses: a line on the usage, a line on the error."""
    assert result.returncode == 2 and result.stdout == "", result.stderr
    usage, error = result.stderr.splitlines()
    assert usage.startswith("usage: ") and ": error: " in error
    for word in words:
        assert word in error


def contents(run_dir: Path) -> dict[str, bytes]:
    """What a run must reproduce: every CSV file, and the weights."""
    import torch

    files = {str(path.relative_to(run_dir)): path.read_bytes() for path in sorted(run_dir.rglob("*.csv"))}
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True, map_location="cpu")["model"]
    return {**files, **{name: weight.numpy().tobytes() for name, weight in state.items()}}


@pytest.fixture
def faults(record_property) -> Callable[..., None]:
    """Call it with the kind of fault that was survived, and how many."""
    return lambda kind, count=1: record_property("fault survived", [kind, count])


def pytest_collection_finish():
    gc.freeze()  # else the garbage collector searches the libraries again and again, for 0.2 s each time


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


def pytest_terminal_summary(terminalreporter):
    reports = [report for group in terminalreporter.stats.values() for report in group]
    counts = {}
    for report in reports:
        if getattr(report, "when", None) == "call":  # from this process or a worker of pytest-xdist
            for name, value in report.user_properties:
                if name == "fault survived":
                    kind, count = value
                    counts[kind] = counts.get(kind, 0) + count
    if counts:
        terminalreporter.section("faults survived")
        for kind in sorted(counts):
            terminalreporter.write_line(f"{counts[kind]:6}  {kind}")


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], None]], Path]:
    """Call it with a name and a function that fills a folder. One worker calls that, all get the folder."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def make(name: str, fill: Callable[[Path], None]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def small_dir(once) -> Path:
    return once("small", write_mnist_files)


@pytest.fixture(scope="session")
def tiny_dir(once) -> Path:
    """For tests that ask how a run ends, and not how well."""
    return once("tiny", partial(write_mnist_files, train=640, test=100))


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    folder = Path(os.environ.get("MNIST_TABLES_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip("MNIST is not at hand: point MNIST_TABLES_DATA at a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def finished(once, small_dir) -> Path:
    """The run directory of two epochs on `small_dir`."""

    def fill(cwd: Path) -> None:
        flags = ("--log_images", 20, "--export_pt2")
        result = run("train.py", "--data_dir", small_dir, *SHORT, *flags, cwd=cwd)
        assert result.returncode == 0, result.stderr

    return once("finished", fill) / "runs" / "001"
