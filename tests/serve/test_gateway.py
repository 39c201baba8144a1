"""Admission, sessions, resuming, fences, leases and files, against the mock engine."""

import asyncio
import io
import json
import socket as sockets
import subprocess
import sys
import zlib

import httpx
import pytest
import websockets
from PIL import Image
from serve_toys import SOON, Viewer, serving, socket, ticket, until, viewing
from starlette.websockets import WebSocket

from forcing.serve import gateway, mock, orders, static, wire
from forcing.serve.admission import Desk
from forcing.serve.gateway import MOST_UPLOAD, run
from forcing.serve.images import repainted
from forcing.serve.journal import End, Journal
from forcing.serve.limits import Bucket, Shelf, Strikes
from forcing.serve.line import Line
from forcing.serve.metrics import Metrics
from forcing.serve.options import Options
from forcing.serve.visit import Visit

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def shared():
    with serving(sessions=4, detach_s=0.5) as served:
        yield served


@pytest.fixture
def served(shared):
    yield shared
    shared.settled()


def test_the_gateway_needs_no_torch():
    code = "import sys, forcing.serve.gateway, forcing.serve.mock; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


# ---- a session


def test_a_session(served):
    async def main():
        async with viewing(served, seed=3, prompt="a") as viewer:
            assert viewer.ready["world"]["keys"] == ["left", "right", "forward"]
            seen = await viewer.look(3)
            assert {mark.prompt for mark in seen} == {zlib.crc32(b"a")} and {mark.seed for mark in seen} == {3}
            await viewer.say("keys", id=10, held=["right"], tapped=["forward"])
            seen = await viewer.look(8)
            heard = [mark.keys for mark in seen if mark.event == 10]
            assert heard[0] == 0b110 and set(heard[1:]) == {0b10}
            await viewer.say("prompt", id=11, text="b", switch="cut")
            await viewer.until("accepted", id=11)
            applied = await viewer.until("applied", id=11)
            first = next(mark for mark in viewer.pictures + await viewer.look(2) if mark.frame == applied["frame"])
            assert first.prompt == zlib.crc32(b"b")
            await viewer.say("ping", id=12)
            assert (await viewer.until("pong", id=12))["clock_us"] > 0
            stats = await viewer.until("stats")
            assert stats["fps"] > 3 and stats["sessions"] == 1

    asyncio.run(main())


def test_pausing(served):
    async def main():
        async with viewing(served, seed=1) as viewer:
            await viewer.say("pause", on=True)
            await viewer.until("state", state="paused")
            await viewer.until("stats")
            before = len(viewer.pictures)
            await viewer.until("stats")
            assert len(viewer.pictures) == before
            await viewer.say("pause", on=False)
            await viewer.until("state", state="live")
            await viewer.look(2)

    asyncio.run(main())


def test_no_credit_no_picture(served):
    async def main():
        async with viewing(served, window=0) as viewer:
            await viewer.say("begin", seed=1)
            await viewer.say("grant", chunks=3)
            await viewer.until("stats")
            await viewer.until("stats")
            assert [mark.frame for mark in viewer.pictures] == [0, 1, 2]

    asyncio.run(main())


def test_beginning_anew_fences_what_was_before(served):
    async def main():
        async with viewing(served, seed=1, window=8) as viewer:
            for n in range(2, 12):
                await viewer.say("begin", seed=n)
                await viewer.until("state", generation=n, state="starting")
                assert (await viewer.look(2))[0].seed == n  # and `Viewer` looks at each generation
            await viewer.say("back", frame=1)
            await viewer.until("state", generation=12)
            assert (await viewer.look(1))[0].frame == 1
            await viewer.say("back", frame=500)
            error = await viewer.until("error")
            assert error["code"] == "not_kept"
            await viewer.look(2)

    asyncio.run(main())


def test_nobody_sees_the_pictures_of_another(served):
    async def one(n):
        async with viewing(served, seed=n, prompt=f"prompt {n}") as viewer:
            seen = await viewer.look(12)
            assert {(m.seed, m.prompt, m.session) for m in seen} == {(n, zlib.crc32(b"prompt %d" % n), viewer.number)}
            return viewer.number

    async def main():
        assert len({*await asyncio.gather(*(one(n) for n in range(4)))}) == 4

    asyncio.run(main())


def test_what_cannot_be_asked(served):
    async def main():
        async with viewing(served) as viewer:
            await viewer.say("keys", id=1, held=["left"])
            assert (await viewer.until("error"))["code"] == "not_begun"
            for wrong, code in (
                ({"image": "none"}, "bad_image"),
                ({"steps": 3}, "bad_steps"),
            ):
                await viewer.say("begin", **wrong)
                error = await viewer.until("error")
                assert error["code"] == code and error["message"]
            await viewer.begin(seed=1)
            await viewer.say("keys", id=2, held=["jump"])
            assert await viewer.until("error", code="bad_key", id=2)
            await viewer.say("prompt", id=3, text="\0a\ud7ff" + 5 * "b")
            await viewer.until("applied", id=3)
            assert (await viewer.look(1))[0].prompt == zlib.crc32(("a" + 5 * "b").encode())

    asyncio.run(main())


def test_only_prompts_that_the_world_knows():
    async def main(served):
        async with viewing(served, seed=1, prompt="one") as viewer:
            await viewer.say("prompt", id=4, text="three")
            error = await viewer.until("error", id=4)
            assert error["code"] == "bad_prompt" and "'three': choose from one, two" in error["message"]

    with serving(engine={"prompts": ["one", "two"]}) as served:
        asyncio.run(main(served))


def test_a_fork_goes_on_from_the_same_moment(served):
    async def main():
        async with viewing(served, seed=5) as viewer:
            await viewer.look(4)
            await viewer.say("fork", id=9)
            told = await viewer.until("ticket", id=9)
            async with viewing(served, told["ticket"]) as other:
                seen = await other.look(3)
                assert seen[0].seed == 5 and seen[0].frame >= 4 and seen[0].session != viewer.number
                await viewer.look(2)
            await viewer.say("fork", id=10, frame=2)
            told = await viewer.until("ticket", id=10)
            async with viewing(served, told["ticket"]) as other:
                assert [seen.frame for seen in await other.look(2)] == [2, 3]
                assert (await viewer.look(1))[0].frame > 4

    asyncio.run(main())


def test_a_session_is_saved_to_a_file_and_begun_from_it(served):
    async def main():
        async with viewing(served, seed=5, prompt="a") as viewer:
            await viewer.look(9)
            await viewer.say("export", id=9, what="session")
            url = (await viewer.until("exported", id=9))["url"]
            body = served.get("/" + url).content
            answer = served.post("/api/saves", content=body)
            assert answer.status_code == 201, answer.text
            told = answer.json()
            assert (told["prompt"], told["seed"], told["steps"]) == ("a", 5, None)
            await viewer.say("begin", prompt="a", seed=5, save=told["id"])
            await viewer.until("state", generation=2)
            seen = await viewer.look(2)
            assert seen[0].frame >= 8 and seen[0].seed == 5
            await viewer.say("begin", save=told["id"], reality=True)
            assert (await viewer.until("error"))["code"] == "bad_message"
            await viewer.say("begin", save="none")
            assert (await viewer.until("error"))["code"] == "bad_save"
            return url, body

    url, body = asyncio.run(main())
    assert url.endswith(".forcing") and served.get("/" + url).status_code == 404
    for wrong in (b"", b"no", body[:-9], body + b"more", body.replace(b"format\x01", b"format\x02")):
        answer = served.post("/api/saves", content=wrong)
        assert answer.status_code == 415 and answer.json()["error"] == "bad_save", answer.text
    for engine in served.desk.engines:
        engine.digest = "another"
    answer = served.post("/api/saves", content=body)
    for engine in served.desk.engines:
        engine.digest = ""
    assert answer.status_code == 415 and "of another world" in answer.json()["message"]


def test_a_film_is_served_once(served):
    async def main():
        async with viewing(served, seed=5) as viewer:
            await viewer.say("export", id=9)
            return (await viewer.until("exported", id=9))["url"]

    url = "/" + asyncio.run(main())
    assert httpx.head(served.url + url).status_code == 200  # which takes nothing
    first = served.get(url)
    assert first.status_code == 200 and first.headers["content-type"] == "video/mp4" and b"ftyp" in first.content
    assert served.get(url).status_code == 404


def test_reality_beside(served):
    async def main():
        async with viewing(served, seed=5, reality=True) as viewer:
            while isinstance(message := await viewer.hear(), dict):
                pass
            assert message[0].reality and message[0].image

    asyncio.run(main())


def test_latent_frames_of_several_pictures():
    async def main(served):
        async with viewing(served, window=1) as viewer:
            await viewer.say("begin")
            seen = []
            while len(seen) < 12:
                if not isinstance(message := await viewer.hear(), dict):
                    seen.append((message[0].frame, message[0].latent))
            assert seen == [(n, n // 3) for n in range(12)]

    with serving(engine={"frames": 3, "chunk": 2, "fps": 60.0}) as served:
        asyncio.run(main(served))


# ---- sockets come and go


def test_a_session_is_resumed_by_its_token(served):
    async def main():
        first = await ticket(served)
        async with viewing(served, first, bye=False, seed=8) as viewer:
            await viewer.look(4)
        async with socket(served) as opened:
            again = Viewer(opened)
            await again.say("hello", ticket=first)
            assert (await again.until("error"))["code"] == "bad_ticket"  # it was used
            assert await again.closed() == wire.POLICY
        async with viewing(served, viewer.ready["resume"]) as again:
            assert again.ready["session"] == viewer.ready["session"]
            seen = await again.look(20)
            assert {mark.seed for mark in seen} == {8} and seen[0].session == viewer.number
            assert seen[0].frame > viewer.frame and again.generation == viewer.generation
            await again.until("stats")

    asyncio.run(main())


def test_resuming_does_not_grow_what_is_under_way(served):
    async def main():
        token = None
        for _ in range(4):
            async with viewing(served, token, bye=False, **({} if token else {"seed": 1})) as viewer:
                token = viewer.ready["resume"]
                await viewer.look(2)
                visit = served.desk.tickets[token]
                assert visit.out + len(visit.slot) <= 3
        async with viewing(served, token):
            pass

    asyncio.run(main())


def test_the_newest_socket_has_the_session(served):
    async def main():
        async with viewing(served, bye=False, seed=8) as old, viewing(served, old.ready["resume"]) as new:
            assert await old.closed() == wire.POLICY
            await new.look(3)

    asyncio.run(main())


def test_a_session_that_nobody_resumes_is_over(served):
    async def main():
        async with viewing(served, bye=False, seed=8) as viewer:
            pass
        await asyncio.sleep(1.0)
        async with socket(served) as opened:
            late = Viewer(opened)
            await late.say("hello", ticket=viewer.ready["resume"])
            assert (await late.until("error"))["code"] == "bad_ticket"
            assert await late.closed() == wire.POLICY

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "code"),
    [({"idle_s": 1.0}, wire.NORMAL), ({"lifetime_s": 1.0}, wire.NORMAL), ({"heartbeat_s": 0.5}, wire.GOING_AWAY)],
)
def test_leases_end(options, code):
    async def main(served):
        async with viewing(served, bye=False, window=0) as viewer:
            await viewer.say("begin")
            if code == wire.NORMAL:
                await asyncio.sleep(1.5)  # nobody else wants the place
                await viewer.say("ping", id=1)
                await viewer.until("pong")
                assert not [told for told in viewer.told if told["type"] == "warning"]
                await ticket(served)
            assert await viewer.closed() == code
            if code == wire.NORMAL:
                kinds = [message["type"] for message in viewer.told]
                assert kinds.index("warning") < kinds.index("error")
                assert viewer.told[-1]["state"] == "closed"

    with serving(detach_s=0.2, ticket_s=2.0, engine={}, **{"sessions": 1, **options}) as served:
        asyncio.run(main(served))
        served.settled()


def test_who_does_something_is_not_idle():
    async def main(served):
        async with viewing(served, seed=1) as viewer:
            for n in range(4):
                await asyncio.sleep(0.4)
                await viewer.say("keys", id=n)
            await viewer.look(1)
            assert not [told for told in viewer.told if told["type"] == "error"]

    with serving(idle_s=0.9) as served:
        asyncio.run(main(served))


# ---- admission


def test_the_queue():
    async def main(served):
        async with httpx.AsyncClient(timeout=SOON, base_url=served.url) as client:

            async def ask():
                return await client.post("/api/sessions")

            first, second, third, fourth = [await ask() for _ in range(4)]
            assert [each.status_code for each in (first, second, third, fourth)] == [201, 202, 202, 503]
            assert int(fourth.headers["retry-after"]) > 0 and fourth.json()["error"] == "busy"
            assert second.json()["position"] == 1 and third.json()["eta_s"] == 0  # nobody has left yet
            async with socket(served) as early:
                viewer = Viewer(early)
                await viewer.say("hello", ticket=second.json()["ticket"])
                assert (await viewer.until("error"))["code"] == "busy" and await viewer.closed() == wire.TRY_LATER
            async with viewing(served, first.json()["ticket"], seed=1):
                place = (await client.get("/api/sessions/" + third.json()["ticket"])).json()
                assert place["position"] == 2 and "url" not in place and place["loading"] is False
            async with asyncio.timeout(SOON):
                while "url" not in (place := (await client.get("/api/sessions/" + second.json()["ticket"])).json()):
                    await asyncio.sleep(0.02)
            async with viewing(served, place["ticket"], seed=2):
                pass

    with serving(sessions=1, queue=2, ticket_s=1.0) as served:
        asyncio.run(main(served))
        served.settled()  # also the third, who never came
        assert served.get("/api/sessions/nothing").status_code == 404


def test_sessions_are_spread_over_engines():
    async def main(served):
        async with viewing(served, seed=1), viewing(served, seed=2), viewing(served, seed=3), viewing(served, seed=4):
            return [len(engine.taken) for engine in served.desk.engines]

    with serving(engines=2, sessions=3) as served:
        until(lambda: all(engine.state == "warm" for engine in served.desk.engines))
        assert asyncio.run(main(served)) == [2, 2]


def test_the_secret():
    with serving(token="s3cret") as served:
        for body, headers, status in (
            ({}, {}, 401),
            ({"token": "other"}, {}, 401),
            ({"token": "s3cret"}, {}, 201),
            ({}, {"Authorization": "Bearer s3cret"}, 201),
            ({}, {"Authorization": "Bearer s3cre"}, 401),
        ):
            assert served.post("/api/sessions", json=body, headers=headers).status_code == status
        assert served.post("/api/images", content=b"").status_code == 401
        assert served.post("/api/sessions", content=b"[" * 4000).status_code == 400
        assert served.post("/api/sessions", content=b" " * 5000).status_code == 413


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, None, True),
        ("own", None, True),
        ("https://listed.example", None, True),
        ("http://other.example", None, False),
        ("null", None, False),
        ("http://other.example", "other.example", False),  # its name was made to point here
        (None, "other.example", False),
        ("https://listed.example", "listed.example", True),  # behind a proxy with TLS
        ("http://10.0.0.7:8000", "10.0.0.7:8000", True),
        ("http://[::1]:8000", "[::1]:8000", True),
    ],
)
def test_pages_of_others_may_not_connect(shared, origin, host, allowed):
    headers = {} if origin is None else {"Origin": shared.url if origin == "own" else origin}
    headers |= {} if host is None else {"Host": host}

    async def main(served):
        try:
            async with socket(served, additional_headers=headers):
                return True
        except websockets.InvalidStatus as refused:
            return refused.response.status_code != 403

    with serving(origins=("https://listed.example",), ticket_s=0.2) as served:
        if origin == "own":
            headers["Origin"] = served.url
        assert (served.post("/api/sessions", headers=headers).status_code == 201) == allowed
        if host is None:
            assert asyncio.run(main(served)) == allowed
        served.settled()


# ---- files


def encoded(kind, size=(64, 48), mode="RGB", **rest):
    data = io.BytesIO()
    Image.new(mode, size, 7).save(data, kind, **rest)
    return data.getvalue()


def test_images_are_painted_again(served):
    sent = served.post("/api/images", content=encoded("PNG", mode="P") + b"<script>")
    assert sent.status_code == 201 and (sent.json()["width"], sent.json()["height"]) == (64, 48)
    kept = served.desk.images.get(sent.json()["id"])
    with Image.open(io.BytesIO(kept)) as opened:
        assert opened.mode == "RGB" and opened.format == "PNG" and b"script" not in kept

    async def main():
        async with viewing(served, seed=1, image=sent.json()["id"]) as viewer:
            await viewer.look(1)

    served.base = served.counted()  # threads that read images stay
    asyncio.run(main())


@pytest.mark.parametrize("body", [b"", b"GIF89a", encoded("PNG")[:60], encoded("GIF"), encoded("BMP"), b"\x89PNG" * 99])
def test_what_is_no_image_is_refused(body):
    with pytest.raises(ValueError, match="not a PNG, JPEG or WebP"):
        repainted(body)


def test_images_have_limits(shared):
    assert shared.post("/api/images", content=bytes(MOST_UPLOAD + 1)).status_code == 413
    assert shared.post("/api/images", content=b"no").json()["error"] == "bad_image"
    with pytest.raises(ValueError, match="8000x8000 pixels: a PNG has at most 16000000"):
        repainted(encoded("PNG", (8000, 8000), "1"))
    assert repainted(encoded("JPEG", (4000, 1000)))[1:] == (1920, 480)


def test_pages_that_are_listed_may_ask(shared):
    asked = {"Origin": "https://listed.example", "Access-Control-Request-Method": "POST"}
    with serving(origins=("https://listed.example",)) as served:
        may = httpx.options(served.url + "/api/sessions", headers=asked)
        assert may.status_code == 200 and may.headers["access-control-allow-origin"] == asked["Origin"]
        answer = served.post("/api/sessions", headers={"Origin": asked["Origin"]})
        assert answer.status_code == 201 and answer.headers["access-control-allow-origin"] == asked["Origin"]
        assert served.post("/api/sessions", headers={"Origin": "https://other.example"}).status_code == 403
    assert shared.post("/api/sessions", headers={"Host": "evil.example"}).status_code == 403


def test_so_many_images_at_a_time(shared, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gateway, "MOST_UPLOADS", 0)
        answer = shared.post("/api/images", content=encoded("PNG"))
        assert answer.status_code == 503 and answer.headers["retry-after"]
    with socket_of(shared) as half:
        half.sendall(b"POST /api/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc")
        until(lambda: shared.gateway.uploads == 1)
    until(lambda: shared.gateway.uploads == 0)
    assert shared.post("/api/images", content=encoded("PNG")).status_code == 201


def test_the_page(shared, tmp_path, monkeypatch):
    for name in ("index.html", "app.js", "style.css"):
        (tmp_path / name).write_text(name)
    (tmp_path.parent / "secret.js").write_text("secret")
    monkeypatch.setattr(static, "PAGE", tmp_path)
    for path, kind in (("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css")):
        answer = shared.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "http" not in answer.headers["content-security-policy"]
        assert shared.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
    for path in ("/nothing.js", "/..%2fsecret.js", "/%2e%2e/secret.js", "//secret.js"):
        assert shared.get(path).status_code == 404


def test_health_and_metrics(shared):
    assert shared.get("/healthz").json() == {"alive": True}
    assert shared.get("/readyz").json()["ready"] is True
    assert "forcing_slots 4.0" in shared.get("/metrics").text


# ---- the journal


def lines(folder):
    return {path: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def test_the_journal_says_all_that_made_a_session(tmp_path):
    async def main(served):
        image = served.post("/api/images", content=encoded("PNG")).json()["id"]
        async with viewing(served, seed=9, prompt="a", steps=2, image=image) as viewer:
            await viewer.say("keys", id=4, held=["left"], tapped=["right"])
            await viewer.say("prompt", id=5, text="b", switch="cut")
            await viewer.until("applied")
            await viewer.look(3)
            await viewer.say("back", frame=1)
            await viewer.until("state", generation=2)
            await viewer.look(2)
            assert not [*tmp_path.glob("*.jsonl")]  # it is there once it is whole
            return viewer

    with serving(logs=tmp_path) as served:
        viewer = asyncio.run(main(served))
        until(lambda: lines(tmp_path))
    ((path, said),) = lines(tmp_path).items()
    assert path.stem == viewer.ready["session"]
    kinds = [line["what"] for line in said]
    assert kinds[0] == "open" and kinds[-1] == "end" and "back" in kinds
    opened = said[0]
    assert (opened["prompt"], opened["seed"], opened["steps"]) == ("a", 9, 2) and "saved" not in opened
    assert opened["engine"]["told"]["sessions"] == served.options.sessions
    assert (tmp_path / f"{opened['image']}.png").is_file()
    assert next(line for line in said if line["what"] == "press")["tapped"] == ["right"]
    began = next(line["latent"] for line in said if line.get("asked"))
    for mark in viewer.pictures:
        logged = [line for line in said if line["what"] == "chunk" and line["generation"] == mark.generation]
        assert [line["event"] for line in logged if line["latent"] == mark.frame] == [mark.event]
        if mark.generation == 1:
            assert (mark.prompt == zlib.crc32(b"b")) == (mark.frame >= began)


def test_a_full_disk_ends_the_journal_and_not_the_session(tmp_path):
    journal = Journal(tmp_path, "one")
    journal.file.close()
    journal.file = open("/dev/full", "wb")  # noqa: PTH123, SIM115
    full = journal.file
    journal.note(End(reason="one"))
    journal.note(End(reason="two"))
    journal.end()
    assert not [*tmp_path.glob("*.jsonl")]
    with pytest.raises(OSError):
        full.close()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        run(Options(port=0, logs=tmp_path / "file"), mock.main)


def socket_of(served):
    return sockets.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])))


# ---- small parts


def chunk(generation, frame=0):
    return orders.Frames(1, generation, frame, frame, 0, 0, wire.JPEG, [b"a", b"b", b"c"], [])


def test_a_chunk_of_an_older_generation_is_not_taken():
    visit = Visit(1, "one", 0.0, Journal(None, "one"))
    visit.anew()
    assert visit.grant(8) == 8 and visit.grant(1) == 0
    assert visit.show(chunk(1), 1) and (visit.out, len(visit.slot)) == (7, 1)
    visit.anew()
    assert (visit.out, len(visit.slot)) == (0, 0)
    assert not visit.show(chunk(1), 1) and not visit.slot


def test_the_rest_of_a_chunk_is_not_sent_after_its_generation():
    async def main():
        line = Line(WebSocket({"type": "websocket"}, quiet, quiet), Desk(Options(), Metrics()), lambda: None)
        visit = Visit(1, "one", 0.0, Journal(None, "one"))
        visit.anew()
        visit.show(chunk(1), 3)
        visit.letters.clear()
        assert line._next(visit).frame == 0
        visit.anew()
        assert line._next(visit) is None
        visit.show(chunk(2, 7), 3)
        visit.letters.clear()
        assert [line._next(visit).frame for _ in range(3)] == [7, 8, 9]

    async def quiet(*_):
        raise AssertionError

    asyncio.run(main())


def test_a_bucket_refills():
    bucket = Bucket(10.0)
    assert [bucket.take(100.0) for _ in range(11)] == [True] * 10 + [False]
    assert [bucket.take(100.25) for _ in range(3)] == [True, True, False]


def test_three_strikes_within_ten_seconds():
    strikes = Strikes()
    assert [strikes.strike(at) for at in (0.0, 6.0, 11.0, 12.0)] == [False, False, False, True]


def test_a_shelf_keeps_so_much_for_so_long():
    now = 0.0
    shelf = Shelf(10, 60.0, lambda: now)
    first, second = shelf.put(b"12345"), shelf.put(b"12345")
    assert shelf.get(first) == b"12345"
    third = shelf.put(b"1")
    assert shelf.get(first) is None and shelf.take(second) == b"12345" and shelf.take(second) is None
    now = 61.0
    assert shelf.get(third) is None and not shelf.kept


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"engines": 0}, "engines is 0: it must be at least 1"),
        ({"port": 70000}, "at most 65535"),
        ({"send_s": 0.0}, "send_s is 0.0: it must be above 0"),
        ({"fps": 0.0}, "fps is 0.0"),
        ({"token": ""}, "token is empty"),
        ({"origins": ("example.org",)}, "'example.org': write it as https"),
    ],
)
def test_options_that_cannot_be(wrong, told):
    with pytest.raises(ValueError, match=told):
        Options(**wrong)


def test_what_the_engine_is_told():
    assert Options(engine={"world": "w"}, sessions=3, fps=8.0).told == {"world": "w", "sessions": 3, "fps": 8.0}
    assert mock.Scene(**Options(sessions=3).told).sessions == 3
