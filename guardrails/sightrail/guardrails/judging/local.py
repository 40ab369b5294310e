"""Judges that run here: a model of transformers, with or without eyes, and ShieldGemma 2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import torch

from ..errors import ConfigurationError
from ..verdict import NotInspected
from .endpoint import ChatReply, Token
from .judges import UNPARSABLE, JudgeCase
from .profiles import Judged, JudgeProfile, judge_profile

__all__ = ["LocalJudge", "ShieldGemmaJudge"]

_TOP_TOKENS: Final = 20
_NO_PICTURE: Final = NotInspected(reason="judge_needs_picture", detail="it judges pictures alone")
_NO_EYES: Final = NotInspected(
    reason="judge_reads_text_alone",
    detail="the judge is a model of text; ask one that sees (llama-guard-4, llavaguard, yes-no)",
)


@dataclass(frozen=True, eq=False)
class LocalJudge:
    """A model of transformers as a judge.

    One that reads text alone, such as Llama Guard 3 of 8B, judges texts and answers. A case with a
    picture it does not judge at all: half of a case is not the case.

    Attributes:
        model: an `AutoModelForImageTextToText`, or an `AutoModelForCausalLM`.
        processor: its processor, or its tokenizer; with a chat template.
        profile: how it is asked, or the name of one of PROFILES.
        batch_size: cases in one run.

    Raises:
        ConfigurationError: there is no such profile, or it is for an endpoint alone.
    """

    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    profile: JudgeProfile | str
    batch_size: int = 8

    def __post_init__(self) -> None:
        profile = judge_profile(self.profile)
        if profile.route != "chat":
            raise ConfigurationError(f"{profile.name} is no model that can be loaded here")
        object.__setattr__(self, "profile", profile)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, profile: JudgeProfile | str, *, batch_size: int = 8, **loading: Any
    ) -> Self:
        """Load a judge by Hub id or folder.

        Args:
            name: of the model.
            profile: how it is asked.
            batch_size: cases in one run.
            loading: see `model.loading.load_model` (device, dtype, revision ...).

        Raises:
            ModelLoadError: it cannot be loaded.
            ConfigurationError: there is no such profile.
        """
        from ..model.loading import load_model

        model, processor = load_model(name, text_alone=True, **loading)
        return cls(model, processor, profile, batch_size)

    @property
    def name(self) -> str:
        """Profile and model."""
        model = getattr(self.model, "name_or_path", "") or type(self.model).__name__
        return f"{self._profile.name} {Path(model).name}"

    def judge(self, cases: Sequence[JudgeCase]) -> list[Judged | NotInspected]:
        """See Judge. Cases with and without pictures go in runs of their own."""
        found: dict[int, Judged | NotInspected] = dict.fromkeys(range(len(cases)), _NO_EYES)
        for rows in self._runs(cases):
            for row, reply in zip(rows, self._answer([cases[row] for row in rows]), strict=True):
                found[row] = self._profile.read(reply) or UNPARSABLE
        return [found[row] for row in range(len(cases))]

    @property
    def _profile(self) -> JudgeProfile:
        return judge_profile(self.profile)

    @property
    def _sees(self) -> bool:
        return hasattr(self.processor, "image_processor")

    def _runs(self, cases: Sequence[JudgeCase]) -> Iterator[list[int]]:
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        most = 1 if tokenizer.pad_token is None else self.batch_size
        for shown in (True, False) if self._sees else (False,):
            rows = [row for row, case in enumerate(cases) if (case.image is not None) is shown]
            for start in range(0, len(rows), most):
                yield rows[start : start + most]

    def _answer(self, cases: Sequence[JudgeCase]) -> list[ChatReply]:
        """Greedy answers with their tokens' alternatives."""
        asked = [
            self._profile.messages(
                None if case.image is None else {"type": "image", "image": case.image},
                case.text,
                case.answer,
            )
            for case in cases
        ]
        with torch.inference_mode():
            inputs = self._inputs(asked)
            out = self.model.generate(
                **inputs,
                max_new_tokens=self._profile.max_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        length = inputs["input_ids"].shape[1]
        steps = torch.stack([step.float().log_softmax(-1).cpu() for step in out.logits], dim=1)
        return [
            self._reply(row[length:].tolist(), logprobs)
            for row, logprobs in zip(out.sequences, steps, strict=True)
        ]

    def _inputs(self, asked: Sequence[Any]) -> Any:
        """The batch, padded on the left so that all answers begin together."""
        padding = {"padding": True, "padding_side": "left"} if len(asked) > 1 else {}
        if not self._sees:
            texts = self.processor.apply_chat_template(
                [_as_text(conversation) for conversation in asked],
                add_generation_prompt=True,
                tokenize=False,
            )
            # The template has written all that begins a text.
            made = self.processor(texts, add_special_tokens=False, return_tensors="pt", **padding)
            kept = {name: made[name] for name in ("input_ids", "attention_mask")}
            return {name: value.to(self.model.device) for name, value in kept.items()}
        inputs = self.processor.apply_chat_template(
            list(asked),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs=padding,
        )
        return inputs.to(self.model.device, self.model.dtype)

    def _reply(self, ids: Sequence[int], logprobs: torch.Tensor) -> ChatReply:
        """An answer up to its end.

        Args:
            ids: of the tokens, padded at the end.
            logprobs: [steps, vocabulary].
        """
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        ends = set(tokenizer.all_special_ids)
        kept = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        tokens, before = [], ""
        for step in range(kept):
            text = tokenizer.decode(ids[: step + 1])
            best = logprobs[step].topk(min(_TOP_TOKENS, logprobs.shape[-1]))
            names = (tokenizer.decode([i]) for i in best.indices.tolist())
            alternatives: dict[str, float] = {}
            for name, value in zip(names, best.values.tolist(), strict=True):
                alternatives.setdefault(name, value)
            tokens.append(Token(text[len(before) :], alternatives))
            before = text
        return ChatReply(before, tuple(tokens))


def _as_text(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages whose content is a text, which is all that templates of such models take."""
    return [
        {
            "role": message["role"],
            "content": "\n".join(part["text"] for part in message["content"]),
        }
        for message in conversation
    ]


@dataclass(frozen=True, eq=False)
class ShieldGemmaJudge:
    """ShieldGemma 2 (arXiv 2504.01081): pictures alone, a probability for every policy.

    Its output has [images x policies, 2] probabilities, of which column 0 is that of Yes: the
    picture violates the policy.

    Attributes:
        model: a `ShieldGemma2ForImageClassification`.
        processor: its processor, which holds the policies.
        name: what to call it.
    """

    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    name: str = "shieldgemma-2"

    def judge(self, cases: Sequence[JudgeCase]) -> list[Judged | NotInspected]:
        """See Judge; what comes with a picture as text is not looked at."""
        shown = [case.image for case in cases if case.image is not None]
        judged = iter([self._judged(yes) for yes in self._probabilities(shown)] if shown else [])
        return [_NO_PICTURE if case.image is None else next(judged) for case in cases]

    def _probabilities(self, images: Sequence[Any]) -> torch.Tensor:
        """P(Yes) of every picture and policy: [images, policies]."""
        inputs = self.processor(images=[[image] for image in images], return_tensors="pt")
        with torch.inference_mode():
            out = self.model(**inputs.to(self.model.device, self.model.dtype))
        yes: torch.Tensor = out.probabilities[:, 0].float().reshape(len(images), -1)
        return yes.cpu()

    def _judged(self, yes: torch.Tensor) -> Judged | NotInspected:
        if not torch.isfinite(yes).all():
            return UNPARSABLE
        score, place = float(yes.max()), int(yes.argmax())
        policy = list(self.processor.policy_definitions)[place]
        return Judged(score >= 0.5, score, policy, from_probabilities=True)
