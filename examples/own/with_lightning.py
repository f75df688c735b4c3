"""A training function for `regrow compare` with Lightning (the extra `lightning`)."""

from typing import Any

import lightning
import torch
from data import images, judged, labels, learnt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    """An image classifier with its loss and optimiser."""

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        self.net, self.steps, self.right = net, steps, []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """Return the loss of a batch."""
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None:
        """Record which predictions are right."""
        self.right.append(self.net(batch[0]).argmax(1) == batch[1])

    def configure_optimizers(self) -> Any:
        """Return AdamW, with a cosine schedule over the whole budget."""
        optimiser = torch.optim.AdamW(self.net.parameters(), 0.01)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(self.steps, 1))
        return [optimiser], [{"scheduler": cosine, "interval": "step"}]


def train_digits(model: nn.Module, budget: Any, seed: int) -> dict[str, float]:
    """Train a network in place for a budget of epochs (0: only evaluate); return its accuracy."""
    lightning.seed_everything(seed, verbose=False)
    batches = DataLoader(TensorDataset(images[learnt], labels[learnt]), 64, shuffle=True)
    tests = DataLoader(TensorDataset(images[judged], labels[judged]), 450)
    classifier = Classifier(model, budget.epochs * len(batches))
    trainer = lightning.Trainer(
        max_epochs=budget.epochs,
        accelerator="cpu" if budget.device == "cpu" else "gpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
    )
    if budget.epochs:
        trainer.fit(classifier, batches)
    trainer = lightning.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    trainer.validate(classifier, tests, verbose=False)
    return {"accuracy": torch.cat(classifier.right).float().mean().item()}
