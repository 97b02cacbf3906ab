"""What of FLARE is done otherwise in our processes: no line of a message, no thread for each reply."""

import threading
import time

import pytest

pytest.importorskip("nvflare", reason="the extra nvflare is not installed")

from nvflare.fuel.f3.streaming.byte_receiver import RxTask
from nvflare.fuel.utils.buffer_list import ConsumableBufferList

from halfback.deploy.calm import Later, be_quiet


def received(number: int, keeps: float) -> RxTask:
    """A reply that has come, and is kept for so many seconds."""
    task = RxTask(number, "site-1", None, reliable=True)
    task.completed_task_ttl = keeps
    RxTask.rx_task_map["site-1", number] = task
    task.stop()
    return task


def test_flare_writes_no_message_into_a_line_of_log() -> None:
    be_quiet()
    assert f"{ConsumableBufferList([bytes(1000), bytes(1000)])}" == "2 buffers"


def test_a_thousand_replies_that_have_come_keep_one_thread_and_are_forgotten_in_time() -> None:
    be_quiet()
    threads = threading.active_count()
    for number in range(1000):
        received(number, keeps=60.0)
    kept = received(1000, keeps=0.2)
    assert threading.active_count() <= threads + 1
    assert kept.completed
    assert len(RxTask.rx_task_map) == 1001
    until = time.monotonic() + 10
    while ("site-1", 1000) in RxTask.rx_task_map:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(RxTask.rx_task_map) == 1000
    for number in range(1000):
        RxTask.rx_task_map["site-1", number]._remove_task()


def test_calls_come_in_time_whatever_is_called_off_or_fails() -> None:
    later, came, last = Later(), [], threading.Event()
    later.call(0.2, last.set)
    later.call(0.1, lambda: came.append("second"))
    later.call(0.05, lambda: came.append("first"))
    later.call(0.07, lambda: came.append("never")).cancel()
    later.call(0.06, lambda: [][0])  # type: ignore[arg-type, return-value]
    assert last.wait(10)
    assert came == ["first", "second"]
