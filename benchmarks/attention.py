"""Count which attentions and feed-forward layers a cut narrowed, by observing both networks.

An attention is a product of probabilities (a softmax of computed values) and values. Its heads
count as cut if its output has fewer elements (not its values, which heads may share). An attention
with a single head, on a single sample, cannot lose one and is counted separately. Feed-forward
layers are recognised by their names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from regrow.surgery.alive import called
from regrow.surgery.dispatch import OperationMode

SOFTMAX = ("_softmax", "_safe_softmax", "softmax")
PASSES = (  # operations whose results are still probabilities if their inputs are
    *("view", "_unsafe_view", "reshape", "expand", "clone", "_to_copy", "copy", "detach", "t"),
    *("transpose", "permute", "unsqueeze", "squeeze", "slice", "select", "split", "unbind"),
    *("split_with_sizes", "index_select", "native_dropout", "mul", "add", "sub", "div", "where"),
    *("masked_fill", "addmm", "mm", "convolution", "native_batch_norm"),
)
FEED_FORWARD = re.compile(
    r"(^|\.)(fc1|fc1_g|fc1_x|lin1|linear1|c_fc|fc_in|up_proj|gate_proj|gate_up_proj|wi|wi_0|wi_1|"
    r"Wi|w1|w2_in|w12|dense_h_to_4h|intermediate\.dense|intermediate_dense|(mlp|ffn?|feed_forward|"
    r"ff)(\.net)?\.0(\.proj)?|(mlp|ffn)\.(conv1|conv_1|net\.0|up|expand_conv|pw1)(\.conv|\.c)?|"
    r"ff\.layer_1|layer_1|mlp\.dense1|input_linear|conv1_1x1|fc_1)$"
)


class _Attentions(OperationMode):
    """Record each attention's output size, in order, and whether it has a single head."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.alone: list[bool] = []
        self._probable = WeakIdKeyDictionary()

    def run(self, operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        result = operation(*args, **kwargs)
        name = operation.overloadpacket.__name__
        tensors = [x for x in args if isinstance(x, Tensor)]
        if name.startswith("_scaled_dot_product") or name == "scaled_dot_product_attention":
            self.sizes.append((result[0] if isinstance(result, tuple) else result).numel())
            self.alone.append(args[0].dim() > 3 and args[0].shape[1] == 1)
            return result
        known = [x in self._probable for x in tensors]
        if name in SOFTMAX or (any(known) and name.rstrip("_") in PASSES):
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, Tensor):
                    self._probable[value] = True
        elif name in ("bmm", "baddbmm") and any(known[-2:]):
            self.sizes.append(result.numel())
            self.alone.append(len(result) == 1)
        return result


def attended(net: nn.Module, example: Any) -> tuple[list[int], list[bool]]:
    """Return the output size of each attention of a network, and whether it has a single head."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    mode = _Attentions()
    try:
        with mode:
            called(net, example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return mode.sizes, mode.alone


def widths(net: nn.Module) -> dict[str, int]:
    """Return the widths of a network's feed-forward hidden layers, by name."""
    return {
        name: max(weight.shape[:2]) if type(module).__name__ == "Conv1D" else weight.shape[0]
        for name, module in net.named_modules()
        if FEED_FORWARD.search(name)
        and isinstance(weight := getattr(module, "weight", None), Tensor)
        and weight.dim() >= 2
    }


def cuts(net: nn.Module, small: nn.Module, example: Any) -> dict[str, list[int]]:
    """Return how many attentions and feed-forward layers are narrower, and how many there are.

    Keys: ``attention`` and ``feed_forward`` [narrower, total], ``single`` [attentions of one head].
    """
    (before, alone), (after, _) = attended(net, example), attended(small, example)
    if not before:
        return {}
    told = {"attention": [0, alone.count(False)], "single": [sum(alone)]}
    if len(after) == len(before):
        pairs = zip(before, after, alone, strict=True)
        told["attention"][0] = sum(b < a for a, b, one in pairs if not one)
    wide, narrow = widths(net), widths(small)
    if wide:
        told["feed_forward"] = [sum(narrow[n] < w for n, w in wide.items()), len(wide)]
    return told
