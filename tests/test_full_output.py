"""Programs whose output goes to a full disk or a reader that has gone say so. Warnings may be lost."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import ROOT, environment, stub_torch

import program
from sources.errors import warn

FULL = "/dev/full"
pytestmark = pytest.mark.skipif(not Path(FULL).exists(), reason="no device that is always full")
ERROR = "error: the output: No space left on device. Check the name, the space and the permissions.\n"


def fill_output(monkeypatch, text: str, error: Exception | None = None) -> None:
    """Print to a full device, in a program that perhaps ends with an error of its own."""

    def main() -> None:
        print(text)
        if error:
            raise error

    with open(FULL, "w") as full:
        for name in ("stdout", "__stdout__"):
            monkeypatch.setattr(sys, name, full)
        assert program.exit_status(main, program.ConfigError) == 2
        full.flush()  # as Python does at exit


@pytest.mark.parametrize("text", ["short", "long" * 10_000])
def test_full_output_is_named(text, monkeypatch, capsys):
    fill_output(monkeypatch, text)
    assert capsys.readouterr().err == ERROR


def test_error_of_the_program_is_the_one_line_though_the_output_is_full(monkeypatch, capsys):
    fill_output(monkeypatch, "short", program.ConfigError("--lr is wrong."))
    assert capsys.readouterr().err == "error: --lr is wrong.\n"


def test_other_errors_do_not_blame_the_output(capsys, tmp_path):
    assert program.exit_status(lambda: open(tmp_path / "no" / "file")) == 2
    assert program.exit_status(lambda: os.close(12345)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and not any("the output" in line for line in lines)


def test_full_stderr_leaves_the_status(monkeypatch):
    with open(FULL, "w", buffering=1) as full:
        for name in ("stderr", "__stderr__"):
            monkeypatch.setattr(sys, name, full)
        assert program.exit_status(lambda: open("/no/such/file")) == 2
        full.flush()  # as Python does at exit


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_warnings_that_nothing_takes_do_not_end_a_program(kind, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    done = []

    def main() -> None:
        for _ in range(2):
            warn("a folder has no test set")
        print("a long line\n" * 10_000, file=sys.stderr, flush=True)
        done.append(True)

    with open(FULL if kind == "full" else writer, "w", buffering=1) as stream:
        for name in ("stderr", "__stderr__"):
            monkeypatch.setattr(sys, name, stream)
        assert program.exit_status(main) == 0 and done
        sys.stderr.flush()  # as Python does at exit
    if kind == "full":
        os.close(writer)


@pytest.fixture
def printing(tmp_path) -> list[str]:
    """The command line of a program that prints many lines, and ends as ours do."""
    code = "import program; raise SystemExit(program.exit_status(lambda: print('line\\n' * 100_000)))"
    path = f"PYTHONPATH={ROOT}:{stub_torch(tmp_path)}"
    return ["env", path, sys.executable, "-c", code]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_full_output_of_a_program_is_named(unbuffered, printing):
    with open(FULL, "w") as full:
        pipes = {"stdout": full, "stderr": subprocess.PIPE, "text": True}
        result = subprocess.run(printing, env=environment(PYTHONUNBUFFERED=unbuffered), **pipes)
    assert (result.returncode, result.stderr) == (2, ERROR)


def test_program_whose_reader_leaves_ends_without_a_word_where_nobody_can_read_it(printing):
    command = ["bash", "-c", f"set -o pipefail; {shlex.join(printing)} 2>&1 | head -1"]
    result = subprocess.run(command, env=environment(PYTHONUNBUFFERED=""), capture_output=True)
    assert result.returncode == 128 + signal.SIGPIPE
    assert (result.stdout, result.stderr) == (b"line\n", b"")


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_sweep_whose_output_fails_ends_in_one_line(kind, tmp_path):
    pytest.importorskip("optuna")
    (tmp_path / "sweep.yaml").write_text("method: grid\nparameters:\n  epochs: {values: [1]}\n")
    reader, writer = os.pipe()
    os.close(reader)
    with open(FULL if kind == "full" else writer, "w") as out:
        command = [sys.executable, ROOT / "sweep.py", "--", "--dataset", "nowhere"]
        pipes = {"stdout": out, "stderr": subprocess.PIPE, "text": True}
        result = subprocess.run(command, cwd=tmp_path, env=environment(PYTHONUNBUFFERED=""), **pipes)
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    if kind == "full":
        os.close(writer)
    reason = "No space left on device" if kind == "full" else "Broken pipe"
    assert result.returncode == 2
    assert result.stderr == f"error: the output: {reason}. The same command resumes the sweep.\n"
