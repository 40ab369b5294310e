"""Fits on bases of every number format, wrapped and quantised; and within the memory there is."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from fit_helpers import CASA, DAVSP, EXAMPLES, PROTOTYPES, lvlm_of
from more_devices import FIRST, GRADIENTS, more_devices, spread
from repository import environment
from sightrail.guardrails import AttentiveCalibration, FitData, LocalLVLM, fit
from sightrail.guardrails.davsp.fit import BorderLearner, BorderLoss
from sightrail.guardrails.davsp.harmfulness import Direction
from sightrail.guardrails.davsp.placement import AroundPicture
from sightrail.guardrails.davsp.preprocess import DifferentiablePreprocessing
from sightrail.guardrails.davsp.requests import PictureRequest, Reader
from sightrail.guardrails.errors import ConfigurationError, FitMemoryError
from sightrail.guardrails.fitting import Resources, identify
from sightrail.guardrails.fitting.memory import Budget, frozen, in_pieces, layers_computed_twice
from sightrail.guardrails.fitting.run import FitRun
from sightrail.guardrails.model.families import text_tower
from sightrail.guardrails.moras import MorasSettings
from sightrail.guardrails.progress import silent
from tiny_models import fresh


def casa_of(lvlm: LocalLVLM, checkpoint: Path | None = None, **changes: Any) -> Any:
    resources = changes.pop("resources", None)
    settings = replace(CASA, **changes)
    return fit(
        "casa", lvlm, FitData(EXAMPLES), settings, checkpoint=checkpoint, resources=resources
    ).artifact.tensors


def border_of(lvlm: LocalLVLM, **resources: Any) -> torch.Tensor:
    """A border trained on a made-up direction: a random model refuses nothing."""
    model, processor = lvlm.model, lvlm.processor
    relative = lvlm.name != "llava"
    vector = torch.nn.functional.normalize(torch.arange(-32.0, 32.0), dim=0)
    loss = BorderLoss(
        Reader(model, processor),
        DifferentiablePreprocessing(processor.image_processor),
        AroundPicture((28, 28), 0.2, relative=relative, mean=(120.0, 120.0, 120.0)),
        Direction(2, vector.to(model.device), 50.0, -50.0, ()),
        DAVSP,
    )
    run = FitRun.begin(
        "davsp",
        lvlm,
        FitData(EXAMPLES),
        DAVSP,
        progress=silent,
        checkpoint=None,
        resources=Resources(**resources),
    )
    requests = [PictureRequest(example, None, "A dog.") for example in EXAMPLES]
    return BorderLearner.trained(loss, requests, run)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_fit_works_on_a_base_in_half_precision(family: str, dtype: torch.dtype) -> None:
    lvlm, exact = lvlm_of(family, dtype), lvlm_of(family)
    tensors = casa_of(lvlm)
    ups = [value for name, value in tensors.items() if name.endswith("lora_B")]
    assert ups
    assert all(bool(value.isfinite().all()) and float(value.abs().max()) > 0 for value in ups)
    data = FitData(EXAMPLES, prototypes=PROTOTYPES)
    settings = MorasSettings(context_tokens=3)
    half, full = (fit("moras", each, data, settings).artifact for each in (lvlm, exact))
    assert half.manifest.settings["base"] == pytest.approx(full.manifest.settings["base"], abs=0.1)
    border = border_of(lvlm)
    assert float((border - 120).abs().max()) >= 8
    assert {p.dtype for p in lvlm.model.parameters()} == {dtype}


@contextmanager
def placed(family: str, *, over_two: bool = True) -> Iterator[LocalLVLM]:
    """A model whose layers are on two pretended devices, or all on the first of them."""
    model, processor = fresh(family)
    with more_devices():
        spread(model) if over_two else model.to(FIRST)
        yield LocalLVLM(model, processor, name=family, gather=False)


def test_moras_is_fitted_over_two_devices() -> None:
    settings, data = MorasSettings(context_tokens=3), FitData(EXAMPLES, prototypes=PROTOTYPES)
    with placed("qwen2_vl") as lvlm:
        found = fit("moras", lvlm, data, settings).artifact
    expected = fit("moras", lvlm_of("qwen2_vl"), data, settings).artifact
    prototypes = found.tensors["prototypes"]
    torch.testing.assert_close(prototypes, expected.tensors["prototypes"], rtol=1e-4, atol=1e-4)
    base = expected.manifest.settings["base"]
    assert found.manifest.settings["base"] == pytest.approx(base, abs=1e-4)


gradients = pytest.mark.skipif(not GRADIENTS, reason="devices are made with g++ and ninja")


@gradients
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "mllama"])
def test_casa_is_fitted_over_two_devices(family: str, twice: bool) -> None:
    resources = Resources(gradient_checkpointing=twice)
    with placed(family) as lvlm:
        found = casa_of(lvlm, resources=resources)
    with placed(family, over_two=False) as lvlm:
        expected = casa_of(lvlm, resources=resources)
    assert any(name.endswith("lora_B") for name in found)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].cpu(), values.cpu()) for name, values in expected.items())


@gradients
@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_border_is_fitted_over_two_devices(family: str, twice: bool) -> None:
    with placed(family) as lvlm:
        found = border_of(lvlm, gradient_checkpointing=twice).cpu()
    with placed(family, over_two=False) as lvlm:
        expected = border_of(lvlm, gradient_checkpointing=twice).cpu()
    assert float((found - 120).abs().max()) >= 8
    assert torch.equal(found, expected)


def with_adapters() -> LocalLVLM:
    model, processor = fresh("llava")
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return LocalLVLM(get_peft_model(model, config).eval(), processor, name="llava")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's own
def test_a_base_with_adapters_keeps_them_and_is_another_model() -> None:
    lvlm = with_adapters()
    before = {name: value.clone() for name, value in lvlm.model.state_dict().items()}
    fitted = fit("casa", lvlm, FitData(EXAMPLES, held_out=EXAMPLES), CASA)
    after = lvlm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert lvlm.model.peft_config, "still wrapped"
    assert fitted.artifact.manifest.base != identify(fresh("llava")[0], "llava")
    assert lvlm.with_guardrails([fitted.guardrail]).assess("What is it?")[0].score is not None
    assert float((border_of(lvlm) - 120).abs().max()) >= 8
    data = FitData(EXAMPLES, prototypes=PROTOTYPES)
    assert fit("moras", lvlm, data, MorasSettings(context_tokens=3)).artifact.tensors


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_fitted_as_it_is(bits: int) -> None:
    """In 4 bits as people fit models of 7B; skipped where bitsandbytes is not installed."""
    bnb = pytest.importorskip("bitsandbytes")
    model, processor = fresh("llava")
    tower = text_tower(model, wanted_by="a test")
    for block in tower.blocks:
        for name, linear in list(block.named_modules()):
            if isinstance(linear, nn.Linear):
                _set(block, name, _quantised(bnb, linear, bits))
    lvlm = LocalLVLM(model, processor, name="llava")
    kinds = {type(module) for module in tower.module.modules()}
    tensors = casa_of(lvlm)
    assert kinds == {type(module) for module in tower.module.modules()}
    ups = [value for name, value in tensors.items() if name.endswith("lora_B")]
    assert len(ups) == 24
    assert all(float(value.abs().max()) > 0 for value in ups)
    assert float((border_of(lvlm) - 120).abs().max()) >= 8


def _quantised(bnb: Any, linear: nn.Linear, bits: int) -> Any:
    size = (linear.in_features, linear.out_features)
    made: Any = (
        bnb.nn.Linear4bit(*size, bias=False, compute_dtype=torch.float32)
        if bits == 4
        else bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False)
    )
    made.load_state_dict({"weight": linear.weight.detach()}, strict=False)
    return made.to("cpu").requires_grad_(False)


def _set(block: Any, name: str, module: Any) -> None:
    parent, _, last = name.rpartition(".")
    setattr(block.get_submodule(parent), last, module)


class Watched:
    """Sees the tokens of every forward pass, and has room for so many of them."""

    def __init__(self, model: Any, room: int | None = None) -> None:
        self.tokens: list[int] = []
        self.room = room
        model.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, module: Any, args: Any, kwargs: Any) -> None:
        seen = int(kwargs["input_ids"].numel())
        self.tokens.append(seen)
        if self.room is not None and seen > self.room:
            raise torch.OutOfMemoryError("no room")


@pytest.mark.parametrize("calibrated", [0.0, 1.0])
def test_a_batch_in_pieces_gives_what_it_gives_whole(calibrated: float) -> None:
    how: dict[str, Any] = {"calibrated": calibrated}
    if calibrated:
        how["calibration"] = AttentiveCalibration(gamma=2.0, band=(0.0, 1.0))
    whole = casa_of(lvlm_of(), **how)
    lvlm = lvlm_of()
    watched = Watched(lvlm.model)
    pieces = casa_of(lvlm, resources=Resources(tokens_at_once=120), **how)
    assert max(watched.tokens) <= 120
    for name, value in whole.items():  # the passes compute in bfloat16, and Adam steps by signs
        torch.testing.assert_close(pieces[name], value, rtol=0.05, atol=2e-2)


def test_a_border_in_pieces_is_the_border_of_the_whole() -> None:
    lvlm = lvlm_of()
    watched = Watched(lvlm.model)
    pieces = border_of(lvlm, tokens_at_once=1)
    assert len(watched.tokens) == DAVSP.steps * DAVSP.batch, "one request at a time"
    assert float((pieces != border_of(lvlm_of())).float().mean()) < 0.02, "signs of tiny slopes"


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3", "mllama"])
def test_layers_computed_twice_give_the_same(family: str) -> None:
    strong = AttentiveCalibration(gamma=2.0, band=(0.0, 1.0))
    how: dict[str, Any] = {"calibrated": 0.5, "calibration": strong, "seed": 3}
    if family == "mllama":
        how = {}  # its calibration is refused
    once, twice = (
        casa_of(lvlm_of(family), resources=Resources(gradient_checkpointing=again), **how)
        for again in (False, True)
    )
    for name, value in once.items():
        assert torch.equal(twice[name], value), name


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_border_through_layers_computed_twice_is_the_same(family: str) -> None:
    once = border_of(lvlm_of(family), gradient_checkpointing=False)
    assert torch.equal(border_of(lvlm_of(family), gradient_checkpointing=True), once)


@contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes that are kept for the way back, every storage once."""
    kept: dict[int, int] = {}
    total = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        total[0] = sum(kept.values())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total


def kept_bytes(*, freeze: bool, twice: bool) -> int:
    model, processor = fresh("llava")
    reader = Reader(model, processor)
    inputs = reader.inputs([PictureRequest(e).conversation() for e in EXAMPLES[:4]])
    inputs["pixel_values"].requires_grad_(True)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with counted() as total:
        if freeze:
            with frozen(model), layers_computed_twice(model, twice):
                reader.read(inputs, ["A dog."] * 4).answer_loss.sum()
        else:
            reader.read(inputs, ["A dog."] * 4).answer_loss.sum()
    assert weights
    return total[0]


def test_a_frozen_model_keeps_less_and_layers_computed_twice_least() -> None:
    free, still = kept_bytes(freeze=False, twice=False), kept_bytes(freeze=True, twice=False)
    assert free > 1.2 * still
    assert still > 2 * kept_bytes(freeze=True, twice=True)


def test_where_memory_runs_out_less_is_done_at_once() -> None:
    lvlm = lvlm_of()
    watched = Watched(lvlm.model, room=120)
    tensors = casa_of(lvlm)
    assert max(watched.tokens) > 120, "it was tried"
    assert all(bool(value.isfinite().all()) for value in tensors.values())


def test_one_request_too_many_says_what_to_do_and_goes_on_later(tmp_path: Path) -> None:
    lvlm = lvlm_of()
    watched = Watched(lvlm.model)

    def crowded(what: str, done: int, total: int) -> None:
        if what.startswith("training") and done == 1:
            watched.room = 10

    settings = replace(CASA, steps=3)
    with pytest.raises(FitMemoryError, match=r"gradient checkpointing on.*goes on"):
        fit(
            "casa",
            lvlm,
            FitData(EXAMPLES),
            settings,
            progress=crowded,
            checkpoint=tmp_path / "run",
        )
    watched.room, watched.tokens = None, []
    found = fit(
        "casa",
        lvlm,
        FitData(EXAMPLES),
        settings,
        checkpoint=tmp_path / "run",
        resources=Resources(tokens_at_once=8000),
    )
    assert len(watched.tokens) == 2, "two of three steps were left"
    for name, value in casa_of(lvlm_of(), steps=3).items():
        assert torch.equal(found.artifact.tensors[name], value)


def test_pieces_cover_every_row_once_however_often_memory_runs_out() -> None:
    seen: list[int] = []

    def work(rows: Any) -> None:
        if len(rows) > 3:
            raise torch.OutOfMemoryError
        seen.extend(rows)

    budget = Budget(10_000)
    in_pieces(range(17), 10, work, budget)
    assert seen == list(range(17))
    assert budget.rows(10) <= 3


def test_no_room_at_all_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="tokens_at_once"):
        Resources(tokens_at_once=0)


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import test_memory as t
def kill(what, done, total):
    if what.startswith("training") and done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
t.fit("casa", t.lvlm_of(), t.FitData(t.UNANSWERED), t.replace(t.CASA, steps=3),
      progress=kill, checkpoint=Path(sys.argv[1]))
"""
UNANSWERED = [replace(example, answer=None) for example in EXAMPLES]


def test_a_process_that_is_killed_goes_on_from_its_notes(tmp_path: Path) -> None:
    here = Path(__file__).parent
    folders = [str(here), str(here.parents[1])]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "run"), *folders],
        env=environment(),
        timeout=300,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    told: list[str] = []
    settings = replace(CASA, steps=3)
    resumed, whole = (
        fit(
            "casa",
            lvlm_of(),
            FitData(UNANSWERED),
            settings,
            progress=lambda what, done, total: told.append(what),
            checkpoint=checkpoint,
        )
        for checkpoint in (tmp_path / "run", None)
    )
    assert told.count("the model's own answers") == 1, "once for the run that was never killed"
    for name, value in whole.artifact.tensors.items():
        assert torch.equal(resumed.artifact.tensors[name], value)
