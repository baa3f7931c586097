"""Pages of lists: what a query may say, and what it is shown."""

import pytest

from qwenapi.errors import BadRequest
from qwenapi.http.paging import in_order, page

LETTERS = "abcdefg"


def ask(**query):
    return page(
        in_order(LETTERS), query, most=100, id_of=str.upper, body_of=lambda one: {"id": one.upper()}
    )


def shown(**query):
    return "".join(body["id"] for body in ask(**query)["data"])


def test_the_newest_come_first_unless_the_oldest_are_asked_for():
    assert (shown(), shown(order="asc")) == ("GFEDCBA", "ABCDEFG")
    assert ask(limit="2") == {
        "object": "list",
        "data": [{"id": "G"}, {"id": "F"}],
        "first_id": "G",
        "last_id": "F",
        "has_more": True,
    }


def test_pages_follow_each_other_to_the_end():
    assert (shown(limit="3"), shown(limit="3", after="E"), shown(after="B")) == ("GFE", "DCB", "A")
    last = ask(after="A")
    assert (last["data"], last["first_id"], last["last_id"]) == ([], None, None)
    assert not last["has_more"] and not ask(limit="7")["has_more"]
    assert shown(order="asc", after="F") == "G"


def test_a_list_is_read_only_as_far_as_its_page_needs():
    read = []

    def letters(newest_first):
        for letter in reversed(LETTERS) if newest_first else LETTERS:
            read.append(letter)
            yield letter

    query = {"limit": "2", "after": "F"}
    page(letters, query, most=100, id_of=str.upper, body_of=lambda one: {"id": one})
    assert read == ["g", "f", "e", "d", "c"]


@pytest.mark.parametrize("limit", ["", "0", "101", "-1", "1.0", "x", "٣", "²", "1" * 5000])
def test_a_limit_is_a_number_from_one_to_the_most(limit):
    with pytest.raises(BadRequest, match="1 to 100"):
        ask(limit=limit)


@pytest.mark.parametrize("query", [{"order": "up"}, {"after": "Z"}, {"after": ""}])
def test_what_is_in_no_list_is_refused(query):
    with pytest.raises(BadRequest, match="order|after"):
        ask(**query)
