"""Arguments of a wrong kind, at the functions that everybody calls: one message, no traceback."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.errors import RegrowError

NET = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
X = torch.zeros(1, 3, 8, 8)
FOUND = regrow.trace(NET, X)
MASK = regrow.Mask(unit="channel", kept={"0": torch.arange(8) % 2 == 0})
ORIGIN = regrow.ModelOrigin("torchvision/resnet18")


def architecture(**arguments: Any) -> regrow.Architecture:
    return regrow.Architecture(**{"model": ORIGIN, "shape": (1, 3, 64, 64), **arguments})


CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "trace: network": lambda bad, _: regrow.trace(bad, X),
    "trace: example": lambda bad, _: regrow.trace(NET, bad),
    "trace: kwargs": lambda bad, _: regrow.trace(NET, X, bad),
    "trace: keep": lambda bad, _: regrow.trace(NET, X, keep=bad),
    "shrink: network": lambda bad, _: regrow.shrink(bad, MASK, FOUND),
    "shrink: mask": lambda bad, _: regrow.shrink(NET, bad, FOUND),
    "shrink: trace": lambda bad, _: regrow.shrink(NET, MASK, bad),
    "verify: network": lambda bad, _: regrow.verify(bad, MASK, FOUND),
    "verify: mask": lambda bad, _: regrow.verify(NET, bad, FOUND),
    "verify: trace": lambda bad, _: regrow.verify(NET, MASK, bad),
    "verify: sensitivity": lambda bad, _: regrow.verify(NET, MASK, FOUND, sensitivity=bad),
    "silence: mask": lambda bad, _: regrow.silence(NET, bad, FOUND),
    "fold: network": lambda bad, _: regrow.fold(bad),
    "inspect: network": lambda bad, _: regrow.inspect(bad, X),
    "inspect: example": lambda bad, _: regrow.inspect(NET, bad),
    "inspect: keep": lambda bad, _: regrow.inspect(NET, X, keep=bad),
    "save: folder": lambda bad, _: regrow.save(bad, NET, architecture()),
    "save: network": lambda bad, folder: regrow.save(folder, bad, architecture()),
    "save: architecture": lambda bad, folder: regrow.save(folder, NET, bad),
    "load: folder": lambda bad, _: regrow.load(bad),
    "load: code": lambda bad, folder: regrow.load(folder, code=bad),
    "export: network": lambda bad, folder: regrow.export(bad, X, folder / "net.pt2"),
    "export: path": lambda bad, _: regrow.export(NET, X, bad),
    "push: folder": lambda bad, _: regrow.push(bad, "me/net"),
    "push: name": lambda bad, folder: regrow.push(folder, bad),
    "pull: name": lambda bad, _: regrow.pull(bad),
    "Mask: unit": lambda bad, _: regrow.shrink(NET, regrow.Mask(unit=bad, kept=MASK.kept), FOUND),
    "Mask: kept": lambda bad, _: regrow.Mask(unit="channel", kept=bad),
    "Mask: one of kept": lambda bad, _: regrow.Mask(unit="channel", kept={"0": bad}),
    "Architecture: model": lambda bad, _: architecture(model=bad),
    "Architecture: shape": lambda bad, _: architecture(shape=bad),
    "Architecture: cuts": lambda bad, _: architecture(cuts=bad),
    "Architecture: keep": lambda bad, _: architecture(keep=bad),
}
BAD: dict[str, Any] = {
    "number": 3,
    "share": 0.5,
    "true": True,
    "bytes": b"x",
    "list of numbers": [1, -2],
    "object": object(),
    "class": nn.Conv2d,
    "array": np.zeros(3),
    "function": lambda: 0,
    "strange path": "a\0b",
}


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_kind_of_argument_ends_in_one_message(name: str, tmp_path: Path) -> None:
    for what, bad in BAD.items():
        with pytest.raises(RegrowError) as raised:
            CALLS[name](bad, tmp_path)
        assert len(str(raised.value)) < 600, (what, str(raised.value))
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: regrow.load(3), r"The folder that regrow\.load reads is a path.* Got 3\."),
        (lambda: regrow.trace(nn.Conv2d, X), "such as Net.*Got the class Conv2d"),
        (lambda: regrow.trace(NET, np.zeros(3)), r"torch\.from_numpy\(array\)"),
        (lambda: regrow.trace(NET, (1, 3, -8, 8)), r"its shape, such as .* Got \(1, 3, -8, 8\)"),
        (lambda: regrow.trace(NET, X, keep="0"), r"such as \['stem\.conv'\]\. Got '0'"),
        (lambda: regrow.shrink(NET, FOUND, MASK), "second argument must be a mask"),
        (lambda: regrow.verify(NET, MASK, FOUND, sensitivity={"a": 1.0}), "all groups .*'0'"),
        (lambda: regrow.save(NET, ".", architecture()), "first argument of regrow.save"),
    ],
)
def test_the_message_says_what_is_asked_for(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(regrow.ConfigError, match=message):
        call()


def test_a_trace_takes_the_texts_of_inputs_as_an_inspection_does() -> None:
    assert [*regrow.trace(NET, "1x3x8x8").groups] == [*FOUND.groups]
    with pytest.raises(regrow.ConfigError, match=r"SHAPE.*Got '1,3,8,8'.* Do you mean 1x3x8x8"):
        regrow.trace(NET, "1,3,8,8")


def test_masks_of_an_architecture_may_be_a_list() -> None:
    assert architecture(cuts=[MASK]).cuts == (MASK,)
