"""Train a small ConvNet on MNIST, log a table of its predictions every epoch, export it to TorchScript.

    python train.py                                         the default recipe: 5 epochs
    python train.py --l1_size 64 --l2_size 128 --lr 0.02    a variant to compare it with
    python train.py --run_dir runs/001 --resume             start a run, or continue it if it was stopped
    torchrun --nproc_per_node=2 train.py                    on two GPUs, or in two CPU processes

README.md lists the files of a run, --help every setting. On two CPU cores: 99.57 % (n=5) after 76 s.
"""

import math
import os
import sys
import textwrap
import time
from collections import deque
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from data import DataError, ImageData, MarginSampler, batches, digest, load_data, pixel_statistics
from logging_utils import RunError, RunLogger, holds_run
from model import Classifier, ConvNet, MeanOfShifts, ModelError, export_model, fit_temperature
from model import full_precision, predict_logits, try_training
from program import ConfigError, CudaGraphs, check_settings, exit_status, finished_hint, is_finished
from program import keep_freed_memory, own_torch_state, parse_settings, pick_device, pick_precision
from program import printable, process_group, progress, quoted, read_json, read_tensors, resume_hint
from program import resumed_settings, setting, start_command, stop_signals, write_tensors


@dataclass(frozen=True)
class Config:
    """Every setting: its default, its meaning, its bounds. The command line is built from it."""

    epochs: int = setting(5, "epochs, each of as many images as the training set has", low=1)
    batch_size: int = setting(128, "images per training step", low=1)
    lr: float = setting(0.01, "Adam's learning rate; with one_cycle its maximum", low=1e-12, high=1e3)
    beta2: float = setting(0.95, "decay of Adam's mean of squared gradients", low=0.0, high=0.999999)
    schedule: str = setting("one_cycle", "the rate over time", choices=("one_cycle", "constant"))
    label_smoothing: float = setting(0.1, "probability spread over all classes", low=0.0, high=0.99)
    augment: float = setting(1.0, "strength of random shifts, rotations, scalings", low=0.0, high=5.0)
    margin_sampling: bool = setting(True, "train more often on images that the net is unsure of")
    l1_size: int = setting(32, "channels of the first convolution", low=1, high=4096)
    l2_size: int = setting(64, "channels of the second convolution", low=1, high=4096)
    conv_kernel: int = setting(5, "height and width of both kernels, odd", low=1, high=99)
    tta: bool = setting(False, "test-time augmentation: mean logits of the image and two shifted copies")
    seed: int = setting(0, "random seed of weights, order and augmentation", low=0, high=2**32 - 1)
    precision: str = setting("auto", "auto is bf16 if available", choices=("auto", "fp32", "bf16", "fp16"))
    device: str = setting("auto", "auto (a CUDA GPU if there is one), cpu, cuda, cuda:1")
    dataset: str = setting("auto", "auto, mnist, fashion_mnist, kmnist, qmnist, cifar10, synthetic, FOLDER")
    image_size: int = setting(28, "height and width that a folder's pictures get", low=4, high=512)
    data_dir: str = setting("data", "folder of the named data sets, downloaded if missing")
    val_size: int = setting(0, "training images to hold out and evaluate on instead of the test set", low=0)
    img_count: int = setting(0, "rows of the W&B table; 0 is 10,000, fewer above 16 classes", low=0)
    log_images: str = setting("320", "leading W&B rows with a picture (wrong guesses have one), or all")
    export_pt2: bool = setting(False, "also export to model.pt2 (torch.export)")
    run_dir: str = setting(None, "directory of the run, new or empty [the next number in runs/]")
    resume: bool = setting(False, "continue the run in --run_dir, if there is one, else start it")

    def __post_init__(self):
        check_settings(self)
        if self.conv_kernel % 2 == 0:
            raise ConfigError(f"--conv_kernel must be odd, not {self.conv_kernel}.")
        if self.log_images != "all" and not (self.log_images.isdecimal() and len(self.log_images) < 10):
            raise ConfigError(f"--log_images must be a number or all, not {self.log_images}.")
        if self.resume and self.run_dir is None:
            raise ConfigError("--resume needs the --run_dir of the run to start or continue.")


@own_torch_state()
@full_precision()
def train(config: Config) -> Path:
    """Train, evaluate and export. Raises ConfigError, DataError, ModelError, RunError or OSError."""
    # ---- Processes and device ----
    rank, world_size = process_group()
    resuming = config.resume and holds_run(config.run_dir)
    if resuming:  # a Config made in Python must have the run's settings, too
        config = resumed_settings(Config, config.run_dir, asdict(config))
    if resuming and is_finished(Path(config.run_dir), config.epochs):
        if rank == 0:
            print(finished_hint(config.run_dir))
        return Path(config.run_dir)
    if world_size > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)  # for order and augmentation
    keep_freed_memory()

    # ---- Data ----
    shared = [config, resuming]
    if rank > 0:  # wait for rank 0, which downloads the data and decides what each "auto" means
        dist.broadcast_object_list(shared)
        if shared[1] and not resuming:
            raise RunError(f"{shared[0].run_dir} is not on this machine. --resume needs it on all of them.")
    config, resuming = shared
    data = load_data(config.dataset, config.data_dir, config.val_size, config.image_size)
    if rank == 0:
        found = {"dataset": data.name, "device": config.device.replace("auto", device.type)}
        config = replace(config, **found, precision=pick_precision(config.precision, device))
        if world_size > 1:
            dist.broadcast_object_list([config, resuming])
    mean, std = pixel_statistics(data.train_images)  # (C,)
    sha256 = data.fingerprint()
    if resuming and read_json(Path(config.run_dir, "config.json")).get("data_sha256", sha256) != sha256:
        problem = f"{data.name} does not hold the images that this run was trained on"
        raise ConfigError(f"{problem}. Give their place with --data_dir or --dataset, or start a new run.")
    data = data.to(device)
    num_images, *image_shape = data.train_images.shape  # N, (C, H, W)
    steps_per_epoch = math.ceil(num_images / config.batch_size)
    sampler = MarginSampler(num_images, config.batch_size, 0.25 if config.margin_sampling else 1).to(device)

    # ---- Model and optimizer ----
    net = ConvNet(len(data.classes), image_shape, config.l1_size, config.l2_size, config.conv_kernel)
    model = Classifier(MeanOfShifts(net) if config.tta else net, mean, std).to(device)
    amp_dtype = torch.float16 if config.precision == "fp16" else torch.bfloat16
    # No cache of cast weights: inside a caller's own autocast it would keep the weights of the first step.
    autocast = torch.autocast(device.type, amp_dtype, config.precision != "fp32", cache_enabled=False)
    # Try the export and a step now: after the last epoch it is too late to change the net.
    export_model(model, data.eval_images, {"classes": data.classes}, config.export_pt2)
    try_training(model, data.eval_images, autocast)
    # Batch norm normalizes by the images of its own process.
    ddp_model = torch.nn.parallel.DistributedDataParallel(model) if world_size > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), config.lr, betas=(0.9, config.beta2), fused=True)
    base_rates = [group["lr"] for group in optimizer.param_groups]  # not yet scheduled

    # ---- The step, in mixed precision ----
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    @CudaGraphs  # on one GPU, what it does is recorded and repeated: several times faster
    def forward_backward(images: torch.Tensor, labels: torch.Tensor, weight: float) -> tuple:
        """Compute gradients. Takes images (B, C, H, W), uint8 or in 0..1; returns logits (B, K), loss ()."""
        with autocast:
            logits = ddp_model(images)
            loss = weight * F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
        optimizer.zero_grad(set_to_none=device.type == "cpu")  # a CUDA graph writes to the same memory
        scaler.scale(loss).backward()
        return logits.detach(), loss.detach()

    # ---- Resume, and the run directory ----
    state = {"model": model, "optimizer": optimizer, "scaler": scaler, "sampler": sampler}
    resumed_epoch = load_checkpoint(config.run_dir, generator, state) if resuming else None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    details = {**asdict(config), "data_sha256": sha256, "processes": world_size, "parameters": parameters}
    pictures = data.eval_images if image_shape[0] in (1, 3) else None
    log = RunLogger(config.run_dir, details, data.classes, pictures, resumed_epoch, rank, world_size)
    if world_size > 1:  # rank 0 has chosen the directory of a new run
        dist.broadcast_object_list(shared := [log.run_dir])
        log.run_dir = shared[0]
    if rank == 0:
        if os.path.isabs(data.name):  # a folder: show which of its folders are the classes
            names = textwrap.shorten(printable(", ".join(data.classes)), 90, placeholder=" ...")
            print(f"{len(data.classes)} classes: {names}")
        sizes = f"{num_images:,} images to train on, {len(data.eval_images):,} to evaluate on"
        print(f"{data.name}: {sizes}; {config.device}, {config.precision}; {log.run_dir}", flush=True)

    with stop_signals(resume_hint(log.run_dir)) as stop_if_asked, log:
        for epoch in range((resumed_epoch or 0) + 1, config.epochs + 1):
            # ---- Train ----
            start = time.perf_counter()
            model.train()
            # For fit_temperature: the last 40 steps. Before step 160 none, because scores still change fast.
            recent = deque(maxlen=40 if epoch * steps_per_epoch >= 160 else 0)
            options = data.train_images, data.train_labels, config.batch_size, generator, config.augment
            shuffled = batches(*options, sampler, rank, world_size)
            shown = progress(shuffled, num_images, f"epoch {epoch}/{config.epochs}", log)
            first_step = (epoch - 1) * steps_per_epoch + 1
            for step, (images, labels, weight, indices) in enumerate(shown, first_step):
                for group, base in zip(optimizer.param_groups, base_rates):
                    group["lr"] = base * rate_factor(config.schedule, step, config.epochs * steps_per_epoch)
                logits, loss = forward_backward(images, labels, weight)
                scaler.step(optimizer)
                scaler.update()
                sampler.update(indices, logits)
                log.log_step(epoch, step, loss)
                recent.append((logits, labels))
                stop_if_asked()  # only here, so evaluation and export always finish
            if epoch > 1 and sampler.size < num_images:  # batch norms saw hard images: renew averages
                with torch.no_grad(), autocast:
                    for images, *_ in islice(batches(*options), 30):
                        model(images)
            log.flush()
            seconds = time.perf_counter() - start

            # ---- Evaluate ----
            if rank == 0:
                model.temperature.fill_(fit_temperature(recent))
                logits = predict_logits(model, data.eval_images)  # (N, K), in fp32 like the exported model
                log.log_epoch(epoch, step, logits, data.eval_labels, seconds)
                save_checkpoint(log.run_dir, epoch, generator, state)

        # ---- Export ----
        if rank == 0:
            metadata = describe(config, data, log)
            log.log_model(export_model(model, data.eval_images, metadata, config.export_pt2), metadata)
    if rank == 0:
        print_results(config, len(data.eval_images), log)
    if world_size > 1:
        dist.barrier()  # no process destroys the group while another still uses it
        dist.destroy_process_group()
    return log.run_dir


def rate_factor(schedule: str, step: int, total_steps: int) -> float:
    """Factor of the rates at `step` (from 1). one_cycle: linear warm-up for a quarter, then linear decay."""
    peak = max(1, total_steps // 4)
    one_cycle = min(step / peak, (total_steps + 1 - step) / (total_steps + 1 - peak))
    return one_cycle if schedule == "one_cycle" else 1.0


def describe(config: Config, data: ImageData, log: RunLogger) -> dict:
    """The metadata of an exported model. Nothing private: neither paths nor pictures."""
    hidden = ("dataset", "data_dir", "run_dir", "resume", "val_size", "train_seconds")  # private or repeated
    split = "validation" if config.val_size else "test"
    eval_sha256 = digest(data.eval_images, data.eval_labels)
    return {
        "classes": data.classes,
        "dataset": f"folder {Path(data.name).name}" if os.path.isabs(data.name) else data.name,
        "train": {"images": len(data.train_labels), "sha256": digest(data.train_images, data.train_labels)},
        "eval": {"split": split, "images": len(data.eval_labels), "sha256": eval_sha256},
        "metrics": {key: value for key, value in log.summary.items() if key not in hidden},
        "settings": {key: value for key, value in asdict(config).items() if key not in hidden},
        **{key: log.config[key] for key in ("torch", "commit", "dirty")},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def save_checkpoint(run_dir: Path, epoch: int, generator: torch.Generator, state: dict) -> None:
    """Save all that the rest of the run depends on: the objects in `state`, and every random generator."""
    checkpoint = {name: value.state_dict() for name, value in state.items()}
    checkpoint |= {"epoch": epoch, "generator": generator.get_state(), "cpu": torch.get_rng_state()}
    checkpoint["cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    write_tensors(run_dir / "checkpoint.pt", checkpoint)


def load_checkpoint(run_dir: str, generator: torch.Generator, state: dict) -> int:
    """Restore what `save_checkpoint` saved. Returns the epoch, or 0 if none was finished."""
    path = Path(run_dir) / "checkpoint.pt"
    if not path.exists():
        return 0
    try:
        checkpoint = read_tensors(path)
        checkpoint.setdefault("sampler", state["sampler"].state_dict())  # older runs have none
        for name, value in state.items():
            value.load_state_dict(checkpoint[name])
        if state["optimizer"].defaults.keys() - state["optimizer"].param_groups[0].keys():
            raise KeyError("a checkpoint of another optimizer")
        generator.set_state(checkpoint["generator"])
        torch.set_rng_state(checkpoint["cpu"])
        torch.cuda.set_rng_state_all(checkpoint["cuda"][: torch.cuda.device_count()])
        return int(checkpoint["epoch"])
    except Exception as error:  # torch raises errors of any type for damaged files
        raise ModelError(f"{path} is damaged or does not fit train.py. Choose another --run_dir.") from error


def print_results(config: Config, num_images: int, log: RunLogger) -> None:
    """Print where everything is, what to do next, and the result."""
    flags = f" --data_dir {quoted(config.data_dir)}" if config.data_dir != Config.data_dir else ""
    is_mnist = config.dataset in ("mnist", "mnist-format")  # evaluate.py reads it without a flag
    dataset = "" if is_mnist else f" --dataset {quoted(config.dataset)}"
    last = log.summary["epoch"]
    runs = [f"{log.run_dir}@1", f"{log.run_dir}@{last}"] if last > 1 else [log.run_dir]
    model = "model.pt" if (log.run_dir / "model.pt").exists() else "model.pt2"
    publish = f"{start_command('publish')} {quoted(log.run_dir)}"
    print(f"W&B   {log.wandb.address(publish)}")
    print(f"next  {start_command('evaluate')} {quoted(log.run_dir / model)}{flags}{dataset}")
    print(f"      {start_command('compare')} {' '.join(map(quoted, runs))}{flags}")
    result = f"{log.summary['wrong']} of {num_images:,} images wrong, accuracy {log.summary['acc']:.2f} %"
    print(f"done  {printable(config.dataset)}: {result}")


def parse_config(argv: list[str] | None = None) -> Config:
    """The command line as a Config; with --resume, the settings of that run. Raises ConfigError."""
    overrides = parse_settings(Config, argv, (__doc__ or "").partition("\n")[0])
    config = Config(**overrides)
    resuming = config.resume and holds_run(config.run_dir)
    return resumed_settings(Config, config.run_dir, overrides) if resuming else config


def main() -> int:
    return exit_status(lambda: train(parse_config()), ConfigError, DataError, ModelError, RunError)


if __name__ == "__main__":
    sys.exit(main())
