"""Start our programs quickly, by forks of one server process that has imported torch, wandb and our modules.

A forked program has its own process, directory, environment, arguments, output and exit status. It leaves the same
bytes as `python train.py` (test_train.py compares them), but starts in a fraction of a second instead of five.
"""

import atexit
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds; a program that takes longer hangs
CONTEXT = multiprocessing.get_context("forkserver")
# torch imports _dynamo when the first optimizer is made, and pandas' parser when a file is read.
CONTEXT.set_forkserver_preload(["compare", "evaluate", "train", "torch._dynamo", "wandb", "programs"])


def environment(**extra: str) -> dict[str, str]:
    """The environment of a program. conftest.py has removed the user's W&B account from it."""
    return {**os.environ, **extra}


class Program:
    """A running program. Use it like a `subprocess.Popen` with text pipes."""

    def __init__(self, name: str, arguments: list[str], cwd: Path, env: dict[str, str], patch: Callable | None):
        self.name = name
        pipes = [CONTEXT.Pipe(duplex=False) for _ in ("stdout", "stderr")]
        writers = [writer for _, writer in pipes]
        self.process = CONTEXT.Process(target=run_here, args=(name, arguments, cwd, env, patch, writers))
        with pytest.MonkeyPatch.context() as monkeypatch:  # for the server, which the first program starts
            monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
            self.process.start()
        self.pid = self.process.pid
        self.stdout, self.stderr = (os.fdopen(os.dup(reader.fileno()), encoding="utf-8") for reader, _ in pipes)
        for reader, writer in pipes:
            reader.close()
            writer.close()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = TIMEOUT) -> int:
        self.process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.name, timeout)
        return self.returncode

    def communicate(self, timeout: float = TIMEOUT) -> tuple[str, str]:
        """The rest of stdout and stderr, after both are closed and the program has ended."""
        errors = []
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()))
        alarm = threading.Timer(timeout, os.killpg, (self.pid, signal.SIGKILL))
        reader.start()
        alarm.start()
        with self.stdout, self.stderr:
            out = self.stdout.read()
            reader.join()
        expired = alarm.finished.is_set()
        alarm.cancel()
        self.wait(timeout)
        if expired:
            raise subprocess.TimeoutExpired(self.name, timeout, out, errors[0])
        return out, errors[0]


def run_here(
    name: str, arguments: list[str], cwd: Path, env: dict[str, str], patch: Callable | None, writers: list[Connection]
) -> None:
    """Make this forked process one that was started as `python NAME ARGUMENTS` in `cwd`, and run it."""
    os.setsid()  # what it leaves behind can be found, and killed, by its session
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # it depends on the environment
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, writer in enumerate(writers, 1):
        os.dup2(writer.fileno(), descriptor)
        writer.close()
    sys.stdin = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    sys.argv = [str(ROOT / name), *arguments]
    try:
        if patch:
            patch()
        sys.exit(importlib.import_module(Path(name).stem).main())
    finally:
        # As the interpreter does at its end; a process of multiprocessing leaves it out.
        threading._shutdown()
        atexit._run_exitfuncs()


def start(program: str, *arguments, cwd: Path, patch: Callable | None = None, **env: str) -> Program:
    """Start one of our programs and do not wait for it.

    `patch` is a function that changes, in the new process, what the program will meet. It must be importable: a
    function of a module, or a `functools.partial` of one.
    """
    return Program(program, list(map(str, arguments)), cwd, environment(**env), patch)


def run(program: str, *arguments, cwd: Path, timeout: float = TIMEOUT, **options) -> subprocess.CompletedProcess:
    """Run one of our programs to its end, without a terminal. Options are those of `start`."""
    process = start(program, *arguments, cwd=cwd, **options)
    out, error = process.communicate(timeout)
    return subprocess.CompletedProcess([program, *arguments], process.returncode, out, error)


def run_python(*arguments, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run a new Python interpreter, if its start is part of the test."""
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, cwd=cwd, env=environment(**env), timeout=TIMEOUT, **pipes)
