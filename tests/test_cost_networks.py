"""MACs of 60 networks that others wrote, or compute past modules, against PyTorch's own counter."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models as torchvision_models
from torchvision.models import SwinTransformer, VisionTransformer

from regrow.cost import measure

TOKENS = (2, 6, 8)  # [N, length, channels]
IMAGE = (1, 3, 64, 64)


class Computes(nn.Module):
    """A network given by what it computes, from its input and the modules or weights it holds."""

    def __init__(
        self, forward: Callable[[Any, Tensor], Tensor], **held: nn.Module | Tensor
    ) -> None:
        super().__init__()
        self.compute = forward
        for name, value in held.items():
            if isinstance(value, Tensor):
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.add_module(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def of_torchvision(name: str, **arguments: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision_models, name)(weights=None, **arguments)


def of_timm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        timm = pytest.importorskip("timm", reason="timm is not installed")
        model: nn.Module = timm.create_model(name)
        return model

    return make


def attention(x: Tensor, heads: int) -> Tensor:
    return x.view(2, 6, heads, 8 // heads).transpose(1, 2)


def w(*shape: int) -> Tensor:
    return torch.zeros(shape)


def encoder_layer() -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    # With attention.
    "small-vit": (
        lambda: VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32
        ),
        (1, 3, 32, 32),
    ),
    "small-swin": (
        lambda: SwinTransformer(
            patch_size=[4, 4], embed_dim=12, depths=[2, 1], num_heads=[2, 2], window_size=[4, 4]
        ),
        IMAGE,
    ),
    "vit": (of_torchvision("vit_b_32", image_size=64), IMAGE),
    "swin": (of_torchvision("swin_t"), IMAGE),
    "swin-v2": (of_torchvision("swin_v2_t"), IMAGE),
    "maxvit": (of_torchvision("maxvit_t"), (1, 3, 224, 224)),
    **{
        f"timm-{name}": (of_timm(f"test_{name}"), (1, 3, 160, 160))
        for name in ("vit", "vit2", "vit3", "vit4", "vit_relpos", "coatnet", "maxvit")
    },
    "attention": (
        lambda: Computes(
            lambda m, x: m.inner(x, x, x, need_weights=False)[0],
            inner=nn.MultiheadAttention(8, 2, batch_first=True),
        ),
        TOKENS,
    ),
    "attention-weights": (
        lambda: Computes(lambda m, x: m.inner(x, x, x)[0], inner=nn.MultiheadAttention(8, 2)),
        TOKENS,
    ),
    "attention-across": (
        lambda: Computes(
            lambda m, x: m.inner(x, x[..., :3], x[..., :4])[0],
            inner=nn.MultiheadAttention(8, 2, kdim=3, vdim=4, batch_first=True),
        ),
        TOKENS,
    ),
    "encoder-layer": (encoder_layer, TOKENS),
    "encoder": (lambda: nn.TransformerEncoder(encoder_layer(), 2), TOKENS),
    "transformer": (
        lambda: Computes(
            lambda m, x: m.inner(x, x), inner=nn.Transformer(8, 2, 1, 1, 16, batch_first=True)
        ),
        TOKENS,
    ),
    "attention-function": (
        lambda: Computes(lambda m, x: F.scaled_dot_product_attention(x, m.k, m.k), k=w(2, 6, 8)),
        TOKENS,
    ),
    "attention-grouped": (
        lambda: Computes(
            lambda m, x: F.scaled_dot_product_attention(
                attention(x, 4), attention(x, 4)[:, :2], attention(x, 4)[:, :2], enable_gqa=True
            )
        ),
        TOKENS,
    ),
    "attention-by-hand": (
        lambda: Computes(lambda m, x: (x @ x.transpose(1, 2)).softmax(-1) @ x),
        TOKENS,
    ),
    # Recurrent.
    "gru": (
        lambda: Computes(lambda m, x: m.inner(x)[0], inner=nn.GRU(8, 5, 2, bidirectional=True)),
        TOKENS,
    ),
    "lstm": (
        lambda: Computes(
            lambda m, x: m.inner(x)[0],
            inner=nn.LSTM(8, 5, 2, bidirectional=True, batch_first=True),
        ),
        TOKENS,
    ),
    "lstm-projected": (
        lambda: Computes(lambda m, x: m.inner(x)[0], inner=nn.LSTM(8, 5, proj_size=3)),
        TOKENS,
    ),
    "rnn": (lambda: Computes(lambda m, x: m.inner(x)[0], inner=nn.RNN(8, 5)), TOKENS),
    "cell": (lambda: Computes(lambda m, x: m.inner(x[:, 0])[0], inner=nn.LSTMCell(8, 5)), TOKENS),
    # Past modules.
    "linear": (
        lambda: Computes(lambda m, x: F.linear(x, m.w, m.b), w=w(5, 8), b=w(5)),
        TOKENS,
    ),
    "einsum": (
        lambda: Computes(lambda m, x: torch.einsum("bnc,dc->bnd", x, m.w), w=w(5, 8)),
        TOKENS,
    ),
    "convolution": (lambda: Computes(lambda m, x: F.conv1d(x, m.w), w=w(5, 6, 3)), TOKENS),
    "transposed": (
        lambda: Computes(lambda m, x: F.conv_transpose1d(x, m.w, stride=2, groups=2), w=w(6, 5, 3)),
        TOKENS,
    ),
    "embedding": (
        lambda: Computes(
            lambda m, x: m.table(x[:, :, 0].long()).sum(1) + m.bag(x[:, :, 0].long()),
            table=nn.Embedding(4, 8),
            bag=nn.EmbeddingBag(4, 8),
        ),
        TOKENS,
    ),
    "keyword": (
        lambda: Computes(
            lambda m, x: m.b(input=m.a(input=x)), a=nn.Linear(8, 5), b=nn.Linear(5, 3)
        ),
        TOKENS,
    ),
    # Convolutional.
    "resnet": (of_torchvision("resnet18"), IMAGE),
    "mobilenet": (of_torchvision("mobilenet_v3_small"), IMAGE),
    "efficientnet": (of_torchvision("efficientnet_b0"), IMAGE),
    "densenet": (of_torchvision("densenet121"), IMAGE),
    "googlenet": (of_torchvision("googlenet", init_weights=False), IMAGE),
    "inception": (of_torchvision("inception_v3", init_weights=False), (1, 3, 96, 96)),
    "shufflenet": (of_torchvision("shufflenet_v2_x0_5"), IMAGE),
    "squeezenet": (of_torchvision("squeezenet1_0"), IMAGE),
    "regnet": (of_torchvision("regnet_y_400mf"), IMAGE),
    "mnasnet": (of_torchvision("mnasnet0_5"), IMAGE),
    "vgg": (of_torchvision("vgg11"), IMAGE),
    "alexnet": (of_torchvision("alexnet"), IMAGE),
    "convnext": (of_torchvision("convnext_tiny"), IMAGE),
    **{
        f"timm-{name}": (of_timm(f"test_{name}"), (1, 3, 160, 160))
        for name in (
            *("byobnet", "convnext", "convnext2", "convnext3", "efficientnet"),
            *("efficientnet_evos", "efficientnet_gn", "efficientnet_ln", "mambaout"),
            *("nfnet", "resnet"),
        )
    },
}
QUICK = ("small-vit", "small-swin", "mobilenet", "squeezenet")  # the others take seconds each
IMAGES = [name for name, (_, shape) in NETWORKS.items() if len(shape) == 4]


def by_pytorch(model: nn.Module, example: Tensor) -> float:
    """Count with PyTorch's own counter, which sees into neither of two fast ways.

    It counts nothing of the one-operation attention that evaluation takes, nor of LSTMs in oneDNN.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        counter = stack.enter_context(FlopCounterMode(display=False))
        model.eval().requires_grad_(False)(example)
    return float(counter.get_total_flops()) / 2


@pytest.mark.filterwarnings("ignore::UserWarning")  # of networks that others wrote
@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK or name not in IMAGES else pytest.param(name, marks=pytest.mark.slow)
        for name in NETWORKS
    ],
)
def test_macs_are_half_of_what_pytorch_counts(name: str) -> None:
    make, shape = NETWORKS[name]
    model, example = make(), torch.zeros(shape)
    cost = measure(model, example)
    assert cost.caveats == ()
    assert cost.macs == by_pytorch(model, example)
    assert cost.macs > 0 or name == "embedding"
    assert cost.flops >= 2 * cost.macs
