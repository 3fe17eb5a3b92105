"""Verify and identify over HTTP."""

import pytest

from tests.serving.app.parts import NAME, image, post

VERIFY, IDENTIFY = f"/v1/indexes/{NAME}/verify", f"/v1/indexes/{NAME}/identify"


def test_an_image_is_of_the_identity_whose_image_it_is(settings):
    body = {"probe": image(3), "other": {"identity": "class 3"}, "threshold": 0.999}
    same = post(settings, VERIFY, body).json()
    assert (same["same"], same["identity"], same["images"]) == (True, "class 3", 4)
    other = post(settings, VERIFY, body | {"other": {"id": "00004.png"}}).json()
    assert (other["same"], other["identity"], other["images"]) == (False, None, 1)


def test_who_is_above_no_threshold_is_unknown(settings):
    body = {"queries": [image(3), image(900)], "threshold": 0.9999}
    known, unknown = post(settings, IDENTIFY, body).json()["results"]
    assert (known["status"], known["identity"], known["id"]) == ("identified", "class 3", "00003.png")
    assert (unknown["status"], unknown["identity"]) == ("unknown", None)


def test_scopes_are_tried_in_order_and_say_so(settings):
    body = {"queries": [image(3)], "threshold": 0.9999, "scopes": ["sold", ""]}
    (found,) = post(settings, IDENTIFY, body).json()["results"]
    assert [(each["scope"], each["candidates"]) for each in found["tried"]] == [("sold = true", 0), ("", 1)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (VERIFY, {"probe": image(3), "other": {"identity": "class 3"}}),
        (IDENTIFY, {"queries": [image(3)]}),
    ],
    ids=["verify", "identify"],
)
def test_without_a_calibration_a_threshold_must_be_given(settings, path, body):
    done = post(settings, path, body)
    assert (done.status_code, done.json()["error"]["code"]) == (409, "not_calibrated")
    assert "dml calibrate shelves" in done.json()["error"]["do"]
