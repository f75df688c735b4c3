"""Models of transformers that need no settings of their own here: their configs are made small.

    uv run --extra transformers python benchmarks/auto_models.py

prints which models of ``AutoModel`` can be built so and take one of a few inputs: ``NAMES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from networks import SMALL

LARGEST = 50e6  # parameters
# Sizes beside networks.SMALL, for latent attention and mixtures of experts.
MORE = {
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("n_routed_experts", "num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
}


def build(name: str) -> tuple[nn.Module, Any]:
    """Build a small model of a class, and an example that it takes.

    Raises:
        ValueError: it is large in spite of its config, or takes none of the inputs.
    """
    made = getattr(importlib.import_module("transformers"), name)
    config = _small(made.config_class)
    with torch.device("meta"):
        num = sum(p.numel() for p in made(config).parameters())
    if num > LARGEST:
        raise ValueError(f"{name} has {num / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    net = made(config).eval()
    for example in _inputs(net):
        with suppress(Exception), torch.no_grad():
            net(**example)
            return net, example
    raise ValueError(f"{name} takes none of the inputs")


def _small(config: Any, *, deep: int = 0) -> Any:
    """Make a config with small sizes, and small configs of its parts."""
    default = config()
    sizes = {key: value for key, value in (SMALL | MORE).items() if hasattr(default, key)}
    parts: dict[str, Any] = {}
    for key, value in vars(default).items():
        if hasattr(value, "to_dict") and deep < 3:
            with suppress(Exception):
                parts[key] = _small(type(value), deep=deep + 1).to_dict()
    layers = list(dict.fromkeys(getattr(default, "layer_types", None) or ()))
    few = {"layer_types": (layers * 2)[:2]} if layers else {}
    least = {k: v for k, v in sizes.items() if k in ("vocab_size", "num_hidden_layers")}
    for given in (sizes | parts | few, sizes | parts, least | parts, least):
        with suppress(Exception):
            return config(**given)
    return default


def _inputs(net: nn.Module) -> Iterator[dict[str, Any]]:
    """Yield inputs that a model may take, by the name of its main one."""
    main, config = getattr(net, "main_input_name", "input_ids"), net.config
    ids = torch.randint(3, 90, (1, 12))
    if main in ("input_ids", "pixel_values"):
        yield {"input_ids": ids}
        yield {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    if main in ("pixel_values", "pixel_values_videos"):
        for size in (getattr(config, "image_size", None), 32, 64, 128, 224):
            for channels in (3, 1) if isinstance(size, int) and size <= 256 else ():
                image = torch.randn(1, channels, size, size)
                yield {"pixel_values": image}
                yield {"pixel_values": image, "input_ids": ids}
                yield {main: torch.randn(1, 4, channels, size, size)}
    elif main == "input_features":
        for num in (16, 80, 128, 160):
            length = 2 * getattr(config, "max_source_positions", 50)
            yield {main: torch.randn(1, num, length)}
            yield {main: torch.randn(1, 60, num)}
            yield {main: torch.randn(1, num, length), "decoder_input_ids": ids[:, :6]}
    elif main == "input_values":
        for shape in ((1, 1600), (1, 1, 1600), (1, 1024, 128), (1, 16000)):
            yield {main: torch.randn(shape)}
    elif main != "input_ids":
        for shape in ((1, 64, 7), (1, 64), (1, 12, 64)):
            yield {main: torch.randn(shape)}


def _main() -> None:
    """Print the models that can be built, each tried in a process of its own."""
    import multiprocessing

    import networks

    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    known = {name.partition("/")[2] for name in networks.names() if name not in networks.AUTO}
    given = auto.MODEL_MAPPING_NAMES.values()
    classes = {name if isinstance(name, str) else name[0] for name in given} - known
    context = multiprocessing.get_context("fork")
    for name in sorted(classes):
        process = context.Process(target=_try, args=(name,))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == 0:
            print(name, flush=True)


def _try(name: str) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
    torch.set_num_threads(1)
    try:
        build(name)
    except Exception as error:
        raise SystemExit(1) from error


if __name__ == "__main__":
    _main()
