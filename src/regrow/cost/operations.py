"""The multiply-accumulates of single ATen operations, and which operations are known to have none.

A formula returns the products of an operation: a number of multiply-accumulates, and the operands
that may be weights. Each number of these is used equally often, so if a part of an operand is held
at zero, the share of the rest counts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates, and the operands that may be weights."""

    macs: int
    operands: tuple[Tensor, ...]


Formula = Callable[[Sequence[Any], Any], list[Product]]  # of the arguments and the result


def _matrix(first: int) -> Formula:
    """Return the formula of matrix products of the arguments ``first`` and ``first + 1``."""

    def formula(args: Sequence[Any], result: Any) -> list[Product]:
        a, b = args[first : first + 2]
        return [Product(a.numel() * prod(b.shape[a.dim() - 1 :]), (a, b))]

    return formula


def _inner(args: Sequence[Any], result: Any) -> list[Product]:
    return [Product(args[0].numel(), tuple(args[:2]))]


def _linear(args: Sequence[Any], result: Any) -> list[Product]:
    x, weight = args[:2]
    return [Product(_rows(x) * weight.numel(), (weight,))]


def _convolution(args: Sequence[Any], result: Any) -> list[Product]:
    x, weight = args[:2]
    transposed = len(args) > 6 and args[6] is True
    positions = x if transposed else result
    return [Product(positions.shape[0] * prod(positions.shape[2:]) * weight.numel(), (weight,))]


def _convolution_forward(args: Sequence[Any], result: Any) -> list[Product]:
    return _convolution(args[:2], result)


def _bilinear(args: Sequence[Any], result: Any) -> list[Product]:
    x, weight = args[:2]
    return [Product(x.shape[0] * weight.numel(), (weight,))]


def _attention(args: Sequence[Any], result: Any) -> list[Product]:
    query, key, value = args[:3]  # [..., length, channels]
    return [Product(_rows(query) * key.shape[-2] * (key.shape[-1] + value.shape[-1]), ())]


def _recurrent_layer(args: Sequence[Any], result: Any) -> list[Product]:
    return [Product(_rows(args[0]) * weight.numel(), (weight,)) for weight in args[1:3]]


def _recurrent_layers(args: Sequence[Any], result: Any) -> list[Product]:
    matrices = [weight for weight in args[1] if weight.dim() > 1]
    return [Product(_rows(args[0]) * weight.numel(), (weight,)) for weight in matrices]


def _self_attention(x: Tensor, weights: Sequence[Tensor], *, channels: int) -> list[Product]:
    """Count the self-attention of ``[N, length, channels]``, and linear layers at each position."""
    layers = [Product(_rows(x) * weight.numel(), (weight,)) for weight in weights]
    return [*layers, Product(_rows(x) * x.shape[1] * 2 * channels, ())]


def _fast_attention(args: Sequence[Any], result: Any) -> list[Product]:
    return _self_attention(args[0], (args[5], args[7]), channels=args[3])


def _fast_encoder_layer(args: Sequence[Any], result: Any) -> list[Product]:
    weights = (args[3], args[5], args[14], args[16])
    return _self_attention(args[0], weights, channels=args[1])


def _rows(x: Tensor) -> int:
    return prod(x.shape[:-1])


FORMULAS: Mapping[str, Formula] = {
    **dict.fromkeys(("mm", "bmm", "mv", "_int_mm", "_scaled_mm"), _matrix(0)),
    **dict.fromkeys(("addmm", "addbmm", "addmv", "baddbmm", "_addmm_activation"), _matrix(1)),
    **dict.fromkeys(("dot", "vdot"), _inner),
    **dict.fromkeys(("linear", "mkldnn_linear"), _linear),
    "_trilinear": _bilinear,
    **dict.fromkeys(("convolution", "_convolution", "convolution_overrideable"), _convolution),
    **dict.fromkeys(
        (
            *("cudnn_convolution", "mkldnn_convolution", "miopen_convolution"),
            *("_slow_conv2d_forward", "slow_conv3d_forward", "_conv_depthwise2d"),
            *("slow_conv_dilated2d", "slow_conv_dilated3d", "conv_depthwise3d"),
        ),
        _convolution_forward,
    ),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_attention_math_for_mps",
        ),
        _attention,
    ),
    "mkldnn_rnn_layer": _recurrent_layer,
    **dict.fromkeys(("_cudnn_rnn", "miopen_rnn"), _recurrent_layers),
    "_native_multi_head_attention": _fast_attention,
    "_transformer_encoder_layer_fwd": _fast_encoder_layer,
}

_BLOCKS = (torch.sparse_bsr, torch.sparse_bsc)
_SPARSE = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, *_BLOCKS)
# Operations of several tensors without sums of products, besides elementwise ones and views.
_NAMES = """
_batch_norm_no_update _batch_norm_with_update _batch_norm_with_update_functional
_native_batch_norm_legit _native_batch_norm_legit_functional
_native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm miopen_batch_norm
batch_norm_elemt batch_norm_stats native_group_norm native_layer_norm _fused_rms_norm
_weight_norm_interface _prelu_kernel rrelu_with_noise rrelu_with_noise_functional
cat stack copy complex polar fill masked_fill masked_scatter masked_select resize_as set set_
index _unsafe_index index_add index_copy index_fill index_put _unsafe_index_put index_reduce
_index_put_impl _unsafe_masked_index _unsafe_masked_index_put_accumulate index_select gather
take scatter scatter_add scatter_reduce segment_reduce embedding _embedding_bag
_embedding_bag_forward_only slice_scatter select_scatter diagonal_scatter as_strided_scatter
grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback fractional_max_pool2d
fractional_max_pool3d max_unpool2d max_unpool3d isin bucketize searchsorted bernoulli normal
max min mode median nanmedian sort topk kthvalue rsub linspace logspace dist
_pack_padded_sequence _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward
quantize_per_tensor _masked_scale _functional_assert_async binary_cross_entropy
binary_cross_entropy_with_logits mse_loss smooth_l1_loss huber_loss soft_margin_loss
nll_loss_forward nll_loss2d_forward lift_fresh
"""
_FREE = frozenset(_NAMES.split())
_SPECTRAL = ("_fft_", "fft_")
_SOLVERS = ("linalg_", "_linalg_", "cholesky", "triangular_solve", "matrix_exp")


def name_of(operation: Any) -> str:
    """Return an operation's name as in the tables here: without ``aten::`` and the in-place _."""
    name = str(operation._schema.name)
    if not name.startswith("aten::"):
        return name
    name = name.removeprefix("aten::")
    return name.rstrip("_") if name != "set_" else name


def products(operation: Any, arguments: Sequence[Any], result: Any) -> list[Product] | None:
    """Return an operation's products; None if it may multiply in an unknown way."""
    formula = _formula(operation)
    if formula is None:
        return None if _may_multiply(operation, arguments, result) else []
    if formula is not _nothing and any(_is_irregular(x) for x in tensors_in(arguments)):
        return None  # the number of multiplications depends on which entries are stored
    return formula(arguments, result)


@cache
def _formula(operation: Any) -> Formula | None:
    """Return the formula of an operation, if its name or kind alone determines it."""
    name = name_of(operation)
    elementwise = "::" not in name and torch.Tag.pointwise in operation.tags
    if elementwise or operation.is_view or name in _FREE or name.startswith(("prim::", "prims::")):
        return _nothing
    return FORMULAS.get(name)


def _nothing(args: Sequence[Any], result: Any) -> list[Product]:
    return []


def _may_multiply(operation: Any, arguments: Sequence[Any], result: Any) -> bool:
    """Return whether an unknown operation may sum products of numbers."""
    name = name_of(operation)
    if not any(map(_is_number, tensors_in([result]))):
        return False
    if "::" in name:  # from another library, so what it computes is not known
        return True
    if name.startswith(_SPECTRAL) or (name.startswith(_SOLVERS) and "norm" not in name):
        return True
    return sum(map(_is_number, tensors_in(arguments))) > 1


def _is_irregular(tensor: Tensor) -> bool:
    return tensor.is_nested or tensor.layout in _SPARSE


def _is_number(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized


def tensors_in(arguments: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operation's arguments or results, also those in lists."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from tensors_in(argument)


def memory_of(tensor: Tensor) -> int:
    """Return an identifier of a tensor's memory, which its views share."""
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)
