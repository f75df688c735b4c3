"""The networks that surgery is measured on, each built by name with an example input.

All of torchvision, a small member of each family of timm, classes of transformers with small
configs, and those of other packages that are listed here. Networks of packages that are not
installed are left out.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import auto_models
from auto_models import SMALL, words

# A small member of each module of timm, the smallest of a few that were tried (timm 1.0.31).
TIMM = words("""
    beit_base_patch16_224 halonet26t mobileone_s1 cait_xxs24_224 coat_tiny convit_tiny
    convmixer_768_32 convnext_atto cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s
    cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small
    efficientformer_l1 efficientformerv2_s0 mnasnet_small efficientvim_m1 efficientvit_b0
    efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_srf
    gcvit_xxtiny ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t
    inception_next_atto inception_v4 lambda_resnet26t lcnetv2_small levit_128s lowformer_b0
    mambaout_femto maxvit_pico_rw_256 poolformerv2_s12 poolformer_s12 convformer_s18
    caformer_s18 gmlp_ti16_224 mixer_s32_224 resmlp_12_224 mobilenetv3_small_050
    mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small
    nf_resnet26 dm_nfnet_f0 pit_ti_224 pvt_v2_b0 rdnet_tiny regnetx_002 regnety_002 regnetz_b16
    repghostnet_050 repvit_m1 res2next50 res2net50_14w_8s resnest14d resnet18 resnet26d
    seresnet18 resnetv2_18 resnetv2_50x1_bit resnext26ts rexnet_100 selecsls42 sequencer2d_s
    shvit_s1 sknet18 skresnet18 starnet_s1 swiftformer_xs swin_tiny_patch4_window7_224
    swin_s3_tiny_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
    tnt_s_legacy_patch16_224 tresnet_m twins_svt_small vgg11 visformer_tiny vit_tiny_patch16_224
    vit_small_patch32_224 vit_relpos_small_patch16_224 vitamin_small_224 volo_d1_224 vovnet39a
    xception41 xcit_nano_12_p16_224 coatnet_nano_rw_224 convnextv2_atto botnet26t_256
    bat_resnext26ts gcresnext26ts eca_nfnet_l0 efficientnet_lite0 fbnetc_100 spnasnet_100
    semnasnet_050 tinynet_e
""")

TEXT = words("""
    BertForSequenceClassification RobertaForSequenceClassification
    DistilBertForSequenceClassification AlbertModel ElectraModel DebertaV2Model MPNetModel
    MobileBertModel ModernBertModel XLNetModel GPT2LMHeadModel GPTNeoForCausalLM
    GPTNeoXForCausalLM GPTJForCausalLM OPTForCausalLM BloomForCausalLM LlamaForCausalLM
    MistralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM GemmaForCausalLM Gemma2ForCausalLM
    PhiForCausalLM Phi3ForCausalLM FalconForCausalLM StableLmForCausalLM OlmoForCausalLM
    MixtralForCausalLM MambaForCausalLM T5EncoderModel
""")
BOTH = ("T5ForConditionalGeneration", "BartModel", "MarianModel")
# Added after surgery was finished, to test it on networks that it was not developed with.
TEXT_LATER = words("""
    RoFormerModel FNetModel NystromformerModel ConvBertModel SqueezeBertModel RemBertModel
    BigBirdModel IBertModel MegatronBertModel XLMModel CanineModel GPTBigCodeForCausalLM
    CodeGenForCausalLM BioGptForCausalLM PersimmonForCausalLM CohereForCausalLM
    GraniteForCausalLM GlmForCausalLM Olmo2ForCausalLM Starcoder2ForCausalLM
    NemotronForCausalLM HeliumForCausalLM SmolLM3ForCausalLM Mamba2ForCausalLM
    RwkvForCausalLM XGLMForCausalLM CTRLModel OpenAIGPTModel MptForCausalLM FunnelModel
    LayoutLMModel Qwen2MoeForCausalLM
""")
BOTH_LATER = words("""
    PegasusModel BlenderbotModel LEDModel M2M100Model UMT5Model SwitchTransformersModel
    LongT5Model
""")
LATER = frozenset(f"transformers/{name}" for name in (*TEXT_LATER, *BOTH_LATER))
AUTO = frozenset(f"transformers/{name}" for name in auto_models.NAMES)
VISION = words("""
    ViTForImageClassification DeiTModel BeitModel Dinov2Model SwinModel Swinv2Model
    ConvNextModel ConvNextV2Model ResNetModel SegformerForImageClassification PoolFormerModel
    LevitModel MobileViTModel
""")
OTHERS = ("CLIPModel", "SiglipModel", "WhisperModel", "Wav2Vec2Model")
# Configs that SMALL does not fit; CONFIGS has all of their arguments.
PLAIN = ("SwinModel", "Swinv2Model", "ConvNextModel", "ConvNextV2Model")
CONFIGS: dict[str, dict[str, Any]] = {
    "SwinModel": {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16, "window_size": 2,
                  "patch_size": 4},
    "Swinv2Model": {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16, "window_size": 2,
                    "patch_size": 4},
    "ConvNextModel": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "patch_size": 4},
    "ConvNextV2Model": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "patch_size": 4},
    "ResNetModel": {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128],
                    "depths": [1, 1, 1, 1]},
    "SegformerForImageClassification": {"hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4,
                                        "num_attention_heads": [1, 2, 3, 4]},
    "PoolFormerModel": {"hidden_sizes": [16, 32, 48, 64], "depths": [1] * 4, "patch_size": 4},
    "LevitModel": {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4],
                   "depths": [1, 1, 1], "key_dim": [8, 8, 8], "image_size": 64, "patch_size": None},
    "FalconForCausalLM": {"head_dim": None},
    "BigBirdModel": {"attention_type": "original_full"},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2,
                          "chunk_size": 8},
    "FunnelModel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "num_hidden_layers": None},
    "XLNetModel": {"max_position_embeddings": None},
    "MobileViTModel": {"image_size": 64, "patch_size": 2, "hidden_sizes": [32, 48, 64],
                       "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]},
    "DebertaV2Model": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "MobileBertModel": {"true_hidden_size": 32, "intra_bottleneck_size": 32, "embedding_size": 32},
    "Wav2Vec2Model": {"conv_dim": (32, 32), "conv_kernel": (8, 4), "conv_stride": (4, 2),
                      "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
                      "num_conv_pos_embedding_groups": 4},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "WhisperModel": {"max_target_positions": 32},
}  # fmt: skip


class Tagger(nn.Module):
    """A word tagger: an embedding, a bidirectional LSTM and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 32)
        self.lstm = nn.LSTM(32, 48, batch_first=True, bidirectional=True)
        self.tags = nn.Linear(96, 9)

    def forward(self, ids: Tensor) -> Tensor:
        tags: Tensor = self.tags(self.lstm(self.words(ids))[0])
        return tags


class Encoder(nn.Module):
    """A classifier of tokens with PyTorch's own transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(200, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(64, 9)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.words(ids)).mean(1))
        return scores


class Graph(nn.Module):
    """Two graph convolutions over a dense adjacency matrix (GCN)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 64), nn.Linear(64, 64)
        self.norm, self.head = nn.BatchNorm1d(64), nn.Linear(64, 5)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        degree = edges.sum(-1, keepdim=True)
        x = (edges @ self.first(nodes) / degree).relu()
        x = (edges @ self.norm(self.second(x).transpose(1, 2)).transpose(1, 2) / degree).relu()
        scores: Tensor = self.head(x)
        return scores


def _graph() -> tuple[nn.Module, Any]:
    edges = (torch.rand(1, 10, 10) < 0.4).float() + torch.eye(10)
    return Graph(), (torch.randn(1, 10, 16), edges)


def _geometric(name: str) -> tuple[nn.Module, Any]:
    models = importlib.import_module("torch_geometric.nn.models")
    edges = torch.randint(0, 10, (2, 40))
    net = getattr(models, name)(16, 64, 2, out_channels=5, norm="batch_norm")
    return net, (torch.randn(10, 16), edges)


def _diffusers(name: str) -> tuple[nn.Module, Any]:
    made = getattr(importlib.import_module("diffusers"), name)
    image, step = torch.randn(1, 3, 32, 32), torch.tensor([10])
    blocks = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
    if name == "UNet2DModel":
        down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
        net = made(sample_size=32, down_block_types=down, up_block_types=up, **blocks)
        return net, (image, step)
    if name == "UNet2DConditionModel":
        down, up = ("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")
        more = {"cross_attention_dim": 24, "attention_head_dim": 8, "in_channels": 3}
        net = made(sample_size=32, down_block_types=down, up_block_types=up, **more, **blocks)
        return net, (image, step, torch.randn(1, 7, 24))
    if name == "AutoencoderKL":
        down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
        return made(down_block_types=down, up_block_types=up, latent_channels=4, **blocks), image
    net = made(num_attention_heads=4, attention_head_dim=16, in_channels=3, num_layers=2,
               sample_size=32, norm_type="ada_norm_zero", num_embeds_ada_norm=10)  # fmt: skip
    return net, {"hidden_states": image, "timestep": step, "class_labels": torch.tensor([3])}


def _ultralytics(name: str) -> tuple[nn.Module, Any]:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    kinds = {"seg": "SegmentationModel", "cls": "ClassificationModel", "pose": "PoseModel"}
    made = getattr(tasks, kinds.get(name.rpartition("-")[2], "DetectionModel"))
    return made(f"{name}.yaml", verbose=False), torch.rand(1, 3, 128, 128)


def _smp(name: str) -> tuple[nn.Module, Any]:
    smp = importlib.import_module("segmentation_models_pytorch")
    kind, encoder = name.split("-")
    return getattr(smp, kind)(encoder, encoder_weights=None), torch.rand(1, 3, 128, 128)


OWN: dict[str, Any] = {
    "lstm-tagger": lambda: (Tagger(), torch.randint(0, 200, (1, 12))),
    "transformer-encoder": lambda: (Encoder(), torch.randint(0, 200, (1, 12))),
    "graph": _graph,
}
OTHERS_OF = {  # package -> function that builds a network by name, and the names
    "torch": (lambda name: OWN[name](), words("lstm-tagger transformer-encoder graph")),
    "torch_geometric": (_geometric, words("GCN GraphSAGE GIN GAT")),
    "diffusers": (
        _diffusers,
        words("UNet2DModel UNet2DConditionModel AutoencoderKL DiTTransformer2DModel"),
    ),
    "ultralytics": (_ultralytics, words("yolo11n yolo11n-seg yolo11n-cls yolov8n")),
    "segmentation_models_pytorch": (
        _smp,
        words(
            "Unet-resnet18 UnetPlusPlus-resnet18 FPN-resnet18 PSPNet-resnet18 Linknet-resnet18 "
            "MAnet-resnet18 PAN-resnet18 DeepLabV3Plus-mobilenet_v2 UPerNet-resnet18 "
            "Segformer-mit_b0"
        ),
    ),
}


def names() -> list[str]:
    """Name every network whose package is installed, as ``package/name``."""
    found = [
        f"{package}/{name}"
        for package, (_, own) in OTHERS_OF.items()
        if _installed(package)
        for name in own
    ]
    found += [f"torchvision/{kind}{name}" for kind, name in _torchvision()]
    if _installed("timm"):
        known = set(importlib.import_module("timm").list_models())
        found += [f"timm/{name}" for name in TIMM if name in known]
        found += [f"timm/{name}" for name in sorted(known) if name.startswith("test_")]
    if _installed("transformers"):
        found += [f"transformers/{name}" for name in (*TEXT, *BOTH, *VISION, *OTHERS)]
        found += sorted(LATER)
        found += sorted(AUTO)
    return found


def build(name: str) -> tuple[nn.Module, Any]:
    """Build a network with random weights, in evaluation mode, and an example for it."""
    torch.manual_seed(0)
    package, _, rest = name.partition("/")
    if package == "torchvision":
        net, example = _of_torchvision(*rest.rpartition("/")[::2])
    elif package == "timm":
        net, example = _of_timm(rest)
    elif name in AUTO:
        net, example = auto_models.build(rest)
    elif package == "transformers":
        net, example = _of_transformers(rest)
    else:
        net, example = OTHERS_OF[package][0](rest)
    return net.eval(), example


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _torchvision() -> Iterator[tuple[str, str]]:
    models = importlib.import_module("torchvision.models")
    for kind in ("", "segmentation", "detection", "video", "optical_flow"):
        module = getattr(models, kind) if kind else models
        for name in models.list_models(module=module):
            yield (f"{kind}/" if kind else "", name)


def _of_torchvision(kind: str, name: str) -> tuple[nn.Module, Any]:
    models = importlib.import_module("torchvision.models")
    more: dict[str, Any] = {}
    if kind in ("segmentation", "detection"):
        more["weights_backbone"] = None
    if kind == "detection" and "resnet50" in name:
        more |= {"min_size": 160, "max_size": 160}  # otherwise images are enlarged to 800 pixels
    if name in ("googlenet", "inception_v3"):
        more["init_weights"] = False
    net = models.get_model(name, weights=None, **more)
    if kind == "video":
        size = 224 if "mvit" in name or name == "s3d" else 112
        return net, torch.rand(1, 3, 16, size, size)
    if kind == "optical_flow":
        return net, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
    if kind == "detection":
        return net, torch.rand(1, 3, 160, 160)
    size = 224 if name.startswith(("vit", "maxvit")) else 128
    return net, torch.rand(1, 3, size, size)


def _of_timm(name: str) -> tuple[nn.Module, Any]:
    timm = importlib.import_module("timm")
    net = timm.create_model(name)
    return net, torch.rand(1, *net.default_cfg["input_size"])


def _small(config: type, more: dict[str, Any]) -> dict[str, Any]:
    """Return arguments for a small config; None in ``more`` keeps the config's own default."""
    default = config()
    known = {key: value for key, value in SMALL.items() if hasattr(default, key)}
    return {key: value for key, value in (known | more).items() if value is not None}


def _of_transformers(name: str) -> tuple[nn.Module, Any]:
    transformers = importlib.import_module("transformers")
    made = getattr(transformers, name)
    config = made.config_class
    if name in ("CLIPModel", "SiglipModel"):
        parts = {
            f"{part}_config": _small(
                getattr(transformers, name.replace("Model", f"{word}Config")), {}
            )
            for part, word in (("text", "Text"), ("vision", "Vision"))
        }
        net = made(config(**parts, projection_dim=32))
    else:
        more = CONFIGS.get(name, {})
        own = {"image_size": 32, **more} if name in PLAIN else _small(config, more)
        net = made(config(**own))
    ids = torch.randint(3, 99, (1, 12))
    if name in TEXT or name in TEXT_LATER:
        return net, {"input_ids": ids}
    if name in BOTH or name in BOTH_LATER:
        return net, {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    size = net.config.image_size if hasattr(net.config, "image_size") else 32
    images = torch.randn(1, 3, *([size] * 2 if isinstance(size, int) else size))
    if name == "WhisperModel":
        frames = torch.randn(1, net.config.num_mel_bins, 2 * net.config.max_source_positions)
        return net, {"input_features": frames, "decoder_input_ids": ids[:, :6]}
    if name == "Wav2Vec2Model":
        return net, {"input_values": torch.randn(1, 800)}
    if name in ("CLIPModel", "SiglipModel"):
        return net, {"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)}
    return net, {"pixel_values": images}
