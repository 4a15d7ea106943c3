"""The ConvNet, its inference, and its export to one file that runs without this source.

`Standardize` scales the pixels, so that the exported file takes raw images. To train another net, replace
`ConvNet` in train.py by a scriptable module that maps standardized images (N, C, H, W) to logits (N, K).
"""

import copy
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METADATA_FILE = "metadata.json"  # its name inside an exported file
EVAL_BATCH_SIZE = 100  # its activations fit into a CPU's caches: twice as fast as 1000


class ModelError(Exception):
    """A model file, device or precision cannot be used. The message says why, and what to do."""


class Standardize(nn.Module):
    """Pixels (N, C, H, W) in 0..255 to floats of mean 0 and deviation 1; mean and std: (C,) or a number."""

    def __init__(self, mean: Tensor | float, std: Tensor | float):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean).float().view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std).float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


class ConvNet(nn.Module):
    """The W&B tutorial's net: two blocks of convolution, batch norm, ReLU and max pooling, one linear layer.

    Args:
        num_classes, image_shape: K, and (C, H, W) of the images, with H and W at least 4.
        l1_size, l2_size: output channels of the two convolutions.
        conv_kernel: height and width of their kernels; odd, so that padding keeps the image's size.
    """

    def __init__(self, num_classes=10, image_shape=(1, 28, 28), l1_size=32, l2_size=64, conv_kernel=5):
        super().__init__()
        channels, height, width = image_shape
        if conv_kernel % 2 == 0 or min(height, width) < 4:
            raise ValueError(
                f"conv_kernel must be odd, H and W at least 4, not {conv_kernel}, {image_shape}"
            )
        self.conv1 = nn.Conv2d(channels, l1_size, conv_kernel, padding=conv_kernel // 2)
        self.norm1 = nn.BatchNorm2d(l1_size)
        self.conv2 = nn.Conv2d(l1_size, l2_size, conv_kernel, padding=conv_kernel // 2)
        self.norm2 = nn.BatchNorm2d(l2_size)
        self.linear = nn.Linear(l2_size * (height // 4) * (width // 4), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Standardized floats (N, C, H, W) to float32 logits (N, K)."""
        # ReLU is monotonic: after the pooling it gives the same, for a quarter of the work.
        x = F.relu(F.max_pool2d(self.norm1(self.conv1(images)), 2))  # (N, l1_size, H/2, W/2)
        x = F.relu(F.max_pool2d(self.norm2(self.conv2(x)), 2))  # (N, l2_size, H/4, W/4)
        x = x.permute(0, 2, 3, 1).flatten(1)  # (N, H/4 * W/4 * l2_size), the channels_last memory order
        return self.linear(x).float()


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU if there is one. Raises ModelError if it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    local_rank = os.environ.get("LOCAL_RANK")  # set by torchrun: process i uses GPU i
    if name == "cuda" or (local_rank is not None and name.startswith("cuda")):
        name = f"cuda:{local_rank or 0}"
    try:
        if name != "cpu":
            torch.cuda.set_device(name)
        return torch.device(name)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ModelError(f"The device {name} is not available: {reason}. Use auto, cpu or cuda.") from error


def pick_precision(name: str, device: torch.device) -> str:
    """The precision called `name`; "auto" is bf16 if the hardware computes in it, else fp16 or fp32."""
    if name == "fp16" and device.type == "cpu":
        raise ModelError("fp16 needs a GPU. Use bf16 or fp32 on a CPU.")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    cpu = torch.cpu.get_capabilities()
    return "bf16" if cpu.get("avx512_bf16") or cpu.get("amx_bf16") else "fp32"


def predict_logits(model: nn.Module, images: Tensor, batch_size: int = EVAL_BATCH_SIZE) -> Tensor:
    """fp32 logits (N, K) of images (N, C, H, W), on the images' device. Leaves the model in eval mode."""
    if getattr(model, "training", False):  # a frozen module has no such attribute
        model.eval()
    # By default a GPU convolves in TF32, which keeps three decimal digits.
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        return torch.cat([model(batch) for batch in images.split(batch_size)])


def export_model(model: nn.Module, path: str | Path, metadata: dict, example: Tensor) -> None:
    """Save a model in fp32 on the CPU in eval mode, with `metadata` as JSON inside. Raises ModelError.

    A .pt2 file holds a torch.export program for uint8 images only, any other file TorchScript. It gets its
    name after it was loaded again and gave the model's logits for `example`, uint8 (N, C, H, W).
    """
    model = copy.deepcopy(model).float().cpu().eval()
    example = example.cpu()
    files = {METADATA_FILE: json.dumps(metadata)}
    path = Path(path).resolve()
    scratch = path.with_name(f".{path.name}.partial")
    content = io.BytesIO()  # written by us, because torch hides the system's reason for a failed write
    try:
        with silence_torch_warnings():
            if path.suffix == ".pt2":
                batch = example[:2].repeat(2, 1, 1, 1)[:2]  # torch.export takes a batch of 1 as a constant
                sizes = ({0: torch.export.Dim("batch", min=1)},)
                program = torch.export.export(model, (batch,), dynamic_shapes=sizes)
                torch.export.save(program, content, extra_files=files)
            else:
                torch.jit.save(torch.jit.script(model), content, files)
        scratch.write_bytes(content.getbuffer())
        loaded, _ = load_exported(scratch)
        for images in (example, example[:1], example if path.suffix == ".pt2" else example.float()):
            expected = predict_logits(model, images)
            difference = (predict_logits(loaded, images) - expected).abs().max().item()
            if not difference <= 1e-5 * max(1, expected.abs().max().item()):  # NaN fails too
                problem = f"{path} was not written: its logits differ by {difference:.2g} from the model's"
                raise ModelError(f"{problem}. Does a forward() use random numbers?")
        os.replace(scratch, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        scratch.unlink(missing_ok=True)


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """Load a file that `export_model` wrote: the model in eval mode, and its metadata. Raises ModelError.

    Loading such a file runs the program inside. Load only files from people whose code you would run.
    """
    files = {METADATA_FILE: ""}
    if not os.path.isfile(path):
        raise ModelError(f"{path} does not exist or is not a file. Export a model first.")
    try:
        content = read_intact(path)
        with silence_torch_warnings():
            if b"/archive_format" in content:  # only torch.export writes this entry
                from torch.export.passes import move_to_device_pass  # slow to import

                logging.getLogger("torch.export").setLevel("CRITICAL")  # else it logs what it then raises
                program = torch.export.load(io.BytesIO(content), extra_files=files)
                model = move_to_device_pass(program, str(device)).module()
                model.training = False  # it is always in eval mode, and its eval() raises
            else:
                model = torch.jit.load(io.BytesIO(content), map_location=device, _extra_files=files)
                model = torch.jit.freeze(model.eval())  # folds batch norms: a quarter faster on a CPU
        return model, json.loads(files[METADATA_FILE])
    except Exception as error:  # torch raises errors of any type for damaged files
        problem = f"{path} is damaged, not an exported model, or without {METADATA_FILE}"
        raise ModelError(f"{problem}. Use a file that train.py exported.") from error


@contextmanager
def silence_torch_warnings() -> Iterator[None]:
    """Silence torch's warnings on TorchScript's deprecation, channels_last and read-only buffers."""
    with warnings.catch_warnings():
        for message in (".*torch.jit.*", "No complete tensor found", "The given buffer is not writable"):
            warnings.filterwarnings("ignore", message=message)
        yield


def read_intact(path: str | Path) -> bytes:
    """The content of a file that torch wrote. zipfile raises an error if it is damaged; torch does not."""
    content = Path(path).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(damaged)
    return content
