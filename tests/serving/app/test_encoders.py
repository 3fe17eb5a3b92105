"""The encoder by ONNX Runtime: the same answers, enrolments and fingerprint as by torch."""

import shutil
import subprocess
import sys

import anyio
import pytest

from dml.models.exported import ExportedRuntime
from dml.serving.app.factory import create_app
from dml.serving.app.settings import ServiceSettings
from tests.serving.app.parts import NAME, ask, image, running

BASE = f"/v1/indexes/{NAME}"


def test_answers_by_onnx_are_those_by_torch(tmp_path, served):
    shutil.copytree(served[0], tmp_path / "store")
    settings = ServiceSettings(store=str(tmp_path / "store"), threads=1, recall_share=0)

    async def search(client, seeds):
        queries = {"queries": [image(seed) for seed in seeds], "k": 5}
        return (await client.post(f"{BASE}/search", json=queries)).json()

    by_torch = ask(settings, lambda client: search(client, range(7)))
    app = create_app(settings.model_copy(update={"encoder": "onnx"}))

    async def by_onnx():
        async with running(app) as client:
            assert isinstance(app.state.service.indexes.opened[NAME].package.runtime, ExportedRuntime)
            found = await search(client, range(7))
            await client.post(f"{BASE}/enrol", json={"identity": "ann", "images": [image(900)["image"]]})
            return found, (await search(client, [900]))["results"][0]["answers"][0]

    found, enrolled = anyio.run(by_onnx)
    assert found["embedder"] == by_torch["embedder"]
    for ours, theirs in zip(found["results"], by_torch["results"], strict=True):
        assert [hit["id"] for hit in ours["answers"]] == [hit["id"] for hit in theirs["answers"]]
        for one, other in zip(ours["answers"], theirs["answers"], strict=True):
            assert one["similarity"] == pytest.approx(other["similarity"], abs=3e-6)
    assert (enrolled["label"], round(enrolled["similarity"], 5)) == ("ann", 1.0)


@pytest.mark.slow
def test_without_onnx_runtime_the_service_says_what_to_install(served):
    code = (
        "import sys; sys.modules['onnxruntime'] = None; sys.argv = ['dml', 'serve', '--store', "
        f"{served[0]!r}, '--port', '0', '--set', 'encoder=onnx']\n"
        "import runpy; runpy.run_module('dml.cli', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "pip install 'dml-platform[onnx]'" in done.stderr.splitlines()[-1]
