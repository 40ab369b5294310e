"""Loading a model and its processor by name, through transformers' own loaders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
)

from ..embedded import TESTBED, embedded_folder
from ..errors import ConfigurationError, ModelLoadError
from .families import PART_OF, is_quantized

if TYPE_CHECKING:
    from transformers.utils.quantization_config import QuantizationConfigMixin

DTYPES: Final = ("auto", "float32", "float16", "bfloat16")
QUANTIZATIONS: Final = ("4bit", "8bit")

Device = str | torch.device | None
DeviceMap = str | Mapping[str, int | str | torch.device] | None


def load_model(
    name: str | Path,
    *,
    device: Device = None,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap = None,
    quantization: QuantizationConfigMixin | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    local_files_only: bool | None = None,
    text_alone: bool = False,
    **model_kwargs: Any,
) -> tuple[Any, Any]:
    """Load ``(model, processor)``.

    Args:
        name: a Hugging Face Hub id, a folder, or ``"testbed"`` for the embedded miniature model.
        device: where to put all of it; default the first GPU, else the CPU. Not with
            ``device_map``.
        dtype: number format, as a torch dtype or one of ``DTYPES``; default ``"auto"``, the one the
            checkpoint was saved in.
        device_map: spreads it over several devices, as accelerate does: ``"auto"`` or module name
            -> device.
        quantization: packs the weights while loading: ``"4bit"`` or ``"8bit"`` (bitsandbytes), or
            any configuration of transformers (torchao, HQQ, ...).
        revision: commit, branch or tag on the Hub.
        trust_remote_code: run Python code that comes with the checkpoint.
        local_files_only: do not go to the network; ``HF_HUB_OFFLINE`` is honoured in any case.
        text_alone: a model that reads no pictures will do as well; its processor is a tokenizer.
        model_kwargs: passed to ``AutoModelForImageTextToText.from_pretrained``.

    Raises:
        ConfigurationError: ``device`` beside ``device_map``, or an unknown dtype or quantization.
        ModelLoadError: the files cannot be found or read, hold no model that reads pictures, lack
            weights that it has, or hold weights that are no numbers; or a package that reads them
            is not installed. Nothing else is loaded instead.
    """
    if device is not None and device_map is not None:
        raise ConfigurationError("Pass device or device_map, not both.")
    source = str(embedded_folder("lvlm") if name == TESTBED else name)
    where: dict[str, Any] = {"trust_remote_code": True} if trust_remote_code else {}
    if revision is not None:
        where["revision"] = revision
    if local_files_only is not None:
        where["local_files_only"] = local_files_only
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    number_format, packed = _dtype(dtype), _quantization(quantization)
    if packed is not None:
        model_kwargs["quantization_config"] = packed
        device_map = device_map or {"": place}
    if device_map is not None:
        model_kwargs["device_map"] = device_map
    try:
        loader = _loader(AutoConfig.from_pretrained(source, **where), text_alone)
        processor = AutoProcessor.from_pretrained(source, **where)
        model, told = loader.from_pretrained(
            source, dtype=number_format, output_loading_info=True, **where, **model_kwargs
        )
        _require_whole(model, told["missing_keys"])
    except torch.OutOfMemoryError as error:
        raise ModelLoadError(_remedy(name, error, _TOO_LARGE)) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(_remedy(name, error)) from error
    if device_map is None and not is_quantized(model):
        try:
            model = model.to(place)
        except torch.OutOfMemoryError as error:
            raise ModelLoadError(_remedy(name, error, _TOO_LARGE)) from error
    return model.eval(), processor


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str:
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ConfigurationError(f"Unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}.")
    return dtype or "auto"


def _quantization(asked: QuantizationConfigMixin | str | None) -> QuantizationConfigMixin | None:
    if not isinstance(asked, str):
        return asked
    if asked not in QUANTIZATIONS:
        raise ConfigurationError(
            f"Unknown quantization {asked!r}; use one of {', '.join(QUANTIZATIONS)}, or a "
            "quantization configuration of transformers."
        )
    from transformers import BitsAndBytesConfig

    made: QuantizationConfigMixin = BitsAndBytesConfig(**{f"load_in_{asked}": True})
    return made


def _loader(config: Any, text_alone: bool) -> Any:
    """What loads a checkpoint with this config.

    Raises:
        ValueError: it has no model that reads pictures, nor one of text where that will do.
    """
    kind = config.model_type
    if kind in PART_OF:
        return getattr(transformers, PART_OF[kind])
    loader: Any = AutoModelForImageTextToText
    known = type(config) in loader._model_mapping or getattr(config, "auto_map", None)
    of_text: Any = AutoModelForCausalLM
    if not known and text_alone and type(config) in of_text._model_mapping:
        return of_text
    if not known:
        raise ValueError(f"{kind!r} is no model that reads pictures and writes text")
    return loader


def _require_whole(model: Any, missing: Iterable[str]) -> None:
    """Make sure that every weight comes from the checkpoint, and is a number.

    Raises:
        ValueError: some are missing, which transformers would draw at random; or some are none.
    """
    if lost := sorted(missing):
        raise ValueError(f"the checkpoint lacks {len(lost)} of its weights, such as {lost[0]}")
    for name, weight in model.named_parameters():
        if weight.device.type == "meta" or weight.dtype not in _FLOATS:
            continue  # offloaded, or packed
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite()):
            raise ValueError(f"the weights of {name} hold values that are no numbers")


_FLOATS: Final = (torch.float32, torch.float16, torch.bfloat16)
_TOO_LARGE: Final = (
    "It does not fit into memory: load it in dtype='bfloat16', in quantization='4bit', or with "
    "device_map='auto' over several devices."
)


def _remedy(name: str | Path, error: Exception, remedy: str = "") -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return f"Cannot load the vision-language model {str(name)!r}: {reason[0].rstrip('. ')}. " + (
        remedy
        or "Pass a Hugging Face Hub id of an image-text-to-text model, a folder that holds "
        "one (config, weights and processor), or 'testbed'. Where files are broken, download them "
        "anew. Offline, download it first with `hf download <id>` or unset HF_HUB_OFFLINE."
    )
