"""Pictures of the page for docs/page.md: a store in, `docs/page/NAME-light.webp` and `-dark.webp` out.

    dml demo
    dml calibrate glyphs --fpir 0.05
    python -m docs.screenshots dml-store glyphs

Each picture shows a view at 1280 and at 390 pixels. It needs Chromium (`apt-get install chromium`). What it
enrols for a picture it forgets again.
"""

import argparse
import io
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, sync_playwright

from dml.data.dataset import read_images, read_rows
from dml.refs import require_dataset
from dml.serving.app.factory import create_app
from dml.serving.app.settings import ServiceSettings
from dml.serving.searcher import Searcher

FOLDER = Path(__file__).parent / "page"
VIEWS = ("search", "unknown", "verify", "enrol", "lineage", "data")
_SIZES = ((1280, 860), (390, 860))
_GAP, _QUALITY = 24, 82
_TIMEOUT_MS = 120_000  # a busy machine takes long for the first lineage: MLflow is imported
_BETWEEN = {"light": "#d9d6cf", "dark": "#2c2b28"}


class Camera:
    """Takes pictures of a served index, with the test image that is the most like others of its label.

    Args:
        browser: open.
        address: of the service.
        store: its URI.
        index: a name.
    """

    def __init__(self, browser: Browser, address: str, store: str, index: str) -> None:
        self._browser, self._address, self._index = browser, address, index
        searcher = Searcher.open(store, index)
        self._dataset = require_dataset(searcher.index.embeddings.items, "A picture of the page")
        rows = read_rows(self._dataset, split="test", columns=["id", "label"]).to_pylist()
        answers = [result.answers for result in searcher.search_ids([row["id"] for row in rows], k=5)]
        own = [
            [answer for answer in of_row if answer.label == row["label"]]
            for row, of_row in zip(rows, answers, strict=True)
        ]
        alike = [(len(each) > 2, each[0].similarity if each else -1.0) for each in own]
        best = max(range(len(rows)), key=alike.__getitem__)
        self._id: str = rows[best]["id"]
        self._images = read_images(
            self._dataset, [rows[best]["position"], *(answer.position for answer in own[best])]
        )

    def take(self, view: str, scheme: str) -> bytes:
        """A WebP of a view, wide and narrow side by side; `scheme` is light or dark."""
        shots = []
        for width, height in _SIZES:
            context = self._browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if scheme == "dark" else "light",
                reduced_motion="reduce",
                locale="en-GB",
                timezone_id="UTC",
            )
            context.set_default_timeout(_TIMEOUT_MS)
            page = context.new_page()
            getattr(self, f"_{view}")(page)
            page.wait_for_load_state("networkidle")
            page.wait_for_function(_ALL_LOADED)
            shots.append(Image.open(io.BytesIO(page.screenshot())))
            context.close()
        return _beside(shots, _BETWEEN[scheme])

    def _open(self, page: Page, view: str, **parameters: str) -> None:
        page.goto(f"{self._address}/#/{view}?{urlencode({'index': self._index, **parameters})}")
        page.wait_for_load_state("networkidle")

    def _pick(self, page: Page, label: str, *images: bytes) -> None:
        files = [FilePayload(name="image.png", mimeType="image/png", buffer=image) for image in images]
        page.get_by_label(f"{label}: choose a file").set_input_files(files)
        page.wait_for_load_state("networkidle")

    def _search(self, page: Page) -> None:
        self._open(page, "search", item=self._id)
        page.get_by_label("Answers by").select_option("all", force=True)
        page.locator(".line").wait_for()

    def _unknown(self, page: Page) -> None:
        self._open(page, "search")
        blank = io.BytesIO()
        Image.new("RGB", (96, 96), "white").save(blank, "PNG")
        self._pick(page, "Image to search with", blank.getvalue())
        page.locator(".line").wait_for()

    def _verify(self, page: Page) -> None:
        self._open(page, "compare")
        self._pick(page, "First image", self._images[0])
        self._pick(page, "Second image", self._images[1])
        page.locator(".measure").wait_for()

    def _enrol(self, page: Page) -> None:
        self._open(page, "gallery")
        self._pick(page, "Images to enrol", *self._images[:3])
        page.get_by_role("textbox", name="Identity").fill("Ada Lovelace")
        page.get_by_role("button", name="Enrol…").click()
        page.get_by_role("dialog").wait_for()

    def _lineage(self, page: Page) -> None:
        self._open(page, "versions")

    def _data(self, page: Page) -> None:
        self._open(page, "data", dataset=self._dataset.name)


_ALL_LOADED = """() => [...document.images].every((image) =>
    image.complete || image.getBoundingClientRect().top > innerHeight)"""


def _beside(pictures: list[Image.Image], color: str) -> bytes:
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) + 1)
    whole = Image.new("RGB", (width, max(picture.height for picture in pictures) + 2 * _GAP), color)
    left = _GAP
    for picture in pictures:
        whole.paste(picture, (left, _GAP))
        left += picture.width + _GAP
    out = io.BytesIO()
    whole.save(out, "WEBP", quality=_QUALITY, method=6)
    return out.getvalue()


@contextmanager
def serving(store: str) -> Iterator[str]:
    """The address of the service of a store, in a thread of this process."""
    settings = ServiceSettings(store=store, recall_share=0)
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("store")
    parser.add_argument("index")
    parser.add_argument("--views", nargs="*", default=VIEWS, choices=VIEWS)
    arguments = parser.parse_args()
    store = str(Path(arguments.store).resolve()) if "://" not in arguments.store else arguments.store
    FOLDER.mkdir(exist_ok=True)
    with serving(store) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        camera = Camera(browser, address, store, arguments.index)
        for view in arguments.views:
            for scheme in _BETWEEN:
                file = FOLDER / f"{view}-{scheme}.webp"
                file.write_bytes(camera.take(view, scheme))
                print(file, file.stat().st_size)
        browser.close()


if __name__ == "__main__":
    main()
