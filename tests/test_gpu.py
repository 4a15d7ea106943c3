"""What needs a GPU, each in a process of its own: the other tests hide it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_mnist_files
from programs import run_python


def run(*arguments, cwd: Path | None = None, wandb="disabled") -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = {"CUDA_VISIBLE_DEVICES": os.environ["VISIBLE_GPUS"], "WANDB_MODE": wandb, "PYTHONPATH": paths}
    return run_python(*arguments, cwd=cwd, **env)


def has_gpu() -> bool:
    """Whether there is a GPU that torch can use: its driver may be too old, or the user may hide it."""
    there = torch.backends.cuda.is_built() and (shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists())
    return bool(there) and run("-c", "import torch; torch.ones(1).cuda()").returncode == 0


HAS_GPU = has_gpu()
pytestmark = pytest.mark.skipif(not HAS_GPU, reason="no GPU that torch can use")


@pytest.mark.parametrize(
    "precision, more", [("bf16", ()), ("fp16", ()), ("fp32", ("--tta", "--export_pt2"))]
)
def test_run_is_repeatable_resumes_and_its_model_is_the_same_on_the_cpu(precision, more, tmp_path):
    folder = write_mnist_files(tmp_path / "data", train=4000, test=1000)
    # 200 steps in two epochs, so that a temperature is fitted.
    settings = ("--data_dir", folder, "--precision", precision, "--batch_size", 40, *more)
    settings += ("--schedule", "constant", "--resume")
    for name, epochs in (("one", 2), ("two", 2), ("three", 1), ("three", 2)):
        result = run(ROOT / "train.py", *settings, "--epochs", epochs, "--run_dir", name, cwd=tmp_path)
        assert result.returncode == 0 and result.stderr == "", result.stderr
        assert f"; cuda, {precision}; " in result.stdout
    tables = [tmp_path / name / "predictions/epoch-002.csv" for name in ("one", "two", "three")]
    assert len({path.read_text() for path in tables}) == 1
    for model in (tmp_path / "one").glob("model.pt*"):
        for device in ("cpu", "cuda"):
            tables.append(tmp_path / f"{model.name}-{device}.csv")
            flags = ("--data_dir", folder, "--device", device, "--predictions", tables[-1])
            result = run(ROOT / "evaluate.py", model, *flags, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
    guesses = [[line.split(",")[:3] for line in path.read_text().splitlines()] for path in tables]
    assert all(columns == guesses[0] for columns in guesses)


GRAPH = """
import torch
from model import Classifier, ConvNet
from program import CudaGraphs
from sources.drawn import draw_digits

torch.backends.cudnn.deterministic = True
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


STEP = """
import sys, torch, train

count, record = 0, torch.cuda.graph.__enter__

def counted(self):
    global count
    count += 1
    return record(self)

torch.cuda.graph.__enter__ = counted
for device in sys.argv[2:]:
    config = train.Config(data_dir=sys.argv[1], epochs=2, batch_size=128, device=device)
    summary = (train.train(config) / "summary.json").read_text()
    assert '"wrong": ' in summary and int(summary.split('"wrong": ')[1].split(",")[0]) < 100, summary
print(count)
"""
WAITS = """
import sys, torch, train
from data import MarginSampler
from logging_utils import RunLogger

def may_wait(where, name):
    function = getattr(where, name)

    def call(*arguments, **options):
        torch.cuda.set_sync_debug_mode("default")
        return function(*arguments, **options)

    setattr(where, name, call)

may_wait(train, "batches")  # of all images, at the end of an epoch
may_wait(MarginSampler, "choose")
may_wait(RunLogger, "flush")
log_step, strict = RunLogger.log_step, 0

def then_never_wait(log, epoch, step, loss):
    global strict
    log_step(log, epoch, step, loss)
    if epoch > 1:  # the first epoch meets new shapes
        torch.cuda.set_sync_debug_mode("error")
        strict += 1

RunLogger.log_step = then_never_wait
folder, precision, free = sys.argv[1:]
if free == "none":  # a GPU that cannot hold the images
    torch.cuda.mem_get_info = lambda *_: (1000, 1000)
train.train(train.Config(data_dir=folder, epochs=2, batch_size=40, device="cuda", precision=precision))
print(strict)
"""


OWN_LOOP = """
import torch
from logging_utils import RunLogger

images, labels = torch.rand(200, 1, 8, 8), torch.arange(200) % 3  # on the CPU, as their loader gives them
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).cuda()
with RunLogger("run", {}, ["a", "b", "c"], images) as log, torch.autocast("cuda", torch.bfloat16):
    loss = torch.nn.functional.cross_entropy(net(images.cuda()), labels.cuda())
    log.log_step(1, 1, loss)
    log.log_epoch(1, 1, net(images.cuda()), labels)
"""


def count_gpus(cwd: Path) -> int:
    return int(run("-c", "import torch; print(torch.cuda.device_count())", cwd=cwd).stdout)


def test_training_records_its_step_on_each_gpu(tmp_path):
    devices = [f"cuda:{i}" for i in range(count_gpus(tmp_path))]
    folder = write_mnist_files(tmp_path / "data", train=4000, test=1000)
    result = run("-c", STEP, folder, *devices, cwd=tmp_path, wandb="offline")
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert result.stdout.splitlines()[-1] == str(2 * len(devices))  # of batches of 128 and of the last one


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torchrun_uses_the_device_that_is_asked_for(device, tmp_path):
    folder = write_mnist_files(tmp_path / "data", train=4000, test=1000)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train.py")
    flags = ("--data_dir", folder, "--epochs", 1, "--device", device)
    result = run(*torchrun, *flags, cwd=tmp_path)
    if device == "cuda" and count_gpus(tmp_path) == 1:
        assert "The device cuda:1 is not available" in result.stderr
    else:
        assert result.returncode == 0 and "warn" not in result.stderr.lower(), result.stderr


@pytest.mark.parametrize("precision, free", [("auto", "all"), ("fp16", "all"), ("auto", "none")])
def test_no_step_waits_for_the_gpu_except_to_fetch_losses_and_choose_images(precision, free, tmp_path):
    folder = write_mnist_files(tmp_path / "data", train=4000, test=1000)
    result = run("-c", WAITS, folder, precision, free, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "100"


def test_recorded_step_trains_the_same_net(tmp_path):
    result = run("-c", GRAPH, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == "", result.stderr


def test_step_that_reads_a_value_from_the_gpu_is_refused(tmp_path):
    result = run("-c", READS_A_VALUE, cwd=tmp_path)
    assert "Remove @CudaGraphs" in result.stdout, result.stderr


def test_loop_of_your_own_may_give_labels_on_the_cpu(tmp_path):
    result = run("-c", OWN_LOOP, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "run/predictions/epoch-001.csv").read_text().splitlines()) == 201


def test_full_memory_is_one_line(tmp_path):
    folder = write_mnist_files(tmp_path / "data", train=4000, test=100)
    program = (
        "import sys, torch, train; torch.cuda.set_per_process_memory_fraction(0.01); sys.exit(train.main())"
    )
    flags = ("--data_dir", folder, "--l1_size", 128, "--batch_size", 4000)
    result = run("-c", program, *flags, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "Lower --batch_size" in result.stderr, result.stderr
