"""What compare.py accepts from a training loop other than train.py, and its test against hand figures."""

import json
import re
from pathlib import Path

import pytest
import torch

import compare
from data import load_split


@pytest.fixture(scope="module")
def labels(small_dir) -> torch.Tensor:
    return load_split("mnist", small_dir, train=False)[3]


def make_run(path: Path, labels: torch.Tensor, wrong: list[int], metrics: str, config=None, **summary):
    """Write a run directory. Epoch e guesses the first wrong[e - 1] images wrong."""
    (path / "predictions").mkdir(parents=True)
    for epoch, count in enumerate(wrong, 1):
        guesses = torch.cat([(labels[:count] + 1) % 10, labels[count:]])
        scores = torch.eye(10)[guesses].tolist()
        lines = ["id,guess,truth," + ",".join(f"score_{k}" for k in range(10))]
        for i, (guess, truth) in enumerate(zip(guesses.tolist(), labels.tolist())):
            lines.append(f"{i},{guess},{truth}," + ",".join(f"{score:g}" for score in scores[i]))
        (path / "predictions" / f"epoch-{epoch:03d}.csv").write_text("\n".join(lines) + "\n")
    (path / "metrics.csv").write_text(metrics)
    (path / "config.json").write_text(json.dumps(config or {}))
    (path / "summary.json").write_text(json.dumps({"epoch": len(wrong), **summary}))
    return path


def page_of(folder: Path, *arguments) -> str:
    out = folder / "page.html"
    compare.compare(compare.parse_args([*map(str, arguments), "--out", str(out)]))
    return out.read_text()


def shown(page: str) -> str:
    """The part of the page at the slider's first position: answer, facts and charts."""
    return re.search(r'<section data-view="\d+">.*?</section>', page)[0]


def fact(page: str, name: str) -> list[str]:
    """The cells of a row in the page's table of runs."""
    row = re.search(f'<th scope="row">{name}</th>(.*?)</tr>', shown(page))[1]
    return [re.sub("<.*?>", "", cell) for cell in re.findall("<td>(.*?)</td>", row)]


def chart(page: str, title: str) -> str | None:
    found = re.search(f'<svg [^>]*aria-label="{title}: [^>]*>(.*?)</svg>', shown(page))
    return found and found[1]


def wrong_by_epoch(page: str) -> list[str]:
    return re.findall(r"<title>epoch (\d+: \d+) wrong</title>", chart(page, "Wrong by epoch"))


METRICS = "step,epoch,loss,acc,top5\n1,1,2.5,,\n2,1,2.0,,\n2,1,,93.4,99\n4,2,1.5,,\n4,2,,97.6,99.5\n"
RECORDED = (
    "step,epoch,loss,acc,test_loss,wrong,top5\n1,1,2.5,,,,\n1,1,,93.4,0.3,33,99\n2,2,,97.6,0.1,12,99\n"
)


def test_run_of_another_loop_gets_a_page_without_pictures(labels, tmp_path, capsys):
    run = make_run(tmp_path / "mine", labels, [33, 12], METRICS, {"lr": 0.1})
    page = page_of(tmp_path, run)
    out = capsys.readouterr().out
    assert "no pictures: mine@2 names no data set; --dataset NAME adds them\n" in out
    for name in ("parameters", "training"):
        assert f">{name}</th>" not in shown(page)
    assert fact(page, "wrong") == ["12"]
    assert 'class="sheet"' not in page and "data:image/webp" not in page
    assert wrong_by_epoch(page) == ["1: 33", "2: 12"]
    assert chart(page, "Training loss")


def test_metrics_may_have_more_columns_or_no_loss(labels, tmp_path):
    run = make_run(tmp_path / "mine", labels, [33, 12], RECORDED)
    page = page_of(tmp_path, run, "--no_images")
    assert wrong_by_epoch(page) == ["1: 33", "2: 12"]
    (run / "metrics.csv").write_text("step,epoch,wrong\n4,1,33\n8,2,12\n")
    page = page_of(tmp_path, run, "--no_images")
    assert chart(page, "Wrong by epoch") and not chart(page, "Training loss")


def test_dataset_flag_or_another_run_adds_the_pictures(labels, small_dir, tmp_path, capsys):
    bare = make_run(tmp_path / "bare", labels, [33], METRICS, {"dataset": None, "val_size": None})
    named = {"dataset": "mnist-format", "data_dir": str(small_dir), "parameters": 1234, "val_size": 0}
    full = make_run(tmp_path / "full", labels, [12], RECORDED, named, train_seconds=[1.25])
    assert 'class="sheet"' in page_of(tmp_path, bare, "--dataset", "mnist", "--data_dir", small_dir)
    page = page_of(tmp_path, bare, full)
    assert 'class="sheet"' in page and "no pictures" not in capsys.readouterr().out
    assert fact(page, "data set") == ["–", "mnist-format"]
    assert fact(page, "parameters") == ["–", "1,234"]
    assert fact(page, "training") == ["–", "1.2 s"]


def test_epochs_without_a_time_have_no_training_time(labels, tmp_path):
    for name, times in (("null", [2.5, None]), ("zero", [2.5, 0.0])):
        run = make_run(tmp_path / name, labels, [33, 12], METRICS, train_seconds=times)
        assert compare.load_run(f"{run}@1").seconds == 2.5
        assert compare.load_run(f"{run}@2").seconds is None


def test_damaged_run_is_refused_with_its_csv_file_named(labels, tmp_path):
    for file, text in (
        ("config.json", '{"classes": 10}'),
        ("summary.json", '{"train_seconds": "fast"}'),
        ("metrics.csv", "step,epoch,loss\nfirst,1,2.5\n"),
    ):
        run = make_run(tmp_path / file, labels, [33], METRICS)
        (run / file).write_text(text)
        with pytest.raises(compare.CompareError, match=f"{file} is missing or damaged .*epoch-001.csv"):
            compare.load_run(str(run))


def test_long_class_names_are_cut_on_the_terminal(main, tmp_path):
    names = ["short", "long " * 60]
    rows = [f"{i},{names[1]},{names[0]},0.1,0.9" for i in range(3)]
    rows += [f"{i},{names[i % 2]},{names[i % 2]},{1 - i % 2},{i % 2}" for i in range(3, 40)]
    header = ",".join(["id", "guess", "truth", *(f"score_{name}" for name in names)])
    (tmp_path / "mine.csv").write_text("\n".join([header, *rows]))
    lines = main("compare.py", "mine.csv", "--no_images", cwd=tmp_path).stdout.splitlines()
    assert any("suspected label errors: the lowest" in line for line in lines)
    assert max(map(len, lines)) < 110 and any("long long" in line and "…" in line for line in lines)
