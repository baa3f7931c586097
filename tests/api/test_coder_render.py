"""An exported conversation is one JSON body, however many pages it is read by."""

import json

from qwenapi.api.coder.render import conversation_pieces
from qwenapi.conversations import Conversation, PastTurn


def test_a_conversation_is_told_page_by_page():
    turns = [PastTurn(f"问 {number}", f'"{number}"\n', "stop", 0.0) for number in range(5)]
    read = []

    def pages():
        for page in (turns[:2], turns[2:4], turns[4:]):
            read.append(len(page))
            yield page

    pieces = conversation_pieces(Conversation("id", 1.5, 2.5, 5, ""), pages())
    first = next(pieces)
    assert read == [2] and json.loads(first + b"]}")["messages"][2:] == list(turns[1].messages)
    body = json.loads(first + b"".join(pieces))
    messages = [message for turn in turns for message in turn.messages]
    about = {"conversation_id": "id", "created_at": 1.5, "used_at": 2.5}
    assert body == about | {"messages": messages}


def test_a_conversation_without_turns_is_whole_too():
    pieces = conversation_pieces(Conversation("id", 1.5, 2.5, 0, ""), iter([()]))
    body = json.loads(b"".join(pieces))
    assert body["messages"] == [] and body["conversation_id"] == "id"
