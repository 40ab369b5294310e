"""The mini LVLM's architecture, tokenizer and processor, in transformers' own LLaVA classes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final, cast

import torch
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from ..concepts import ALL_NAMES
from ..phrasing import all_texts
from .clip_data import GRID, IMAGE_SIDE, PATCH
from .train_clip import MEAN, STD, VISION_WIDTH, WEIGHTS_NAME
from .vocabulary import BEGIN, END, PAD, UNKNOWN, text_tokenizer

IMAGE, USER, ASSISTANT, SYSTEM, TOOL = "<image>", "<user>", "<assistant>", "<system>", "<tool>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
IMAGE_TOKENS: Final = GRID * GRID
CONTEXT: Final = 1024
VISION_LAYERS: Final = 6

CHAT_TEMPLATE: Final = (
    "{{ bos_token }}{% if tools %}<system> tools:{% for tool in tools %} {{ tool.function.name }}("
    "{{ tool.function.parameters.properties | join(', ') }}){% endfor %}.{% endif %}"
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['content'] is string %}"
    "{% if message['content'] %} {{ message['content'] }}{% endif %}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}{{ '<tool_call>\\n' }}"
    "{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}"
    "{{ '\\n</tool_call>' }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
"""Tools by name and arguments alone: so small a model has learnt what each does. Calls in the form
that Hermes began and Qwen writes."""


def lvlm_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the mini world's phrasings."""
    words = {word for text in all_texts() for word in re.findall(r"[a-z0-9]+", text.lower())}
    specials = [IMAGE, USER, ASSISTANT, SYSTEM, TOOL]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=text_tokenizer(
            words | set(ALL_NAMES), specials=specials, marks=[CALL, CALL_END]
        ),
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        additional_special_tokens=specials,
        model_max_length=CONTEXT,
        padding_side="left",
        extra_special_tokens={"image_token": IMAGE},
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def lvlm_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """LLaVA's processor at the mini world's size."""
    side = {"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    images = CLIPImageProcessor(
        size=side, do_center_crop=False, image_mean=list(MEAN), image_std=list(STD)
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,  # the class token, which the strategy leaves out
    )


def lvlm_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """A LLaVA of 5.6M parameters: the mini CLIP's vision tower, a projector, six Llama layers."""
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=4 * VISION_WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=6,
        image_size=IMAGE_SIDE,
        patch_size=PATCH,
        hidden_act="gelu",
        projection_dim=128,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        attention_dropout=0.1,  # in training alone: answers that hang on no single attention weight
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.vocab[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=False,
    )


def vision_weights(clip_folder: Path) -> dict[str, torch.Tensor]:
    """The mini CLIP's vision tower under the names of transformers' CLIPVisionModel."""
    source = {k: v.float() for k, v in load_file(clip_folder / WEIGHTS_NAME).items()}
    tower = {
        "embeddings.class_embedding": source["visual.class_embedding"],
        "embeddings.patch_embedding.weight": source["visual.conv1.weight"],
        "embeddings.position_embedding.weight": source["visual.positional_embedding"],
    }
    pairs = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
    for layer in range(VISION_LAYERS):
        theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        pairs |= {
            f"{ours}.self_attn.out_proj": f"{theirs}.attn.out_proj",
            f"{ours}.layer_norm1": f"{theirs}.ln_1",
            f"{ours}.layer_norm2": f"{theirs}.ln_2",
            f"{ours}.mlp.fc1": f"{theirs}.mlp.c_fc",
            f"{ours}.mlp.fc2": f"{theirs}.mlp.c_proj",
        }
        for part in ("weight", "bias"):
            joint = source[f"visual.{theirs}.attn.in_proj_{part}"]
            for name, value in zip("qkv", joint.chunk(3), strict=True):
                tower[f"{ours}.self_attn.{name}_proj.{part}"] = value
    for ours, theirs in pairs.items():
        for part in ("weight", "bias"):
            tower[f"{ours}.{part}"] = source[f"visual.{theirs}.{part}"]
    return tower


def build_lvlm(clip_folder: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """An untrained mini LVLM on the trained, frozen vision tower of the mini CLIP."""
    tokenizer = lvlm_tokenizer()
    model = LlavaForConditionalGeneration(lvlm_config(tokenizer))
    tower = cast(Any, model.model.vision_tower)
    tower = getattr(tower, "vision_model", tower)  # the wrapper went away in transformers 5
    tower.load_state_dict(vision_weights(clip_folder), strict=False)
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    return model, lvlm_processor(tokenizer)
