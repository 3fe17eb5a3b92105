"""Steps of a flow that go side by side."""

import threading

import pytest

from flows.policy import side_by_side


def test_as_many_items_as_allowed_are_under_way_and_results_keep_their_order():
    together = threading.Barrier(2, timeout=30)

    def square(item: int) -> int:
        together.wait()  # broken unless two are under way at once
        return item * item

    assert side_by_side(square, [1, 2, 3, 4], 2) == [1, 4, 9, 16]
    assert side_by_side(str, [1, 2], 1) == ["1", "2"]
    assert side_by_side(str, [], 3) == []


def test_after_an_error_no_further_item_is_begun():
    begun = []
    failed = threading.Event()

    def fail(item: int) -> None:
        begun.append(item)
        if item == 0:
            failed.set()
            raise ZeroDivisionError(item)
        failed.wait(30)
        threading.Event().wait(0.2)  # the failure is noticed while this is under way

    with pytest.raises(ZeroDivisionError):
        side_by_side(fail, list(range(50)), 2)
    assert set(begun) >= {0, 1}
    assert len(begun) < 10
