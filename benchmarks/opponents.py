"""The programs that train.py is measured against, rewritten from their descriptions with their own settings.

Each is a generator. After each epoch it yields the seconds of the training, the seconds of its table (0 if
it has none) and the number of wrong guesses on the test set. `data_dir` holds MNIST in torchvision's layout.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import MNIST

Epoch = tuple[float, float, int]  # training seconds, table seconds, wrong guesses


def now(device: torch.device) -> float:
    """The time in seconds, after the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def block(channels: int, filters: int, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
    return [convolution, nn.BatchNorm2d(filters), nn.ReLU(), nn.MaxPool2d(2)]


def tutorial_layers() -> list[nn.Module]:
    return [*block(1, 32, 5), *block(32, 64, 5), nn.Flatten(), nn.Linear(7 * 7 * 64, 10)]


def tutorial_table(images: Tensor, guesses: Tensor, labels: Tensor, scores: Tensor, pictured: Tensor):
    """The tutorial's W&B table, filled row by row, with a picture in the rows where `pictured` (N,) is True.

    The original logs float images, which W&B shows black today. These are uint8 (N, H, W).
    """
    import wandb

    table = wandb.Table(columns=["id", "image", "guess", "truth", *(f"score_{k}" for k in range(10))])
    arrays = (column.numpy() for column in (images, guesses, labels, scores))
    for i, (image, guess, label, row) in enumerate(zip(*arrays)):
        table.add_data(i, wandb.Image(image) if pictured[i] else None, guess, label, *row)
    return table


def tutorial(
    data_dir: str, device: torch.device, seed: int, epochs: int, wandb_dir: Path | None
) -> Iterator[Epoch]:
    """The W&B tutorial: fp32, batch 32, images decoded one by one, every loss and a table per epoch logged.

    If `wandb_dir` is None, nothing is logged and the table takes no time. The original never returns to
    training mode after its first evaluation; this does.
    """
    import wandb

    torch.manual_seed(seed)
    train_set, test_set = (MNIST(data_dir, train, transforms.ToTensor()) for train in (True, False))
    train_loader = DataLoader(train_set, batch_size=32, shuffle=True, num_workers=2)
    test_loader = DataLoader(test_set, batch_size=64, num_workers=2)
    model = nn.Sequential(*tutorial_layers()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    pictured = torch.ones(len(test_set), dtype=torch.bool)
    settings = {"mode": "disabled"} if wandb_dir is None else {"mode": "offline", "dir": wandb_dir}
    with wandb.init(project="benchmark", settings=wandb.Settings(silent=True), **settings) as run:
        for _ in range(epochs):
            start = now(device)
            model.train()
            for images, labels in train_loader:
                images, labels = images.to(device), labels.to(device)
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                run.log({"loss": loss})
            trained = now(device)

            model.eval()
            guesses, scores = [], []
            with torch.no_grad():
                for images, _ in test_loader:
                    outputs = model(images.to(device))
                    guesses.append(outputs.argmax(1).cpu())
                    scores.append(outputs.softmax(1).cpu())
            guesses, scores = torch.cat(guesses), torch.cat(scores)
            wrong = int((guesses != test_set.targets).sum())

            tested = now(device)
            if wandb_dir is not None:
                table = tutorial_table(test_set.data, guesses, test_set.targets, scores, pictured)
                run.log({"test_predictions": table})
            yield trained - start, now(device) - tested, wrong


def pytorch_example(data_dir: str, device: torch.device, seed: int, epochs: int) -> Iterator[Epoch]:
    """pytorch/examples mnist: two 3x3 convolutions, two linear layers, dropout, Adadelta, a falling rate."""
    torch.manual_seed(seed)
    scale = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_set, test_set = (MNIST(data_dir, train, scale) for train in (True, False))
    workers = {"num_workers": 1, "pin_memory": True} if device.type == "cuda" else {}
    train_loader = DataLoader(train_set, batch_size=64, shuffle=True, **workers)
    test_loader = DataLoader(test_set, batch_size=1000, **workers)
    convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()]
    features = [*convolutions, nn.MaxPool2d(2), nn.Dropout(0.25)]
    head = [nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
    model = nn.Sequential(*features, *head).to(device)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    for _ in range(epochs):
        start = now(device)
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
        schedule.step()
        trained = now(device)
        model.eval()
        with torch.no_grad():
            wrong = 0
            for images, labels in test_loader:
                wrong += int((model(images.to(device)).argmax(1).cpu() != labels).sum())
        yield trained - start, 0.0, wrong


def fast(data_dir: str, device: torch.device, seed: int) -> Iterator[Epoch]:
    """tuomaso/train_mnist_fast: "99 % in 0.76 seconds", one epoch from normalised tensors in memory."""
    torch.manual_seed(seed)
    train_set, test_set = MNIST(data_dir, True), MNIST(data_dir, False)

    def normalise(images: Tensor) -> Tensor:
        return ((images[:, None].float() / 255 - 0.1307) / 0.3081).to(device)

    images, labels = normalise(train_set.data), train_set.targets.to(device)
    test_images, test_labels = normalise(test_set.data), test_set.targets.to(device)
    features = [nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU()]
    features += [nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()]
    head = [nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = nn.Sequential(*features, *head).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.7, 0.9))
    steps = -(-len(images) // 256)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    start = now(device)
    for indices in torch.randperm(len(images), device=device).split(256):
        loss = F.cross_entropy(model(images[indices]), labels[indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    trained = now(device)
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(batch).argmax(1) for batch in test_images.split(1000)])
    yield trained - start, 0.0, int((guesses != test_labels).sum())
