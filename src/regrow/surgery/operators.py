"""Names of ATen operations, grouped by what they do to channels."""


def names(words: str) -> tuple[str, ...]:
    """Return the full names of operations, with ``aten::``."""
    return tuple(f"aten::{word}" for word in words.split())


EMBEDDINGS = names("embedding _embedding_bag _embedding_bag_forward_only")
PRODUCERS = (*names("convolution _convolution addmm mm linear"), *EMBEDDINGS)
NORMS = names("native_layer_norm")  # norms that may also run on a parameter
COPIES = names("clone alias detach contiguous _to_copy lift_fresh")
TURNS = names("permute transpose t unsqueeze")
VIEWS = names("view _unsafe_view reshape _reshape_alias")
SPLITS = names("split split_with_sizes chunk")
SLICES = names("slice narrow")
# Select positions by number, so that the number of channels matters.
CHOICES = (*SPLITS, *SLICES, *names("select unbind index_select unfold roll index"))
# Only move data: run on the colours themselves.
MOVES = (*VIEWS, *CHOICES, *names("squeeze expand repeat flip"))
# Resize or pad maps, channel by channel.
RESIZES = names(
    "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool2d max_pool3d_with_indices "
    "_adaptive_avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d _adaptive_avg_pool3d "
    "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d grid_sampler_2d "
    "fractional_max_pool2d _adaptive_avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d"
)
UNARY = names(
    "relu relu_ leaky_relu leaky_relu_ relu6 relu6_ hardtanh hardtanh_ clamp clamp_ clamp_min "
    "clamp_min_ clamp_max clamp_max_ threshold threshold_ gelu silu silu_ mish mish_ tanh tanh_ "
    "hardswish hardswish_ elu elu_ selu selu_ celu celu_ softplus log_sigmoid_forward softshrink "
    "hardshrink sigmoid sigmoid_ hardsigmoid hardsigmoid_ neg neg_ abs abs_ sign sqrt sqrt_ rsqrt "
    "rsqrt_ reciprocal reciprocal_ square pow pow_ exp exp_ expm1 log log_ log1p log2 sin cos tan "
    "asin acos atan sinh cosh asinh acosh atanh erf erfc floor ceil round trunc frac logit "
    "nan_to_num isnan isinf isfinite logical_not bitwise_not dropout native_dropout "
    "gt gt_ lt lt_ ge ge_ le le_ eq eq_ ne ne_ rsub fmod remainder rrelu_with_noise"
)
# Results depend at most on the shape of data, not on its values.
MADE_ANEW = names("new_zeros new_ones new_full new_empty new_empty_strided")
# Elementwise functions of several tensors.
ARITHMETIC = names(
    "add add_ sub sub_ rsub maximum minimum mul mul_ div div_ where masked_fill masked_fill_ "
    "addcmul addcmul_ lerp lerp_ gt lt ge le eq ne logical_and logical_or logical_xor "
    "bitwise_and bitwise_or bitwise_xor pow fmax fmin clamp atan2 hypot copysign"
)
