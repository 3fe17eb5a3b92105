"""A self-contained HTML page: text, tables and embedded pictures."""

import base64
import csv
import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from dml import storage
from dml.refs import DatasetRef, ReportRef

logger = logging.getLogger(__name__)

PAGE = "index.html"
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #202124; background: #fff;
       max-width: 1500px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; }
p { max-width: 46rem; margin: .4rem 0; }
nav { margin: 1rem 0; } nav a { margin-right: 1.1rem; color: #1a73e8; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: #5f6368; font-size: .9rem; max-width: 46rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; display: block; overflow-x: auto; }
td { overflow-wrap: break-word; max-width: 22rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; padding: .6rem 0; border-top: 1px solid #eceff1; }
.row h3 { flex-basis: 100%; font-size: .9rem; margin: 0; padding-left: .5rem; border-left: .7rem solid; }
.tile { width: 8rem; font-size: .75rem; line-height: 1.3; overflow-wrap: anywhere; }
.tile img { width: 100%; display: block; border: 4px solid #80868b; box-sizing: border-box; }
.tile.query img { border-color: #1a73e8; } .tile.right img { border-color: #1e8e3e; }
.tile.wrong img { border-color: #d93025; } .tile.right b { color: #1e8e3e; } .tile.wrong b { color: #d93025; }
@media (max-width: 700px) {
  body { margin: 1rem auto; padding: 0 1rem; }
  nav a { display: inline-block; padding: .2rem 0; }
  .tile { width: calc(33.3% - .4rem); }
  figure { overflow-x: auto; } figure img { max-width: none; width: max(100%, 32rem); }
}
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #eceff1; }
th { color: #5f6368; font-weight: 500; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG file of a report."""

    name: str
    """Its file's name, without ending."""
    png: bytes
    caption: str


@dataclass(frozen=True)
class Section:
    """A section of a page: heading, text, pictures and tables."""

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    table: Sequence[Mapping[str, Any]] = field(default=())
    html: str = ""
    """Shown in the pictures' place where they are too wide for small screens: a gallery whose rows wrap."""


@dataclass(frozen=True)
class Page:
    title: str
    subtitle: str
    sections: Sequence[Section]
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Further files, name to content."""
    shows: Sequence[DatasetRef] = ()
    """The datasets whose images may be on it; forgetting one of their items removes the page."""


def publish_page(store: str, fingerprint: str, make: Callable[[], Page]) -> ReportRef:
    """Publish a page with its pictures and files atomically, once for the same inputs.

    Args:
        store: the store's URI; the page is in `reports/` there.
        fingerprint: digest of all that decides the page.
        make: called where there is no page of these inputs yet: nothing is looked at twice.
    """
    uri = storage.join(store, "reports", fingerprint[:12])
    if storage.is_complete(uri):
        logger.info("report: nothing to do, the page of these inputs is %s", uri)
        return find_report(uri)
    page = make()
    pictures = {f"{picture.name}.png": picture for section in page.sections for picture in section.pictures}
    files = {name: picture.png for name, picture in pictures.items()}
    captions = {name: picture.caption for name, picture in pictures.items()}
    description = {"fingerprint": fingerprint, "title": page.title, "pictures": captions}
    with storage.staged(uri) as staged:
        for name, content in {**files, **page.beside, PAGE: render(page).encode()}.items():
            storage.write_bytes(storage.join(staged, name), content)
        datasets = [dataset.fingerprint for dataset in page.shows]
        storage.publish(staged, uri, {"ref": description, "datasets": datasets})
    return find_report(uri)


def find_report(uri: str) -> ReportRef:
    """The ref of a published report; raises MissingArtifact where there is none."""
    return ReportRef(uri=uri, page=storage.join(uri, PAGE), **storage.read_manifest(uri)["ref"])


def read_picture(report: ReportRef, name: str) -> bytes:
    """A picture's PNG file's bytes, by its name among `report.pictures`."""
    return storage.read_bytes(storage.join(report.uri, name))


def csv_of(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A table as a file beside a page."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def render(page: Page) -> str:
    """The page as HTML; equal pages give equal text."""
    links = " ".join(
        f'<a href="#section-{number}">{escape(section.title)}</a>'
        for number, section in enumerate(page.sections)
    )
    body = "\n".join(_section(number, section) for number, section in enumerate(page.sections))
    title, subtitle = escape(page.title), escape(page.subtitle)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p>{subtitle}</p>\n"
        f"<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _section(number: int, section: Section) -> str:
    parts = [f'<h2 id="section-{number}">{escape(section.title)}</h2>', f"<p>{escape(section.text)}</p>"]
    if section.html:
        parts.append(section.html)
    for picture in section.pictures:
        if section.html:
            parts.append(f"<p><small>{escape(picture.caption)}</small></p>")
            continue
        source = "data:image/png;base64," + base64.b64encode(picture.png).decode()
        caption = escape(picture.caption)
        parts.append(
            f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        )
    if section.table:
        parts.append(_table(section.table))
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(
        "<tr>" + "".join(_cell(row.get(column, "")) for column in columns) + "</tr>" for row in rows
    )
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f'<td class="number">{value:.4f}</td>'
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    return f"<td>{escape(str(value))}</td>"
