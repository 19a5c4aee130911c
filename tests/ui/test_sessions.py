"""Whose pictures are kept: drawing alone makes a session, and none that is in use gives way."""

from pathlib import Path

import pytest

from ldmkit.errors import LdmkitError
from ldmkit.ui.sessions import MAX_SESSIONS, Sessions


def full(folder: Path) -> Sessions:
    """Pages "0" to "15" that each have a picture and draw no more."""
    sessions = Sessions()
    for number in range(MAX_SESSIONS):
        session = sessions.begin(str(number))
        (folder / f"{number}.png").touch()
        sessions.add(session, [folder / f"{number}.png"])
        session.stop.set()
    return sessions


def test_looking_makes_no_session(tmp_path: Path) -> None:
    sessions = full(tmp_path)
    for number in range(100):
        assert sessions.find(f"stranger {number}") is None
        sessions.stop(f"stranger {number}")
        with sessions.open_page(f"stranger {number}"):
            pass
    assert len(list(tmp_path.iterdir())) == MAX_SESSIONS


def test_what_was_longest_without_a_drawing_gives_way_but_nothing_that_is_in_use(tmp_path: Path) -> None:
    sessions = full(tmp_path)
    drawing = sessions.begin("1")
    with sessions.open_page("0"):
        sessions.begin("new")
        assert sessions.find("0") is not None
        assert sessions.find("1") is drawing
        assert sessions.find("2") is None
        assert not (tmp_path / "2.png").exists()
    sessions.begin("newer")
    assert sessions.find("0") is None, "its page was closed"


def test_where_all_are_in_use_a_new_page_is_refused(tmp_path: Path) -> None:
    sessions = full(tmp_path)
    for number in range(MAX_SESSIONS):
        sessions.begin(str(number))
    with pytest.raises(LdmkitError, match="16 pages are open already; try again once one of them is closed"):
        sessions.begin("new")
    assert sessions.begin("3").pictures, "a page that has drawn may draw again"
    assert len(list(tmp_path.iterdir())) == MAX_SESSIONS


def test_a_new_drawing_stops_the_one_before_it() -> None:
    sessions = Sessions()
    first = sessions.begin("a").stop
    second = sessions.begin("a").stop
    assert (first.is_set(), second.is_set()) == (True, False)
