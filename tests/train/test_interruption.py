"""Signals: the first is noted, a second one ends, and none is lost between one interruption and the next."""

from __future__ import annotations

import signal

import pytest

from dsrl_offpolicy.train.run import Interrupted, Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_ends(number) -> None:
    before = signal.getsignal(number)
    with Interruption() as stop:
        signal.raise_signal(number)
        assert stop.requested == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_at_once_the_first_one_ends() -> None:
    with Interruption(at_once=True) as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM


def nothing_acts() -> None:
    with Interruption():
        signal.raise_signal(signal.SIGTERM)


def something_acts() -> None:
    with Interruption() as stop:
        signal.raise_signal(signal.SIGTERM)
        raise Interrupted(stop.requested, "resume with: ...")


def test_a_signal_on_which_nothing_inside_acted_reaches_what_is_around() -> None:
    with Interruption(at_once=True) as around:
        with pytest.raises(KeyboardInterrupt):
            nothing_acts()
        assert around.requested == signal.SIGTERM
    with Interruption(at_once=True) as around:
        with pytest.raises(Interrupted, match="stopped by SIGTERM; resume with"):
            something_acts()
        assert around.requested is None
