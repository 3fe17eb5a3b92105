"""Several faces in a picture, in a real browser: a box for each, and each with its own answers."""

import pytest
from playwright.sync_api import expect

from dml.serving.app.settings import ServiceSettings
from tests.serving.face_pictures import make_people, party, publish
from tests.serving.page.parts import serving
from tests.serving.page.test_page import NARROW, WIDE, browser, choose, go, violations  # noqa: F401

pytest.importorskip("cv2")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    store, dataset, package = make_people(folder, *((f"person {each}", party(each)) for each in range(4)))
    publish(store, dataset, package)
    with serving(ServiceSettings(store=store, threads=1, recall_share=0)) as url:
        yield url


@pytest.fixture
def page(browser):  # noqa: F811
    with browser.new_context(viewport=WIDE) as context:
        yield context.new_page()


def test_each_face_has_a_box_and_its_own_answers_by_mouse_and_keyboard(page, address):
    go(page, address, "search")
    choose(page, party(2, 77, 1))
    first = page.get_by_role("radio", name="Face 1 of 3: person 2")
    expect(first).to_be_checked()
    expect(page.locator(".verdict h2")).to_have_text("person 2")
    first.press("ArrowRight")
    expect(page.get_by_role("radio", name="Face 2 of 3")).to_be_checked()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".verdict h2")).to_have_text("person 1")
    third = page.get_by_role("button", name="Face 3 of 3: person 1")
    expect(third).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Face 1 of 3").click()
    expect(page.locator(".verdict h2")).to_have_text("person 2")
    frame, box = page.locator(".frame").bounding_box(), page.locator(".face").nth(2).bounding_box()
    assert (box["x"] - frame["x"]) / frame["width"] == pytest.approx(128 / 192, abs=0.01)
    assert box["width"] / frame["width"] == pytest.approx(32 / 192, abs=0.01)
    page.get_by_label("Threshold").fill("1")
    expect(page.get_by_role("radio", name="Face 2 of 3: Unknown")).to_be_visible()
    assert not violations(page)
    page.set_viewport_size(NARROW)
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW["width"]


def test_a_picture_without_a_face_says_so(page, address):
    go(page, address, "search")
    choose(page, party())
    expect(page.get_by_role("heading", name="No face in this picture")).to_be_visible()
    expect(page.locator(".face")).to_have_count(0)


def test_of_several_faces_the_one_of_an_identity_is_found(page, address):
    go(page, address, "compare", identity="person 1")
    choose(page, party(2, 77, 1), label="First image")
    expect(page.get_by_role("radio", name="Face 3 of 3: Same identity")).to_be_checked()
    expect(page.get_by_label("Threshold")).to_be_visible()  # nobody has calibrated this index
    expect(page.locator(".verdict")).to_contain_text("similarity 1.000, threshold 0.500")
