"""Train a small ConvNet on MNIST, log a table of its predictions every epoch, export it to TorchScript.

    python train.py                                         the recipe: 6 epochs
    python train.py --l1_size 64 --l2_size 128 --lr 0.02    a variant to compare it with
    python train.py --run_dir runs/001 --resume             go on where that run stopped
    python train.py --dataset my/pictures                   train/CLASS/*.png and test/CLASS/*.png
    torchrun --nproc_per_node=2 train.py                    on two GPUs, or CPU processes
    python train.py --help                                  every setting

Everything goes to runs/<number>/ (README.md lists what) and to W&B where an account is set up.

On MNIST, with two cores of an AMD EPYC in bf16 and torch 2.15: 99.52 % right (0.04 standard deviation over 5
seeds), in 83 s of training, logging included. benchmarks/README.md has more.
"""

import argparse
import io
import json
import math
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from data import DataError, ImageData, batches, load_data, pixel_statistics
from logging_utils import RunLogger, create_run_dir, exit_status, finished_epochs, replacing, stop_signals
from model import ConvNet, ModelError, export_program, export_torchscript, infer, pick_device, read_intact


class ConfigError(Exception):
    """A setting is out of range, or does not go with the others, the data or the hardware."""


def setting(default, help: str, low: float | None = None, high: float | None = None, choices=None):
    return field(default=default, metadata={"low": low, "high": high, "choices": choices, "help": help})


@dataclass(frozen=True)
class Config:
    """Every setting: its default, its meaning, its bounds. The command line is built from this."""

    epochs: int = setting(6, "passes over the training set", low=1)
    batch_size: int = setting(128, "images a training step", low=1)
    lr: float = setting(0.01, "learning rate of Adam, its peak where it is scheduled", low=1e-12, high=1e3)
    beta2: float = setting(0.95, "decay of Adam's mean of squared gradients", low=0.0, high=0.999999)
    schedule: str = setting(
        "one_cycle", "of the rate: one_cycle, constant", choices=("one_cycle", "constant")
    )
    label_smoothing: float = setting(0.1, "share of a label spread over all classes", low=0.0, high=0.99)
    augment: float = setting(1.0, "how much training images are shifted, turned, scaled", low=0.0, high=5.0)
    l1_size: int = setting(32, "channels of the first convolution", low=1, high=4096)
    l2_size: int = setting(64, "channels of the second convolution", low=1, high=4096)
    conv_kernel: int = setting(5, "height and width of both convolutions, odd", low=1, high=99)
    seed: int = setting(0, "random seed of weights, order and distortions", low=0, high=2**32 - 1)
    precision: str = setting(
        "auto", "auto, fp32, bf16, fp16 (GPU)", choices=("auto", "fp32", "bf16", "fp16")
    )
    device: str = setting("auto", "auto (the GPU where there is one), cpu, cuda, cuda:1")
    dataset: str = setting("auto", "mnist, fashion_mnist, kmnist, qmnist, cifar10, synthetic, or a folder")
    image_size: int = setting(28, "height and width that a folder's pictures get", low=4, high=96)
    data_dir: str = setting("data", "folder of the data sets, downloaded if missing")
    val_size: int = setting(0, "training images to hold out and evaluate on instead of the test set", low=0)
    img_count: int = setting(10_000, "rows of the W&B table; the CSV files have all", low=1)
    log_images: str = setting("320", "rows of the W&B table with a picture, wrong guesses apart; or all")
    export_pt2: bool = setting(False, "export to model.pt2 (torch.export) too")
    run_dir: str = setting(None, "folder of the run, new or empty [the next number in runs/]")
    resume: bool = setting(False, "go on with the run in --run_dir after its last finished epoch")

    def __post_init__(self):
        for f in fields(self):
            value, (low, high, choices, _) = getattr(self, f.name), f.metadata.values()
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                bounds = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ConfigError(f"--{f.name} must be {bounds}, not {value}")
            if choices and value not in choices:
                raise ConfigError(f"--{f.name} must be one of {', '.join(choices)}, not {value}")
        if self.conv_kernel % 2 == 0:
            raise ConfigError(f"--conv_kernel must be odd, not {self.conv_kernel}")
        if self.log_images != "all" and not (self.log_images.isdecimal() and len(self.log_images) < 10):
            raise ConfigError(f"--log_images must be a number or all, not {self.log_images}")
        if self.resume and self.run_dir is None:
            raise ConfigError("--resume needs the --run_dir of the run to go on with")


def train(config: Config) -> None:
    """A whole run, from its settings to its exported model."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun
    if config.resume and finished_epochs(config.run_dir) == config.epochs:
        if rank == 0:
            print(f"{config.run_dir} is finished: there is nothing to resume")
        return
    if world > 1:
        dist.init_process_group()
    device = pick_device(config.device)
    config, data = prepare(config, device, rank, world)
    run_dir = Path(config.run_dir)
    # On a GPU convolutions are TF32 and not repeatable unless told otherwise.
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)  # of the order and the distortions

    mean, std = pixel_statistics(data.train_images)
    model = ConvNet(
        num_classes=len(data.classes),
        in_channels=data.train_images.shape[1],
        image_size=data.train_images.shape[2:],
        l1_size=config.l1_size,
        l2_size=config.l2_size,
        conv_kernel=config.conv_kernel,
        mean=mean,
        std=std,
    ).to(device, memory_format=torch.channels_last)
    # Batch norm stays local: each process normalises by its own part of a batch.
    forward = DistributedDataParallel(model) if world > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(0.9, config.beta2), fused=True)
    steps_per_epoch = math.ceil(len(data.train_images) / config.batch_size)

    amp_dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
    autocast = torch.autocast(device.type, amp_dtype, enabled=config.precision != "fp32")
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    data = data.to(device)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    finished = load_checkpoint(run_dir / "checkpoint.pt", generator, parts) if config.resume else None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    record = {**asdict(config), "classes": data.classes, "parameters": parameters, "processes": world}
    advice = f"python train.py --run_dir {shlex.quote(config.run_dir)} --resume goes on"
    with (
        stop_signals(advice) as stop_if_asked,
        RunLogger(run_dir, record, data, finished, rank, world) as log,
    ):
        for epoch in range((finished or 0) + 1, config.epochs + 1):
            model.train()
            train_set = (data.train_images, data.train_labels)
            shuffled = batches(*train_set, config.batch_size, generator, config.augment, rank, world)
            tracked = log.track(epoch, shuffled, len(data.train_images))
            first_step = (epoch - 1) * steps_per_epoch + 1
            for step, (images, labels, share) in enumerate(tracked, first_step):
                # images: (B, C, H, W) in 0..255, labels: int64 (B,); both on the device already
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, step, config.epochs * steps_per_epoch)
                with autocast:
                    logits = forward(images)  # (B, K)
                    loss = share * F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                log.log_step(step, loss)
                stop_if_asked()

            if rank == 0:
                # In fp32, as the exported model computes: the same guesses now and years later.
                logits = infer(model, data.test_images)  # (N, K)
                log.log_epoch(logits, data.test_labels)
                save_checkpoint(run_dir / "checkpoint.pt", epoch, generator, parts)

        if rank == 0:
            # What the exported file says of itself.
            takes = {"shape": [None, *data.test_images.shape[1:]], "dtype": "uint8"}
            known = {key: log.config[key] for key in ("classes", "dataset", "torch", "commit")}
            metadata = {**known, "input": takes, "metrics": log.summary, "config": log.config}
            example = data.test_images[:64]
            export_torchscript(model, run_dir / "model.pt", metadata, example)
            if config.export_pt2:
                export_program(model, run_dir / "model.pt2", metadata, example)
            log.log_model(run_dir / "model.pt", metadata)
    if rank == 0:
        print_results(config, len(data.test_images), log)
    if world > 1:
        dist.barrier()  # nobody takes the group down while another still uses it
        dist.destroy_process_group()


def prepare(config: Config, device: torch.device, rank: int, world: int) -> tuple[Config, ImageData]:
    """Load the data and make the run's directory. The config that comes back has no "auto" left.

    Of several processes the first does this, and the others follow it.
    """
    shared = [config]
    if rank > 0:
        dist.broadcast_object_list(shared)
        config = shared[0]
    elif config.batch_size < world:
        raise ConfigError(f"--batch_size {config.batch_size} is fewer than the {world} processes")
    precision = pick_precision(config.precision, device)
    data = load_data(config.dataset, config.data_dir, config.val_size, config.image_size)
    if rank > 0:
        return config, data
    if config.resume and data.name != config.dataset:
        raise ConfigError(f"{config.run_dir} is of {config.dataset}, {config.data_dir} holds {data.name}")
    run_dir = config.run_dir if config.resume else str(create_run_dir(config.run_dir))
    name = device.type if config.device == "auto" else config.device
    config = replace(config, device=name, precision=precision, dataset=data.name, run_dir=run_dir)
    counts = f"{len(data.train_images):,} images to train on, {len(data.test_images):,} to evaluate on"
    print(f"{data.name}: {counts}; {name}, {precision}; {run_dir}", flush=True)
    if world > 1:
        dist.broadcast_object_list([config])
    return config, data


def pick_precision(precision: str, device: torch.device) -> str:
    """What "auto" stands for: bf16 where the hardware computes in it, else fp16 on a GPU, fp32 on a CPU."""
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("--precision fp16 needs a GPU. Use bf16 or fp32 on a CPU.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    cpu = torch.cpu.get_capabilities()
    return "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"


def learning_rate(config: Config, step: int, total_steps: int) -> float:
    """The rate of step 1 .. total_steps: constant, or up to `lr` in a quarter of them and down to near 0."""
    if config.schedule == "constant":
        return config.lr
    peak = max(1, total_steps // 4)
    return config.lr * min(step / peak, (total_steps + 1 - step) / (total_steps + 1 - peak))


def save_checkpoint(path: Path, epoch: int, generator: torch.Generator, parts: dict) -> None:
    """Save what the rest of the run depends on: the parts' states and those of all random generators."""
    state = {name: part.state_dict() for name, part in parts.items()}
    state |= {"epoch": epoch, "generator": generator.get_state(), "cpu": torch.get_rng_state()}
    state["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    content = io.BytesIO()  # written by us, because torch hides why a disk refuses it
    torch.save(state, content)
    with replacing(path) as scratch:
        scratch.write_bytes(content.getbuffer())


def load_checkpoint(path: Path, generator: torch.Generator, parts: dict) -> int:
    """Restore what `save_checkpoint` saved. Returns the epoch, 0 where none was finished yet."""
    if not path.exists():
        return 0
    try:
        state = torch.load(io.BytesIO(read_intact(path)), map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["cpu"])
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
        return state["epoch"]
    except Exception as error:  # torch raises what it likes at damaged bytes
        raise ModelError(f"{path} is damaged, so the run cannot go on. Start a new one.") from error


def print_results(config: Config, images: int, log: RunLogger) -> None:
    """Where everything is, what to do with it, and what came out."""
    run_dir = shlex.quote(config.run_dir)
    data_dir = "" if config.data_dir == Config.data_dir else f" --data_dir {shlex.quote(config.data_dir)}"
    epochs = f"{run_dir}@1 {run_dir}@{config.epochs}" if config.epochs > 1 else run_dir
    print(f"model        {config.run_dir}/model.pt")
    print(f"predictions  {config.run_dir}/predictions/")
    print(f"W&B          {log.wandb.how_to_see()}")
    print(f"next         python evaluate.py {run_dir}/model.pt{data_dir}")
    print(f"             python compare.py {epochs}{data_dir}")
    result = f"{log.summary['wrong']} of {images:,} images wrong, accuracy {log.summary['acc']:.2f} %"
    print(f"done         {config.dataset}: {result}")


def parse_config(argv: list[str] | None = None) -> Config:
    """The command line as a Config. With --resume all other settings are those of the run.

    Raises ConfigError where a setting is out of range, or not that of the run to resume.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.error = lambda message: parser.exit(2, f"error: {message} (see python train.py --help)\n")
    for f in fields(Config):
        shown = "" if f.default is None or f.type is bool else f" [{f.default}]"
        kind = {"type": f.type, "metavar": f.type.__name__}
        kind = {"action": "store_true"} if f.type is bool else kind
        parser.add_argument(f"--{f.name}", help=f.metadata["help"] + shown, **kind)
    given = vars(parser.parse_args(argv))
    config = Config(**given)
    return resumed(config.run_dir, given) if config.resume else config


def resumed(run_dir: str, given: dict) -> Config:
    """The settings of a run to go on with. Of those `given` anew none may differ, but where the data is."""
    path = Path(run_dir) / "config.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        kept = {f.name: f.type(saved[f.name]) for f in fields(Config) if f.name not in ("run_dir", "resume")}
    except Exception as error:  # damaged in whatever way
        raise ConfigError(f"{path} is missing or damaged. Take another --run_dir.") from error
    given = {name: value for name, value in given.items() if value != "auto"}  # which is what it was then
    dataset = given.get("dataset", "")
    if kept["dataset"] in (os.path.abspath(dataset), f"{dataset}-format"):
        given["dataset"] = kept["dataset"]  # the same by another name
    config = Config(**{**kept, **given})
    changed = [
        f"--{name} was {kept[name]}, now {value}"
        for name, value in given.items()
        if name in kept and name != "data_dir" and value != kept[name]
    ]
    if config.epochs > kept["epochs"] and config.schedule == "constant":
        changed.remove(f"--epochs was {kept['epochs']}, now {config.epochs}")  # those before are the same
    elif config.epochs > kept["epochs"]:
        changed.append(f"the {config.schedule} schedule depends on the epochs")
    if changed:
        raise ConfigError(f"a resumed run keeps its settings: {'; '.join(changed)}. Start a new run.")
    return config


def main() -> int:
    try:
        return exit_status(lambda: train(parse_config()), ConfigError, DataError, ModelError)
    except RuntimeError as error:  # what gloo says where another process has ended
        if "by peer" not in str(error):
            raise
        print(f"rank {os.environ['RANK']} stops, because another process did", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
