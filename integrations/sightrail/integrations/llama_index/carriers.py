"""Every way LlamaIndex carries a picture: read for intake, and put together again afterwards.

LlamaIndex's own ``resolve_image`` is never called: it fetches remote addresses with a bare HTTP
request. Where a carrier names several sources, integrations disagree on which one the model gets;
we read LlamaIndex's first choice (data, then path, then address), and what travels on holds the
screened pixels and no other source.
"""

from __future__ import annotations

from collections.abc import Callable
from io import IOBase
from typing import Any, Final

from llama_index.core.base.llms import types
from llama_index.core.base.llms.types import (
    BaseContentBlock,
    CacheControl,
    DocumentBlock,
    ImageBlock,
    TextBlock,
)
from llama_index.core.schema import (
    BaseNode,
    ImageDocument,
    ImageNode,
    MediaResource,
    QueryBundle,
    TextNode,
)
from llama_index.core.utils import resolve_binary
from pydantic import AnyUrl

from sightrail.guardrails.carriers.carrier import (
    Carrier,
    from_address,
    from_base64,
    starts_like_picture,
    unseen,
)
from sightrail.guardrails.intake import PictureSource
from sightrail.guardrails.verdict import NotInspected

_NOTHING: Final = NotInspected(reason="empty", detail="it names no picture")
_MEDIA: Final = {
    "audio": ("audio", "audio cannot be looked at"),
    "video": ("video", "video cannot be looked at"),
    "document": ("file", "files cannot be looked at, whatever they hold"),
}
_PLAIN: Final = frozenset({"text", "cache", "thinking", "tool_call", "citable", "citation"})
PICTURE_FIELDS: Final = frozenset({"image", "image_path", "image_url", "image_mimetype"})
"""Of an ImageNode; together they are one picture."""

VECTORS: Final = frozenset({"embedding", "text_embedding"})
"""Thousands of numbers, and no picture among them."""


class TextAddress(str, AnyUrl):
    """An address that is a text as well.

    LlamaIndex's stores write nodes with ``json``, which knows no ``AnyUrl``, and read them back as
    one.
    """

    def __init__(self, address: Any) -> None:
        AnyUrl.__init__(self, str(address))


class ScreenedDocument(ImageDocument):
    """An ImageDocument that holds its picture twice, as data and as an address of the same data.

    ``resolve_image`` reads the one and stores keep the other (see ``read_resource``). Splitters
    would copy both into every node.
    """

    @property
    def image_url(self) -> str | None:
        """Where the picture is, unless it is here."""
        return None if self.image is not None else super().image_url

    @image_url.setter
    def image_url(self, image_url: str) -> None:
        self.image_resource = MediaResource(url=AnyUrl(image_url))


def kind_of(block: Any) -> str:
    """LlamaIndex's name for one of its own blocks, `unknown` for any other class.

    A class from elsewhere could call itself text and hold a picture.
    """
    if type(block) is CacheControl:
        return "cache"
    own = type(block).__module__ == types.__name__
    return str(getattr(block, "block_type", "unknown")) if own else "unknown"


def read_block(block: BaseContentBlock) -> Carrier | None:
    """The carrier that a content block is; None for a block that holds no media of its own."""
    kind = kind_of(block)
    if isinstance(block, ImageBlock) and kind == "image":
        return _image_block(block)
    if kind in _PLAIN:
        return None
    if isinstance(block, DocumentBlock) and (carrier := _document_block(block)) is not None:
        return carrier
    reason, detail = _MEDIA.get(
        kind, ("unknown_block", "a content block of a kind that this version does not know")
    )
    return unseen(block, reason, detail, text_block)


def text_block(text: str) -> TextBlock:
    """A text in the place of a content block."""
    return TextBlock(text=text)


def _image_block(block: ImageBlock) -> Carrier:
    return Carrier(
        _source(block.image, block.path, block.url),
        block,
        lambda seen: ImageBlock(
            image=seen.data, image_mimetype=seen.mime_type, detail=block.detail
        ),
        text_block,
    )


def _document_block(block: DocumentBlock) -> Carrier | None:
    """A PDF, or a picture that is called a document; what is shown of it goes on as a picture."""
    data = _decoded(block.data)
    if isinstance(data, bytes):
        known = data.startswith(b"%PDF") or starts_like_picture(data)
    else:
        known = data is None and _says_pdf(block)
    if not known:
        return None
    return Carrier(
        _source(block.data, block.path, block.url),
        block,
        lambda seen: ImageBlock(image=seen.data, image_mimetype=seen.mime_type),
        text_block,
    )


def _says_pdf(block: DocumentBlock) -> bool:
    name = str(block.path or block.url or "")
    return block.document_mimetype == "application/pdf" or name[-4:].lower() == ".pdf"


def read_query(query: QueryBundle) -> Carrier | None:
    """The picture that a query is; None where it is words alone.

    A picture that passes as it came keeps its path, which is all that embeddings can read; in the
    place of a masked one stands its data address, and none where it may not pass.
    """
    if query.image_path is None:
        return None
    return Carrier(
        named(query.image_path),
        query.image_path,
        lambda seen: seen.url if seen.coded is None else query.image_path,
        lambda _: None,
    )


def read_image_node(node: ImageNode) -> Carrier | None:
    """The picture of an ImageNode, None where it has none.

    What stands in its place is a dict of changed fields, or a note.
    """
    if node.image is None and node.image_path is None and node.image_url is None:
        return None
    source = (
        from_base64(node.image)
        if node.image is not None
        else _source(None, node.image_path, node.image_url)
    )
    no_others = dict.fromkeys(("image_path", "image_url"))
    return Carrier(
        source,
        {},
        lambda seen: {"image": seen.base64, "image_mimetype": seen.mime_type, **no_others},
        _same,
    )


def read_resource(name: str, resource: MediaResource) -> Carrier | None:
    """The carrier that a field of a node is; what stands in its place is a resource, or a note.

    The resource in its place has no text: a text may be a picture too, and is looked at by itself.

    ``image_resource``, ``audio_resource`` and ``video_resource`` hold media whatever is in them;
    in any other, data that is a picture counts, and None is given where there is none.
    """
    kind = name.removesuffix("_resource")
    if kind in _MEDIA:
        return unseen(resource, *_MEDIA[kind], _same)
    data = _decoded(resource.data)
    if kind != "image" and not (isinstance(data, bytes) and starts_like_picture(data)):
        return None
    return Carrier(
        _source(resource.data, resource.path, resource.url),
        resource,
        lambda seen: MediaResource(
            # LlamaIndex never stores ``data``: without the address, which holds the same pixels, a
            # node would come back from any docstore without its picture.
            data=seen.base64.encode(),
            url=TextAddress(seen.url),
            mimetype=seen.mime_type,
            embeddings=resource.embeddings,
        ),
        _same,
    )


def _source(data: Any, path: Any, url: Any) -> PictureSource | NotInspected:
    if data is not None:
        decoded: PictureSource | NotInspected = _decoded(data)
        return decoded
    address = url if path is None else path
    return _NOTHING if address is None else named(address)


def named(address: object) -> PictureSource | NotInspected:
    """A path or address as a source for intake, which reads files inside `Limits.folders` only.

    It is text even where it stands as a ``Path``: LlamaIndex makes one of any text, whoever wrote
    it.
    """
    found = from_address(str(address))
    local = isinstance(found, NotInspected) and found.reason == "local_address"
    return str(address) if local else found


def _decoded(data: Any) -> Any:
    """Bytes as LlamaIndex itself would read them: base64 if they are that, else as they are."""
    if isinstance(data, IOBase):
        data = _all_of(data)
    if isinstance(data, bytes | bytearray):
        return resolve_binary(raw_bytes=bytes(data)).getvalue()
    return data


def _all_of(stream: IOBase) -> bytes | NotInspected:
    """The whole stream, as LlamaIndex reads it, and the caller's position in it kept."""
    read: Callable[[], Any] | None = getattr(stream, "read", None)
    try:
        position = stream.tell()
        stream.seek(0)
        data = read() if read else None
        stream.seek(position)
    except (OSError, ValueError):  # closed, or it cannot seek
        return NotInspected(reason="unreadable_file", detail="its stream cannot be read")
    if not isinstance(data, bytes):
        return NotInspected(reason="malformed_block", detail="its stream holds no bytes")
    return data


def _same(text: str) -> str:
    return text


def changed_node(node: BaseNode, changed: dict[str, Any]) -> BaseNode:
    """A copy of the node with other parts; the same node where nothing changed.

    Args:
        node: not changed.
        changed: new values by field. A text in the place of a picture or of a media resource is a
            note: it joins the node's text, and what it replaces is gone.
    """
    picture = changed.pop("image", {}) if isinstance(node, ImageNode) else {}
    if not changed and not picture:
        return node
    notes = [picture] if isinstance(picture, str) else []
    fields: dict[str, Any] = {} if isinstance(picture, str) else dict(picture)
    for name, value in changed.items():
        noted = isinstance(value, str) and isinstance(getattr(node, name), MediaResource)
        notes += [value] if noted else []
        fields[name] = None if noted else value
    copy = node.model_copy(update=fields)
    if isinstance(copy, ImageDocument):
        copy = ScreenedDocument.model_construct(**copy.__dict__)
    if isinstance(copy, ImageNode) and isinstance(picture, str):
        copy = _without_picture(copy)
    return _with_notes(copy, notes) if notes else copy


def _without_picture(node: ImageNode) -> TextNode:
    """The rest of an ImageNode: without a picture it cannot give its content any more."""
    kept = {name: getattr(node, name) for name in TextNode.model_fields}
    return TextNode.model_construct(**kept)


def _with_notes(node: BaseNode, notes: list[str]) -> BaseNode:
    if isinstance(node, TextNode):
        return node.model_copy(update={"text": _joined(node.text, notes)})
    resource = getattr(node, "text_resource", None) or MediaResource()
    text = resource.model_copy(update={"text": _joined(resource.text, notes)})
    return node.model_copy(update={"text_resource": text})


def _joined(text: str | None, notes: list[str]) -> str:
    return "\n".join([text, *notes] if text else notes)
