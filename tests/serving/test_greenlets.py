import gevent

from qwenapi import greenlets


def test_what_lasts_begins_anew_after_an_error_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(greenlets, "PAUSE_SECONDS", 0.0)
    begun = []

    def work() -> None:
        begun.append(len(begun))
        if len(begun) < 3:
            raise KeyError("of a kind nobody thought of")
        gevent.sleep(60)

    greenlets.spawn_lasting("counting", work)
    for _ in range(20):
        gevent.sleep(0)
    assert begun == [0, 1, 2]
    assert caplog.text.count("counting failed") == 2 and "nobody thought of" in caplog.text
