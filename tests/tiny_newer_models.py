"""Tiny models of the families that came later; see ``tiny_models``."""

from __future__ import annotations

from typing import Any

import transformers as hf

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

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def qwen3_vl_moe() -> Pair:
    tokenizer = qwen_tokenizer()
    processor = hf.Qwen3VLProcessor(**qwen_parts(tokenizer, hf.Qwen3VLVideoProcessor(patch_size=7)))
    config = hf.Qwen3VLMoeConfig(
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 7}
        | {"intermediate_size": 48, "out_hidden_size": 64, "num_position_embeddings": 36}
        | {"deepstack_visual_indexes": [0, 1]},
        text_config=text_config(
            "qwen3_vl_moe_text",
            rope_parameters={**ROPE, "mrope_section": [2, 3, 3], "mrope_interleaved": True},
            **_EXPERTS,
        ),
        **qwen_ids(tokenizer),
    )
    return hf.Qwen3VLMoeForConditionalGeneration(config), processor


def qwen2_5_omni() -> Pair:
    """The thinker: what reads pictures and writes text; the talker is another model."""
    tokenizer = tt.byte_level_tokenizer(
        ["<|im_start|>", "<|im_end|>"],
        image_token="<|IMAGE|>",
        video_token="<|VIDEO|>",
        audio_token="<|AUDIO|>",
        vision_bos_token="<|vision_bos|>",
        vision_eos_token="<|vision_eos|>",
        audio_bos_token="<|audio_bos|>",
        audio_eos_token="<|audio_eos|>",
    )
    processor = hf.Qwen2_5OmniProcessor(
        **qwen_parts(tokenizer, hf.Qwen2VLVideoProcessor(patch_size=7)),
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=16),
    )
    processor.chat_template = tt.OMNI
    config = hf.Qwen2_5OmniThinkerConfig(
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 7}
        | {"intermediate_size": 48, "out_hidden_size": 64, "window_size": 28}
        | {"fullatt_block_indexes": [1]},
        audio_config={"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
        | {"encoder_ffn_dim": 32, "d_model": 32, "output_dim": 64},
        text_config=text_config(
            "qwen2_5_omni_text", rope_parameters={**ROPE, "mrope_section": [2, 3, 3]}
        ),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        audio_token_index=tokenizer.audio_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        audio_end_token_id=tokenizer.audio_eos_token_id,
    )
    return hf.Qwen2_5OmniThinkerForConditionalGeneration(config), processor


def _glm_tokenizer() -> Any:
    return tt.byte_level_tokenizer(
        ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"],
        image_token="<|image|>",
        video_token="<|video|>",
        image_start="<|begin_of_image|>",
        image_end="<|end_of_image|>",
        video_start="<|begin_of_video|>",
        video_end="<|end_of_video|>",
    )


def _glm(config: Any, text: dict[str, Any], processor: Any, images: Any, videos: Any) -> Pair:
    tokenizer = _glm_tokenizer()
    size = {"shortest_edge": 2 * 28 * 28, "longest_edge": 2 * 42 * 42}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 7, "image_size": SIDE}
    made = config(
        vision_config={**vision, "intermediate_size": 48, "out_hidden_size": 64},
        text_config=text,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_start_token_id=tokenizer.image_start_id,
        image_end_token_id=tokenizer.image_end_id,
        video_start_token_id=tokenizer.video_start_id,
        video_end_token_id=tokenizer.video_end_id,
    )
    parts = processor(
        image_processor=images(size=size, patch_size=7),
        tokenizer=tokenizer,
        video_processor=videos(patch_size=7),
        chat_template=tt.GLM,
    )
    return made, parts


def _glm_text(model_type: str, **changes: Any) -> dict[str, Any]:
    rope = {**ROPE, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    return text_config(model_type, rope_parameters=rope, **changes)


def glm4v() -> Pair:
    config, processor = _glm(
        hf.Glm4vConfig,
        _glm_text("glm4v_text"),
        hf.Glm4vProcessor,
        hf.Glm4vImageProcessor,
        hf.Glm4vVideoProcessor,
    )
    return hf.Glm4vForConditionalGeneration(config), processor


def glm4v_moe() -> Pair:
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    config, processor = _glm(
        hf.Glm4vMoeConfig,
        _glm_text("glm4v_moe_text", **experts),
        hf.Glm4vProcessor,
        hf.Glm4vImageProcessor,
        hf.Glm4vVideoProcessor,
    )
    return hf.Glm4vMoeForConditionalGeneration(config), processor


def glm46v() -> Pair:
    config, processor = _glm(
        hf.Glm46VConfig,
        _glm_text("glm4v_text"),
        hf.Glm46VProcessor,
        hf.Glm46VImageProcessor,
        hf.Glm46VVideoProcessor,
    )
    return hf.Glm46VForConditionalGeneration(config), processor


def llama4() -> Pair:
    special = "header_start header_end eot image_start image_end tile_x_separator tile_y_separator"
    tokenizer = tt.byte_level_tokenizer(
        [f"<|{name}|>" for name in f"{special} image patch".split()],
        bos_token="<|begin_of_text|>",
    )
    processor = hf.Llama4Processor(
        image_processor=hf.Llama4ImageProcessor(size=SIZE, max_patches=4),
        tokenizer=tokenizer,
        patch_size=7,
        pixel_shuffle_ratio=0.5,
        chat_template=tt.LLAMA4,
    )
    config = hf.Llama4Config(
        vision_config=vision_config(
            "llama4_vision_model",
            vision_output_dim=32,
            projector_input_dim=32,
            projector_output_dim=32,
            intermediate_size=128,
        ),
        text_config=text_config(
            "llama4_text",
            intermediate_size=32,
            intermediate_size_mlp=96,
            num_local_experts=4,
            interleave_moe_layer_step=2,
            attention_chunk_size=48,
            no_rope_layer_interval=3,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<|image_start|>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<|image_end|>"),
    )
    return hf.Llama4ForConditionalGeneration(config), processor


def gemma3n() -> Pair:
    tokenizer = tt.sentencepiece_tokenizer(
        ["<start_of_turn>", "<end_of_turn>"],
        bos_token="<bos>",
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
        boa_token="<start_of_audio>",
        eoa_token="<end_of_audio>",
        audio_token="<audio_soft_token>",
    )
    processor = hf.Gemma3nProcessor(
        feature_extractor=hf.Gemma3nAudioFeatureExtractor(feature_size=16),
        image_processor=hf.SiglipImageProcessor(size={"height": 64, "width": 64}),
        tokenizer=tokenizer,
        image_seq_length=4,
        audio_seq_length=4,
        chat_template=tt.GEMMA.replace("<start_of_image>", "<image_soft_token>"),
    )
    config = hf.Gemma3nConfig(
        vision_config={"architecture": "test_convnext", "hidden_size": 64, "vocab_size": 4}
        | {"vocab_offset": tt.VOCABULARY, "do_pooling": False},
        audio_config={"vocab_size": 4, "vocab_offset": tt.VOCABULARY + 4, "hidden_size": 32}
        | {"input_feat_size": 16, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1},
        text_config=text_config(
            "gemma3n_text",
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
            vocab_size_per_layer_input=tt.VOCABULARY,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=2,
            laurel_rank=8,
        ),
        vision_soft_tokens_per_image=4,
        image_token_id=tokenizer.image_token_id,
        audio_token_id=tokenizer.audio_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_id=tokenizer.eoa_token_id,
    )
    return hf.Gemma3nForConditionalGeneration(config), processor


def kimi_k25() -> Pair:
    marks = "im_user im_assistant im_system im_middle im_end media_begin media_content media_end"
    tokenizer = tt.byte_level_tokenizer(
        [f"<|{name}|>" for name in marks.split()],
        image_token="<|media_pad|>",
        video_token="<|kimi_k25_video_placeholder|>",
    )
    processor = hf.Kimi_K25Processor(
        image_processor=hf.Kimi_K25ImageProcessor(
            patch_size=7, size={"max_height": 6, "max_width": 6}, max_patches=36
        ),
        tokenizer=tokenizer,
        video_processor=hf.Kimi_K25VideoProcessor(patch_size=7),
        chat_template=tt.KIMI,
    )
    config = hf.Kimi_K25Config(
        vision_config={"patch_size": 7, "hidden_size": 32, "num_hidden_layers": 2}
        | {"num_attention_heads": 2, "intermediate_size": 48, "pos_emb_height": 6}
        | {"pos_emb_width": 6},
        text_config=text_config(
            "deepseek_v3",
            num_key_value_heads=4,
            head_dim=8,
            q_lora_rank=32,
            kv_lora_rank=16,
            qk_nope_head_dim=16,
            qk_rope_head_dim=8,
            v_head_dim=16,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            rope_parameters=dict(ROPE),
        ),
        projection_hidden_size=32,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        tie_word_embeddings=False,
    )
    return hf.Kimi_K25ForConditionalGeneration(config), processor


def molmo2() -> Pair:
    kinds = "im_patch im_col im_start low_res_im_start frame_start im_end frame_end im_low"
    tokenizer = tt.byte_level_tokenizer(
        ["<|im_start|>", "<|im_end|>", *(f"<{kind}>" for kind in kinds.split())],
        image_token="<|image|>",
        video_token="<|video|>",
    )
    processor = hf.Molmo2Processor(
        image_processor=hf.Molmo2ImageProcessor(
            size=SIZE, patch_size=7, max_crops=4, overlap_margins=[1, 1]
        ),
        video_processor=hf.Molmo2VideoProcessor(size=SIZE, patch_size=7),
        tokenizer=tokenizer,
        chat_template=tt.MOLMO,
    )
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = hf.Molmo2Config(
        vision_config={"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        | {"image_size": [SIDE, SIDE], "patch_size": 7, **heads},
        adapter_config={"vision_feature_layer": [1, 0], "hidden_size": 32}
        | {"intermediate_size": 48, "text_hidden_size": 64, **heads},
        text_config=text_config(
            "molmo2_text", additional_vocab_size=16, rope_parameters=dict(ROPE)
        ),
        image_patch_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
        image_start_token_id=tokenizer.convert_tokens_to_ids("<im_start>"),
        image_end_token_id=tokenizer.convert_tokens_to_ids("<im_end>"),
        low_res_image_start_token_id=tokenizer.convert_tokens_to_ids("<low_res_im_start>"),
    )
    return hf.Molmo2ForConditionalGeneration(config), processor
