"""What needs a GPU, each in a process of its own: the other tests hide it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_mnist_files
from programs import run_python

HAS_GPU = torch.backends.cuda.is_built() and (shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists())
pytestmark = pytest.mark.skipif(not HAS_GPU, reason="no GPU that torch can use")


def run(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {"CUDA_VISIBLE_DEVICES": os.environ["VISIBLE_GPUS"], "WANDB_MODE": "disabled", "PYTHONPATH": paths}
    return run_python(*arguments, cwd=cwd, **env)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_run_is_repeatable_resumes_and_its_model_is_the_same_on_the_cpu(precision, tmp_path):
    folder = write_mnist_files(tmp_path / "data", train=4000, test=1000)
    settings = ("--data_dir", folder, "--precision", precision, "--schedule", "constant", "--resume")
    for name, epochs in (("one", 2), ("two", 2), ("three", 1), ("three", 2)):
        result = run(ROOT / "train.py", *settings, "--epochs", epochs, "--run_dir", name, cwd=tmp_path)
        assert result.returncode == 0 and result.stderr == "", result.stderr
        assert f"; cuda, {precision}; " in result.stdout
    runs = [tmp_path / name / "predictions/epoch-002.csv" for name in ("one", "two", "three")]
    assert len({path.read_text() for path in runs}) == 1
    guesses = []
    for device in ("cpu", "cuda"):
        flags = ("--data_dir", folder, "--device", device, "--predictions", f"{device}.csv")
        assert run(ROOT / "evaluate.py", "one/model.pt", *flags, cwd=tmp_path).returncode == 0
        runs.append(tmp_path / f"{device}.csv")
    for path in runs:
        guesses.append([line.split(",")[:3] for line in path.read_text().splitlines()])
    assert all(columns == guesses[0] for columns in guesses)


GRAPH = """
import torch
from model import Classifier, ConvNet
from program import CudaGraphs
from sources.drawn import draw_digits

images, labels = (values.cuda() for values in draw_digits(300, seed=0))
ends = []
for graph in (False, True):
    torch.manual_seed(0)
    model = Classifier(ConvNet(), 0.13, 0.31).cuda()
    optimizer = torch.optim.Adam(model.parameters(), 0.01, fused=True)

    def step(images, labels):
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        return (loss.detach(),)

    step, losses = CudaGraphs(step) if graph else step, []
    for _ in range(4):
        for batch, truth in zip(images.split(128), labels.split(128)):  # 128, 128 and 44 images
            losses += step(batch, truth)
            optimizer.step()
    ends.append([*model.state_dict().values(), torch.stack(losses)])
assert len(step.recorded) == 2
assert all(map(torch.equal, *ends))
"""

READS_A_VALUE = """
import torch
from program import ConfigError, CudaGraphs

@CudaGraphs
def step(values):
    return (values * values.sum().item(),)

try:
    for _ in range(2):
        step(torch.ones(3, device="cuda"))
except ConfigError as error:
    print(error)
"""


def test_recorded_step_trains_the_same_net(tmp_path):
    result = run("-c", GRAPH, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == "", result.stderr


def test_step_that_reads_a_value_from_the_gpu_is_refused(tmp_path):
    result = run("-c", READS_A_VALUE, cwd=tmp_path)
    assert "Remove @CudaGraphs" in result.stdout, result.stderr


def test_full_memory_is_one_line(tmp_path):
    folder = write_mnist_files(tmp_path / "data", train=4000, test=100)
    program = (
        "import sys, torch, train; torch.cuda.set_per_process_memory_fraction(0.01); sys.exit(train.main())"
    )
    flags = ("--data_dir", folder, "--l1_size", 128, "--batch_size", 4000)
    result = run("-c", program, *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "Lower --batch_size" in result.stderr, result.stderr
