"""A secret: nothing that Python does by itself turns it into text."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import traceback

import pytest

from beam_entra.secret import Secret

TEXT = "hunter2-hunter2"
SECRET = Secret(TEXT, what="access token")


@dataclasses.dataclass(frozen=True)
class Holder:
    """A value that holds one."""

    secret: Secret


@pytest.mark.parametrize(
    "shown",
    [
        repr(SECRET),
        str(SECRET),
        f"{SECRET}",
        f"{SECRET!r}",
        f"{SECRET:>60}",
        "%s" % SECRET,  # noqa: UP031 - this is what is tested
        "{}".format(SECRET),  # noqa: UP032 - likewise
        repr([SECRET]),
        repr(Holder(SECRET)),
        str(dataclasses.asdict(Holder(SECRET))),
        repr(RuntimeError(SECRET)),
    ],
)
def test_no_way_of_showing_it_shows_the_text(shown):
    """Every way of turning it into text names what it is, and not the text."""
    assert TEXT not in shown
    assert "access token: redacted" in shown


def test_it_opens_with_reveal():
    """The one way to the text."""
    assert SECRET.reveal() == TEXT


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("held", [SECRET, [SECRET], Holder(SECRET), ValueError(SECRET)], ids=type)
def test_it_refuses_pickling(held, protocol):
    """Neither it nor anything that holds it is pickled, by any protocol."""
    with pytest.raises(TypeError, match="access token is never pickled"):
        pickle.dumps(held, protocol)


def test_it_is_no_json():
    """No encoder writes it by accident."""
    with pytest.raises(TypeError):
        json.dumps({"token": SECRET})


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_a_copy_is_itself(way):
    """Copying makes no second holder of the text, also within other values."""
    assert way(SECRET) is SECRET
    assert way([SECRET])[0] is SECRET


def test_it_has_no_attributes_to_list():
    """`vars()` and whatever serialises instances by their `__dict__` find nothing."""
    with pytest.raises(TypeError):
        vars(SECRET)


def test_it_is_compared_as_itself():
    """Two secrets of one text are two: comparing is no way to test a guess, nor a timing channel."""
    assert Secret(TEXT, what="access token") != SECRET
    assert SECRET != TEXT


def test_logging_redacts(caplog):
    """A secret that is handed to a logger arrives redacted."""
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("beam_entra").warning("got %s and %r", SECRET, Holder(SECRET))
    assert TEXT not in caplog.text


def test_a_traceback_with_locals_redacts():
    """Error reporters that print local variables print a redacted one."""

    def failing(secret: Secret) -> None:
        raise RuntimeError(f"with {secret}")

    with pytest.raises(RuntimeError) as caught:
        failing(SECRET)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert TEXT not in "".join(line for line in shown.format() if "TEXT" not in line)


def test_an_empty_secret_is_refused():
    """An unset variable is found where it is read, not where Entra refuses it."""
    with pytest.raises(ValueError, match="empty client secret"):
        Secret("", what="client secret")
