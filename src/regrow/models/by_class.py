"""The rule by which a class of transformers draws the parameters of its networks."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def draw_by_class_(model: "nn.Module") -> None:
    """Draw a network of transformers, or those that a model holds, by the rule of its class."""
    network: Any = model
    if callable(getattr(model, "_init_weights", None)) and hasattr(model, "base_model_prefix"):
        for module in model.modules():
            network._init_weights(module)
        return
    for child in model.children():
        draw_by_class_(child)
