"""The HTML report: well formed, complete, of one file, and deaf to what records try to make it do."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest

from inference_pio.benchmarks import Limits, Measurement, record_to_json, write_record
from inference_pio.benchmarks._plots import decode_by, history, roofline
from inference_pio.benchmarks._report import render_report
from inference_pio.benchmarks._svg import Axis, Point, Series, figure

VOID = {"meta", "br", "link", "img", "input", "hr"}
LEAVES = {"line", "circle", "rect", "path", "polyline"}


class Page(HTMLParser):
    """Elements and text of a page; any tag that is not closed in its turn is an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in LEAVES
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def swept(make_record):
    """A record with decode speed over batches, contexts and threads."""
    measurements = tuple(
        Measurement(
            f"decode, batch {batch}, context {context}, {threads} threads",
            "tokens/s",
            tuple(threads * batch * (90.0 + value) / (1 + context / 4096) for value in range(5)),
            "higher",
            1e8 / batch,
            3e8,
            {"phase": "decode", "batch": batch, "context": context, "threads": threads},
        )
        for batch in (1, 8, 32)
        for context in (0, 4096)
        for threads in (1, 2)
    )
    return make_record(measurements=measurements)


def test_the_page_is_well_formed_and_needs_nothing_else(swept, make_record):
    """Every tag closed, ids unique, no script, no address, a policy that forbids loading."""
    later = dataclasses.replace(swept, date=swept.date + timedelta(days=3))
    html = render_report([swept, later, make_record(settings={}, machine=None, date=None, limits=())])
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "img", "link", "iframe", "object", "form", "a"})
    assert "://" not in html
    assert not re.search(r"url\(|@import| on[a-z]+=", html)
    assert any(meta.get("http-equiv") == "Content-Security-Policy" for meta in page.of("meta"))
    assert "prefers-color-scheme: dark" in html


def test_every_chart_has_a_title_a_description_and_a_table(swept):
    """For those who do not see it."""
    page = Page(render_report([swept]))
    charts = [attributes for attributes in page.of("svg") if attributes.get("role") == "img"]
    assert len(charts) == 3
    ids = {attributes.get("id") for _, attributes in page.elements}
    for chart in charts:
        assert set(chart["aria-labelledby"].split()) <= ids
    told = "".join(page.text)
    for measurement in swept.measurements:
        assert measurement.name in told
    assert all(table["aria-label"] for table in page.of("table"))


def test_hostile_names_are_text(make_record):
    """Markup out of a record is shown, not obeyed, in every place where a record's words appear."""
    evil = '</title></svg><script>alert(1)</script><img src=x onerror="x">\'&amp;'
    record = make_record(
        benchmark=evil,
        package=evil,
        version=evil,
        settings={"model": evil, evil: evil},
        measurements=(
            dataclasses.replace(
                make_record().measurements[0], name=evil, unit="tokens/s",
                details={"phase": "decode", "batch": 1, "context": 0, "engine": evil},
            ),
            dataclasses.replace(
                make_record().measurements[0], name=evil + "2",
                details={"phase": "decode", "batch": 8, "context": 0, "engine": evil},
            ),
        ),
        machine=dataclasses.replace(make_record().machine, cpu=evil, distributions={evil: evil}, gpus=(evil,)),
        limits=(Limits(2, 10.0, 20.0, 30.0, evil),),
        warnings=(evil,),
    )  # fmt: skip
    later = dataclasses.replace(record, date=record.date + timedelta(days=1))
    page = Page(render_report([record, later]))
    assert page.of("script") == page.of("img") == []
    assert len([chart for chart in page.of("svg") if chart.get("role") == "img"]) == 3
    assert evil in "".join(page.text)


EXTREMES = [1e-30, 1e30, -1e30, 0.0, 1e-9]


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("other", EXTREMES)
def test_extreme_values_make_a_page_all_the_same(swept, tmp_path, value, other):
    """Whatever a record may hold; coordinates stay numbers."""
    document = record_to_json(swept)
    for result in document["results"]:
        result["values"] = [value, other]
        result["details"]["batch"] = value if result["details"]["batch"] == 1 else other
    for name, date in (("a.json", "0001-01-02T00:00:00+00:00"), ("b.json", "9999-12-30T00:00:00+00:00")):
        (tmp_path / name).write_text(json.dumps(document | {"date": date}))
    from inference_pio.benchmarks import read_records

    html = render_report(read_records([tmp_path]))
    Page(html)
    assert "nan" not in re.findall(r'(?:x|y|cx|cy|x1|y1|x2|y2|points|d)="([^"]*)"', html)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', html)


def test_decode_is_drawn_by_batch_and_by_context(swept):
    """One line per context and threads, or per batch and threads; bars from quartile to quartile."""
    by_batch = decode_by("b", swept, "batch")
    assert re.findall(r"</g></svg>([^<]+)</li>", by_batch) == [
        "context 0, threads 1", "context 0, threads 2", "context 4096, threads 1", "context 4096, threads 2",
    ]  # fmt: skip
    by_context = decode_by("c", swept, "context")
    assert len(re.findall(r"<polyline", by_context)) == 6
    one = dataclasses.replace(swept, measurements=swept.measurements[:1])
    assert decode_by("b", one, "batch") is None


def test_a_roofline_needs_bytes_operations_and_limits(swept, make_record):
    """Roofs of both kinds of arithmetic, and a mark for each measurement."""
    drawn = roofline("r", swept)
    assert len(re.findall(r"<polyline", drawn)) == 1
    assert "2 threads: 20.0 GB/s, then float32" in drawn
    assert roofline("r", make_record(limits=())) is None
    assert roofline("r", make_record(measurements=make_record().measurements[1:])) is None


def test_history_begins_at_one_and_rises_with_speed(make_record):
    """Ratios to the first record, times as well as rates; one date is no history."""
    first = make_record()
    faster = dataclasses.replace(
        first,
        date=first.date + timedelta(days=1),
        measurements=tuple(
            dataclasses.replace(each, values=tuple(v * (2 if each.better == "higher" else 0.5) for v in each.values))
            for each in first.measurements
        ),
    )
    drawn = history("h", [faster, first])
    assert re.findall(r"([\d.]+)x</title>", drawn) == ["1.00", "2.00", "1.00", "2.00"]
    assert history("h", [first]) is None
    assert history("h", [first, dataclasses.replace(first, date=None)]) is None


def test_what_is_left_out_of_a_chart_is_said(make_record):
    """The legend counts the lines that it has no room for."""
    first = make_record(measurements=tuple(Measurement(f"m{i}", "s", (1.0,), "lower") for i in range(11)))
    drawn = history("h", [first, dataclasses.replace(first, date=first.date + timedelta(days=1))])
    assert "<li>3 more are in the tables below</li>" in drawn


def test_points_are_where_they_belong():
    """A linear and a logarithmic axis, by hand: equal steps and equal factors are equally far apart."""
    points = tuple(Point(float(x), 10.0**x) for x in (0, 1, 2))
    drawn = figure("f", "t", "d", Axis("x"), Axis("y", log=True), [Series("s", points)])
    centres = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)[:3]]
    (x0, y0), (x1, y1), (x2, y2) = centres
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert x1 > x0
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y0 > y1
    with pytest.raises(ValueError, match="chart 't' has no points"):
        figure("f", "t", "d", Axis("x"), Axis("y"), [])


def test_a_report_of_nothing_is_an_error():
    """The command needs at least one argument."""
    with pytest.raises(ValueError, match="at least one record"):
        render_report([])


def test_the_command_writes_one_file(pio_bench, swept, tmp_path):
    """Where ``-o`` says, from files and folders."""
    write_record(swept, tmp_path / "records" / "a.json")
    done = pio_bench("report", tmp_path / "records", "-o", tmp_path / "out" / "r.html", "--json")
    assert (done.code, done.json["records"]) == (0, 1)
    Page((tmp_path / "out" / "r.html").read_text(encoding="utf-8"))
    assert pio_bench("report", tmp_path / "none").code == 3
    assert pio_bench("report").code == 2
