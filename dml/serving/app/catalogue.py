"""Routes of what is served: indexes with their columns, versions and thresholds; models."""

from fastapi import APIRouter

from dml.errors import InvalidSetting
from dml.refs import PackageRef
from dml.retrieval.index import versions_of
from dml.retrieval.overview import ColumnOverview
from dml.retrieval.thresholds import threshold_for
from dml.serving.app import messages
from dml.serving.app.opened import OpenIndex
from dml.serving.app.routing import ERRORS, Name, Reader, TheService
from dml.serving.app.service import answered

router = APIRouter(prefix="/v1", tags=["indexes and models"], responses=ERRORS)


@router.get("/indexes")
async def indexes(service: TheService, caller: Reader) -> messages.IndexList:
    """The indexes that are served, of those that your key may read."""
    opened = service.indexes.opened
    return messages.IndexList(
        indexes=[
            messages.IndexSummary(**_summary(opened[name]))
            for name in sorted(opened)
            if caller.may("read", name)
        ],
        unavailable={
            name: why.replace(f"{service.settings.store}/", "")
            for name, why in sorted(service.indexes.unavailable.items())
            if caller.may("read", name)
        },
    )


@router.get("/indexes/{name}")
async def index(name: Name, service: TheService, _: Reader) -> messages.IndexDetail:
    """An index: its columns with values and counts, versions and thresholds."""
    with service.indexes.hold(name) as opened:
        return await service.run(opened, lambda: _detail(opened))


@router.get("/models")
async def models(service: TheService, caller: Reader) -> messages.ModelList:
    """The models that embed queries, each with the indexes it is used for."""
    by_embedder: dict[str, messages.Model] = {}
    for name, opened in sorted(service.indexes.opened.items()):
        if not caller.may("read", name):
            continue
        embedder = opened.ref.embeddings.embedder
        is_package = isinstance(embedder, PackageRef)
        model = by_embedder.setdefault(
            opened.embedder,
            messages.Model(
                embedder=opened.embedder,
                name=opened.ref.model or str(embedder),
                dim=embedder.dim,
                source=embedder.source if isinstance(embedder, PackageRef) else embedder.spec,
                license=embedder.license or "",
                takes_images=is_package,
                indexes=[],
            ),
        )
        model.indexes.append(str(opened.ref))
    return messages.ModelList(models=list(by_embedder.values()))


def _summary(opened: OpenIndex) -> dict[str, object]:
    ref = opened.ref
    return {
        **answered(opened),
        "name": ref.name,
        "version": ref.version,
        "rows": ref.rows,
        "enrolled": opened.index.num_enrolled,
        "forgotten": opened.index.num_deleted,
        "factory": ref.factory,
        "recall": ref.recall,
        "source": ref.embeddings.source,
        "takes_images": opened.package is not None,
        "detects_faces": opened.package is not None and opened.package.detector is not None,
        "has_pictures": opened.has_pictures,
        "fpir": None if opened.thresholds_ref is None else opened.thresholds_ref.fpir,
    }


def _detail(opened: OpenIndex) -> messages.IndexDetail:
    versions = versions_of(opened.store, opened.ref.name)
    return messages.IndexDetail(
        **_summary(opened),
        columns=[column_message(column) for column in opened.columns],
        versions=[
            messages.IndexVersion(
                version=version.ref.version,
                created=version.created,
                current=version.is_current,
                model=version.ref.model,
                source=version.ref.embeddings.source,
                rows=version.ref.rows,
                recall=version.ref.recall,
            )
            for version in reversed(versions)
        ],
        thresholds=_thresholds(opened),
    )


def column_message(column: ColumnOverview) -> messages.Column:
    """A column for a form of filters."""
    return messages.Column(
        name=column.name,
        type=column.holds,
        missing=column.missing,
        distinct=column.distinct,
        values=[
            messages.ColumnValue(value=value, count=count)
            for value, count in column.values
            if messages.finite_or_null(value) is not None
        ],
        low=column.low,
        high=column.high,
    )


def _thresholds(opened: OpenIndex) -> list[messages.ScopeThreshold]:
    """Of each calibrated scope, for its share of the rate of the calibration."""
    thresholds = opened.thresholds
    if thresholds is None:
        return []
    found = []
    for scope in thresholds.scopes:
        similarity, refused = None, ""
        try:
            similarity = threshold_for(
                thresholds,
                scope.scope,
                scope.column,
                scope.identities,
                thresholds.fpir / thresholds.num_tries,
            ).similarity
        except InvalidSetting as error:
            refused = str(error)
        found.append(
            messages.ScopeThreshold(
                scope=scope.scope, identities=scope.identities, threshold=similarity, refused=refused
            )
        )
    return found
