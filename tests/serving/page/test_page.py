"""The page in a real browser, asking a real service of a real store."""

import base64
import re
import shutil
from urllib.parse import urlencode

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from dml.serving.app.keys import make_key
from dml.serving.app.settings import ServiceSettings
from tests.retrieval.gallery.people import ROWS, items_of, publish, vectors_of
from tests.serving.page.parts import (
    HOSTILE,
    IDENTITIES,
    MARKUP,
    NAME,
    PER_IDENTITY,
    drawing,
    file_of,
    label_of,
    make_dataset,
    make_index,
    serving,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

VIEWS = ["search", "compare", "gallery", "data", "versions"]
PARTS = ["suspects", "duplicates", "quarantine", "corrections"]
FLAGS = [
    "--no-sandbox",  # a container's root has no user namespaces for it
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
WAIT_MS = 120_000
"""How long something may take to come; a loaded machine draws a page in seconds."""
expect.set_options(timeout=WAIT_MS)
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a service whose store these tests change."""
    folder = tmp_path_factory.mktemp("served")
    store = str(folder / "store")
    make_index(store, make_dataset(folder / "images", store))
    with serving(ServiceSettings(store=store, threads=1, recall_share=0)) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("These tests need Chromium; there is no `chromium` here. Do: apt-get install chromium.")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(address, browser):
    """Opens a view; at the end there were no errors of scripts, and nothing that the policy refused."""
    contexts, complaints = [], []

    def opened(view="search", *, viewport=WIDE, scheme="light", **parameters):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if is_policy(message) else None)
        return go(page, address, view, **parameters)

    yield opened
    titles = [page.title() for context in contexts for page in context.pages]
    for context in contexts:
        context.close()
    assert not complaints
    assert "attacked" not in titles


def is_policy(message):
    return "Content Security Policy" in message.text or "Refused to" in message.text


def go(page, address, view, **parameters):
    """Open a view in a page, and wait until it is there."""
    page.goto(f"{address}/#/{view}?{urlencode(parameters)}")
    page.wait_for_function(
        """() => document.querySelector("main").dataset.shown === location.hash
            && !document.querySelector(".bones")"""
    )
    return page


def choose(page, image, *, label="Image to search with", name="query.png"):
    """Pick an image file where the page asks for one."""
    chooser = page.get_by_label(f"{label}: choose a file")
    chooser.set_input_files({"name": name, "mimeType": "image/png", "buffer": image})


def answers(page):
    return page.locator(".answers .who")


def violations(page):
    found = Axe().run(page).response["violations"]
    return [(each["id"], [node["html"][:160] for node in each["nodes"][:3]]) for each in found]


def test_an_uploaded_image_finds_its_identity_above_the_line_and_others_below(open_page):
    page = open_page()
    choose(page, drawing(6, 50))
    expect(page.locator(".verdict h2")).to_have_text(label_of(6))
    expect(page.locator(".line")).to_contain_text("Same identity above, unknown below")
    expect(page.locator(".answers").first.locator(".who").first).to_have_text(label_of(6))
    expect(page.locator(".answers.below .who")).not_to_have_count(0)
    page.get_by_label("The gallery holds").select_option("people")
    expect(page.locator(".line")).to_contain_text("Same person above")


@pytest.mark.parametrize("how", ["paste", "drop"])
def test_an_image_is_pasted_or_dropped(open_page, how):
    page = open_page()
    page.locator(".drop").evaluate(
        """(target, [how, base64]) => {
            const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "one.png", { type: "image/png" }));
            const options = { bubbles: true, cancelable: true };
            target.dispatchEvent(how === "drop"
                ? new DragEvent("drop", { ...options, dataTransfer: files })
                : new ClipboardEvent("paste", { ...options, clipboardData: files }));
        }""",
        [how, base64.b64encode(drawing(6, 50)).decode()],
    )
    expect(page.locator(".verdict h2")).to_have_text(label_of(6))


def test_a_photo_is_taken_and_searched(open_page):
    page = open_page()
    page.get_by_role("button", name="Photo", exact=True).click()
    expect(page.get_by_label("What the camera sees")).to_have_js_property("readyState", 4)
    page.get_by_role("button", name="Take photo").click()
    expect(page.locator(".verdict h2")).to_be_visible()


def test_an_image_of_nobody_is_unknown(open_page):
    page = open_page()
    choose(page, drawing(99))
    expect(page.locator(".verdict h2")).to_have_text("Unknown")
    expect(page.locator(".verdict")).to_contain_text("below the threshold")
    assert page.locator(".answers:not(.below)").count() == 0


def test_the_threshold_moves_the_line(open_page):
    page = open_page()
    choose(page, drawing(6, 50))
    expect(page.locator(".answers")).to_have_count(2)
    page.get_by_label("Threshold").fill("0")
    expect(page.locator(".answers.below")).to_have_count(0)
    page.get_by_label("Threshold").fill("1")
    expect(page.locator(".verdict h2")).to_have_text("Unknown")


def test_a_click_on_an_answer_searches_from_it_and_the_back_button_returns(open_page):
    page = open_page(item=file_of(6, 0))
    expect(page.locator(".verdict h2")).to_have_text(label_of(6))
    page.locator(".answers .picture").nth(1).click()
    expect(page.locator(".drop .picture img")).not_to_have_attribute("alt", f"Item {file_of(6, 0)}")
    page.go_back()
    expect(page.locator(".drop .picture img")).to_have_attribute("alt", f"Item {file_of(6, 0)}")


def test_filters_have_counts_and_answers_satisfy_them(open_page):
    page = open_page(item=file_of(6, 0))
    region = page.locator(".filter", has=page.locator("legend", has_text="region"))
    expect(region.locator(".check", has_text="east").locator(".count")).to_have_text(
        str(PER_IDENTITY * (IDENTITIES // 3))
    )
    page.get_by_label("Answers by").select_option("")
    region.locator(".check", has_text="west").click()
    expect(page.locator(".answers .what").first).to_contain_text("west")
    for text in page.locator(".answers .what").all_inner_texts():
        assert "west" in text
    page.get_by_label("year from").fill("3000")
    page.get_by_label("year from").press("Enter")
    expect(page.get_by_role("heading", name="No item matches")).to_be_visible()
    page.get_by_role("button", name="Clear filters").click()
    expect(answers(page).first).to_have_text(label_of(6))


def test_the_plan_is_explained_in_a_panel(open_page):
    page = open_page(item=file_of(6, 0))
    page.get_by_text("How this was searched").click()
    expect(page.locator(".stage")).to_have_count(3)
    expect(page.locator(".plan .facts")).to_contain_text(NAME)


def test_two_images_are_the_same_or_not(open_page):
    page = open_page("compare")
    choose(page, drawing(6, 50), label="First image")
    choose(page, drawing(6, 51), label="Second image")
    expect(page.locator(".verdict h2")).to_have_text("Same identity")
    choose(page, drawing(11, 51), label="Second image")
    expect(page.locator(".verdict h2")).to_have_text("Different identities")


def test_an_image_is_compared_with_an_identity_by_its_name(open_page):
    page = open_page("compare")
    choose(page, drawing(6, 50), label="First image")
    page.get_by_role("radio", name="A known identity").check()
    expect(page.locator(".state")).to_have_text("Name the identity.")
    name = page.get_by_role("combobox", name="Name of the identity")
    for identity, verdict in ((6, "Same identity"), (11, "Different identities")):
        name.fill(label_of(identity))
        name.press("Enter")
        expect(page.locator(".measure")).to_contain_text(f"most similar of 3 images of {label_of(identity)}")
        expect(page.locator(".verdict h2")).to_have_text(verdict)
        expect(page.locator(".identity .picture")).to_have_count(PER_IDENTITY)
    assert not violations(page)
    name.fill("nobody at all")
    name.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Not found.")


def test_names_that_attack_the_page_are_only_text(open_page, address):
    page = open_page("data", dataset=NAME)
    assert MARKUP in page.locator(".items .who").all_inner_texts()
    for identity in range(len(HOSTILE)):
        go(page, address, "search", item=file_of(identity, 0))
        expect(answers(page).first).to_have_attribute("title", label_of(identity))


def test_everything_can_be_done_with_the_keyboard(open_page):
    page = open_page(item=file_of(6, 0))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    reached = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
            )
        )
        if any("More on" in each for each in reached):
            break
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert "More on" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("item="))


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["wide and light", "narrow and dark"]
)
def test_every_view_is_accessible_and_as_wide_as_the_screen(open_page, address, viewport, scheme):
    page = open_page(viewport=viewport, scheme=scheme, item=file_of(0, 0))
    expect(page.locator(".answers").first).to_be_visible()
    seen = [("search", violations(page), page.evaluate("document.documentElement.scrollWidth"))]
    for view, part in [*((view, "") for view in VIEWS), *(("data", part) for part in PARTS)]:
        go(page, address, view, part=part)
        seen.append((view, violations(page), page.evaluate("document.documentElement.scrollWidth")))
    assert seen == [(view, [], viewport["width"]) for view, _, _ in seen]


def test_dark_is_as_the_system_says_until_somebody_chooses(open_page):
    page = open_page(scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.get_by_role("button", name="Light colours").click()
    light = page.evaluate(background)
    page.reload()
    assert page.evaluate(background) == light != dark


def test_a_service_that_does_not_answer_is_said_and_asked_again(open_page):
    page = open_page(item=file_of(6, 0))
    expect(page.locator(".answers").first).to_be_visible()
    page.context.set_offline(True)
    page.locator(".answers .picture").nth(1).click()
    expect(page.get_by_role("alert")).to_contain_text("The service cannot be reached.")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answers").first).to_be_visible()


def test_an_address_of_an_index_or_dataset_that_is_not_there_says_so_and_shows_no_other(open_page, address):
    page = open_page("search", index="gone", item=file_of(6, 0))
    for what, view in (("index", "search"), ("dataset", "data")):
        go(page, address, view, **{what: "gone"})
        expect(page.get_by_role("alert")).to_contain_text("Not found.")
        expect(page.get_by_role("alert")).to_contain_text("“gone” is not")
        expect(page.locator(".answer")).to_have_count(0)
        assert not violations(page)
        page.get_by_role("combobox", name=what.capitalize()).select_option(NAME)
        expect(page.get_by_role("alert")).to_have_count(0)
        expect(page.get_by_role("combobox", name=what.capitalize())).to_have_value(NAME)


def test_an_image_that_is_none_is_refused_with_what_to_do(open_page):
    page = open_page()
    choose(page, b"no image at all")
    expect(page.get_by_role("alert")).to_contain_text("That did not work.")


def test_the_dataset_shows_its_problems_and_lineage_how_the_index_was_made(open_page):
    page = open_page("data", part="suspects")
    expect(page.locator(".pair")).to_have_count(1)
    expect(page.locator(".pair")).to_contain_text(label_of(8))
    page = open_page("data", part="quarantine")
    expect(page.locator("tbody tr")).to_contain_text("broken.png")
    page = open_page("data", part="duplicates")
    expect(page.locator(".pair")).to_have_count(1)
    page = open_page("versions")
    expect(page.locator(".lineage .kind")).to_have_text(["Dataset", "Model", "Embeddings", "Index"])


def test_somebody_is_enrolled_found_and_forgotten(open_page):
    page = open_page("gallery")
    chooser = page.get_by_label("Images to enrol: choose a file")
    chooser.set_input_files(
        [{"name": f"{n}.png", "mimeType": "image/png", "buffer": drawing(99, n)} for n in range(2)]
    )
    page.get_by_role("textbox", name="Identity").fill(MARKUP + "99")
    page.get_by_label("Quality gate").select_option("off")
    page.get_by_role("button", name="Enrol…").click()
    expect(page.get_by_role("dialog")).to_contain_text("2 images of")
    assert not violations(page)
    page.get_by_role("dialog").get_by_role("button", name="Enrol", exact=True).click()
    expect(page.locator(".notice.good")).to_contain_text("is enrolled with 2 images")
    page.get_by_role("button", name="Search for it").click()
    expect(page.locator(".verdict h2")).to_have_text(MARKUP + "99")
    expect(page.locator(".answers .picture img").first).to_be_visible()
    page.get_by_role("button", name="More on").first.click()
    expect(page.locator("dialog .tag")).to_have_text("enrolled since the index was built")
    assert not violations(page)
    page.get_by_role("link", name="Gallery").press("Escape")
    page.get_by_role("link", name="Gallery").click()
    page.get_by_role("textbox", name="Its name or id").fill(MARKUP + "99")
    page.get_by_role("button", name="Forget…").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.get_by_role("button", name="Forget…").click()
    page.get_by_role("button", name="Forget identity").click()
    expect(page.locator(".notice.good")).to_contain_text("is forgotten")
    page.get_by_role("link", name="Search", exact=True).click()
    choose(page, drawing(99, 0))
    expect(page.locator(".verdict h2")).to_have_text("Unknown")


def test_a_label_is_corrected_listed_and_taken_back(open_page):
    page = open_page("data", part="suspects")
    page.get_by_role("button", name="Correct…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Right label")).to_have_value(label_of(8))
    assert not violations(page)
    dialog.get_by_role("button", name="Correct label").click()
    expect(page.locator("#toast")).to_contain_text("Corrected. The dataset is now version")
    page.get_by_role("link", name="Corrections").click()
    row = page.locator("tbody tr")
    expect(row).to_contain_text(file_of(8, 0))
    expect(row).to_contain_text("local")
    row.get_by_role("button", name="Take back…").click()
    page.get_by_role("dialog").get_by_role("button", name="Take back").click()
    expect(page.get_by_role("heading", name="No corrections")).to_be_visible()


def test_an_item_is_removed_from_its_dataset(open_page):
    page = open_page("data")
    before = page.get_by_text(f"{PER_IDENTITY * IDENTITIES} items")
    expect(before).to_be_visible()
    page.locator(".items .picture").nth(30).click()
    page.get_by_role("button", name="Remove…").click()
    page.get_by_role("button", name="Remove item").click()
    expect(page.get_by_text(f"{PER_IDENTITY * IDENTITIES - 1} items")).to_be_visible()


def test_with_keys_the_page_asks_for_one_and_shows_pictures_by_it(looked_at, browser, tmp_path):
    keys = tmp_path / "keys.json"
    _, key = make_key(keys, "reader", ["read"], who="operator")
    settings = ServiceSettings(store=looked_at[0], keys=keys, threads=1, recall_share=0)
    with serving(settings) as url, browser.new_context(viewport=WIDE) as context:
        page = context.new_page()
        page.goto(f"{url}/#/search?{urlencode({'item': file_of(6, 0)})}")
        expect(page.get_by_role("alert")).to_contain_text("A key is needed.")
        page.get_by_role("button", name="Enter a key").click()
        page.get_by_role("textbox", name="Key").fill(key)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator(".answers .picture img").first).not_to_have_js_property("naturalWidth", 0)
        page.locator(".dots").first.click()
        page.get_by_role("button", name="Forget…").click()
        page.get_by_role("button", name="Forget item").click()
        expect(page.get_by_role("alert")).to_contain_text("Your key does not allow this.")


def test_items_of_imported_vectors_have_a_placeholder_and_no_picture_is_asked_for(browser, tmp_path):
    store, failed = str(tmp_path / "store"), []
    publish(store, tmp_path / "vectors", "people", items_of(ROWS), vectors_of(ROWS, 1))
    settings = ServiceSettings(store=store, threads=1, recall_share=0)
    with serving(settings) as url, browser.new_context(viewport=WIDE) as context:
        page = context.new_page()
        page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
        page.on("requestfailed", lambda request: failed.append(request.url))
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        go(page, url, "search", item="photo 3")
        expect(page.locator(".answers .picture.missing").first).to_be_visible()
        assert page.locator(".answers img").count() == 0
        assert violations(page) == []
        page.locator(".dots").first.click()
        expect(page.locator("dialog .picture.missing")).to_be_visible()
        assert violations(page) == []
        go(page, url, "compare", first="photo 3", second="photo 4")
        expect(page.locator(".versus .picture.missing")).to_have_count(2)
        expect(page.get_by_text("Chosen by you: No threshold was calibrated.")).to_be_visible()
        expect(page.locator(".measure")).to_be_visible()
        assert violations(page) == []
    assert failed == []
