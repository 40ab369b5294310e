"""A checkpoint that is broken, or of another kind, is a typed error that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from cli_helpers import run_cli
from lvlm_helpers import user
from sightrail.guardrails import LocalLVLM
from sightrail.guardrails.errors import ModelLoadError, PromptError
from tiny_models import tiny

WEIGHTS, TEMPLATE = "model.safetensors", "chat_template.jinja"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    model, processor = tiny("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def wrong_header(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(b"\xff" * 8 + content[8:])


def changed(change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        name = next(name for name in tensors if "layers.1.self_attn.q_proj" in name)
        value = change(tensors.pop(name))
        more = {} if value is None else {name: value.contiguous()}
        save_file(tensors | more, folder / WEIGHTS, metadata={"format": "pt"})

    return write


def text_only(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    config = hf.LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                            num_attention_heads=1, vocab_size=600)  # fmt: skip
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    tiny("llava")[1].tokenizer.save_pretrained(folder)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncated, "download them anew"),
    "wrong header": (wrong_header, "header"),
    "empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "header"),
    "other shapes": (changed(lambda value: value[:-1]), "mismatched"),
    "weights missing": (changed(lambda value: None), "lacks 1 of its weights, such as"),
    "NaN": (changed(lambda value: value * torch.nan), "hold values that are no numbers"),
    "infinite": (changed(lambda value: value / 0), "hold values that are no numbers"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    "config": (lambda folder: (folder / "config.json").write_text("{"), "config"),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), "processor"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "Cannot load"),
    "text only": (text_only, "'llama' is no model that reads pictures"),
}


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_says_what_to_do(kind: str, folder: Path) -> None:
    spoil, said = BROKEN[kind]
    spoil(folder)
    with pytest.raises(ModelLoadError, match=said) as raised:
        LocalLVLM.from_pretrained(folder, device="cpu")
    assert "a folder that holds one" in str(raised.value)


def test_a_whole_one_loads(folder: Path) -> None:
    LocalLVLM.from_pretrained(folder, device="cpu").chat("Hi", max_new_tokens=1)


def test_a_model_that_does_not_fit_says_how_it_would(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(hf.LlavaForConditionalGeneration, "to", full)
    with pytest.raises(ModelLoadError, match=r"memory.*4bit.*device_map"):
        LocalLVLM.from_pretrained(folder, device="cpu")


def test_without_a_chat_template_it_says_where_one_goes(folder: Path) -> None:
    (folder / TEMPLATE).unlink()
    lvlm = LocalLVLM.from_pretrained(folder, device="cpu")
    with pytest.raises(PromptError, match=rf"no chat template.*{TEMPLATE}"):
        lvlm.chat(user("Hm?"))
    (folder / TEMPLATE).write_text("{% for %}")
    with pytest.raises(PromptError, match=r"set processor\.chat_template"):
        LocalLVLM.from_pretrained(folder, device="cpu").chat(user("Hm?"))


@pytest.mark.parametrize("kind", ["truncated", "text only", "no template"])
@pytest.mark.parametrize(
    "command",
    [
        ("doctor",),
        ("chat", "Hm?"),
        ("calibrate", "data.jsonl", "--stack", "casa", "--source", "x", "--casa", "testbed"),
        ("eval", "--n", "2", "--stack", "prefix"),
        ("serve", "--check", "--stack", "prefix"),
        ("fit", "casa", "--data", "data.jsonl", "--out", "out"),
        ("fit", "davsp", "--data", "data.jsonl", "--out", "out"),
        ("fit", "moras", "--data", "data.jsonl", "--prototypes", "asked.jsonl", "--out", "out"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_every_command_says_it_in_a_line(
    command: tuple[str, ...], kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "no template":
        (folder / TEMPLATE).unlink()
    else:
        BROKEN[kind][0](folder)
    monkeypatch.chdir(folder.parent)
    drawn = [{"text": f"Object {n}?", "label": ("benign", "harmful")[n % 2]} for n in range(60)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, drawn)))
    Path("asked.jsonl").write_text("\n".join(map(json.dumps, drawn[1::2])))
    done = run_cli(*command, "--model", folder, "--device", "cpu")
    if kind == "no template" and command[0] in ("doctor", "serve"):
        # Served, each request says it; the check-up goes on and tells it.
        assert done.exit_code in (0, 1), done.output
        assert command[0] == "serve" or "chat template" in " ".join(done.output.split())
        return
    assert done.exit_code == 69, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert "error: " in done.output
