"""Generation settings, sampling, stop texts and streaming, on a tiny LLaVA."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LogitsProcessor

from lvlm_helpers import ROWS, Recorder, picture, user
from sightrail.guardrails.errors import Abandoned, ConfigurationError
from sightrail.guardrails.model import LocalLVLM
from sightrail.guardrails.model.interventions import Interventions
from sightrail.guardrails.model.processing import GumbelNoise
from sightrail.guardrails.model.stopping import find_stop, finished_text, showable_text
from tiny_models import fresh, tiny


@pytest.fixture(scope="module")
def lvlm() -> LocalLVLM:
    return LocalLVLM(*tiny("llava"))


ASK = user("What is in the image?", picture())
SHORT = {"max_new_tokens": 8}


def test_greedy_is_what_transformers_generates(lvlm: LocalLVLM) -> None:
    recorder = Recorder()
    answer = lvlm.with_guardrails([recorder]).chat(ASK, **SHORT)
    prompt = recorder.prompts[0]
    with torch.no_grad():
        tokens = lvlm.model.generate(**prompt.inputs, do_sample=False, max_new_tokens=8)
    expected = lvlm.processor.tokenizer.decode(tokens[0, prompt.length :], skip_special_tokens=True)
    assert answer.text == expected.strip()
    assert answer.usage.input_tokens == prompt.length
    assert answer.usage.output_tokens == 8
    assert (answer.finish_reason, answer.refused, answer.verdicts) == ("length", False, ())


def test_end_token_stops_and_is_counted() -> None:
    model, processor = fresh("llava")
    tokens = Recorder()
    LocalLVLM(model, processor, guardrails=[tokens]).chat(ASK, **SHORT)
    third = int(tokens.steps[2].argmax())
    model.generation_config.eos_token_id = [third]
    answer = LocalLVLM(model, processor).chat(ASK, **SHORT)
    first = next(i for i, step in enumerate(tokens.steps) if int(step.argmax()) == third)
    assert (answer.finish_reason, answer.usage.output_tokens) == ("stop", first + 1)


def test_sampling_defaults_of_the_checkpoint_do_not_matter() -> None:
    model, processor = fresh("llava")
    expected = LocalLVLM(model, processor).chat(ASK, **SHORT)
    model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.8, top_k=3)
    assert LocalLVLM(model, processor).chat(ASK, **SHORT) == expected


def test_seeded_sampling_repeats_itself_while_others_sample(lvlm: LocalLVLM) -> None:
    def sample(seed: int | None) -> str:
        return lvlm.chat(ASK, temperature=1.5, seed=seed, **SHORT).text

    alone = {seed: sample(seed) for seed in range(4)}
    assert len(set(alone.values())) > 1
    with ThreadPoolExecutor(8) as pool:
        jobs = [(seed, pool.submit(sample, seed)) for seed in [0, 1, None, 2, 3, None, 0, 1]]
        assert all(job.result() == alone[seed] for seed, job in jobs if seed is not None)


def test_without_a_seed_torch_governs(lvlm: LocalLVLM) -> None:
    def sample() -> str:
        return lvlm.chat(ASK, temperature=1.5, **SHORT).text

    with torch.random.fork_rng():
        torch.manual_seed(3)
        first = [sample(), sample()]
        torch.manual_seed(3)
        assert [sample(), sample()] == first
    assert first[0] != first[1]


def test_sampled_batch_row_equals_the_row_alone(lvlm: LocalLVLM) -> None:
    options = {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "seed": 5, **SHORT}
    assert lvlm.batch(ROWS, **options) == [lvlm.chat(row, **options) for row in ROWS]


def test_gumbel_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -torch.inf])
    noise = GumbelNoise([11])
    draws = torch.stack(
        [noise(torch.zeros(1, 1), logits[None]).argmax() for _ in range(4000)]
    ).bincount(minlength=4)
    torch.testing.assert_close(draws / 4000, logits.softmax(0), atol=0.03, rtol=0)
    assert draws[3] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"stop": ["", "x"]}, "stop"),
        ({"do_sample": True}, "do_sample"),
        ({"streamer": None}, "streamer"),
        ({"no_such_setting": 1}, "no_such_setting"),
        ({"num_beams": 2, "temperature": 1.0}, "num_beams=2"),
    ],
)
def test_bad_options(lvlm: LocalLVLM, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        lvlm.chat("Hi", **options)


def test_streaming_with_beams_is_refused(lvlm: LocalLVLM) -> None:
    with pytest.raises(ConfigurationError, match="one beam"):
        list(lvlm.stream("Hi", num_beams=2))


def test_stop_texts(lvlm: LocalLVLM) -> None:
    full = lvlm.chat(ASK, max_new_tokens=30)
    middle = len(full.text) // 2
    stop = full.text[middle : middle + 2]
    expected = full.text[: full.text.find(stop)].strip()
    answer = lvlm.chat(ASK, max_new_tokens=30, stop=["never there", stop])
    assert (answer.text, answer.finish_reason) == (expected, "stop")
    assert answer.usage.output_tokens < full.usage.output_tokens
    assert lvlm.chat(ASK, max_new_tokens=30, stop=stop) == answer
    *_, last = chunks = list(lvlm.stream(ASK, max_new_tokens=30, stop=[stop]))
    assert last.answer == answer
    assert "".join(chunk.text for chunk in chunks) == expected
    together = lvlm.batch([ASK, ROWS[1]], max_new_tokens=30, stop=[stop])
    assert together[0] == answer
    assert together[1] == lvlm.chat(ROWS[1], max_new_tokens=30, stop=[stop])


@given(
    text=st.text("ab \n", max_size=12),
    stop=st.lists(st.text("ab", min_size=1, max_size=3), max_size=2),
)
def test_what_is_shown_early_is_never_taken_back(text: str, stop: list[str]) -> None:
    grown = [text[:n] for n in range(len(text) + 1)]
    ended = next((n for n, part in enumerate(grown) if find_stop(part, stop) is not None), None)
    grown = grown if ended is None else grown[: ended + 1]  # generation goes no further
    final = finished_text(grown[-1], stop)
    assert all(final.startswith(showable_text(part, stop)) for part in grown)


def test_stream_equals_chat(lvlm: LocalLVLM) -> None:
    chunks = list(lvlm.stream(ASK, max_new_tokens=60))
    assert len(chunks) > 3
    assert [chunk.answer is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    answer = lvlm.chat(ASK, max_new_tokens=60)
    assert chunks[-1].answer == answer
    assert "".join(chunk.text for chunk in chunks) == answer.text


def _stream_threads() -> list[threading.Thread]:
    """What is still at work; a thread takes a moment to end after its last answer."""
    ours = [t for t in threading.enumerate() if t.name.startswith("sightrail-")]
    for thread in ours:
        thread.join(0.5)
    return [t for t in ours if t.is_alive()]


def test_closing_a_stream_early_ends_the_generation(lvlm: LocalLVLM) -> None:
    recorder = Recorder()
    chunks = lvlm.with_guardrails([recorder]).stream(ASK, max_new_tokens=2000 - 100)
    next(chunks)
    assert _stream_threads()
    chunks.close()
    assert not _stream_threads()
    assert len(recorder.steps) < 1000


def test_an_error_in_the_thread_is_raised_in_the_reader() -> None:
    model, processor = fresh("llava")

    def fail(*_: object) -> None:
        raise ZeroDivisionError("in the middle of generation")

    model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        list(LocalLVLM(model, processor).stream(ASK, **SHORT))
    assert not _stream_threads()


user_variable: contextvars.ContextVar[str] = contextvars.ContextVar("user_variable")


class Reader(LogitsProcessor):
    """Notes a context variable of the caller."""

    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(user_variable.get())
        return scores


class ReadingGuard(Recorder):
    """Collects what the context of the generating thread holds."""

    def interventions(self, prompt: object, host: object) -> Interventions:
        return Interventions(logits=[Reader(self.steps)])  # type: ignore[arg-type]


def test_the_thread_has_the_callers_context(lvlm: LocalLVLM) -> None:
    guard = ReadingGuard()
    token = user_variable.set("caller")
    try:
        list(lvlm.with_guardrails([guard]).stream(ASK, **SHORT))
    finally:
        user_variable.reset(token)
    assert set(guard.steps) == {"caller"}


async def test_async_twins(lvlm: LocalLVLM) -> None:
    answer, batch, *rest = await asyncio.gather(
        lvlm.achat(ASK, **SHORT),
        lvlm.abatch(ROWS, **SHORT),
        *(lvlm.achat(row, **SHORT) for row in ROWS),
    )
    assert answer == lvlm.chat(ASK, **SHORT)
    assert batch == rest == lvlm.batch(ROWS, **SHORT)
    chunks = [chunk async for chunk in lvlm.astream(ASK, **SHORT)]
    assert chunks[-1].answer == answer


async def test_leaving_an_async_stream_ends_the_generation(lvlm: LocalLVLM) -> None:
    chunks = lvlm.astream(ASK, max_new_tokens=1900)
    async for _ in chunks:
        break
    await chunks.aclose()
    assert not _stream_threads()


async def test_cancelling_a_task_ends_its_stream(lvlm: LocalLVLM) -> None:
    async def read() -> None:
        async for _ in lvlm.astream(ASK, max_new_tokens=1900):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline = time.monotonic() + 10
    while _stream_threads() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert not _stream_threads()


async def test_cancelling_a_task_ends_its_answer(lvlm: LocalLVLM) -> None:
    steps: list[float] = []
    counting = lvlm.model.register_forward_pre_hook(lambda *_: steps.append(time.monotonic()))
    try:
        task = asyncio.create_task(lvlm.achat(ASK, max_new_tokens=1900, min_new_tokens=1900))
        while not steps:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        seen = -1
        while seen != len(steps):
            seen = len(steps)
            await asyncio.sleep(0.5)
    finally:
        counting.remove()
    assert len(steps) < 1900


async def test_an_answer_ends_when_its_caller_says_so(lvlm: LocalLVLM) -> None:
    cancel = threading.Event()
    endless: dict[str, Any] = {"max_new_tokens": 1900, "min_new_tokens": 1900, "cancel": cancel}
    steps: list[int] = []

    def counted(*_: object) -> None:
        steps.append(1)
        if len(steps) == 3:
            cancel.set()

    counting = lvlm.model.register_forward_pre_hook(counted)
    try:
        with pytest.raises(Abandoned):
            await lvlm.achat(ASK, **endless)
        with pytest.raises(Abandoned):
            await lvlm.abatch(ROWS, **endless)
        with pytest.raises(Abandoned):
            lvlm.chat(ASK, **endless)
    finally:
        counting.remove()
    assert 3 <= len(steps) < 100


async def test_an_async_stream_ends_when_its_caller_says_so(lvlm: LocalLVLM) -> None:
    cancel, pieces = threading.Event(), 0
    async for _ in lvlm.astream(ASK, cancel=cancel, max_new_tokens=1900, min_new_tokens=1900):
        pieces += 1
        cancel.set()
    assert 0 < pieces < 100


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not _stream_threads()


@pytest.mark.parametrize(
    "setting", [{"repetition_penalty": 2}, {"temperature": 1, "seed": 3}, {"length_penalty": 1}]
)
def test_a_whole_number_does_where_a_fraction_does(
    lvlm: LocalLVLM, setting: dict[str, Any]
) -> None:
    as_float = {k: float(v) if k != "seed" else v for k, v in setting.items()}
    assert lvlm.chat(ASK, **setting, **SHORT).text == lvlm.chat(ASK, **as_float, **SHORT).text
