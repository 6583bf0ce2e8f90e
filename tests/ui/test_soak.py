"""The report of a soak: one file that asks nobody, with this run beside the reference's."""

from dataclasses import replace

from spl.cli.soak_plan import WINDOWS, SoakRow
from spl.ui.soak import _TITLES, HEIGHT, PLOTS, REFERENCE, WIDTH, report
from tests.ui.test_markup import Read

ROWS = [SoakRow(each.name, each.minutes, each.records, each.records, each.records, 4, 26, 3, 0) for each in WINDOWS]


def test_it_has_every_figure_and_the_reference_beside_it() -> None:
    text = report([row.to_json() for row in ROWS], "soak passed", "2026-11-23T06:00:00.000Z", passed=True)
    read = Read(text)
    charts = [str(attributes["aria-label"]) for name, attributes in read.elements if attributes.get("class") == "chart"]
    assert [chart.split(":")[0] for chart in charts] == [plot.title for plot in PLOTS]
    assert "steady: 4, reference 225" in charts[0]
    assert "limit 1,500 in spike" in charts[1]
    assert "spike: 2,212, reference 972" in charts[3]
    assert "33,180" in read.said
    titles = [attributes["data-title"] for name, attributes in read.elements if name == "td"]
    assert titles == [*_TITLES[1:]] * len(ROWS)  # what a narrow window shows, which has no head of the table
    assert [row[0] for row in REFERENCE] == [each.name for each in WINDOWS]
    assert not [1 for _, attributes in read.elements if {"src", "href"} & attributes.keys()]
    assert "@import" not in text
    assert "url(" not in text


def test_no_bar_leaves_its_plot_and_what_is_unknown_has_none() -> None:
    huge = replace(ROWS[0], sync_lag_p50_ms=10**6, sync_lag_p99_ms=None, reconcile_queue_max=0)
    text = report([huge.to_json()], "<b>x</b>", "now", passed=False, readings=["a <script>"])
    read = Read(text)
    assert "<script>" in read.said
    assert "script" not in {name for name, _ in read.elements}
    for name, attributes in read.elements:
        if name == "text":
            assert 0 <= float(attributes["x"] or "") <= WIDTH
            assert 0 <= float(attributes["y"] or "") <= HEIGHT
    assert "–" in read.said
    assert report([], "interrupted", "now", passed=False).count("<svg") == len(PLOTS) + 2
