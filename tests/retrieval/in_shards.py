"""An index in shards without a cluster: each shard built in this process, and the version that names them."""

from dml import storage
from dml.config import IndexConfig
from dml.embedding.table import cut_table
from dml.refs import IndexRef, ShardRef
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index


def publish_in_shards(store: str, single: IndexRef, config: IndexConfig) -> IndexRef:
    """Publish the rows of an index in as many shards as a configuration says."""
    parts = cut_table(single.embeddings, config.shards)
    built = [build_index(store, single.name, part, config.model_copy(update={"shards": 1})) for part in parts]
    shards = [
        {name: getattr(ref, name) for name in ("uri", "fingerprint", "rows", "recall")} for ref in built
    ]
    fingerprint = storage.digest_of(*(ref.fingerprint for ref in built))
    uri = f"{store}/indexes/{single.name}/{fingerprint[:12]}"
    ref = single.model_copy(
        update={"uri": uri, "fingerprint": fingerprint, "shards": tuple(ShardRef(**each) for each in shards)}
    )
    description = storage.read_manifest(single.uri) | {
        "ref": ref.model_dump(mode="json", exclude={"uri"}),
        "config": config.model_dump(mode="json"),
    }
    with storage.staged(uri) as staged:
        storage.publish(staged, uri, description)
    publish_index(store, ref)
    return ref
