"""`dml search` and `dml load`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dml.cli.app import Json, Store, store_uri, verb
from dml.cli.faces import Faces, faces_of, require_image, show_faces, wants_all
from dml.cli.output import emit, print_table
from dml.cli.pictures import require_picture, write_picture
from dml.errors import InvalidSetting

Engine = Annotated[
    str, typer.Option("--engine", help="a Milvus server: milvus://HOST:PORT, or milvus://HOST:PORT/DATABASE")
]
OptionalEngine = Annotated[
    str | None,
    typer.Option("--engine", help="a Milvus server: milvus://HOST:PORT, or milvus://HOST:PORT/DATABASE"),
]
Collection = Annotated[
    str | None, typer.Option("--collection", help="its collection; default: the index version's own")
]

if TYPE_CHECKING:
    from dml.cli.queries import Query
    from dml.reports import LoadReport, SearchedFaces, SearchHit, SearchReport
    from dml.serving.engine_searcher import EngineSearcher
    from dml.serving.query_result import QueryResult
    from dml.serving.searcher import Searcher


@verb()
def search(
    image: Annotated[
        Path | None, typer.Argument(help="the query's image file; beside --id or --vector: as --index")
    ] = None,
    name: Annotated[str | None, typer.Option("--index", help="default: the store's only index")] = None,
    item: Annotated[
        str | None, typer.Option("--id", help="search with an item of the index instead of an image")
    ] = None,
    vector: Annotated[
        Path | None, typer.Option(help="search with the one vector in this .npy file instead of an image")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="how many answers")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="a filter: \"region = 'east' and age between 20 and 40\", or its JSON; repeatable: all must "
            "hold"
        ),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="write a picture into this PNG file; of query and answers")
    ] = None,
    group_by_identity: Annotated[
        str | None,
        typer.Option(
            help="answer with labels: best (by the most similar image), mean (of all images), all (list them)"
        ),
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(help="put what is most similar in another order: query-expansion or k-reciprocal"),
    ] = None,
    engine: OptionalEngine = None,
    collection: Collection = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="print costs and recall with their basis; of the plan of this search"),
    ] = False,
    faces: Faces = "main",
    store: Store = None,
    as_json: Json = False,
) -> "SearchReport | SearchedFaces":
    """Find the most similar items of an index, of an image, an item or a vector."""
    is_all = wants_all(faces)
    _refuse_together(engine, picture, explain, group_by_identity, rerank, is_all=is_all)
    if item is not None or vector is not None:
        _refuse_beside(image, name, item, vector, picture)
        name, image = name or (None if image is None else str(image)), None
    from dml.cli.queries import read_query

    query = read_query(image, item, vector)
    if picture is not None:
        require_picture(picture, query=image)
    root = store_uri(store)
    if is_all:
        return _search_faces(
            root,
            name,
            require_image(query, image),
            {"k": k, "where": where or [], "rerank": rerank, "grouping": group_by_identity},
            as_json,
        )
    if group_by_identity is not None:
        from dml.serving.searcher import Searcher  # takes seconds to import

        found = Searcher.open(root, name).search_identities(
            query, k=k, where=where or [], grouping=group_by_identity
        )
        return emit(found.report(), as_json, _show_answers)
    result = _search(_open(root, name, engine, collection), query, k, where or [], rerank)
    drawn = None
    if picture is not None and isinstance(query, bytes):
        drawn = _draw(picture, result, query, root)
    return emit(result.report(picture=drawn), as_json, _show_explained if explain else _show_answers)


def _refuse_together(
    engine: str | None,
    picture: Path | None,
    explain: bool,
    group_by_identity: str | None,
    rerank: str | None,
    *,
    is_all: bool,
) -> None:
    """Raise InvalidSetting for options that do not go together."""
    if is_all and (engine is not None or picture is not None or explain):
        raise InvalidSetting("--faces all goes without --engine, --picture and --explain; leave them out.")
    if explain and engine is not None:
        raise InvalidSetting(f"--explain is for an index in this process; got --engine {engine} too.")
    if group_by_identity is not None and (engine is not None or picture is not None or explain):
        raise InvalidSetting(
            "--group-by-identity goes without --engine, --picture and --explain; leave them out."
        )
    if rerank is not None and (engine is not None or group_by_identity is not None):
        raise InvalidSetting("--rerank goes without --engine and --group-by-identity; leave them out.")


def _draw(picture: Path, result: "QueryResult", query: bytes, store: str) -> str:
    """Write the picture of query and answers; returns its path."""
    from dml.retrieval.gallery import Gallery
    from dml.serving.answers import draw

    gallery = Gallery.open(store, str(result.index), readonly=True)
    write_picture(picture, draw(result, query, gallery))
    return str(picture.resolve())


def _search_faces(
    store: str, name: str | None, image: bytes, options: dict[str, Any], as_json: bool
) -> "SearchedFaces":
    from dml.reports import SearchedFace, SearchedFaces
    from dml.serving.searcher import FaceAnswer, Searcher

    searcher = Searcher.open(store, name)
    answers = searcher.search_faces(image, **options)
    found = [FaceAnswer(face.box, face.score, face.answer.report()) for face in answers]
    report = SearchedFaces(index=str(searcher.index), faces=faces_of(SearchedFace, found))
    return emit(report, as_json, _show_faces)


def _show_faces(report: "SearchedFaces") -> None:
    show_faces(report.faces, _show_answers)


def _refuse_beside(
    positional: Path | None, name: str | None, item: str | None, vector: Path | None, picture: Path | None
) -> None:
    """Raise InvalidSetting for what does not go with a search by --id or --vector."""
    if item is not None and vector is not None:
        raise InvalidSetting(f"A search needs one query; got --id {item} and --vector {vector}.")
    if picture is not None:
        raise InvalidSetting("--picture shows the query's image; a search by --id or --vector has none.")
    if positional is not None and name is not None:
        raise InvalidSetting(f"A search needs one query; got {positional} beside --id or --vector.")


def _open(
    store: str, name: str | None, engine: str | None, collection: str | None
) -> "Searcher | EngineSearcher":
    """The index in this process, or where another engine holds its items."""
    if engine is None:
        if collection is not None:
            raise InvalidSetting(f"--collection belongs to an --engine; got {collection} and none.")
        from dml.serving.searcher import Searcher  # takes seconds to import

        return Searcher.open(store, name)
    from dml.serving.engine_searcher import EngineSearcher
    from dml.settings import milvus_token

    return EngineSearcher.open(store, name, engine, collection=collection, token=milvus_token())


def _search(
    searcher: "Searcher | EngineSearcher", query: "Query", k: int, where: list[str], rerank: str | None
) -> "QueryResult":
    more: dict[str, Any] = {} if rerank is None else {"rerank": rerank}  # which another engine does not take
    if isinstance(query, bytes):
        (result,) = searcher.search([query], k=k, where=where, **more)
    elif isinstance(query, str):
        (result,) = searcher.search_ids([query], k=k, where=where, **more)
    else:
        (result,) = searcher.search_vectors(query[None], k=k, where=where, **more)
    return result


def _show_answers(report: "SearchReport") -> None:
    rows = [_row_of_item(item) for item in report.answers]
    if report.identities is not None:
        rows = [
            {"identity": hit.identity, "similarity": hit.similarity, "images": image.id}
            for hit in report.identities
            for image in hit.images
        ]
    print_table(f"{report.index}: {report.plan}", rows)
    if report.picture is not None:
        print(f"picture: {report.picture}")


def _show_explained(report: "SearchReport") -> None:
    from dml.retrieval.plan import Plan

    _show_answers(report)
    assert report.execution is not None
    for name, text in Plan.model_validate(report.execution.model_dump()).explained():
        print(f"{name}: {text}")


def _row_of_item(item: "SearchHit") -> dict[str, object]:
    return {"id": item.id, "label": item.label, "similarity": item.similarity, **item.attributes}


@verb()
def load(
    index: Annotated[str, typer.Argument(help="NAME (the version in use) or NAME@VERSION")],
    engine: Engine,
    collection: Collection = None,
    index_type: Annotated[
        str,
        typer.Option(help="Milvus' index of the vectors; auto: FLAT below 100,000 rows, AUTOINDEX beyond"),
    ] = "auto",
    store: Store = None,
    as_json: Json = False,
) -> "LoadReport":
    """Load an index's vectors and items into Milvus, to be searched there with the same filters."""
    from dml.reports import LoadReport
    from dml.retrieval.changes import require_unchanged
    from dml.retrieval.engines.milvus import MilvusEngine
    from dml.retrieval.engines.milvus_address import MilvusAddress, collection_name
    from dml.retrieval.gallery import require_nothing_forgotten
    from dml.retrieval.index import find_index
    from dml.settings import milvus_token

    address = MilvusAddress.parse(engine)
    root = store_uri(store)
    ref = find_index(root, index)
    require_unchanged(ref, "Another engine")
    require_nothing_forgotten(root, ref, "Another engine")
    name = collection or collection_name(str(ref))
    opened = MilvusEngine(address, name, token=milvus_token(), index_type=index_type)
    rows = opened.load(ref.embeddings)
    report = LoadReport(
        index=str(ref), engine=str(address), collection=name, rows=rows, dim=ref.embeddings.dim
    )
    return emit(report, as_json, _show_load)


def _show_load(report: "LoadReport") -> None:
    print(
        f"{report.index}: {report.rows} vectors of {report.dim} dimensions in Milvus' collection "
        f"{report.collection} at {report.engine}"
    )
