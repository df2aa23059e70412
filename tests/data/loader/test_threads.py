import threading

import pytest
from em_data.loader.threads import readers


def test_without_threads_each_result_is_made_once_when_it_is_asked_for():
    made = []
    with readers(0) as pool:
        later = [pool.submit(made.append, number) for number in range(3)]
        assert made == []
        for one in (later[2], later[0], later[2]):
            one.result()
    assert made == [2, 0]


def test_what_fails_in_a_thread_fails_where_the_result_is_asked_for():
    with readers(2) as pool:
        later = pool.submit(int, "x")
        with pytest.raises(ValueError, match="'x'"):
            later.result()


def test_who_leaves_early_waits_only_for_what_has_begun():
    begun, go, made = threading.Event(), threading.Event(), []

    def work(number):
        begun.set()
        go.wait(10)
        made.append(number)

    with readers(1) as pool:
        for number in range(3):
            pool.submit(work, number)
        begun.wait(10)
        threading.Timer(0.05, go.set).start()
    assert made == [0]
