"""Two CPU processes by torchrun against one."""

import json
import statistics
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, SHORT, contents, environment, run

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]


def torchrun(*arguments, cwd, **env) -> subprocess.CompletedProcess:
    command = [*TORCHRUN, *map(str, arguments)]
    env = environment(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", WANDB_MODE="disabled", **env)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_two_processes_leave_one_run(finished, small_dir, tmp_path):
    flags = ("--data_dir", small_dir, *SHORT, "--run_dir", "two")
    result = torchrun(ROOT / "train.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()].count("epoch") == 2
    config = json.loads((tmp_path / "two/config.json").read_text())
    assert config["processes"] == 2
    files = {name for name in contents(finished) if name.endswith(".csv")}
    assert files <= set(contents(tmp_path / "two")) and (tmp_path / "two/model.pt").exists()
    one, two = (json.loads((path / "summary.json").read_text()) for path in (finished, tmp_path / "two"))
    assert abs(one["wrong"] - two["wrong"]) <= 25  # of 500: the batch norms are not the same

    again = run("train.py", *flags[:-1], "one", cwd=tmp_path, WANDB_MODE="disabled", OMP_NUM_THREADS="1")
    losses = []
    for name in ("one", "two"):
        rows = (tmp_path / name / "metrics.csv").read_text().splitlines()[1:]
        losses.append([float(row.split(",")[2]) for row in rows if row.split(",")[2]])
    assert again.returncode == 0 and len(losses[0]) == len(losses[1])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.2)


SAME_GRADIENTS = """
import os, sys, torch, train
class WithoutNorm(train.ConvNet):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.norm1, self.norm2 = torch.nn.Identity(), torch.nn.Identity()
class Recorder(torch.optim.SGD):
    steps = []
    def __init__(self, parameters, lr, **adam):
        super().__init__(parameters, lr=lr)
    def step(self):
        self.steps.append([p.grad.clone() for p in self.param_groups[0]["params"]])
        super().step()
train.ConvNet, torch.optim.Adam = WithoutNorm, Recorder
status = train.main()
if os.environ.get("RANK", "0") == "0":
    torch.save(Recorder.steps, "gradients.bin")
sys.exit(status)
"""


def test_without_batch_norm_two_processes_give_the_gradients_of_one(small_dir, tmp_path):
    (tmp_path / "same.py").write_text(SAME_GRADIENTS)
    # Shares of 4 and 3 images, which must not weigh the same.
    flags = ("--data_dir", small_dir, "--epochs", 1, "--batch_size", 7, "--precision", "fp32")
    gradients = []
    for name in ("one", "two"):
        cwd = tmp_path / name
        cwd.mkdir()
        if name == "one":
            command = [sys.executable, "../same.py", *map(str, flags)]
            env = environment(PYTHONPATH=str(ROOT), WANDB_MODE="disabled")
            subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True)
        else:
            result = torchrun("../same.py", *flags, cwd=cwd)
            assert result.returncode == 0, result.stderr
        gradients.append(torch.load(cwd / "gradients.bin"))
    assert len(gradients[0]) == len(gradients[1]) == 215
    # Later, rounding decides which of two pixels that are as good as equal is the larger, and then another.
    early = ([torch.cat([g.flatten() for g in step]) for step in each[:10]] for each in gradients)
    differences = [((one - two).norm() / one.norm()).item() for one, two in zip(*early)]
    assert statistics.median(differences) <= 1e-3 and max(differences) <= 0.01


FAILING = """
import os, sys, train
real, calls = train.F.cross_entropy, 0
def failing(*arguments, **options):
    global calls
    calls += 1
    if calls == 5 and os.environ["RANK"] == os.environ["FAILS"]:
        raise train.ConfigError("injected")
    return real(*arguments, **options)
train.F.cross_entropy = failing
sys.exit(train.main())
"""


@pytest.mark.faults
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_fails_ends_all_of_them(rank, small_dir, tmp_path, faults):
    (tmp_path / "failing.py").write_text(FAILING)
    start = time.monotonic()
    result = torchrun("failing.py", "--data_dir", small_dir, *SHORT, cwd=tmp_path, FAILS=rank)
    assert time.monotonic() - start < 60 and result.returncode != 0
    assert "error: injected" in result.stderr
    assert subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True).stdout == b""
    faults("one of two processes fails")
