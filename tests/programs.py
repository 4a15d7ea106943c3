"""Start our programs quickly: fork them from a process that has imported torch, wandb and our modules.

A forked program has its own process, directory, environment, arguments, output and exit status. It leaves
the same bytes as `python train.py` (a test compares them), but starts in 0.1 seconds instead of five.
"""

import atexit
import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds; a program that takes longer hangs
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preload"])


def environment(**extra: str) -> dict[str, str]:
    """The environment of a program, without the W&B service of the tests' own process."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_SERVICE")}
    return {**ours, **extra}


class Program:
    """A running program. Use it like a `subprocess.Popen` with text pipes."""

    def __init__(self, main: str | Callable[[], int], arguments: list[str], cwd: Path, env: dict[str, str]):
        self.name = str(main)
        pipes = [CONTEXT.Pipe(duplex=False) for _ in ("stdout", "stderr")]
        writers = [writer for _, writer in pipes]
        # A daemon is killed at the end of pytest, if a test has failed and left it.
        self.process = CONTEXT.Process(target=become, args=(main, arguments, cwd, env, writers), daemon=True)
        with pytest.MonkeyPatch.context() as patch:  # for the server, which the first program starts
            patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
            self.process.start()
        self.pid = self.process.pid
        readers = [os.dup(reader.fileno()) for reader, _ in pipes]
        self.stdout, self.stderr = (open(reader, encoding="utf-8") for reader in readers)
        for pipe in pipes:
            for end in pipe:
                end.close()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
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


def become(
    main: str | Callable[[], int],
    arguments: list[str],
    cwd: Path,
    env: dict[str, str],
    writers: list[Connection],
) -> None:
    """Make this forked process like one that was started in `cwd` with `env`, run `main`, and exit."""
    os.setsid()  # so that what it leaves behind can be found, and killed, by its session
    multiprocessing.current_process().daemon = False  # which may have no processes of its own
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)  # the default
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # it depends on the environment
    renew_temporary_directories()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, writer in enumerate(writers, 1):
        os.dup2(writer.fileno(), descriptor)
        writer.close()
    sys.stdin = open(0, closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    text = {"encoding": "utf-8", "errors": "backslashreplace", "closefd": False}
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, **text)
    name = main if isinstance(main, str) else "train.py"
    sys.argv = [str(ROOT / name), *arguments]
    try:
        sys.exit(importlib.import_module(Path(name).stem).main() if main == name else main())
    finally:
        # The interpreter does this at its end, but multiprocessing does not.
        threading._shutdown()
        atexit._run_exitfuncs()


def renew_temporary_directories() -> None:
    """Replace those that the server made at imports, because this process would delete them at its end."""
    weakref.finalize._registered_with_atexit = False  # multiprocessing in Python 3.13 clears atexit
    for finalizer in list(weakref.finalize._registry):
        directory = finalizer.peek()[0]
        if isinstance(directory, tempfile.TemporaryDirectory):
            finalizer.detach()
            directory.__init__()


def left_running(folder: Path) -> list[psutil.Process]:
    """The processes that work in `folder` and do not end within ten seconds."""
    processes = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]
    return psutil.wait_procs(processes, timeout=10)[1]


def start(program: str | Callable[[], int], *arguments, cwd: Path, **env: str) -> Program:
    """Start a program and do not wait for it.

    `program` is one of our files, or a function that stands for a changed train.py and returns the status.
    The function must be importable: one of a module, or a `functools.partial` of it.
    """
    return Program(program, list(map(str, arguments)), cwd, environment(**env))


def run(program: str | Callable[[], int], *arguments, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run a program, as `start` takes it, to its end."""
    process = start(program, *arguments, cwd=cwd, **env)
    out, error = process.communicate()
    return subprocess.CompletedProcess([program, *arguments], process.returncode, out, error)


def as_python() -> int:
    """Do what a new interpreter does with sys.argv[1:]: FILE, -c CODE or -m MODULE, and their arguments.

    To be run as a program. It has the libraries in memory, but none of our modules.
    """
    del sys.argv[0]
    ours = [name for name, module in sys.modules.items() if is_ours(getattr(module, "__file__", None) or "")]
    for name in {*ours, *(name.split(".")[0] for name in ours)}:  # page/ is a package without a file
        del sys.modules[name]
    sys.path = [path for path in sys.path if not is_ours(path)]
    if sys.argv[0] == "-c":
        sys.path.insert(0, "")
        exec(sys.argv.pop(1), {"__name__": "__main__"})
    elif sys.argv[0] == "-m":
        sys.path.insert(0, os.getcwd())
        runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).absolute().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")
    return 0


def is_ours(path: str) -> bool:
    """Whether it is in this repository, and not in a virtual environment there."""
    return Path(path).is_relative_to(ROOT) and "site-packages" not in path


def stub_torch(folder: Path) -> Path:
    """Make a folder of libraries with as much of torch as program.py imports; the real one takes seconds."""
    (folder / "lib/torch").mkdir(parents=True)
    (folder / "lib/torch/__init__.py").write_text("Tensor = device = None\n")
    (folder / "lib/torch/distributed.py").write_text("def is_initialized(): return False\n")
    return folder / "lib"


def run_python(*arguments, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Run a new Python interpreter, if its start is part of the test. `run(as_python, ...)` is faster."""
    command = [sys.executable, *map(str, arguments)]
    pipes = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, cwd=cwd, env=environment(**env), timeout=TIMEOUT, **pipes)
