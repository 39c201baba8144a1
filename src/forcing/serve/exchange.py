"""What a viewer says becomes orders to the engine, and what the engine reports becomes what the viewer is told."""

import time
from typing import cast, get_args

import msgspec

from forcing.serve import journal, orders, saves, wire
from forcing.serve.admission import Desk
from forcing.serve.supervisor import Engine
from forcing.serve.visit import MOST_ASKS, Visit


class Refusal(Exception):
    """Of a control; told to the viewer as it is."""

    def __init__(self, code: wire.Code, message: str, *, id: int | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.told = wire.Wrong(code, message, retryable, id)


def obey(desk: Desk, visit: Visit, said: wire.Control) -> None:
    """Do what a viewer says. Refusal for what cannot be."""
    if visit.state == "closed":
        return
    if not isinstance(said, wire.Grant | wire.Ping):
        visit.used_at = desk.clock()
    match said:
        case wire.Ping(id=number):
            visit.tell(wire.Pong(number, time.monotonic_ns() // 1000))
        case wire.Grant():
            _grant(desk, visit, said)
        case wire.Begin():
            _begin(desk, visit, said)
        case wire.Bye():
            desk.close(visit, wire.NORMAL, "as was asked")
        case wire.Hello():
            raise Refusal("bad_message", "hello is said once, first of all")
        case _ if visit.begun is None:
            raise Refusal("not_begun", "say begin first")
        case _:
            _steer(desk, visit, said)


def _steer(
    desk: Desk, visit: Visit, said: wire.Ask | wire.Press | wire.Pause | wire.Back | wire.Fork | wire.Export
) -> None:
    match said:
        case wire.Ask():
            _ask(desk, visit, said)
        case wire.Press(id=event, held=held, tapped=tapped):
            known = () if desk.world is None else desk.world.keys
            if unknown := sorted({*held, *tapped} - {*known}):
                raise Refusal("bad_key", f"there is no key {unknown[0]!a}: {', '.join(known)}", id=event)
            desk.press(visit, event, held, tapped)
        case wire.Pause(on=on):
            visit.paused = on
            visit.journal.note(journal.Pause(on=on))
            visit.say(orders.Pause(visit.number, on))
            visit.stands("paused" if on else "live" if visit.engine is not None else "recovering")
        case wire.Back(frame=frame):
            _served(visit)
            desk.back(visit, frame)
            visit.stands(visit.state)
        case wire.Fork(id=number, frame=frame):
            _served(visit, number)
            other = desk.fork(visit)
            if other is None:
                raise Refusal("busy", "there is no room for another session", id=number, retryable=True)
            if frame is not None:
                desk.back(other, frame)
            visit.tell(wire.Ticket(number, other.ticket))
        case wire.Export():
            _export(visit, said)


def _export(visit: Visit, said: wire.Export) -> None:
    _served(visit, said.id)
    if visit.exporting is not None:
        raise Refusal("busy", f"a {visit.exporting[1].what} is being made already", id=said.id, retryable=True)
    visit.exports += 1
    visit.exporting = visit.exports, said
    visit.say(orders.Export(visit.number, visit.exports, said.what))


def _served(visit: Visit, number: int | None = None) -> None:
    if visit.engine is None:
        raise Refusal("busy", "the engine is being started again", id=number, retryable=True)


def _grant(desk: Desk, visit: Visit, said: wire.Grant) -> None:
    if said.age_ms is not None:
        desk.metrics.age.observe(said.age_ms / 1000)
    dry = visit.begun is not None and visit.out == 0 and not visit.slot
    more = visit.grant(said.chunks)
    if more and dry:
        desk.metrics.waited.observe(time.monotonic() - visit.dry_at)
    if more and visit.begun is not None:
        visit.say(orders.Grant(visit.number, more))


def _begin(desk: Desk, visit: Visit, said: wire.Begin) -> None:
    world = desk.world
    if world is not None and said.steps is not None and said.steps not in world.steps:
        raise Refusal("bad_steps", f"steps is {said.steps}: choose from {', '.join(map(str, world.steps))}")
    if world is not None and said.reality and not world.reality:
        said = msgspec.structs.replace(said, reality=False)
        visit.tell(wire.Warned("this world has no environment beside it"))
    prompt = _prompt(desk, said.prompt)
    image = None if said.image is None else desk.images.get(said.image)
    if said.image is not None and image is None:
        raise Refusal("bad_image", f"there is no image {said.image!a}: it may have been kept too long", retryable=True)
    save = None if said.save is None else desk.saves.get(said.save)
    if said.save is not None and save is None:
        raise Refusal("bad_save", f"there is no save {said.save!a}: it may have been kept too long", retryable=True)
    if save is not None and (said.reality or image is not None):
        raise Refusal("bad_message", "a save begins without an image, and has no reality beside it")
    visit.begun, visit.prompt, visit.image, visit.save = said, prompt, image, save
    visit.saved, visit.paused, visit.held, visit.shown = None, False, [], 0
    visit.asks.clear()
    desk.start(visit)
    visit.stands("starting")


def _ask(desk: Desk, visit: Visit, said: wire.Ask) -> None:
    text = _prompt(desk, said.text, said.id)
    if len(visit.asks) >= MOST_ASKS:
        raise Refusal("busy", f"{MOST_ASKS} prompts are waiting already", id=said.id, retryable=True)
    order = orders.Ask(visit.number, said.id, text, said.switch)
    visit.asks[said.id] = desk.clock(), order
    visit.journal.note(journal.Ask(event=said.id, prompt=text, switch=said.switch))
    visit.say(order)
    visit.tell(wire.Accepted(said.id))


def _prompt(desk: Desk, text: str | None, number: int | None = None) -> str | None:
    """Without what cannot be printed. Refusal for one that the world does not know."""
    if text is None:
        return None
    cleaned = "".join(letter for letter in text if letter.isprintable() or letter in "\n\t").strip()
    known = [] if desk.world is None else desk.world.prompts
    if known and cleaned not in known:
        raise Refusal("bad_prompt", f"prompt is {cleaned[:100]!a}: choose from {', '.join(known)}", id=number)
    return cleaned


def heard(desk: Desk, engine: Engine, report: orders.AnyReport) -> None:
    """Hand on what an engine reports."""
    if isinstance(report, orders.Ready):
        desk.world = report.world
        desk.place()
    elif not isinstance(report, orders.Beat | orders.Unfit):
        visit = desk.visits.get(report.session)
        if visit is not None and visit.engine is engine:
            _reported(desk, visit, report)


_OfSession = (
    orders.Frames | orders.Applied | orders.Went | orders.Saved | orders.Exported | orders.Refused | orders.Failed
)


def _reported(desk: Desk, visit: Visit, report: _OfSession) -> None:
    match report:
        case orders.Frames():
            visit.journal.note(_chunk(report))
            frames = 1 if desk.world is None else desk.world.frames
            if not visit.show(report, frames):
                desk.metrics.dropped.labels("generation").inc()
        case orders.Applied():
            _applied(desk, visit, report)
        case orders.Went():
            if report.generation == visit.generation:
                visit.prompt = report.prompt
                visit.tell(wire.Went(report.frame, report.prompt, report.generation))
        case orders.Saved():
            if report.generation == visit.generation:
                visit.saved = report
        case orders.Exported():
            _exported(desk, visit, report)
        case orders.Refused():
            visit.asks.pop(-1 if report.event is None else report.event, None)
            visit.journal.note(journal.Refused(event=report.event, code=report.code))
            visit.tell(wire.Wrong(_code(report.code), report.message, id=report.event))
        case orders.Failed():
            desk.metrics.failures.labels(_code(report.code)).inc()
            engine = visit.engine
            if report.code == "busy" and engine is not None:
                desk.metrics.memory.inc()
                engine.slots = max(1, len(engine.taken) - 1)  # it holds those that are left, and no more for a while
                engine.shrunk_at = desk.clock()
            desk.fail(visit, _code(report.code), report.message)


def _applied(desk: Desk, visit: Visit, report: orders.Applied) -> None:
    if report.event not in visit.asks:
        return
    at, order = visit.asks.pop(report.event)
    visit.prompt = order.prompt
    desk.metrics.applied.observe(desk.clock() - at)
    visit.tell(wire.Applied(report.event, report.frame, report.generation))


def _chunk(made: orders.Frames) -> journal.Chunk:
    return journal.Chunk(
        generation=made.generation,
        latent=made.latent,
        event=made.event,
        keys=made.keys,
        asked=made.asked,
        woken=made.woken,
        settled=made.settled,
        shared=made.shared,
        pictures=made.pictures,
    )


def _exported(desk: Desk, visit: Visit, report: orders.Exported) -> None:
    if visit.exporting is None or visit.exporting[0] != report.request or visit.begun is None:
        return
    said, visit.exporting = visit.exporting[1], None
    if not report.data:
        visit.tell(wire.Wrong("failed", report.message, retryable=True, id=said.id))
        return
    data, kind = report.data, "mp4"
    if said.what == "session" and visit.engine is not None and desk.world is not None:
        known = (desk.world.name, visit.engine.digest, visit.prompt, visit.begun.seed, visit.begun.steps)
        data, kind = saves.pack(saves.Save(saves.FORMAT, *known, data)), "forcing"
    visit.tell(wire.Exported(said.id, f"api/exports/{desk.exports.put(data)}.{kind}"))


def _code(code: str) -> wire.Code:
    return cast(wire.Code, code) if code in get_args(wire.Code) else "failed"
