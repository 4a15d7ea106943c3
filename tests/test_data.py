import os
import shutil

import pytest
import torch
from conftest import ROOT, write_idx, write_mnist_files
from programs import as_python, run
from torchvision.datasets import MNIST

import data


def test_mnist_is_read_as_raw_pixels(mnist_dir):
    mnist = data.load_data("mnist", mnist_dir)
    assert mnist.name == "mnist"
    assert mnist.train_images.shape == (60_000, 1, 28, 28) and mnist.train_images.dtype == torch.uint8
    assert mnist.eval_labels.shape == (10_000,) and mnist.eval_labels.dtype == torch.int64
    image, label = MNIST(mnist_dir, train=False)[7]
    assert (mnist.eval_images[7, 0] == torch.tensor(image.get_flattened_data()).view(28, 28)).all()
    assert mnist.eval_labels[7] == label


def test_other_pictures_in_mnists_files_are_not_called_mnist(small_dir):
    assert data.load_data("auto", small_dir).name == "mnist-format"


def test_held_out_images_are_no_training_images(small_dir):
    whole, held = data.load_data("mnist", small_dir), data.load_data("mnist", small_dir, val_size=300)
    assert len(held.train_images) == 1200 and len(held.eval_images) == 300

    def pairs(images, labels):
        return sorted((image.numpy().tobytes(), label) for image, label in zip(images, labels.tolist()))

    both = pairs(held.train_images, held.train_labels) + pairs(held.eval_images, held.eval_labels)
    assert sorted(both) == pairs(whole.train_images, whole.train_labels)
    with pytest.raises(data.DataError, match="val_size 1500"):
        data.load_data("mnist", small_dir, val_size=1500)


def test_batches_hold_every_image_once_and_depend_on_the_seed():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 4, 4)

    def order(seed):
        generator = torch.Generator().manual_seed(seed)
        epoch = list(data.batches(images, torch.arange(10), 4, generator))
        for pixels, labels, weight, indices in epoch:
            assert (pixels[:, 0, 0, 0] == labels).all() and (labels == indices).all() and weight == 1
        return torch.cat([labels for _, labels, *_ in epoch])

    assert order(0).sort().values.tolist() == list(range(10))
    assert (order(0) == order(0)).all() and (order(0) != order(1)).any()


def test_processes_share_every_batch_of_the_same_order():
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 1, 4, 4)

    def epoch(rank, world):
        generator = torch.Generator().manual_seed(0)
        return list(data.batches(images, torch.arange(100), 33, generator, 0.0, None, rank, world))

    for world in (2, 3):
        parts = [epoch(rank, world) for rank in range(world)]
        for whole, *shares in zip(epoch(0, 1), *parts):
            count = len(whole[1])
            repeated = whole[1].tolist() * (1 if count >= 2 * world else world)  # the last was 1 image
            assert torch.cat([labels for _, labels, *_ in shares]).tolist() == repeated
            assert sum(weight for _, _, weight, _ in shares) == pytest.approx(world)
            assert all(len(labels) > 0 for _, labels, *_ in shares)


def with_margins(margins: torch.Tensor) -> torch.Tensor:
    """Logits (B, 3) whose two highest differ by margins (B,)."""
    return torch.stack([torch.full_like(margins, -9), margins + 0.5, torch.full_like(margins, 0.5)], dim=1)


def test_sampler_chooses_the_images_of_the_smallest_margins(monkeypatch):
    monkeypatch.setattr(data, "MIN_ROUND", 20)
    for part, batch_size, count in ((0.25, 8, 32), (0.1, 8, 24), (0.5, 100, 100), (1, 8, 100)):
        sampler, images = data.MarginSampler(100, batch_size, part), torch.arange(100)
        assert sampler.choose(100).tolist() == list(range(100))
        sampler.update(images[:90], with_margins(99.0 - images[:90]))
        sampler.end_round()
        first = sampler.choose(100).tolist()
        assert first == [*range(90, 100), *range(89, -1, -1)][:count]  # those never seen first
        sampler.update(images, with_margins(99.0 - images))
        sampler.update(images[:3], with_margins(torch.zeros(3)))
        sampler.end_round()
        assert sampler.choose(100).tolist() == [0, 1, 2, *range(99, 2, -1)][:count]
    assert data.MarginSampler(7, 4, 0.25).choose(7).tolist() == list(range(7))


def test_epoch_with_a_sampler_is_rounds_of_as_many_images_as_there_are(monkeypatch):
    monkeypatch.setattr(data, "MIN_ROUND", 1)
    images, generator = torch.zeros(100, 1, 4, 4, dtype=torch.uint8), torch.Generator().manual_seed(0)
    sampler, seen = data.MarginSampler(100, 8, 0.25), []
    for _ in range(2):
        for *_, indices in data.batches(images, torch.zeros(100).long(), 8, generator, 0, sampler):
            seen.append(indices.tolist())
            sampler.update(indices, with_margins(3.0 + indices + 100 * (len(seen) > 13)))
    first, second = seen[:13], seen[13:]
    assert sorted(sum(first, [])) == list(range(100)) and [len(batch) for batch in second] == 12 * [8] + [4]
    # The round that begins the second epoch takes 0 to 31. Those that it makes surer come later.
    assert sorted(sum(second[:4], [])) == list(range(32))
    assert sorted(sum(second[4:8], [])) == list(range(32, 64))


def test_pixel_statistics_are_exact():
    images = torch.randint(0, 256, (30, 2, 5, 6), dtype=torch.uint8)
    mean, std = data.pixel_statistics(images)
    scaled = images.double() / 255
    torch.testing.assert_close(mean, scaled.mean((0, 2, 3)).float())
    torch.testing.assert_close(std, scaled.std((0, 2, 3), unbiased=False).float())
    assert data.pixel_statistics(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))[1] > 0


def test_mnists_pixel_statistics_are_the_known_ones(mnist_dir):
    mean, std = data.pixel_statistics(data.load_split("mnist", mnist_dir, train=True)[2])
    assert round(mean.item(), 4) == 0.1307 and round(std.item(), 4) == 0.3081


def test_distortion_shifts_and_maps_as_told():
    images = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8)

    def move(images, *strengths):
        return 255 * data.distort(images, data.make_thetas(torch.tensor(strengths), *images.shape[2:]))

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


def test_digest_names_the_content():
    images, labels = torch.arange(64, dtype=torch.uint8).view(4, 1, 4, 4), torch.arange(4)
    known = data.digest(images, labels)
    assert len(known) == 64 and data.digest(images.clone(), labels.clone()) == known
    spread = images.repeat_interleave(2, dim=3)[..., ::2], labels.repeat_interleave(2)[::2]  # in memory
    assert data.digest(*spread) == known
    changed = images.clone()
    changed[3, 0, 3, 3] += 1
    assert len({known, data.digest(changed, labels), data.digest(images, labels.flip(0))}) == 3


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


def replace_by_pipe(raw):
    (raw / TRAIN_IMAGES).unlink()
    os.mkfifo(raw / TRAIN_IMAGES)


DAMAGES = {
    "cut short": (cut, TRAIN_IMAGES),
    "swapped": (swap, TRAIN_IMAGES),
    "empty": (lambda raw: (raw / TRAIN_LABELS).write_bytes(b""), TRAIN_LABELS),
    "text": (lambda raw: (raw / TRAIN_IMAGES).write_text("<html>not found</html>"), TRAIN_IMAGES),
    "huge": (lambda raw: (raw / TRAIN_IMAGES).write_bytes(b"\0\0\x08\x03" + b"\xff" * 12), TRAIN_IMAGES),
    "no images": (lambda raw: write_idx(raw / TRAIN_IMAGES, torch.zeros(0, 28, 28)), TRAIN_IMAGES),
    "label 10": (
        lambda raw: write_idx(raw / TRAIN_LABELS, torch.full((100,), 10)),
        f"{TRAIN_LABELS}: 100 images, 100 labels of 0 to 10. Each image needs one of 0 to 9",
    ),
    "lengths": (lambda raw: write_idx(raw / TRAIN_LABELS, torch.zeros(99)), TRAIN_LABELS),
    "folder": (replace_by_folder, TRAIN_IMAGES),
    "pipe": (replace_by_pipe, TRAIN_IMAGES),
}


@pytest.mark.faults
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_damaged_file_is_named_and_never_replaced_by_synthetic_digits(dataset, damage, tmp_path, faults):
    write_mnist_files(tmp_path, train=100, test=50)
    break_it, file = DAMAGES[damage]
    break_it(tmp_path / "MNIST" / "raw")
    with pytest.raises(data.DataError, match=file):
        data.load_data(dataset, tmp_path)
    faults("damaged data")


def test_one_flipped_bit_in_mnist_is_noticed(mnist_dir, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for kind in ("images-idx3", "labels-idx1"):
        content = bytearray((mnist_dir / "MNIST" / "raw" / f"t10k-{kind}-ubyte").read_bytes())
        (raw / f"t10k-{kind}-ubyte").write_bytes(content)
    assert data.load_split("mnist", tmp_path, train=False)[0] == "mnist"
    content[5000] ^= 1
    (raw / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(data.DataError, match="t10k-labels-idx1-ubyte is damaged"):
        data.load_split("mnist", tmp_path, train=False)


@pytest.mark.parametrize("val_size", [0, 20])
def test_images_too_small_for_two_poolings_are_refused(val_size, tmp_path):
    raw = write_mnist_files(tmp_path, train=100, test=50) / "MNIST" / "raw"
    write_idx(raw / TRAIN_IMAGES, torch.ones(100, 3, 3))
    write_idx(raw / "t10k-images-idx3-ubyte", torch.ones(50, 3, 3))
    with pytest.raises(data.DataError, match="4 pixels or more"):
        data.load_data("mnist", tmp_path, val_size)


PIXELS, LABELS, NAMES = (
    torch.zeros(6, 1, 8, 8, dtype=torch.uint8),
    torch.tensor([0, 1, 2] * 2),
    ["a", "b", "c"],
)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        (PIXELS / 255, LABELS, NAMES, r"\(torch.float32, 4\).*Give tensors: uint8 \(N, C, H, W\)"),
        (PIXELS[:, 0], LABELS, NAMES, r"\(torch.uint8, 3\)"),
        (PIXELS.numpy(), LABELS, NAMES, "numpy.ndarray"),
        (PIXELS.permute(0, 2, 3, 1), LABELS, NAMES, r"\[8, 8, 1\].*4 pixels or more a side"),
        (PIXELS, LABELS.int(), NAMES, r"\(torch.int32, 1\).*int64 \(N,\)"),
        (PIXELS, LABELS[:, None], NAMES, r"\(torch.int64, 2\)"),
        (PIXELS, LABELS[:5], NAMES, "6 images, 5 labels"),
        (PIXELS, LABELS.repeat(2), NAMES, "6 images, 12 labels"),
        (PIXELS, LABELS + 1, NAMES, "labels from 1 to 3. Give .* of 0 to 2"),
        (PIXELS, LABELS - 1, NAMES, "labels from -1 to 1"),
        (PIXELS[:0], LABELS[:0], NAMES, "0 images, 0 labels.* Give images, each with a label of 0 to 2"),
        (PIXELS, 0 * LABELS, ["a"], "a list of two or more"),
        (PIXELS, LABELS, [0, 1, 2], "a list of two or more"),
        (PIXELS, LABELS, tuple(NAMES), "a list of two or more"),
    ],
)
def test_data_of_another_kind_are_refused(images, labels, classes, message):
    for train, evaluation in (((images, labels), (PIXELS, LABELS)), ((PIXELS, LABELS), (images, labels))):
        with pytest.raises(data.DataError, match=message):
            data.ImageData("mine", classes, *train, *evaluation)


# ----------------------------------------------------------------------------------------------------------
# Data from the folder sources


def test_other_data_comes_from_sources(tmp_path):
    name, classes, images, labels = data.load_split("synthetic", tmp_path / "none", train=False)
    assert name == "synthetic" and classes == list("0123456789")
    assert images.shape == (10_000, 1, 28, 28) and labels.shape == (10_000,)
    assert not (tmp_path / "none").exists()


def test_errors_of_sources_are_data_errors(tmp_path):
    with pytest.raises(data.DataError, match="neither a folder nor one of auto, mnist"):
        data.load_data("nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(data.DataError, match="needs train/CLASS/"):
        data.load_data(str(tmp_path / "empty"), tmp_path)
    with pytest.raises(data.DataError, match="t10k-images-idx3-ubyte is missing"):
        data.load_split("mnist", tmp_path / "none", train=False, download=False)
    with pytest.raises(data.DataError, match="train-images-idx3-ubyte is missing"):
        data.load_split("mnist", tmp_path / "none", train=True, download=False)


def load_in_copy(folder):
    """Load synthetic digits in a process that sees only the project's files in `folder`."""
    return run(as_python, "-c", "import data; data.load_split('synthetic', '.', False)", cwd=folder).stderr


def test_only_a_missing_sources_folder_is_reported_as_missing(tmp_path):
    shutil.copyfile(ROOT / "data.py", tmp_path / "data.py")
    last_line = load_in_copy(tmp_path).splitlines()[-1]
    assert last_line.startswith("data.DataError: ") and "sources" in last_line
    (tmp_path / "sources").mkdir()  # a folder of another project
    assert load_in_copy(tmp_path).splitlines()[-1] == last_line
    (tmp_path / "sources").rmdir()
    shutil.copytree(ROOT / "sources", tmp_path / "sources", copy_function=shutil.copyfile)
    (tmp_path / "sources" / "datasets.py").write_text("import no_such_library")
    last_line = load_in_copy(tmp_path).splitlines()[-1]
    assert last_line == "ModuleNotFoundError: No module named 'no_such_library'"
