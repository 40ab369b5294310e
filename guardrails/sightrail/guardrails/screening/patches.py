"""Where to look: overlapping crops of several scales, the whole picture among them."""

from __future__ import annotations

from ..verdict import Box

Scales = tuple[tuple[float, int], ...]
"""((share of the side, windows along a side), ...): (0.5, 3) is 3 x 3 windows of half the side."""


def crop_boxes(size: tuple[int, int], scales: Scales) -> list[Box]:
    """The whole picture first, then every window of every scale, in pixels.

    Windows keep the picture's shape, overlap evenly and reach every edge, so that no pixel is
    left out. On a picture too small for a scale, windows that coincide are given once.

    Args:
        size: (width, height).
        scales: see Scales; a share of 1 is the whole picture, which is always there.
    """
    width, height = size
    boxes: dict[Box, None] = {(0, 0, width, height): None}
    for share, count in scales:
        w, h = max(1, round(width * share)), max(1, round(height * share))
        for row in range(count):
            top = round((height - h) * row / max(1, count - 1))
            for column in range(count):
                left = round((width - w) * column / max(1, count - 1))
                boxes[(left, top, left + w, top + h)] = None
    return list(boxes)


def token_boxes(box: Box, grid: tuple[int, int]) -> list[Box]:
    """The part of the picture behind each patch token of an encoded box, row by row.

    Args:
        box: what was resized to the encoder's input.
        grid: (rows, columns) of tokens.
    """
    left, top, right, bottom = box
    rows, columns = grid
    xs = [left + round((right - left) * i / columns) for i in range(columns + 1)]
    ys = [top + round((bottom - top) * i / rows) for i in range(rows + 1)]
    return [
        (xs[c], ys[r], max(xs[c] + 1, xs[c + 1]), max(ys[r] + 1, ys[r + 1]))
        for r in range(rows)
        for c in range(columns)
    ]
