"""Folders of own pictures that evaluate.py gets: what is evaluated, and what it says of the rest."""

import pytest
from conftest import assert_one_line_error
from PIL import Image
from test_evaluate import export


def save(*paths) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), 40).save(path, "png")


@pytest.fixture
def evaluate(main, tmp_path):
    model = export(tmp_path / "model.pt")
    return lambda *arguments: main("evaluate.py", model, *arguments, cwd=tmp_path)


def test_files_that_are_left_out_are_counted_in_one_line(evaluate, tmp_path):
    mine = tmp_path / "mine"
    save(mine / "0.png", mine / "1.JPG", mine / "sub" / "2.png", mine / "a" / "deep" / "place" / "3.png")
    save(mine / ".thumbnails" / "4.png", mine / "__MACOSX" / "0.png", mine / "._0.png")
    (mine / "no pictures").mkdir()
    for name in ("a.heic", "b.HEIC", "film.mpg", "README", "Thumbs.db", ".DS_Store", "no pictures/c.txt"):
        (mine / name).touch()
    result = evaluate("mine", "mine/sub")
    assert result.returncode == 0
    line = "WARNING: mine: skipped: 2 .heic, 1 without extension, 1 .mpg, pictures in a, sub\n"
    assert result.stderr == line
    evaluated = [block.split("  ")[0] for block in result.stdout.split("\n\n")[1:]]
    assert evaluated == ["mine/0.png", "mine/1.JPG", "mine/sub/2.png"]


def test_folder_without_pictures_says_what_it_holds(evaluate, tmp_path):
    save(tmp_path / "mine" / "sub" / "0.png")
    (tmp_path / "mine" / "a.heic").touch()
    found = "mine has no pictures in it, but 1 .heic, pictures in sub. Name the folder"
    assert_one_line_error(evaluate("mine"), found)
    (tmp_path / "empty").mkdir()
    assert_one_line_error(evaluate("empty"), "empty has no pictures in it. Name the folder")


def test_picture_in_a_folder_that_cannot_be_read_is_named(evaluate, tmp_path):
    save(tmp_path / "mine" / "0.png")
    (tmp_path / "mine" / "gone.png").symlink_to("nowhere.png")
    result = evaluate("mine")
    assert_one_line_error(result, "mine/gone.png")
    assert "mine/0.png" in result.stdout
