"""A check-up of somebody's own model: what each defence needs, tried on the model itself.

Every check ends as ``ok``, ``does not hold`` or ``could not be tried``, with what was found and
what to do about it. Nothing is changed on the model beyond what guardrails do to it anyway.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import LogitsProcessor

from .casa.weights import safety_tokens
from .davsp import VisualSafetyPrompt
from .errors import ConfigurationError, SightrailError, UnsupportedModelError
from .fitting.memory import peak_bytes
from .model.chat_form import shaped, style_of, template_text
from .model.families import is_known, text_tower
from .model.interventions import INSIDE, Interventions
from .model.local_lvlm import LocalLVLM
from .model.messages import Conversation, TextPart, Turn, end_tokens, read_messages
from .model.template import render
from .model.tool_calls import format_of
from .model.tools import ToolCall, read_tools
from .moras.passes import LastStates
from .policy import Policy
from .prefix import AttentiveCalibration, SafetyPrefix

if TYPE_CHECKING:
    from .intake import Picture
    from .model.families import Host
    from .model.interventions import ModelGuardrail, Stage
    from .model.prompt import Prompt
    from .screening import RiskDetector, TextInPicture
    from .screening.asking import Detector

Status = Literal["ok", "does not hold", "could not be tried"]

_QUESTION: Final = "What is in the image?"
_TOKENS: Final = 6
_SIDES: Final[dict[str, tuple[slice, slice]]] = {
    "left": (slice(None), slice(0, 3)),
    "right": (slice(None), slice(-3, None)),
    "top": (slice(0, 3), slice(None)),
    "bottom": (slice(-3, None), slice(None)),
}
_EDGES: Final[dict[str, tuple[slice, slice]]] = {
    "left": (slice(None), slice(0, 40)),
    "right": (slice(None), slice(-40, None)),
    "top": (slice(0, 40), slice(None)),
    "bottom": (slice(-40, None), slice(None)),
}
_CLOSE: Final = 0.05
"""Logits of one model computed in two ways: half precision keeps three digits."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at.
        status: how it ended.
        detail: what was found.
        remedy: what to do about it; empty where nothing is to be done.
    """

    check: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass
class Watch:
    """A guardrail that changes nothing: it sends every layer through the doorway, and records.

    Attributes:
        needs: what is opened; without any of ``INSIDE`` it only records.
        logits: of every step, [B, V].
        places: kind and layer of everything that ran.
        prompts: what the model was given.
        states: checks the LM head, where hidden states are opened.
    """

    needs: frozenset[str] = frozenset({"logits"})
    stage: Stage = "decoding"
    logits: list[torch.Tensor] = field(default_factory=list)
    places: set[tuple[str, int]] = field(default_factory=set)
    prompts: list[Prompt] = field(default_factory=list)
    states: LastStates | None = None

    def apply(self, messages: Conversation) -> Conversation:
        """The conversation as it is."""
        return messages

    def check(self, host: Host) -> None:
        """Any model will do."""

    def interventions(self, prompt: Prompt, host: Host) -> Interventions:
        """Edits that leave everything as it is."""
        self.prompts.append(prompt)
        recorder = _Record(self.logits)
        if not self.needs & INSIDE:
            return Interventions(logits=[recorder])
        tower = host.inside("The check-up")
        layers = tower.self_attention
        attention = {layer: self._seen("attention", layer) for layer in layers}
        if "hidden_states" not in self.needs:
            return Interventions(attention=attention, logits=[recorder])
        self.states = LastStates(host.head)
        hidden = {layer: self._seen("hidden states", layer) for layer in layers}
        return Interventions(
            attention=attention if "attention" in self.needs else {},
            hidden_states={**hidden, tower.depth: self.states.keep_state},
            logits=[self.states, recorder],
        )

    def _seen(self, kind: str, layer: int) -> Callable[..., Any]:
        def edit(first: Any, second: Any) -> Any:
            self.places.add((kind, layer))
            return second if kind == "attention" else first

        return edit


class _Record(LogitsProcessor):
    def __init__(self, kept: list[torch.Tensor]) -> None:
        self._kept = kept

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._kept.append(scores.detach().float().cpu())
        return scores


def examine(
    lvlm: LocalLVLM,
    detector: RiskDetector | None = None,
    pictures: Sequence[Picture] = (),
    reader: TextInPicture | None = None,
    judge: Detector | None = None,
    defences: Sequence[ModelGuardrail] = (),
) -> list[Finding]:
    """Try on a model what the defences need of it.

    Args:
        lvlm: the model; its guardrails are left aside.
        detector: screening, to be looked at as well.
        pictures: the user's own, for the detector; benign ones.
        reader: of text in pictures, to be shown two sentences.
        judge: a JudgeDetector, to be asked once.
        defences: fitted ones (CASA, MoRAS, DAVSP), whose time and memory are told as well.
    """
    bare = lvlm.with_guardrails([])
    checks: list[tuple[str, Callable[[LocalLVLM], Finding]]] = [
        ("prompt", _prompt),
        ("spans", _spans),
        ("numbers", _numbers),
        ("doorway", _doorway),
        ("calibration", _calibration),
        ("cache", _cache),
        ("batch", _batch),
        ("moras: LM head", _head),
        ("casa: safety tokens", _tokens),
        ("picture", _picture_seen),
        ("tools", _tools),
        ("placement", _placement),
        ("cost", _cost),
    ]
    if reader is not None:
        checks.append(("reading", partial(_reading, reader)))
    if judge is not None:
        checks.append(("judge", partial(_judge, judge)))
    for guard in defences:
        name = type(guard).__name__
        checks.append((f"{name}: cost", partial(_cost_of, guard=guard)))
        if isinstance(guard, VisualSafetyPrompt):
            checks.append((f"{name}: border", partial(_border, guard=guard)))
    findings = [_tried(name, check, bare) for name, check in checks]
    if detector is not None:
        looked = detector
        findings += [
            _tried("threshold", lambda _: _threshold(looked), bare),
            _tried("scores", lambda _: _scores(looked, pictures), bare),
        ]
    return findings


def _tried(name: str, check: Callable[[LocalLVLM], Finding], lvlm: LocalLVLM) -> Finding:
    try:
        return check(lvlm)
    except SightrailError as error:
        return Finding(name, "could not be tried", str(error))
    except Exception as error:
        detail = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return Finding(name, "does not hold", detail, "Look at this error with the bare model.")


def _finding(name: str, holds: bool, detail: str, remedy: str) -> Finding:
    return Finding(name, "ok" if holds else "does not hold", detail, "" if holds else remedy)


def _ask(text: str = _QUESTION, *, width: int = 320, height: int = 240) -> list[dict[str, Any]]:
    """A question about a picture of coloured noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = {"type": "image", "image": Image.fromarray(pixels)}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def _run(
    lvlm: LocalLVLM, guards: Sequence[Any] = (), rows: Sequence[Any] | None = None, **options: Any
) -> Watch:
    """Answer, and what the model said at every step."""
    watch = next((guard for guard in guards if isinstance(guard, Watch)), Watch())
    others = [guard for guard in guards if guard is not watch]
    settings = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS, "num_beams": 1, **options}
    guarded = lvlm.with_guardrails([*others, watch])  # what cannot be put on is not tried
    try:
        answers = guarded.batch(rows or [_ask()], **settings)
    except UnsupportedModelError as error:  # it was put on, and did not work
        raise RuntimeError(str(error)) from error
    if any(answer.refused for answer in answers):
        raise RuntimeError("a guardrail failed on this model; see the log")
    return watch


def _prompt(lvlm: LocalLVLM) -> Finding:
    prompt = _run(lvlm, max_new_tokens=1, min_new_tokens=1).prompts[0]
    ours = prompt.inputs["input_ids"][0].tolist()
    made = lvlm.processor.apply_chat_template(
        _ask(), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    theirs = made["input_ids"][0].tolist()
    begin = getattr(lvlm.processor.tokenizer, "bos_token_id", None)
    begins = 0 if begin is None else ours.count(begin)
    return _finding(
        "prompt",
        ours == theirs and begins <= 1,
        f"{len(ours)} tokens, {begins} of them begin a text; the model's own template makes "
        f"{len(theirs)}" + ("" if ours == theirs else ", others"),
        "The tokenizer adds what the chat template has written already; update the processor, or "
        "report the model.",
    )


def _spans(lvlm: LocalLVLM) -> Finding:
    prefix = SafetyPrefix()
    prompt = _run(lvlm, [prefix, Watch(needs=frozenset({"attention"}))]).prompts[0]
    assert prompt.spans is not None, "attention was asked for"
    spans, ids = prompt.spans, prompt.inputs["input_ids"][0]
    told = {
        name: lvlm.processor.tokenizer.decode(ids[mask[0].to(ids.device)]).strip()
        for name, mask in (("prefix", spans.prefix), ("instruction", spans.instruction))
    }
    right = prefix.text in told["prefix"] and _QUESTION in told["instruction"]
    detail = (
        f"{int(spans.image.sum())} picture positions, prefix {int(spans.prefix.sum())} tokens, "
        f"instruction {int(spans.instruction.sum())}"
    )
    return _finding("spans", right, detail, f"The spans read {told}; report the model.")


def _numbers(lvlm: LocalLVLM) -> Finding:
    logits = torch.stack(_run(lvlm).logits)
    bad = float((logits.isnan() | (logits == torch.inf)).float().mean())
    return _finding(
        "numbers",
        bad == 0,
        f"{lvlm.model.dtype}, {bad:.1%} of the logits are no numbers",
        "The number format is too narrow for this model; load it with dtype='bfloat16' or "
        "'float32'.",
    )


def _doorway(lvlm: LocalLVLM) -> Finding:
    tower = text_tower(lvlm.model, wanted_by="The doorway")
    inside = _run(lvlm, [Watch(needs=frozenset({"attention", "hidden_states", "logits"}))])
    bare = _run(lvlm)
    met = len(inside.places)
    same = torch.equal(torch.stack(inside.logits), torch.stack(bare.logits))
    return _finding(
        "doorway",
        same and met == 2 * len(tower.self_attention),
        f"{met} of {2 * len(tower.self_attention)} places met, idle edits "
        + ("change nothing" if same else "change the logits"),
        "Defences inside the model cannot be trusted here; load it with "
        "attn_implementation='sdpa', or use defences on pixels and prompts.",
    )


def _calibration(lvlm: LocalLVLM) -> Finding:
    off, faint, on = (
        torch.stack(
            _run(lvlm, [SafetyPrefix(calibration=AttentiveCalibration(gamma=gamma))]).logits
        )
        for gamma in (0.0, 1e-6, 0.5)
    )
    plain = torch.stack(_run(lvlm, [SafetyPrefix()]).logits)
    # Rows that are computed anew differ by rounding from the model's own, whatever is done to them.
    same, moved = torch.equal(off, plain), not torch.equal(on[0], faint[0])
    return _finding(
        "calibration",
        same and moved,
        f"strength 0 is {'' if same else 'not '}the prefix alone, strength 0.5 "
        f"{'moves' if moved else 'does not move'} the logits",
        "Use SafetyPrefix without calibration.",
    )


def _cache(lvlm: LocalLVLM) -> Finding:
    cached, anew = (_run(lvlm, use_cache=use).logits for use in (True, False))
    return _compared("cache", cached, anew, "decoding with a cache", "use_cache=False")


def _batch(lvlm: LocalLVLM) -> Finding:
    rows = [_ask(), _ask("Describe the picture in one sentence, and say how many there are.")]
    together = [step[:1] for step in _run(lvlm, rows=rows).logits]
    return _compared(
        "batch", together, _run(lvlm, rows=rows[:1]).logits, "a padded batch", "chat, not batch"
    )


def _compared(
    name: str, ours: list[torch.Tensor], theirs: list[torch.Tensor], what: str, instead: str
) -> Finding:
    """Compare as far as both said the same: after another token everything may differ."""
    apart = 0.0
    for a, b in zip(ours, theirs, strict=True):
        known = a.isfinite() & b.isfinite()
        size = max(1e-6, float(b[known].abs().max()))
        apart = max(apart, float((a[known] - b[known]).abs().max()) / size)
        if bool((a.argmax(-1) != b.argmax(-1)).any()):
            break
    return _finding(
        name,
        apart <= _CLOSE,
        f"{what} moves logits by {apart:.1e} of their size",
        f"Answers depend on {what} on this model; ask with {instead}.",
    )


def _head(lvlm: LocalLVLM) -> Finding:
    states = _run(lvlm, [Watch(needs=frozenset({"hidden_states", "logits"}))]).states
    linear = states is not None and states.linear
    return _finding(
        "moras: LM head",
        linear,
        "the logits are " + ("" if linear else "not ") + "what the LM head makes of the states",
        "MoRAS cannot steer this model; use SafetyPrefix or a defence on pixels.",
    )


def _tokens(lvlm: LocalLVLM) -> Finding:
    if not is_known(lvlm.model):
        raise RuntimeError("the family is not known")
    try:
        told = f"ids {safety_tokens(lvlm._host)} are to spare"
    except ConfigurationError as error:
        remedy = "Name two tokens that never begin an answer: sightrail fit casa --tokens A B."
        return Finding("casa: safety tokens", "does not hold", str(error), remedy)
    return Finding("casa: safety tokens", "ok", told)


def _picture_seen(lvlm: LocalLVLM) -> Finding:
    """Repaint each edge of a wide and of a high picture: the processor's pixels have to change."""
    lost = []
    for name, (width, height), sides in (
        ("wide", (480, 160), ("left", "right")),
        ("high", (160, 480), ("top", "bottom")),
    ):
        picture = _ask(width=width, height=height)[0]["content"][0]["image"]
        plain = _pixels(lvlm, picture)
        for side in sides:
            pixels = np.asarray(picture).copy()
            pixels[_EDGES[side]] = 255 - pixels[_EDGES[side]]
            other = _pixels(lvlm, Image.fromarray(pixels))
            lost += [f"the {side} of a {name} one"] if all(map(torch.equal, plain, other)) else []
    return _finding(
        "picture",
        not lost,
        f"the processor cuts the middle out of a picture: not seen are {', '.join(lost)}"
        if lost
        else "the processor shows the whole picture",
        "Screening looks at the whole, so it may flag what the model cannot see (such regions say "
        "cut_off). Pad pictures to squares (model.preprocessing.padded_to_square), and use borders "
        "with fixed sizing.",
    )


def _tools(lvlm: LocalLVLM) -> Finding:
    """Whether the template names a tool, and whether a call in its own form is read back."""
    style = style_of(lvlm.processor)
    if not style.declares:
        return Finding(
            "tools",
            "does not hold",
            "the chat template leaves out tools",
            "This model cannot be told of tools by its template; set processor.chat_template to "
            "one that can, or choose another model.",
        )
    asked = replace(read_messages(_QUESTION), tools=read_tools([_TOOL]))
    written = _written_call(lvlm, asked, thinks=style.thinks, turns=style.turns)
    reader = lvlm._host.reader(asked, None)
    assert reader is not None, "there are tools"
    tokens = lvlm.processor.tokenizer.encode(written, add_special_tokens=False)
    ends = {*end_tokens(lvlm.model.generation_config), lvlm.processor.tokenizer.eos_token_id}
    end = next((place for place, token in enumerate(tokens) if token in ends), None)
    read = reader.end(lvlm._host.decode(tokens[:end], reader)).calls
    form = "its template's own form" if style.turns else "the form that is taken for it"
    return _finding(
        "tools",
        read == (_CALL,),
        f"the chat template names tools; a call in {form} is "
        + ("read back" if read == (_CALL,) else f"read as {len(read)} calls: {written[:120]!r}"),
        "Say in tokenizer.response_template how this model writes its calls, or ask for a "
        "structured answer with response_format.",
    )


_TOOL: Final = {
    "name": "look_up_the_weather",
    "description": "The weather.",
    "parameters": {
        "type": "object",
        "properties": {"town": {"type": "string"}, "days": {"type": "integer"}},
    },
}
_CALL: Final = ToolCall("look_up_the_weather", {"town": "Oslo", "days": 3})


def _written_call(lvlm: LocalLVLM, asked: Conversation, *, thinks: bool, turns: bool) -> str:
    """A call as this model is to write it, and whatever its template puts behind the call."""
    if not turns:
        form = format_of(template_text(lvlm.processor)).forced
        arguments = json.dumps(_CALL.arguments)
        inner = f'{{"name": "{_CALL.name}", "{form.arguments}": {arguments}}}'
        call = f"{_CALL.name}{form.named}{arguments}" if form.named else inner
        return form.before + (f"[{call}]" if form.listed else call) + form.after
    called = Turn("assistant", (TextPart(""),), calls=(_CALL,))
    result = Turn("tool", (TextPart("Sunny."),), call_id=_CALL.id, name=_CALL.name)
    prompt = render(lvlm.processor, asked)
    whole = render(
        lvlm.processor,
        shaped(lvlm.processor, replace(asked, turns=(*asked.turns, called, result))),
    )
    prompt = prompt.rstrip().removesuffix("<think>") if thinks else prompt
    begun = next((n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), None)
    begun = min(len(prompt), len(whole)) if begun is None else begun
    return ("</think>" if thinks else "") + whole[begun:]


def _placement(lvlm: LocalLVLM) -> Finding:
    weights = dict(lvlm.model.named_parameters())
    devices = sorted({str(weight.device) for weight in weights.values()})
    formats = sorted({str(weight.dtype) for weight in weights.values()})
    size = sum(weight.numel() * weight.element_size() for weight in weights.values())
    broken = [
        name
        for name, weight in weights.items()
        if weight.is_floating_point()
        and weight.device.type != "meta"
        and not bool(weight.detach().isfinite().all())
    ]
    hooked = any(getattr(module, "_hf_hook", None) is not None for module in lvlm.model.modules())
    nowhere = [name for name, weight in weights.items() if weight.is_meta and not hooked]
    detail = f"{size / 2**30:.2f} GiB in {', '.join(formats)} on {', '.join(devices)}"
    if broken:
        detail += f"; {len(broken)} weights hold no numbers, such as {broken[0]}"
    if nowhere:
        detail += f"; {len(nowhere)} weights were never loaded, such as {nowhere[0]}"
    return _finding(
        "placement",
        not broken and not nowhere,
        detail,
        "The checkpoint is broken, or was loaded in part; download it anew and load it with "
        "LocalLVLM.from_pretrained.",
    )


def _cost(lvlm: LocalLVLM) -> Finding:
    return _cost_of(lvlm, SafetyPrefix(calibration=AttentiveCalibration()), "cost")


def _cost_of(lvlm: LocalLVLM, guard: ModelGuardrail, name: str | None = None) -> Finding:
    """Seconds and bytes of a short answer, guarded against bare, whatever the guard decides."""
    watched = lvlm.with_guardrails([], policy=Policy(monitor=True))
    spent: list[tuple[float, int]] = []
    for model in (watched, watched.with_guardrails([guard])):
        work = partial(model.chat, _ask(), max_new_tokens=_TOKENS, min_new_tokens=_TOKENS)
        if any(verdict.status == "failed" for verdict in work().verdicts):
            raise RuntimeError("it failed on this model; see the log")
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
        spent.append((seconds, peak_bytes(work, lvlm._host.device)))
    (bare, least), (guarded, most) = spent
    detail = (
        f"{_TOKENS} tokens take {guarded / bare:.2f} times as long as bare ({bare:.2f} s) with "
        f"{type(guard).__name__}, and {most / 2**20:.1f} MiB at work in place of "
        f"{least / 2**20:.1f}"
    )
    return Finding(name or f"{type(guard).__name__}: cost", "ok", detail)


def _border(lvlm: LocalLVLM, guard: VisualSafetyPrompt) -> Finding:
    """Repaint each side of the border by itself: the processor's pixels have to change."""
    name = f"{type(guard).__name__}: border"
    lvlm.with_guardrails([guard])  # refuses what it knows to cut
    picture = _ask()[0]["content"][0]["image"]
    lost = []
    plain = _pixels(lvlm, guard.apply_to_image(picture))
    for side, part in _SIDES.items():
        pixels = guard.frame.pixels.copy()
        pixels[part] = 255 - pixels[part]
        frame = replace(guard.frame, pixels=pixels)
        other = _pixels(lvlm, replace(guard, frame=frame).apply_to_image(picture))
        lost += [side] if all(map(torch.equal, plain, other)) else []
    return _finding(
        name,
        not lost,
        f"of its four sides {4 - len(lost)} reach the model"
        + (f"; not {', '.join(lost)}" if lost else ""),
        "The processor cuts it off; use a square border of fixed size, or a processor that pads.",
    )


def _pixels(lvlm: LocalLVLM, image: Image.Image) -> list[torch.Tensor]:
    made = lvlm.processor.image_processor(image, return_tensors="pt")
    return [value for value in made.values() if isinstance(value, torch.Tensor)]


def _threshold(detector: RiskDetector) -> Finding:
    limit = detector.settings.thresholds().picture
    calibrated = detector.settings.score in detector.settings.calibrated
    return _finding(
        "threshold",
        calibrated,
        f"{limit.value:.3g}: {limit.source}",
        "Fit one on your own benign pictures: sightrail calibrate --encoder ... DIR.",
    )


def _scores(detector: RiskDetector, pictures: Sequence[Picture]) -> Finding:
    if not pictures:
        return Finding(
            "scores", "could not be tried", "no pictures were given", "Give some: --pictures DIR."
        )
    verdicts = detector.screen(pictures)
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    flagged = sum(verdict.status == "flagged" for verdict in verdicts)
    spread = float(np.ptp(scores)) if scores else 0.0
    middle = float(np.median(scores)) if scores else float("nan")
    detail = f"{flagged} of {len(verdicts)} flagged, scores {middle:.3g} +- {spread / 2:.2g}"
    return _finding(
        "scores",
        len(scores) == len(verdicts)
        and (len(scores) < 2 or spread > 0)
        and flagged < len(verdicts),
        detail,
        "All of your pictures look alike to this encoder, or cannot be looked at; calibrate the "
        "threshold, or use another encoder.",
    )


def _reading(reader: TextInPicture, lvlm: LocalLVLM) -> Finding:
    """Whether the reader reads a sentence, and tells one that asks for harm from others."""
    cards = [_card(text) for text in ("steps to forge a passport", "steps to bake a cake")]
    reader.screen(cards[:1])  # loads its models
    started = time.perf_counter()
    harmful, benign = reader.screen(cards)
    took = (time.perf_counter() - started) / len(cards)
    read = [round(verdict.measures.get("words", 0)) for verdict in (harmful, benign)]
    return _finding(
        "reading",
        (harmful.status, benign.status) == ("flagged", "clean"),
        f"{reader.name}: {read[0]} and {read[1]} words read, {harmful.status} and {benign.status}, "
        f"{took:.2f} s a picture",
        "Put another engine (Tesseract) or reader into TextInPicture.",
    )


def _card(text: str) -> Image.Image:
    card = Image.new("RGB", (640, 120), "white")
    ImageDraw.Draw(card).text((20, 40), text, font=ImageFont.load_default(36), fill="black")
    return card


def _judge(judge: Detector, lvlm: LocalLVLM) -> Finding:
    """Whether a judge gives an opinion that can be read, on a picture that shows nothing."""
    from .intake import read_picture

    started = time.perf_counter()
    (verdict,) = judge.screen([read_picture(Image.new("RGB", (320, 240), "grey"))])
    took = time.perf_counter() - started
    sure = "with probabilities" if verdict.measures.get("from_probabilities") else "yes or no alone"
    return _finding(
        "judge",
        verdict.status == "clean",
        f"a grey picture: {verdict.summary()}; {sure}, {took:.2f} s",
        "See that it can be reached and answers in the form of its profile; a judge that flags "
        "nothing at all needs another question or a threshold (JudgeDetector.calibrate).",
    )
