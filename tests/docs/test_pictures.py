"""What the pictures are drawn from is still there, though they are taken by hand."""

from typing import Any

from tests.docs import dashboard
from tests.docs.pages import pages
from tests.docs.pictures import BOARD_ROWS, FOLDER, PICTURES
from tests.ops.prometheus import DASHBOARD


class Answers:
    """A Prometheus that has the same two values for every query."""

    def series(self, expression: str, *, is_instant: bool = False) -> list[dict[str, Any]]:
        values = [[0, "1"], [60, "3"], [61, "NaN"]]
        return [{"metric": {"le": "0.5", "profile": "<coder>", "version": "1"}, "values": values}]


def test_each_panel_of_the_first_rows_is_drawn_under_its_title():
    panels = [panel for panel in DASHBOARD["panels"] if panel["gridPos"]["y"] < BOARD_ROWS]
    drawn = dashboard.page(panels, Answers())
    assert len(panels) > 10
    for panel in panels:
        assert panel["title"] in drawn
    assert "&lt;coder&gt;" in drawn and "<coder>" not in drawn
    assert "nan" not in drawn.lower()


def test_each_picture_is_one_that_is_taken():
    taken = {file.stem for file in FOLDER.iterdir()}
    assert all(any(name.startswith(one) for one in PICTURES) for name in taken)
    shown = " ".join(page.text for page in pages())
    assert all(f"pictures/{name}.png" in shown for name in taken)
