"""The ConvNet, its inference, and its export to one file that runs without this source.

The model takes raw pixels and scales them itself, so training, evaluation, the exported file and anybody's
own code feed it the same thing. To train another model, build it in place of `ConvNet` in train.py: anything
that torch.jit.script takes and that maps images (N, C, H, W), uint8 or float in 0..255, to logits (N, K), as
nn.Sequential(Standardize(mean, std), your_net) does.
"""

import copy
import io
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METADATA = "metadata.json"  # the name of our record inside a TorchScript file
INFER_BATCH = 100  # images whose activations stay in the caches of a CPU: twice as fast as 1000


class ModelError(Exception):
    """A model file cannot be written or used. The message says what, where, and what to do."""


class Standardize(nn.Module):
    """Raw pixels (N, C, H, W), uint8 or float in 0..255, to floats of mean 0 and standard deviation 1.

    Args:
        mean, std: of the training pixels, (C,) or one for all; kept in the model as buffers.
    """

    def __init__(self, mean: Tensor | float, std: Tensor | float):
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean).float().view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std).float().view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


class ConvNet(nn.Module):
    """Two blocks of convolution, batch norm, ReLU and max pooling, then one linear layer to the logits.

    Args:
        num_classes: K, the number of logits.
        in_channels, image_size: C and the height and width of the images, both at least 4 pixels.
        l1_size, l2_size: channels of the two convolutions.
        conv_kernel: their height and width; odd, so that padding keeps the image's size.
        mean, std: of the training pixels in 0..255, (C,) or one for all.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        l1_size: int = 32,
        l2_size: int = 64,
        conv_kernel: int = 5,
        mean: Tensor | float = 0.0,
        std: Tensor | float = 1.0,
    ):
        super().__init__()
        if conv_kernel % 2 == 0 or min(image_size) < 4:
            raise ValueError(f"conv_kernel must be odd, image_size at least 4: {conv_kernel}, {image_size}")
        height, width = image_size
        self.standardize = Standardize(mean, std)
        self.conv1 = nn.Conv2d(in_channels, l1_size, conv_kernel, padding=conv_kernel // 2)
        self.norm1 = nn.BatchNorm2d(l1_size)
        self.conv2 = nn.Conv2d(l1_size, l2_size, conv_kernel, padding=conv_kernel // 2)
        self.norm2 = nn.BatchNorm2d(l2_size)
        self.linear = nn.Linear(l2_size * (height // 4) * (width // 4), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), uint8 or float in 0..255, to logits (N, K), float32."""
        x = self.standardize(images)
        # ReLU never reorders values, so it gives the same after the pooling, on a quarter of them.
        x = F.relu(F.max_pool2d(self.norm1(self.conv1(x)), 2))  # (N, l1_size, H/2, W/2)
        x = F.relu(F.max_pool2d(self.norm2(self.conv2(x)), 2))  # (N, l2_size, H/4, W/4)
        x = x.permute(0, 2, 3, 1).flatten(1)  # (N, H/4 * W/4 * l2_size): as channels_last lies in memory
        return self.linear(x).float()


def pick_device(name: str) -> torch.device:
    """The device of a --device flag: "auto" is a GPU where there is one, of several that of this process.

    Raises ModelError where there is no such device.
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
        reason = str(error).splitlines()[0]
        raise ModelError(f"--device {name} is not to be had: {reason}. Use auto, cpu or cuda") from error
    return device


def infer(model: nn.Module, images: Tensor, batch_size: int = INFER_BATCH) -> Tensor:
    """Logits (N, K) of all images (N, C, H, W) in fp32, on their device. The model is left in eval mode."""
    model.eval()
    # A GPU's convolutions are TF32 unless told otherwise, which is good for three digits.
    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
    ):
        return torch.cat([model(part) for part in images.split(batch_size)])


def export_torchscript(model: nn.Module, path: str | Path, metadata: dict, example: Tensor) -> None:
    """Save a model as TorchScript, in fp32 on the CPU in eval mode, with `metadata` as JSON inside.

    The file gets its name only after it was read back and gave the model's logits for `example`, uint8
    (N, C, H, W), from bytes and from floats, whole and one by one. Raises ModelError where it did not.
    """

    def save(model: nn.Module, file: io.BytesIO, files: dict) -> None:
        torch.jit.save(torch.jit.script(model), file, files)

    export(model, path, metadata, save, (example, example.float(), example[:1]))


def export_program(model: nn.Module, path: str | Path, metadata: dict, example: Tensor) -> None:
    """Save a model by torch.export, otherwise like `export_torchscript`; it takes uint8 images alone."""

    def save(model: nn.Module, file: io.BytesIO, files: dict) -> None:
        batch = example[:2].repeat(2, 1, 1, 1)[:2]  # of 2, because 1 would be taken for a constant
        dynamic = ({0: torch.export.Dim("batch", min=1)},)
        program = torch.export.export(model, (batch.cpu(),), dynamic_shapes=dynamic)
        torch.export.save(program, file, extra_files=files)

    export(model, path, metadata, save, (example, example[:1]))


def export(model: nn.Module, path: str | Path, metadata: dict, save: Callable, examples: tuple) -> None:
    model, path = copy.deepcopy(model).float().cpu().eval(), Path(path).resolve()
    scratch = path.with_name(f".{path.name}.partial")
    try:
        content = io.BytesIO()  # written by us, because torch hides why a disk refuses it
        with quiet():
            save(model, content, {METADATA: json.dumps(metadata)})
        scratch.write_bytes(content.getbuffer())
        loaded, _ = load_exported(scratch)
        for images in examples:
            expected = infer(model, images.cpu())
            difference = (infer(loaded, images.cpu()) - expected).abs().max().item()
            if not difference <= 1e-5 * max(1, expected.abs().max().item()):
                reason = f"its logits differ by {difference:.2g} from the trained model's"
                raise ModelError(f"{path} is not written: {reason}. Is a forward of yours random?")
        os.replace(scratch, path)
    except OSError as error:
        error.filename = str(path)  # a full disk does not say
        raise
    finally:
        scratch.unlink(missing_ok=True)


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> tuple[nn.Module, dict]:
    """The model of a file that this project exported, ready to infer on a device, and its metadata.

    Such a file is a program: loading one from someone you do not trust is running their code.

    Raises ModelError where the file is missing, damaged, of another kind, or without our metadata.
    """
    record = {METADATA: ""}
    if not os.path.isfile(path):
        raise ModelError(f"{path} is not there, or no file. Train a model first: python train.py")
    try:
        content = read_intact(path)
        with quiet():
            if b"/archive_format" in content:  # by torch.export
                from torch.export.passes import move_to_device_pass  # slow to import

                program = torch.export.load(io.BytesIO(content), extra_files=record)
                model = move_to_device_pass(program, str(device)).module()
                model.eval = lambda: model  # which it always is, and says by an exception
            else:
                model = torch.jit.load(io.BytesIO(content), map_location=device, _extra_files=record)
                model = torch.jit.freeze(model.eval())  # folds batch norms: a quarter faster on a CPU
    except Exception as error:  # torch raises what it likes at other people's bytes
        raise ModelError(
            f"{path} is not an exported model, or a damaged one. Let train.py export it again"
        ) from error
    try:
        return model, json.loads(record[METADATA])
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} has no {METADATA} inside. Use a file that train.py exported") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the news that TorchScript is deprecated, and channels_last no plain order of bytes."""
    with warnings.catch_warnings():
        for message in (".*torch.jit.*", "No complete tensor found", "The given buffer is not writable"):
            warnings.filterwarnings("ignore", message=message)
        logger = logging.getLogger("torch.export")  # logs a traceback before it raises
        before, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = before


def read_intact(path: str | Path) -> bytes:
    """The content of a file by torch.save or torch.jit.save, its checksums tested, which torch does not do.

    Raises zipfile.BadZipFile and others where it is no such file, or a damaged one.
    """
    content = Path(path).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(damaged)
    return content
