"""Every way LlamaIndex carries a picture, on its own classes, and what can be seen afterwards."""

from __future__ import annotations

import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    AudioBlock,
    BaseContentBlock,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    MediaResource,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.workflow import Event, StopEvent
from PIL import Image

from chain_helpers import REMOTE, data_url, text64
from sightrail.guardrails import ImageError, Limits, Picture, read_picture

Make = Callable[[bytes, Path], Any]
HERE = Limits(folders=(Path(tempfile.gettempdir()),))
"""Files of tests may be named; no others."""


class HologramBlock(BaseContentBlock):
    """A block of a kind that nobody knows, which calls itself text."""

    block_type: str = "text"
    hologram: bytes = b""


def file_of(data: bytes, folder: Path) -> Path:
    path = folder / "picture.png"
    path.write_bytes(data)
    return path


def _later(node: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(node, name, value)
    return node


BLOCKS: dict[str, Make] = {
    "ImageBlock bytes": lambda data, _: ImageBlock(image=data),
    "ImageBlock base64": lambda data, _: ImageBlock(image=text64(data).encode()),
    "ImageBlock stream": lambda data, _: ImageBlock(image=io.BytesIO(data)),
    "ImageBlock path": lambda data, folder: ImageBlock(path=file_of(data, folder)),
    "ImageBlock data url": lambda data, _: ImageBlock(url=data_url(data)),
    "ImageBlock wrong mime": lambda data, _: ImageBlock(image=data, image_mimetype="image/gif"),
    "CitableBlock": lambda data, _: CitableBlock(
        title="a", source="b", content=[TextBlock(text="see"), ImageBlock(image=data)]
    ),
    "CitationBlock": lambda data, _: CitationBlock(
        cited_content=ImageBlock(image=data), source="a", title="b", additional_location_info={}
    ),
    "TextBlock data url": lambda data, _: TextBlock(text=data_url(data)),
    "TextBlock base64": lambda data, _: TextBlock(text=text64(data)),
    "TextBlock markdown": lambda data, _: TextBlock(text=f"see ![it]({data_url(data)}) here"),
    "TextBlock HTML": lambda data, _: TextBlock(text=f'<p><img src="{data_url(data)}"></p>'),
    "TextBlock JSON": lambda data, _: TextBlock(text=json.dumps({"id": 7, "shot": text64(data)})),
    "ToolCallBlock": lambda data, _: ToolCallBlock(
        tool_name="f", tool_kwargs={"n": 1, "page": [{"html": f"<img src={data_url(data)}>"}]}
    ),
    "ToolCallBlock text": lambda data, _: ToolCallBlock(
        tool_name="f", tool_kwargs=json.dumps({"image": text64(data)})
    ),
    "ThinkingBlock": lambda data, _: ThinkingBlock(content=f"I saw {data_url(data)} there"),
    "DocumentBlock picture": lambda data, _: DocumentBlock(data=data, title="a"),
    "ImageBlock file url": lambda data, folder: ImageBlock(url=file_of(data, folder).as_uri()),
}
"""Name -> a block that carries the picture of these bytes."""

NODES: dict[str, Make] = {
    "ImageNode base64": lambda data, _: ImageNode(image=text64(data), text="a caption"),
    "ImageNode path": lambda data, folder: ImageNode(image_path=str(file_of(data, folder))),
    "ImageNode data url": lambda data, _: ImageNode(image_url=data_url(data)),
    "ImageDocument base64": lambda data, _: ImageDocument(image=text64(data)),
    "ImageDocument path": lambda data, folder: ImageDocument(image_path=str(file_of(data, folder))),
    "ImageDocument set later": lambda data, folder: _later(
        ImageDocument(text="a caption"), image_path=str(file_of(data, folder))
    ),
    "Node data": lambda data, _: Node(image_resource=MediaResource(data=data)),
    "Node path": lambda data, folder: Node(
        image_resource=MediaResource(path=file_of(data, folder)),
        text_resource=MediaResource(text="a caption"),
    ),
    "Node data url": lambda data, _: Node(image_resource=MediaResource(url=data_url(data))),
    "Document image": lambda data, _: Document(
        text="a caption", image_resource=MediaResource(data=data)
    ),
    "Node text resource data": lambda data, _: Node(text_resource=MediaResource(data=data)),
    "TextNode markdown": lambda data, _: TextNode(text=f"see ![it]({data_url(data)}) here"),
    "TextNode HTML": lambda data, _: TextNode(text=f"<img src='{data_url(data)}'> and more"),
    "Document JSON": lambda data, _: Document(text=json.dumps({"a": [{"image": text64(data)}]})),
    "metadata markdown": lambda data, _: TextNode(
        text="hi", metadata={"page": f"![it]({data_url(data)})"}
    ),
    "TextNode that is a picture": lambda data, _: TextNode(text=data_url(data)),
    "Document that is a picture": lambda data, _: Document(text=text64(data)),
    "metadata base64": lambda data, _: TextNode(text="hi", metadata={"preview": text64(data)}),
    "metadata block": lambda data, _: TextNode(
        text="hi", metadata={"preview": [{"type": "image", "base64": text64(data)}]}
    ),
}
"""Name -> a node that carries the picture of these bytes."""

VALUES: dict[str, Make] = {
    "Event": lambda data, _: Event(step=1, block=ImageBlock(image=data)),
    "StopEvent": lambda data, _: StopEvent(result={"shot": data_url(data)}),
    "QueryBundle": lambda data, folder: QueryBundle("what?", image_path=str(file_of(data, folder))),
    "QueryBundle words": lambda data, _: QueryBundle(f"what is {data_url(data)}?"),
    "ChatMessage": lambda data, _: ChatMessage(f"what is {data_url(data)}?"),
    "additional_kwargs": lambda data, _: ChatMessage(
        "hi", additional_kwargs={"tool_calls": [{"arguments": json.dumps({"i": text64(data)})}]}
    ),
}
"""Name -> a value of LlamaIndex's that holds the picture in its own way."""

UNSEEN_BLOCKS: dict[str, tuple[str, Make]] = {
    "ImageBlock remote": ("remote_url", lambda *_: ImageBlock(url=REMOTE)),
    "ImageBlock file url": ("local_address", lambda *_: ImageBlock(url="file:///etc/cat.png")),
    "ImageBlock bucket": ("remote_url", lambda *_: ImageBlock(url="gs://bucket/cat.png")),
    "ImageBlock empty": ("empty", lambda *_: ImageBlock()),
    "ImageBlock no bytes": ("empty", lambda *_: ImageBlock(image=b"")),
    "ImageBlock text": ("not_an_image", lambda *_: ImageBlock(image=b"no picture at all")),
    "ImageBlock cut": ("truncated", lambda data, _: ImageBlock(image=data[:-40])),
    "ImageBlock text stream": ("malformed_block", lambda *_: ImageBlock(image=io.StringIO("a"))),
    "ImageBlock closed stream": (
        "unreadable_file",
        lambda data, _: ImageBlock.model_construct(image=_closed(data)),
    ),
    "ImageBlock lost file": (
        "missing_file",
        lambda _, folder: ImageBlock.model_construct(path=folder / "lost.png"),
    ),
    "CitableBlock remote": (
        "remote_url",
        lambda *_: CitableBlock(title="a", source="b", content=[ImageBlock(url=REMOTE)]),
    ),
    "CitableBlock document": (
        "file",
        lambda data, _: CitableBlock(
            title="a", source="b", content=[DocumentBlock(data=b"PK\3\4")]
        ),
    ),
    "DocumentBlock": ("file", lambda *_: DocumentBlock(data=b"PK\3\4", title="a")),
    "ImageBlock path elsewhere": ("local_address", lambda *_: _path_elsewhere(ImageBlock)),
    "DocumentBlock path elsewhere": (
        "local_address",
        lambda *_: _path_elsewhere(DocumentBlock, document_mimetype="application/pdf"),
    ),
    "AudioBlock": ("audio", lambda *_: AudioBlock(audio=b"RIFF", format="wav")),
    "VideoBlock": ("video", lambda *_: VideoBlock(video=b"\0\0\0", video_mimetype="video/mp4")),
    "unknown block": ("unknown_block", lambda data, _: HologramBlock(hologram=data)),
}
"""Name -> why it is not inspected, and the block."""

UNSEEN_NODES: dict[str, tuple[str, Make]] = {
    "ImageNode remote": ("remote_url", lambda *_: ImageNode(image_url=REMOTE)),
    "ImageNode remote path": ("remote_url", lambda *_: ImageNode(image_path=REMOTE)),
    "ImageNode file url": ("local_address", lambda *_: ImageNode(image_url="file:///a.png")),
    "ImageNode path elsewhere": ("local_address", lambda *_: ImageNode(image_path=__file__)),
    "Node path elsewhere": (
        "local_address",
        lambda *_: Node(image_resource=MediaResource(path=Path(__file__))),
    ),
    "ImageNode lost file": (
        "missing_file",
        lambda _, folder: ImageNode(image_path=str(folder / "lost.png")),
    ),
    "ImageNode no base64": ("not_an_image", lambda *_: ImageNode(image="%%%")),
    "ImageNode no bytes": ("empty", lambda *_: ImageNode(image="")),
    "ImageNode cut": ("truncated", lambda data, _: ImageNode(image=text64(data[:-40]))),
    "ImageDocument remote": (
        "remote_url",
        lambda *_: _later(ImageDocument(), image_url=REMOTE),
    ),
    "Node remote": ("remote_url", lambda *_: Node(image_resource=MediaResource(url=REMOTE))),
    "Node lost data": (
        "empty",
        lambda *_: Node(image_resource=MediaResource(mimetype="image/png")),
    ),
    "Node folder": (
        "not_a_file",
        lambda _, folder: Node(image_resource=MediaResource(path=folder)),
    ),
    "Node audio": (
        "audio",
        lambda *_: Node(
            text_resource=MediaResource(text="hi"), audio_resource=MediaResource(data=b"RIFF")
        ),
    ),
    "Node video": ("video", lambda *_: Node(video_resource=MediaResource(url=REMOTE))),
    "metadata remote block": (
        "remote_url",
        lambda *_: TextNode(text="hi", metadata={"p": {"type": "image_url", "image_url": REMOTE}}),
    ),
}
"""Name -> why it is not inspected, and the node."""


def _path_elsewhere(kind: Any, **fields: Any) -> Any:
    """A file of a folder that nobody named."""
    return kind.model_construct(path=Path(__file__), **fields)


def _closed(data: bytes) -> io.BytesIO:
    stream = io.BytesIO(data)
    stream.close()
    return stream


def pictures_in(value: Any) -> Iterator[Image.Image]:
    """Every picture that can be got out of a value the way LlamaIndex would, nothing fetched.

    Written apart from the walk under test, so that both would have to be wrong together.
    """
    if isinstance(value, NodeWithScore):
        yield from pictures_in(value.node)
    elif isinstance(value, ImageNode):
        yield from _decoded(value.image, value.image_path, value.image_url)
        yield from pictures_in([value.text, value.metadata])
    elif isinstance(value, Node):
        for resource in (value.image_resource, value.text_resource, value.video_resource):
            yield from pictures_in(resource)
        yield from pictures_in(value.metadata)
    elif isinstance(value, BaseNode):
        yield from pictures_in([value.get_content(), value.metadata])
    elif isinstance(value, MediaResource):
        data = None if value.data is None else value.data.decode()
        yield from _decoded(data, value.path, value.url, value.text)
    elif isinstance(value, ImageBlock):
        image = value.image
        raw = image.getvalue() if isinstance(image, io.BytesIO) and not image.closed else image
        yield from _decoded(raw, value.path, value.url)
    elif isinstance(value, DocumentBlock):
        yield from _decoded(value.data, value.path, value.url)
    elif isinstance(value, HologramBlock):
        yield from _decoded(value.hologram)
    elif isinstance(value, CitationBlock):
        yield from pictures_in(value.cited_content)
    elif isinstance(value, CitableBlock):
        yield from pictures_in(value.content)
    elif isinstance(value, TextBlock):
        yield from pictures_in(value.text)
    elif isinstance(value, ThinkingBlock):
        yield from pictures_in(value.content)
    elif isinstance(value, ToolCallBlock):
        yield from pictures_in(value.tool_kwargs)
    elif isinstance(value, Event):
        yield from pictures_in([value.__dict__, value.__pydantic_private__])
    elif isinstance(value, QueryBundle):
        yield from pictures_in([value.query_str, value.image_path])
    elif isinstance(value, ChatMessage):
        yield from pictures_in([value.blocks, value.additional_kwargs])
    elif hasattr(value, "raw_output"):
        yield from pictures_in([value.blocks, value.raw_output])
    elif hasattr(value, "source_nodes"):
        yield from pictures_in(value.source_nodes)
    elif isinstance(value, dict):
        yield from pictures_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from pictures_in(item)
    elif isinstance(value, str | bytes | Image.Image | Path):
        yield from _decoded(value)


WRITTEN = re.compile(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+|[A-Za-z0-9+/]{60,}=*")


def _decoded(*sources: Any) -> Iterator[Image.Image]:
    for source in sources:
        if isinstance(source, str) and not source.strip().startswith("data:"):
            written = [address for address in WRITTEN.findall(source) if address != source]
            yield from _decoded(*written)
        texts = [str(source)] if source is not None and not isinstance(source, bytes) else []
        texts += [source.decode("ascii", "ignore")] if isinstance(source, bytes) else []
        for form in (source, *texts, *(f"data:;base64,{text}" for text in texts)):
            try:
                yield read_picture(form).image
                break
            except ImageError:
                continue


def same(pictures: Any, image: Image.Image) -> bool:
    """Whether there are pictures and all are this one, pixel by pixel."""
    found = [one.image if isinstance(one, Picture) else one for one in pictures]
    return bool(found) and all(one.tobytes() == image.tobytes() for one in found)
