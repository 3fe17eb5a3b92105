"""Flow that sets the thresholds of an index for a false-positive identification rate, and checks them."""

from prefect import flow

from dml.reports import CalibrationReport
from dml.retrieval.calibration import calibrate
from dml.retrieval.index import find_index
from dml.settings import store_uri
from flows.policy import Name, say, show_table, stage, tag_with_names


@flow(name="calibrate-flow", flow_run_name="calibrate {name}", on_running=[tag_with_names])
def calibrate_flow(
    name: Name,
    fpir: float = 0.01,
    scopes: list[str] | None = None,
    by: list[str] | None = None,
    store: str | None = None,
) -> CalibrationReport:
    """Set the thresholds of an index version; they replace those that it had.

    Args:
        name: the index, NAME (the version in use) or NAME@VERSION.
        fpir: false-positive identification rate of one identification, over all scopes that it tries.
        scopes: filters, each a scope.
        by: columns, each of whose values is a scope.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    index = stage(find_index)(root, name)
    report = stage(calibrate)(root, index, fpir=fpir, scopes=scopes or [], by=by or [])
    show_table("thresholds", report.table())
    say(
        f"thresholds of {index} for an FPIR of {fpir:g}: {report.num_promised} of {len(report.scopes)} scopes"
    )
    return report
