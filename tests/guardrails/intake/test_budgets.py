"""What one request may cost: decided before the work, said as the reason, told apart by picture."""

from __future__ import annotations

import _thread
import contextlib
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from bad_pictures import animation, encoded, photo
from memory_helpers import MIB, at_most
from sightrail.guardrails import ImageError, Limits
from sightrail.guardrails.deadline import check_time, run_within, time_limit
from sightrail.guardrails.intake import Picture, RequestReader
from sightrail.guardrails.verdict import NotInspected


def reasons(reader: RequestReader, sources: list[object]) -> list[str | None]:
    found = reader.read_all([(source, index) for index, source in enumerate(sources)])  # type: ignore[misc]
    return [seen.reason if isinstance(seen, NotInspected) else None for seen in found]


def flicker(frames: int, side: int = 8) -> bytes:
    """An animated PNG, a few bytes a frame: every frame is see-through and differs."""
    pictures = [Image.new("RGBA", (side, side), (n, 255 - n, 0, 128)) for n in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "PNG", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


def test_renderings_are_counted_over_the_request() -> None:
    data = [encoded(photo()), animation(5), encoded(photo())]
    assert reasons(RequestReader(Limits(max_views_per_request=6)), data) == [
        None,
        None,
        "too_many_views",
    ]
    assert reasons(RequestReader(Limits(max_views_per_request=4)), data) == [
        None,
        "too_many_views",
        None,
    ]


def test_a_small_file_of_many_renderings_is_refused_before_it_is_decoded() -> None:
    bomb = flicker(64)
    assert len(bomb) < 25_000
    assert set(reasons(RequestReader(Limits()), [bomb] * 200)) == {"too_many_views"}


def test_bytes_are_counted_over_the_request() -> None:
    data = encoded(photo())
    reader = RequestReader(Limits(max_bytes_per_request=2 * len(data)))
    assert reasons(reader, [data, data, data]) == [None, None, "too_large"]


def test_what_a_message_holds_too_much_is_said_before_anything_is_loaded() -> None:
    reader = RequestReader(Limits(max_images_per_message=2))
    found = reader.read_all([(encoded(photo()), "a")] * 3 + [(encoded(photo()), "b")])
    assert [isinstance(seen, Picture) for seen in found] == [True, True, False, True]


def test_a_request_of_the_largest_pictures_keeps_to_the_memory_that_is_promised() -> None:
    huge = encoded(Image.new("RGB", (7000, 7000), "red"))
    ghost = encoded(Image.new("RGBA", (5000, 5000), (255, 0, 0, 128)))
    assert len(huge) + len(ghost) < 400_000
    with at_most(900 * MIB):
        found = reasons(RequestReader(Limits()), [huge, ghost, huge, ghost])
    assert found == [None, None, "too_large", "too_large"]


@pytest.mark.usefixtures("interruptible")
def test_work_that_nobody_waits_for_any_longer_ends() -> None:
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        try:
            while not over.wait(0.005):
                run_within(30, check_time)  # steps within steps are told as well
        except TimeoutError:
            over.set()

    def interrupt() -> None:
        begun.wait(20)
        _thread.interrupt_main()

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_within(60, work)
    ended = over.wait(20)
    over.set()
    assert ended
    assert run_within(60, lambda: "the next one") == "the next one"


def test_work_within_work_needs_no_second_place_among_those_that_may_hang() -> None:
    many = 70  # more than may hang at once
    together = threading.Barrier(many)

    def work() -> str:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(0.5)  # all that found a place hold it
        return run_within(60, lambda: "done")

    with ThreadPoolExecutor(many) as pool:
        answers = [pool.submit(run_within, 30, work) for _ in range(many)]
        assert {answer.result() for answer in answers} == {"done"}


def test_work_within_work_keeps_to_the_shorter_of_both_deadlines() -> None:
    stop = threading.Event()
    with pytest.raises(TimeoutError):
        run_within(60, lambda: run_within(0.05, lambda: stop.wait(20)))
    stop.set()


def test_a_deadline_that_has_passed_ends_reading() -> None:
    with time_limit(0.0), pytest.raises(TimeoutError):
        RequestReader(Limits()).read_all([(encoded(photo()), 0)])


def test_the_callers_picture_counts_as_well() -> None:
    reader = RequestReader(Limits(max_views_per_request=1))
    assert reader.read(photo()).image.size == photo().size
    with pytest.raises(ImageError, match="more than 1 renderings"):
        reader.read(photo())
