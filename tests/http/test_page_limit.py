"""What `limit` may say in the query of a list."""

import pytest

from qwenapi.errors import BadRequest
from qwenapi.http.page_limit import page_limit


def test_a_limit_is_a_number_from_one_to_the_most():
    assert [page_limit(text, 100) for text in ("1", "42", "100")] == [1, 42, 100]
    for text in ("", "0", "101", "-1", "1.0", "x", "٣", "²", "1" * 5000):
        with pytest.raises(BadRequest, match="1 to 100"):
            page_limit(text, 100)
