"""Convolutions over small maps as products: the numbers of a convolution in bfloat16."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.seeds import seeded
from regrow.models import ModelSpec, build
from regrow.train.small_maps import as_products
from regrow.train.step import forward

LAST = torch.channels_last


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed, "map")).bfloat16()


Way = Callable[[Callable[[], Tensor]], Tensor]


def results(conv: nn.Conv2d, x: Tensor, within: Way) -> list[Tensor]:
    """Return output and gradients, in double."""
    conv.zero_grad()
    x = x.detach().requires_grad_()
    y = within(lambda: conv(x))
    y.backward(draw(*y.shape, seed=2).to(y.dtype))  # type: ignore[no-untyped-call]
    found = [y, x.grad, conv.weight.grad, *([] if conv.bias is None else [conv.bias.grad])]
    return [t.detach().double() for t in found if t is not None]


CONVS = {
    "3x3": nn.Conv2d(12, 20, 3, padding=1, bias=False),
    "bias": nn.Conv2d(5, 7, 3, padding=1),
    "stride": nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "uneven": nn.Conv2d(6, 4, (3, 2), stride=(1, 2), padding=(0, 1)),
    "no-padding": nn.Conv2d(3, 8, 2),
}


@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=["last", "first"])
@pytest.mark.parametrize("name", CONVS)
def test_a_product_is_no_further_from_the_truth_than_a_convolution(
    name: str, layout: torch.memory_format
) -> None:
    conv, x = CONVS[name], draw(3, CONVS[name].in_channels, 4, 4).contiguous(memory_format=layout)

    def plainly(run: Callable[[], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return run()

    def product(run: Callable[[], Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), as_products(conv):
            y = run()
        assert "_MatrixConvolution" in type(y.grad_fn).__name__
        return y

    other, mine = results(conv, x, plainly), results(conv, x, product)
    exact = results(conv.double(), x.double(), lambda run: run())
    conv.float()
    assert len(mine) == len(other) == len(exact) == 3 + (conv.bias is not None)
    for ours, theirs, truth in zip(mine, other, exact, strict=True):
        assert ours.shape == truth.shape
        assert (ours - truth).norm() <= 1.5 * (theirs - truth).norm() + 1e-5 * truth.norm()


@pytest.mark.parametrize(
    ("conv", "size"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), 5),
        (nn.Conv2d(4, 4, 1), 4),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2), 4),
        (nn.Conv2d(4, 4, 3, padding=2, dilation=2), 4),
        (nn.Conv2d(4, 4, 3, padding="same"), 4),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), 4),
    ],
    ids=["large", "1x1", "grouped", "dilated", "named-padding", "reflecting"],
)
def test_other_convolutions_stay_what_they_are(conv: nn.Conv2d, size: int) -> None:
    x = draw(2, 4, size, size)
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(x)
        with as_products(conv):
            y = conv(x)
    assert "_MatrixConvolution" not in type(y.grad_fn).__name__
    assert torch.equal(y, expected)


def test_a_map_too_small_for_the_kernel_gives_the_convolutions_own_message() -> None:
    conv = nn.Conv2d(4, 4, 3)
    with as_products(conv), pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        conv(torch.randn(1, 4, 2, 2))


def test_modules_are_as_before_also_after_an_error() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(RuntimeError, match="channels"), as_products(conv):
        conv(torch.randn(1, 3, 8, 8))
    assert "forward" not in vars(conv)


def test_bf16_takes_products_in_training_and_evaluation_and_fp32_does_not() -> None:
    model = build(ModelSpec("vgg-16", {"classes": 4, "width": 0.125})).to(memory_format=LAST)
    images = torch.randn(4, 3, 32, 32, generator=seeded(0, "images"))
    images = images.contiguous(memory_format=LAST)

    def products(precision: str) -> int:
        seen = 0
        todo = [forward(model, images, precision).grad_fn]  # type: ignore[arg-type]
        known = set()
        while todo:
            node = todo.pop()
            if node is None or node in known:
                continue
            known.add(node)
            seen += "_MatrixConvolution" in type(node).__name__
            todo += [following for following, _ in node.next_functions]
        return seen

    assert products("bf16") == 6  # the layers behind the third and the fourth pooling
    assert products("fp32") == 0
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), as_products(model):
        expected = model(images).float()
    with torch.no_grad():
        assert torch.equal(forward(model, images, "bf16"), expected)


def test_a_network_trains_the_same_either_way() -> None:
    images = torch.randn(16, 3, 32, 32, generator=seeded(0, "images"))
    images = images.contiguous(memory_format=LAST)
    labels = torch.arange(16) % 4
    gradients: dict[str, Tensor] = {}
    for way in ("fp32", "plain", "products"):
        model = build(ModelSpec("vgg-16", {"classes": 4, "width": 0.25})).to(memory_format=LAST)
        if way == "products":
            logits = forward(model, images, "bf16")
        else:
            with torch.autocast("cpu", torch.bfloat16, enabled=way == "plain"):
                logits = model(images).float()
        F.cross_entropy(logits, labels).backward()  # type: ignore[no-untyped-call]
        found = [p.grad for p in model.parameters() if p.grad is not None]
        gradients[way] = torch.cat([g.flatten() for g in found])
    off = {way: (found - gradients["fp32"]).norm() for way, found in gradients.items()}
    assert 0 < off["products"] <= 1.25 * off["plain"]
