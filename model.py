"""The ConvNet, its inference, and its export to one file that runs without this source.

`Classifier` makes any net take pixels, check them, and give calibrated scores. To train another
net, replace `ConvNet` in train.py by a module that maps normalized images (N, C, H, W) to logits (N, K).
"""

import copy
import io
import json
import logging
import threading
import traceback
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

METADATA_FILE, FORMAT = "metadata.json", 2  # inside an exported file: its name, and its version
SILENCE = threading.RLock()  # output belongs to all threads: only one of them redirects it at a time
EVAL_PIXELS = 78_400  # in a batch: 100 images of MNIST fit into a CPU's caches; a GPU takes 20 times that


class ModelError(Exception):
    """A net or a model file cannot be used. The message says why, and what to do."""


class Classifier(nn.Module):
    """A net that takes pixels. In eval mode it checks them, and divides the logits by `temperature`.

    Args:
        net: normalized floats (N, C, H, W) to logits (N, K).
        mean, std: of the training images, in 0..1: (C,) or a number.
    """

    image_shape: list[int]  # (C, H, W) that `check` expects; empty, for any, until `export_model` sets it

    def __init__(self, net: nn.Module, mean: Tensor | float, std: Tensor | float):
        super().__init__()
        self.net, self.image_shape = net, []
        self.register_buffer("mean", torch.as_tensor(mean).float().view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std).float().view(-1, 1, 1))
        self.register_buffer("temperature", torch.ones(()))
        if not 0 <= self.mean.min() <= self.mean.max() <= 1 or not self.std.min() > 0:
            raise ModelError(f"mean is {mean}, std is {std}. Give them of pixels in 0..1, and no std of 0.")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), integers in 0..255 or floats in 0..1, to float32 logits (N, K)."""
        if not self.training:
            self.check(images)
        scale = 1.0 if images.is_floating_point() or images.dtype == torch.bool else 255.0
        pixels = (images.float() - scale * self.mean) / (scale * self.std)
        logits = self.net(pixels.to(self.mean.dtype))
        if not torch.jit.is_scripting() and (not isinstance(logits, Tensor) or logits.is_sparse):
            kind = getattr(logits, "layout", type(logits).__name__)  # such as torch.sparse_coo
            raise ModelError(f"The net returns a {kind}. Return logits (N, K) alone, in a dense tensor.")
        return logits.float() if self.training else logits.float() / self.temperature

    def check(self, images: Tensor) -> None:
        """Raise ValueError if the shape or the range is wrong. uint8 images cannot be out of range."""
        shape = list(images.shape)
        if len(shape) != 4 or (len(self.image_shape) > 0 and shape[1:] != self.image_shape):
            known = f" with (C, H, W) = {self.image_shape}" if len(self.image_shape) > 0 else ""
            raise ValueError(f"expected images of shape (N, C, H, W){known}, got shape {shape}")
        if images.dtype != torch.uint8 and images.dtype != torch.bool and images.numel() > 0:
            low, high = images.float().min().item(), images.float().max().item()
            if not (low >= -0.001 and high <= (1.001 if images.is_floating_point() else 255.0)):
                found = ("floats" if images.is_floating_point() else "integers") + f" from {low} to {high}"
                raise ValueError(f"expected floats from 0 to 1 or integers from 0 to 255, got {found}")


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
            raise ValueError("conv_kernel must be odd, and height and width at least 4")
        self.conv1 = nn.Conv2d(channels, l1_size, conv_kernel, padding=conv_kernel // 2)
        self.norm1 = nn.BatchNorm2d(l1_size)
        self.conv2 = nn.Conv2d(l1_size, l2_size, conv_kernel, padding=conv_kernel // 2)
        self.norm2 = nn.BatchNorm2d(l2_size)
        self.linear = nn.Linear(l2_size * (height // 4) * (width // 4), num_classes)
        self.to(memory_format=torch.channels_last)  # faster; `forward` depends on it only for its speed

    def forward(self, images: Tensor) -> Tensor:
        """Normalized floats (N, C, H, W) to logits (N, K)."""
        # ReLU is monotonic: after the pooling it gives the same, for a quarter of the work.
        x = F.relu(F.max_pool2d(self.norm1(self.conv1(images)), 2))  # (N, l1_size, H/2, W/2)
        x = F.relu(F.max_pool2d(self.norm2(self.conv2(x)), 2))  # (N, l2_size, H/4, W/4)
        x = x.permute(0, 2, 3, 1).flatten(1)  # (N, H/4 * W/4 * l2_size), the channels_last memory order
        return self.linear(x)


class MeanOfShifts(nn.Module):
    """Test-time augmentation: in eval mode, the mean logits of an image and two copies of it.

    One copy is shifted by a pixel to the upper left, the other to the lower right; its edge is repeated.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Normalized floats (N, C, H, W) to logits (N, K)."""
        logits = self.net(images)
        if self.training:
            return logits
        upper_left = F.pad(images, [-1, 1, -1, 1], mode="replicate")  # -1 removes a column or row
        lower_right = F.pad(images, [1, -1, 1, -1], mode="replicate")
        return (logits + self.net(upper_left) + self.net(lower_right)) / 3


def fit_temperature(batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The T, from 0.02 to 50, for which softmax(logits / T) fits the labels best; 1 without any batch.

    `batches` are logits (B, K) and labels (B,) of the last training steps. The cross entropy is lowest where
    the mean of the labels' logits equals the mean logit that the scores predict. Two images of unknown class
    are added, because T would be 0 if all guesses were right.
    """
    if not batches:
        return 1.0
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*batches))
    logits = logits.double()
    target = (logits.gather(1, labels[:, None]).sum() + 2 * logits.mean()) / (len(labels) + 2)
    low, high = 0.02, 50.0
    for _ in range(30):  # halve the interval of log T
        middle = (low * high) ** 0.5
        expected = (logits * (logits / middle).softmax(1)).sum(1).mean()  # falls as T grows
        low, high = (middle, high) if expected > target else (low, middle)
    return middle


def predict_logits(model: nn.Module, images: Tensor, batch_size: int | None = None, device=None) -> Tensor:
    """fp32 logits (N, K) of images (N, C, H, W), on the model's device. Leaves the model in eval mode."""
    if getattr(model, "training", False):  # a frozen module has no such attribute
        model.eval()
    device = device or getattr(model, "mean", images).device  # a frozen module has none; use the images'
    batch_size = batch_size or eval_batch_size(images, device)
    with torch.inference_mode(), full_precision():
        return torch.cat([model(batch.to(device)) for batch in images.split(batch_size)])


def eval_batch_size(images: Tensor, device: torch.device) -> int:
    """How many of `images` (N, C, H, W) to evaluate at a time on a device."""
    return max(16, (20 if device.type == "cuda" else 1) * EVAL_PIXELS // images[0, 0].numel())


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute in fp32 with all its digits, the same way in every run, whatever the caller has set.

    By default a GPU convolves in TF32, which keeps three decimal digits.
    """
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    kinds = cudnn.conv, cudnn.rnn, mkldnn.conv, mkldnn.matmul, torch.backends.cuda.matmul
    settings = [(kind, "fp32_precision", "ieee") for kind in kinds]
    settings += [(cudnn, "allow_tf32", False), (cudnn, "deterministic", True), (cudnn, "benchmark", False)]
    with ExitStack() as restore:
        for where, name, _ in settings:
            with suppress(RuntimeError):  # allow_tf32 cannot be read after fp32_precision was set
                restore.callback(setattr, where, name, getattr(where, name))
        with suppress(RuntimeError):
            restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        torch.set_float32_matmul_precision("highest")
        for where, name, value in reversed(settings):  # the newer names last
            setattr(where, name, value)
        for device in filter(torch.is_autocast_enabled, ("cpu", "cuda")):
            restore.enter_context(torch.autocast(device, enabled=False))
        yield


# ---- Can the net be used? ----
def try_training(model: Classifier, images: Tensor, autocast: torch.autocast) -> None:
    """Raise ModelError if forward or backward fails in a copy of `model`; images: uint8 (N, C, H, W)."""
    if any(weight.is_inference() for weight in model.parameters()):  # it could not be resumed
        raise ModelError("The net was made in torch.inference_mode(). Make it outside.")
    images = images[:16].to(model.mean.device).repeat(2, 1, 1, 1)[:16]  # batch norm needs more than one
    cure = "Correct its forward(), unfreeze weights, detach() what it keeps, or choose --precision fp32."
    random_state = torch.random.fork_rng([images.device] * images.is_cuda)
    with explained_errors(images, "backward()", cure), autocast, random_state:
        trained = without_compile(copy.deepcopy(model)).train()
        for _ in range(2):  # the second time fails if the net keeps the graph of the first
            trained(images).square().mean().backward()  # any shape: the loss may be another one
    # In the copy of a ScriptModule the weights are no leaves of the graph, and never have a gradient.
    weights = [weight for weight in trained.parameters() if weight.requires_grad and weight.is_leaf]
    if weights and all(weight.grad is None for weight in weights):
        raise ModelError("backward() gives no gradient to any weight of the net. Correct its forward().")


@contextmanager
def explained_errors(images: Tensor, elsewhere: str, cure: str) -> Iterator[None]:
    """Turn an error of a net into a ModelError that names the layer and the line, or `elsewhere`."""
    try:
        yield
    except Exception as error:  # torch raises errors of any type
        if isinstance(error, ModelError) or "allocate memory" in str(error) or "out of memory" in str(error):
            raise  # of too little memory, exit_status says what to do
        layers, lines = [], []
        for frame, line in traceback.walk_tb(error.__traceback__):
            layer, path = frame.f_locals.get("self"), Path(frame.f_code.co_filename)
            if isinstance(layer, nn.Module) and not isinstance(layer, Classifier):
                layers.append(type(layer).__name__)
                if not path.is_relative_to(Path(torch.__file__).parent):
                    lines.append(f"{path.name}, line {line}")
        where = " at ".join(layers[-1:] + lines[-1:]) or elsewhere
        problem = f"The net fails on images of shape {list(images.shape[1:])}, in {where}"
        raise ModelError(f"{problem}: {first_reason(error)}. {cure}") from error


# ---- Export ----
@full_precision()
def export_model(model: Classifier, images: Tensor, metadata: dict, pt2=False) -> dict[str, bytes]:
    """The content of model.pt and, with `pt2`, of model.pt2: fp32, in eval mode, metadata as JSON inside.

    model.pt is TorchScript, by script or else by trace; with `pt2` it is left out if neither takes the net.
    model.pt2 is a torch.export program, for uint8 images only. Each was loaded again and gave the model's
    logits for the first of `images`, uint8 (N, C, H, W). Leaves `model` in eval mode. Raises ModelError.
    """
    if not hasattr(model, "mean") or images.dtype != torch.uint8 or images.dim() != 4 or not len(images):
        raise ModelError("Give export_model a Classifier, and images to try it with: uint8 (N, C, H, W).")
    images = images[:16].to(model.mean.device).repeat(2, 1, 1, 1)[:16]  # a batch of one would hide mistakes
    model = export_copy(model, images, len(metadata["classes"]))
    images, contents, reasons = images.cpu(), {}, {}
    statistics = {"mean": model.mean.flatten().tolist(), "std": model.std.flatten().tolist()}
    attempts = [("model.pt", script), ("model.pt", trace)] + pt2 * [("model.pt2", torch_export)]
    for name, write in attempts:
        if name in contents:  # the script was good
            continue
        ranges = {"uint8": [0, 255]} if name == "model.pt2" else {"integer": [0, 255], "float": [0, 1]}
        input_spec = {"shape": [None, *model.image_shape], "layout": "NCHW", "ranges": ranges, **statistics}
        described = {"input": input_spec, "temperature": model.temperature.item()}
        record = json.dumps({"format": FORMAT, "exporter": write.__name__, **described, **metadata})
        try:
            with silence_torch():
                content = write(model, images, {METADATA_FILE: record})
                check_export(content, model, images, floats="float" in ranges)
            contents[name] = content
        except Exception as error:  # torch raises errors of any type
            reasons[write.__name__] = first_reason(error)
    wanted = "model.pt2" if pt2 else "model.pt"
    if wanted not in contents:
        told = "; ".join(f"{how}: {reason}" for how, reason in reasons.items())
        other = ", or leave out --export_pt2" if contents else ""
        cure = "Rewrite that part of it" + (other if pt2 else ", or export a model.pt2 (--export_pt2)")
        raise ModelError(f"The net cannot be exported to {wanted}: {told}. {cure}.")
    return contents


def export_copy(model: Classifier, images: Tensor, num_classes: int) -> Classifier:
    """A copy to export: fp32, in eval mode, not compiled. Raises ModelError if its net cannot be used."""
    with explained_errors(images, "copy.deepcopy()", "Correct its forward(), or its layers."):
        with torch.no_grad():  # deepcopy refuses a weight with a graph, as weight_norm keeps one
            model.eval()(images)
        model = without_compile(copy.deepcopy(model)).float().cpu().eval()
        model.image_shape = list(images.shape[1:])
        logits, alone = (predict_logits(model, images.cpu(), size) for size in (len(images), 1))
    problem = None
    if list(logits.shape) != [len(images), num_classes]:
        problem = f"gives outputs of shape {list(logits.shape[1:])} for {num_classes} classes"
    elif not logits.isfinite().all():
        problem = "gives NaN or infinity"
    elif alone.shape != logits.shape or not torch.dist(alone, logits) <= 0.01 * max(1, logits.norm()):
        problem = "is random, keeps a state, or gives other logits for an image alone, in eval mode"
    elif (logits >= 0).all() and torch.allclose((logits * model.temperature).sum(1), torch.ones(())):
        problem = "gives probabilities, not logits"
    if problem:
        raise ModelError(f"The net {problem}. Correct its forward().")
    return model


def without_compile(module: nn.Module) -> nn.Module:
    """Undo torch.compile(), in place, in a module and all those inside."""
    module = getattr(module, "_orig_mod", module)
    for name, child in module._modules.items():  # named_children() leaves out a module's second name
        module._modules[name] = None if child is None else without_compile(child)
    return module


def script(model: Classifier, images: Tensor, files: dict) -> bytes:
    """Compile a model to TorchScript. Debug records are left out: they hold the paths of source files."""
    saved, clean = io.BytesIO(), io.BytesIO()
    torch.jit.save(torch.jit.script(model), saved, files)
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(clean, "w") as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                target.writestr(entry, source.read(entry))
    return clean.getvalue()


def trace(model: Classifier, images: Tensor, files: dict) -> bytes:
    """Record what the net does with `images`. The rest of the model, and its checks, is compiled."""
    model = copy.deepcopy(model)
    normalized = (images.float() / 255 - model.mean) / model.std
    with torch.no_grad():
        model.net = torch.jit.trace(model.net, normalized, check_trace=False)
    return script(model, images, files)


def torch_export(model: nn.Module, images: Tensor, files: dict) -> bytes:
    """Export a model by torch.export, without the example images and the paths of source files."""
    if copy.deepcopy(model).requires_grad_(False)(images).requires_grad:
        raise ModelError("its parameters() lack some of its weights, such as those of layers in a list")
    sizes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(model, (images[:2],), dynamic_shapes=sizes)
    program.example_inputs = None
    for graph in (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)
    content = io.BytesIO()
    torch.export.save(program, content, extra_files=files)
    return content.getvalue()


def check_export(content: bytes, model: nn.Module, images: Tensor, floats: bool) -> None:
    """Raise ModelError unless an exported model gives the logits of the model that it was made from."""
    loaded, _ = load_exported(content)
    dark, one = images // 8, images[:1]  # a trace may hold for some brightness or batch size alone
    for batch in (images, dark, 255 - dark, one, images / 255 if floats else 255 - images):
        expected = predict_logits(model, batch)
        difference = (predict_logits(loaded, batch) - expected).abs().max().item()
        if not difference <= 1e-5 * max(1, expected.abs().max().item()):
            raise ModelError(f"its logits differ by {difference:.2g} from the net's")


def first_reason(error: Exception) -> str:
    """What an error of torch says, in one sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = lines[-1] if "TorchScript interpreter" in lines[0] else lines[0]
    return line.removeprefix("builtins.").strip().rstrip(".:")


def load_exported(file: str | Path | bytes, device: str | torch.device = "cpu") -> tuple[nn.Module, dict]:
    """The model in an exported file, in eval mode, and its metadata. Raises errors of any type.

    Loading such a file runs the program inside. Load only files from people whose code you would run.
    """
    content = file if isinstance(file, bytes) else read_intact(file)
    files, stream = {METADATA_FILE: ""}, io.BytesIO(content)
    with silence_torch():
        if b"/archive_format" in content:  # only torch.export writes this entry
            program = torch.export.load(stream, extra_files=files)
            model = move_to_device_pass(program, str(device)).module()
            model.training = False  # it is always in eval mode, and its eval() raises
        else:
            model = torch.jit.load(stream, map_location=device, _extra_files=files)
            model = torch.jit.freeze(model.eval())  # folds batch norms: a quarter faster on a CPU
    return model, json.loads(files[METADATA_FILE])


@contextmanager
def silence_torch() -> Iterator[None]:
    """Silence torch's warnings (TorchScript is deprecated), and what it logs or prints before it raises."""
    sink = io.StringIO()  # never closed: other threads may hold it
    with SILENCE, ExitStack() as restore, warnings.catch_warnings(action="ignore"):
        restore.callback(logging.disable, logging.root.manager.disable)  # by the caller
        logging.disable()
        with redirect_stdout(sink), redirect_stderr(sink):
            yield


def read_intact(path: str | Path) -> bytes:
    """The content of a file that torch wrote. zipfile raises an error if it is damaged; torch does not."""
    content = Path(path).read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        if damaged := file.testzip():
            raise zipfile.BadZipFile(damaged)
    return content
