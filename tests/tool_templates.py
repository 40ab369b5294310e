"""Chat templates that know tools, in the shapes that the families' own templates have.

Written for the tests. ``tooled(family)`` is a tiny model of a family with one of them; ``said``
makes a model say a text, token by token, so that a call which random weights would never write
goes through the real generation, the real reader and the real stream.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LogitsProcessor

from sightrail.guardrails.model.interventions import Interventions
from tiny_models import Pair, fresh

_PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)

#: Hermes, as Qwen and InternVL write it: pictures inside results, several calls in a turn.
_HERMES = (
    "{% if tools %}<|im_start|>system\nTools:\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}Write <tool_call> and </tool_call> around each call.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}<|im_start|>user\n<tool_response>\n"
    + _PARTS
    + "\n</tool_response><|im_end|>\n{% else %}<|im_start|>{{ message['role'] }}\n"
    + _PARTS
    + "{% for call in message['tool_calls'] or [] %}\n<tool_call>\n"
    "{{ {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}"
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: The same of a model that thinks first.
_THINKING = _HERMES.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{# </think> #}",
)
#: Mistral since v11: ids of nine letters, results as text, arguments as JSON text.
_MISTRAL = (
    "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]"
    "{% endif %}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST]" + _PARTS + "[/INST]"
    "{% elif message['role'] == 'system' %}[SYSTEM_PROMPT]" + _PARTS + "[/SYSTEM_PROMPT]"
    "{% elif message['role'] == 'tool' %}"
    "{% if message['tool_call_id'] | length != 9 %}{{ raise_exception('nine letters') }}{% endif %}"
    "[TOOL_RESULTS]{{ message['content'] }}[/TOOL_RESULTS]"
    "{% else %}" + _PARTS + "{% for call in message['tool_calls'] or [] %}"
    "{% if call['function']['arguments'] is not string %}{{ raise_exception('text') }}{% endif %}"
    "[TOOL_CALLS]{{ call['function']['name'] }}[ARGS]{{ call['function']['arguments'] }}"
    "{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"
)
#: Llama 3.2: one call in a turn, results as JSON, a header before each turn.
_LLAMA = (
    "{{ bos_token }}{% if tools %}<|start_header_id|>system<|end_header_id|>\n\n"
    '{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}Answer with {"name": ..., '
    '"parameters": ...}.<|eot_id|>{% endif %}{% for message in messages %}'
    "{% if message['tool_calls'] %}{% if message['tool_calls'] | length != 1 %}"
    "{{ raise_exception('one call at once') }}{% endif %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{\"name\": \"{{ message['tool_calls'][0]['function']['name'] }}\", \"parameters\": "
    "{{ message['tool_calls'][0]['function']['arguments'] | tojson }}}<|eot_id|>"
    "{% elif message['role'] == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ message['content'] | tojson }}<|eot_id|>"
    "{% else %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    + _PARTS
    + "<|eot_id|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_LLAMA4 = (
    _LLAMA.replace("start_header_id", "header_start")
    .replace("end_header_id", "header_end")
    .replace("<|eot_id|>", "<|eot|>")
)
#: Gemma: marks of its own around calls, and space around texts is stripped.
_GEMMA = (
    "{{ bos_token }}{% if tools %}<start_of_turn>developer\n{% for tool in tools %}"
    "<start_function_declaration>{{ tool | tojson }}<end_function_declaration>{% endfor %}"
    "<end_of_turn>\n{% endif %}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    + _PARTS.replace("part['text']", "part['text'] | trim")
    + "{% for call in message['tool_calls'] or [] %}<start_function_call>"
    "call:{{ call['function']['name'] }}{{ call['function']['arguments'] | tojson }}"
    "<end_function_call>{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

#: GLM-4.5 and later: a name, and each argument between marks of its own.
_GLM = (
    "[gMASK]<sop>{% if tools %}<|system|>\nTools:\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}Write <tool_call> and </tool_call> around each call.{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'tool' %}<|observation|>\n"
    "<tool_response>\n" + _PARTS + "\n</tool_response>"
    "{% else %}<|{{ message['role'] }}|>\n"
    + _PARTS
    + "{% for call in message['tool_calls'] or [] %}"
    "\n<tool_call>{{ call['function']['name'] }}\n"
    "{% for key, value in call['function']['arguments'].items() %}<arg_key>{{ key }}</arg_key>\n"
    "<arg_value>{{ value if value is string else value | tojson }}</arg_value>\n{% endfor %}"
    "</tool_call>{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Tooled:
    """A chat template with tools, and how a model of that family writes calls.

    Attributes:
        template: the chat template, IMAGE in place of a picture.
        image: what stands for a picture.
        call: one call of (name, JSON of the arguments).
        between: what stands between two calls.
        end: what ends an answer, beside the tokenizer's own end.
        tagged: each argument stands between marks, in place of all of them in JSON.
    """

    template: str
    image: str
    call: str = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'
    between: str = "\n"
    end: str = "<|im_end|>"
    tagged: bool = False

    def written(self, *calls: tuple[str, dict[str, Any]]) -> str:
        """Some calls as the model writes them."""
        return self.between.join(self.call % (name, self._given(given)) for name, given in calls)

    def _given(self, arguments: dict[str, Any]) -> str:
        if not self.tagged:
            return json.dumps(arguments, ensure_ascii=False)
        return "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>"
            f"{value if isinstance(value, str) else json.dumps(value)}</arg_value>\n"
            for key, value in arguments.items()
        )


_QWEN = "<|vision_start|><|image_pad|><|vision_end|>"
_GLM_FORM = Tooled(
    _GLM,
    "<|begin_of_image|><|image|><|end_of_image|>",
    "<tool_call>%s\n%s</tool_call>",
    end="<|user|>",
    tagged=True,
)
#: Their released templates name no tools; what people set in their place is mostly Hermes.
_SET = Tooled(_HERMES.replace("<|im_end|>", "{{ eos_token }}"), "<image>\n", end="</s>")
_SET_IDEFICS = Tooled(
    _HERMES.replace("<|im_end|>", "<end_of_utterance>"), "<image>", end="<end_of_utterance>"
)
TOOLED: dict[str, Tooled] = {
    "qwen2_5_vl": Tooled(_HERMES, _QWEN),
    "qwen3_vl": Tooled(_THINKING, _QWEN),
    "internvl": Tooled(_HERMES, "<IMG_CONTEXT>\n"),
    "llava_onevision": Tooled(_HERMES, "<image>\n"),
    "mistral3": Tooled(_MISTRAL, "[IMG]", "[TOOL_CALLS]%s[ARGS]%s", "", "</s>"),
    "mllama": Tooled(_LLAMA, "<|image|>", '{"name": "%s", "parameters": %s}', "; ", "<|eot_id|>"),
    "gemma3": Tooled(
        _GEMMA,
        "<start_of_image>",
        "<start_function_call>call:%s%s<end_function_call>",
        "",
        "<end_of_turn>",
    ),
    "qwen2_vl": Tooled(_HERMES, _QWEN),
    "qwen3_vl_moe": Tooled(_THINKING, _QWEN),
    "qwen2_5_omni": Tooled(_HERMES, "<|vision_bos|><|IMAGE|><|vision_eos|>"),
    "internvl3_5": Tooled(_HERMES, "<IMG_CONTEXT>\n"),
    "pixtral": Tooled(_MISTRAL, "[IMG]", "[TOOL_CALLS]%s[ARGS]%s", "", "</s>"),
    "llama4": Tooled(_LLAMA4, "<|image|>", '{"name": "%s", "parameters": %s}', "; ", "<|eot|>"),
    "glm4v": _GLM_FORM,
    "glm4v_moe": _GLM_FORM,
    "glm46v": _GLM_FORM,
    "molmo2": Tooled(_HERMES, "<|image|>"),
    "llava": _SET,
    "llava_next": _SET,
    "idefics3": _SET_IDEFICS,
    "smolvlm": _SET_IDEFICS,
    "gemma3n": Tooled(
        _GEMMA,
        "<image_soft_token>",
        "<start_function_call>call:%s%s<end_function_call>",
        "",
        "<end_of_turn>",
    ),
}
#: Kimi names a tool in the id of a call alone, and its template writes whatever id it is given.
_KIMI_CALL = '<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{"photo": 3}'
UNREAD = {"kimi_k25": f"<|tool_calls_section_begin|>{_KIMI_CALL}<|tool_call_end|>"}
#: Tried every day: one of each form. The others are left to the long suite.
EVERYDAY = (
    *("qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "mistral3", "mllama", "gemma3"),
    *("glm4v", "llama4"),
)


@functools.cache
def tooled(family: str) -> Pair:
    """(model, processor) of a family whose chat template knows tools."""
    model, processor = fresh(family)
    shape = TOOLED[family]
    processor.chat_template = shape.template.replace("IMAGE", shape.image)
    _with_plain_bytes(processor.tokenizer)
    tokenizer = processor.tokenizer
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(shape.end)}
    model.generation_config.eos_token_id = sorted(ends)
    return model, processor


def _with_plain_bytes(tokenizer: Any) -> None:
    """The bytes of a SentencePiece vocabulary are text; the trainer makes special tokens of them.

    Released tokenizers have them as text, and JSON is mostly bytes in so small a vocabulary.
    """
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    special = [token for token in made["added_tokens"] if not token["content"].startswith("<0x")]
    if len(special) < len(made["added_tokens"]):
        made["added_tokens"] = special
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(made))


LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks at a photo.",
        "parameters": {
            "type": "object",
            "properties": {"photo": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["photo"],
        },
    },
}
SAVE = {
    "type": "function",
    "function": {
        "name": "save",
        "description": "Keeps a note.",
        "parameters": {
            "type": "object",
            "properties": {"note": {"type": "string", "maxLength": 12}},
            "required": ["note"],
            "additionalProperties": False,
        },
    },
}
TOOLS = [LOOK, SAVE]


def looked(*results: Any, family: str = "", asked: Any = "What is in photo 3?") -> list[Any]:
    """A transcript: the user asks, the model calls ``look`` once for each result, and gets it."""
    calls = [
        {"id": f"call00{n:03d}", "function": {"name": "look", "arguments": f'{{"photo": {n}}}'}}
        for n in range(len(results))
    ]
    return [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *(
            {"role": "tool", "tool_call_id": call["id"], "name": "look", "content": result}
            for call, result in zip(calls, results, strict=True)
        ),
    ]


@dataclass
class Says:
    """A guardrail for tests that makes the model say a text, in every row.

    Args:
        text: special tokens in it are known by their text.
        family: whose tokenizer it is.
        end: whether the answer ends with it.
    """

    text: str
    family: str
    end: bool = True
    needs: frozenset[str] = frozenset({"logits"})
    stage: str = "decoding"

    def apply(self, messages: Any) -> Any:
        return messages

    def check(self, host: Any) -> None:
        pass

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        tokenizer = host.processor.tokenizer
        tokens = tokenizer.encode(self.text, add_special_tokens=False)
        return Interventions(answer_logits=[_Force(tokens, self.end and tokenizer.eos_token_id)])


@dataclass
class SaysInTurn(Says):
    """The same, with another text for every step of an agent; the last one goes for those after.

    Args:
        steps: the texts after `text`, which is said at once.
    """

    steps: tuple[str, ...] = ()

    def interventions(self, prompt: Any, host: Any) -> Interventions:
        (talk,) = prompt.originals
        said = (self.text, *self.steps)[min(talk.step, len(self.steps))]
        return Says(said, self.family, self.end).interventions(prompt, host)


class _Force(LogitsProcessor):
    def __init__(self, tokens: Sequence[int], end: Any) -> None:
        self._tokens = [*tokens, end] if isinstance(end, int) and end is not False else [*tokens]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] >= len(self._tokens):
            return scores
        only = torch.full_like(scores, -torch.inf)
        only[:, self._tokens[input_ids.shape[1]]] = 0.0
        return only
