"""Two CPU processes against one: by torchrun once, else forked with the environment that torchrun sets."""

import json
import os
import shutil
import signal
import socket
import statistics
import time
from functools import partial

import pytest
import torch
from conftest import ROOT, SHORT, assert_one_line_error, contents
from programs import Program, as_python, left_running, run, start

import program
import train


def start_two(program, *arguments, cwd, other_cwd=None) -> list[Program]:
    """Start two processes of one group, as torchrun does, on one machine or as if on two."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    env = {"WANDB_MODE": "disabled", **group}
    folders = {"0": cwd, "1": other_cwd or cwd}
    return [start(program, *arguments, cwd=folders[r], RANK=r, LOCAL_RANK=r, **env) for r in folders]


def test_two_processes_leave_one_run(finished, small_dir, tmp_path):
    flags = ("--data_dir", small_dir, *SHORT, "--run_dir", "two")
    both = start_two("train.py", *flags, cwd=tmp_path)
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [line.split()[0] for output, _ in outputs for line in output.splitlines()].count("epoch") == 2
    config = json.loads((tmp_path / "two/config.json").read_text())
    assert config["processes"] == 2
    files = {name for name in contents(finished) if name.endswith(".csv")}
    assert files <= set(contents(tmp_path / "two")) and (tmp_path / "two/model.pt").exists()
    one, two = (json.loads((path / "summary.json").read_text()) for path in (finished, tmp_path / "two"))
    assert abs(one["wrong"] - two["wrong"]) <= 25  # of 500: the batch norms are not the same

    losses = []
    for run_dir in (finished, tmp_path / "two"):
        rows = (run_dir / "metrics.csv").read_text().splitlines()[1:]
        losses.append([float(row.split(",")[2]) for row in rows if row.split(",")[2]])
    assert len(losses[0]) == len(losses[1])
    assert losses[1][0] == pytest.approx(losses[0][0], rel=0.2)
    sampler = torch.load(tmp_path / "two/checkpoint.pt")["sampler"]
    assert (sampler["margins"] > 0).float().mean() > 0.95  # each process has seen half of the images


class WithoutNorm(train.ConvNet):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.norm1, self.norm2 = torch.nn.Identity(), torch.nn.Identity()


class Recorder(torch.optim.SGD):
    """Keeps the gradients of each step."""

    steps = []

    def __init__(self, parameters, lr, **adam):
        super().__init__(parameters, lr=lr)

    def step(self):
        self.steps.append([p.grad.clone() for p in self.param_groups[0]["params"]])
        super().step()


def gradients_recorded() -> int:
    train.ConvNet, torch.optim.Adam = WithoutNorm, Recorder
    status = train.main()
    if os.environ.get("RANK", "0") == "0":
        torch.save(Recorder.steps, "gradients.bin")
    return status


def test_without_batch_norm_two_processes_give_the_gradients_of_one(tiny_dir, tmp_path):
    # Parts of 4 and 3 images, which must not weigh the same.
    flags = ("--data_dir", tiny_dir, "--epochs", 1, "--batch_size", 7, "--precision", "fp32")
    gradients = []
    for name in ("one", "two"):
        cwd = tmp_path / name
        cwd.mkdir()
        if name == "one":
            result = run(gradients_recorded, *flags, cwd=cwd, WANDB_MODE="disabled")
            assert result.returncode == 0, result.stderr
        else:
            for process in start_two(gradients_recorded, *flags, cwd=cwd):
                _, error = process.communicate(timeout=120)
                assert process.returncode == 0, error
        gradients.append(torch.load(cwd / "gradients.bin"))
    assert len(gradients[0]) == len(gradients[1]) == 92
    # Later, rounding changes which of two nearly equal pixels max pooling takes.
    early = ([torch.cat([g.flatten() for g in step]) for step in each[:10]] for each in gradients)
    differences = [((one - two).norm() / one.norm()).item() for one, two in zip(*early)]
    assert statistics.median(differences) <= 1e-3 and max(differences) <= 0.01


def failing(rank: str) -> int:
    real, calls = train.F.cross_entropy, 0

    def fail(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 5 and os.environ["RANK"] == rank:
            raise train.ConfigError("injected")
        return real(*arguments, **options)

    train.F.cross_entropy = fail
    return train.main()


@pytest.mark.faults
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_fails_ends_all_of_them(rank, tiny_dir, tmp_path, faults):
    start = time.monotonic()
    both = start_two(partial(failing, str(rank)), "--data_dir", tiny_dir, *SHORT, cwd=tmp_path)
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert time.monotonic() - start < 60
    # torch itself may warn before, for example where no name server is reached.
    assert both[rank].returncode == 2 and errors[rank].endswith("error: injected\n")
    # Not even torchrun is needed to end the other, which has nothing to add.
    assert both[1 - rank].returncode == 1 and "error: " not in errors[1 - rank]
    assert not left_running(tmp_path)
    faults("one of two processes fails")


def failing_everywhere() -> int:
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    train.F.cross_entropy = fail
    return train.main()


def test_what_fails_everywhere_is_said_once(tiny_dir, tmp_path):
    both = start_two(failing_everywhere, "--data_dir", tiny_dir, *SHORT, cwd=tmp_path)
    errors = [process.communicate(timeout=60)[1] for process in both]
    lines = [line for line in "".join(errors).splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "--batch_size" in lines[0], errors
    both = start_two("train.py", "--data_dir", tiny_dir, "--lr", "-1", cwd=tmp_path)
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert errors[0].startswith("error: --lr") and errors[1] == ""


class Unused(train.ConvNet):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.unused = torch.nn.Linear(1, 1)


class LazyAndInStep(train.ConvNet):
    """Makes a layer in its first forward, and waits for the other process in training."""

    def __init__(self, num_classes, *sizes):
        super().__init__(num_classes, *sizes)
        self.linear = torch.nn.LazyLinear(num_classes)

    def forward(self, images):
        if self.training:
            torch.distributed.barrier()
        return super().forward(images)


def with_net(net: type) -> int:
    train.ConvNet = net
    return train.main()


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Unused, "find_unused_parameters=True."),  # not refused by our own trial, which does not know it
        (LazyAndInStep, None),
    ],
)
def test_net_is_tried_in_both_processes(net, words, tiny_dir, tmp_path):
    both = start_two(partial(with_net, net), "--data_dir", tiny_dir, "--epochs", 1, cwd=tmp_path)
    errors = [process.communicate(timeout=60)[1] for process in both]
    lines = [line for line in "".join(errors).splitlines() if line.startswith("error: ")]
    assert [process.returncode for process in both] == 2 * [2 if words else 0], errors
    assert [words in line for line in lines] == ([True] if words else []), errors


def test_number_of_processes_is_compared_and_torchrun_is_named(finished, tmp_path, main):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("wandb", "summary.json"))
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"processes": 2}))
    result = main("train.py", "--run_dir", "run", "--resume", cwd=tmp_path)
    assert_one_line_error(result, "2 processes, not in 1", "Resume it with torchrun --nproc_per_node=2,")


def test_resumed_run_must_be_on_every_machine(finished, small_dir, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("wandb", "model.pt"))
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"processes": 2}))
    (tmp_path / "other machine").mkdir()
    flags = ("--data_dir", small_dir, *SHORT, "--run_dir", "run", "--resume")
    both = start_two("train.py", *flags, cwd=tmp_path, other_cwd=tmp_path / "other machine")
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert both[1].returncode == 2 and "error: run is not on this machine" in errors[1]
    assert both[0].returncode == 1 and not (tmp_path / "run/model.pt").exists()


def test_torchrun_is_named_in_the_advice_after_an_interruption(tiny_dir, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py")
    flags = ("--data_dir", tiny_dir, *SHORT, "--epochs", 100, "--run_dir", "run")
    process = start(as_python, *torchrun, *flags, cwd=tmp_path, WANDB_MODE="disabled")
    assert any(line.startswith("epoch 1/") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    (line,) = [line for line in error.splitlines() if line.startswith("stopped by")]
    assert "continue with torchrun --nproc_per_node=2 " in line
    assert line.endswith("train.py --run_dir run --resume")


def test_every_process_names_the_directory_that_the_first_has_chosen(tiny_dir, tmp_path):
    both = start_two("train.py", "--data_dir", tiny_dir, *SHORT, "--epochs", 100, cwd=tmp_path)
    assert any(line.startswith("epoch 1/") for line in both[0].stdout)
    both[1].send_signal(signal.SIGINT)
    errors = [process.communicate(timeout=60)[1] for process in both]
    assert errors[1].endswith("stopped by SIGINT: continue with --run_dir runs/001 --resume\n")


@pytest.mark.parametrize(
    "left_over", [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "abc"}, {"RANK": "1"}, {"RANK": "-1"}]
)
def test_left_over_variables_of_a_group_are_refused(left_over, small_dir, tmp_path):
    result = run("train.py", "--data_dir", small_dir, cwd=tmp_path, **left_over)
    assert_one_line_error(result, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT do not fit", "Unset them")


def test_empty_variables_of_a_group_are_none(small_dir, tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "")
    assert program.process_group() == (0, 1)
