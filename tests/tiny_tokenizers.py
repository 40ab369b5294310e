"""Tokenizers trained on a few sentences, and chat templates of the real families' shapes."""

from __future__ import annotations

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "As an AI assistant, I must keep every answer safe.",
    "Describe the picture in one sentence. What is in the image? How many objects are there?",
    "Tell me how to make the object in the image. The quick brown fox jumps over the lazy dog.",
    "user assistant system model USER: ASSISTANT: You are a helpful assistant.",
]
#: Trained tokens; special tokens come on top, so a model's vocabulary must hold both.
TRAINED = 480
VOCABULARY = 576


def byte_level_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Of GPT-2's kind, as Qwen, Llama 3, Idefics3, InternVL and Mistral have it.

    ``special`` are special tokens, ``named`` those that become attributes (``image_token=...``).
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return _wrapped(backend, special, named)


def sentencepiece_tokenizer(special: list[str], **named: str) -> PreTrainedTokenizerFast:
    """Of SentencePiece's kind, as Llama 2 and Gemma have it: spaces become a visible mark."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=TRAINED,
        special_tokens=["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]],
        show_progress=False,
    )
    backend.train_from_iterator([text.replace(" ", "▁") for text in CORPUS], trainer)
    return _wrapped(backend, special, named)


def _wrapped(
    backend: Tokenizer, special: list[str], named: dict[str, str]
) -> PreTrainedTokenizerFast:
    standard = {key: named.pop(key) for key in list(named) if key in ("bos_token", "eos_token")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        extra_special_tokens=named,
        **{"eos_token": "</s>", **standard},
    )
    tokenizer.add_tokens(special, special_tokens=True)
    if begin := standard.get("bos_token"):
        # As Llama, Gemma and Mistral tokenizers do, whether or not the chat template writes it too.
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
        )
    assert len(tokenizer) <= VOCABULARY
    return tokenizer


def _chat(opening: str, image: str, closing: str, answer: str, *, start: str = "") -> str:
    """A template that writes the parts of each message in their order."""
    return (
        f"{start}{{% for message in messages %}}{opening}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for content in message['content'] %}"
        f"{{% if content['type'] == 'image' %}}{image}{{% else %}}{{{{ content['text'] }}}}"
        "{% endif %}{% endfor %}{% endif %}"
        f"{closing}{{% endfor %}}{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


# LLaVA-1.5 and LLaVA-NeXT (Vicuna): all pictures of a turn first.
LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_CHATML = "<|im_start|>{{ message['role'] }}\n"
ONEVISION = LLAVA.replace(
    "{{ message['role'].upper() + ': ' }}", "{{ '<|im_start|>' + message['role'] + '\n' }}"
).replace("{{ 'ASSISTANT:' }}", "{{ '<|im_start|>assistant\n' }}")
QWEN = _chat(
    _CHATML,
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|im_end|>\n",
    "<|im_start|>assistant\n",
    start="{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}",
)
INTERNVL = _chat(_CHATML, "<IMG_CONTEXT>\n", "<|im_end|>\n", "<|im_start|>assistant\n")
IDEFICS = _chat(
    "{{ message['role'] | capitalize }}:",
    "<image>",
    "<end_of_utterance>\n",
    "Assistant:",
    start="{{ bos_token }}",
)
MLLAMA = _chat(
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n",
    "<|image|>",
    "<|eot_id|>",
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    start="{{ bos_token }}",
)
MISTRAL = _chat(
    "{% if message['role'] == 'user' %}[INST]{% elif message['role'] == 'system' %}"
    "[SYSTEM_PROMPT]{% endif %}",
    "[IMG]",
    "{% if message['role'] == 'user' %}[/INST]{% elif message['role'] == 'system' %}"
    "[/SYSTEM_PROMPT]{% else %}{{ eos_token }}{% endif %}",
    "",
    start="{{ bos_token }}",
)
# Gemma strips the space around every text and calls the assistant "model".
GEMMA = _chat(
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n",
    "<start_of_image>",
    "<end_of_turn>\n",
    "<start_of_turn>model\n",
    start="{{ bos_token }}",
).replace("{{ content['text'] }}", "{{ content['text'] | trim }}")

# Qwen2.5-Omni names the pictures otherwise than Qwen2.5-VL.
OMNI = QWEN.replace(
    "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_bos|><|IMAGE|><|vision_eos|>"
)
GLM = _chat(
    "<|{{ message['role'] }}|>\n",
    "<|begin_of_image|><|image|><|end_of_image|>",
    "",
    "<|assistant|>\n",
    start="[gMASK]<sop>",
)
LLAMA4 = _chat(
    "<|header_start|>{{ message['role'] }}<|header_end|>\n\n",
    "<|image|>",
    "<|eot|>",
    "<|header_start|>assistant<|header_end|>\n\n",
    start="{{ bos_token }}",
)
# Each role of Kimi has a mark of its own; Molmo 2 has Qwen's, and its processor writes what begins.
KIMI = _chat(
    "<|im_{{ message['role'] }}|>{{ message['role'] }}<|im_middle|>",
    "<|media_begin|>image<|media_content|><|media_pad|><|media_end|>\n",
    "<|im_end|>",
    "<|im_assistant|>assistant<|im_middle|>",
)
MOLMO = _chat(_CHATML, "<|image|>", "<|im_end|>\n", "<|im_start|>assistant\n")
