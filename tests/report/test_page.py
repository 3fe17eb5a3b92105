"""The page needs nothing beside it, and shows names as they are, whatever is in them."""

import base64
import re
from dataclasses import replace

import pytest

from dml import storage
from dml.refs import ReportRef
from dml.report.page import (
    Page,
    Picture,
    Section,
    csv_of,
    find_report,
    publish_page,
    read_picture,
    render,
)

PNG = b"\x89PNG\r\n\x1a\n picture"
PAGE = Page(
    "A <title>",
    "where & when",
    [
        Section("First", "Words.", [Picture("one", PNG, 'a "caption"')], [{"label": "<b>", "value": 0.25}]),
        Section("Second", "Nothing to see."),
    ],
)


def test_the_page_embeds_its_pictures_and_loads_nothing_else():
    html = render(PAGE)
    assert [
        base64.b64decode(actual) for actual in re.findall(r'src="data:image/png;base64,(.+?)"', html)
    ] == [PNG]
    assert len(re.findall("src=", html)) == 1
    assert "http" not in html


def test_names_are_shown_not_obeyed():
    html = render(PAGE)
    assert "A &lt;title&gt;" in html
    assert "<td>&lt;b&gt;</td>" in html
    assert 'alt="a &quot;caption&quot;"' in html


def test_every_section_is_one_click_away():
    html = render(PAGE)
    for target in re.findall(r'href="#(.+?)"', html):
        assert f'<h2 id="{target}">' in html
    assert html.count("<h2") == 2


def test_a_report_is_published_whole_with_its_pictures_beside_it(tmp_path):
    page = replace(PAGE, beside={"list.csv": csv_of(["id"], [])})
    report = publish_page(str(tmp_path), "0" * 64, lambda: page)
    assert report == find_report(report.uri) == ReportRef.model_validate_json(report.model_dump_json())
    assert report.pictures == {"one.png": 'a "caption"'}
    assert read_picture(report, "one.png") == PNG
    folder = tmp_path / "reports" / ("0" * 12)
    assert {path.name for path in folder.iterdir()} == {"index.html", "list.csv", "one.png", "manifest.json"}
    assert (folder / "index.html").read_text() == render(PAGE)
    assert report.page == str(folder / "index.html")


def test_a_page_of_the_same_inputs_is_not_made_again(tmp_path):
    report = publish_page(str(tmp_path), "0" * 64, lambda: PAGE)
    assert publish_page(str(tmp_path), "0" * 64, lambda: pytest.fail("made again")) == report


def test_a_report_on_s3_is_fetched_as_it_was_written(s3_store):
    fingerprint = "1" * 64
    report = publish_page(s3_store, fingerprint, lambda: PAGE)
    assert report.page == f"{s3_store}/reports/{'1' * 12}/index.html"
    assert read_picture(report, "one.png") == PNG
    assert (storage.fetch(report.uri, report.fingerprint) / "index.html").read_text() == render(PAGE)
