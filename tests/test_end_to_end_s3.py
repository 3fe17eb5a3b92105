"""Images to answers with the store on S3: a real server process, nothing kept locally but caches."""

import io
import subprocess
import sys

import pytest

from dml.config import IngestConfig
from dml.data.dataset import read_images
from dml.presets import experiment
from dml.serving import answers
from dml.serving.searcher import Searcher
from dml.settings import tracking_uri
from dml.storage import list_names, verify
from flows.end_to_end import end_to_end_flow

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def test_images_become_answers_with_the_store_on_s3(s3_store):
    """With two workers; tests/training/test_loop.py trains with one on S3."""
    source = IngestConfig(name="tiny", source="glyphs:classes=24,per_class=6", num_workers=1)
    settings = ["training.num_steps=12", "training.checkpoint_every_steps=5"]
    config = experiment("smoke").overridden([*settings, "training.num_workers=2"])
    report = end_to_end_flow.fn(source, config, s3_store)

    for ref in (report.dataset, report.training.trained.package, report.index.embeddings, report.index):
        assert ref.uri.startswith(s3_store)
        verify(ref.uri)
    image = read_images(report.dataset, [7])[0]
    searcher = Searcher.open(s3_store)
    (result,) = searcher.search([image], k=3, where="style != 'none'")
    assert result.report().answers[0].similarity == pytest.approx(1, abs=1e-5)
    assert io.BytesIO(answers.draw(result, image, searcher.gallery)).read(4) == b"\x89PNG"
    assert set(list_names(f"{s3_store}/indexes/tiny")) == {"current.json", report.index.version}

    code = (
        "import sys, mlflow; mlflow.set_tracking_uri(sys.argv[1]); "
        "model = mlflow.pyfunc.load_model('models:/tiny@champion'); "
        "assert 'flows' not in sys.modules; print(model.metadata.signature)"
    )
    subprocess.run([sys.executable, "-c", code, tracking_uri(s3_store)], check=True)
