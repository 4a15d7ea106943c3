import json
import os

import pytest
import torch
from programs import run_python
from torch import nn

import model as model_module
from model import ConvNet, ModelError, Standardize, export_model, load_exported, predict_logits


@pytest.fixture
def images():
    return torch.randint(0, 256, (20, 1, 28, 28), dtype=torch.uint8)


def new_model() -> nn.Module:
    return nn.Sequential(Standardize(33.3, 78.6), ConvNet())


@pytest.mark.parametrize("train", [True, False])
def test_model_is_the_tutorials_network(images, train):
    net = ConvNet()
    model = nn.Sequential(Standardize(33.3, 78.6), net).train(train)
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
    torch.testing.assert_close(model(images), tutorial((images.float() - 33.3) / 78.6))


def test_model_takes_any_channels_size_and_classes():
    images = torch.randint(0, 256, (3, 3, 40, 22), dtype=torch.uint8)
    net = ConvNet(7, (3, 40, 22), l1_size=4, l2_size=5, conv_kernel=3)
    model = nn.Sequential(Standardize(torch.ones(3), torch.ones(3)), net)
    assert model(images).shape == (3, 7)
    torch.testing.assert_close(model(images.float()), model(images))
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


def test_export_runs_anywhere_without_our_source(images, tmp_path):
    model = new_model()
    model(images)  # moves the running statistics away from their defaults
    export_model(model, tmp_path / "model.pt", {"classes": ["é"]}, images)
    torch.save((images, predict_logits(model, images)), tmp_path / "expected.bin")
    code = """
import sys, torch
assert "model" not in sys.modules
images, expected = torch.load("expected.bin")
model = torch.jit.load("model.pt")
assert not model.training
for pixels in (images, images.float()):
    for count in (1, 2, 20):
        torch.testing.assert_close(model(pixels[:count]), expected[:count], rtol=0, atol=1e-5)
assert model(images[:1].expand(1000, -1, -1, -1)).shape == (1000, 10)
"""
    result = run_python("-I", "-W", "ignore", "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert load_exported(tmp_path / "model.pt")[1] == {"classes": ["é"]}
    (tmp_path / "other").touch()
    assert (tmp_path / "model.pt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_program_by_torch_export_gives_the_same(images, tmp_path):
    model = new_model().to(memory_format=torch.channels_last)
    model(images)
    export_model(model, tmp_path / "model.pt2", {"classes": ["é"]}, images[:1])
    loaded, metadata = load_exported(tmp_path / "model.pt2")
    assert metadata == {"classes": ["é"]}
    for count in (1, 2, 20):
        logits = predict_logits(loaded, images[:count])
        torch.testing.assert_close(logits, predict_logits(model, images[:count]))
    code = """
import torch
images = torch.zeros(5, 1, 28, 28, dtype=torch.uint8)
record = {"metadata.json": ""}
model = torch.export.load("model.pt2", extra_files=record).module()
assert model(images).shape == (5, 10) and "classes" in record["metadata.json"]
"""
    result = run_python("-I", "-W", "ignore", "-c", code, cwd=tmp_path)
    assert result.returncode == 0, result.stderr


def test_failed_export_leaves_the_file_that_was_there(images, tmp_path, monkeypatch):
    (tmp_path / "model.pt").write_text("a good one")
    wrong = torch.jit.script(new_model())
    monkeypatch.setattr(model_module, "load_exported", lambda path: (wrong, {}))
    with pytest.raises(ModelError, match="logits differ"):
        export_model(new_model(), tmp_path / "model.pt", {}, images)
    assert os.listdir(tmp_path) == ["model.pt"] and (tmp_path / "model.pt").read_text() == "a good one"


def test_unusable_files_are_refused_by_name(images, tmp_path):
    export_model(new_model(), tmp_path / "model.pt", {"classes": []}, images)
    content = (tmp_path / "model.pt").read_bytes()
    torch.jit.save(torch.jit.script(new_model()), tmp_path / "bare.pt")
    torch.save({"weights": images}, tmp_path / "weights.pt")
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "folder.pt").mkdir()
    cases = {
        "cut.pt": "not an exported model",
        "text.pt": "not an exported model",
        "weights.pt": "not an exported model",
        "bare.pt": "metadata",
        "missing.pt": "does not exist",
        "folder.pt": "not a file",
    }
    for name, reason in cases.items():
        with pytest.raises(ModelError, match=reason) as error:
            load_exported(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)


def test_metadata_is_plain_json(images, tmp_path):
    metadata = {"classes": ["a", "b"], "input": {"shape": [None, 1, 28, 28]}, "metrics": {"acc": 99.5}}
    export_model(new_model(), tmp_path / "model.pt", metadata, images)
    record = {"metadata.json": ""}
    torch.jit.load(tmp_path / "model.pt", _extra_files=record)
    assert json.loads(record["metadata.json"]) == metadata
