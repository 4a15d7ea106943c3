"""What the tests share: data to train on, programs to run, and one finished run to look at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sources.drawn import draw_digits

ROOT = Path(__file__).parent.parent
SHORT = ("--epochs", "2", "--batch_size", "64", "--lr", "0.005")  # a run on a few images


def write_idx(path: Path, values: torch.Tensor) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    path.write_bytes((0x800 + values.dim()).to_bytes(4, "big") + sizes + values.byte().numpy().tobytes())


def write_mnist_files(folder: Path, train: int = 1500, test: int = 500) -> Path:
    """A data_dir with a few drawn digits in files of MNIST's names and format."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count, seed in (("train", train, 5), ("t10k", test, 6)):
        images, labels = draw_digits(count, seed)
        write_idx(raw / f"{prefix}-images-idx3-ubyte", images[:, 0])
        write_idx(raw / f"{prefix}-labels-idx1-ubyte", labels)
    return folder


def environment(**extra: str) -> dict:
    """The environment without the user's W&B account."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**kept, "NETRC": os.devnull, "WANDB_CONFIG_DIR": os.devnull, **extra}


def run(program: str, *arguments, cwd: Path, source: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    """Run one of the programs as a person without a terminal would."""
    command = [sys.executable, str(source / program), *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**env), capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def assert_one_line_error(result: subprocess.CompletedProcess, *words: str) -> None:
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    for word in words:
        assert word in lines[0]


def contents(run_dir: Path) -> dict[str, bytes]:
    """What a run must reproduce: every CSV file, and the weights."""
    files = {str(path.relative_to(run_dir)): path.read_bytes() for path in sorted(run_dir.rglob("*.csv"))}
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True, map_location="cpu")["model"]
    return {**files, **{name: weight.numpy().tobytes() for name, weight in state.items()}}


FAULTS = {}  # kind -> how many were injected and survived


@pytest.fixture
def faults():
    """Call it with the kind of fault that was survived, and how many."""

    def survived(kind: str, count: int = 1) -> None:
        FAULTS[kind] = FAULTS.get(kind, 0) + count

    return survived


def pytest_terminal_summary(terminalreporter):
    if FAULTS:
        terminalreporter.section("faults survived")
        for kind, count in FAULTS.items():
            terminalreporter.write_line(f"{count:6}  {kind}")


@pytest.fixture(scope="session")
def small_dir(tmp_path_factory) -> Path:
    return write_mnist_files(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    folder = Path(os.environ.get("MNIST_TABLES_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip("MNIST is not at hand: point MNIST_TABLES_DATA at a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_dir) -> Path:
    """The run directory of two epochs on `small_dir`."""
    cwd = tmp_path_factory.mktemp("finished")
    flags = ("--log_images", 20, "--export_pt2")
    result = run("train.py", "--data_dir", small_dir, *SHORT, *flags, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd / "runs" / "001"
