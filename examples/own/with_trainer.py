"""A training function for `regrow compare` with transformers.Trainer.

The data are sentences of 16 words from a vocabulary of 50, in three classes: word 0, 1 or 2,
whichever was inserted most often.
`python with_trainer.py` writes a small BERT with random weights for them to the folder `bert`.
"""

import tempfile
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

generator = torch.Generator().manual_seed(0)
tokens = torch.randint(0, 50, (1500, 16), generator=generator)
kinds = torch.randint(0, 3, (1500,), generator=generator)
where = torch.rand(1500, 16, generator=generator).argsort(1)
tokens.scatter_(1, where[:, :3], kinds[:, None].expand(-1, 3))  # word `kind`, three times
tokens.scatter_(1, where[:, 3:5], (kinds[:, None] + 1).expand(-1, 2) % 3)  # another, twice
sentences = [{"input_ids": ids, "labels": kind} for ids, kind in zip(tokens, kinds, strict=True)]


def train_sentences(model: nn.Module, budget: Any, seed: int) -> dict[str, float]:
    """Train a network in place for a budget of steps (0: only evaluate), and return its scores."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=budget.steps,
            per_device_train_batch_size=50,
            per_device_eval_batch_size=500,
            learning_rate=2e-3,
            warmup_steps=budget.steps // 10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=budget.device == "cpu",
            seed=seed,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=sentences[:1000])
        if budget.steps:
            trainer.train()
        found = trainer.predict(sentences[1000:])
    right = found.predictions.argmax(-1) == found.label_ids
    return {"accuracy": right.mean().item(), "loss": found.metrics["test_loss"]}


if __name__ == "__main__":
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        num_labels=3,
    )
    BertForSequenceClassification(config).save_pretrained("bert")
