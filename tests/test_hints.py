"""The commands that our programs print work if they are pasted where the program was started."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, assert_one_line_error
from programs import environment, stub_torch

HINT = """from {dot}program import resume_hint, start_command

def hint():
    print(resume_hint("my run") if "--resume" in __import__("sys").argv else start_command("evaluate"))

if __name__ == "__main__":
    hint()
"""
# It starts its program once, as a worker.
TORCHRUN = """#!/bin/sh
test "$1" = --nproc_per_node=2 && shift
TORCHELASTIC_RUN_ID=a LOCAL_WORLD_SIZE=2 exec python3 -u "$@"
"""


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder with program.py and two others that stand for our programs: plain, in a package, renamed."""
    for place, prefix in (("own repo", ""), ("theirs", "mt_"), ("theirs/package", "")):
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "program.py", folder / f"{prefix}program.py")
        dot = "." if "package" in place else prefix
        (folder / f"{prefix}train.py").write_text(HINT.format(dot=dot))
        (folder / f"{prefix}evaluate.py").write_text("import sys\nprint('evaluate', *sys.argv[1:])\n")
    (tmp_path / "theirs/package/__init__.py").touch()
    (tmp_path / "theirs/script.py").write_text("from package.train import hint\nhint()\n")
    stub_torch(tmp_path)
    (tmp_path / "my bin").mkdir()
    for name in ("python3", "my python3.11"):
        (tmp_path / "my bin" / name).symlink_to(sys.executable)
    (tmp_path / "my bin/torchrun").write_text(TORCHRUN)
    (tmp_path / "my bin/torchrun").chmod(0o755)
    return tmp_path


def type_in(line: str, folder: Path, home: Path) -> str:
    """What a command line prints that is typed in a folder."""
    path = f"{home / 'my bin'}:{os.environ['PATH']}"
    libraries = ":".join([str(home / "lib"), *(entry for entry in sys.path if "site-packages" in entry)])
    env = environment(PATH=path, PYTHONPATH=libraries, HOME=str(home), IPYTHONDIR=str(home / "ipython"))
    result = subprocess.run(["sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(
    ("line", "folder", "hint"),
    [
        ("python3 train.py", "own repo", "python3 evaluate.py"),
        ("python3 -m train", "own repo", "python3 evaluate.py"),
        ("'../my bin/my python3.11' train.py", "own repo", "'../my bin/my python3.11' evaluate.py"),
        ("python3 'own repo/train.py'", ".", "python3 'own repo/evaluate.py'"),
        ("python3 '../own repo/train.py'", "theirs", "python3 '{home}/own repo/evaluate.py'"),
        (
            'PYTHONPATH="../own repo:$PYTHONPATH" python3 -m train',
            "lib",
            "python3 '{home}/own repo/evaluate.py'",
        ),
        ("python3 -m package.train", "theirs", "python3 -m package.evaluate"),
        ("python3 script.py", "theirs", "python3 -m package.evaluate"),
        ("python3 mt_train.py", "theirs", "python3 mt_evaluate.py"),
    ],
)
def test_printed_command_works_where_it_is_pasted(line, folder, hint, home):
    printed = type_in(line, home / folder, home)
    assert printed == hint.format(home=home)
    assert type_in(f"{printed} model.pt", home / folder, home) == "evaluate model.pt"
    go_on = type_in(f"{line} --resume", home / folder, home).removeprefix("continue with ")
    if "script.py" in line:  # which may pass other settings than its arguments
        assert go_on == "--run_dir 'my run' --resume"
    else:
        assert type_in(go_on, home / folder, home) == f"continue with {go_on}"


@pytest.mark.parametrize(
    ("line", "folder"),
    [("train.py", "own repo"), ("'own repo/train.py'", "."), ("-m package.train", "theirs")],
)
def test_printed_command_works_in_ipython(line, folder, home):
    def type_in_ipython(line: str) -> str:
        command = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c", line]
        return type_in(shlex.join(command), home / folder, home)

    printed = type_in_ipython(f"%run {line}")
    assert printed.startswith("%run ")
    assert type_in_ipython(f"{printed} model.pt") == "evaluate model.pt"


@pytest.mark.parametrize(
    ("program", "folder"),
    [("train.py", "own repo"), ("'own repo/train.py'", "."), ("-m package.train", "theirs")],
)
def test_torchrun_is_named_as_it_was_typed(program, folder, home):
    line = f"torchrun --nproc_per_node=2 {program} --run_dir 'my run' --resume"
    assert type_in(line, home / folder, home) == f"continue with {line}"
    several = type_in(f"GROUP_WORLD_SIZE=3 {line}", home / folder, home)
    assert several == "continue with the same torchrun commands and --run_dir 'my run' --resume"


def test_error_names_the_program_where_it_is(main, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["bin/my python3", "evaluate.py"])
    command = f"'bin/my python3' {shlex.quote(str(ROOT / 'train.py'))}"
    result = main("evaluate.py", "missing.pt", cwd=tmp_path)
    assert_one_line_error(result, f"Export one first: {command}")
