"""Foreign text in messages: one printable line, whatever somebody chose. Run: `python -m pytest tests/test_text.py`.

Read next: `wire/text.py`.
"""

from __future__ import annotations

import pytest

from wire.text import MAX_SHOWN_CHARS, differences, one_line, ordered, quoted, quoted_name

HOSTILE = "a\nb\t\x1b[2J\x7f\u2028\u202eé\ud800"


@pytest.mark.parametrize("show", [one_line, quoted, quoted_name])
def test_nothing_that_somebody_chose_starts_a_line_or_steers_a_terminal(show):
    for text in (show(HOSTILE), show(HOSTILE * 1000)):
        assert text.isascii() and text.isprintable() and text.startswith("a") and "[2J" in text


def test_a_line_is_cut_where_it_is_told_and_a_value_where_messages_end():
    assert one_line("x" * 500, 200) == "x" * 200 and one_line("x" * 500) == "x" * 500
    assert quoted("x" * 500) == "x" * MAX_SHOWN_CHARS + "..." and len(quoted_name("x" * 500)) == 60


def test_any_json_value_is_quoted_shortly():
    values = (None, True, 5, "5", [1, 2], {"a": 1}, 10**5000)
    said = ["null", "True", "5", "5", "a list of 2", "an object of 1", "an integer of more than 100 digits"]
    assert [quoted(value) for value in values] == said


def test_what_differs_is_named_by_its_path_and_types_count():
    stored, again = {"a": [1, {"b": "1"}], "c": None, "e": True}, {"a": [1, {"b": 1}], "d": [], "e": 1}
    assert list(differences("x", stored, again)) == [
        "x.a[1].b: 1, recomputed 1",
        "x.c: null, recomputed (absent)",
        "x.d: (absent), recomputed a list of 0",
        "x.e: True, recomputed 1",
    ]
    assert list(differences("x", [1], [1, 2])) == ["x: 1 items, recomputed 2"]
    assert list(differences("x", stored, stored)) == []


def test_what_is_out_of_order_or_there_twice_is_named():
    assert list(ordered("x", [1, 2, 2, 1, 3])) == [f"x[{n}]: out of order, or there twice" for n in (2, 3)]
    assert list(ordered("x", [])) == list(ordered("x", [1])) == []
