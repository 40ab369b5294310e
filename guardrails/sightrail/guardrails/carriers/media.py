"""The block forms in which LangChain and the providers carry pictures, files, sound and film.

Each reader knows one form. What travels on is rebuilt from the screened pixels alone: of the
original block only labels (ids, cache marks, names) are kept, so a second payload hidden beside
the first one does not come along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from ..intake import PictureSource
from ..verdict import NotInspected
from .carrier import (
    Carrier,
    Encoded,
    Payload,
    from_address,
    from_base64,
    is_picture_text,
    starts_like_picture,
    unseen,
)

Block = Mapping[str, Any]
Rebuild = Callable[[Encoded], Any]

_LABELS: Final = frozenset(
    {"id", "index", "cache_control", "cachePoint", "detail", "name", "title", "alt", "status"}
)
_MAX_LABEL: Final = 256
_FILES: Final = frozenset({"file", "input_file", "document", "container_upload"})
_SOUND_AND_FILM: Final = {
    "audio": "audio",
    "input_audio": "audio",
    "audio_url": "audio",
    "video": "video",
    "input_video": "video",
    "video_url": "video",
}
_PAYLOADS: Final = frozenset(
    {"base64", "data", "url", "file_id", "fileId", "source", "image", "file", "file_data"}
    | {"file_url", "file_uri", "input_audio", "audio_url", "video_url", "result"}
)


def read_media(block: Block) -> Carrier | None:
    """The carrier that a block is, whatever form it has; None for a block that carries no media."""
    for reader in _READERS:
        carrier = reader(block)
        if carrier is not None:
            return carrier
    return None


def read_media_in_data(block: Block) -> Carrier | None:
    """``read_media`` where dicts need not be blocks: ``{"type": "image", "tag": 3}`` is data.

    So is a link in a dict that says no type: nobody follows it from there.
    """
    payloads = {key for key in _PAYLOADS & block.keys() if key != "source" or _is_dict(block[key])}
    if not (payloads or block.get("image_url") or _inline_key(block)):
        return None
    carrier = read_media(block)
    link = carrier is not None and "type" not in block and _is_link(carrier.source)
    return None if link else carrier


def _is_dict(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_link(source: Payload) -> bool:
    if isinstance(source, NotInspected):
        return source.reason in ("remote_url", "local_address")
    return isinstance(source, str) and source[:5].lower() != "data:"


def _labels(block: Block) -> dict[str, Any]:
    return {key: value for key, value in block.items() if key in _LABELS and _is_label(value)}


def _is_label(value: Any) -> bool:
    if isinstance(value, dict):
        return len(value) <= 8 and all(
            _is_label(key) and not isinstance(part, dict) and _is_label(part)
            for key, part in value.items()
        )
    if isinstance(value, str):
        return len(value) <= _MAX_LABEL and "://" not in value and value[:5].lower() != "data:"
    return value is None or isinstance(value, bool | int | float)


def _carrier(block: Block, source: PictureSource | NotInspected, rebuild: Rebuild) -> Carrier:
    return Carrier(source, block, rebuild)


def _kind(block: Block) -> str:
    kind = block.get("type")
    return kind if isinstance(kind, str) else ""


def _mime(block: Block) -> str:
    for key in ("mime_type", "mimeType", "media_type"):
        if isinstance(mime := block.get(key), str):
            return mime.strip().lower()
    return ""


def _image_url(block: Block) -> Carrier | None:
    """OpenAI: ``image_url`` as text or ``{"url": ...}``, ``input_image`` of the Responses API."""
    kind, value = _kind(block), block.get("image_url")
    if kind not in ("image_url", "input_image") and not (value and isinstance(value, str | dict)):
        return None
    head = {"type": kind or "image_url", **_labels(block)}
    if isinstance(value, Mapping):
        inner = _labels(value)
        return _carrier(
            block,
            from_address(value.get("url")),
            lambda seen: {**head, "image_url": {**inner, "url": seen.url}},
        )
    if value is None and block.get("file_id"):
        return unseen(block, "file_id", "a file kept by a provider cannot be looked at")
    return _carrier(block, from_address(value), lambda seen: {**head, "image_url": seen.url})


def _source_dict(block: Block) -> Carrier | None:
    """Anthropic: ``{"type": "image", "source": {"type": "base64" | "url" | "file", ...}}``."""
    source = block.get("source")
    if not isinstance(source, Mapping):
        return None
    if _kind(block) != "image" and str(source.get("media_type", "")).lower()[:6] != "image/":
        return None
    head = {"type": _kind(block) or "image", **_labels(block)}
    payload: PictureSource | NotInspected
    if "data" in source:
        payload = from_base64(source["data"])
    elif "url" in source:
        payload = from_address(source["url"])
    else:
        return unseen(block, "file_id", "a file kept by a provider cannot be looked at")
    return _carrier(
        block,
        payload,
        lambda seen: {
            **head,
            "source": {"type": "base64", "media_type": seen.mime_type, "data": seen.base64},
        },
    )


def _source_type(block: Block) -> Carrier | None:
    """LangChain before 1.0: ``source_type`` of base64, url or id, with ``data`` or ``url``."""
    kind, how = _kind(block), block.get("source_type")
    if how is None or not (kind == "image" or (kind == "file" and _mime(block)[:6] == "image/")):
        return None
    labels = _labels(block)
    payload: PictureSource | NotInspected
    if how == "base64":
        payload = from_base64(block.get("data"))
    elif how == "url":
        payload = from_address(block.get("url"))
    else:
        return unseen(block, "file_id", "a file kept by a provider cannot be looked at")
    form = {"type": kind, **labels, "source_type": "base64"}
    return _carrier(
        block,
        payload,
        lambda seen: {**form, "mime_type": seen.mime_type, "data": seen.base64},
    )


def _held_image(block: Block) -> Carrier | None:
    """``{"type": "image", "image": picture}`` of transformers, ``{"image": {...}}`` of Bedrock."""
    image = block.get("image")
    if image is None or not (_kind(block) in ("image", "") or isinstance(image, Mapping)):
        return None
    labels = _labels(block)
    if isinstance(image, Mapping):
        source = image.get("source")
        data = source.get("bytes") if isinstance(source, Mapping) else None
        if data is None:
            return unseen(block, "unknown_block", "an image block of an unknown form")
        return _carrier(
            block,
            from_base64(data),
            lambda seen: {
                **labels,
                "image": {
                    "format": seen.mime_type.partition("/")[2],
                    "source": {"bytes": _encoded_like(data, seen)},
                },
            },
        )
    if _kind(block) != "image":
        return None  # a plain dict with a picture in it: the walk takes the picture by itself
    source = from_address(image) if isinstance(image, str) else image
    return _carrier(block, source, lambda seen: {"type": "image", **labels, "image": seen.image})


def _standard_image(block: Block) -> Carrier | None:
    """LangChain's own form: ``{"type": "image", "base64" | "url" | "file_id": ...}``."""
    if _kind(block) != "image":
        return None
    labels = _labels(block)
    payload: PictureSource | NotInspected
    if block.get("base64") is not None:
        payload = from_base64(block["base64"])
    elif block.get("url") is not None:
        payload = from_address(block["url"])
    elif block.get("data") is not None:
        payload = from_base64(block["data"])
    elif block.get("file_id") is not None:
        return unseen(block, "file_id", "a file kept by a provider cannot be looked at")
    else:
        return unseen(block, "malformed_block", "an image block without a picture")
    form = {"type": "image", **labels}
    return _carrier(block, payload, partial(_standard_block, form))


def _inline_key(block: Block) -> str | None:
    names = ("inline_data", "inlineData", "file_data", "fileData")
    return next((key for key in names if isinstance(block.get(key), Mapping)), None)


def _google(block: Block) -> Carrier | None:
    """Google: ``media`` with ``data`` or ``file_uri``, and ``inline_data`` parts."""
    key = _inline_key(block)
    if key is None and _kind(block) != "media":
        return None
    media: Block = block if key is None else block[key]
    if not _mime(media).startswith("image/"):
        return _other_media(block, _mime(media))
    labels, data = _labels(block), media.get("data")
    if data is None:
        payload = from_address(media.get("file_uri", media.get("fileUri")))
    else:
        payload = from_base64(data)

    def rebuild(seen: Encoded) -> dict[str, Any]:
        media = {"mime_type": seen.mime_type, "data": _encoded_like(data, seen)}
        return {"type": "media", **labels, **media} if key is None else {**labels, key: media}

    return _carrier(block, payload, rebuild)


def _encoded_like(payload: Any, seen: Encoded) -> bytes | str:
    """Some clients take raw bytes where others take base64: what came is what goes on."""
    return seen.base64 if isinstance(payload, str) else seen.data


def _held_data(block: Block) -> Any:
    keys = ("base64", "file_data", "data")
    return next((block[key] for key in keys if block.get(key) is not None), None)


def _pdf(block: Block) -> Carrier | None:
    """A PDF in any provider's form; what is shown of it goes on as LangChain's own image block."""
    for inner in (
        block,
        *(block.get(key) for key in ("file", "source", _inline_key(block) or "file")),
    ):
        if not isinstance(inner, Mapping):
            continue
        data = _held_data(inner)
        mime = _mime(inner) or _mime(block) or _mime_of_url(data)
        if mime == "application/pdf" and isinstance(data, str | bytes) and not _is_picture(data):
            form = {"type": "image", **_labels(block)}
            return _carrier(block, from_base64(data), partial(_standard_block, form))
    return None


def _standard_block(form: dict[str, Any], seen: Encoded) -> dict[str, Any]:
    return {**form, "mime_type": seen.mime_type, "base64": seen.base64}


def _file(block: Block) -> Carrier | None:
    """Files of every provider; those that are, or say they are, pictures can be looked at."""
    kind = _kind(block)
    if kind not in _FILES:
        return None
    held = block.get("file")
    inner: Block = held if isinstance(held, Mapping) else block
    data, mime = _held_data(inner), _mime(inner) or _mime(block)
    mime = mime or _mime_of_url(data)
    if not (mime.startswith("image/") or _is_picture(data)):
        return _other_media(block, mime)
    labels, inner_labels = _labels(block), _labels(inner)
    if data is None:
        address = inner.get("url", inner.get("file_url"))
        if address is None:
            return unseen(block, "file_id", "a file kept by a provider cannot be looked at")
        source = from_address(address)
    else:
        source = from_base64(data)

    def rebuild(seen: Encoded) -> dict[str, Any]:
        if inner is not block:
            return {"type": kind, **labels, "file": {**inner_labels, **_named(seen)}}
        if "file_data" in block or "file_url" in block:
            return {"type": kind, **labels, **_named(seen)}
        return {"type": kind, **labels, "mime_type": seen.mime_type, "base64": seen.base64}

    return _carrier(block, source, rebuild)


def _is_picture(data: Any) -> bool:
    """Whatever a file is said to be: LangChain calls every file in OpenAI's form a PDF."""
    if isinstance(data, bytes):
        return starts_like_picture(data)
    return isinstance(data, str) and is_picture_text(data)


def _named(seen: Encoded) -> dict[str, str]:
    kind = seen.mime_type.partition("/")[2]
    return {"filename": f"image.{kind}", "file_data": seen.url}


def _mime_of_url(data: Any) -> str:
    if not isinstance(data, str) or data[:5].lower() != "data:":
        return ""
    return data[5:40].partition(";")[0].partition(",")[0].lower()


def _generated(block: Block) -> Carrier | None:
    """OpenAI's image generation tool: the picture is the base64 ``result``."""
    if _kind(block) != "image_generation_call" or block.get("result") is None:
        return None
    head = {"type": "image_generation_call", **_labels(block)}
    return _carrier(
        block, from_base64(block["result"]), lambda seen: {**head, "result": seen.base64}
    )


def _sound_or_film(block: Block) -> Carrier | None:
    reason = _SOUND_AND_FILM.get(_kind(block))
    return None if reason is None else unseen(block, reason, f"{reason} cannot be looked at")


def _other_media(block: Block, mime: str) -> Carrier:
    family = mime.partition("/")[0]
    if family in ("audio", "video"):
        return unseen(block, family, f"{family} cannot be looked at")
    if mime == "application/pdf":
        return unseen(block, "pdf", "a PDF that is not in the message itself cannot be looked at")
    return unseen(block, "file", "files cannot be looked at, whatever they hold")


_READERS: Final[tuple[Callable[[Block], Carrier | None], ...]] = (
    _pdf,
    _image_url,
    _source_dict,
    _source_type,
    _held_image,
    _standard_image,
    _google,
    _file,
    _generated,
    _sound_or_film,
)
