"""Train a small ConvNet on MNIST, log a table of its predictions after every epoch, export it to TorchScript.

    python train.py                                             # the recipe: 5 epochs
    python train.py --l1_size 64 --l2_size 128 --lr 0.01        # a variant to compare it with
    python train.py --batch_size 32 --lr 0.001 --schedule constant --max_shift 0 --precision fp32   # the tutorial's
    python train.py --run_dir runs/001 --resume                 # go on where that run stopped
    python train.py --help                                      # every setting

Everything goes to runs/<number>/ (logging_utils.py lists what) and to W&B where an account is set up.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from data import DATASETS, DataError, batches, load_data
from logging_utils import RunError, RunLogger, create_run_dir, describe_environment, in_use, replacing
from model import ConvNet, ModelError, export_torchscript, infer, pick_device, pixel_statistics

# ---------------------------------------------------------------------------------------------------------------------
# Config


class ConfigError(Exception):
    """A setting is out of range, or does not go with the others, the data or the hardware."""


def setting(default, help: str, low: float | None = None, high: float | None = None, choices: tuple | None = None):
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Config:
    """Every setting, its default and its bounds, both included. The command line is built from this."""

    epochs: int = setting(5, "passes over the training set", low=1)
    batch_size: int = setting(64, "images a training step", low=1)
    lr: float = setting(0.005, "learning rate of Adam; its peak, if it is scheduled", low=1e-12, high=1e3)
    schedule: str = setting("one_cycle", "learning rate over the run", choices=("one_cycle", "constant"))
    label_smoothing: float = setting(0.0, "share of each label spread over all classes", low=0.0, high=0.99)
    max_shift: int = setting(2, "pixels a training image is moved by at most, each way", low=0, high=14)
    l1_size: int = setting(32, "channels of the first convolution", low=1)
    l2_size: int = setting(64, "channels of the second convolution", low=1)
    conv_kernel: int = setting(5, "height and width of both convolutions; odd", low=1)
    seed: int = setting(0, "of weights, order and shifts", low=0, high=2**63 - 1)
    precision: str = setting("auto", "of training; auto is bf16 where the hardware has it, else fp16 on a GPU, fp32 on a CPU",
                             choices=("auto", "fp32", "bf16", "fp16"))
    device: str = setting("auto", "auto is the GPU where there is one; or cpu, cuda, cuda:1")
    dataset: str = setting("auto", "auto is MNIST, or synthetic digits where it is not to be had", choices=DATASETS)
    data_dir: str = setting("data", "folder of the data sets, downloaded there if missing")
    val_size: int = setting(0, "training images to hold out and evaluate on instead of the test set", low=0)
    img_count: int = setting(10_000, "rows of the W&B table; the CSV files always have all", low=1)
    log_images: str = setting("320", "rows of the W&B table with a picture, beside every wrong guess; or all")
    run_dir: str = setting(None, "folder of this run, new or empty [the next number below runs/]")
    resume: bool = setting(False, "go on with the run in --run_dir from its last finished epoch")

    def __post_init__(self):
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                bounds = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ConfigError(f"--{f.name} must be {bounds}, not {value}")
        if self.conv_kernel % 2 == 0:
            raise ConfigError(f"--conv_kernel must be odd, not {self.conv_kernel}")
        if self.log_images != "all" and not self.log_images.isdecimal():
            raise ConfigError(f"--log_images must be a number or all, not {self.log_images}")
        if self.resume and self.run_dir is None:
            raise ConfigError("--resume needs the --run_dir of the run to go on with")


def parse_config(argv: list[str] | None = None) -> Config:
    """The command line as a Config; with --resume, the settings of that run are the defaults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"error: {message} (python train.py --help lists every setting)\n")
    for f in fields(Config):
        if f.type is bool:
            parser.add_argument(f"--{f.name}", action="store_true", help=f.metadata["help"])
        else:
            parser.add_argument(f"--{f.name}", type=f.type, default=f.default, help=f.metadata["help"],
                                choices=f.metadata["choices"], metavar=None if f.metadata["choices"] else f.type.__name__)
    config = Config(**vars(parser.parse_args(argv)))
    if not config.resume:
        return config
    saved = load_settings(config.run_dir)
    parser.set_defaults(**saved)
    config = Config(**vars(parser.parse_args(argv)))
    changed = [f"--{name} was {value}, now {getattr(config, name)}" for name, value in saved.items()
               if name not in ("data_dir", "run_dir") and getattr(config, name) != value]
    if changed:
        raise ConfigError(f"a resumed run keeps its settings: {'; '.join(changed)}. Start another run to change them.")
    return config


def load_settings(run_dir: str) -> dict:
    """The settings in a run's config.json, leaving out what is written there of the hardware and the versions."""
    path = Path(run_dir) / "config.json"
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: there is no run to resume in {run_dir}. Start it without --resume.") from error
    return {f.name: saved[f.name] for f in fields(Config) if f.name in saved}


# ---------------------------------------------------------------------------------------------------------------------
# Precision and schedule


def pick_precision(precision: str, device: torch.device) -> str:
    """ "fp32", "bf16" or "fp16" for "auto", which takes bf16 only where the hardware computes in it."""
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError("--precision fp16 needs a GPU. Use bf16 or fp32 on a CPU.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_has_bf16() else "fp32"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively, by the flags Linux names its instructions with."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})  # x86: the first two; Arm: the last


def learning_rate(config: Config, step: int, total_steps: int) -> float:
    """The rate of step 1 .. total_steps. One cycle: up to `lr` over the first quarter, then down to near zero."""
    if config.schedule == "constant":
        return config.lr
    peak = max(1, total_steps // 4)
    return config.lr * min(step / peak, (total_steps + 1 - step) / (total_steps + 1 - peak))


# ---------------------------------------------------------------------------------------------------------------------
# The run


def train(config: Config) -> None:
    device = pick_device(config.device)
    precision = pick_precision(config.precision, device)
    if config.run_dir and in_use(config.run_dir) and not config.resume:
        raise RunError(f"--run_dir {config.run_dir} is in use. Add --resume to go on with that run, or choose another.")
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False  # fp32 means fp32 on a GPU too

    data = load_data(config.dataset, config.data_dir, config.val_size)
    if config.batch_size > len(data.train_images):
        raise ConfigError(f"--batch_size {config.batch_size} is larger than the {len(data.train_images)} training images")
    run_dir = Path(config.run_dir) if config.resume else create_run_dir(config.run_dir)
    # From here on the config says what was really used.
    config = replace(config, dataset=data.name, device=str(device), precision=precision, run_dir=str(run_dir))

    if config.resume and data.name != config.dataset:
        raise ConfigError(f"{run_dir} was trained on {config.dataset}; --data_dir {config.data_dir} holds {data.name}")
    # From here on the config says what is really used.
    config = replace(config, dataset=data.name, device=str(device), precision=precision, run_dir=str(run_dir))
    settings = {name: value for name, value in asdict(config).items() if name != "resume"}

    # Config, data, model, optimizer
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)  # of order and shifts
    data = data.to(device)
    mean, std = pixel_statistics(data.train_images)
    _, channels, height, width = data.train_images.shape
    model = ConvNet(len(data.classes), channels, (height, width), config.l1_size, config.l2_size, config.conv_kernel,
                    mean, std).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    amp = torch.autocast(device.type, torch.float16 if precision == "fp16" else torch.bfloat16, enabled=precision != "fp32")
    steps_per_epoch = math.ceil(len(data.train_images) / config.batch_size)

    environment = {"parameters": sum(p.numel() for p in model.parameters()), **describe_environment(device)}
    print(f"{data.name}: {len(data.train_images):,} training and {len(data.test_images):,} test images; "
          f"{environment['parameters']:,} parameters; {device} {precision}; {run_dir}", flush=True)
    with RunLogger(run_dir, {**settings, **environment}, data.test_images, config.epochs, config.img_count,
                   config.log_images) as log:
        state = (model, optimizer, scaler, generator)
        done = load_checkpoint(run_dir / "checkpoint.pt", *state) if config.resume else 0
        if config.resume:
            log.resume(done, done * steps_per_epoch)
        for epoch in range(done + 1, config.epochs + 1):
            model.train()
            train_batches = batches(data.train_images, data.train_labels, config.batch_size, generator, config.max_shift)
            for images, labels in log.track(train_batches, epoch, len(data.train_images)):  # (B, C, H, W) uint8, (B,)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(config, log.step + 1, config.epochs * steps_per_epoch)
                with amp:
                    logits = model(images)  # (B, K)
                    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                log.log_step(loss)
            logits = infer(model, data.test_images)  # (N, K) in fp32, as the exported model will give them
            log.log_epoch(logits, data.test_labels)
            save_checkpoint(run_dir / "checkpoint.pt", epoch, *state)

        metadata = {
            "classes": data.classes,
            "input": {"shape": [None, channels, height, width], "dtype": "uint8"},
            "dataset": data.name,
            "evaluated_on": f"{config.val_size} training images held out" if config.val_size else "test set",
            "metrics": log.summary,
            "config": settings,
            "torch": environment["torch"],
            "commit": environment["commit"],
        }
        export_torchscript(model, run_dir / "model.pt", metadata, data.test_images[:64])
        log.log_model(run_dir / "model.pt", metadata)

    wrong, acc, images = log.summary["wrong"], log.summary["acc"], len(data.test_images)
    data_dir = "" if config.data_dir == "data" else f" --data_dir {config.data_dir}"
    print(f"model        {run_dir}/model.pt\n"
          f"predictions  {run_dir}/predictions/\n"
          f"W&B          {log.how_to_see()}\n"
          f"next         python evaluate.py {run_dir}/model.pt{data_dir}\n"
          f"             python compare.py {run_dir}@1 {run_dir}@{config.epochs}{data_dir}\n"
          f"done: {wrong} of {images:,} images of {data.name} wrong, accuracy {acc:.2f} %")


def save_checkpoint(path: Path, epoch: int, model, optimizer, scaler, generator) -> None:
    """Save all that the rest of the run depends on, at the end of an epoch."""
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "generator": generator.get_state(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),
    }
    with replacing(path) as scratch:
        torch.save(state, scratch)


def load_checkpoint(path: Path, model, optimizer, scaler, generator) -> int:
    """Restore what `save_checkpoint` saved. Returns the epoch it was saved after, 0 where there is none yet."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    generator.set_state(state["generator"])
    torch.set_rng_state(state["rng"])
    torch.cuda.set_rng_state_all(state["cuda_rng"])
    return state["epoch"]


def main() -> int:
    try:
        train(parse_config())
    except (ConfigError, DataError, ModelError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the last finished epoch is kept, --resume goes on from there", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
