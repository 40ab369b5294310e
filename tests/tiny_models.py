"""Tiny models of every family, made from their configs, with the families' own processor classes.

Weights are random (seeded); see ``tiny_tokenizers`` for the texts. Built once per test session.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

import tiny_newer_models as newer
import tiny_tokenizers as tt
from tiny_parts import (
    LAYERS,
    ROPE,
    SIDE,
    SIZE,
    Pair,
    qwen_ids,
    qwen_parts,
    qwen_tokenizer,
    text_config,
    vision_config,
)


def llava() -> Pair:
    tokenizer = tt.sentencepiece_tokenizer([], image_token="<image>", bos_token="<s>")
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIZE),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tt.LLAVA,
    )
    config = hf.LlavaConfig(
        vision_config=vision_config("clip_vision_model"),
        text_config=text_config("llama"),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-2,
        image_seq_length=16,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> Pair:
    tokenizer = tt.sentencepiece_tokenizer([], image_token="<image>", bos_token="<s>")
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": SIDE}, crop_size=SIZE, image_grid_pinpoints=grid
        ),
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tt.LLAVA,
    )
    config = hf.LlavaNextConfig(
        vision_config=vision_config("clip_vision_model"),
        # A sliding window, as LLaVA-NeXT on the first Mistral has it.
        text_config=text_config("mistral", sliding_window=40),
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
        image_seq_length=16,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def llava_onevision() -> Pair:
    tokenizer = tt.byte_level_tokenizer(
        ["<|im_start|>", "<|im_end|>"], image_token="<image>", video_token="<video>"
    )
    grid = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=SIZE, image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=SIZE),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=tt.ONEVISION,
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=text_config("qwen2"),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=grid,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def qwen2_vl() -> Pair:
    tokenizer = qwen_tokenizer()
    processor = hf.Qwen2VLProcessor(**qwen_parts(tokenizer, hf.Qwen2VLVideoProcessor(patch_size=7)))
    config = hf.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "patch_size": 7}
        | {"hidden_size": 64, "mlp_ratio": 2},
        text_config=text_config(
            "qwen2_vl_text", rope_parameters={**ROPE, "mrope_section": [2, 3, 3]}
        ),
        **qwen_ids(tokenizer),
    )
    return hf.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> Pair:
    tokenizer = qwen_tokenizer()
    processor = hf.Qwen2_5_VLProcessor(
        **qwen_parts(tokenizer, hf.Qwen2VLVideoProcessor(patch_size=7))
    )
    config = hf.Qwen2_5_VLConfig(
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 7}
        | {"intermediate_size": 48, "out_hidden_size": 64, "window_size": 28}
        | {"fullatt_block_indexes": [1]},
        text_config=text_config(
            "qwen2_5_vl_text", rope_parameters={**ROPE, "mrope_section": [2, 3, 3]}
        ),
        **qwen_ids(tokenizer),
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> Pair:
    tokenizer = qwen_tokenizer()
    processor = hf.Qwen3VLProcessor(**qwen_parts(tokenizer, hf.Qwen3VLVideoProcessor(patch_size=7)))
    config = hf.Qwen3VLConfig(
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 7}
        | {"intermediate_size": 48, "out_hidden_size": 64, "num_position_embeddings": 36}
        | {"deepstack_visual_indexes": [0, 1]},
        text_config=text_config(
            "qwen3_vl_text",
            rope_parameters={**ROPE, "mrope_section": [2, 3, 3], "mrope_interleaved": True},
        ),
        **qwen_ids(tokenizer),
    )
    return hf.Qwen3VLForConditionalGeneration(config), processor


def internvl(text: str = "qwen2") -> Pair:
    tokenizer = tt.byte_level_tokenizer(
        ["<|im_start|>", "<|im_end|>"],
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=SIZE, max_patches=2),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=SIZE),
        image_seq_length=4,
        chat_template=tt.INTERNVL,
    )
    config = hf.InternVLConfig(
        vision_config=vision_config(
            "internvl_vision", image_size=[SIDE, SIDE], patch_size=[7, 7], use_mean_pooling=False
        ),
        text_config=text_config(text),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _idefics_tokenizer(begin: str) -> Any:
    rows = [f"<row_{row}_col_{col}>" for row in range(1, 3) for col in range(1, 3)]
    return tt.byte_level_tokenizer(
        rows,
        bos_token=begin,
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )


def _idefics_parts(tokenizer: Any) -> dict[str, Any]:
    return {
        "tokenizer": tokenizer,
        "image_seq_len": 4,
        "chat_template": tt.IDEFICS,
    }


def _tiles() -> dict[str, Any]:
    return {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}}


def idefics3() -> Pair:
    tokenizer = _idefics_tokenizer("<|begin_of_text|>")
    processor = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessor(**_tiles()), **_idefics_parts(tokenizer)
    )
    config = hf.Idefics3Config(
        vision_config=vision_config("idefics3_vision"),
        text_config=text_config("llama"),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    return hf.Idefics3ForConditionalGeneration(config), processor


def smolvlm() -> Pair:
    tokenizer = _idefics_tokenizer("<|im_start|>")
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**_tiles()),
        video_processor=hf.SmolVLMVideoProcessor(),
        **_idefics_parts(tokenizer),
    )
    config = hf.SmolVLMConfig(
        vision_config=vision_config("smolvlm_vision"),
        text_config=text_config("llama"),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def gemma3() -> Pair:
    tokenizer = tt.sentencepiece_tokenizer(
        ["<start_of_turn>", "<end_of_turn>"],
        bos_token="<bos>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size=SIZE),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=tt.GEMMA,
    )
    config = hf.Gemma3Config(
        vision_config=vision_config("siglip_vision_model", vision_use_head=False),
        text_config=text_config(
            "gemma3_text",
            query_pre_attn_scalar=16,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        ),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def mllama() -> Pair:
    special = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>"]
    tokenizer = tt.byte_level_tokenizer(
        special, bos_token="<|begin_of_text|>", image_token="<|image|>"
    )
    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessor(size=SIZE, max_image_tiles=2),
        tokenizer=tokenizer,
        chat_template=tt.MLLAMA,
    )
    text = text_config("mllama_text_model", cross_attention_layers=[1, 4], bos_token_id=0)
    config = hf.MllamaConfig(
        vision_config={"hidden_size": 32, "attention_heads": 2, "intermediate_size": 48}
        | {"num_hidden_layers": 2, "num_global_layers": 1, "image_size": SIDE, "patch_size": 7}
        | {"vision_output_dim": 64, "intermediate_layers_indices": [1], "max_num_tiles": 2}
        | {"supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]},
        # The picture token has its place after the vocabulary that the head can predict.
        text_config={**text, "vocab_size": tt.VOCABULARY, "pad_token_id": tokenizer.pad_token_id},
        image_token_index=tokenizer.image_token_id,
    )
    model = hf.MllamaForConditionalGeneration(config)
    with torch.no_grad():
        # Cross-attention starts gated shut; opened, the pictures matter.
        for name, value in model.named_parameters():
            if "gate" in name and value.numel() == 1:
                value.fill_(0.5)
    return model, processor


def _pixtral_processor() -> Any:
    tokenizer = tt.byte_level_tokenizer(
        ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
        bos_token="<s>",
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
    )
    return tokenizer, hf.PixtralImageProcessor(size={"longest_edge": 42}, patch_size=7)


def pixtral() -> Pair:
    tokenizer, images = _pixtral_processor()
    processor = hf.PixtralProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=7, chat_template=tt.MISTRAL
    )
    config = hf.LlavaConfig(
        vision_config=vision_config(
            "pixtral", image_size=42, head_dim=16, rope_parameters=dict(ROPE)
        ),
        text_config=text_config("mistral", sliding_window=None),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return hf.LlavaForConditionalGeneration(config), processor


def mistral3() -> Pair:
    tokenizer, images = _pixtral_processor()
    processor = hf.PixtralProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=7,
        spatial_merge_size=2,
        chat_template=tt.MISTRAL,
    )
    config = hf.Mistral3Config(
        vision_config=vision_config(
            "pixtral", image_size=42, head_dim=16, rope_parameters=dict(ROPE)
        ),
        text_config=text_config("mistral", sliding_window=None),
        image_token_index=tokenizer.image_token_id,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return hf.Mistral3ForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[], Pair]] = {
    "llava": llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "mllama": mllama,
    "pixtral": pixtral,
    "mistral3": mistral3,
    "qwen2_5_omni": newer.qwen2_5_omni,
    "qwen3_vl_moe": newer.qwen3_vl_moe,
    "internvl3_5": functools.partial(internvl, "qwen3"),
    "glm4v": newer.glm4v,
    "glm4v_moe": newer.glm4v_moe,
    "glm46v": newer.glm46v,
    "llama4": newer.llama4,
    "gemma3n": newer.gemma3n,
    "kimi_k25": newer.kimi_k25,
    "molmo2": newer.molmo2,
}
FAMILIES = sorted(BUILDERS)
#: Those whose classes differ from another family's in what the defences do not touch.
_ALIKE = {"glm46v", "glm4v_moe", "internvl3_5", "qwen3_vl_moe", "smolvlm"}


def every_family(*everyday: str) -> list[Any]:
    """Parameters of a test for all families; those not named are left to the long suite."""
    short = set(everyday) or set(FAMILIES) - _ALIKE
    return [
        family if family in short else pytest.param(family, marks=pytest.mark.long)
        for family in FAMILIES
    ]


@functools.cache
def tiny(family: str) -> Pair:
    """(model, processor) of a family: seeded, in evaluation mode, on the CPU."""
    return fresh(family)


def fresh(family: str) -> Pair:
    """As :func:`tiny`, with a model of its own, which a test may change."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = BUILDERS[family]()
    return model.eval(), processor
