"""Routes that look through datasets and correct them, and that say what indexes and models were made from."""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from dml.data import corrections
from dml.data.dataset import list_versions
from dml.data.quarantine import count_refusals
from dml.errors import DmlError, without_password
from dml.names import MAX_LENGTH
from dml.refs import DatasetRef, ModelRef
from dml.registry.catalog import list_models, model_page_url
from dml.retrieval import index as indexes
from dml.serving.ancestry import ancestry, training_runs
from dml.serving.app.catalogue import column_message
from dml.serving.app.messages import browse as messages
from dml.serving.app.opened import require_store
from dml.serving.app.problems import Refused
from dml.serving.app.routing import (
    ERRORS,
    Reader,
    TheService,
    WholeStoreAdmin,
    WholeStoreReader,
    audited,
)
from dml.serving.app.service import Service
from dml.serving.app.where import checked_where
from dml.serving.app.writes import Audited, Done, logged_write
from dml.serving.browsed import BrowsedDatasets
from dml.serving.shared_call import SharedCall
from dml.settings import prefect_pages, tracking_uri


def _store_is_there(service: TheService) -> None:
    """A store that has gone is not shown as an empty one."""
    require_store(service.settings.store)


router = APIRouter(
    prefix="/v1", tags=["datasets and lineage"], responses=ERRORS, dependencies=[Depends(_store_is_there)]
)


async def _datasets(request: Request, service: TheService) -> BrowsedDatasets:
    state = request.app.state
    if not hasattr(state, "browsed"):
        state.browsed = BrowsedDatasets(service.settings.store)
    opened: BrowsedDatasets = state.browsed
    return opened


T = TypeVar("T")
REGISTRY_WAIT_S = 2.0
"""For MLflow's server: the page shows the rest without it."""
_HTTP = ("http://", "https://")
Datasets = Annotated[BrowsedDatasets, Depends(_datasets)]
Dataset = Annotated[
    str, Path(description="NAME or NAME@VERSION of a dataset", max_length=MAX_LENGTH + 65, examples=["shop"])
]
First = Annotated[messages.First, Query()]
Most = Annotated[messages.Most, Query()]


# These routes read files, so they are plain functions, which FastAPI calls in threads.
@router.get("/datasets")
def datasets(service: TheService, _: WholeStoreReader) -> messages.DatasetList:
    """The datasets of the store, each in its current version."""
    damaged: list[DmlError] = []
    versions = list_versions(service.settings.store, damaged)
    return messages.DatasetList(
        datasets=[
            messages.DatasetSummary(**_summary(version.ref)) for version in versions if version.is_current
        ],
        damaged=_said(damaged, service.settings.store),
    )


@router.get("/datasets/{dataset}")
def dataset(dataset: Dataset, opened: Datasets, _: WholeStoreReader) -> messages.DatasetDetail:
    """A dataset: its columns with values and counts."""
    browsed = opened.open(dataset)
    return messages.DatasetDetail(
        **_summary(browsed.ref), columns=[column_message(column) for column in browsed.columns]
    )


@router.post("/datasets/{dataset}/items")
def items(
    dataset: Dataset, body: messages.ItemsRequest, opened: Datasets, _: WholeStoreReader
) -> messages.ItemsPage:
    """Items of a dataset under a filter, page by page."""
    browsed = opened.open(dataset)
    total, rows = browsed.page(checked_where(body.filter), first=body.first, most=body.most)
    return messages.ItemsPage(
        version=browsed.ref.version,
        total=total,
        items=[
            messages.DatasetItem(
                **{name: row[name] for name in ("id", "label", "split", "width", "height")},
                attributes={name: row[name] for name in browsed.ref.attributes},
            )
            for row in rows
        ],
    )


@router.get(
    "/datasets/{dataset}/picture",
    response_class=Response,
    responses={200: {"description": "The image, made smaller.", "content": {"image/webp": {}}}},
)
def picture(
    dataset: Dataset,
    id: Annotated[str, Query(description="of the item", min_length=1, max_length=1_000)],
    opened: Datasets,
    _: WholeStoreReader,
    side: Annotated[int, Query(ge=16, le=1_024, description="pixels of the longer side at most")] = 224,
) -> Response:
    """The image of an item. It is always encoded anew, so nothing but pixels is sent."""
    return Response(opened.open(dataset).picture(id, side), media_type="image/webp")


@router.get("/datasets/{dataset}/quarantine")
def quarantine(
    dataset: Dataset, opened: Datasets, _: WholeStoreReader, first: First = 0, most: Most = 60
) -> messages.QuarantinePage:
    """What was refused when the dataset was ingested, with reasons."""
    browsed = opened.open(dataset)
    problems = browsed.quarantine
    return messages.QuarantinePage(
        version=browsed.ref.version,
        total=len(problems),
        reasons=count_refusals(problems),
        problems=[
            messages.RefusedEntry(
                id=each.id,
                label=each.label,
                locator=None if each.locator is None else each.locator.rpartition("/")[2].partition("?")[0],
                reason=each.reason,
                detail=each.detail,
            )
            for each in problems[first : first + most]
        ],
    )


@router.get("/datasets/{dataset}/suspected_labels")
def suspected_labels(
    dataset: Dataset,
    opened: Datasets,
    service: TheService,
    _: WholeStoreReader,
    first: First = 0,
    most: Most = 60,
) -> messages.SuspectsPage:
    """Items whose nearest neighbours all have one other label, as a model in the store sees them."""
    browsed = opened.open(dataset)
    embedder, suspects = _computed(browsed.suspected_labels, service)
    return messages.SuspectsPage(
        version=browsed.ref.version,
        embedder=embedder,
        total=len(suspects),
        suspects=suspects[first : first + most],
    )


@router.get("/datasets/{dataset}/near_duplicates")
def near_duplicates(
    dataset: Dataset,
    opened: Datasets,
    service: TheService,
    _: WholeStoreReader,
    first: First = 0,
    most: Most = 60,
) -> messages.NearDuplicatesPage:
    """Images with a near-duplicate across the splits or within one.

    The first call decodes all images. Until that is done, the answer is 503 `computing`: ask again.
    """
    browsed = opened.open(dataset)
    pairs = _computed(browsed.near_duplicates, service)
    return messages.NearDuplicatesPage(
        version=browsed.ref.version,
        total=len(pairs),
        pairs=[
            messages.BetweenPair(between=between, pair=pair) for between, pair in pairs[first : first + most]
        ],
    )


@router.get("/datasets/{dataset}/corrections")
def list_corrections(
    dataset: Dataset, opened: Datasets, _: WholeStoreReader, first: First = 0, most: Most = 60
) -> messages.CorrectionsPage:
    """The corrections that hold for a dataset and that later ingests keep, with who and when."""
    ref = opened.open(dataset).ref
    found = corrections.list_corrections(opened.store, ref.name)
    return messages.CorrectionsPage(
        version=ref.version, total=len(found), corrections=found[first : first + most]
    )


@router.post("/datasets/{dataset}/corrections")
def correct(
    request: Request,
    dataset: Dataset,
    body: messages.CorrectionRequest,
    service: TheService,
    caller: WholeStoreAdmin,
) -> messages.NewVersion:
    """Give an item another label: a new version of the dataset, with who and when."""
    return _changed(
        service,
        audited(request, "correct", dataset, identity=body.label, ids=[body.id]),
        lambda store: corrections.correct_label(store, dataset, body.id, body.label, who=caller.label),
    )


@router.post("/datasets/{dataset}/removals")
def remove(
    request: Request,
    dataset: Dataset,
    body: messages.ItemRequest,
    service: TheService,
    caller: WholeStoreAdmin,
) -> messages.NewVersion:
    """Leave an item out: a new version, with who and when. Former versions keep it."""
    return _changed(
        service,
        audited(request, "remove", dataset, ids=[body.id]),
        lambda store: corrections.remove_item(store, dataset, body.id, who=caller.label),
    )


@router.post("/datasets/{dataset}/revocations")
def revoke(
    request: Request, dataset: Dataset, body: messages.ItemRequest, service: TheService, _: WholeStoreAdmin
) -> messages.NewVersion:
    """Take a correction back: the label is what it was; a removed item returns with the next ingest."""
    return _changed(
        service,
        audited(request, "revoke", dataset, ids=[body.id]),
        lambda store: corrections.revoke_correction(store, dataset, body.id),
    )


@router.get("/lineage")
def lineage(request: Request, service: TheService, caller: Reader) -> messages.Lineage:
    """What the indexes that your key may read were made from, and the registered models."""
    store, state = service.settings.store, request.app.state
    if not hasattr(state, "models"):
        state.models = SharedCall(lambda: list_models(store), keeps=False)
    models, missing = _models(state.models, store)
    runs = training_runs(store)
    by_name: dict[str, messages.IndexLineage] = {}
    damaged: list[DmlError] = []
    for version in reversed(indexes.list_versions(store, damaged)):
        ref = version.ref
        if caller.may("read", ref.name):
            by_name.setdefault(ref.name, messages.IndexLineage(name=ref.name, versions=[])).versions.append(
                messages.VersionLineage(
                    version=ref.version,
                    created=version.created,
                    current=version.is_current,
                    rows=ref.rows,
                    recall=ref.recall,
                    lineage=[
                        messages.LineageStep(**step._asdict()) for step in ancestry(store, ref, runs, models)
                    ],
                )
            )
    addresses = {
        "MLflow": without_password(tracking_uri(store)),
        "Prefect": without_password(prefect_pages()),
    }
    return messages.Lineage(
        indexes=[by_name[name] for name in sorted(by_name)],
        damaged=[] if caller.galleries else _said(damaged, store),  # they may be of other galleries
        models=[_registered(store, model) for model in models],
        models_missing=missing,
        pages=[
            messages.Pages(name=name, url=url) for name, url in addresses.items() if url.startswith(_HTTP)
        ],
    )


def _computed(function: Callable[[float], T], service: Service) -> T:
    """The function's result, if it is there before the request must be answered."""
    try:
        return function(service.settings.limits.seconds / 2)
    except TimeoutError:
        raise Refused(
            503,
            "computing",
            "All images of the dataset must be compared once",
            "they still are",
            "Ask again; it goes on meanwhile.",
            retry_after=5,
        ) from None


def _said(errors: Sequence[DmlError], store: str) -> list[str]:
    """What is wrong, without where the store is."""
    return [without_password(str(error)).replace(f"{store}/", "") for error in errors]


def _models(listed: "SharedCall[list[ModelRef]]", store: str) -> tuple[list[ModelRef], str]:
    """The registered versions, and why there are none: a service needs no registry to answer."""
    is_server = tracking_uri(store).startswith(_HTTP)
    try:
        return listed(REGISTRY_WAIT_S if is_server else None), ""
    except TimeoutError:
        return [], (
            f"MLflow must answer at {without_password(tracking_uri(store))} to show its models; it did "
            f"not within {REGISTRY_WAIT_S:g} s. Load the page again, or start it."
        )
    except (DmlError, ImportError) as error:
        return [], f"The model registry cannot be read: {without_password(str(error))}"


def _registered(store: str, model: ModelRef) -> messages.RegisteredModel:
    recall = model.metrics.get("recall_at_1")
    return messages.RegisteredModel(
        name=str(model),
        champion=model.promoted,
        dataset="" if model.package.dataset is None else str(model.package.dataset),
        recall_at_1=None if recall is None or recall != recall else recall,
        reason=model.reason,
        created=None if model.created is None else model.created.isoformat(),
        url=model_page_url(store, model),
    )


def _summary(ref: DatasetRef) -> dict[str, object]:
    return {
        "name": ref.name,
        "version": ref.version,
        "rows": ref.rows,
        "classes": ref.classes,
        "quarantined": ref.quarantined,
    }


def _changed(service: Service, what: Audited, function: Callable[[str], DatasetRef]) -> messages.NewVersion:
    """The version that a function of the store makes; it is in the audit log, too."""
    with logged_write(service.audit, what) as done:
        ref = function(service.settings.store)
        done(Done(what.ids, version=ref.version))
    return messages.NewVersion(dataset=ref.name, version=ref.version, rows=ref.rows)
