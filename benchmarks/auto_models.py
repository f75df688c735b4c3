"""Models of transformers that need no settings of their own here: their configs are made small.

    uv run --extra transformers python benchmarks/auto_models.py

tries all models of ``AutoModel`` and prints those that can be built so and take one of a few
inputs. ``NAMES`` are those that were built when docs/coverage.md was measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import nn

LARGEST = 50e6  # parameters


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


# Sizes by the names that configs give them.
SMALL = {
    **dict.fromkeys(("vocab_size",), 99),
    **dict.fromkeys(
        words("hidden_size d_model n_embd dim embedding_size word_embed_proj_dim embed_dim"),
        64,
    ),
    **dict.fromkeys(
        words(
            "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers "
            "num_decoder_layers num_encoder_layers"
        ),
        2,
    ),
    **dict.fromkeys(
        words(
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads "
            "decoder_attention_heads"
        ),
        4,
    ),
    "num_key_value_heads": 2,
    **dict.fromkeys(
        words("intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim hidden_dim d_ff d_inner"),
        128,
    ),
    **dict.fromkeys(["d_kv", "head_dim"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions"], 64),
    "image_size": 32,
    "patch_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "num_local_experts": 4,
    "rotary_dim": 8,
    "max_source_positions": 50,
    "num_mel_bins": 16,
}
# Further sizes, for latent attention and mixtures of experts.
MORE = {
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("n_routed_experts", "num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 64),
}

NAMES = frozenset(
    words("""
    AfmoeModel Aimv2VisionModel Apertus1p5TextModel ApertusModel ArceeModel AriaModel
    AriaTextModel AudioFlamingo3Model AyaVisionModel BeamModel BertGenerationEncoder BertModel
    BigBirdPegasusModel BioGptModel BitModel BitNetModel BlenderbotSmallModel BloomModel
    CLIPTextModel CLIPVisionModel CamembertModel ChineseCLIPVisionModel CodeGenModel
    Cohere2Model Cohere2MoeModel Cohere2VisionModel CohereModel Cosmos3OmniModel CpmAntModel
    CvtModel CwmModel DINOv3ConvNextModel DINOv3ViTModel DPRQuestionEncoder DPTModel
    Data2VecAudioModel Data2VecTextModel Data2VecVisionModel DebertaModel DeepseekV4Model
    DeepseekVLHybridModel DeepseekVLModel DiffLlamaModel Dinov2WithRegistersModel
    DistilBertModel DogeModel DonutSwinModel DoryModel EncodecModel Ernie4_5Model
    Ernie4_5_MoeModel ErnieModel EsmModel EuroBertModel EvollaModel Exaone4Model Exaone4_5_Model
    ExaoneMoeModel FSMTModel FalconH1Model FalconMambaModel FastSpeech2ConformerModel
    FlaubertModel FlavaModel FlexOlmoModel FlintModel FocalNetModel FuyuModel GLPNModel
    GPT2Model GPTBigCodeModel GPTJModel GPTNeoXJapaneseModel GPTNeoXModel Gemma2Model
    Gemma3Model Gemma3TextModel Gemma4AudioModel GemmaModel GitModel Glm4Model Glm4MoeModel
    GlmAsrEncoder GlmAsrModel GlmModel GotOcr2Model GptOssModel GradiumPhononTTSModel
    GraniteDoclingTextModel GraniteModel GraniteMoeModel GraniteMoeSWAModel
    GraniteMoeSharedModel GraniteSWAModel GraniteSpeechModel GraniteSpeechPlusModel GteModel
    HGNetV2Backbone HYV3Model HYV4Model HeliumModel HiggsAudioV2ForConditionalGeneration
    HrmTextModel HubertModel HunYuanDenseV1Model HunYuanMoEV1Model HyperCLOVAXModel
    HyperCLOVAXVisionV2Model IJepaModel Idefics2Model Idefics3Model ImageGPTModel
    Inkling2LoopTextModel Inkling2TextModel InklingModel InklingTextModel InternVLModel
    InternVLVisionModel Jais2Model JetMoeModel JinaEmbeddingsV3Model Kolibri1Model
    Kosmos2_5Model LagunaModel LaraMiniModel LasrEncoder LasrForCTC Lfm2Model Lfm2VlModel
    LightOnOcrModel Llama4TextModel LlamaModel LlavaModel LlavaNextModel LlavaNextVideoModel
    LlavaOnevisionModel LongformerModel MBartModel MLCDVisionModel MT5Model MambaModel
    MarkupLMModel MaskFormerModel MaskFormerSwinModel MellumModel MiMoV2FlashModel
    MimiEncoderModel MiniCPMOcrModel MiniCPMV4_6Model MiniCPMV4_7Model MiniMaxM2Model
    MiniMaxM3VLModel MiniMaxM3VLTextModel MiniMaxModel Ministral3Model MinistralModel
    Mistral3Model MistralModel MixtralModel MllamaModel MobileNetV1Model MobileNetV2Model
    ModernBertDecoderModel ModernVBertModel Molmo2TextModel MoshiModel
    MossTranscribeDiarizeAudioModel MossTranscribeDiarizeModel MptModel MraModel
    MuseGlimmerModel MuseGlimmerTextModel MuseSparkTextModel MusicFlamingoModel MvpModel
    NanoChatModel Nemotron3DiarizationAudioModel Nemotron3_5TranscribeAsrAudioModel
    NemotronAsrStreamingEncoder NemotronModel NeoMMEModel NllbMoeModel NomicBertModel OPTModel
    Olmo2Model Olmo3Model OlmoHybridModel OlmoModel OlmoeModel OmniASRAudioModel OmniASRCTCModel
    OmniASRModel OpenAIPrivacyFilterModel Ovis2Model PLBartModel PPOCRV5MobileRecModel
    PPOCRV5ServerRecModel PPOCRV6SmallRecModel PPOCRV6TinyRecModel PaliGemmaModel
    ParakeetEncoder ParakeetForCTC PeAudioEncoder PeVideoEncoder PegasusXModel PersimmonModel
    Phi3Model Phi4MultimodalModel PhiModel PhimoeModel PixioModel PixtralVisionModel
    PocketTTSAudioTokenizerEncoderModel PocketTTSModel PvtModel PvtV2Model QianfanOCRModel
    QianfanOCRVisionModel Qwen2AudioEncoder Qwen2AudioModel Qwen2Model Qwen2MoeModel
    Qwen3ASRModel Qwen3Model Qwen3MoeModel Qwen3OmniMoeThinkerModel Qwen3VLModel Qwen3VLMoeModel
    Qwen3VLMoeTextModel Qwen3VLTextModel Qwen3_5Model Qwen3_5TextModel RadioModel RegNetModel
    RfDetrModel RoCBertModel RobertaModel RobertaPreLayerNormModel RwkvModel SEWDModel SEWModel
    Sam3LiteTextTextModel Sam3ViTModel Sam3VisionModel SamHQVisionModel SamVisionModel
    Sapiens2Model SeedOssModel SegformerModel SiglipVisionModel SmolLM3Model SmolVLMModel
    SolarOpenModel SplinterModel StableLmModel Starcoder2Model SwiftFormerModel Swin2SRModel
    T5Gemma2Model T5GemmaModel T5Model TapasModel TextNetModel TimesFm2_5Model TimesformerModel
    TimmWrapperModel Tipsv2Model Tipsv2TextModel Tipsv2VisionModel UltraVBertModel
    UltrabertModel UniSpeechModel UniSpeechSatModel UnivNetModel UnlimitedOcrModel VJEPA2Model
    VaultGemmaModel ViTMAEModel ViTMSNModel ViTModel VideoLlama3Model VideoLlavaModel
    VipLlavaModel VisualBertModel VitDetModel VitsModel VoxtralEncoder VoxtralModel
    VoxtralRealtimeEncoder Wav2Vec2BertModel Wav2Vec2ConformerModel WavLMModel
    WavTokenizerEncoderModel XGLMModel XLMRobertaModel XLMRobertaXLModel YolosModel YosoModel
    """)
)


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
