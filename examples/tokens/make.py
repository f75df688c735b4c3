"""Write the inputs of the studies in this folder: two small transformers networks, and their data.

    uv run python make.py  # needs the extra `transformers`

``bert/`` and ``llama/`` hold configurations and initial weights, written by ``save_pretrained``;
``topics.npz`` padded sequences of three topics, ``bytes.npz`` windows of bytes of regrow's docs.
"""

from pathlib import Path

import numpy as np
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
LENGTH, VOCABULARY, PADDING = 24, 62, 0


def topics(num: int) -> dict[str, np.ndarray]:
    """Draw padded sequences in which tokens of the labelled topic are more frequent than others."""
    draw = np.random.default_rng(0)
    labels = draw.integers(3, size=num)
    of_topic = draw.random((num, LENGTH)) < 0.35
    topic = np.where(of_topic, labels[:, None], draw.integers(3, size=(num, LENGTH)))
    ids = 2 + 20 * topic + draw.integers(20, size=(num, LENGTH))
    mask = (np.arange(LENGTH) < draw.integers(8, LENGTH + 1, (num, 1))).astype(np.int64)
    return {"input_ids": np.where(mask, ids, PADDING), "attention_mask": mask, "labels": labels}


def windows(length: int = 48) -> dict[str, np.ndarray]:
    """Cut the docs into windows of bytes, for predicting each byte from those before it."""
    text = b"".join(file.read_bytes() for file in sorted((HERE / "../../docs").glob("*.md")))
    values = np.frombuffer(text, dtype=np.uint8).astype(np.int64) % 128
    return {"input_ids": values[: len(values) // length * length].reshape(-1, length)}


if __name__ == "__main__":
    np.savez(HERE / "topics.npz", **topics(2400))
    np.savez(HERE / "bytes.npz", **windows())
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "max_position_embeddings": 64}
    bert = BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes, **heads)
    BertForSequenceClassification(bert).save_pretrained(HERE / "bert")
    llama = LlamaConfig(vocab_size=128, num_key_value_heads=2, **sizes, **heads)
    LlamaForCausalLM(llama).save_pretrained(HERE / "llama")
