"""What `/metrics` says: latency by stage, recall of live queries, sizes, versions."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

STAGES = ("decode", "encode", "search")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.stage = Histogram(
            "dml_stage_seconds",
            "Latency of a stage of a request, its wait included",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.request = Histogram(
            "dml_request_seconds",
            "Latency of a request",
            ["route", "status"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("dml_requests_in_flight", "Requests being answered", registry=registry)
        self.batch = Histogram(
            "dml_encode_batch_images", "Images encoded at once", buckets=_SIZES, registry=registry
        )
        self.recall = Gauge(
            "dml_recall", "Share of the exact answers of sampled live queries", ["index"], registry=registry
        )
        self.recall_low = Gauge(
            "dml_recall_low", "Lower end of the recall's 95 % Wilson interval", ["index"], registry=registry
        )
        self.recall_high = Gauge(
            "dml_recall_high", "Upper end of the recall's 95 % Wilson interval", ["index"], registry=registry
        )
        self.recall_queries = Counter(
            "dml_recall_queries", "Live queries that were compared exactly, too", ["index"], registry=registry
        )
        self.rows = Gauge("dml_index_rows", "Items of the index", ["index"], registry=registry)
        self.enrolled = Gauge(
            "dml_gallery_enrolled", "Items since the index was built", ["index"], registry=registry
        )
        self.forgotten = Gauge(
            "dml_gallery_forgotten", "Items forgotten since the index was built", ["index"], registry=registry
        )
        self.revision = Gauge("dml_gallery_revision", "Last transaction", ["index"], registry=registry)
        self.version = Gauge(
            "dml_index_version",
            "1 for the version in use",
            ["index", "version", "embedder"],
            registry=registry,
        )
        self.of_indexes = (self.rows, self.enrolled, self.forgotten, self.revision, self.version)
        self.packages = Gauge("dml_models_loaded", "Models in memory", registry=registry)
        self.swaps = Counter("dml_index_swaps", "Versions taken into use", ["index"], registry=registry)
