"""Ctrl-C ends a command wherever it strikes."""

from __future__ import annotations

import os
import signal

import pytest

from opsin.cli.interrupts import remembered


class Unlucky:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))  # the handler runs here, and Python ignores what a finalizer raises


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_strikes_a_finalizer_is_raised_at_the_next_check() -> None:
    with remembered() as check:
        check()
        Unlucky()
        with pytest.raises(KeyboardInterrupt):
            check()


def test_any_other_interrupt_is_raised_at_once_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), remembered():
        os.kill(os.getpid(), signal.SIGINT)
        sum(range(1000))
    assert signal.getsignal(signal.SIGINT) is before
