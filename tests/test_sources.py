import errno
import gzip
import hashlib
import http.server
import io
import os
import pickle
import shutil
import socket
import tarfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import torch
from conftest import ROOT, write_mnist_files
from PIL import Image, ImageDraw, ImageOps
from programs import as_python, run
from torchvision.datasets import CIFAR10, MNIST, QMNIST

import data
from sources import datasets
from sources.datasets import read_dataset, resolve_dataset
from sources.drawn import draw_digits
from sources.errors import SourceError

RAW = Path("MNIST", "raw")
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
MNIST_FILES = [TRAIN_IMAGES, TRAIN_LABELS, "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]

USE_ALONE = """
import sys
import sources.errors, sources.datasets, sources.folders, sources.photos, sources.drawn
from pathlib import Path
for dataset in ("synthetic", sys.argv[1]):
    name = sources.datasets.resolve_dataset(dataset, Path("none"))
    sources.datasets.read_dataset(name, Path("none"), train=False, image_size=28)
"""


def test_sources_need_no_file_of_ours_from_outside(tmp_path):
    shutil.copytree(ROOT / "sources", tmp_path / "alone" / "sources", copy_function=shutil.copyfile)
    folder = draw_shapes(tmp_path / "shapes")
    result = run(as_python, "-c", USE_ALONE, folder, cwd=tmp_path / "alone")
    assert result.returncode == 0, result.stderr


# ----------------------------------------------------------------------------------------------------------
# Downloads


@pytest.fixture
def no_mirror(monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/other/"])


def test_without_mnist_auto_draws_and_says_so(no_mirror, tmp_path, capsys):
    assert resolve_dataset("auto", tmp_path) == "synthetic"
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "synthetic" in warning and "127.0.0.1:9/other/" in warning
    with pytest.raises(SourceError, match="train-images-idx3-ubyte is missing"):
        resolve_dataset("mnist", tmp_path)


def test_incomplete_mnist_is_not_replaced_by_synthetic_digits(no_mirror, tmp_path):
    write_mnist_files(tmp_path, train=100, test=50)
    (tmp_path / RAW / TRAIN_LABELS).unlink()
    with pytest.raises(SourceError, match=TRAIN_LABELS):
        resolve_dataset("auto", tmp_path)


def test_half_finished_download_is_named(no_mirror, tmp_path):
    raw = tmp_path / RAW
    raw.mkdir(parents=True)
    (raw / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(bytes(1000))[:-10])
    with pytest.raises(SourceError, match=f"{TRAIN_IMAGES} is missing, and downloading it failed"):
        resolve_dataset("auto", tmp_path)


def test_data_dir_that_cannot_be_written_is_named_and_not_replaced_by_synthetic_digits(no_mirror, tmp_path):
    (tmp_path / "notes").write_text("not a folder")
    for dataset in ("auto", "mnist"):
        with pytest.raises(SourceError, match="notes is not a folder"):
            resolve_dataset(dataset, tmp_path / "notes")
        with pytest.raises(SourceError, match="downloading it failed: .*notes"):
            resolve_dataset(dataset, tmp_path / "notes" / "data")


def test_folder_that_cannot_be_listed_is_named(no_mirror, tmp_path, monkeypatch):
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    (tmp_path / RAW).mkdir(parents=True)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: (refuse if path == tmp_path / RAW else listdir)(path))
    with pytest.raises(PermissionError, match=str(tmp_path / RAW)):
        resolve_dataset("auto", tmp_path)


@pytest.mark.parametrize("name", ["auto", "mnist", "fashion_mnist", "kmnist", "qmnist", "cifar10"])
def test_without_download_the_missing_file_is_named_and_nothing_is_created(name, tmp_path, monkeypatch):
    def connect(*args, **kwargs):
        raise AssertionError("connected to a network")

    monkeypatch.setattr(socket, "create_connection", connect)
    first = tmp_path / "data" / datasets.TORCHVISION_SETS["mnist" if name == "auto" else name][1]
    with pytest.raises(SourceError) as error:
        resolve_dataset(name, tmp_path / "data", download=False)
    assert str(error.value).startswith(str(first)) and " is missing. Put its files into " in str(error.value)
    assert ", name the folder with --data_dir, or choose another data set." in str(error.value)
    assert not any(tmp_path.iterdir())


@contextmanager
def serve(files):
    """Serve files, by their names, at a mirror's address. Also yields the list of what was asked for."""
    asked = []

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path[1:])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(files[self.path[1:]])

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", asked
        server.shutdown()


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def packed(monkeypatch, tmp_path):
    """The packed files of a small MNIST in tmp_path / "source". torchvision takes them for MNIST's own."""
    source = write_mnist_files(tmp_path / "source", train=100, test=50) / RAW
    files = {f"{name}.gz": gzip.compress((source / name).read_bytes()) for name in MNIST_FILES}
    monkeypatch.setattr(MNIST, "resources", [(name, md5(content)) for name, content in files.items()])
    return files


def assert_same_files(tmp_path, count=4):
    for name in MNIST_FILES:
        assert (tmp_path / "data" / RAW / name).read_bytes() == (
            tmp_path / "source" / RAW / name
        ).read_bytes()
    assert len(list((tmp_path / "data" / RAW).iterdir())) == count
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_download_gives_up_a_silent_mirror_and_takes_the_next(packed, monkeypatch, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent, serve(packed) as (mirror, _):
        mirrors = [f"http://127.0.0.1:{silent.getsockname()[1]}/", mirror]
        monkeypatch.setattr(MNIST, "mirrors", mirrors)
        monkeypatch.setattr(datasets, "DOWNLOAD_STALL", 0.3)
        start = time.monotonic()
        assert resolve_dataset("mnist", tmp_path / "data") == "mnist"
        assert time.monotonic() - start < 10
    assert socket.getdefaulttimeout() is None
    assert_same_files(tmp_path)


def test_mirror_that_gives_other_files_leaves_nothing_behind(packed, monkeypatch, tmp_path):
    damaged = {**packed, f"{MNIST_FILES[3]}.gz": gzip.compress(bytes(58))}
    with serve(damaged) as (mirror, _):
        monkeypatch.setattr(MNIST, "mirrors", [mirror])
        with pytest.raises(SourceError, match=f"File not found or corrupted .*{MNIST_FILES[3]}.gz"):
            resolve_dataset("mnist", tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())


def test_packed_files_are_unpacked_without_a_mirror(packed, no_mirror, tmp_path):
    (tmp_path / "data" / RAW).mkdir(parents=True)
    for name, content in packed.items():
        (tmp_path / "data" / RAW / name).write_bytes(content)
    datasets.download_dataset("mnist", tmp_path / "data")
    assert_same_files(tmp_path, count=8)


@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", "."])
def test_mnist_is_read_a_folder_off_and_packed(place, small_dir, no_mirror, tmp_path):
    expected = data.load_data("mnist", small_dir)
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(MNIST_FILES):
        content = (small_dir / RAW / name).read_bytes()
        if i % 2:
            (folder / name.replace("-idx", ".idx")).write_bytes(content)  # as some archives name it
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    for dataset in ("auto", "mnist"):
        loaded = data.load_data(dataset, tmp_path, download=False)
        assert torch.equal(loaded.train_images, expected.train_images)
        assert torch.equal(loaded.eval_labels, expected.eval_labels)
    assert len(list(folder.iterdir())) == 4
    path = folder / f"{TRAIN_IMAGES}.gz"
    for damaged in (path.read_bytes()[:-10], b"<html>", path.read_bytes().replace(b"\x8b", b"\x8c")):
        path.write_bytes(damaged)
        with pytest.raises(data.DataError, match=f"{TRAIN_IMAGES}.gz: it is damaged"):
            data.load_data("auto", tmp_path)
    for path in folder.glob("train*"):  # evaluate.py needs the test set alone
        path.unlink()
    *_, labels = data.load_split("mnist", tmp_path, train=False, download=False)
    assert torch.equal(labels, expected.eval_labels)
    with pytest.raises(data.DataError, match=TRAIN_IMAGES):
        data.load_data("mnist", tmp_path, download=False)


def test_data_dir_in_the_home_folder_is_found(small_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(small_dir.parent))
    assert len(data.load_data("mnist", f"~/{small_dir.name}").train_images) == 1500


def test_auto_draws_no_digits_where_the_named_folder_holds_something_else(no_mirror, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    for name in ("mnist.npz", "train.csv", ".hidden"):
        (tmp_path / "mine" / name).write_text("1,2,3")
    for dataset, download in (("auto", True), ("mnist", True), ("auto", False)):
        with pytest.raises(
            SourceError, match=r"\(.*mine holds mnist.npz, train.csv, which is not that. .*--dataset.\)$"
        ):
            resolve_dataset(dataset, tmp_path / "mine", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").rename("data")  # the default, which nobody has named
    assert resolve_dataset("auto", Path("data")) == "synthetic"
    (tmp_path / "data" / f"t10k-{TRAIN_LABELS[6:]}").touch()
    with pytest.raises(SourceError, match="data holds mnist.npz, t10k-labels-idx1-ubyte, train.csv"):
        resolve_dataset("auto", Path("data"))


def test_only_missing_files_are_written(packed, monkeypatch, tmp_path):
    raw = tmp_path / "data" / RAW
    raw.mkdir(parents=True)
    (raw / TRAIN_LABELS).write_text("somebody's own")
    with serve(packed) as (mirror, _):
        monkeypatch.setattr(MNIST, "mirrors", [mirror])
        assert resolve_dataset("auto", tmp_path / "data") == "mnist"
    assert (raw / TRAIN_LABELS).read_text() == "somebody's own"
    shutil.copyfile(tmp_path / "source" / RAW / TRAIN_LABELS, raw / TRAIN_LABELS)
    assert_same_files(tmp_path)


# ----------------------------------------------------------------------------------------------------------
# Other data sets of torchvision


def load_halves(name, data_dir, image_size=28):
    """Both halves of a data set that needs no download: (classes, images, labels) each."""
    assert resolve_dataset(name, data_dir, download=False) == name
    return [read_dataset(name, data_dir, train, image_size) for train in (True, False)]


@pytest.mark.parametrize(
    ("name", "classes"), [("fashion_mnist", "T-shirt/top"), ("kmnist", "o"), ("qmnist", "0")]
)
def test_torchvisions_sets_have_their_own_classes_and_pixels(name, classes, small_dir, tmp_path):
    raw = tmp_path / datasets.TORCHVISION_SETS[name][1]
    raw.mkdir(parents=True)
    for file in (small_dir / "MNIST" / "raw").iterdir():
        if name == "qmnist":
            file_name = file.name.replace("train-", "qmnist-train-").replace("t10k-", "qmnist-test-")
            if "labels" in file.name:
                labels = torch.tensor(list(file.read_bytes()[8:]))
                extended = torch.stack([labels, *[labels * 0] * 7], dim=1)  # class, writer, ...
                header = b"".join(n.to_bytes(4, "big") for n in (0x0C02, len(labels), 8))
                content = header + extended.numpy().astype(">i4").tobytes()
                (raw / file_name.replace("idx1-ubyte", "idx2-int")).write_bytes(content)
                continue
            (raw / file_name).write_bytes(file.read_bytes())
        else:
            (raw / file.name).write_bytes(file.read_bytes())
    expected = load_halves("mnist", small_dir)
    for loaded, same in zip(load_halves(name, tmp_path), expected):
        assert loaded[0][0] == classes and len(loaded[0]) == 10
        assert torch.equal(loaded[1], same[1]) and torch.equal(loaded[2], same[2])
        assert loaded[1].dtype == torch.uint8 and loaded[2].dtype == torch.int64
    for file in raw.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(SourceError, match="missing or damaged"):
        read_dataset(name, tmp_path, True, 28)
    file.unlink()
    with pytest.raises(SourceError, match=f"{file.name} is missing"):
        resolve_dataset(name, tmp_path, download=False)


def test_qmnist_is_downloaded_from_its_own_addresses(monkeypatch, tmp_path):
    files = {f"qmnist-{part}.gz": gzip.compress(part.encode()) for part in ("train-images", "test-images")}
    with serve(files) as (mirror, _):
        archives = [(mirror + name, md5(content)) for name, content in files.items()]
        monkeypatch.setattr(QMNIST, "resources", {"train": archives[:1], "test": archives[1:]})
        assert resolve_dataset("qmnist", tmp_path) == "qmnist"
    raw = tmp_path / "QMNIST" / "raw"
    assert {file.name: file.read_text() for file in raw.iterdir()} == {
        "qmnist-train-images": "train-images",
        "qmnist-test-images": "test-images",
    }


def test_cifar10_is_downloaded_and_in_colour(tmp_path, monkeypatch):
    folder = tmp_path / "source" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    pixels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    batch = {"data": pixels.flatten(1).numpy(), "labels": list(range(10))}
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for name in names:
        (folder / name).write_bytes(pickle.dumps(batch))
    words = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": words}))

    def digest(name):
        return md5((folder / name).read_bytes())

    monkeypatch.setattr(CIFAR10, "train_list", [[name, digest(name)] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], digest(names[5])]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": digest("batches.meta")})
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    with serve({CIFAR10.filename: archive.getvalue()}) as (mirror, asked):
        monkeypatch.setattr(CIFAR10, "url", mirror + CIFAR10.filename)
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive.getvalue()))
        assert resolve_dataset("cifar10", tmp_path / "data") == "cifar10"
        requests = len(asked)
        assert resolve_dataset("cifar10", tmp_path / "data") == "cifar10"
        assert set(asked) == {CIFAR10.filename} and len(asked) == requests
    assert [file.name for file in (tmp_path / "data").iterdir()] == ["cifar-10-batches-py"]

    (classes, images, _), (_, test_images, test_labels) = load_halves("cifar10", tmp_path / "data")
    assert classes == words and images.shape == (50, 3, 32, 32)
    assert torch.equal(test_images, pixels) and test_labels.tolist() == list(range(10))


# ----------------------------------------------------------------------------------------------------------
# Folders of pictures


def draw_shapes(folder, size=40, colour=True, per_class=12):
    """A folder of pictures of discs, bars and frames, in all modes that people have."""
    modes = ["RGB", "RGBA", "P"] if colour else ["L", "LA", "I;16", "1"]
    for part, count in (("train", per_class), ("test", 4)):
        for label, name in enumerate(("a disc", "bar", "frame ü")):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("L", (size + i, size), 255)
                draw, box = ImageDraw.Draw(picture), (8, 8, size - 8, size - 8)
                if label == 0:
                    draw.ellipse(box, fill=0)
                elif label == 1:
                    draw.line(box, fill=0, width=6)
                else:
                    draw.rectangle(box, outline=0, width=4)
                mode = modes[i % len(modes)]
                if mode == "I;16":
                    picture = Image.fromarray(numpy.asarray(picture).astype("uint16") * 257)
                elif mode in ("RGBA", "LA"):  # ink on a transparent ground
                    ink = Image.new("L", picture.size, 0)
                    picture = Image.merge("LA", (ink, ImageOps.invert(picture))).convert(mode)
                else:
                    ink = (0, 0, 5) if mode == "RGB" else "black"
                    picture = ImageOps.colorize(picture, ink, "white").convert(mode)
                picture.save(folder / part / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("colour", [True, False])
def test_folder_of_pictures_is_a_data_set(colour, tmp_path):
    folder = draw_shapes(tmp_path / "my shapes", colour=colour)
    (classes, images, labels), (_, test_images, _) = load_halves(str(folder), Path("none"), image_size=20)
    assert classes == ["a disc", "bar", "frame ü"]
    channels = 3 if colour else 1
    assert images.shape == (36, channels, 20, 20) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [12] * 3
    assert test_images.shape == (12, channels, 20, 20)
    # Ink is dark and paper light in every mode, also where paper is transparent.
    assert (images[:, :, 0, 0] > 250).all()
    assert (images[labels == 0][:, :, 10, 9] < 10).all()


def test_folder_called_like_a_data_set_is_not_that(tmp_path, monkeypatch):
    draw_shapes(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    assert resolve_dataset("./mnist", Path("data")) == str(tmp_path / "mnist")
    assert len(load_halves(str(tmp_path / "mnist"), Path("data"))[1][1]) == 12


def test_classes_may_lack_pictures_and_hidden_folders_are_left_out(tmp_path):
    folder = draw_shapes(tmp_path / "shapes")
    shutil.rmtree(folder / "test" / "a disc")
    for half in ("train", "test"):
        (folder / half / ".cache").mkdir()
        (folder / half / "bar" / "notes.txt").write_text("not a picture")
    (classes, *_), (_, images, labels) = load_halves(str(folder), Path("data"))
    assert classes == ["a disc", "bar", "frame ü"]
    assert len(images) == 8 and labels.tolist() == [1] * 4 + [2] * 4
    for file in (folder / "test").rglob("*.png"):
        file.unlink()
    with pytest.raises(SourceError, match="test has no pictures"):
        read_dataset(str(folder), Path("data"), False, 28)


# ----------------------------------------------------------------------------------------------------------
# Synthetic digits


def test_drawn_digits_are_the_same_for_the_same_seed():
    images, labels = draw_digits(600, seed=0)
    assert images.shape == (600, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.unique().tolist() == list(range(10))
    assert (images == draw_digits(600, seed=0)[0]).all()
    assert (images != draw_digits(600, seed=1)[0]).any()
    # Like MNIST's: black paper, saturated ink, centred, about a fifth of the image inked.
    assert images.amax((1, 2, 3)).min() > 200 and (images[:, :, 0] == 0).float().mean() > 0.99
    assert 0.1 < (images > 0).float().mean() < 0.35
