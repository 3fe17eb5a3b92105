"""Flow that refreshes every scheduled index; the failure of one does not stop the others."""

from prefect import flow

from dml.reports import RefreshedIndex
from dml.retrieval.refresh import names_to_refresh
from dml.settings import store_uri
from flows.policy import run, run_parameters, say, show_table, stage, tag_with_names
from flows.reindex import reindex_flow


class RefreshFailed(RuntimeError):
    """Some indexes could not be refreshed.

    Attributes:
        failed: error by index name.
        refreshed: the refreshed indexes.
    """

    def __init__(self, failed: dict[str, Exception], refreshed: list[RefreshedIndex]) -> None:
        self.failed, self.refreshed = failed, refreshed
        reasons = "; ".join(f"{name} ({type(error).__name__}: {error})" for name, error in failed.items())
        super().__init__(f"{len(failed)} of {len(failed) + len(refreshed)} were not refreshed: {reasons}")


def _run_name() -> str:
    return " ".join(["refresh", *(run_parameters()["names"] or ["all scheduled"])])


@flow(name="refresh-flow", flow_run_name=_run_name, on_running=[tag_with_names])
def refresh_flow(
    names: list[str] | None = None, store: str | None = None, num_workers: int | None = None
) -> list[RefreshedIndex]:
    """Refresh the scheduled indexes (`dml schedule`), one after another.

    Args:
        names: only these indexes, if they are still scheduled; None for all scheduled indexes.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        num_workers: embedding actors; None to choose by the number of new images.

    Raises:
        RefreshFailed: some indexes failed; raised after all others were refreshed.
    """
    root = store_uri(store)
    scheduled = stage(names_to_refresh)(root)
    chosen = [name for name in scheduled if names is None or name in names]
    if not chosen:
        say(f"no longer scheduled: {', '.join(names)}" if names else "no index is scheduled")
    refreshed: list[RefreshedIndex] = []
    failed: dict[str, Exception] = {}
    for name in chosen:
        try:
            refreshed.append(run(reindex_flow, name, store=root, num_workers=num_workers))
        except Exception as error:
            failed[name] = error
            say(f"index {name} was not refreshed: {error}")
    if chosen:
        rows = [
            {"index": ref.name, "rows": ref.rows, "recall@10": ref.recall}
            | (ref.ingested.model_dump() if ref.ingested else {})
            for ref in refreshed
        ]
        show_table("refreshed", rows + [{"index": n, "error": str(e)} for n, e in failed.items()])
    if failed:
        raise RefreshFailed(failed, refreshed)
    return refreshed
