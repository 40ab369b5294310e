"""Pages of a PDF: looked at where the optional reader is installed, not inspected without."""

from __future__ import annotations

import io
import sys

import pytest
from PIL import Image

from bad_pictures import encoded, photo
from sightrail.guardrails import ImageError, Limits, read_picture


def pdf(pages: int = 3, size: tuple[int, int] = (72, 72)) -> bytes:
    images = [Image.new("RGB", size, (0, 60 * i % 256, 200)) for i in range(pages)]
    file = io.BytesIO()
    images[0].save(file, "PDF", save_all=True, append_images=images[1:])
    return file.getvalue()


def reason_of(data: bytes, limits: Limits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        read_picture(data, limits)
    return caught.value.reason


def test_without_the_reader_a_pdf_is_not_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(ImageError, match=r"pip install 'sightrail\[pdf\]'") as caught:
        read_picture(pdf())
    assert caught.value.reason == "pdf"


def test_every_page_is_a_view_and_the_first_travels_on() -> None:
    pytest.importorskip("pypdfium2")
    picture = read_picture(pdf(3))
    assert [view.size for view in picture.views] == [(144, 144)] * 3
    assert picture.image is picture.views[0]
    assert picture.views[1].getpixel((70, 70)) == pytest.approx((0, 60, 200), abs=3)


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (pdf(5), Limits(max_frames=4), "too_many_frames"),
        (pdf(2, (720, 720)), Limits(max_pixels=1_500_000), "too_large"),
        (b"%PDF-1.7", None, "pdf"),
        (pdf()[:300], None, "pdf"),
        (pdf().replace(b"/Pages", b"/Pigs"), None, "pdf"),
    ],
)
def test_bad_documents_are_refused(data: bytes, limits: Limits | None, reason: str) -> None:
    pytest.importorskip("pypdfium2")
    assert reason_of(data, limits) in (reason, "empty")


def test_a_picture_with_a_pdf_behind_it_is_a_picture() -> None:
    assert read_picture(encoded(photo()) + pdf()).image.tobytes() == photo().tobytes()
