"""Frozen configurations. Derived values are properties, and the command line's flags are generated from the fields.

The three architecture classes are read from a checkpoint by `ternvl.checkpoint.source`; the user sets the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ternvl.access import AccessConfig
from ternvl.setting import setting

OFFICIAL_SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The default system message of the official template `internvl2_5` (OpenGVLab/InternVL, conversation.py)."""

LORA_DTYPES = ("auto", "float32", "bfloat16", "int8")
"""The values of `EngineConfig.lora_dtype`."""


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A vision tower like InternViT-300M: LayerNorm, fused qkv with bias, layer scale, class token."""

    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def grid(self) -> int:
        """The number of patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """The number of patches of a tile."""
        return self.grid**2


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    """A Qwen2.5 decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1_000_000.0
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = False
    """Whether the embeddings are also the output head of a checkpoint that has no head of its own."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """An InternVL3 model: sizes, how images become tiles, and how a conversation begins and ends."""

    vision: VisionConfig
    language: LanguageConfig
    downsample_ratio: float = 0.5
    min_dynamic_patch: int = 1
    max_dynamic_patch: int = 12
    use_thumbnail: bool = True
    system_message: str = OFFICIAL_SYSTEM_MESSAGE
    dtype: str = "bfloat16"
    """The type of the checkpoint's tensors: "bfloat16", "float16" or "float32"."""
    defaults: dict[str, float | int | bool] = field(default_factory=dict)
    """Sampling defaults of the checkpoint's `generation_config.json`: temperature, top_p, top_k, repetition_penalty."""

    @property
    def tile_size(self) -> int:
        """The side of a tile in pixels."""
        return self.vision.image_size

    @property
    def tokens_per_tile(self) -> int:
        """The number of context tokens that a tile becomes."""
        return int(self.vision.num_patches * self.downsample_ratio**2)

    @property
    def projector_input_size(self) -> int:
        """The number of channels after the pixel shuffle."""
        return int(self.vision.hidden_size / self.downsample_ratio**2)


@dataclass(frozen=True, slots=True)
class LoadingConfig:
    """How a model is loaded. The fields are flags of the command line."""

    dtype: str = setting("auto", "The precision of the weights: auto, bfloat16, float16 or float32.")
    quantization: str = setting(
        "none",
        "The quantisation of the weights: none, int8, int4, checkpoint (a checkpoint's own 4 bits are kept), or auto, "
        "which for large models on a CPU that is fast at it is checkpoint if there are such bits, else int8.",
    )
    calibration: Path | None = setting(None, "A folder of images and texts on which quantisation measures its errors.")
    conversion: str = setting(
        "first",
        "When a model that was not quantised before is converted: first, or beside unquantised answers, for the next "
        "start.",
    )
    device: str = setting("auto", "The device that the model runs on: auto, cpu, cuda or cuda:1.")
    threads: int | None = setting(
        None, "The threads that compute on a CPU; by default one for each core that this process may use."
    )
    cpu_affinity: str | None = setting(
        None, "The processors that this process runs on, such as 0,2-3; by default those that the system allows."
    )
    revision: str | None = setting(None, "The branch, tag or commit of a model on the hub.")
    reference: bool = setting(False, "Use the slowest correct computation instead of the engine.")
    max_dynamic_patch: int | None = setting(
        None, "The most tiles that an image is cut into; by default the checkpoint's number."
    )
    locked: Path | None = setting(
        None, "A file of `ternvl lock`: files, adapters, settings and packages that differ from it are refused."
    )
    locked_packages: str = setting(
        "refuse", "What happens to packages of other versions than the lock's: refuse or warn."
    )


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How requests are run. The fields are flags of the command line, with vLLM's names for the same settings."""

    max_model_len: int = setting(16_384, "The context length in tokens: prompt and answer together.")
    max_num_seqs: int = setting(16, "The most sequences that run at the same time.")
    max_num_batched_tokens: int | None = setting(
        None,
        "The most tokens that a step computes; by default 256 on a CPU, 512 on a CPU with a quantised model, 2048 on a "
        "GPU.",
    )
    max_num_batched_tiles: int | None = setting(
        None, "The most image tiles that are encoded between two steps; by default 1 on a CPU, 16 on a GPU."
    )
    block_size: int = setting(16, "The number of tokens in a block of the KV cache.")
    kv_cache_dtype: str = setting(
        "auto",
        "The type of the KV cache: int8, model (the type that the model computes in), or auto, which is int8 for a "
        "quantised model on a CPU.",
    )
    kv_cache_memory: int | None = setting(
        None, "The size of the KV cache in bytes; by default enough for all sequences, within a quarter of free memory."
    )
    enable_prefix_caching: bool = setting(True, "Keep keys and values of prompts for later prompts that begin alike.")
    image_cache_memory: int = setting(256 * 1024**2, "The bytes of image features that are kept for later requests.")
    image_cache_dir: Path | None = setting(None, "A folder where image features are kept for later starts as well.")
    image_cache_dir_size: int = setting(4 * 1024**3, "The most bytes of image features in that folder.")
    speculation: str = setting(
        "auto",
        "Guess tokens of an answer from earlier tokens and compute several at once: ngram, off, or auto, which is "
        "ngram on a CPU. Answers stay the same.",
    )
    num_speculative_tokens: int = setting(
        7, "The most tokens that a step guesses, less one for each further token that the step computes."
    )
    max_queue: int = setting(256, "The most requests that may wait; further requests are refused with 429.")
    max_queue_wait: float | None = setting(
        None, "The most seconds that a request may be expected to wait; others are refused with 429; by default any."
    )
    seed: int = setting(0, "The seed of requests that have none.")
    max_loras: int = setting(
        8, "The most LoRA adapters in memory; the least recently used one is read again when it is needed."
    )
    max_lora_rank: int = setting(64, "The largest rank that a LoRA adapter may have.")
    lora_dtype: str = setting(
        "auto",
        "The type of LoRA adapters in memory: float32, bfloat16, int8, or auto, which is int8 with a quantised model "
        "and otherwise the type of their files.",
    )


@dataclass(frozen=True, slots=True)
class ServerConfig(AccessConfig):
    """How the HTTP server behaves. The fields are flags of the command line."""

    host: str = setting("127.0.0.1", "The address to listen on; 0.0.0.0 opens the server to the network.")
    port: int = setting(8000, "The port to listen on; 0 takes a free one.")
    served_model_name: tuple[str, ...] = setting(
        (), "The name of the model in requests and answers; by default its own name (repeatable)."
    )
    lora: tuple[str, ...] = setting(
        (),
        "A LoRA adapter as NAME=PATH, where PATH is a folder saved by PEFT; or french or inventory, the adapters of "
        "the embedded model (repeatable).",
    )
    lora_dir: Path | None = setting(
        None, "A folder with one subfolder for each LoRA adapter, named like it; uploads are stored there."
    )
    allowed_lora_dirs: tuple[str, ...] = setting(
        (), "Also load LoRA adapters over HTTP from below this folder, as from --lora-dir (repeatable)."
    )
    allow_lora_upload: bool = setting(False, "Accept uploads of LoRA adapters; needs --lora-dir and --admin-key.")
    max_lora_bytes: int = setting(512 * 1024**2, "The most bytes of an uploaded LoRA adapter.")
    strict: bool = setting(False, "Refuse requests with fields that are unknown or have no effect.")
    allowed_origins: tuple[str, ...] = setting((), "A web origin whose pages may call, or * for all (repeatable).")
    playground: bool = setting(True, "Serve a web page at / on which the model can be tried in a browser.")
    max_body_bytes: int = setting(64 * 1024**2, "The most bytes of a request body.")
    max_concurrent_requests: int = setting(256, "The most HTTP requests at the same time; others are refused with 429.")
    max_answer_tokens: int = setting(524_288, "The most tokens of all answers to a request together (n x max_tokens).")
    prompt_workers: int = setting(4, "The most processes that decode and tile images.")
    image_decode_timeout: float = setting(10.0, "The most seconds that decoding and tiling an image may take.")
    max_total_body_bytes: int = setting(256 * 1024**2, "The most bytes of the bodies of all requests together.")
    max_connections: int | None = setting(None, "The most connections; by default what the limit of open files allows.")
    max_connections_per_client: int | None = setting(None, "The most connections of one address; not behind a proxy.")
    head_timeout: float = setting(10.0, "The most seconds that the headers of a request may take to arrive.")
    body_timeout: float = setting(60.0, "The most seconds that a request body may take to arrive.")
    min_body_rate: int = setting(1_000, "The least bytes per second at which a request body must arrive.")
    write_timeout: float = setting(60.0, "The most seconds that a client may take to read a part of its answer.")
    request_timeout: float | None = setting(None, "The most seconds that a request may take; without it, no limit.")
    stuck_timeout: float = setting(120.0, "The seconds after which a step is stuck to /health; a quarter to /ready.")
    drain_timeout: float = setting(30.0, "The most seconds that accepted requests have to finish at a stop.")
    log_level: str = setting("info", "The log level: debug, info, warning or error.")
    log_format: str = setting("text", "The form of the log: text, or json for one JSON object a line.")
