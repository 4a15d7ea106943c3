import gzip
import hashlib
import http.server
import pickle
import socket
import threading
import time

import numpy
import pytest
import torch
from conftest import write_idx, write_mnist_files
from PIL import Image, ImageDraw, ImageOps
from torchvision.datasets import CIFAR10, MNIST

import data
from sources import datasets as sources
from sources.drawn import draw_digits


def test_mnist_is_read_as_raw_pixels(mnist_dir):
    mnist = data.load_data("mnist", mnist_dir)
    assert mnist.name == "mnist"
    assert mnist.train_images.shape == (60_000, 1, 28, 28) and mnist.train_images.dtype == torch.uint8
    assert mnist.test_labels.shape == (10_000,) and mnist.test_labels.dtype == torch.int64
    image, label = MNIST(mnist_dir, train=False)[7]
    assert (mnist.test_images[7, 0] == torch.tensor(image.get_flattened_data()).view(28, 28)).all()
    assert mnist.test_labels[7] == label


def test_other_pictures_in_mnists_files_are_not_called_mnist(small_dir):
    assert data.load_data("auto", small_dir).name == "mnist-format"


def test_held_out_images_are_no_training_images(small_dir):
    whole, held = data.load_data("mnist", small_dir), data.load_data("mnist", small_dir, val_size=300)
    assert len(held.train_images) == 1200 and len(held.test_images) == 300

    def pairs(images, labels):
        return sorted((image.numpy().tobytes(), label) for image, label in zip(images, labels.tolist()))

    both = pairs(held.train_images, held.train_labels) + pairs(held.test_images, held.test_labels)
    assert sorted(both) == pairs(whole.train_images, whole.train_labels)
    with pytest.raises(data.DataError, match="--val_size 1500"):
        data.load_data("mnist", small_dir, val_size=1500)


def test_batches_hold_every_image_once_and_depend_on_the_seed():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 4, 4)

    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        epoch = list(data.batches(images, torch.arange(10), 4, generator))
        assert all((pixels[:, 0, 0, 0] == labels).all() and share == 1 for pixels, labels, share in epoch)
        return torch.cat([labels for _, labels, _ in epoch])

    assert order(0).sort().values.tolist() == list(range(10))
    assert (order(0) == order(0)).all() and (order(0) != order(1)).any()


def test_processes_share_every_batch_of_the_same_order():
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 1, 4, 4)

    def epoch(rank, world):
        generator = torch.Generator().manual_seed(0)
        return list(data.batches(images, torch.arange(100), 33, generator, 0.0, rank, world))

    for world in (2, 3):
        parts = [epoch(rank, world) for rank in range(world)]
        for whole, *shares in zip(epoch(0, 1), *parts):
            count = len(whole[1])
            repeated = whole[1].tolist() * (1 if count >= world else world)  # the last is 1 image
            assert torch.cat([labels for _, labels, _ in shares]).tolist() == repeated
            assert sum(share for *_, share in shares) == pytest.approx(world)
            assert all(len(labels) > 0 for _, labels, _ in shares)


def test_pixel_statistics_are_exact():
    images = torch.randint(0, 256, (30, 2, 5, 6), dtype=torch.uint8)
    mean, std = data.pixel_statistics(images)
    torch.testing.assert_close(mean, images.double().mean((0, 2, 3)).float())
    torch.testing.assert_close(std, images.double().std((0, 2, 3), unbiased=False).float())
    assert data.pixel_statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))[1] > 0


def test_mnists_pixel_statistics_are_the_known_ones(mnist_dir):
    mean, std = data.pixel_statistics(data.load_split("mnist", mnist_dir, train=True)[2])
    assert round(mean.item() / 255, 4) == 0.1307 and round(std.item() / 255, 4) == 0.3081


def test_distortion_shifts_and_maps_as_told():
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)

    def move(images, *strengths):
        return data.distort(images, data.distortions(torch.tensor(strengths), *images.shape[2:]))

    assert (move(images, *[[[0.0] * 3] * 2] * 4) - images).abs().max() < 1e-2
    moved = move(images, *[[[0, 0, 1.0], [0, 0, -0.5]]] * 4)  # 2 left, 1 down
    assert (moved[:, :, 1:, :-2] - images[:, :, :-1, 2:]).abs().max() < 1e-2
    assert moved[:, :, 0].max() < 1e-2 and moved[..., -2:].max() < 1e-2

    mark = torch.zeros(1, 1, 60, 60, dtype=torch.uint8)
    mark[0, 0, 28:32, 48:52] = 255  # 20 pixels right of the centre
    places = torch.stack(torch.meshgrid(*[torch.arange(60) - 29.5] * 2, indexing="ij"))

    def centre(strengths):
        ink = move(mark, strengths)[0, 0]
        return ((places * ink).sum((1, 2)) / ink.sum()).tolist()

    full = data.MAX_MATRIX
    assert centre([[1.0, 0, 0], [0, 0, 0]]) == pytest.approx([0, 20 / (1 + full)], abs=0.1)  # narrower
    assert centre([[0, 0, 0], [1.0, 0, 0]]) == pytest.approx([-20 * full, 20], abs=0.1)  # sheared upwards


def test_drawn_digits_are_the_same_for_the_same_seed():
    images, labels = draw_digits(600, seed=0)
    assert images.shape == (600, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.unique().tolist() == list(range(10))
    assert (images == draw_digits(600, seed=0)[0]).all()
    assert (images != draw_digits(600, seed=1)[0]).any()
    # Like MNIST's: black paper, saturated ink, centred, about a fifth of the picture inked.
    assert images.amax((1, 2, 3)).min() > 200 and (images[:, :, 0] == 0).float().mean() > 0.99
    assert 0.1 < (images > 0).float().mean() < 0.35


TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def cut(raw):
    path = raw / TRAIN_IMAGES
    path.write_bytes(path.read_bytes()[:-100])


def swap(raw):
    (raw / TRAIN_IMAGES).rename(raw / "other")
    (raw / TRAIN_LABELS).rename(raw / TRAIN_IMAGES)
    (raw / "other").rename(raw / TRAIN_LABELS)


def replace_by_folder(raw):
    (raw / TRAIN_IMAGES).unlink()
    (raw / TRAIN_IMAGES).mkdir()


DAMAGES = {
    "cut short": (cut, TRAIN_IMAGES),
    "swapped": (swap, TRAIN_IMAGES),
    "empty": (lambda raw: (raw / TRAIN_LABELS).write_bytes(b""), TRAIN_LABELS),
    "text": (lambda raw: (raw / TRAIN_IMAGES).write_text("<html>not found</html>"), TRAIN_IMAGES),
    "huge": (lambda raw: (raw / TRAIN_IMAGES).write_bytes(b"\0\0\x08\x03" + b"\xff" * 12), TRAIN_IMAGES),
    "no images": (lambda raw: write_idx(raw / TRAIN_IMAGES, torch.zeros(0, 28, 28)), TRAIN_IMAGES),
    "label 10": (lambda raw: write_idx(raw / TRAIN_LABELS, torch.full((100,), 10)), TRAIN_LABELS),
    "lengths": (lambda raw: write_idx(raw / TRAIN_LABELS, torch.zeros(99)), TRAIN_LABELS),
    "folder": (replace_by_folder, TRAIN_IMAGES),
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_damaged_file_is_named_and_never_replaced_by_the_stand_in(dataset, damage, tmp_path, faults):
    write_mnist_files(tmp_path, train=100, test=50)
    break_it, file = DAMAGES[damage]
    break_it(tmp_path / "MNIST" / "raw")
    with pytest.raises(data.DataError, match=file):
        data.load_data(dataset, tmp_path)
    faults("damaged data")


def test_one_flipped_bit_in_mnist_is_noticed(mnist_dir, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    content = bytearray((mnist_dir / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes())
    content[5000] ^= 1
    (raw / "t10k-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(data.DataError, match="t10k-images-idx3-ubyte is damaged"):
        data.read_idx(raw / "t10k-images-idx3-ubyte", dimensions=3)


@pytest.mark.parametrize("val_size", [0, 20])
def test_images_too_small_for_two_poolings_are_refused(val_size, tmp_path):
    raw = write_mnist_files(tmp_path, train=100, test=50) / "MNIST" / "raw"
    write_idx(raw / TRAIN_IMAGES, torch.ones(100, 3, 3))
    write_idx(raw / "t10k-images-idx3-ubyte", torch.ones(50, 3, 3))
    with pytest.raises(data.DataError, match="4 pixels or more"):
        data.load_data("mnist", tmp_path, val_size)


@pytest.fixture
def no_mirror(monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/other/"])


def test_without_mnist_auto_draws_and_says_so(no_mirror, tmp_path, capsys):
    assert sources.find("auto", tmp_path) == "synthetic"
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "synthetic" in warning and "127.0.0.1:9/other/" in warning
    with pytest.raises(data.DataError, match="train-images-idx3-ubyte is missing"):
        sources.find("mnist", tmp_path)


def test_incomplete_mnist_is_not_replaced_by_the_stand_in(no_mirror, tmp_path):
    write_mnist_files(tmp_path, train=100, test=50)
    (tmp_path / "MNIST" / "raw" / TRAIN_LABELS).unlink()
    with pytest.raises(data.DataError, match=TRAIN_LABELS):
        sources.find("auto", tmp_path)


def test_half_finished_download_is_named(no_mirror, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(bytes(1000))[:-10])
    with pytest.raises(data.DataError, match=f"{TRAIN_IMAGES} is missing and could not be downloaded"):
        sources.find("auto", tmp_path)


def test_download_gives_up_a_silent_mirror_and_takes_the_next(monkeypatch, tmp_path):
    source = write_mnist_files(tmp_path / "source", train=100, test=50) / "MNIST" / "raw"
    packed = {f"/{name}.gz": gzip.compress((source / name).read_bytes()) for name in data.MNIST_MD5}

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(packed[self.path])

        def log_message(self, *args):
            pass

    resources = [(path[1:], hashlib.md5(content).hexdigest()) for path, content in packed.items()]
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        http.server.HTTPServer(("127.0.0.1", 0), Mirror) as server,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mirrors = [f"http://127.0.0.1:{port}/" for port in (silent.getsockname()[1], server.server_port)]
        monkeypatch.setattr(MNIST, "mirrors", mirrors)
        monkeypatch.setattr(MNIST, "resources", resources)
        monkeypatch.setattr(sources, "DOWNLOAD_STALL", 0.3)
        start = time.monotonic()
        assert sources.find("mnist", tmp_path / "data") == "mnist"
        assert time.monotonic() - start < 10
        server.shutdown()
    for name in data.MNIST_MD5:
        assert (tmp_path / "data" / "MNIST" / "raw" / name).read_bytes() == (source / name).read_bytes()
    assert len(list((tmp_path / "data" / "MNIST" / "raw").iterdir())) == 4


# ----------------------------------------------------------------------------------------------------------
# Other data


@pytest.mark.parametrize(
    ("name", "classes"), [("fashion_mnist", "T-shirt/top"), ("kmnist", "o"), ("qmnist", "0")]
)
def test_torchvisions_sets_have_their_own_classes_and_pixels(name, classes, small_dir, tmp_path):
    kind, place = sources.TORCHVISION[name]
    raw = tmp_path / place
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
    loaded, same = data.load_data(name, tmp_path), data.load_data("mnist", small_dir)
    assert loaded.name == name and loaded.classes[0] == classes and len(loaded.classes) == 10
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(loaded, field), getattr(same, field)), field
    for file in raw.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(data.DataError, match="missing or damaged"):
        data.load_data(name, tmp_path)


def test_cifar10_is_in_colour(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    batch = {"data": pixels.flatten(1).numpy(), "labels": list(range(10))}
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for name in names:
        (folder / name).write_bytes(pickle.dumps(batch))
    words = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": words}))

    def digest(name):
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    monkeypatch.setattr(CIFAR10, "train_list", [[name, digest(name)] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], digest(names[5])]])
    meta = {**CIFAR10.meta, "md5": digest("batches.meta")}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    loaded = data.load_data("cifar10", tmp_path)
    assert loaded.classes == words and loaded.train_images.shape == (50, 3, 32, 32)
    assert torch.equal(loaded.test_images, pixels) and loaded.test_labels.tolist() == list(range(10))


def draw_shapes(folder, size=40, colour=True, per_class=12):
    """A folder of pictures: a disc, a bar or a frame, in every mode that people have."""
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
                elif mode in ("RGBA", "LA"):  # ink on nothing
                    ink = Image.new("L", picture.size, 0)
                    picture = Image.merge("LA", (ink, ImageOps.invert(picture))).convert(mode)
                else:
                    picture = picture.convert(mode)
                picture.save(folder / part / name / f"{i}.png")
    return folder


@pytest.mark.parametrize("colour", [True, False])
def test_folder_of_pictures_is_a_data_set(colour, tmp_path):
    folder = draw_shapes(tmp_path / "my shapes", colour=colour)
    loaded = data.load_data(str(folder), image_size=20)
    assert loaded.name == str(folder) and loaded.classes == ["a disc", "bar", "frame ü"]
    channels = 3 if colour else 1
    assert loaded.train_images.shape == (36, channels, 20, 20) and loaded.train_images.dtype == torch.uint8
    assert loaded.train_labels.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert loaded.test_images.shape == (12, channels, 20, 20)
    # Ink is dark and paper light in every mode, also where paper is transparent.
    assert (loaded.train_images[:, :, 0, 0] > 250).all()
    assert (loaded.train_images[:12, :, 10, 9] < 10).all()


def test_folder_called_like_a_data_set_is_not_that(tmp_path, monkeypatch):
    draw_shapes(tmp_path / "mnist")
    monkeypatch.chdir(tmp_path)
    loaded = data.load_data("./mnist")
    assert loaded.name == str(tmp_path / "mnist") and len(loaded.test_images) == 12


def test_folder_that_is_no_data_set_is_refused_with_the_reason(tmp_path):
    def refused(name, words):
        with pytest.raises(data.DataError, match=words):
            data.load_data(str(tmp_path / name))

    refused("nowhere", "neither a folder nor one of auto, mnist")
    (tmp_path / "empty").mkdir()
    refused("empty", "needs train/CLASS/")
    draw_shapes(tmp_path / "unknown")
    (tmp_path / "unknown/test/cup").mkdir()
    refused("unknown", "no cup in train")
    draw_shapes(tmp_path / "broken")
    (tmp_path / "broken/train/bar/3.png").write_text("no picture")
    refused("broken", "3.png cannot be read as a picture")
    (tmp_path / "single/train/one").mkdir(parents=True)
    (tmp_path / "single/test/one").mkdir(parents=True)
    refused("single", "1 classes, not 2 to 100")
