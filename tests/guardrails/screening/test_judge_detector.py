"""A judge model as a detector: local ones, served ones, and whatever they fail to answer."""

from __future__ import annotations

import pickle
import socket
import threading
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from torch.nn import functional

import tiny_models
from judge_helpers import judging, said, slowly
from lvlm_helpers import picture
from sightrail.guardrails import ConfigurationError, LocalLVLM, Picture, Policy
from sightrail.guardrails.carriers.loop import ask
from sightrail.guardrails.errors import ModelLoadError
from sightrail.guardrails.judging import Endpoint, EndpointJudge, JudgeCase
from sightrail.guardrails.judging.local import LocalJudge, ShieldGemmaJudge
from sightrail.guardrails.screening.judge_detector import JudgeDetector
from sightrail.guardrails.verdict import NotInspected
from sightrail.testbed.conversations import draw_attack, draw_benign
from sightrail.testbed.picture_judge import judge_profile
from sightrail.testbed.splits import SPLITS
from tiny_parts import text_config
from tiny_tokenizers import byte_level_tokenizer
from web_helpers import Answer, respond, serving

CALIBRATION = SPLITS["calibration"]


@pytest.fixture(scope="module")
def mini() -> JudgeDetector:
    return JudgeDetector(LocalJudge.from_pretrained("testbed", judge_profile("object")))


def scenes(draw, n: int) -> list[Image.Image]:
    rng = CALIBRATION.rng(77)
    return [draw(rng, CALIBRATION).scene.image for _ in range(n)]


@pytest.fixture(scope="module")
def attacks() -> list[Image.Image]:
    return scenes(lambda rng, split: draw_attack(rng, split, "object"), 12)


@pytest.fixture(scope="module")
def benign() -> list[Image.Image]:
    return scenes(draw_benign, 12)


def test_the_mini_judge_tells_unsafe_scenes_from_others(mini, attacks, benign) -> None:
    bad, good = mini.screen(attacks), mini.screen(benign)
    assert sum(verdict.status == "flagged" for verdict in bad) >= 11
    assert sum(verdict.status == "flagged" for verdict in good) <= 1
    assert bad[0].measures["from_probabilities"] == 1
    assert Policy().decide(bad[0]) == "refuse"  # it says nothing of where


def test_a_batch_is_judged_as_each_alone(mini, attacks) -> None:
    together = mini.screen(attacks[:3])
    alone = [mini.screen([image])[0] for image in attacks[:3]]
    for one, other in zip(together, alone, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_a_threshold_with_a_promise(mini, attacks, benign) -> None:
    fitted = mini.calibrate(
        benign, false_alarms=0.1, confidence=None, source="scenes", attacks=attacks
    )
    verdict = fitted.screen(attacks[:1])[0]
    assert verdict.threshold.false_alarms == 0.1
    assert verdict.p_value == pytest.approx(1 / 13)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_any_family_is_asked_and_an_answer_that_is_none_is_not_safe(name) -> None:
    model, processor = getattr(tiny_models, name)()
    judge = LocalJudge(model.eval(), processor, "yes-no", batch_size=2)
    cases = [JudgeCase(picture(i), text) for i, text in enumerate(("a", None, "b"))]
    found = judge.judge([*cases, JudgeCase(text="alone")])
    assert [opinion.reason for opinion in found] == ["judge_unparsable"] * 4


def test_a_local_judges_answer_comes_token_by_token(mini, attacks) -> None:
    [reply] = mini.judge._answer([JudgeCase(attacks[0])])
    assert "".join(token.text for token in reply.tokens) == reply.text
    for token in reply.tokens:
        best = max(token.alternatives, key=token.alternatives.get)
        assert best.strip() == token.text.strip()  # greedy: the likeliest is what was said
        assert token.alternatives[best] <= 0


GUARD = (
    "{{ bos_token }}<|start_header_id|>user<|end_header_id|>\n\nIs the last turn safe?\n"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | trim }}\n"
    "{% endfor %}<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
)


def text_judge(says: str, folder: Path, *, pads: bool = True) -> LocalJudge:
    """A model of text with a template like Llama Guard's, which always says the same."""
    marks = ["<|start_header_id|>", "<|end_header_id|>"]
    ends = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    tokenizer = byte_level_tokenizer(marks, **ends)
    tokenizer.chat_template = GUARD
    tokenizer.pad_token = tokenizer.pad_token if pads else None
    config = text_config("llama", eos_token_id=tokenizer.eos_token_id)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**config))
    begun = tokenizer.convert_tokens_to_ids("<|end_header_id|>")
    chain = [begun, *tokenizer.encode(says, add_special_tokens=False), tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain)
    with torch.no_grad():  # each token calls for the next, whatever stood before
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        words = model.model.embed_tokens.weight
        model.lm_head.weight.zero_()
        for token, after in pairwise(chain):
            model.lm_head.weight[after] = functional.normalize(words[token], dim=0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return LocalJudge.from_pretrained(folder, "llama-guard-3", device="cpu")


@pytest.mark.parametrize("pads", [True, False])
def test_a_judge_that_reads_text_alone_judges_texts_and_says_so_of_pictures(
    tmp_path: Path, pads: bool
) -> None:
    judge = text_judge("unsafe\nS2", tmp_path, pads=pads)
    assert (judge.processor.pad_token is not None) == pads
    image = picture(0)
    cases = [JudgeCase(text="a"), JudgeCase(image, "and a text"), JudgeCase(text="a longer one")]
    text, shown, longer, answer = judge.judge([*cases, JudgeCase(text="a", answer="b")])
    assert [(each.unsafe, each.category) for each in (text, longer, answer)] == [
        (True, "non-violent crimes")
    ] * 3
    assert text.from_probabilities
    assert isinstance(shown, NotInspected)
    assert shown.reason == "judge_reads_text_alone"
    (verdict,) = JudgeDetector(judge).screen([image])
    assert (verdict.status, Policy().decide(verdict)) == ("not_inspected", "refuse")


def test_a_model_that_reads_text_alone_answers_no_pictures(tmp_path: Path) -> None:
    text_judge("safe", tmp_path)
    with pytest.raises(ModelLoadError, match="'llama' is no model that reads pictures"):
        LocalLVLM.from_pretrained(tmp_path)


def shieldgemma(yes: int, no: int) -> ShieldGemmaJudge:
    """The real classes, tiny, with these tokens for Yes and No."""
    torch.manual_seed(0)
    model, processor = tiny_models.gemma3()
    known = model.config
    config = hf.ShieldGemma2Config(
        text_config=known.text_config.to_dict(),
        vision_config=known.vision_config.to_dict(),
        mm_tokens_per_image=known.mm_tokens_per_image,
        image_token_index=processor.tokenizer.image_token_id,
    )
    config.yes_token_index, config.no_token_index = yes, no
    shield = hf.ShieldGemma2Processor(
        processor.image_processor,
        processor.tokenizer,
        chat_template=processor.chat_template,
        image_seq_length=processor.image_seq_length,
    )
    torch.manual_seed(1)
    return ShieldGemmaJudge(hf.ShieldGemma2ForImageClassification(config).eval(), shield)


def test_shieldgemma_takes_the_first_column_for_yes_it_violates() -> None:
    judge, mirrored = shieldgemma(yes=10, no=11), shieldgemma(yes=11, no=10)
    cases = [JudgeCase(picture(1)), JudgeCase(text="x"), JudgeCase(picture(2))]
    first, text, second = judge.judge(cases)
    assert isinstance(text, NotInspected)
    assert {first.category, second.category} <= set(judge.processor.policy_definitions)
    yes, no = (j._probabilities([picture(1)]) for j in (judge, mirrored))
    assert torch.allclose(yes + no, torch.ones_like(yes), atol=1e-5)
    assert first.score == pytest.approx(float(yes.max()), abs=1e-4)
    assert first.unsafe is (first.score >= 0.5)


# Served ones


def served(server, **settings) -> JudgeDetector:
    endpoint = server.endpoint(timeout_s=settings.pop("timeout_s", 20))
    return JudgeDetector(EndpointJudge(endpoint, "yes-no"), **settings)


def test_a_served_judge_decides() -> None:
    with judging(said("Yes")) as server:
        verdict = served(server).screen([picture(1)])[0]
    assert (verdict.status, verdict.guardrail, verdict.score) == ("flagged", "judge", 1.0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (said("I would rather not say."), "judge_unparsable"),
        (said(None, refusal="no"), "judge_refused"),
        (slowly(1.2, said("No")), "judge_timed_out"),
        (lambda path, body: (500, {}), "judge_http_error"),
    ],
)
def test_what_is_no_answer_is_not_inspected(answer, reason) -> None:
    with judging(answer) as server:
        seconds = 0.5 if reason == "judge_timed_out" else 20
        verdict = served(server, timeout_s=seconds).screen([picture(1)])[0]
    assert verdict.status == "not_inspected"
    assert [gap.reason for gap in verdict.not_inspected] == [reason]
    assert Policy().decide(verdict) == "refuse"


SILENCE = threading.Event()


def keeps_still(connection: socket.socket, request: str) -> None:
    SILENCE.wait(30)


def drips(head: bytes) -> Answer:
    """An answer that never ends, a byte at a time: no single read of it takes long."""

    def answer(connection: socket.socket, request: str) -> None:
        connection.sendall(head)
        for _ in range(1500):
            if SILENCE.wait(0.02):
                return
            connection.sendall(b"a")

    return answer


OK = b"HTTP/1.1 200 OK\r\n"
FAULTS: dict[str, tuple[Answer, str, int]] = {
    "silent": (keeps_still, "timed_out", 2),
    "headers that never end": (drips(OK + b"X: "), "timed_out", 2),
    "a body that never ends": (drips(OK + b"Content-Length: 5000\r\n\r\n"), "timed_out", 2),
    "cut off": (lambda to, _: to.sendall(OK + b"Content-Length: 500\r\n\r\n{"), "unreachable", 2),
    "hangs up": (lambda to, _: None, "unreachable", 2),
    "another protocol": (lambda to, _: to.sendall(b"220 ready\r\n"), "unreachable", 2),
    "a page": (respond("200 OK", b"<html>No such route</html>"), "unreadable", 1),
    "another's JSON": (respond("200 OK", b'{"error": {"message": "no"}}'), "unreadable", 1),
    "broken gzip": (respond("200 OK", b"no gzip", Content_Encoding="gzip"), "unreadable", 1),
    "busy for an hour": (respond("429 Slow Down", Retry_After="3600"), "http_error", 1),
    "busy": (respond("429 Slow Down", Retry_After="0.01"), "http_error", 2),
    "moved": (respond("302 Found", Location="http://127.0.0.1:1/"), "http_error", 1),
}


def after_the_request(answer: Answer) -> Answer:
    """The answer of a server that has read what it was sent."""

    def reply(connection: socket.socket, request: str) -> None:
        head, _, body = request.partition("\r\n\r\n")
        while len(body) < int(head.lower().split("content-length: ")[1].split()[0]):
            body += connection.recv(65536).decode("latin-1")
        answer(connection, request)

    return reply


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_is_broken_leaves_a_picture_not_inspected(fault: str) -> None:
    answer, reason, tries = FAULTS[fault]
    SILENCE.clear()
    with serving({"/v1/chat/completions": after_the_request(answer)}) as server:
        endpoint = Endpoint(
            base_url=f"http://127.0.0.1:{server.port}/v1",
            model="judge",
            timeout_s=0.4 if reason == "timed_out" else 20,
            budget_s=30,
            retries=1,
        )
        verdict = JudgeDetector(EndpointJudge(endpoint, "yes-no")).screen([picture(1)])[0]
        SILENCE.set()
    assert verdict.status == "not_inspected"
    assert [gap.reason for gap in verdict.not_inspected] == [f"judge_{reason}"]
    assert Policy().decide(verdict) == "refuse"
    assert server.accepted == tries


def test_every_frame_is_judged_and_more_than_that_is_not_inspected() -> None:
    views = tuple(picture(i) for i in range(3))
    seen = Picture(views[0], views)
    with judging(said("No")) as server:
        assert served(server).screen([seen])[0].frames == 3
        few = served(server, max_views=2).screen([seen])[0]
    assert len(server.asked) == 5
    assert [gap.reason for gap in few.not_inspected] == ["too_many_views"]


def test_the_requests_words_go_along_only_where_they_are_wanted() -> None:
    shown = Picture(picture(1), (picture(1),), request="how do these fit together?")
    with judging(said("No")) as server:
        for with_request in (True, False):
            detector = served(server, with_request=with_request)
            assert detector.wants_request is with_request
            ask(detector, [shown])
    told = [str(body["messages"]) for body in server.asked]
    assert ["fit together" in text for text in told] == [True, False]


def test_a_large_picture_is_sent_smaller() -> None:
    with judging(said("No")) as server:
        served(server, max_side=32).screen([Image.effect_noise((400, 100), 90)])
        served(server, max_side=400).screen([Image.effect_noise((400, 100), 90)])
    small, large = (len(str(body)) for body in server.asked)
    assert small * 5 < large


def test_it_travels() -> None:
    with judging(said("Yes")) as server:
        copy = pickle.loads(pickle.dumps(served(server)))
        assert copy.screen([picture(1)])[0].status == "flagged"


def test_what_is_no_judge() -> None:
    with pytest.raises(ConfigurationError, match="no judge"):
        JudgeDetector(lambda cases: cases)
    with judging(said("No")) as server, pytest.raises(ConfigurationError):
        served(server, max_views=0)
    with pytest.raises(ConfigurationError, match="yes-no"):
        LocalJudge(None, None, "llamaguard")
    with pytest.raises(ConfigurationError, match="loaded here"):
        LocalJudge(None, None, "omni-moderation")
