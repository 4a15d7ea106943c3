"""The exported files where this source is not: what README.md shows about them."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from programs import ROOT, as_python, environment, run, run_python

from data import load_split
from model import METADATA_FILE, Classifier, export_model, predict_logits

README = (ROOT / "README.md").read_text()
CPP = ROOT / "docs" / "evaluate.cpp"


@pytest.fixture
def test_set(small_dir) -> tuple[torch.Tensor, torch.Tensor]:
    return load_split("mnist-format", small_dir, train=False)[2:]


@pytest.fixture
def folder(finished, test_set, tmp_path) -> Path:
    """A folder of somebody who has the exported files, some images and their logits, but no source."""
    for name in ("model.pt", "model.pt2"):
        shutil.copy(finished / name, tmp_path)
    images = test_set[0]
    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "digit.png")
    logits = predict_logits(torch.jit.load(finished / "model.pt"), images)
    torch.save({"images": images, "expected": logits}, tmp_path / "cases.bin")
    return tmp_path


def readme_blocks() -> list[str]:
    """The Python blocks of README.md about the exported files, in their order."""
    (section,) = re.findall(r"\n## Use the exported model\n(.*?)\n## ", README, re.DOTALL)
    blocks = re.findall(r"\n\n((?: {4}.*\n|\n(?= {4}))+)", section)
    return [textwrap.dedent(block) for block in blocks if "torch" in block or "model(" in block]


RUN_BLOCKS = """
import json, sys, torch
names, checked = torch.load("cases.bin"), 0
for block in json.loads(sys.argv[1]):
    names.pop("logits", None)
    exec(block, names)
    if "logits" in names:
        logits = torch.as_tensor(names["logits"])
        difference = (logits - names["expected"][: len(logits)]).abs().max().item()
        assert difference < 1e-4, (block, difference)
        checked += 1
assert checked > 0 and "model" not in sys.modules
"""


def test_python_in_the_readme_gives_the_models_logits(folder):
    blocks = json.dumps([block for block in readme_blocks() if "onnx" not in block])
    result = run(as_python, "-c", RUN_BLOCKS, blocks, cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.elsewhere
def test_onnx_recipe_in_the_readme_gives_the_models_logits(folder):
    for package in ("onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs pip install onnxscript onnxruntime")
    blocks = [block for block in readme_blocks() if "onnx" in block]
    assert len(blocks) == 1
    result = run_python("-I", "-W", "ignore", "-c", RUN_BLOCKS, json.dumps(blocks), cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.first
@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_cpp_program_gets_the_same_images_wrong(finished, small_dir, tmp_path):
    source = CPP.read_text()
    assert len(source.splitlines()) < 40
    (build,) = re.findall(r"\n(T=.*?\ng\+\+ .*?)\n\./evaluate", source, re.DOTALL)
    shutil.copy(CPP, tmp_path)
    env = environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run(build, shell=True, check=True, cwd=tmp_path, env=env)
    raw = small_dir / "MNIST" / "raw"
    files = [finished / "model.pt", raw / "t10k-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"]
    output = subprocess.run(
        ["./evaluate", *files], check=True, cwd=tmp_path, env=env, capture_output=True, text=True
    ).stdout
    wrong = json.loads((finished / "summary.json").read_text())["wrong"]
    assert 0 < wrong < 400 and output == f"{wrong} wrong\n"
    files[-1] = raw / "train-labels-idx1-ubyte"
    other = subprocess.run(["./evaluate", *files], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert other.returncode != 0 and other.stdout == "" and "not the labels of these images" in other.stderr


def test_loaded_file_can_be_fine_tuned(finished, test_set, tmp_path):
    images, labels = 255 - test_set[0], test_set[1]  # dark on light, unlike what it was trained on
    files = {METADATA_FILE: ""}
    model = torch.jit.load(finished / "model.pt", _extra_files=files)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = F.cross_entropy(model(images), labels).item()

    model.train()
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for batch, truth in 3 * list(zip(images.split(50), labels.split(50))):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(batch), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert F.cross_entropy(model(images), labels).item() < first / 4
    after = model.state_dict()
    unchanged = {name for name in before if torch.equal(before[name], after[name])}
    assert unchanged == {"mean", "std", "temperature"}

    with torch.no_grad():
        old, divisor = model(images), model.temperature.clone()
        model.temperature.fill_(1)
        torch.testing.assert_close(model(images), old * divisor)

    for keep in ({}, {"_extra_files": files}):
        model.save(tmp_path / "tuned.pt", **keep)
        found = {METADATA_FILE: ""}
        tuned = torch.jit.load(tmp_path / "tuned.pt", _extra_files=found)
        assert found[METADATA_FILE] == (files[METADATA_FILE] if keep else b"")
        torch.testing.assert_close(tuned(images), model(images))
    assert model.train()(images.float()).shape == (500, 10)  # nothing is checked in train mode


def test_what_cannot_be_fine_tuned(finished, test_set):
    model = torch.jit.load(finished / "model.pt")
    with pytest.raises(RuntimeError, match="Cannot re-assign"):
        model.net.linear = torch.nn.Linear(32 * 7 * 7, 3)
    with pytest.raises(RuntimeError, match="not supported"):
        model.net.linear.register_forward_hook(print)
    assert list(torch.jit.freeze(model).parameters()) == []
    with pytest.raises(NotImplementedError):
        torch.export.load(finished / "model.pt2").module().train()


class OnlyTraced(torch.nn.Sequential):
    """torch.jit.script refuses the arguments of its forward()."""

    def forward(self, *args):
        return super().forward(args[0])


def test_traced_net_stays_in_eval_mode(test_set, tmp_path):
    images = test_set[0][:20]
    layers = torch.nn.Flatten(), torch.nn.BatchNorm1d(784), torch.nn.Dropout(), torch.nn.Linear(784, 10)
    model = Classifier(OnlyTraced(*layers), 0.1, 0.3)
    content = export_model(model, images, {"classes": list("0123456789")})["model.pt"]
    (tmp_path / "model.pt").write_bytes(content)
    model = torch.jit.load(tmp_path / "model.pt")
    expected, statistics = model(images), [value.clone() for value in model.buffers()]
    model.train()
    torch.testing.assert_close(model(images), expected)
    assert all(map(torch.equal, statistics, model.buffers()))


def test_files_of_a_run_hold_neither_paths_nor_pictures(finished, small_dir, test_set):
    places = ROOT, Path.home(), small_dir, finished.parent, sys.prefix, "site-packages", "/usr/", "/home/"
    private = [str(place).encode() for place in (*places, "data_dir", "run_dir")]
    private += [image.numpy().tobytes() for image in test_set[0]]
    for name in ("model.pt", "model.pt2"):
        with zipfile.ZipFile(finished / name) as file:
            for member in file.namelist():
                content = file.read(member)
                assert not any(secret in content for secret in private), (name, member)


def test_readme_explains_every_field_of_the_metadata(finished):
    files = {METADATA_FILE: ""}
    torch.jit.load(finished / "model.pt", _extra_files=files)
    metadata = json.loads(files[METADATA_FILE])
    fields = set()
    for name, value in metadata.items():
        nested = name in ("input", "train", "eval")
        fields |= {f"{name}.{key}" for key in value} if nested else {name}
    (table,) = re.findall(r"\| field \| type \| meaning \|\n(.*?)\n\n", README, re.DOTALL)
    cells = [row.split("|")[1] for row in table.splitlines()[1:]]
    explained = {name for cell in cells for name in re.findall("`(.*?)`", cell)}
    assert explained == fields
