"""Folders of pictures as people have them: layouts, kinds of files, values, the cache of their pixels."""

import os
import shutil
import time
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from conftest import assert_one_line_error
from PIL import Image
from programs import start
from test_gpu import HAS_GPU
from test_gpu import run as run_on_gpu
from torch.utils.data import DataLoader

import data
from sources import cache, folders, pictures
from sources.errors import SourceError

CLASSES = ("1", "2", "10")
QUICK = ("--augment", 0, "--l1_size", 4, "--l2_size", 8, "--batch_size", 16, "--schedule", "constant")
OFF = {"WANDB_MODE": "disabled"}


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))
    return tmp_path / "user cache"


def draw(label: int, seed: int, dtype="uint8", high=255) -> Image.Image:
    """A picture of 24 x 18 pixels with a bar, whose place tells the label, of values up to `high`."""
    pixels = numpy.random.default_rng(seed).uniform(0.1, 0.3, (18, 24))
    pixels[4 * label + 2 : 4 * label + 6, 4:20] = 1
    return Image.fromarray((pixels * high).astype(dtype))


def fill(part: Path, count: int, classes=CLASSES, **values) -> Path:
    for label, name in enumerate(classes):
        (part / name).mkdir(parents=True)
        for i in range(count):
            draw(label, 100 * label + i, **values).save(part / name / f"{i}.png")
    return part


def make_set(folder: Path, train="train", test="test", **values) -> Path:
    fill(folder / train, 8, **values)
    fill(folder / test, 4, **values)
    return folder


def load(folder: Path, val_size=0, image_size=12, **options) -> data.ImageData:
    return data.load_data(str(folder), val_size=val_size, image_size=image_size, **options)


# ---- Layouts ----
NAMES = [
    ("train", "val"),
    ("Train", "Test"),
    ("TRAINING", "Testing"),
    ("train", "validation"),
    ("train", "Valid"),
    ("train", "dev"),
    ("Train", "Eval"),
    ("training", "hold-out"),
]


@pytest.mark.parametrize(("train", "test"), NAMES)
def test_parts_have_the_names_that_people_give_them(train, test, tmp_path, capsys):
    loaded = load(make_set(tmp_path, train, test))
    assert loaded.classes == ["1", "2", "10"] and capsys.readouterr().err == ""
    assert (
        loaded.train_images.shape == (24, 1, 12, 12) and loaded.train_labels.bincount().tolist() == [8] * 3
    )
    assert loaded.eval_labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_test_set_is_preferred_to_a_validation_set_in_one_line(tmp_path, capsys):
    fill(make_set(tmp_path) / "val", 2)
    assert len(load(tmp_path).eval_images) == 12
    assert capsys.readouterr().err == f"WARNING: evaluating on {tmp_path}/test, not on val\n"
    fill(tmp_path / "dev", 1)
    load(tmp_path)
    assert "those of train and test; not used: dev\n" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "test")
    (tmp_path / "test").mkdir()  # of pictures without a class
    draw(0, 0).save(tmp_path / "test" / "1.png")
    assert len(load(tmp_path).eval_images) == 6
    (tmp_path / "test" / "images").mkdir()  # no folder of a class, as in Tiny ImageNet
    (tmp_path / "test" / "1.png").rename(tmp_path / "test" / "images" / "1.png")
    capsys.readouterr()
    loaded = load(tmp_path)
    assert loaded.classes == ["1", "2", "10"] and len(loaded.eval_images) == 6
    assert "those of train and val; not used: dev, test\n" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["", "train", "downloaded/Train", "downloaded"])
def test_without_a_test_set_the_same_fifth_of_each_class_is_held_out(part, tmp_path, capsys):
    fill(tmp_path / "set" / part, 10)
    loaded = load(tmp_path / "set")
    assert loaded.eval_labels.bincount().tolist() == [2] * 3
    assert loaded.train_labels.bincount().tolist() == [8] * 3
    said = f"WARNING: {tmp_path / 'set'} has no test set: 6 of its 30 pictures are held out to evaluate on\n"
    assert capsys.readouterr().err == said
    (tmp_path / "set").rename(tmp_path / "moved")
    again = load(tmp_path / "moved")
    assert torch.equal(loaded.eval_images, again.eval_images)
    both = torch.cat([loaded.eval_images, loaded.train_images])
    assert len(both.unique(dim=0)) == 30  # no picture is in both
    assert data.load_split(str(tmp_path / "moved"), "", False, 12)[2].equal(both)

    held = load(tmp_path / "moved", val_size=9)
    assert held.eval_labels.bincount().tolist() == [3] * 3 and len(held.train_images) == 21
    assert capsys.readouterr().err.count("\n") == 1  # of `again` alone


def test_new_pictures_hardly_change_what_is_held_out(tmp_path):
    fill(tmp_path, 40)
    before = {image.numpy().tobytes() for image in load(tmp_path).eval_images}
    for i in range(40, 44):
        draw(0, i).save(tmp_path / "1" / f"{i}.png")
    after = [image.numpy().tobytes() for image in load(tmp_path).eval_images]
    assert len(before.intersection(after)) >= len(before) - 3
    assert folders.hold_out_order(list("abcdefgh"), [0] * 8) != list(range(8))  # neighbours are often alike


def test_class_may_be_called_like_a_part(tmp_path):
    fill(tmp_path, 5, classes=("bus", "plane", "train"))
    assert load(tmp_path).classes == ["bus", "plane", "train"]


def test_parts_are_known_by_a_word_in_their_name(tmp_path):
    make_set(tmp_path, "seg_train/seg_train", "test set")
    fill(tmp_path / "seg_pred", 1)
    assert len(load(tmp_path).train_images) == 24
    (tmp_path / "train").mkdir()
    (tmp_path / "seg_train").rename(tmp_path / "train" / "train_old")
    fill(tmp_path / "train", 8)
    fill(tmp_path / "test_masks", 8)
    with pytest.raises(data.DataError, match="test set and test_masks|test_masks and test set"):
        load(tmp_path)


def test_other_names_of_test_sets_are_taken_beside_training_pictures_of_their_classes(tmp_path, capsys):
    fill(make_set(tmp_path / "set", test="dev") / "eval", 2)
    assert len(load(tmp_path / "set").eval_images) == 6
    assert capsys.readouterr().err == f"WARNING: evaluating on {tmp_path}/set/eval, not on dev\n"
    (tmp_path / "set/eval/other").mkdir()  # no class
    assert len(load(tmp_path / "set").eval_images) == 12
    shutil.rmtree(tmp_path / "set/dev")
    for name in CLASSES:  # a set that is not there yet
        (tmp_path / "set/dev" / name).mkdir(parents=True)
    assert len(load(tmp_path / "set").eval_images) == 24 // 5
    fill(tmp_path / "set/holdout", 1, classes=("",))  # pictures without classes
    assert len(load(tmp_path / "set").eval_images) == 24 // 5
    for name in ("dev", "eval", "web dev"):  # classes, with folders in them
        fill(tmp_path / "jobs" / name, 5)
    assert load(tmp_path / "jobs").classes == ["dev", "eval", "web dev"]


def test_pictures_of_a_part_that_has_no_classes_are_not_classes(tmp_path):
    for part in ("train", "test", "more"):
        (tmp_path / part).mkdir()
        draw(0, 0).save(tmp_path / part / "cat.0.png")
    with pytest.raises(
        data.DataError, match=r"has 0 classes: it holds more/, test/, train/\. --dataset needs train/"
    ):
        load(tmp_path)


UNUSED = [  # folders of classes, what is used of them, and what is not
    (["train", "dev", "bus"], "train and dev", "bus"),
    (["train", "test", "eval"], "train and test", "eval"),
    (["train", "bus", "car"], "train", "bus, car"),
    (
        ["seg_train/seg_train", "seg_test/seg_test", "seg_pred"],
        "seg_train/seg_train and seg_test/seg_test",
        "seg_pred",
    ),
    (["train", "test", "more/and/more"], "train and test", "more"),
    (["test", "dev"], "test", "dev"),
    (
        ["train", *(f"part {k}" for k in range(7))],
        "train",
        "part 0, part 1, part 2, part 3, part 4 and 2 more",
    ),
]


@pytest.mark.parametrize(("parts", "used", "unused"), UNUSED)
def test_pictures_beside_the_parts_are_named_once(parts, used, unused, tmp_path, capsys):
    for part in parts:
        fill(tmp_path / part, 5)
    for name in ("annotations", "__MACOSX", ".git"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("0.png" if name != "annotations" else "0.xml")).touch()
    found = data.load_split(str(tmp_path), "", parts[0] != "test", 12)
    line = f"WARNING: {tmp_path}: the pictures are those of {used}; not used: {unused}\n"
    assert capsys.readouterr().err == line and len(found[2]) == 15
    if parts[0] != "test":
        load(tmp_path)
        assert capsys.readouterr().err.count("not used") == 1


def test_loose_pictures_above_the_parts_are_named(tmp_path, capsys):
    make_set(tmp_path / "inner", "Train/Train")
    for place in ("a.png", "inner/b.JPG", "inner/Train/c.png", "inner/notes.txt", "inner/Train/Thumbs.db"):
        draw(0, 0).save(tmp_path / place, "png")
    load(tmp_path)
    used = "inner/Train/Train and inner/test; not used: a.png, inner/Train/c.png, inner/b.JPG"
    assert capsys.readouterr().err == f"WARNING: {tmp_path}: the pictures are those of {used}\n"


@pytest.mark.parametrize("part", ["", "train"])
@pytest.mark.parametrize(("outer", "inner"), [(("fold1", "fold2"), CLASSES), (CLASSES, ("test", "train"))])
def test_what_the_classes_are_taken_to_be_is_said_if_it_is_not_clear(outer, inner, part, tmp_path, capsys):
    for name in outer:
        fill(tmp_path / part / name, 5, classes=inner)
    assert load(tmp_path).classes == [*outer]
    names = f"{', '.join(outer)}, not the folders in each of them: {', '.join(inner)}"
    warning, held_out = capsys.readouterr().err.splitlines()
    assert (
        warning == f"WARNING: {tmp_path / part}: the classes are taken to be {names}"
        and "has no test set" in held_out
    )
    draw(0, 0).save(tmp_path / part / outer[0] / "0.png")
    load(tmp_path)
    assert "the classes are taken" not in capsys.readouterr().err


def test_class_that_is_a_data_set_of_its_own_is_told(tmp_path, capsys):
    make_set(tmp_path / "data", "Train", "Test")
    fill(tmp_path / "masks", 5)
    assert load(tmp_path).classes == ["data", "masks"]
    problem = "data holds a training and a test set, and is taken to be a class"
    assert capsys.readouterr().err.splitlines()[0] == f"WARNING: {tmp_path}: {problem}"


def test_one_folder_in_each_class_is_clear(tmp_path, capsys):
    for name in CLASSES:
        fill(tmp_path / "train" / name, 5, classes=("images",))
        fill(tmp_path / "test" / name, 5, classes=("left", "right")[: 1 + (name == "2")])
    load(tmp_path)
    assert capsys.readouterr().err == ""


def test_class_names_are_sorted_as_numbers_if_they_are(tmp_path):
    names = ["b", "10", "-3", "a", "9", "2.5", "010", "a\u0308"]
    fill(tmp_path, 5, classes=names)
    assert load(tmp_path).classes == ["-3", "2.5", "9", "010", "10", "a", "b", "ä"]
    (tmp_path / "ä").mkdir()  # the same name in other bytes, as macOS and Linux write it
    draw(0, 0).save(tmp_path / "ä" / "x.png")
    assert load(tmp_path).classes[-1] == "ä" and len(load(tmp_path).classes) == 8


def test_class_names_of_any_bytes_are_text(tmp_path):
    names = ["a\nb", "\u05d0\u05d1", "\U0001f600", os.fsdecode(b"caf\xe9")]
    fill(tmp_path, 5, classes=names[:3])
    (tmp_path / names[3]).mkdir()
    draw(0, 0).save(tmp_path / names[3] / "1.png")
    (tmp_path / names[3] / "1.png").rename(tmp_path / names[3] / os.fsdecode(b"\xff.png"))
    loaded = load(tmp_path)
    assert loaded.classes == ["a\nb", "caf\\xe9", *names[1:3]]
    assert (loaded.train_labels == 1).sum() + (loaded.eval_labels == 1).sum() == 1


def test_a_thousand_classes_are_a_data_set_and_a_thousand_and_one_are_not(tmp_path):
    for name in range(1000):
        (tmp_path / str(name)).mkdir()
    for name in (0, 999):
        draw(0, name).save(tmp_path / str(name) / "1.png")
    assert len(load(tmp_path).classes) == 1000
    (tmp_path / "1000").mkdir()
    with pytest.raises(data.DataError, match="has 1001 classes.*2 to 1,000 classes"):
        load(tmp_path)


def test_folder_that_is_refused_says_what_was_found_and_what_is_needed(tmp_path):
    def refused(words, folder=tmp_path / "set"):
        with pytest.raises(data.DataError, match=words) as error:
            load(folder)
        assert str(error.value).count("\n") == 0

    set_ = tmp_path / "set"
    set_.mkdir()
    refused("set has 0 classes: it holds nothing. --dataset needs train/CLASS/ and test/CLASS/")
    for i in range(7):
        draw(0, i).save(set_ / f"{i}.png")
    refused(r"set has 0 classes: it holds 0.png, 1.png, 2.png, 3.png, 4.png and 2 more\. --dataset needs")
    (set_ / "0-images-idx3-ubyte.gz").touch()
    refused(r"with 2 to 1,000 classes\. Name the folder of MNIST's files with --data_dir\.")
    shutil.rmtree(set_)
    (set_ / "train" / "1").mkdir(parents=True)
    draw(0, 0).save(set_ / "train" / "1" / "0.png")
    refused("set has 1 class: it holds train/. --dataset needs")
    shutil.rmtree(set_)
    fill(set_ / "test", 2)
    refused("set has no training pictures: it holds test/. --dataset needs")
    (set_ / "train" / "1").mkdir(parents=True)
    refused(r"train has no pictures: it holds 1/\. --dataset needs")
    draw(0, 0).save(set_ / "train" / "1" / "0.png")
    refused(r"train has pictures of 1 alone: it holds 1/\. --dataset needs")
    (set_ / "train" / "1" / "0.png").unlink()
    fill(set_ / "Training", 2)
    refused(r"train and Training|Training and train")
    (tmp_path / "set.zip").write_bytes(b"PK")
    refused("is a file. Unpack it", tmp_path / "set.zip")
    refused("neither a folder nor one of auto.*If it has moved, name the new place", tmp_path / "gone")


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_set(tmp_path / "pictures")
    assert data.load_data("~/pictures").name == str(tmp_path / "pictures")


# ---- Files ----
def test_files_that_are_no_pictures_are_left_out_and_counted_in_one_line(tmp_path, capsys):
    make_set(tmp_path)
    for name in CLASSES:
        place = tmp_path / "train" / name
        for junk in ("._0.png", "Thumbs.db", ".DS_Store", "desktop.ini"):
            (place / junk).write_bytes(b"\0\5\x16\7")
        for hidden in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails"):
            (place / hidden).mkdir()
            draw(2, 0).save(place / hidden / "0.png")
        for other in ("IMG_1.HEIC", "notes.pdf", "README", "film.mpg"):
            (place / other).write_bytes(b"\0")
    for hidden in ("__MACOSX", ".git"):
        fill(tmp_path / "train" / hidden, 1)
    draw(0, 0).save(tmp_path / "train" / "lost.png")
    (tmp_path / "train" / "1" / "more" / "deep").mkdir(parents=True)
    draw(0, 77).save(tmp_path / "train" / "1" / "more" / "deep" / "0.JPG")
    (tmp_path / "train" / "1" / "back").symlink_to(tmp_path / "train" / "1")
    loaded = load(tmp_path)
    assert loaded.train_labels.bincount().tolist() == [9, 8, 8] and loaded.classes == ["1", "2", "10"]
    kinds = "3 .heic, 3 .mpg, 3 .pdf, 3 without extension, 1 pictures outside of the classes"
    line = capsys.readouterr().err
    assert line.startswith(f"WARNING: {tmp_path}/train: 13 files are skipped: ") and line.count("\n") == 1
    assert sorted(line.split(": ")[-1].strip().split(", ")) == sorted(kinds.split(", "))


def test_all_unreadable_files_are_named_at_once(tmp_path):
    make_set(tmp_path)
    for i in range(6):
        for part in ("train/2", "test/1"):
            path = tmp_path / part / f"{i}.png"
            path.write_bytes(path.read_bytes()[: 20 * i] if path.exists() else b"<svg/>")
    (tmp_path / "train/10/7.png").unlink()
    os.mkfifo(tmp_path / "train/10/7.png")
    (tmp_path / "train/10/6.png").unlink()
    (tmp_path / "train/10/6.png").symlink_to("gone")
    with pytest.raises(data.DataError) as error:
        load(tmp_path)
    found = (
        f"14 of 38 pictures in {tmp_path} cannot be read: train/10/6.png, train/10/7.png, train/2/0.png, "
    )
    reason = f"{tmp_path}/train/10/6.png does not exist. Check its name"
    rest = f"test/1/1.png and 4 more ({reason}). Remove them or save them again."
    assert str(error.value).startswith(found) and str(error.value).endswith(rest)
    assert not list(tmp_path.rglob("*.p[ai][rx]*"))  # neither a cache nor a part of one


def test_links_of_every_kind_are_followed_or_named(tmp_path):
    fill(tmp_path / "real", 6)
    (tmp_path / "set").mkdir()
    for name in CLASSES:
        (tmp_path / "set" / name).symlink_to(f"../real/{name}")
    (tmp_path / "real/1/up").symlink_to("../../real")  # to pictures of other classes, and back to itself
    (tmp_path / "set/gone").symlink_to("nowhere")
    assert load(tmp_path / "set", val_size=3).train_labels.bincount().tolist() == [5] * 3
    (tmp_path / "real/1/circle.png").symlink_to("circle.png")
    (tmp_path / "real/2/gone.png").symlink_to("nowhere")
    with pytest.raises(
        data.DataError, match="2 of 20 pictures in .* cannot be read: 1/circle.png, 2/gone.png"
    ):
        load(tmp_path / "set")


def test_class_without_training_pictures_is_warned_of(tmp_path, capsys):
    make_set(tmp_path)
    (tmp_path / "test" / "11").mkdir()
    draw(1, 0).save(tmp_path / "test" / "11" / "0.png")
    (tmp_path / "train" / "0\x1b").mkdir()
    loaded = load(tmp_path)
    assert loaded.classes == ["1", "2", "10", "11", "0\x1b"]
    assert capsys.readouterr().err == "WARNING: no training pictures of 2 of 5 classes: 11, 0\\x1b\n"


# ---- Values ----
@pytest.mark.parametrize(("high", "top"), [(4095, 255), (65535, 255), (300, 75), (200, 200), (1, 255)])
def test_pictures_of_more_than_8_bits_have_one_scale(high, top, tmp_path):
    make_set(tmp_path, dtype="uint16", high=high)
    dark = Image.fromarray(numpy.full((9, 9), high // 2, dtype="uint16"))
    dark.save(tmp_path / "train/1/dark.png")
    dark.save(tmp_path / "test/1/0.png")
    draw(0, 0).save(tmp_path / "train/1/eight bits.png")  # its values are 0 to 255 already
    loaded = load(tmp_path)
    assert loaded.train_images.max() in (top, 255) and loaded.eval_images.max() == pytest.approx(top, abs=1)
    darks = [image.max().item() for image in loaded.train_images if image.max() == image.min()]
    assert (
        darks == [pytest.approx(top * (high // 2) / high, abs=1)] and loaded.eval_images[0].max() == darks[0]
    )


def test_the_training_pictures_decide_on_the_scale(tmp_path):
    make_set(tmp_path, dtype="uint16", high=65535)
    shutil.rmtree(tmp_path / "test")
    fill(tmp_path / "test", 4, dtype="uint16", high=4095)
    for _ in range(2):  # from the files, and from the cache
        assert load(tmp_path).eval_images.max() == 16
    shutil.rmtree(tmp_path / "train")
    assert data.load_split(str(tmp_path), "", False, 12)[2].max() == 255


def test_floats_and_negative_values_are_scaled(tmp_path):
    make_set(tmp_path)
    for label, name in enumerate(CLASSES):
        for i in range(8):
            pixels = numpy.asarray(draw(label, i), dtype="float32") / 255
            pixels[0, 0] = numpy.nan
            (tmp_path / "train" / name / f"{i}.png").unlink()
            Image.fromarray(pixels).save(tmp_path / "train" / name / f"{i}.tif")
    assert 240 < load(tmp_path).train_images.max() <= 255
    assert pictures.full_range((-1000, 3000)) == (-1000, 3095)
    assert pictures.full_range((0, 2**20)) == (0, 2**20)


def test_channels_follow_the_colours_and_not_the_files_mode(tmp_path):
    make_set(tmp_path)
    for i, mode in enumerate(("RGB", "P", "RGBA", "1", "CMYK")):
        path = tmp_path / "train/2" / f"{i}.png"
        Image.open(path).convert(mode).save(path.with_suffix(".tif"))
    before = load(tmp_path).train_images
    assert before.shape[1] == 1
    red = Image.new("RGB", (20, 20), (200, 30, 40))
    red.save(tmp_path / "train/10/7.png")
    loaded = load(tmp_path)
    assert loaded.train_images.shape[1] == loaded.eval_images.shape[1] == 3
    assert (loaded.train_images[:, 0] == loaded.train_images[:, 2]).all((1, 2)).sum() == 28  # all but one
    is_red = (loaded.train_images == torch.tensor([200, 30, 40])[:, None, None]).all((1, 2, 3))
    assert torch.equal(loaded.train_images[~is_red][:, :1], before[~is_red])
    assert is_red.sum() == 1 and loaded.train_labels[is_red] == 2
    *_, grey, _ = data.load_split(str(tmp_path), "", True, 12, channels=1)
    assert grey.shape[1] == 1 and (grey[is_red] == Image.new("L", (1, 1), 0).getpixel((0, 0)) + 82).all()
    assert numpy.asarray(red.convert("L")).max() == 82


def test_transparency_is_white_unless_the_ink_is(tmp_path):
    for ink, paper in (((0, 0, 0), 255), ((255, 255, 255), 0), ((255, 255, 0), 255), ((0, 0, 255), 255)):
        pixels = numpy.zeros((40, 40, 4), dtype="uint8")
        pixels[10:30, 18:22] = (*ink, 255)
        pixels[:5, :5, :3] = 255 - numpy.array(ink)  # not seen
        Image.fromarray(pixels).save(tmp_path / "ink.png")
        picture = pictures.read_picture(tmp_path / "ink.png").convert("RGB")
        assert picture.getpixel((0, 0)) == (paper,) * 3 and picture.getpixel((20, 20)) == ink
    Image.new("LA", (9, 9), (0, 0)).save(tmp_path / "empty.png")
    assert pictures.read_picture(tmp_path / "empty.png").convert("L").getpixel((4, 4)) == 255


def test_large_jpeg_is_reduced_while_it_is_decoded(tmp_path, monkeypatch):
    small = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype="uint8"))
    small.resize((1600, 1200)).save(tmp_path / "photo.jpg")
    assert pictures.open_picture(tmp_path / "photo.jpg", 28).size == (200, 150)
    whole = pictures.to_pixels(pictures.read_picture(tmp_path / "photo.jpg"), 3, 28, 28)
    reduced = torch.from_numpy(pictures.decode_picture(tmp_path / "photo.jpg", 28, None))
    assert (whole.float() - reduced.float()).abs().mean() < 2


# ---- The cache ----
@pytest.fixture
def no_decoding(monkeypatch):
    def forbid():
        monkeypatch.setattr(cache, "decode_picture", lambda *_: pytest.fail("a picture was decoded"))

    return forbid


def test_second_start_decodes_nothing_and_a_change_is_seen(tmp_path, no_decoding, monkeypatch):
    make_set(tmp_path)
    first = load(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "decode_picture", lambda *_: pytest.fail("a picture was decoded"))
        again = load(tmp_path)
        load(tmp_path, download=False)
    assert torch.equal(first.train_images, again.train_images)
    assert torch.equal(first.eval_images, again.eval_images)

    path = tmp_path / "train/1/0.png"
    times = path.stat()
    content = Image.fromarray(255 - numpy.asarray(Image.open(path)))
    content.save(path)
    path.write_bytes(path.read_bytes().ljust(times.st_size, b"\0")[: times.st_size])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # of the same size and time
    try:
        assert not torch.equal(load(tmp_path).train_images, first.train_images)
    except data.DataError as error:  # it was cut
        assert "train/1/0.png" in str(error)
    path.unlink()
    assert len(load(tmp_path).train_images) == 23
    assert load(tmp_path, image_size=16).train_images.shape[2] == 16
    assert (tmp_path / ".mnist-tables" / ".gitignore").read_text() == "*\n"
    names = sorted(file.name[:8] for file in (tmp_path / ".mnist-tables").glob("*.pixels"))
    assert names == ["test-12-", "test-16-", "train-12", "train-16"]  # the old one is deleted


def test_images_are_mapped_and_never_copied(tmp_path):
    make_set(tmp_path)
    load(tmp_path)
    held = load(tmp_path, val_size=6)
    assert held.eval_images.data_ptr() + held.eval_images.nbytes == held.train_images.data_ptr()
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if ".pixels" in line]
    start, end = (int(value, 16) for value in maps[-1].split()[0].split("-"))
    assert any(int(line.split("-")[0], 16) <= held.train_images.data_ptr() for line in maps)
    assert all(line.split()[1] == "r--s" for line in maps) and end > start  # as large as the disk allows


def test_decoding_in_processes_gives_the_same_and_draws_no_random_number(tmp_path, monkeypatch):
    make_set(tmp_path)
    alone = load(tmp_path)
    shutil.rmtree(tmp_path / ".mnist-tables")
    monkeypatch.setattr(cache, "MIN_PER_WORKER", 5)
    workers, state = [], torch.get_rng_state()

    def note(*args, num_workers, **options):
        workers.append(num_workers)
        return DataLoader(*args, num_workers=num_workers, **options)

    monkeypatch.setattr(cache, "DataLoader", note)
    together = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(alone.train_images, together.train_images)
    assert max(workers) == min(4, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("reason", ["not writable", "full", "full in the middle"])
def test_users_cache_is_used_where_the_folder_cannot_hold_it(
    reason, tmp_path, user_cache, monkeypatch, capsys
):
    folder = make_set(tmp_path / "set")
    if reason == "not writable":
        (folder / ".mnist-tables").write_text("a file")  # root may write to folders that are read-only
    elif reason == "full":
        usage = shutil.disk_usage(tmp_path)
        full = usage._replace(free=100)
        monkeypatch.setattr(
            shutil, "disk_usage", lambda path: full if path.name == ".mnist-tables" else usage
        )
    else:
        real = cache.decode_files

        def fill_disk(folder, files, size, value_range, out):
            if ".mnist-tables" in out.name:
                out.write(b"some")
                raise OSError(28, "No space left on device")
            real(folder, files, size, value_range, out)

        monkeypatch.setattr(cache, "decode_files", fill_disk)
    first = load(folder)
    assert len(list(user_cache.rglob("*.pixels"))) == 2 and capsys.readouterr().err == ""
    assert not list(folder.rglob("*.pixels")) and not list(folder.rglob("*.partial"))
    monkeypatch.setattr(cache, "decode_picture", lambda *_: pytest.fail("a picture was decoded"))
    assert torch.equal(load(folder).train_images, first.train_images)


def test_caches_of_two_sets_do_not_delete_each_other(tmp_path, user_cache, no_decoding):
    for name in ("one", "other"):
        (make_set(tmp_path / name) / ".mnist-tables").touch()
        load(tmp_path / name)
    assert len(list(user_cache.rglob("*.pixels"))) == 4
    no_decoding()
    for name in ("one", "other"):
        load(tmp_path / name)


@pytest.mark.parametrize("has_home", (True, False))
def test_without_any_place_for_the_cache_the_pictures_are_decoded_into_memory(
    has_home, tmp_path, user_cache, monkeypatch, capsys
):
    folder = make_set(tmp_path / "set")
    kept = load(folder)
    shutil.rmtree(folder / ".mnist-tables")
    (folder / ".mnist-tables").touch()
    user_cache.touch()
    if not has_home:  # a user without an entry in /etc/passwd, as in a container
        for name in ("XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
        monkeypatch.chdir(tmp_path)
    assert torch.equal(load(folder).train_images, kept.train_images)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("cannot be kept for the next start" in line for line in lines)
    assert not (tmp_path / "~").exists()


def test_nothing_is_written_without_download(tmp_path, user_cache):
    folder = make_set(tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    assert len(load(folder, download=False).train_images) == 24
    assert sorted(tmp_path.rglob("*")) == before


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-9], "empty": b"", "longer": content + b"x"}[how])


@pytest.mark.faults
@pytest.mark.parametrize("how", ["cut", "empty", "longer"])
def test_damaged_cache_is_made_again(how, tmp_path, faults):
    first = load(make_set(tmp_path)).train_images.clone()
    for file in (tmp_path / ".mnist-tables").glob("*.pixels"):
        damage(file, how)
    again = load(tmp_path)
    assert torch.equal(first, again.train_images)
    faults("damaged cache of decoded pictures", 2)


def slow_load(folder: Path) -> int:
    real = cache.decode_picture

    def slow(*arguments):
        time.sleep(0.02)
        return real(*arguments)

    cache.decode_picture = slow
    load(folder)
    return 0


def wait_for_scratch_file(folder: Path, pattern: str) -> None:
    end = time.monotonic() + 60
    while not list(folder.rglob(pattern)):
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.faults
def test_start_that_was_killed_leaves_nothing_wrong(tmp_path, faults):
    folder = make_set(tmp_path / "set")
    process = start(partial(slow_load, folder), cwd=tmp_path)
    wait_for_scratch_file(folder, "*.partial")
    process.kill()
    process.communicate()
    assert len(list(folder.rglob("*.partial"))) == 1
    assert load(folder).train_labels.bincount().tolist() == [8] * 3
    assert not list(folder.rglob("*.partial"))
    faults("killed while it decodes pictures")


def test_processes_that_start_together_decode_once(tmp_path, monkeypatch, capfd):
    folder = make_set(tmp_path / "set")
    process = start(partial(slow_load, folder), cwd=tmp_path)
    wait_for_scratch_file(folder, "train*.partial")
    monkeypatch.setattr(cache, "decode_picture", lambda *_: pytest.fail("a picture was decoded"))
    assert data.load_split(str(folder), "", True, 12)[2].shape[0] == 24
    process.communicate()
    assert "waiting for another process" in capfd.readouterr().err


# ---- The programs ----
def test_moved_folder_resumes_and_other_pictures_do_not(main, tmp_path):
    fill(tmp_path / "set", 10)
    start = ("train.py", "--dataset", "set", "--run_dir", "run", "--resume", *QUICK)
    assert main(*start, "--epochs", 1, cwd=tmp_path, **OFF).returncode == 0
    (tmp_path / "set").rename(tmp_path / "moved")
    (tmp_path / "set").mkdir()
    resume = ("train.py", "--run_dir", "run", "--resume", "--epochs", 2)
    assert_one_line_error(main(*resume, cwd=tmp_path, **OFF), "set has 0 classes", "--dataset")
    other = fill(tmp_path / "other", 10, high=200)
    refused = main(*resume, "--dataset", other, cwd=tmp_path, **OFF)
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[1].startswith(f"error: {other} does not hold the images")
    result = main(*resume, "--dataset", "moved", cwd=tmp_path, **OFF)
    assert result.returncode == 0 and f"{tmp_path}/moved: 24 images" in result.stdout, result.stderr
    assert main(*resume[:-1], 3, cwd=tmp_path, **OFF).returncode == 0  # the new place is known now

    shutil.rmtree(tmp_path / "moved" / ".mnist-tables")
    whole = ("train.py", "--dataset", "moved", "--run_dir", "whole", *QUICK, "--epochs", 3)
    assert main(*whole, cwd=tmp_path, **OFF).returncode == 0
    tables = [(tmp_path / run / "predictions/epoch-003.csv").read_text() for run in ("run", "whole")]
    assert tables[0] == tables[1]  # with and without the cache


def test_model_is_evaluated_on_what_there_is(main, tmp_path):
    def report(dataset):
        result = main("evaluate.py", "run/model.pt", "--dataset", dataset, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        (line,) = [line for line in result.stdout.splitlines() if line.startswith("data ")]
        return line, result.stderr

    fill(tmp_path / "set", 10)
    train = ("train.py", "--dataset", "set", "--run_dir", "run", "--epochs", 1, *QUICK)
    assert main(*train, cwd=tmp_path, **OFF).returncode == 0
    own = "test images, those that the model's own metrics are of"
    assert report("set") == (f"data      {tmp_path}/set, 6 {own}", "")

    fill(tmp_path / "colour" / "test", 3, classes=("10", "2"))
    Image.new("RGB", (9, 9), "red").save(tmp_path / "colour/test/2/red.png")
    assert report("colour") == (f"data      {tmp_path}/colour, 7 test images", "")
    for i in range(20):
        draw(0, 50 + i).save(tmp_path / "set" / "1" / f"new {i}.png")
    line, warning = report("set")
    assert line.endswith("set, 50 test images") and warning.startswith(
        f"WARNING: {tmp_path}/set has no test set"
    )
    page = main("compare.py", "run", "--out", "page.html", "--dataset", "colour", cwd=tmp_path)
    assert_one_line_error(page, "colour", "is not the test set of run")
    for path in (tmp_path / "set" / "1").glob("new*"):
        path.unlink()
    assert main("compare.py", "run", "--out", "page.html", cwd=tmp_path).returncode == 0


def test_unreadable_folder_is_named(tmp_path, monkeypatch):
    make_set(tmp_path)
    picture = str(next(path for path in tmp_path.rglob("*.*") if path.is_file()))

    def scandir(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folders.os, "scandir", scandir)
    with pytest.raises(SourceError, match="cannot be read: Permission denied. Check its permissions."):
        folders.read_folder(tmp_path, True, 12)
    monkeypatch.setattr(Image, "open", lambda path, **_: scandir(path))
    assert cache.Pictures([picture], 12, None)[0] == "Permission denied"


# ---- Sets that are too large for the GPU ----
TOO_LARGE = """
import importlib, sys, torch
if sys.argv.pop(1) == "large":
    torch.cuda.mem_get_info = lambda *_: (1000, 1000)
sys.exit(importlib.import_module(sys.argv.pop(1)).main())
"""


@pytest.mark.skipif(not HAS_GPU, reason="no GPU that torch can use")
def test_set_that_is_too_large_for_the_gpu_is_moved_batch_by_batch(tmp_path):
    fill(tmp_path / "set", 20)
    for size in ("small", "large"):
        train = ("train", "--dataset", "set", "--run_dir", size, "--epochs", 2, *QUICK[2:])
        evaluate = ("evaluate", f"{size}/model.pt", "--dataset", "set", "--predictions", f"{size}.csv")
        for program in (train, evaluate):
            result = run_on_gpu("-c", TOO_LARGE, size, *program, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
    tables = [(tmp_path / size / "predictions/epoch-002.csv").read_text() for size in ("small", "large")]
    assert tables[0] == tables[1]
    assert (tmp_path / "small.csv").read_text() == (tmp_path / "large.csv").read_text()
