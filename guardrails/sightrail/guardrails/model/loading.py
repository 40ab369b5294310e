"""Loading a model and its processor by name, through transformers' own loaders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
import transformers
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

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
        model_kwargs: passed to ``AutoModelForImageTextToText.from_pretrained``.

    Raises:
        ConfigurationError: ``device`` beside ``device_map``, or an unknown dtype or quantization.
        ModelLoadError: the files cannot be found or read, or a package that reads them is not
            installed. Nothing else is loaded instead.
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
        processor = AutoProcessor.from_pretrained(source, **where)
        kind = AutoConfig.from_pretrained(source, **where).model_type
        loader = getattr(transformers, PART_OF.get(kind, ""), AutoModelForImageTextToText)
        model: Any = loader.from_pretrained(source, dtype=number_format, **where, **model_kwargs)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelLoadError(_remedy(name, error)) from error
    if device_map is None and not is_quantized(model):
        model = model.to(place)
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


def _remedy(name: str | Path, error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return (
        f"Cannot load the vision-language model {str(name)!r}: {reason[0]} "
        "Pass a Hugging Face Hub id of an image-text-to-text model, a folder that holds one "
        "(config, weights and processor), or 'testbed'. Offline, download it first with "
        "`hf download <id>` or unset HF_HUB_OFFLINE."
    )
