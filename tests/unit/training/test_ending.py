"""Who asks a command to end is heard where it matters, and told what is true."""

import os
import signal
import threading

import pytest

from nava_lab.training.ending import Asked, noted, said, sigterm_ends


def test_who_is_nearest_to_the_work_says_what_is_to_be_said():
    with pytest.raises(KeyboardInterrupt) as stopped, noted("of the study"), noted("of the run"):
        raise KeyboardInterrupt
    assert said(stopped.value, "stopped") == "stopped; of the run"
    assert said(KeyboardInterrupt(), "stopped") == "stopped"


def test_sigterm_is_heard_while_it_is_listened_for_and_ends_what_is_around():
    asked, before, heard = Asked(), signal.getsignal(signal.SIGTERM), []

    def work():
        with asked.listening():
            os.kill(os.getpid(), signal.SIGTERM)
        heard.append(asked.yes)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit, match="143"), sigterm_ends():
        work()
    assert heard == [True]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_thread_leaves_the_signal_alone():
    before, met = signal.getsignal(signal.SIGTERM), []

    def work():
        with Asked().listening():
            met.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert met == [before]
