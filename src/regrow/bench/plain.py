"""The baseline training loop: what the paper's code does, in plain PyTorch.

A DataLoader with worker processes, torchvision transforms image by image, one network, fp32, NCHW,
one call after another, and the loss read after each step.
"""

from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from regrow.bench.material import BATCH
from regrow.data import Dataset
from regrow.train.safe_convolutions import safe_convolutions


class PerImage(TorchDataset[tuple[Tensor, int]]):
    """PIL images and transforms, one by one."""

    def __init__(self, data: Dataset) -> None:
        from torchvision import transforms

        pixels = data.train.batch(torch.arange(len(data.train))).permute(0, 2, 3, 1)  # [N, H, W, C]
        self._images = [Image.fromarray(p.squeeze(-1).numpy()) for p in pixels]
        self._labels = data.train.labels.tolist()
        flip = [transforms.RandomHorizontalFlip()] if "flip" in data.augmentation else []
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(data.size, padding=data.size // 8),
                *flip,
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        """Count the images."""
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Transform one image."""
        return self._transform(self._images[index]), self._labels[index]


def plain_steps(
    model: nn.Module, data: Dataset, *, device: str = "cpu", loader_workers: int = 1
) -> Iterator[int]:
    """Train without end; yield the number of images of each step."""
    loader = DataLoader(
        PerImage(data),
        batch_size=BATCH,
        shuffle=True,
        num_workers=loader_workers,
        pin_memory=device != "cpu",
        persistent_workers=loader_workers > 0,
        multiprocessing_context="fork" if loader_workers > 0 else None,
    )
    model = model.to(device).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    while True:
        for pixels, labels in loader:
            pixels, labels = pixels.to(device), labels.to(device)
            optimiser.zero_grad()
            with safe_convolutions():  # as in ours: no kernel may write out of bounds
                logits = model(pixels)
            loss = nn.functional.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss.item()
            yield len(labels)
