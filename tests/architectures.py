"""A small random model of every causal language model that transformers knows, from its own configuration class."""

from typing import Any

import torch
import transformers as tf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 64
LARGEST = 5_000_000
"""Parameters of a model that counts as small: a configuration whose names are unknown here stays large."""

# Names that configurations use for the same few sizes. A name is set where the default has a number there.
SIZES: dict[str, Any] = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], VOCAB),
    **dict.fromkeys(["hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "dim_model", "d_embed"], 32),
    **dict.fromkeys(["word_embed_proj_dim", "lru_width"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "d_ff", "dim_ff", "decoder_ffn_dim", "ffn_hidden_size"], 64),
    **dict.fromkeys(["intermediate_size_mlp"], 64),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"], 16),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "num_experts", "n_routed_experts", "num_local_experts"], 4),
    **dict.fromkeys(["moe_num_experts", "mamba_n_heads", "state_size", "mamba_d_state"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"], 2),
    **dict.fromkeys(["head_dim", "dim_head", "global_head_dim", "rotary_dim", "query_pre_attn_scalar"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim", "index_topk"], 8),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "v_head_dim", "mamba_d_head"], 16),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx"], 128),
    **dict.fromkeys(["n_group", "topk_group", "first_k_dense_replace"], 1),
    **dict.fromkeys(["sliding_window", "attention_chunk_size"], 16),
    "hidden_size_per_layer_input": 4, "num_kv_shared_layers": 0, "index_n_heads": 2, "is_decoder": True,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
ROTARY = {"rope_type": "default", "rope_theta": 1e4}
EXPLICIT = {"rope_parameters": ROTARY, "head_dim": 8}
AS_MANY_KEYS = {"num_key_value_heads": 4}
SPECIAL: dict[str, dict[str, Any]] = {
    "hunyuan_v1_dense": EXPLICIT,
    "hunyuan_v1_moe": EXPLICIT,
    "ministral": EXPLICIT,
    "axk1": AS_MANY_KEYS,
    "deepseek_v3": AS_MANY_KEYS,
    "glm4_moe_lite": AS_MANY_KEYS,
    "minicpm3": AS_MANY_KEYS,
    "youtu": AS_MANY_KEYS,
    "nemotron": {"num_key_value_heads": 2},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "deepseek_v4": {"num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["full_attention", "full_attention"]},
    "git": {"vision_config": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32}},
}
"""What a model needs besides, where its sizes depend on each other or have no default."""

ALWAYS = ("pad_token_id", "bos_token_id", "eos_token_id")
"""Set even where the default is None."""


def kinds() -> list[str]:
    """The model types of transformers that have a causal language model, but for parts of multimodal models."""
    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if _is_text(kind)]


def _is_text(kind: str) -> bool:
    try:
        config = CONFIG_MAPPING[kind]()
    except Exception:  # needs parts that have no default
        return False
    return config.get_text_config(decoder=True) is config


def small_model(kind: str, **changes: object) -> "tf.PreTrainedModel":
    """A random model of two layers and some thousand parameters. Raises whatever its configuration raises.

    Its weights are scaled up: as initialized, logits are near constant and any mistake in the cache would pass.
    """
    made = CONFIG_MAPPING[kind]
    default = made()
    arguments = {name: size for name, size in SIZES.items() if _is_size(default, name)}
    if "qk_rope_head_dim" in arguments:  # latent attention derives its head sizes
        arguments.pop("head_dim", None)
    if isinstance(types := getattr(default, "layer_types", None), list) and "num_hidden_layers" in arguments:
        several = list(dict.fromkeys(types))
        arguments["num_hidden_layers"] = max(2, len(several))
        arguments["layer_types"] = (2 * several)[: max(2, len(several))]
    config = made(**(arguments | SPECIAL.get(kind, {}) | changes))
    with torch.device("meta"):
        size = sum(weight.numel() for weight in tf.AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{kind}: {size} parameters")
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(5)
    return model


def _is_size(config: Any, name: str) -> bool:
    """Whether the configuration takes a plain number under this name."""
    if isinstance(getattr(type(config), name, None), property):
        return False
    if name in ALWAYS:
        return True
    try:
        value = getattr(config, name, None)
    except Exception:  # differs between layers
        return False
    return value is not None and not isinstance(value, list | dict)
