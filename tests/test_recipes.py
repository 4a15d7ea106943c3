"""docs/recipes.md: each recipe, applied to a copy of the files to copy, trains, and does what it says."""

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_idx
from PIL import Image
from programs import as_python, run, start
from test_distributed import start_two
from test_train import MODULES
from torchvision.models import resnet18

from data import load_split
from model import load_exported
from sources.drawn import draw_digits

TEXT = (ROOT / "docs/recipes.md").read_text()
SMALL = ("--l1_size", 4, "--l2_size", 8)
RECIPES = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))


def blocks(recipe: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", RECIPES[recipe], re.DOTALL | re.MULTILINE)


def apply(diff: str, folder: Path) -> int:
    """Change files by a diff whose hunks `@@` parts. Returns how many lines it changes."""
    for name, body in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", diff, re.DOTALL | re.MULTILINE):
        text = (folder / name).read_text() if (folder / name).exists() else ""
        for hunk in re.split(r"^@@\n", body, flags=re.MULTILINE):
            lines = hunk.splitlines(keepends=True)
            assert all(line[0] in " +-" for line in lines), hunk
            old, new = ("".join(line[1:] for line in lines if line[0] in kinds) for kinds in (" -", " +"))
            assert old == "" == text or text.count(old) == 1, f"{name} has not one place for:\n{hunk}"
            text = text.replace(old, new) if old else new
        (folder / name).write_text(text)
    return len(re.findall(r"^(?:\+|-(?!-- ))", diff, re.MULTILINE))


@pytest.fixture
def copy(tiny_dir, tmp_path) -> Path:
    """The files to copy, digits in data/ and colour pictures of three classes in pictures/."""
    for name in (*MODULES, "evaluate.py", "compare.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("sources", "page"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "data").symlink_to(tiny_dir)
    return tmp_path


def draw_pictures(folder: Path) -> None:
    """Noisy pictures of three colours: 12 of each to train on, 4 to test on."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 12), ("test", 4)):
        for channel, name in enumerate(("ash", "beech", "cedar")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 160, (3, 40, 48), generator=generator, dtype=torch.uint8)
                pixels[channel] += 90
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / split / name / f"{i}.png")


def cook(recipe: str, folder: Path, *more) -> tuple[str, int]:
    """Apply a recipe and run its command. Returns what it printed, and the number of changed lines."""
    count = sum(apply(diff, folder) for diff in blocks(recipe, "diff"))
    starter, *command = shlex.split(blocks(recipe, "sh")[0])
    if starter == "torchrun":
        assert command.pop(0) == "--nproc_per_node=2"
        processes = start_two(as_python, *command, *more, cwd=folder)
    else:
        processes = [start(as_python, *command, *more, cwd=folder, WANDB_MODE="disabled")]
    outputs = [process.communicate() for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs
    assert all(error == "" for _, error in outputs), outputs
    return outputs[0][0], count


def read(run_dir: Path) -> tuple[dict, dict, dict]:
    """The weights of the last epoch, those of the exported model, and the metrics."""
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    exported = torch.jit.load(run_dir / "model.pt").state_dict()
    return state, exported, json.loads((run_dir / "summary.json").read_text())


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def guesses_of(model: Path, data_dir: Path) -> list[str]:
    images = load_split("auto", data_dir, train=False)[2]
    return [str(guess) for guess in load_exported(model)[0](images).argmax(1).tolist()]


def test_pretrained_net_with_a_frozen_backbone(copy):
    draw_pictures(copy / "pictures")
    torch.manual_seed(1)
    torch.save(resnet18().state_dict(), copy / "resnet18.pth")
    flags = ("--image_size", 32, "--epochs", 5, "--batch_size", 12)
    cook("A pretrained ResNet-18 with a frozen backbone", copy, *flags)
    before = torch.load(copy / "resnet18.pth", weights_only=True)
    state, exported, summary = read(copy / "runs/001")
    for name, value in before.items():
        same = torch.equal(value, state["model"][f"net.{name}"])
        assert same == (not name.startswith("fc.")), name
    assert exported["net.fc.weight"].shape == (3, 512) and summary["wrong"] <= 6  # guessing gets 8 of 12
    assert exported["mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_adamw_and_cosine(copy):
    cook("AdamW, weight decay, cosine schedule", copy, "--epochs", 1)
    (group,) = read(copy / "runs/001")[0]["optimizer"]["param_groups"]
    assert group["weight_decay"] == 0.1 and group["decoupled_weight_decay"]
    assert group["lr"] == pytest.approx(0, abs=1e-6)  # of the last step
    assert json.loads((copy / "runs/001/config.json").read_text())["schedule"] == "cosine"


def test_class_weights_raise_the_scores_of_a_rare_class(copy):
    images, labels = draw_digits(1500, 5)
    kept = (labels != 8) | (torch.arange(1500) % 10 == 0)  # a tenth of the images of 8
    raw = copy / "rare/MNIST/raw"
    shutil.copytree(copy / "data/MNIST/raw", raw)
    write_idx(raw / "train-images-idx3-ubyte", images[kept, 0])
    write_idx(raw / "train-labels-idx1-ubyte", labels[kept])
    flags = ("--data_dir", "rare", *SMALL, "--augment", 0)
    plain = run("train.py", *flags, "--epochs", 4, cwd=copy, WANDB_MODE="disabled")
    assert plain.returncode == 0, plain.stderr
    cook("Class weights", copy, *flags)
    mean_scores = []
    for name in ("001", "002"):
        found = [row for row in rows(copy / f"runs/{name}/predictions/epoch-004.csv") if row["truth"] == "8"]
        mean_scores.append(sum(float(row["score_8"]) for row in found) / len(found))
    assert mean_scores[1] > mean_scores[0] + 0.05


def test_own_dataloader_streams_in_less_than_sixty_lines(copy):
    draw_pictures(copy / "pictures")
    recipe = "Your own DataLoader, for data that does not fit into memory"
    _, count = cook(recipe, copy, "--batch_size", 8)
    assert count < 60
    _, _, summary = read(copy / "runs/001")
    assert summary["wrong"] <= 4 and len(summary["train_seconds"]) == 3
    steps = [row for row in rows(copy / "runs/001/metrics.csv") if row["loss"]]
    assert len(steps) == 3 * 5  # 36 pictures in batches of 8
    checked = run("evaluate.py", "runs/001/model.pt", "--dataset", "pictures", cwd=copy)
    assert f"wrong     {summary['wrong']}\n" in checked.stdout, checked.stderr
    for path in (copy / "pictures").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    command = ("train.py", "--dataset", "pictures", "--epochs", 1, *SMALL)
    grey = start(as_python, *command, cwd=copy, WANDB_MODE="disabled")
    assert grey.communicate()[1] == "" and grey.returncode == 0


def test_early_stopping_exports_the_best_epoch(copy):
    flags = (*SMALL, "--lr", 0.05, "--augment", 0)
    output, _ = cook("Early stopping, and the best epoch exported", copy, *flags)
    epochs = [row for row in rows(copy / "runs/001/metrics.csv") if row["acc"]]
    losses = [float(row["test_loss"]) for row in epochs]
    best = losses.index(min(losses)) + 1
    assert len(epochs) == best + 3 < 100
    _, exported, summary = read(copy / "runs/001")
    assert summary["finished"] == summary["epoch"] == best
    metadata = load_exported(copy / "runs/001/model.pt")[1]
    assert metadata["metrics"]["test_loss"] == pytest.approx(min(losses)) == summary["test_loss"]
    assert f"compare.py runs/001@1 runs/001@{best}" in output
    again = run(as_python, "train.py", "--run_dir", "runs/001", "--resume", cwd=copy)
    assert "is finished" in again.stdout, again.stderr


def test_average_of_the_weights_is_exported(copy):
    cook("Exponential moving average of the weights", copy, *SMALL)
    state, exported, _ = read(copy / "runs/001")
    name = "net.conv1.weight"
    assert torch.equal(exported[name], state["ema"][f"module.{name}"])
    assert not torch.equal(exported[name], state["model"][name])
    guesses = [row["guess"] for row in rows(copy / "runs/001/predictions/epoch-004.csv")]
    assert guesses == guesses_of(copy / "runs/001/model.pt", copy / "data")


def test_gradients_are_accumulated_over_four_parts(copy):
    cook("Gradient accumulation", copy, *SMALL)
    state, _, _ = read(copy / "runs/001")
    steps = [row for row in rows(copy / "runs/001/metrics.csv") if row["loss"]]
    assert len(steps) == 7  # batches of 100
    assert state["model"]["net.norm1.num_batches_tracked"] == 4 * 7
    assert float(steps[-1]["loss"]) < 0.9 * float(steps[0]["loss"])


def test_top5_is_recorded(copy):
    cook("Top-5 accuracy", copy, *SMALL)
    predictions = rows(copy / "runs/001/predictions/epoch-001.csv")
    scores = [sorted((-float(row[f"score_{k}"]), k) for k in range(10))[:5] for row in predictions]
    found = sum(int(row["truth"]) in [k for _, k in best] for row, best in zip(predictions, scores))
    last = rows(copy / "runs/001/metrics.csv")[-1]
    assert float(last["top5"]) == pytest.approx(100 * found / 100) == read(copy / "runs/001")[2]["top5"]


@pytest.mark.parametrize("other", ["Early stopping, and the best", "Exponential moving average", "Top-5"])
def test_test_set_is_evaluated_once_beside_a_validation_set(other, copy):
    """By the model that is exported, whatever the recipe before: the best, the averaged or the last one."""
    (before,) = (name for name in RECIPES if name.startswith(other))
    apply(blocks(before, "diff")[0], copy)
    flags = ("--schedule", "constant", "--lr", 0.2, "--epochs", 6, "--augment", 0)
    cook("Validation set and test set in one run", copy, *SMALL, *flags)
    predictions = rows(copy / "runs/001/test.csv")
    wrong = sum(row["guess"] != row["truth"] for row in predictions)
    summary = read(copy / "runs/001")[2]
    assert len(predictions) == 100 and summary["test"]["wrong"] == wrong
    assert len(rows(copy / "runs/001/predictions/epoch-002.csv")) == 300
    assert load_exported(copy / "runs/001/model.pt")[1]["metrics"]["test"]["wrong"] == wrong
    assert [row["guess"] for row in predictions] == guesses_of(copy / "runs/001/model.pt", copy / "data")


def test_only_the_tables(copy, monkeypatch):
    recipe = "Only the prediction tables"
    (copy / "train.py").unlink()
    monkeypatch.chdir(copy)
    logits, labels = (9 * torch.eye(3)).repeat(4, 1), torch.arange(12) % 3
    exec(blocks(recipe, "python")[0], {"logits": logits, "labels": labels.roll(1)})
    assert [row["truth"] for row in rows(copy / "mine.csv")][:3] == ["2", "0", "1"]
    output, _ = cook(recipe, copy)
    assert "mine" in output and (copy / "compare.html").exists()


def test_only_the_export(copy, monkeypatch):
    recipe = "Only the export"
    draw_pictures(copy / "pictures")
    monkeypatch.chdir(copy)
    _, classes, images, _ = load_split("pictures", "data", train=False, image_size=20)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1200, 3))
    names = {"net": net, "mean": torch.full((3,), 0.4), "std": 0.2, "classes": classes, "images": images}
    exec(blocks(recipe, "python")[0], names)
    expected = net((images / 255 - 0.4) / 0.2).argmax(1)
    assert torch.equal(load_exported(copy / "model.pt")[0](images).argmax(1), expected)
    output, _ = cook(recipe, copy)
    assert "data      " in output


def test_every_recipe_is_in_the_list_and_has_a_test():
    listed = re.findall(r"^- \[(.*?)\]\(#(.*?)\)$", TEXT, re.MULTILINE)
    assert [name for name, _ in listed] == list(RECIPES)
    for name, anchor in listed:
        assert anchor == re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")
    source = Path(__file__).read_text()
    assert all(f'"{name}"' in source for name in RECIPES)
