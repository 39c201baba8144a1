"""What goes wrong between viewers, gateway and engines: each is noticed, told, and leaves nothing behind."""

import asyncio
import base64
import gc
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import msgspec
import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serve_toys import SOON, Viewer, serving, ticket, until, viewing
from serve_toys import socket as websocket

from forcing.serve import gateway, wire
from forcing.serve.exchange import Refusal
from forcing.serve.gateway import run
from forcing.serve.line import _read
from forcing.serve.options import Options

pytestmark = pytest.mark.timeout(60)
LARGE = {"width": 1280, "height": 720, "frames": 8, "fps": 2000.0}  # megabytes a second


class Raw:
    """A WebSocket by hand, that does as it is told. room: bytes of the receive buffer."""

    def __init__(self, served, room=None, more=""):
        self.socket = socket.socket()
        if room is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        host, port = served.url.removeprefix("http://").split(":")
        self.socket.connect((host, int(port)))
        key = base64.b64encode(os.urandom(16)).decode()
        asked = [f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket"]
        asked += [f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{more}\r\n"]
        self.socket.sendall("\r\n".join(asked).encode())
        assert b"101" in self.socket.recv(4096)

    def say(self, kind, **fields):
        self.frame(1, msgspec.json.encode({"type": kind, **fields}))

    def frame(self, opcode, data):
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.socket.sendall(bytes([0x80 | opcode]) + size + bytes(4) + data)

    def begin(self, served, **fields):
        self.say("hello", ticket=asyncio.run(ticket(served)))
        self.say("begin", **fields)
        self.say("grant", chunks=8)

    def reset(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


# ---- viewers that do not read, or vanish


@pytest.mark.parametrize("more", ["", "X-Forwarded-For: 203.0.113.9\r\n"])  # as a proxy says
def test_who_reads_nothing_is_dropped_and_leaves_nothing(more):
    with serving(send_s=0.5, detach_s=0.2, engine=LARGE) as served:
        raw = Raw(served, room=4096, more=more)
        raw.begin(served)
        end = time.monotonic() + SOON
        while not served.metric("disconnects_total", reason="send"):
            assert time.monotonic() < end
            time.sleep(0.05)
            try:
                raw.say("grant", chunks=8)
            except OSError:
                break
            visit = next(iter(served.desk.visits.values()), None)
            assert visit is None or visit.out + len(visit.slot) <= 8
        until(lambda: served.metric("disconnects_total", reason="send") == 1)
        until(lambda: not served.server.server_state.connections)  # though the peer has not read a byte of it
        raw.socket.close()
        served.settled()


def test_a_slow_reader_is_not_late():
    async def main(served):
        async with viewing(served, seed=1) as viewer:
            ages = []
            for _ in range(12):
                await asyncio.sleep(0.15)  # reads 7 a second of 50
                while isinstance(message := await viewer.hear(), dict):
                    pass
                ages.append(time.monotonic() - message[0].made_us / 1e6)
            assert max(ages[2:]) < 0.6, ages

    with serving(engine={"fps": 50.0}) as served:
        asyncio.run(main(served))
        served.settled()


def test_a_frozen_viewer_goes_on():
    async def main(served):
        async with viewing(served, seed=1) as viewer:
            await viewer.look(3)
            await asyncio.sleep(2.0)
            visit = next(iter(served.desk.visits.values()))
            assert visit.out == 0 and len(visit.slot) == 0  # all that was granted lies in the viewer's buffer
            seen = await viewer.look(10)
            assert seen[-1].frame - seen[0].frame == 9 and visit.state == "live"

    with serving() as served:
        asyncio.run(main(served))
        served.settled()


@pytest.mark.parametrize("way", ["reset", "close", "silence", "half"])
def test_viewers_that_vanish(way):
    with serving(heartbeat_s=0.8, detach_s=0.2) as served:
        raw = Raw(served)
        if way != "half":
            raw.begin(served)
            until(lambda: served.desk.visits and next(iter(served.desk.visits.values())).shown)
        if way == "reset":
            raw.reset()
        elif way == "close":
            raw.socket.close()
        elif way == "silence":
            until(lambda: served.metric("disconnects_total", reason="heartbeat") == 1)
            raw.socket.close()
        else:
            raw.socket.sendall(b"\x81\xfe\x10")  # a frame that never ends
            raw.reset()
        served.settled()


def test_a_socket_that_says_nothing():
    with serving(hello_s=0.3) as served:
        raw = Raw(served)
        until(lambda: served.metric("disconnects_total", reason="greeting") == 1)
        raw.socket.close()
        served.settled()


def test_who_asks_for_nothing_is_not_kept(monkeypatch):
    monkeypatch.setattr(gateway, "SILENT_S", 0.5)
    with serving() as served:
        port = int(served.url.rpartition(":")[2])
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        for each in silent[10:]:
            each.sendall(b"GET / HTTP/1.1\r\nHost: local")  # and no more
        for each in silent:
            each.settimeout(SOON)
            with suppress(ConnectionResetError):
                assert each.recv(1) == b""
            each.close()
        served.settled()


# ---- messages that are wrong, large, or many


@pytest.fixture(scope="module")
def calm():
    with serving(detach_s=0.2, sessions=64) as served:
        yield served


WRONG = [
    b"\x00\x01",
    "",
    "{",
    "[]",
    "NaN",
    '{"type":"fly"}',
    '{"type":"ping"}',
    '{"type":"ping","id":-1}',
    '{"type":"ping","id":1,"more":2}',
    '{"type":"ping","id":' + "9" * 5000 + "}",
    '{"type":"prompt","id":1,"text":"\\ud800"}',
    "[" * 15000,
    '{"type":"prompt","id":1,"text":"' + "x" * 2001 + '"}',
    '{"type":"grant","chunks":9}',
    '{"type":"prompt","id":1,"text":"' + "é" * 9000 + '"}',
]


@pytest.mark.parametrize("wrong", WRONG, ids=range(len(WRONG)))
def test_three_wrong_messages_close_the_socket_and_one_does_not(calm, wrong):
    async def main():
        async with viewing(calm, bye=False, seed=1) as viewer:
            await viewer.socket.send(wrong)
            assert await viewer.until("error", code="bad_message")
            await viewer.look(2)
            for _ in range(2):
                await viewer.socket.send(wrong)
            assert await viewer.closed() == wire.POLICY
            assert Counter(told["type"] for told in viewer.told)["error"] == 3

    asyncio.run(main())
    calm.settled()


@pytest.mark.parametrize("first", ['{"type":"ping","id":1}', "{", b"x", '{"type":"hello","ticket":"a","protocol":9}'])
def test_hello_comes_first(calm, first):
    async def main():
        async with websocket(calm) as opened:
            await opened.send(first)
            viewer = Viewer(opened)
            assert (await viewer.hear())["type"] == "error"
            assert await viewer.closed() == wire.POLICY

    asyncio.run(main())
    calm.settled()


def test_what_is_far_too_large_is_not_even_read(calm):
    async def main():
        async with viewing(calm, bye=False) as viewer:
            await viewer.socket.send("x" * 70_000)
            assert await viewer.closed() == wire.TOO_BIG

    asyncio.run(main())
    calm.settled()


def test_a_flood_is_told_and_then_closed(calm):
    async def main():
        async with viewing(calm, bye=False) as viewer:

            async def flood():
                while True:
                    for _ in range(20):
                        await viewer.say("ping", id=1)
                    await asyncio.sleep(0.02)

            flooding = asyncio.create_task(flood())
            assert await viewer.closed() == wire.POLICY
            await asyncio.wait([flooding])
            assert isinstance(flooding.exception(), websockets.ConnectionClosed)
            assert {told["code"] for told in viewer.told if told["type"] == "error"} == {"too_fast"}

    asyncio.run(main())
    calm.settled()


def test_fast_keys_are_put_together_and_no_tap_is_lost(calm):
    async def main():
        async with viewing(calm, seed=1) as viewer:
            for n in range(100, 200):
                taps = {120: ["left"], 190: ["forward"]}.get(n, [])
                await viewer.say("keys", id=n, held=["right"] if n == 199 else [], tapped=taps)
            seen = []
            async with asyncio.timeout(SOON):
                while not seen or seen[-1].event != 199:
                    seen += await viewer.look()
            seen += await viewer.look(2)
            assert {bit for mark in seen for bit in range(3) if mark.keys >> bit & 1} == {0, 1, 2}
            assert seen[-1].keys == 0b10
            assert not [told for told in viewer.told if told["type"] == "error"]

    asyncio.run(main())
    calm.settled()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(["hello", "begin", "prompt", "keys", "grant", "pause", "back", "fork", "export", "ping", "bye"])
FIELDS = st.sampled_from(["id", "text", "seed", "held", "tapped", "chunks", "frame", "on", "switch", "image", "steps"])
SHAPED = st.builds(
    lambda kind, fields: json.dumps({"type": kind, **fields}), KINDS, st.dictionaries(FIELDS, JSON, max_size=5)
)
TEXT = st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace").decode())
MESSAGE = st.one_of(SHAPED, JSON.map(json.dumps), TEXT, st.binary(max_size=200))
BESIDE = pytest.mark.filterwarnings(
    "ignore:Do not use the `random` module"
)  # which the server's thread may do meanwhile


@BESIDE
@settings(max_examples=400, deadline=None)
@given(MESSAGE)
def test_whatever_is_said_is_a_control_or_refused(message):
    try:
        said = _read(message)
    except Refusal as refused:
        said = refused.told
    assert isinstance(said, wire.Said) or (said.code == "bad_message" and len(said.message) <= 220)


@BESIDE
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MESSAGE, min_size=1, max_size=6))
def test_nothing_that_is_said_harms_another(calm, messages):
    async def harm():
        async with viewing(calm, bye=False) as viewer:
            await viewer.say("begin", seed=1)
            for message in messages:
                try:
                    await viewer.socket.send(message)
                except websockets.ConnectionClosed:
                    return
            with suppress(websockets.ConnectionClosed):
                await viewer.say("ping", id=77)
                await viewer.until("pong", id=77)
            assert viewer.socket.close_code in (None, wire.POLICY, wire.NORMAL)

    async def main():
        async with viewing(calm, seed=5, prompt="calm") as watcher:
            await asyncio.gather(harm(), watcher.look(2))
            seen = await watcher.look(2)  # which are its own, and new
            assert {(mark.seed, mark.generation, mark.keys) for mark in seen} == {(5, 1, 0)}
            assert not [told for told in watcher.told if told["type"] in ("error", "warning")]

    asyncio.run(main())
    assert calm.server.started and calm.failed is None


def test_the_gateway_is_as_it_was(calm):
    calm.settled()


# ---- folders and clocks


def test_a_log_folder_that_is_gone_ends_the_logs_and_no_session(tmp_path):
    async def main(served):
        async with viewing(served, seed=1) as viewer:
            await viewer.look(2)
            shutil.rmtree(tmp_path)
            await viewer.look(2)
        tmp_path.write_text("a file is in its place")
        async with viewing(served, seed=2) as viewer:
            await viewer.look(2)

    with serving(logs=tmp_path, sessions=1) as served:
        asyncio.run(main(served))
        served.settled()
    tmp_path.unlink()


def test_no_clock_that_can_jump_is_asked():
    for path in Path(gateway.__file__).parent.glob("*.py"):
        if path.name not in ("journal.py", "events.py"):  # which say when something was
            assert not re.search(r"time\.time\(|datetime\.now", path.read_text()), path


def test_memory_comes_back():
    def used():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    async def crowd(served):
        async def one(seed):
            async with viewing(served, seed=seed) as viewer:
                await viewer.look(25)

        await asyncio.gather(*(one(seed) for seed in range(8)))

    with serving(engine={"fps": 200.0}) as served:
        megabytes = []
        for _ in range(5):
            asyncio.run(crowd(served))
            until(lambda: not served.desk.visits)
            megabytes.append(used())
        assert megabytes[-1] - megabytes[1] < 5, megabytes
        served.settled()


# ---- too many, and the end


def test_two_hundred_at_once_do_not_disturb_who_is_there():
    async def main(served):
        async with viewing(served, seed=1) as viewer:
            await viewer.look(3)

            async def watch():
                times = []
                for _ in range(60):
                    await viewer.look(1)
                    times.append(time.monotonic())
                return sorted(b - a for a, b in zip(times, times[1:], strict=False))

            async with httpx.AsyncClient(base_url=served.url, timeout=SOON) as client:
                watching = asyncio.create_task(watch())
                answers = await asyncio.gather(*(client.post("/api/sessions") for _ in range(200)))
            gaps = await watching
            assert gaps[int(0.95 * len(gaps))] < 0.4, gaps[-8:]
            codes = Counter(answer.status_code for answer in answers)
            assert codes == {201: 3, 202: 64, 503: 133}
            assert all(int(each.headers["retry-after"]) > 0 for each in answers if each.status_code == 503)

    with serving(sessions=4, ticket_s=2.0) as served:
        asyncio.run(main(served))
        served.settled()


ALONE = """
import json, sys
from pathlib import Path
from forcing.serve.gateway import run
from forcing.serve.mock import main
from forcing.serve.options import Options
if __name__ == "__main__":
    options = Options(port=0, logs=Path(sys.argv[1]), **json.loads(sys.argv[2]))
    sys.exit(run(options, main, lambda url: print(url, flush=True)))
"""


class Alone:
    """A gateway in a process of its own, and a group of its own."""

    def __init__(self, folder, **options):
        path = folder / "alone.py"
        path.write_text(ALONE)
        command, piped = [sys.executable, str(path), str(folder), json.dumps(options)], subprocess.PIPE
        self.process = subprocess.Popen(command, stdout=piped, stderr=piped, text=True, start_new_session=True)
        self.url = self.process.stdout.readline().strip()
        self.ws = self.url.replace("http", "ws") + "/ws"
        until(lambda: httpx.get(self.url + "/readyz").status_code == 200)

    def children(self):
        told = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(number) for number in told.split()]

    def end(self):
        out, err = self.process.communicate(timeout=SOON)
        return self.process.returncode, out + err


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_gateway_that_is_told_to_stop_lets_viewers_finish(tmp_path):
    async def main():
        async with viewing(alone, bye=False, seed=1) as viewer:
            await viewer.look(3)
            os.killpg(alone.process.pid, signal.SIGTERM)  # as a terminal or a service does; engines go on until the end
            await viewer.until("state", state="draining")
            async with httpx.AsyncClient() as client:
                assert (await client.get(alone.url + "/readyz")).status_code == 503
                assert (await client.post(alone.url + "/api/sessions")).status_code == 503
            await viewer.look(3)
            assert await viewer.closed() == wire.GOING_AWAY
            assert "recovering" not in [told.get("state") for told in viewer.told]

    alone = Alone(tmp_path, drain_s=0.5)
    children = alone.children()
    asyncio.run(main())
    assert alone.end() == (0, "")
    until(lambda: all(gone(pid) for pid in children))
    (journal,) = tmp_path.glob("*.jsonl")
    assert json.loads(journal.read_text().splitlines()[-1])["what"] == "end"


def test_without_viewers_it_stops_at_once(tmp_path):
    alone = Alone(tmp_path, drain_s=60.0)
    began = time.monotonic()
    alone.process.send_signal(signal.SIGTERM)
    assert alone.end() == (0, "") and time.monotonic() - began < 5


def test_engines_do_not_outlive_a_gateway_that_is_killed(tmp_path):
    alone = Alone(tmp_path)
    children = alone.children()
    assert len(children) >= 1
    alone.process.kill()
    alone.end()
    until(lambda: all(gone(pid) for pid in children))


def test_an_address_that_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError) as told:
            run(Options(port=port), lambda *_: None)
    assert told.value.filename == f"127.0.0.1:{port}"
