"""`dml enrol`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dml.cli.app import Json, Store, Who, store_uri, verb, who_or_user
from dml.cli.output import emit
from dml.errors import InvalidSetting
from dml.numbers import read_integer, read_number

if TYPE_CHECKING:
    from dml.refs import IndexRef
    from dml.reports import EnrolmentReport
    from dml.retrieval.gallery.quality import Quality

_TRUTH = {"true": True, "false": False}


@verb()
def enrol(
    name: Annotated[str, typer.Argument(help="the index's name")],
    identity: Annotated[str, typer.Argument(help="whose images they are: their label")],
    files: Annotated[list[Path], typer.Argument(help="image files, or one .npy file of vectors")],
    attributes: Annotated[
        list[str] | None, typer.Option("--attribute", help="of all these items, name=value; repeatable")
    ] = None,
    quality: Annotated[
        str,
        typer.Option(
            help="off; standard: refuse images that are too small, blurred, dark or bright; strict: also "
            "what resembles another identity more than this one"
        ),
    ] = "off",
    who: Who = None,
    store: Store = None,
    as_json: Json = False,
) -> "EnrolmentReport":
    """Add images of an identity to an index: durable, and found by the next search."""
    from dml.cli.queries import read_image
    from dml.reports import EnrolmentReport

    are_vectors = [file.suffix.lower() == ".npy" for file in files]
    if any(are_vectors) and len(files) > 1:
        raise InvalidSetting(
            f"An enrolment takes image files, or one .npy file of vectors; got {', '.join(map(str, files))}."
        )
    given: dict[str, Any] = {}
    if are_vectors[0]:
        from dml.embedding.vector_files import read_unit_vectors

        given["vectors"] = read_unit_vectors(files[0])
    else:
        given["images"] = [read_image(file, "Check the path.") for file in files]
    from dml.retrieval.gallery import Gallery  # takes a second to import

    gallery = Gallery.open(store_uri(store), name)
    known = _attributes(attributes or [], gallery.ref)
    done = gallery.enrol(identity, attributes=known, who=who_or_user(who), quality=_quality(quality), **given)
    size = gallery.size
    report = EnrolmentReport(
        index=str(gallery.ref),
        identity=done.identity,
        ids=done.ids,
        revision=done.revision,
        delta=size.delta,
        tombstones=size.tombstones,
    )
    return emit(report, as_json, _show_enrolment)


def _attributes(texts: list[str], index: "IndexRef") -> dict[str, Any]:
    known: dict[str, Any] = {}
    for text in texts:
        name, value = _attribute(text, index)
        if name in known:
            raise InvalidSetting(
                f"--attribute must give each name once; got {name!r} twice. Enrol the items in two calls."
            )
        known[name] = value
    return known


def _attribute(text: str, index: "IndexRef") -> tuple[str, Any]:
    """The name and the value, of the column's type; an unknown name is refused by the gallery."""
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not (equals and name):
        raise InvalidSetting(f"--attribute must be name=value; got {text!r}.")
    kind = index.embeddings.items.attributes.get(name, "string")
    try:
        if kind == "int64":
            return name, read_integer(value)
        if kind == "double":
            return name, read_number(value)
        if kind == "bool":
            return name, _TRUTH[value.lower()]
    except (KeyError, ValueError) as error:
        what = {"int64": "a whole number", "double": "a number", "bool": "true or false"}[kind]
        raise InvalidSetting(f"--attribute {name} must be {what}; got {value!r}.") from error
    return name, value


def _quality(text: str) -> "Quality":
    if text in ("off", "standard", "strict"):
        return cast("Quality", text)
    raise InvalidSetting(f"--quality must be off, standard or strict; got {text!r}.")


def _show_enrolment(report: "EnrolmentReport") -> None:
    for id_ in report.ids:
        print(id_)
    print(
        f"{report.identity} is in index {report.index}, as of revision {report.revision}; items enrolled "
        f"since it was built: {report.delta}. `dml reindex` builds them in"
    )
