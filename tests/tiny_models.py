"""Tiny models of every family, made from their configs, with the families' own processor classes.

Weights are random (seeded), tokenizers are trained on a few sentences, chat templates have the
shape of the families' real ones. Built once per test session.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "As an AI assistant, I must keep every answer safe.",
    "Describe the picture in one sentence. What is in the image? How many objects are there?",
    "Tell me how to make the object in the image. The quick brown fox jumps over the lazy dog.",
    "user assistant system USER: ASSISTANT: You are a helpful assistant.",
]
VOCABULARY = 480
LAYERS = 6
IMAGE_SIDE = 28


def byte_level_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of GPT-2's kind (Qwen, Llama 3, Idefics3, InternVL, Mistral)."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _wrapped(backend, special, named)


def sentencepiece_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's kind (Llama 2, Gemma): spaces become a visible mark."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(special),
        special_tokens=["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]],
        show_progress=False,
    )
    backend.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    return _wrapped(backend, special, named)


def _wrapped(
    backend: Tokenizer, special: list[str], named: dict[str, str]
) -> PreTrainedTokenizerFast:
    standard = {key: named.pop(key) for key in list(named) if key in ("bos_token", "unk_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token=named.pop("eos_token", "</s>"),
        extra_special_tokens=named,
        **standard,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def text_config(**changes: Any) -> dict[str, Any]:
    """A small decoder with grouped key heads."""
    return {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "vocab_size": VOCABULARY + 64,
        "bos_token_id": 0,
        "eos_token_id": None,
        "pad_token_id": None,
        "initializer_range": 0.15,
        **changes,
    }


def vision_config(**changes: Any) -> dict[str, Any]:
    """A small CLIP or SigLIP vision tower."""
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIDE,
        "patch_size": 7,
        "num_channels": 3,
        **changes,
    }


def _size() -> dict[str, int]:
    return {"height": IMAGE_SIDE, "width": IMAGE_SIDE}


LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def llava() -> tuple[Any, Any]:
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = sentencepiece_tokenizer(["<image>"], image_token="<image>", bos_token="<s>")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": IMAGE_SIDE}, crop_size=_size()),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    )
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **vision_config()},
        text_config={"model_type": "llama", **text_config()},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_seq_length=16,
    )
    return LlavaForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": llava,
}


@functools.cache
def tiny(family: str) -> tuple[Any, Any]:
    """(model, processor) of a family: seeded, in evaluation mode, on the CPU."""
    torch.manual_seed(0)
    model, processor = BUILDERS[family]()
    return model.eval(), processor
