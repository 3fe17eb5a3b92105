"""What a network from elsewhere makes of a few images of a dataset, for its user to see first."""

import io

import numpy as np
from PIL import Image

from dml.data.dataset import read_images, read_rows
from dml.faces import NoFace
from dml.models.external import External, preview
from dml.refs import DatasetRef
from dml.reports import Neighbor

_QUERIES, _IMAGES = 10, 200


class Trial:
    """A network that was tried on the first images of a dataset, class by class."""

    def __init__(self, network: External, dataset: DatasetRef) -> None:
        rows = read_rows(dataset, columns=["id", "label", "class_id"])
        chosen = np.sort(np.argsort(rows["class_id"].to_numpy(), kind="stable")[:_IMAGES])
        ids, labels = (rows[name].take(chosen).to_pylist() for name in ("id", "label"))
        images = read_images(dataset, chosen.tolist())
        with preview(network) as package:
            try:
                vectors = package.embed(images)
            except NoFace:
                faceless = [
                    id_ for id_, image in zip(ids, images, strict=True) if not package.shows_face(image)
                ]
                raise NoFace(
                    f"Images of {dataset} must show a face to be embedded; {len(faceless)} of the {len(ids)} "
                    f"that were tried show none: {', '.join(faceless[:10])}. Leave --detector out, or take "
                    "them out of the dataset: dml correct DATASET ID... --remove."
                ) from None
            self._seen = package.runtime.picture(package.prepare(images[0]))
        similarities = vectors @ vectors.T
        np.fill_diagonal(similarities, -np.inf)
        queries = (
            np.unique(np.linspace(0, len(ids) - 1, _QUERIES).astype(int)).tolist() if len(ids) > 1 else []
        )
        self.neighbors = []
        for query in queries:
            nearest = int(similarities[query].argmax())
            self.neighbors.append(
                Neighbor(
                    id=ids[query],
                    label=labels[query],
                    nearest=ids[nearest],
                    nearest_label=labels[nearest],
                    similarity=round(float(similarities[query, nearest]), 6),
                )
            )

    def picture(self) -> bytes:
        """A PNG file of the first image as the network sees it."""
        out = io.BytesIO()
        shown: Image.Image = self._seen
        shown.save(out, "PNG")
        return out.getvalue()
