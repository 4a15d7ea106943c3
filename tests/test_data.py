import gzip
import hashlib
import http.server
import math
import socket
import threading
import time

import pytest
import torch
from conftest import write_idx, write_mnist_files
from torchvision.datasets import MNIST

import data


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
        assert all((pixels[:, 0, 0, 0] == labels).all() for pixels, labels in epoch)
        return torch.cat([labels for _, labels in epoch])

    assert order(0).sort().values.tolist() == list(range(10))
    assert (order(0) == order(0)).all() and (order(0) != order(1)).any()


def test_distortion_moves_turns_and_scales_as_told():
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)
    assert (data.distort(images, torch.zeros(4, 4)) - images).abs().max() < 1e-2
    moved = data.distort(images, torch.tensor([[0, 0, 1.0, -0.5]] * 4))  # 2 left, 1 down
    assert (moved[:, :, 1:, :-2] - images[:, :, :-1, 2:]).abs().max() < 1e-2
    assert moved[:, :, 0].max() < 1e-2 and moved[..., -2:].max() < 1e-2

    mark = torch.zeros(1, 1, 40, 60, dtype=torch.uint8)
    mark[0, 0, 18:22, 48:52] = 255  # 20 pixels right of the centre
    places = torch.stack(torch.meshgrid(torch.arange(40) - 19.5, torch.arange(60) - 29.5, indexing="ij"))

    def centre(strengths):
        ink = data.distort(mark, torch.tensor([strengths]))[0, 0]
        return ((places * ink).sum((1, 2)) / ink.sum()).tolist()

    assert centre([0, 1.0, 0, 0]) == pytest.approx([0, 20 / 1.08], abs=0.1)
    turned = [-20 * math.sin(math.radians(8)), 20 * math.cos(math.radians(8))]
    assert centre([1.0, 0, 0, 0]) == pytest.approx(turned, abs=0.1)


def test_drawn_digits_are_the_same_for_the_same_seed():
    images, labels = data.draw_digits(600, seed=0)
    assert images.shape == (600, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.unique().tolist() == list(range(10))
    assert (images == data.draw_digits(600, seed=0)[0]).all()
    assert (images != data.draw_digits(600, seed=1)[0]).any()
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
        data.check_idx(raw / "t10k-images-idx3-ubyte", dimensions=3)


@pytest.fixture
def no_mirror(monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", "http://127.0.0.1:9/other/"])


def test_without_mnist_auto_draws_and_says_so(no_mirror, tmp_path, capsys):
    assert data.find_dataset("auto", tmp_path) == "synthetic"
    warning = capsys.readouterr().err
    assert "WARNING" in warning and "synthetic" in warning and "127.0.0.1:9/other/" in warning
    with pytest.raises(data.DataError, match="train-images-idx3-ubyte is missing"):
        data.find_dataset("mnist", tmp_path)


def test_incomplete_mnist_is_not_replaced_by_the_stand_in(no_mirror, tmp_path):
    write_mnist_files(tmp_path, train=100, test=50)
    (tmp_path / "MNIST" / "raw" / TRAIN_LABELS).unlink()
    with pytest.raises(data.DataError, match=TRAIN_LABELS):
        data.find_dataset("auto", tmp_path)


def test_half_finished_download_is_named(no_mirror, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / f"{TRAIN_IMAGES}.gz").write_bytes(gzip.compress(bytes(1000))[:-10])
    with pytest.raises(data.DataError, match=f"{TRAIN_IMAGES}.gz: damaged or cut short"):
        data.find_dataset("auto", tmp_path)


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
        monkeypatch.setattr(data, "DOWNLOAD_STALL", 0.3)
        start = time.monotonic()
        assert data.find_dataset("mnist", tmp_path / "data") == "mnist"
        assert time.monotonic() - start < 10
        server.shutdown()
    for name in data.MNIST_MD5:
        assert (tmp_path / "data" / "MNIST" / "raw" / name).read_bytes() == (source / name).read_bytes()
    assert len(list((tmp_path / "data" / "MNIST" / "raw").iterdir())) == 4
