"""The one file that knows model families, and the model as a guardrail meets it.

Where the text tower is, and which ids are pictures, is read from the model's config. A model
outside the list runs, and takes the defences that work on pixels and prompts; those that work
inside the model refuse it. accelerate runs a module of a dispatched or offloaded model on the
execution device of its hook, and its parameters may be on ``meta`` meanwhile: state that belongs
to a part follows the part.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import torch
from transformers import PreTrainedModel

from ..errors import UnsupportedModelError
from .chat_form import apply_template, chat_of, style_of, template_text
from .grammar import Grammar, Grammars, answer_grammar, call_grammar, grammars_of
from .messages import end_tokens
from .prompt import Prompt, PromptBuilder, tokenizer_lock
from .tool_calls import THOUGHTS, AnswerReader, format_of, without_calls
from .tools import Tool, ToolChoice

if TYPE_CHECKING:
    from ..policy import Policy
    from .messages import Conversation


def unwrapped(model: Any) -> Any:
    """The transformers model under an adapter of PEFT, whose layers stay in it and stay at work.

    Raises:
        UnsupportedModelError: the adapter is a learned prompt, which is not inside the model.
    """
    if not callable(getattr(model, "get_base_model", None)):
        return model
    if getattr(model.active_peft_config, "is_prompt_learning", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} puts a learned prompt before every input, so nobody knows "
            "where the parts of a prompt stand; use an adapter inside the model, such as LoRA."
        )
    return model.get_base_model()


def device_of(module: torch.nn.Module) -> torch.device:
    """Where a module computes: the execution device of accelerate's hook, else its weights'."""
    hook = getattr(module, "_hf_hook", None)
    for part in (hook, *getattr(hook, "hooks", ())):
        if (device := getattr(part, "execution_device", None)) is not None:
            return torch.device(device)
    weights = next(module.parameters(), None)
    return torch.device("cpu") if weights is None else weights.device


def weights_of(module: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """A block in which the module's weights are there, also those that are offloaded."""
    if getattr(module, "_hf_hook", None) is None:
        return contextlib.nullcontext()
    from accelerate.utils import align_module_device

    found: contextlib.AbstractContextManager[Any] = align_module_device(module)
    return found


def is_quantized(model: Any) -> bool:
    """Whether its weights are packed; such a model stays where it was loaded."""
    return bool(getattr(model, "is_quantized", False) or getattr(model, "hf_quantizer", None))


#: transformers' ``model_type`` of every family whose inside is known, and its usual name.
FAMILIES: Final[dict[str, str]] = {
    "llava": "LLaVA-1.5 and Pixtral",
    "llava_next": "LLaVA-NeXT",
    "llava_onevision": "LLaVA-OneVision",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL-MoE",
    "qwen2_5_omni_thinker": "Qwen2.5-Omni (the thinker)",
    "internvl": "InternVL 3 and 3.5",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "gemma3": "Gemma 3",
    "gemma3n": "Gemma 3n",
    "glm4v": "GLM-4.1V",
    "glm4v_moe": "GLM-4.5V",
    "glm46v": "GLM-4.6V",
    "kimi_k25": "Kimi K2.5",
    "llama4": "Llama 4",
    "mllama": "Llama 3.2 Vision (Mllama)",
    "mistral3": "Mistral 3",
    "molmo2": "Molmo 2",
}

#: Checkpoints of more than one model, by their ``model_type``: the class of the one that reads
#: pictures and writes text.
PART_OF: Final[dict[str, str]] = {"qwen2_5_omni": "Qwen2_5OmniThinkerForConditionalGeneration"}

# Mllama fills rows with fewer pictures up with blank ones, and the tokens before a row's first
# picture attend to those too: rows with different numbers of pictures change each other.
_SAME_PICTURE_COUNT: Final = frozenset({"mllama"})


@dataclass(frozen=True)
class TextTower:
    """The language model inside a vision-language model.

    Attributes:
        module: the decoder, a ``PreTrainedModel`` whose config is ``config``.
        config: the text config, shared by the decoder and its attention modules.
        config_key: its name among the sub-configs.
        blocks: its decoder layers.
        final_norm: what follows the last of them; its output goes into the LM head.
        self_attention: indices of the layers in which text attends to text; without the
            cross-attention layers of Mllama.
    """

    module: PreTrainedModel
    config: Any
    config_key: str
    blocks: tuple[torch.nn.Module, ...]
    final_norm: torch.nn.Module
    self_attention: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.blocks)


def is_known(model: Any) -> bool:
    """Whether the inside of this model is known."""
    return getattr(model.config, "model_type", None) in FAMILIES


def image_token_ids(model: Any) -> tuple[int, ...]:
    """The ids that stand at picture positions; empty for a family that is not known."""
    if not is_known(model):
        return ()
    config = model.config
    token = getattr(config, "image_token_id", None)
    if token is None:
        token = config.image_token_index
    return (int(token),)


def token_states(config: Any, hidden: torch.Tensor) -> torch.Tensor:
    """What a layer says about each token, [B, T, C].

    Gemma 3n's layers carry several predictions of each token at once, [K, B, T, C] (AltUp); the
    active one goes into attention and, after the last layer, is what the others are corrected by.

    Args:
        config: of the text tower.
        hidden: output of one of its layers, or of the final norm.
    """
    return hidden if hidden.dim() == 3 else hidden[config.altup_active_idx]


def capped_logits(model: Any) -> bool:
    """Whether the logits are what a non-linear function makes of the LM head's output."""
    config = model.config.get_text_config()
    return getattr(config, "final_logit_softcapping", None) is not None


def mixes_picture_counts(model: Any) -> bool:
    """Whether rows with different numbers of pictures (but at least one) may run in one batch."""
    return is_known(model) and model.config.model_type not in _SAME_PICTURE_COUNT


def context_length(model: Any) -> int | None:
    """The longest sequence the text tower was made for, None when its config does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def text_tower(model: Any, *, wanted_by: str) -> TextTower:
    """Find the text tower of a known family.

    Args:
        model: the vision-language model.
        wanted_by: the defence that needs it, for the message.

    Raises:
        UnsupportedModelError: the family is not known.
    """
    if not is_known(model):
        raise UnsupportedModelError(
            f"{wanted_by} works inside the model and does not know "
            f"{getattr(model.config, 'model_type', type(model).__name__)!r}. Known families: "
            f"{', '.join(FAMILIES.values())}. Defences on pixels and prompts work on any model."
        )
    config = model.config.get_text_config()
    module = next(
        part
        for part in model.modules()
        if isinstance(part, PreTrainedModel) and part.config is config and hasattr(part, "layers")
    )
    key = next(
        key for key in model.config.sub_configs if getattr(model.config, key, None) is config
    )
    crossed = set(getattr(config, "cross_attention_layers", None) or ())
    blocks = tuple(cast(torch.nn.ModuleList, module.layers))
    return TextTower(
        module=module,
        config=config,
        config_key=key,
        blocks=blocks,
        final_norm=cast(torch.nn.Module, module.norm),
        self_attention=tuple(index for index in range(len(blocks)) if index not in crossed),
    )


@dataclass(frozen=True)
class Host:
    """A loaded model, and what a guardrail needs to work with it.

    Attributes:
        model: the transformers model.
        processor: its processor.
        name: what it is called in messages.
        prompts: builds its prompts.
        policy: what a decision against a request leads to.
        tower: its text tower, where a guardrail asked for the inside of the model.
        cancel: of the request at work: set once nobody waits for its answer any more. A guardrail
            that calls the model itself ends its calls then, and raises ``Abandoned``.
    """

    model: Any
    processor: Any
    name: str
    prompts: PromptBuilder
    policy: Policy
    tower: TextTower | None = None
    cancel: threading.Event | None = None

    def prompt(
        self, conversations: Sequence[Conversation], *, spans: bool, prefix: str | None
    ) -> Prompt:
        """A batch on the model's device.

        Raises:
            PromptError: see :meth:`PromptBuilder.build`.
        """
        prompt = self.prompts.build(conversations, spans=spans, prefix=prefix)
        return prompt.to(self.device, self.model.dtype)

    @property
    def device(self) -> torch.device:
        """Where prompts enter the model."""
        return device_of(self.model.get_input_embeddings())

    def decode(self, tokens: Sequence[int], reader: AnswerReader | None = None) -> str:
        """The text of some tokens, special ones left out but those that a reader knows."""
        tokenizer = self.processor.tokenizer
        with tokenizer_lock(tokenizer):
            if reader is not None:
                known = tokenizer.added_tokens_decoder
                tokens = [t for t in tokens if t not in known or reader.keeps(known[t])]
            text = tokenizer.decode(
                tokens, skip_special_tokens=reader is None, clean_up_tokenization_spaces=False
            )
        return str(text)

    def reader(self, conversation: Conversation, grammar: Grammar | None) -> AnswerReader | None:
        """What reads the answer to a conversation; None where it is text and nothing else.

        A checkpoint that says how its answers are read is believed; what a grammar has forced is
        read the way that was forced.
        """
        forced = grammar.calls if grammar is not None else None
        own = getattr(self.processor.tokenizer, "response_template", None)
        tools, written = conversation.tools, template_text(self.processor)
        if own is not None and forced is None:
            begun = apply_template(self.processor, chat_of(self.processor, conversation), tools)
            return AnswerReader(own if tools else without_calls(own), begun, tools, own=True)
        if not tools and "<think>" not in written:
            return None
        template = (forced or format_of(written)).template if tools else THOUGHTS
        opened = "<think>" in written and style_of(self.processor).thinks
        return AnswerReader(template, "<think>" if opened else "", tools)

    def grammar(
        self, tools: Sequence[Tool], choice: ToolChoice, schema: Mapping[str, Any] | None
    ) -> Grammar | None:
        """What an answer has to follow, known to be possible; None for any text.

        Raises:
            ConfigurationError: nothing satisfies the schema, or it asks for what is not known.
            MissingDependencyError, UnsupportedModelError: see :attr:`grammars`.
        """
        if schema is None and not choice.forced:
            return None
        written = template_text(self.processor)
        thinks = "<think>" in written and style_of(self.processor).thinks
        if tools:
            own = None if choice.forced else schema
            form = format_of(written)
            grammar = call_grammar(tools, choice, form, schema=own, thinking=thinks)
        else:
            grammar = answer_grammar(schema or {}, thinking=thinks)
        self.grammars.matcher(grammar)
        return grammar

    @property
    def grammars(self) -> Grammars:
        """What a grammar means in this model's tokens.

        Raises:
            MissingDependencyError: llguidance is not installed.
            UnsupportedModelError: it cannot read this tokenizer.
        """
        size = self.model.config.get_text_config().vocab_size
        ends = frozenset(end_tokens(self.model.generation_config))
        return grammars_of(self.processor.tokenizer, int(size), ends)

    @property
    def pad_token_id(self) -> int | None:
        """What fills the rows that end early."""
        tokenizer = self.processor.tokenizer
        token: int | None = tokenizer.pad_token_id
        return tokenizer.eos_token_id if token is None else token

    @property
    def head(self) -> torch.nn.Module:
        """The LM head: hidden states [..., C] to logits [..., V].

        Raises:
            UnsupportedModelError: the model has none.
        """
        head = self.model.get_output_embeddings()
        if head is None:
            raise UnsupportedModelError(f"{self.name} has no output embeddings.")
        return head  # type: ignore[no-any-return]

    def inside(self, wanted_by: str) -> TextTower:
        """The text tower.

        Raises:
            UnsupportedModelError: nobody asked for it; a guardrail forgot to say what it needs.
        """
        if self.tower is None:
            raise UnsupportedModelError(f"{wanted_by} needs the inside of {self.name}.")
        return self.tower
