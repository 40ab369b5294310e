"""Pictures that come beside a prompt, as multi-modal LLMs of LlamaIndex take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.base.llms.types import BaseContentBlock, ImageBlock
from llama_index.core.schema import BaseNode, ImageNode, MediaResource, NodeWithScore

from sightrail.guardrails.errors import PromptError


def picture_blocks(documents: Sequence[BaseNode | NodeWithScore]) -> list[BaseContentBlock]:
    """One block per document; nothing is read or fetched here.

    Raises:
        PromptError: a document without a picture.
    """
    return [_block(one.node if isinstance(one, NodeWithScore) else one) for one in documents]


def _block(node: BaseNode) -> ImageBlock:
    if isinstance(node, ImageNode):
        image = None if node.image is None else node.image.encode()
        return _image_block(image, node.image_path, node.image_url)
    resource = getattr(node, "image_resource", None)
    if isinstance(resource, MediaResource):
        return _image_block(resource.data, resource.path, resource.url)
    raise PromptError(
        f"A {type(node).__name__} among image_documents holds no picture; put its text into the "
        "prompt."
    )


def _image_block(image: bytes | None, path: Any, url: Any) -> ImageBlock:
    """Unchecked: LlamaIndex would raise over a missing file, where intake says what is wrong."""
    return ImageBlock.model_construct(image=image, path=path, url=url)
