import os
import signal

import pytest
from em_train.stop import StopRequest


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_asks_instead_of_killing(name):
    before = signal.getsignal(getattr(signal, name))
    with StopRequest() as stop:
        assert stop.name is None
        os.kill(os.getpid(), getattr(signal, name))
        assert stop.name == name
    assert signal.getsignal(getattr(signal, name)) is before


def test_a_second_interrupt_leaves_at_once():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
