"""The ConvNet, its inference, and its export to one file that runs without this source.

`Standardize` scales the pixels, so training, evaluation and the exported file all take the same raw images.
To train another net, replace `ConvNet` in train.py by any module that torch.jit.script accepts and that maps
standardized images (N, C, H, W) to logits (N, K).
"""

import copy
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METADATA_FILE = "metadata.json"  # its name inside an exported file
EVAL_BATCH_SIZE = 100  # images whose activations stay in a CPU's caches: twice as fast as 1000


class ModelError(Exception):
    """A model file cannot be written or used. The message says what, where, and what to do."""


class Standardize(nn.Module):
    """Raw pixels (N, C, H, W), uint8 or float in 0..255, to floats of mean 0 and standard deviation 1.

    mean, std: of the training pixels in 0..255, (C,) or one number for all channels. They are buffers.
    """

    def __init__(self, mean: Tensor | float, std: Tensor | float):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean).float().view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std).float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


class ConvNet(nn.Module):
    """The tutorial's net: two blocks of convolution, batch norm, ReLU and max pooling, then a linear layer.

    Args:
        num_classes: K, the number of logits.
        image_shape: (C, H, W) of the images, H and W at least 4.
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
        # ReLU is monotonic: after the pooling it gives the same values for a quarter of the work.
        x = F.relu(F.max_pool2d(self.norm1(self.conv1(images)), 2))  # (N, l1_size, H/2, W/2)
        x = F.relu(F.max_pool2d(self.norm2(self.conv2(x)), 2))  # (N, l2_size, H/4, W/4)
        x = x.permute(0, 2, 3, 1).flatten(1)  # (N, H/4 * W/4 * l2_size), the channels_last memory order
        return self.linear(x).float()


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU if there is one. With torchrun, a GPU is that of the process.

    Raises ModelError if there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK")  # set by torchrun
    if name == "cuda" or (rank and name.startswith("cuda")):
        name = f"cuda:{rank or 0}"
    try:
        device = torch.device(name)
        if device.type != "cpu":
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ModelError(f"The device {name} is not available: {reason}. Use auto, cpu or cuda.") from error
    return device


def predict_logits(model: nn.Module, images: Tensor, batch_size: int = EVAL_BATCH_SIZE) -> Tensor:
    """fp32 logits (N, K) of all images (N, C, H, W), on their device. Leaves the model in eval mode."""
    if getattr(model, "training", False):  # a frozen module has no such attribute
        model.eval()
    # By default a GPU convolves in TF32, which keeps three decimal digits.
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        return torch.cat([model(batch) for batch in images.split(batch_size)])


def export_torchscript(model: nn.Module, path: str | Path, metadata: dict, example: Tensor) -> None:
    """Save a model as TorchScript, in fp32 on the CPU in eval mode, with `metadata` as JSON inside.

    The file gets its name only after it was loaded and gave the model's logits for `example`, uint8
    (N, C, H, W): as bytes, as floats, and for one image alone. Raises ModelError if the logits differ.
    """

    def save(model: nn.Module, file: io.BytesIO, extra_files: dict) -> None:
        torch.jit.save(torch.jit.script(model), file, extra_files)

    export(model, path, metadata, save, (example, example.float(), example[:1]))


def export_program(model: nn.Module, path: str | Path, metadata: dict, example: Tensor) -> None:
    """Save a model by torch.export. Otherwise like `export_torchscript`, but it takes uint8 images only."""

    def save(model: nn.Module, file: io.BytesIO, extra_files: dict) -> None:
        batch = example[:2].repeat(2, 1, 1, 1)[:2]  # two images, because torch.export takes 1 as a constant
        dynamic = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(model, (batch.cpu(),), dynamic_shapes=dynamic)
        torch.export.save(program, file, extra_files=extra_files)

    export(model, path, metadata, save, (example, example[:1]))


def export(model: nn.Module, path: str | Path, metadata: dict, save: Callable, examples: tuple) -> None:
    """Write what `save` makes of a model, load it, compare its logits for each of `examples`, rename it."""
    model, path = copy.deepcopy(model).float().cpu().eval(), Path(path).resolve()
    scratch = path.with_name(f".{path.name}.partial")
    try:
        content = io.BytesIO()  # written by us, because torch hides the system's reason for a failed write
        with silence_torch_warnings():
            save(model, content, {METADATA_FILE: json.dumps(metadata)})
        scratch.write_bytes(content.getbuffer())
        loaded, _ = load_exported(scratch)
        for images in examples:
            expected = predict_logits(model, images.cpu())
            difference = (predict_logits(loaded, images.cpu()) - expected).abs().max().item()
            if not difference <= 1e-5 * max(1, expected.abs().max().item()):  # also true for NaN
                reason = f"its logits differ by {difference:.2g} from the trained model's"
                raise ModelError(f"{path} was not written: {reason}. Does its forward() use random numbers?")
        os.replace(scratch, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not name the file
        raise
    finally:
        scratch.unlink(missing_ok=True)


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """The model of a file that this project exported, in eval mode on a device, and its metadata.

    Loading such a file runs the program inside. Load only files from people whose code you would run.

    Raises ModelError if the file is missing, damaged, of another kind, or without our metadata.
    """
    extra_files = {METADATA_FILE: ""}
    if not os.path.isfile(path):
        raise ModelError(f"{path} does not exist or is not a file. Export a model first: train.py does.")
    try:
        content = read_intact(path)
        with silence_torch_warnings():
            if b"/archive_format" in content:  # written by torch.export
                from torch.export.passes import move_to_device_pass  # slow to import

                program = torch.export.load(io.BytesIO(content), extra_files=extra_files)
                model = move_to_device_pass(program, str(device)).module()
                model.training = False  # it is always in eval mode, and its eval() raises
            else:
                model = torch.jit.load(io.BytesIO(content), map_location=device, _extra_files=extra_files)
                model = torch.jit.freeze(model.eval())  # folds batch norms: a quarter faster on a CPU
    except Exception as error:  # torch raises errors of any type for damaged files
        raise ModelError(f"{path} is damaged or not an exported model. Export it again.") from error
    try:
        return model, json.loads(extra_files[METADATA_FILE])
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} has no {METADATA_FILE} inside. Use a file that train.py exported."
        ) from error


@contextmanager
def silence_torch_warnings() -> Iterator[None]:
    """Silence torch's warnings on TorchScript's deprecation, channels_last and read-only buffers."""
    with warnings.catch_warnings():
        for message in (".*torch.jit.*", "No complete tensor found", "The given buffer is not writable"):
            warnings.filterwarnings("ignore", message=message)
        yield


def read_intact(path: str | Path) -> bytes:
    """The content of a file by torch.save, torch.jit.save or torch.export.save, its checksums verified.

    torch does not verify them. Raises zipfile.BadZipFile, or another of zipfile's errors, if it is damaged.
    """
    content = Path(path).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(damaged)
    return content
