"""Devices on a machine that has none: tensors that say they are on one, computed by the CPU.

Inside ``more_devices()`` the devices ``FIRST`` and ``SECOND`` can be moved to, created on and asked
for. What mixes tensors of two devices fails as between real ones; numbers alone and indices may
come from anywhere, as torch allows. Gradients flow over both where there is a C++ compiler
(``GRADIENTS``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import dispatch_model
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.cpp_extension import load

from sightrail.guardrails.model.families import text_tower


class _Module:
    """What torch asks a kind of devices for; there are none but in ``more_devices()``."""

    count = 0

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return self.count > 0

    def device_count(self) -> int:
        return self.count

    def current_device(self) -> int:
        return 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Draws are the CPU's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


def _with_gradients() -> bool:
    """Whether torch's engine knows of several devices; it asks once, at the first gradient."""
    source = Path(__file__).with_name("pretended_devices.cpp")
    try:  # compiled once, and kept where torch keeps what it compiles
        load("pretended_devices", [str(source)], ["-O0"], is_python_module=False)
    except (OSError, RuntimeError):  # no compiler, no ninja
        return False
    return True


# torch keeps this place for the devices of others; it can be filled from Python.
GRADIENTS: Final = _with_gradients()
_module = _Module()
_setup_privateuseone_for_python_backend("pretended", backend_module=_module)
CPU: Final = torch.device("cpu")
FIRST: Final = torch.device("pretended", 0)
SECOND: Final = torch.device("pretended", 1)
aten = torch.ops.aten
_SDPA: Final = "scaled_dot_product_attention"
_BCE: Final = "binary_cross_entropy_with_logits"
_MATH: Final = 0  # torch's number of the attention that is written in plain operations


class There(torch.Tensor):
    """A tensor of a pretended device; ``held`` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self, **_: Any) -> str:
        return f"There({self.held!r}, {self.device})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _held(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == FIRST.type:
        return CPU
    return value.held if isinstance(value, There) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU what belongs to one device; refuse what belongs to two."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    if func is aten.copy_.default:
        _held(args[0]).copy_(_held(args[1]))
        return args[0]
    if func is aten._fused_sdp_choice.default and any(isinstance(v, There) for v in tensors):
        return _MATH
    asked = kwargs.get("device")
    device = _common(func, tensors) if asked is None else torch.device(asked)
    if func is aten.histc.default:  # of whole numbers the CPU makes none
        args = (args[0].float(), *args[1:])
    made = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    if device == CPU or device.type != FIRST.type:
        return made
    known = {id(value.held): value for value in tensors if isinstance(value, There)}
    return tree_map(
        lambda v: known.get(id(v), There(v, device)) if isinstance(v, torch.Tensor) else v, made
    )


def _common(func: Any, tensors: list[torch.Tensor]) -> torch.device:
    sized = [value for value in tensors if value.dim() > 0] or tensors
    if not sized:
        return CPU
    if "index" in func.__name__:  # indices may come from the CPU
        sized = [v for v in sized if v.device.type != "cpu"] or sized[:1]
    if len({value.device for value in sized}) > 1:
        raise RuntimeError(
            f"{func}: expected all tensors to be on the same device, got "
            f"{[str(value.device) for value in sized]}"
        )
    return sized[0].device


def _made(func: Any) -> Any:
    """What makes a tensor on a pretended device."""

    def make(*args: Any, **options: Any) -> There:
        device = options.pop("device")
        options.pop("pin_memory", None)
        return There(func(*args, **options), device)

    return make


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> Any:
    _held(target).copy_(_held(source))
    return target


def _otherwise(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Parts of torch that pass by what a class says about its operations."""
    return _run(func, args, kwargs)


_kernels = torch.library.Library("aten", "IMPL")
for _name in (
    "empty.memory_format",
    "empty_strided",
    "arange.start_step",
    "arange.start",
    "arange",
):
    _op, _, _kind = _name.partition(".")
    _kernels.impl(_name, _made(getattr(getattr(aten, _op), _kind or "default")), "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
_kernels.impl("_local_scalar_dense", lambda tensor: tensor.held.item(), "PrivateUse1")
_others = torch.library.Library("_", "IMPL")
_others.fallback(_otherwise, "PrivateUse1")


def _cast(op: Any, full: bool) -> Any:
    """An operation under autocast: its inputs in float32, or in the format that was asked for."""
    left_out = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.float32 if full else torch.get_autocast_dtype(FIRST.type)

        def moved(value: Any) -> Any:
            number = isinstance(value, torch.Tensor) and value.is_floating_point()
            return value.to(dtype) if number else value

        with torch._C._ExcludeDispatchKeyGuard(left_out):
            return op(*tree_map(moved, args), **tree_map(moved, kwargs))

    return cast


# As on GPUs, as far as the models of the tests go.
_casts = {
    False: ("linear", "matmul", "mm", "bmm", "addmm", "conv2d", "conv3d", _SDPA),
    True: ("layer_norm", "softmax.int", "log_softmax.int", "rsqrt", "pow.Tensor_Scalar", _BCE),
}
for _full, _names in _casts.items():
    for _name in _names:
        _op, _, _kind = _name.partition(".")
        _where = getattr(getattr(aten, _op), _kind or "default")
        _kernels.impl(_name, _cast(_where, _full), "AutocastPrivateUse1")
_others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")


@contextlib.contextmanager
def more_devices() -> Iterator[None]:
    """In here torch says that there are two more devices."""
    _module.count = 2
    try:
        yield
    finally:
        _module.count = 0


def spread(model: Any) -> None:
    """Half of the layers on one device, the rest and the head on another, as accelerate does."""
    tower = text_tower(model, wanted_by="test")
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    late = {*tower.blocks[len(tower.blocks) // 2 :], tower.final_norm}
    late |= {head} if head.weight is not words.weight else set()
    inner = {*tower.blocks, *late}

    def places(module: Any, name: str) -> dict[str, torch.device]:
        if module in inner or not any(part in inner for part in module.modules()):
            return {name: SECOND if module in late else FIRST}
        parts = ((part, f"{name}.{key}".lstrip(".")) for key, part in module.named_children())
        own = (f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False))
        found = {key: where for part, path in parts for key, where in places(part, path).items()}
        return {**found, **dict.fromkeys(own, FIRST)}

    dispatch_model(model, places(model, ""), main_device=FIRST, force_hooks=True)
    for module in model.modules():  # dispatch_model leaves what belongs to no smaller module
        for key, weight in list(module.named_parameters(recurse=False)):
            if weight.device.type == "cpu":
                setattr(module, key, torch.nn.Parameter(weight.to(FIRST)))
