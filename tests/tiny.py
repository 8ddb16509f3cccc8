"""Tiny random models of many architectures, and tiny real tokenizers: what the tests prune instead of downloads."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 384
BOS, EOS = 0, 1
BLOCKS = 2

_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
_GEMMA = _LLAMA | {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_NEOX = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}

# By architecture: what AutoConfig.for_model takes.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 8},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA | {"head_dim": 8},
    "gemma2": _GEMMA | {"query_pre_attn_scalar": 8},
    "gemma3_text": _GEMMA | {"query_pre_attn_scalar": 8},
    "phi3": _LLAMA | {"pad_token_id": EOS},
    "opt": {
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
    },
    "gpt2": {"n_embd": 32, "n_inner": 48, "n_layer": BLOCKS, "n_head": 4, "n_positions": 128},
    "gpt_neox": _NEOX,
    "bloom": {"hidden_size": 32, "n_layer": BLOCKS, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": 4},
    "olmo2": _LLAMA,
    "olmo3": _LLAMA | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": _LLAMA,
}

_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# Those whose blocks hold more than attention and one MLP: experts, state spaces, shared blocks, another modality.
SPECIAL: dict[str, dict[str, Any]] = {
    "mixtral": _LLAMA | _EXPERTS,
    "qwen2_moe": _LLAMA | _SMALL_EXPERTS | {"shared_expert_intermediate_size": 32},
    "qwen3_moe": _LLAMA | _SMALL_EXPERTS | {"head_dim": 8},
    "deepseek_v3": _LLAMA
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "n_group": 2,
        "topk_group": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 8,
    },
    "granitemoe": _LLAMA | _EXPERTS,
    "gpt_oss": _GEMMA | _EXPERTS,
    "llama4_text": _LLAMA
    | {
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "head_dim": 8,
        "moe_layers": [0, 1],
        "attention_chunk_size": 8,
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": BLOCKS, "state_size": 4, "time_step_rank": 4},
    "jamba": _LLAMA
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "num_mem_blocks": 1,
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "max_position_embeddings": 128,
    },
}

TOKENIZERS = ("adds_bos", "has_bos", "no_bos")


def model(architecture: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A random causal LM in evaluation mode. All its parameters are random, norms and biases too."""
    config = AutoConfig.for_model(
        architecture,
        **{"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS}
        | (ARCHITECTURES | SPECIAL)[architecture]
        | options,
    )
    config.dtype = dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config).float()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
                parameter.data = parameter.data.to(dtype)  # parameters only: rotary frequencies stay float32
    return made.eval()


def tokens(sequences: int = 5, length: int = 24, *, seed: int = 0) -> Tensor:
    """Random token ids (B, L) without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(EOS + 1, VOCABULARY, (sequences, length), generator=generator)


def text(words: int = 4000, *, seed: int = 0) -> str:
    """English-looking text with line and paragraph breaks, digits, and a few characters beyond ASCII."""
    rng = random.Random(seed)
    vocabulary = [
        "the",
        "a",
        "of",
        "and",
        "weight",
        "model",
        "layer",
        "prunes",
        "keeps",
        "small",
        "large",
        "input",
        "row",
        "naïve",
        "50%",
        "2:4",
        "größe",
        "—",
        "零",
        "zero",
    ]
    return "".join(rng.choice(vocabulary) + rng.choice([" "] * 12 + [". ", ",\n", "\n\n"]) for _ in range(words))


@cache
def _byte_level_bpe() -> str:
    """A byte-level BPE as JSON: two special tokens, 256 bytes, and merges up to VOCABULARY."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text(words=2000, seed=1)], trainer)
    return made.to_str()


def tokenizer(kind: str = "adds_bos") -> PreTrainedTokenizerFast:
    """One of TOKENIZERS: puts <s> before a text by itself, only knows it, or has none."""
    made = Tokenizer.from_str(_byte_level_bpe())
    if kind == "adds_bos":
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    special = {"eos_token": "</s>"} if kind == "no_bos" else {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def save(folder: Path, architecture: str = "llama", *, kind: str = "adds_bos", **options: Any) -> Path:
    """A checkpoint folder with a tiny model and its tokenizer."""
    model(architecture, **options).save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder
