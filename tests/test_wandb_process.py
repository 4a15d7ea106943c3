"""The process for W&B, in surroundings that it cannot choose. It leaves nothing behind, however it ends."""

import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import assert_one_line_error
from programs import ROOT, run, run_python
from wandb_server import WandbServer

import program
import wandb_run
from wandb_run import WandbRun


def make_run(module=wandb_run) -> WandbRun:
    return module.WandbRun(Path("run"), {"run_dir": "run"}, ["a", "b"], None, None)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files. The working directory is a new one, with a run directory `run`."""
    (tmp_path / "temporary").mkdir()
    (tmp_path / "cwd/run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path / "temporary"


def test_it_starts_where_python_prints_and_modules_have_names_of_pythons(temporary, tmp_path, monkeypatch):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("print('Welcome to the cluster')")
    (tmp_path / "package").mkdir()
    (tmp_path / "package/queue.py").write_text("raise ImportError('not the queue of Python')")
    copy = shutil.copy(ROOT / "wandb_run.py", tmp_path / "package")
    spec = importlib.util.spec_from_file_location("package.wandb_run", copy)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    socket.setdefaulttimeout(0.01)
    try:
        run = make_run(module)
        run.submit("log_losses", [1, 2], [0.5, 0.25])
        run.finish(0)
    finally:
        socket.setdefaulttimeout(None)
    assert run.mode == "offline" and run.ended and not run.gave_up


@pytest.mark.parametrize("executable", [None, "/nowhere/python"])
def test_python_that_cannot_be_started_is_told_in_a_line(executable, temporary, monkeypatch):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(
        wandb_run.RunError, match=rf"because {executable} cannot start .* WANDB_MODE=disabled"
    ):
        make_run()
    assert not list(temporary.iterdir())


def test_start_that_fails_is_told_and_leaves_no_temporary_files(temporary, monkeypatch, capsys):
    with WandbServer("refuses the key") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        run = make_run()
        run.finish(0)
    error = capsys.readouterr().err
    assert error.startswith("W&B: offline, because of ") and error.count("\n") == 1
    assert run.mode == "offline" and run.ended
    assert not list(temporary.iterdir())


def test_ctrl_c_at_the_end_leaves_no_process(temporary, monkeypatch):
    def interrupt(timeout: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = make_run()
    os.kill(run.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(run.thread, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.finish(0)
    monkeypatch.undo()
    run.thread.join(10)
    assert run.process.returncode == -signal.SIGKILL and not run.thread.is_alive()


def with_the_default_of_sigpipe() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    run = make_run()
    run.process.kill()
    run.process.wait()
    run.finish(0)
    return 0


def test_program_in_which_a_broken_pipe_is_deadly_goes_on(tmp_path):
    (tmp_path / "run").mkdir()
    result = run(with_the_default_of_sigpipe, cwd=tmp_path, WANDB_MODE="offline")
    assert result.returncode == 0
    assert result.stderr == "W&B: no further records, because its process has ended\n"


def until_it_is_stopped() -> int:
    run = None
    with pytest.raises(KeyboardInterrupt):
        run = make_run()
        for step in range(600):
            run.submit("log_losses", [step], [0.5])
            time.sleep(0.1)
    if run:  # it may be stopped at its start
        run.finish(1)
    return 0


def test_stop_button_on_the_page_of_the_run_interrupts_the_program(tmp_path):
    (tmp_path / "run").mkdir()
    with WandbServer("stops the run") as server:
        result = run(until_it_is_stopped, cwd=tmp_path, **server.env)
    assert result.returncode == 0, result.stderr


KILLED_WITH_A_FORK = """
import os, signal, sys, time
sys.path.append(sys.argv[1])
from test_wandb_process import make_run
run = make_run()
print(run.process.pid, flush=True)
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
os.closerange(0, 3)
time.sleep(15)
"""


def test_it_ends_with_the_program_though_a_forked_worker_lives(temporary):
    path = f"{ROOT}:{ROOT / 'tests'}"
    arguments = ("-c", KILLED_WITH_A_FORK, str(ROOT / "tests"))
    result = run_python(*arguments, cwd=Path.cwd(), WANDB_MODE="offline", PYTHONPATH=path)
    pid, deadline = int(result.stdout), time.monotonic() + 8
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.1)
        pytest.fail(f"process {pid} still runs")


def after_calls_of_wandb(offline: bool) -> int:
    import wandb

    if offline:
        wandb.setup(wandb.Settings(mode="offline"))
    else:
        wandb.login(key="1" * 40, verify=False)
    run = make_run()
    run.finish(0)
    print(run.mode)
    return 0


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_login_and_setup_of_the_caller_count(mode, tmp_path):
    (tmp_path / "run").mkdir()
    with WandbServer() as server:
        env = server.env if mode == "offline" else {"WANDB_BASE_URL": server.url}
        result = run(partial(after_calls_of_wandb, mode == "offline"), cwd=tmp_path, **env)
    assert result.returncode == 0 and result.stdout == f"{mode}\n", result.stderr


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_mode_that_wandb_has_saved_in_the_folder_counts(mode, temporary, monkeypatch):
    Path("wandb").mkdir()
    Path("wandb/settings").write_text(f"[default]\nmode = {mode}\n")  # by `wandb disabled`
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    run = make_run()
    run.finish(0)
    assert run.mode == mode and run.address("publish").startswith({"offline": "publish"}.get(mode, mode))


def with_wandb_imported() -> int:
    import wandb  # noqa: F401

    return program.exit_status(make_run, wandb_run.RunError)


@pytest.mark.parametrize(("service", "problem"), [("junk", "junk"), ("3-1-tcp-localhost-1", "port 1")])
def test_service_of_wandb_that_is_not_there_ends_in_a_line(service, problem, tmp_path):
    (tmp_path / "run").mkdir()
    result = run(with_wandb_imported, cwd=tmp_path, WANDB_MODE="offline", WANDB_SERVICE=service)
    assert_one_line_error(result, "W&B cannot start, because of", problem)


def test_user_without_a_home_directory_gets_one(tmp_path, monkeypatch):
    """As in a container: W&B, which looks for its settings there, refuses to start without one."""
    monkeypatch.delenv("HOME", raising=False)
    assert "HOME" not in wandb_run.environment(tmp_path)  # /etc/passwd has it
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    assert wandb_run.environment(tmp_path)["HOME"] == f"{tmp_path}/wandb"
