"""What is refused, in one form, while others are answered."""

import io

import anyio
import pytest
from PIL import Image

from dml.errors import InvalidSetting
from dml.serving.app.factory import create_app
from dml.serving.app.keys import make_key, read_keys, revoke_key
from dml.serving.app.messages import Image as ImageMessage
from dml.serving.app.rates import Rates
from dml.serving.app.server import listening
from dml.serving.app.settings import LOOPBACK_NAMES, Limits
from tests.serving.app.parts import NAME, ask, image, post, running

SEARCH = f"/v1/indexes/{NAME}/search"


def limited(settings, **limits):
    return settings.model_copy(update={"limits": Limits(**limits)})


def problem(answer):
    """The error of an answer, which has the form of all errors."""
    error = answer.json()["error"]
    assert set(error) >= {"code", "must", "got", "do", "request_id"}
    assert answer.headers["x-request-id"] == error["request_id"]
    return error


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"queries": []}, "invalid_request"),
        ({"queries": [{}]}, "invalid_request"),
        ({"queries": [{"image": {"base64": "!!!!"}}]}, "invalid_request"),
        ({"queries": [{"image": {"base64": "QUJD"}}]}, "unreadable_image"),
        ({"queries": [{"vector": [1.0]}]}, "invalid_request"),
        ({"queries": [{"vector": [0.5] * 16}]}, "invalid_request"),
        ({"queries": [image(3)], "k": 0}, "invalid_request"),
        ({"queries": [image(3)], "k": 10**9}, "invalid_request"),
        ({"queries": [image(3)], "unknown": 1}, "invalid_request"),
        ({"queries": [image(3)], "filter": "yeer > 3"}, "invalid_filter"),
        ({"queries": [image(3)], "filter": {"op": "compare"}}, "invalid_filter"),
        ({"queries": [image(3)], "filter": "a" * 9000}, "invalid_request"),
        ({"queries": [image(3)], "filter": "not " * 2000 + "sold"}, "invalid_filter"),
        ({"queries": [image(3)], "threshold": 0.5, "fpir": 0.1}, "invalid_request"),
        ({"queries": [image(3)] * 257}, "invalid_request"),
    ],
)
def test_a_request_that_is_not_as_described_is_refused_with_what_to_do(settings, body, code):
    done = post(settings, SEARCH, body)
    error = problem(done)
    assert (done.status_code, error["code"]) == (422, code)
    assert error["must"]


def test_every_error_has_the_one_form(settings):
    app = create_app(settings)

    async def fail():
        raise RuntimeError("a secret")

    app.add_api_route("/v1/fails", fail)

    async def asking():
        async with running(app) as client:
            json = {"content-type": "application/json"}
            return [
                await client.get("/v1/nothing"),
                await client.get(SEARCH),
                await client.post(SEARCH, content=b"{", headers=json),
                await client.post(SEARCH, content=b"[" * 100_000, headers=json),
                await client.post(SEARCH, content=b'{"queries": []}', headers={"content-type": "text/plain"}),
                await client.post(SEARCH, content=b'{"queries": []}'),
                await client.post("/v1/indexes/other/search", json={"queries": [image(3)]}),
                await client.post(SEARCH, json={"queries": [{"id": "../../etc/passwd"}]}),
                await client.get("/v1/fails"),
            ]

    answers = anyio.run(asking)
    codes = [(answer.status_code, problem(answer)["code"]) for answer in answers]
    assert codes == [
        (404, "not_found"),
        (405, "method_not_allowed"),
        (400, "malformed"),
        (400, "malformed"),
        (415, "unsupported_media_type"),
        (415, "unsupported_media_type"),
        (404, "not_found"),
        (404, "not_found"),
        (500, "internal"),
    ]
    assert "secret" not in answers[-1].text
    assert settings.store not in "".join(answer.text for answer in answers)


def test_a_refusal_never_repeats_what_was_sent(settings):
    secret = "c2VjcmV0" * 100
    done = post(settings, SEARCH, {"queries": [{"image": {"base64": secret, "more": secret}}]})
    assert done.status_code == 422
    assert secret not in done.text


def test_a_body_beyond_the_limit_is_refused_while_others_are_answered(settings):
    async def large():
        for _ in range(100):
            yield b"x" * 1_000

    async def asking(client):
        declared = await client.post(SEARCH, content=b"x" * 20_001)
        streamed = await client.post(SEARCH, content=large())
        return declared, streamed, await client.post(SEARCH, json={"queries": [image(3)]})

    declared, streamed, other = ask(limited(settings, body_bytes=20_000), asking)
    for refused in (declared, streamed):
        assert (refused.status_code, problem(refused)["code"]) == (413, "too_large")
        assert refused.headers["connection"] == "close"
    assert other.status_code == 200


def test_an_image_of_more_pixels_than_the_limit_is_refused_by_its_header(settings):
    bomb = io.BytesIO()
    Image.new("1", (6_000, 6_000)).save(bomb, "PNG")
    query = {"image": ImageMessage.of(bomb.getvalue()).model_dump()}
    done = post(settings, SEARCH, {"queries": [image(3), query]})
    assert (done.status_code, problem(done)["code"]) == (413, "too_many_pixels")
    assert "image 1" in problem(done)["got"]


def test_a_body_that_does_not_arrive_is_given_up_while_others_are_answered(settings):
    async def slow():
        yield b'{"queries": ['
        await anyio.sleep(30)
        yield b"]}"

    async def asking(client):
        answers = []

        async def send(body):
            answers.append(await client.post(SEARCH, **body))

        async with anyio.create_task_group() as group:
            group.start_soon(send, {"content": slow()})
            group.start_soon(send, {"json": {"queries": [image(3)]}})
        return answers

    first, second = ask(limited(settings, body_seconds=0.5), asking)
    assert first.status_code == 200
    assert (second.status_code, problem(second)["code"]) == (408, "slow_body")


def test_more_requests_than_the_limit_are_refused_with_when_to_try_again(settings):
    async def asking(client):
        answers = []

        async def send():
            answers.append(await client.post(SEARCH, json={"queries": [image(3)]}))

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(send)
        return answers

    answers = ask(limited(settings, requests=4), asking)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert {problem(answer)["code"] for answer in refused} == {"overloaded"}
    assert {(answer.status_code, answer.headers["retry-after"]) for answer in refused} == {(503, "1")}
    assert sum(answer.status_code == 200 for answer in answers) == 4


def test_queries_beyond_the_rate_wait(settings):
    async def asking(client):
        body = {"queries": [{"id": "00003.png"}] * 5}
        return [await client.post(SEARCH, json=body) for _ in range(3)]

    first, second, third = ask(limited(settings, rate=0.1, burst=10), asking)
    assert (first.status_code, second.status_code) == (200, 200)
    assert (third.status_code, problem(third)["code"]) == (429, "rate_limited")
    assert int(third.headers["retry-after"]) >= 5


def test_a_bucket_fills_at_its_rate():
    now = [0.0]
    rates = Rates(rate=2, burst=4, clock=lambda: now[0])
    assert [rates.take("a"), rates.take("a", 3), rates.take("a"), rates.take("b")] == [0, 0, 1, 0]
    now[0] = 1.0
    assert [rates.take("a", 2), rates.take("a")] == [0, 1]
    now[0] = 100.0
    assert [rates.take("a", 40), rates.take("a")] == [0, 19]


def test_without_keys_the_service_is_called_by_a_name_of_loopback_alone(settings):
    guarded = settings.model_copy(update={"hosts": LOOPBACK_NAMES})

    async def asking(client):
        headers = [{}, {"host": "localhost:8000"}, {"host": "evil.example"}, {"sec-fetch-site": "cross-site"}]
        return [(await client.get("/v1/indexes", headers=each)).status_code for each in headers]

    assert ask(guarded, asking) == [200, 200, 403, 403]


def test_a_key_may_what_it_was_made_for_until_it_is_revoked(settings, tmp_path):
    path = tmp_path / "keys.json"
    made, reader = make_key(path, "page", ["read"], [NAME], who="operator")
    _, elsewhere = make_key(path, "other", ["admin"], ["other"], who="operator")
    app = create_app(settings.model_copy(update={"keys": path, "refresh_seconds": 0.05}))

    async def asking():
        async with running(app) as client:

            async def status(key, path="/v1/indexes/shelves"):
                headers = {} if key is None else {"Authorization": f"Bearer {key}"}
                return (await client.get(path, headers=headers)).status_code

            before = [await status(key) for key in (None, "dml_wrong", reader, elsewhere)]
            listed = await client.get("/v1/indexes", headers={"Authorization": f"Bearer {elsewhere}"})
            open_to_all = await status(None, "/healthz")
            revoke_key(path, made.id, who="operator")
            await anyio.sleep(0.5)
            return before, listed.json()["indexes"], open_to_all, await status(reader)

    assert anyio.run(asking) == ([401, 401, 200, 403], [], 200, 401)


def test_the_name_of_a_gallery_is_told_to_nobody_who_may_not_read_it(settings, tmp_path):
    path = tmp_path / "keys.json"
    galleries = [[NAME], ["other"], []]
    keys = [make_key(path, "key", ["read"], each, who="operator")[1] for each in galleries]

    async def asking():
        async with running(create_app(settings.model_copy(update={"keys": path}))) as client:
            headers = [{}, *({"Authorization": f"Bearer {key}"} for key in keys)]
            ready = [await client.get("/readyz", headers=each) for each in headers]
            return ready, [await client.get("/metrics", headers=each) for each in headers]

    ready, metrics = anyio.run(asking)
    assert [answer.status_code for answer in ready] == [200] * 4
    assert [NAME in answer.text for answer in ready] == [False, True, False, True]
    assert [answer.status_code for answer in metrics] == [401, 403, 403, 200]
    assert [NAME in answer.text for answer in metrics] == [False, False, False, True]


def test_a_key_is_kept_as_its_hash_alone_in_a_file_of_its_owner(tmp_path):
    path = tmp_path / "keys.json"
    _, secret = make_key(path, "page", ["read"], who="operator")
    assert secret.removeprefix("dml_") not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(InvalidSetting, match="chmod 600"):
        read_keys(path)


def test_every_answer_has_the_headers_of_security(settings):
    async def asking(client):
        paths = ("/v1/indexes", "/v1/nothing", "/healthz")
        return [await client.get(path) for path in paths]

    for answer in ask(settings, asking):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]


def test_a_request_id_of_the_client_is_kept_if_it_is_one(settings):
    async def asking(client):
        given = [await client.get("/healthz", headers={"x-request-id": each}) for each in ("a-1", "a b")]
        return [answer.headers["x-request-id"] for answer in given]

    first, second = ask(settings, asking)
    assert first == "a-1"
    assert second != "a b"


def test_who_has_no_key_can_take_no_room_of_the_bodies_of_others(settings, tmp_path):
    path = tmp_path / "keys.json"
    make_key(path, "page", ["read"], who="operator")

    async def asking(client):
        sent = [await client.post(each, content=b"x" * 9) for each in ("/healthz", "/", f"{SEARCH}")]
        return [answer.status_code for answer in sent]

    assert ask(settings.model_copy(update={"keys": path}), asking) == [413, 413, 401]


@pytest.mark.parametrize("path", ["/v1/indexes/", "/healthz/", "/v1/"])
def test_a_path_that_is_not_described_is_refused_in_the_one_form(settings, path):
    async def asking(client):
        return await client.get(path)

    answer = ask(settings, asking)
    assert answer.status_code == 404
    assert problem(answer)["code"] == "not_found"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/", "/openapi.json", "/v1/indexes"])
def test_head_is_answered_as_get_without_the_body(settings, path):
    async def asking(client):
        return await client.get(path), await client.head(path)

    got, asked = ask(settings, asking)
    assert (asked.status_code, asked.content) == (got.status_code, b"") == (200, b"")
    assert asked.headers["content-type"] == got.headers["content-type"]


def test_an_id_with_nul_is_refused_by_that_name(settings):
    async def asking(client):
        body = {"queries": [{"id": "a\0b"}]}
        enrolled = {"identity": "a\0b", "vectors": [[1.0] + [0.0] * 15]}
        return [
            await client.post(SEARCH, json=body),
            await client.get(f"/v1/indexes/{NAME}/items/a%00b"),
            await client.delete(f"/v1/indexes/{NAME}/identities/a%00b"),
            await client.post(f"/v1/indexes/{NAME}/enrol", json=enrolled),
            await client.post(f"/v1/indexes/{NAME}/enrol", json={**enrolled, "identity": "a", "ids": ["\0"]}),
        ]

    for answer in ask(settings, asking):
        assert (answer.status_code, problem(answer)["code"]) == (422, "invalid_request")
        assert "without NUL" in problem(answer)["got"]


def test_an_address_that_cannot_be_listened_on_is_refused_with_what_to_do():
    with listening("127.0.0.1", 0) as taken:
        taken.listen()
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("192.0.2.1", 0), ("a" * 70, 0)):
            with pytest.raises(InvalidSetting, match="--port 0 takes a free one"):
                listening(host, port)
