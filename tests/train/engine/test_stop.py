import os
import signal

import pytest
from em_train.engine.stop import StopRequest


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_asks_instead_of_killing(name):
    before = signal.getsignal(getattr(signal, name))
    with StopRequest() as stop:
        assert stop.name is None
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.name == name
    assert signal.getsignal(getattr(signal, name)) is before


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_only_a_second_interrupt_is_impatient():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.name == "SIGTERM"


def test_a_second_interrupt_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
