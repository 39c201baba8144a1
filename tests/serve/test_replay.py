"""A session that was played through the gateway, with a real world, is made again from its log, to the byte."""

import asyncio
import io
import json
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve_toys import Viewer, serving, socket, ticket, until

from forcing import cli
from forcing.cli import play
from forcing.serve import host, journal, replay
from forcing.world import World

SHIPPED = Path(host.__file__).parents[1] / "shipped/rooms/dmd-2step"
TOLD = {"world": str(SHIPPED), "fps": 100.0, "reality": "rooms", "batch": 4}


class Player(Viewer):
    """Keeps what it is shown, by generation and latent frame."""

    def __init__(self, socket):
        super().__init__(socket)
        self.kept = {}

    async def _seen(self, picture):
        shown = np.array(Image.open(io.BytesIO(picture.image)))
        assert self.kept.setdefault((picture.generation, picture.latent), shown) is shown
        await self.say("grant", chunks=1)
        return picture, picture

    async def enter(self, token):
        await self.say("hello", ticket=token)
        self.name = (await self.until("ready"))["session"]
        await self.until("state")

    async def leave(self):
        await self.say("bye")
        await self.closed()


def picture():
    data = io.BytesIO()
    Image.fromarray(np.arange(56 * 56 * 3, dtype=np.uint8).reshape(56, 56, 3)).save(data, "PNG")
    return data.getvalue()


async def played(served):
    """Every kind of control; two players, the second one forked from the first."""
    async with AsyncExitStack() as stack:
        first = Player(await stack.enter_async_context(socket(served)))
        await first.enter(await ticket(served))
        await first.begin(prompt="four rooms", seed=5)
        await first.say("keys", id=1, held=["forward"])
        await first.look(5)
        await first.say("keys", id=2, held=["left"])
        await first.say("keys", id=3, held=[], tapped=["right", "forward"])
        await first.look(5)
        await first.say("prompt", id=4, text="lava crossing", switch="cut")
        await first.until("applied")
        await first.look(4)
        beside = [asyncio.create_task(crowd(served, seed)) for seed in (8, 9)]
        await first.look(30)
        for engine in served.desk.engines:
            engine.life.body.kill()
        await first.until("state", state="live")
        await first.look(4)
        await first.say("keys", id=5, held=["right"])
        await first.say("back", frame=500)
        await first.until("error")
        await first.look(5)
        await first.say("back", frame=[*first.kept][-1][1] - 3)
        await first.until("state", generation=4)
        await first.look(5)
        await first.say("fork", id=6)
        token = (await first.until("ticket"))["ticket"]
        second = Player(await stack.enter_async_context(socket(served)))
        await second.enter(token)
        await second.say("grant", chunks=2)
        await second.say("keys", id=1, held=["left"])
        await second.look(5)
        await second.say("prompt", id=2, text="multi room", switch="recache")
        await second.until("applied")
        await second.look(4)
        await second.leave()
        await first.say("begin", prompt="multi room", seed=6, steps=4, image=served.image)
        await first.until("state", generation=5)
        await first.look(4)
        await first.say("begin", prompt="multi room", seed=7, reality=True)
        await first.until("state", generation=6)
        await first.look(4)
        await first.leave()
        for each in beside:
            each.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    return first, second


async def crowd(served, seed):
    """Someone else, whose passes are shared."""
    async with socket(served) as one:
        player = Player(one)
        await player.enter(await ticket(served))
        await player.begin(prompt="four rooms", seed=seed)
        try:
            while True:
                await player.look(1)
        finally:
            await player.leave()


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The folder of logs, and the two players."""
    folder = tmp_path_factory.mktemp("logs")
    with serving(play.engine, engine=TOLD, logs=folder) as served:
        until(lambda: served.get("/readyz").status_code == 200)
        served.image = served.post("/api/images", content=picture()).json()["id"]
        players = asyncio.run(asyncio.wait_for(played(served), 60))
        until(lambda: len([*folder.glob("*.jsonl")]) == 4)
    return folder, players


@pytest.fixture(scope="module")
def studio():
    made = replay.Studio.open(host.Options(**TOLD), play.plans_of)
    yield made
    made.close()


def again(studio, path):
    for number in list(studio.sessions):
        studio._close(number)
    one = replay.Replay(journal.Log.read(path), studio)
    return one, list(one.run())


@pytest.mark.parametrize("which", [0, 1])
def test_a_session_is_made_again_to_the_byte(session, studio, which):
    folder, players = session
    one, made = again(studio, folder / f"{players[which].name}.jsonl")
    shown = {(each.generation, each.latent): each.pictures[0] for each in made}
    kept = players[which].kept
    assert len(kept) > (60, 8)[which] and len({generation for generation, _ in kept}) == (6, 1)[which]
    for key, expected in kept.items():
        assert np.array_equal(shown[key], expected), key
    assert len(made) == one.log.chunks and not one.differ and all(each.same for each in made)


def test_the_session_was_one_of_many(session):
    """Or nothing would be shown by its being the same."""
    chunks = [line for line in lines(session) if line["what"] == "chunk"]
    assert any(max(line["shared"]) > 1 for line in chunks if line.get("shared"))
    assert any("settled" in line for line in chunks) and any("woken" in line for line in chunks)
    assert any(1 in line["shared"] for line in chunks if "shared" in line)


def test_what_each_chunk_was_told_is_known(session, studio):
    folder, (first, _) = session
    _, made = again(studio, folder / f"{first.name}.jsonl")
    of = {generation: [each for each in made if each.generation == generation] for generation in range(1, 7)}
    assert [*dict.fromkeys(each.prompt for each in of[1])] == ["four rooms", "lava crossing"]
    keys = Counter(key for each in of[1] for key in each.keys)
    assert keys["right"] == 1 and keys["left"] == 1 and keys["forward"] > 3
    assert of[3][0].latent == of[2][-1].latent + 1  # where one could not go back, it went on
    assert of[4][0].latent < of[3][-1].latent and of[4][-1].keys == ["right"]
    assert of[5][0].keys is None  # the image itself


def lines(session):
    folder, (first, _) = session
    return [json.loads(line) for line in (folder / f"{first.name}.jsonl").read_text().splitlines()]


def put(path, said):
    path.write_text("".join(json.dumps(line) + "\n" for line in said))
    return path


def where(said, what, nth=0):
    return [n for n, line in enumerate(said) if line["what"] == what][nth]


def test_other_keys_make_other_pictures(session, studio, tmp_path):
    said = lines(session)
    said = [*said[: where(said, "ask")], said[-1]]
    for line in said:
        if "keys" in line:
            line["keys"] = ["left"]
    one, made = again(studio, put(tmp_path / "other.jsonl", said))
    kept = session[1][0].kept
    assert any(not np.array_equal(each.pictures[0], kept[1, each.latent]) for each in made)
    assert one.differ and one.differ == [each.latent for each in made if not each.same]


def dropped(what, nth=0):
    def change(said):
        del said[where(said, what, nth)]

    return change


def changed(what, nth=0, **fields):
    def change(said):
        said[where(said, what, nth)].update(fields)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            dropped("chunk", 3),
            r"line \d+: its chunk begins with latent frame 4, and here it would be 3: lines are missing",
        ),
        (dropped("back", 1), "of generation 4, which no line before begins"),
        (changed("open", prompt="no such"), "'no such'.*of another world, or damaged"),
        (changed("open", 2, steps=3, image=None), "steps is 3.*of another world"),
        (changed("chunk", 2, keys=["jump"]), "no key 'jump' here: it is of another world"),
        (changed("chunk", 2, asked=["no such", "cut"]), "'no such'.*of another world, or damaged"),
        (changed("chunk", 2, shared=[1]), "made in fewer passes than here"),
        (changed("chunk", 5, latent=77), "latent frame 77"),
        (changed("open", 2, image="0" * 64), "a file that is not there"),
        (changed("open", 1, saved=[1, 7777]), "latent frame 7777 of generation 1, which no line before makes"),
    ],
)
def test_what_does_not_fit_is_named(session, studio, tmp_path, change, told):
    said = lines(session)
    change(said)
    with pytest.raises(ValueError, match=told):
        again(studio, put(tmp_path / "changed.jsonl", said))


def test_a_fork_needs_the_log_of_the_other(session, studio, tmp_path):
    folder, (_, second) = session
    path = tmp_path / f"{second.name}.jsonl"
    path.write_bytes((folder / path.name).read_bytes())
    with pytest.raises(ValueError, match="it is a fork of a session whose log is not there"):
        again(studio, path)


def test_an_image_that_was_changed_is_named(session, studio, tmp_path):
    said = lines(session)
    (tmp_path / f"{said[where(said, 'open', 2)]['image']}.png").write_bytes(b"another")
    with pytest.raises(ValueError, match="is not the file that the session began with"):
        again(studio, put(tmp_path / "one.jsonl", said))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "not a session's log from its beginning"),
        (
            b'{"what": "press", "at": 0, "event": 1, "held": [], "tapped": []}\n',
            "not a session's log from its beginning",
        ),
        (b"\xff\n", "line 1: not a line"),
        (
            b'{"what": "open", "generation": 1, "prompt": null, "seed": 1, "engine": {"told": {}}}\n{"what": "jump"}\n',
            "line 2: not a",
        ),
        (b'{"what": "open", "at": 0, "generation": 1, "prompt": null, "seed": -1}\n', "line 1: not a line.*seed"),
        (b"[" * 100_000 + b"\n", "line 1: not a line"),
    ],
)
def test_what_is_no_log_is_named(tmp_path, text, told):
    path = tmp_path / "one.jsonl"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=told):
        journal.Log.read(path)


def run(*args):
    return cli.main(["replay", *map(str, args)])


def test_the_command_writes_a_film(session, tmp_path, capsys):
    folder, (_, second) = session
    out = tmp_path / "film.gif"
    assert run(folder / f"{second.name}.jsonl", "--out", out) == 0
    said = capsys.readouterr().out
    assert f"wrote {out}" in said and "pictures of 56x56" in said
    with Image.open(out) as film:
        assert film.n_frames > 5 and film.size == (448, 448)


def test_the_command_names_what_is_wrong(session, tmp_path, capsys):
    folder, (first, _) = session
    whole = (folder / f"{first.name}.jsonl").read_bytes()
    path = tmp_path / "one.jsonl"
    path.write_bytes(whole[: whole.index(b'"chunk"', 900) + 3])
    assert run(path) == 2 and "is cut" in capsys.readouterr().err
    assert run(path, "--cut") == 0
    assert run(path, "--cut", "--out", tmp_path / "one.avi") == 2 and ".avi" in capsys.readouterr().err
    said = lines(session)
    told = {"world": str(SHIPPED)}
    said[0]["engine"] = {"told": told, "world": "0" * 64}
    assert run(put(path, said)) == 2 and "of another world" in capsys.readouterr().err
    said[0]["engine"] = {"told": {**told, "fps": 5.0}, "world": World.load(SHIPPED).digest, "machine": "an abacus"}
    capsys.readouterr()
    assert run(put(path, [*said[: where(said, "ask")], said[-1]])) == 0
    assert "made with an abacus" in (said_ := capsys.readouterr().out) and "as they were shown, to the bit" in said_
    said[0]["engine"] = {"told": {"world": str(tmp_path / "gone")}}
    assert run(put(path, said)) == 2 and "is not there: give --world" in capsys.readouterr().err
    assert (
        run(put(path, [said[0], said[-1]]), "--world", SHIPPED) == 2 and "nothing was shown" in capsys.readouterr().err
    )
    assert run(tmp_path / "none.jsonl") == 2
