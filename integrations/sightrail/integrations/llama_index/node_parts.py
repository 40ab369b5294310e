"""Putting a node together again after something in it was replaced."""

from __future__ import annotations

from typing import Any, Final

from llama_index.core.schema import BaseNode, ImageNode, MediaResource, TextNode

PICTURE_FIELDS: Final = frozenset({"image", "image_path", "image_url", "image_mimetype"})
"""Of an ImageNode; together they are one picture."""

VECTORS: Final = frozenset({"embedding", "text_embedding"})
"""Thousands of numbers, and no picture among them."""


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
