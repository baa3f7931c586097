"""What a batch's input may not hold."""

import json

import pytest

from qwenapi.batches.files import BadBatch, BatchInput


@pytest.mark.parametrize("name", ["conversation", "background"])
def test_a_line_for_responses_changes_no_conversation_and_ends_with_its_answer(tmp_path, name):
    path, url = tmp_path / "in", "/v1/responses"
    line = {"custom_id": "a", "method": "POST", "url": url, "body": {name: "x"}}
    path.write_text(json.dumps(line))
    with pytest.raises(BadBatch, match=f"'{name}'"):
        BatchInput(path, url)
    assert BatchInput(path).ids == {"a"}  # of `qwenapi batch`, for any server
    line["body"] = {"background": False, "conversation": None}
    path.write_text(json.dumps(line))
    assert BatchInput(path, url).ids == {"a"}


def test_a_line_may_be_so_long_and_no_longer(tmp_path):
    path, url = tmp_path / "in", "/v1/completions"
    lines = [
        json.dumps({"custom_id": str(i), "method": "POST", "url": url, "body": {"prompt": "x" * i}})
        for i in (10, 20)
    ]
    path.write_text("\n".join(lines))
    longest = len(lines[1])
    assert BatchInput(path, url, longest).ids == {"10", "20"}
    with pytest.raises(BadBatch, match=f"line 2: is longer than {longest - 1} bytes"):
        BatchInput(path, url, longest - 1)
