"""What the tiny models are built of."""

from __future__ import annotations

from typing import Any

import transformers as hf

import tiny_tokenizers as tt

LAYERS = 6
SIDE = 28
SIZE = {"height": SIDE, "width": SIDE}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
Pair = tuple[Any, Any]


def text_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A small decoder with grouped key heads."""
    return {
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "vocab_size": tt.VOCABULARY,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.15,
        "tie_word_embeddings": False,
        **changes,
    }


def vision_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """A small CLIP or SigLIP vision tower: 4 x 4 patches."""
    return {
        "model_type": model_type,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 7,
        "num_channels": 3,
        **changes,
    }


def qwen_tokenizer() -> Any:
    return tt.byte_level_tokenizer(
        ["<|im_start|>", "<|im_end|>"],
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )


def qwen_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        "vision_start_token_id": tokenizer.vision_start_token_id,
        "vision_end_token_id": tokenizer.vision_end_token_id,
    }


def qwen_parts(tokenizer: Any, video_processor: Any) -> dict[str, Any]:
    size = {"shortest_edge": 28 * 28, "longest_edge": 42 * 42}
    return {
        "image_processor": hf.Qwen2VLImageProcessor(size=size, patch_size=7),
        "tokenizer": tokenizer,
        "video_processor": video_processor,
        "chat_template": tt.QWEN,
    }
