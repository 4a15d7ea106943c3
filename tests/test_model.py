import copy
import io
import json
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from programs import as_python, run, run_python
from torch import nn

from logging_utils import expected_calibration_error
from model import (
    Classifier,
    ConvNet,
    MeanOfShifts,
    ModelError,
    export_model,
    fit_temperature,
    load_exported,
    predict_logits,
    read_intact,
    try_training,
)

MEAN, STD = 0.1307, 0.3081
CLASSES = ["é", *"123456789"]


@pytest.fixture
def images():
    return torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8)


def new_model() -> Classifier:
    model = Classifier(ConvNet(), MEAN, STD)
    model.temperature.fill_(0.4)
    return model


def save(contents: dict[str, bytes], folder) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("train", [True, False])
def test_model_is_the_tutorials_network(images, train):
    net = ConvNet()
    model = Classifier(net, MEAN, STD).train(train)
    with torch.no_grad():
        for norm in (net.norm1, net.norm2):  # negative scales too, where reordering could go wrong
            norm.weight.uniform_(-1, 1)
            norm.bias.uniform_(-1, 1)
        linear = nn.Linear(7 * 7 * 64, 10)  # the tutorial's takes the same features in the order (C, H, W)
        linear.weight.copy_(net.linear.weight.view(10, 7, 7, 64).permute(0, 3, 1, 2).flatten(1))
        linear.bias.copy_(net.linear.bias)
    tutorial = nn.Sequential(
        nn.Sequential(net.conv1, net.norm1, nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(net.conv2, net.norm2, nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        linear,
    ).train(train)
    torch.testing.assert_close(model(images), tutorial((images / 255 - MEAN) / STD))


def test_model_takes_any_channels_size_and_classes():
    images = torch.randint(0, 256, (3, 3, 40, 22), dtype=torch.uint8)
    net = ConvNet(7, (3, 40, 22), l1_size=4, l2_size=5, conv_kernel=3)
    model = Classifier(net, torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
    assert model(images).shape == (3, 7)
    torch.testing.assert_close(model(images / 255), model(images))
    with pytest.raises(ValueError, match="odd"):
        ConvNet(conv_kernel=4)
    with pytest.raises(ValueError, match="at least 4"):
        ConvNet(image_shape=(1, 3, 28))


def test_prediction_does_not_depend_on_mode_or_batches(images):
    model = new_model()
    expected = model.eval()(images)
    for mode in (True, False):
        logits = predict_logits(model.train(mode), images, batch_size=7)
        torch.testing.assert_close(logits, expected)


# ---- What the exported file takes ----
def same_images(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """uint8 images in every other form that is accepted."""
    integers = {str(kind): images.to(kind) for kind in (torch.int16, torch.int32, torch.int64, torch.uint16)}
    floats = {str(kind): images.to(kind) / 255 for kind in (torch.float32, torch.float64)}
    return {**integers, **floats, "channels_last": images.to(memory_format=torch.channels_last)}


def wrong_images(images: torch.Tensor) -> dict[str, tuple[torch.Tensor, str]]:
    """Images that must be refused, and words of the sentence that says why."""
    floats = images / 255
    shape, values = (
        "shape (N, C, H, W) with (C, H, W) = [1, 28, 28], got shape ",
        "floats from 0 to 1 or integers",
    )
    return {
        "normalized": ((floats - MEAN) / STD, values),
        "0..255 as floats": (images.float(), values),
        "a little too bright": (floats * 1.01 + 0.01, values),
        "NaN": (floats * float("nan"), values),
        "negative integers": (images.to(torch.int8), values),
        "integers over 255": (images.long() + 200, values),
        "NHWC": (images.permute(0, 2, 3, 1), shape + "[20, 28, 28, 1]"),
        "three channels": (images.repeat(1, 3, 1, 1), shape + "[20, 3, 28, 28]"),
        "29 x 29": (F.pad(images, (0, 1, 0, 1)), shape + "[20, 1, 29, 29]"),
        "no batch": (images[0], shape + "[1, 28, 28]"),
        "no channel": (images[:, 0], shape + "[20, 28, 28]"),
    }


def test_dtype_decides_the_range_in_the_exported_file(images, tmp_path):
    model = new_model()
    model(images)  # moves the running statistics away from their defaults
    save(export_model(model, images, {"classes": CLASSES}), tmp_path)
    expected = predict_logits(model, images)
    torch.save([same_images(images), wrong_images(images), images, expected], tmp_path / "cases.bin")
    code = """
import sys, torch
assert "model" not in sys.modules
same, wrong, images, expected = torch.load("cases.bin")
model = torch.jit.load("model.pt")
assert not model.training
for name, batch in same.items():
    for count in (0, 1, 2, 20):
        difference = (model(batch[:count]) - expected[:count]).abs()
        assert not (difference > 1e-5).any(), name
assert model(images[:1].expand(1000, -1, -1, -1)).shape == (1000, 10)
for kind in (torch.half, torch.bfloat16):
    close = dict(rtol=0.03, atol=0.1)
    torch.testing.assert_close(model((images / 255).to(kind)), expected, **close)
    lower = torch.jit.load("model.pt").to(kind)
    for batch in (images, images / 255, (images / 255).to(kind)):
        torch.testing.assert_close(lower(batch), expected, **close)
for name, (batch, words) in wrong.items():
    try:
        model(batch)
    except Exception as error:
        sentence = str(error).strip().splitlines()[-1]
        assert "ValueError: expected " in sentence and words in sentence, (name, sentence)
    else:
        raise AssertionError(f"{name} was accepted")
model.train()
assert model((images / 255 - 0.5) * 9).shape == (20, 10)  # nothing is checked in training
"""
    result = run(as_python, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_mean_of_shifts_is_that_of_three_images_in_eval_mode(images):
    images = F.pad(images[:, :, 1:-1, 1:-1], [1, 1, 1, 1])  # a dark edge
    net = ConvNet()
    plain, mean = Classifier(net, MEAN, STD), Classifier(MeanOfShifts(net), MEAN, STD)
    torch.testing.assert_close(mean(images), plain(images))  # in train mode
    copies = [images, images.roll((1, 1), (2, 3)), images.roll((-1, -1), (2, 3))]
    expected = sum(predict_logits(plain, copy) for copy in copies) / 3
    torch.testing.assert_close(predict_logits(mean, images), expected)
    assert not torch.equal(expected, predict_logits(plain, images))


@pytest.mark.parametrize("kind", ["normalized", "29 x 29", "no batch"])
def test_classifier_checks_only_in_eval_mode(images, kind):
    model = new_model()
    model.image_shape = [1, 28, 28]
    batch, words = wrong_images(images)[kind]
    with pytest.raises(ValueError) as error:
        model.eval()(batch)
    assert words in str(error.value)
    if kind == "normalized":
        assert model.train()(batch).shape == (20, 10)


def test_values_of_uint8_images_are_not_read(images):
    model = new_model().to("meta")  # tensors without values: reading one is an error
    assert model.eval()(images.to("meta")).shape == (20, 10)
    with pytest.raises(RuntimeError):
        model((images / 255).to("meta"))


# ---- The temperature ----
def test_temperature_makes_the_scores_honest():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    for factor in (0.3, 1.0, 4.0):
        found = fit_temperature([(factor * logits, labels)])
        assert found == pytest.approx(factor, rel=0.03)
        assert expected_calibration_error((factor * logits / found).softmax(1), labels) < 1
    assert expected_calibration_error((0.3 * logits).softmax(1), labels) > 20


def test_temperature_of_a_net_without_errors_stays_finite():
    labels = torch.arange(100) % 10
    logits = 5.0 * F.one_hot(labels, 10)
    scores = (logits / fit_temperature([(logits, labels)])).softmax(1)
    assert 0.95 < scores.max() < 0.999  # 100 right guesses do not prove more than that
    assert fit_temperature([]) == 1
    assert 0.02 <= fit_temperature([(torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64))]) <= 50


def test_calibration_error_agrees_with_one_by_hand():
    scores = torch.tensor([[0.9, 0.1], [0.88, 0.12], [0.4, 0.6], [0.3, 0.7]])
    labels = torch.tensor([0, 1, 1, 1])
    # Bins of width 1/15: 0.88 and 0.9 share (13/15, 14/15], 0.6 and 0.7 are alone.
    by_hand = 100 * (abs(0.9 + 0.88 - 1) + abs(0.6 - 1) + abs(0.7 - 1)) / 4
    assert expected_calibration_error(scores, labels) == pytest.approx(by_hand)
    assert expected_calibration_error(torch.eye(2)[[0, 1]], torch.tensor([0, 1])) == 0


# ---- Export ----
def test_program_by_torch_export_gives_the_same(images, tmp_path):
    model = new_model().to(memory_format=torch.channels_last)
    model(images)
    contents = export_model(model, images[:1], {"classes": CLASSES}, pt2=True)
    loaded, metadata = load_exported(contents["model.pt2"])
    assert metadata["classes"] == CLASSES and metadata["input"]["ranges"] == {"uint8": [0, 255]}
    for count in (1, 2, 20):
        logits = predict_logits(loaded, images[:count])
        torch.testing.assert_close(logits, predict_logits(model, images[:count]))
    save(contents, tmp_path)
    code = """
import torch
images = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
record = {"metadata.json": ""}
model = torch.export.load("model.pt2", extra_files=record).module()
assert model(images).shape == (5, 10) and "classes" in record["metadata.json"]
for wrong in (images.float(), images[0], torch.zeros(5, 1, 29, 29, dtype=torch.uint8)):
    try:
        model(wrong)
    except Exception:
        continue
    raise AssertionError(wrong.shape)
"""
    result = run(as_python, "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_metadata_is_plain_json(images, tmp_path):
    given = {"classes": CLASSES, "metrics": {"acc": 99.5}}
    save(export_model(new_model(), images, given), tmp_path)
    record = {"metadata.json": ""}
    torch.jit.load(tmp_path / "model.pt", _extra_files=record)
    metadata = json.loads(record["metadata.json"])
    assert metadata.items() >= given.items() and metadata["format"] == 2
    assert metadata["temperature"] == pytest.approx(0.4)
    spec = metadata["input"]
    assert spec["shape"] == [None, 1, 28, 28] and spec["layout"] == "NCHW"
    assert spec["ranges"] == {"integer": [0, 255], "float": [0, 1]}
    assert (spec["mean"], spec["std"]) == (pytest.approx([MEAN]), pytest.approx([STD]))


# ---- Nets of other people ----
FLAT = nn.Flatten(), nn.Linear(3 * 32 * 32, 10)


class Flat(nn.Module):
    """A net that torch.jit.script refuses, because of its arguments."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 32 * 32, 10)

    def forward(self, *args, **kwargs):
        return self.linear(args[0].flatten(1))


class View(Flat):
    """A net that takes only images that are contiguous in memory, and is traced."""

    def forward(self, *args):
        return self.linear(args[0].view(-1, 3 * 32 * 32))


class Branch(Flat):
    """Only torch.export takes torch.cond."""

    def forward(self, *args):
        x = args[0].flatten(1)
        return torch.cond(x.mean() > 0.5, lambda x: self.linear(x), lambda x: -self.linear(x), (x,))


class Loop(nn.Module):
    """A program of Python that depends on the images' values. torch.jit.script keeps it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.abs().mean() > 0.7:  # once for any of the tests' images
            x = x / 2
        return x


class PythonBranch(Flat):
    """Nothing takes this. A trace holds for dark images, or for bright ones."""

    def forward(self, *args):
        return super().forward(*args) * (1 if args[0].mean() > 1 else -1)


class Numpy(Flat):
    """Nothing takes this. A trace gives the logits of its example for all images."""

    def forward(self, *args):
        return super().forward(torch.from_numpy(args[0].detach().numpy().copy()))


class Pair(Flat):
    def forward(self, *args):
        return super().forward(*args), None


class Random(Flat):
    def forward(self, *args):
        return F.dropout(super().forward(*args))


class OwnStatistics(Flat):
    """Normalizes by the mean of the batch in eval mode, too."""

    def forward(self, *args):
        logits = super().forward(*args)
        return logits - logits.mean(0)


class Cropped(Flat):
    """Has a layer for images of another size."""

    def forward(self, *args):
        return super().forward(args[0][:, :, 1:])


class Squeezed(Flat):
    """Gives logits (K,) for a single image, which cannot be joined with those of other batches."""

    def forward(self, *args):
        return super().forward(*args).squeeze()


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Flat()


class PlainList(Flat):
    """Its layers are not trained, because parameters() does not find them in a list."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(10, 10)]

    def forward(self, *args):
        return self.layers[0](super().forward(*args))


def small_net(wrap=lambda layer: layer) -> nn.Module:
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    return nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8), *head)


def hooked_net() -> nn.Module:
    net = small_net()
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def compiled_in_place() -> nn.Module:
    net = small_net()
    net.compile(backend="eager")
    return net


def from_torchvision(name: str) -> nn.Module:
    return getattr(pytest.importorskip("torchvision.models"), name)(num_classes=10)


class KeepsConstant(Flat):
    """A constant is made in the first forward, and used in training."""

    def forward(self, *args):
        if not hasattr(self, "gain"):
            self.gain = torch.linspace(0.5, 1, 10)
        return super().forward(*args) * self.gain


def compiled_twice() -> nn.Module:
    layer = torch.compile(nn.Linear(8, 8), backend="eager")
    return nn.Sequential(*small_net()[:4], layer, nn.ReLU(), layer, nn.Linear(8, 10))


NETS = {
    "arguments": Flat,
    "shifts": lambda: MeanOfShifts(small_net()),
    "shifts of a net that calls view": lambda: MeanOfShifts(View()),
    "constant": KeepsConstant,
    "compiled twice": compiled_twice,
    "hook": hooked_net,
    "weight_norm": lambda: small_net(nn.utils.parametrizations.weight_norm),
    "old weight_norm": lambda: small_net(nn.utils.weight_norm),
    "spectral_norm": lambda: small_net(nn.utils.parametrizations.spectral_norm),
    "compiled": lambda: torch.compile(small_net(), backend="eager"),
    "compiled in place": compiled_in_place,
    "resnet18": lambda: from_torchvision("resnet18"),
    "mobilenet_v3_small": lambda: from_torchvision("mobilenet_v3_small"),
    "efficientnet_b0": lambda: from_torchvision("efficientnet_b0"),
}


def colour_model(net: nn.Module) -> tuple[Classifier, torch.Tensor]:
    """A model as it is after a step of training, and images for it."""
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    model = Classifier(net, torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225]))
    output = model.train()(images)
    F.cross_entropy(output, torch.arange(6)).backward()
    return model, images


@pytest.mark.filterwarnings("ignore")  # of the nets themselves
@pytest.mark.parametrize("name", NETS)
def test_nets_of_all_kinds_are_exported(name, tmp_path):
    model, images = colour_model(NETS[name]())
    (content,) = export_model(model, images, {"classes": CLASSES}).values()
    loaded = torch.jit.load(io.BytesIO(content))
    expected = predict_logits(model, images)
    for batch in (images, images[:1], images / 255):
        logits = predict_logits(loaded, batch)
        torch.testing.assert_close(logits, expected[: len(batch)], rtol=1e-4, atol=1e-4)
    with pytest.raises(torch.jit.Error, match="expected images of shape"):  # a traced net is checked too
        loaded(F.pad(images, (0, 1, 0, 1)))
    assert model.train()(images).requires_grad  # training can go on


def test_trying_the_export_leaves_a_new_net_trainable():
    model, images = Classifier(KeepsConstant(), 0.5, 0.25), torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
    export_model(model, images[:1], {"classes": CLASSES})
    F.cross_entropy(model.train()(images), torch.arange(6)).backward()


def test_net_that_only_torch_export_takes():
    model, images = colour_model(Branch())
    metadata = {"classes": CLASSES}
    contents = export_model(model, images, metadata, pt2=True)
    assert list(contents) == ["model.pt2"]
    logits = predict_logits(load_exported(contents["model.pt2"])[0], images)
    torch.testing.assert_close(logits, predict_logits(model, images))
    with pytest.raises(ModelError, match="script: .*; trace: .* or export a model.pt2"):
        export_model(model, images, metadata)


def test_net_that_torch_export_alone_refuses():
    model, images = colour_model(nn.Sequential(Loop(), nn.Flatten(), nn.Linear(3 * 32 * 32, 10)))
    metadata = {"classes": CLASSES}
    with pytest.raises(ModelError, match="to model.pt2: torch_export: .*, or leave out --export_pt2"):
        export_model(model, images, metadata, pt2=True)
    assert list(export_model(model, images, metadata)) == ["model.pt"]


def test_net_whose_layers_are_in_a_list_is_refused_by_every_export():
    model, images = colour_model(PlainList())
    with pytest.raises(ModelError, match=r"torch_export: its parameters\(\) lack some of its weights"):
        export_model(model, images, {"classes": CLASSES}, pt2=True)


@pytest.mark.parametrize("pt2", [False, True])
@pytest.mark.parametrize(
    ("net", "words"),
    [
        (PythonBranch, "script: Compiled functions can't take variable number .*trace: its logits differ"),
        (Numpy, "trace: its logits differ by"),
        (Random, "is random, keeps a state, or gives other logits for an image alone, in eval mode"),
        (OwnStatistics, "is random, keeps a state, or gives other logits for an image alone, in eval mode"),
        (Squeezed, "is random, keeps a state, or gives other logits for an image alone, in eval mode"),
        (nn.Flatten, r"gives outputs of shape \[3072\] for 10 classes"),
        (lambda: nn.Sequential(Flat(), nn.Softmax(1)), "gives probabilities, not logits"),
        (
            Cropped,
            r"fails on .* \[3, 32, 32\], in Linear at test_model.py, line \d+: mat1 .* Correct its forward",
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 3)), "fails on .*, in Conv2d: Given groups=1, .*3 channels"),
    ],
)
def test_net_that_nothing_takes_is_told_why(net, words, pt2, capfd):
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(ModelError, match=words) as error:
        export_model(Classifier(net(), 0.5, 0.25), images, {"classes": CLASSES}, pt2)
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


class KeepsGraph(Flat):
    """Keeps a state that depends on the weights of the step before."""

    state = 0

    def forward(self, *args):
        logits = super().forward(*args) + self.state
        self.state = 0.1 * logits.mean() if self.training else 0
        return logits


class Sparse(Flat):
    def forward(self, *args):
        return super().forward(*args).to_sparse()


class MixedTypes(Flat):
    """Writes what autocast computes into a tensor that autocast does not know."""

    def forward(self, *args):
        logits = torch.zeros(len(args[0]), 10)
        logits[torch.arange(len(logits))] = super().forward(*args)
        return logits


class MoreInTraining(Flat):
    """Its logits and those of a second head, for a loss of both."""

    def forward(self, *args):
        logits = super().forward(*args)
        return torch.cat([logits, logits]) if self.training else logits


class NoGradients(Flat):
    """As dynamically quantized layers, passes no gradient to its weights."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(10, 10)

    def forward(self, *args):
        with torch.no_grad():
            logits = self.head(super().forward(*args))
        return logits.requires_grad_()


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda: Flat().requires_grad_(False), r"in backward\(\): .* not require grad.* unfreeze weights"),
        (NoGradients, r"backward\(\) gives no gradient to any weight of the net. Correct its forward"),
        (in_inference_mode, r"was made in torch.inference_mode\(\). Make it outside."),
        (lambda: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), "not require grad"),
        (KeepsGraph, r"in backward\(\): Trying to backward .* a second time.* detach\(\) what it keeps"),
        (MixedTypes, r"in MixedTypes at test_model.py, line \d+: .*BFloat16.* --precision fp32"),
        (Sparse, "returns a torch.sparse_coo. Return logits"),
        (lambda: nn.Sequential(Flat(), nn.Flatten(0)), r"gives outputs of shape \[\] for 10 classes"),
    ],
)
def test_net_that_cannot_be_trained_is_told_why_before_the_training(net, words):
    images, metadata = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), {"classes": CLASSES}
    with pytest.raises(ModelError, match=words) as error:
        model = Classifier(net(), 0.5, 0.25)
        export_model(model, images, metadata)
        try_training(model, images, torch.autocast("cpu", torch.bfloat16))
    assert "\n" not in str(error.value)


class GhostNorm(Flat):
    """Batch norm of a quarter of the batch at a time."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(10)

    def forward(self, *args):
        return torch.cat([self.norm(part) for part in super().forward(*args).chunk(4)])


@pytest.mark.parametrize("net", [GhostNorm, MoreInTraining, lambda: torch.jit.script(nn.Sequential(*FLAT))])
def test_net_that_can_be_trained_is_taken(net):
    images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
    try_training(Classifier(net(), 0.5, 0.25), images, torch.autocast("cpu", torch.bfloat16))


def test_trying_the_training_changes_nothing():
    model, images = colour_model(nn.Sequential(small_net(), nn.Dropout(0.5)))
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gradients = [weight.grad.clone() for weight in model.parameters()]
    try_training(model, images, torch.autocast("cpu", torch.bfloat16))
    assert random.equal(torch.get_rng_state())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    torch.testing.assert_close([weight.grad for weight in model.parameters()], gradients, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": Flat()}, "Give export_model a Classifier"),
        ({"images": torch.rand(2, 3, 32, 32)}, "images to try it with: uint8"),
        ({"images": torch.zeros(0, 3, 32, 32, dtype=torch.uint8)}, "images to try it with: uint8"),
        ({"metadata": {"classes": CLASSES, "acc": np.float32(0.5)}}, "^Object of type float32 is not JSON"),
    ],
)
def test_what_is_exported_wrongly_is_not_called_a_fault_of_the_net(change, words):
    model, images = colour_model(Flat())
    with pytest.raises((ModelError, TypeError), match=words):
        export_model(**{"model": model, "images": images, "metadata": {"classes": CLASSES}} | change)


@pytest.mark.parametrize(
    "statistics", [([125.3, 123.0, 113.9], 0.25), (0.5, [0.25, 0, 0.25]), (float("nan"), 1)]
)
def test_statistics_of_other_pixels_are_refused(statistics):
    with pytest.raises(ModelError, match="of pixels in 0..1, and no std of 0"):
        Classifier(Flat(), *statistics)


def test_net_that_returns_a_tuple_is_told_so():
    with pytest.raises(ModelError, match="The net returns a tuple. Return logits"):
        colour_model(Pair())


def test_net_that_gives_nan_is_told_so(images):
    model = new_model()
    with torch.no_grad():
        model.net.linear.bias[3] = float("nan")
    with pytest.raises(ModelError, match="gives NaN or infinity"):
        export_model(model, images, {"classes": CLASSES})


def test_damage_is_found(images, tmp_path):
    save(export_model(new_model(), images, {"classes": CLASSES}), tmp_path)
    content = bytearray((tmp_path / "model.pt").read_bytes())
    assert read_intact(tmp_path / "model.pt") == content
    content[len(content) // 2] ^= 1
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(zipfile.BadZipFile):
        read_intact(tmp_path / "model.pt")
    result = run_python("-m", "zipfile", "-t", "model.pt", cwd=tmp_path)  # what README.md advises
    assert "archive/data/" in result.stdout
