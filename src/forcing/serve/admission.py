"""Who may come in, who waits, which engine serves whom, and when a session is over."""

import secrets
import time
from collections.abc import Callable

from forcing.serve import events, journal, orders, wire
from forcing.serve.limits import Shelf
from forcing.serve.metrics import Metrics
from forcing.serve.options import Options
from forcing.serve.supervisor import Engine
from forcing.serve.visit import Visit

MIB = 1 << 20
KEPT_S = 600.0  # what was uploaded, and what is to be fetched
WARN_S = 30.0  # before a session is over
SUSPECT, MOST_LOSSES = 2, 3  # engines that a session may lose one after another: it may be the reason
TRIED_S = 3.0  # for which a session that is suspected is served before the next one is


class Full(Exception):
    """No session can be begun now. retry_s: when to ask again. code: of `wire.Code`."""

    def __init__(self, message: str, retry_s: int, code: wire.Code = "busy") -> None:
        super().__init__(message)
        self.retry_s, self.code = retry_s, code


class Desk:
    """All sessions of a gateway. engines: where they can be served."""

    def __init__(self, options: Options, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self.options, self.metrics, self.clock = options, metrics, clock
        self.engines: list[Engine] = []
        self.visits: dict[int, Visit] = {}
        self.tickets: dict[str, Visit] = {}
        self.images, self.saves, self.exports = (Shelf(most * MIB, KEPT_S, clock) for most in (128, 128, 256))
        self.draining = False
        self.world: wire.World | None = None
        self.name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._number, self._turn, self._freed_at = 0, 0.0, clock()

    @property
    def queue(self) -> list[Visit]:
        """Who waits, the first one first."""
        return [visit for visit in self.visits.values() if visit.state == "queued"]

    def enter(self) -> Visit:
        """A new session, which is queued if it cannot be served at once. Full where even the queue is."""
        broken = [engine.why for engine in self.engines if engine.state == "broken"]
        if self.draining:
            raise Full("the gateway stops: nothing new is begun", 30)
        if len(broken) == len(self.engines):
            raise Full(f"no engine works: {broken[0]}", 60, "engine")
        if len(self.queue) >= self.options.queue + sum(engine.free for engine in self.engines):
            raise Full(f"{len(self.queue)} are waiting already", max(2, round(self.eta(len(self.queue)))))
        visit = self._new()
        events.tell("session asked for", session=visit.name, queue=len(self.queue))
        self.place()
        return visit

    @property
    def loads(self) -> bool:
        """Whether nobody can be served yet, as no engine is ready."""
        return not any(engine.state == "warm" for engine in self.engines)

    def position(self, visit: Visit) -> int:
        """In the queue, from 1; 0 for who is served."""
        return self.queue.index(visit) + 1 if visit.state == "queued" else 0

    def eta(self, position: int) -> float:
        """Seconds until it is the turn of a position, going by those before; 0.0 where nobody has left yet."""
        return round(position * self._turn, 1)

    def place(self) -> None:
        """Serve who waits, as far as there is room: first those who lost their engine."""
        waiting = [visit for visit in self.visits.values() if visit.engine is None]
        for visit in sorted(waiting, key=lambda visit: (visit.state == "queued", visit.number)):
            tried = [engine for engine in self.engines if engine.free and not self._tries(engine, visit)]
            if tried:
                self._seat(visit, max(tried, key=lambda engine: engine.free))

    def _tries(self, engine: Engine, visit: Visit) -> bool:
        """Whether it serves another that is suspected, as this one is: if it is lost, one should be to blame."""
        served = (self.visits[number].losses for number in engine.taken)
        return visit.losses >= SUSPECT and any(losses >= SUSPECT for losses in served)

    def start(self, visit: Visit) -> None:
        """Begin, begin anew, or go on from what was saved, as a new generation."""
        begun, saved = visit.begun, visit.saved
        visit.anew()
        if begun is None or visit.engine is None:
            return
        data = visit.save if saved is None else saved.data
        image = visit.image if saved is None else None
        visit.journal.note(
            journal.Open(
                generation=visit.generation,
                prompt=visit.prompt,
                seed=begun.seed,
                engine=self._served(visit.engine),
                steps=begun.steps,
                image=visit.journal.beside(image, "png"),
                save=visit.journal.beside(data if saved is None else None, "session"),
                reality=begun.reality,
                saved=None if saved is None else (saved.generation, saved.frame),
            )
        )
        numbers = (visit.number, visit.generation, visit.prompt, begun.seed, begun.steps)
        walk = orders.Walk(visit.prompt, begun.seed) if saved is None else saved.beside
        visit.say(orders.Open(*numbers, image, data, walk if begun.reality else None))
        for _, ask in visit.asks.values():
            visit.say(ask)
        if visit.held:
            self.press(visit, visit.event, visit.held, [])
        if visit.paused:
            visit.say(orders.Pause(visit.number, True))

    def press(self, visit: Visit, event: int, held: list[str], tapped: list[str]) -> None:
        visit.event, visit.held = event, held
        visit.journal.note(journal.Press(event=event, held=held, tapped=tapped))
        visit.say(orders.Press(visit.number, event, held, tapped))

    def back(self, visit: Visit, frame: int) -> None:
        """Go back to before a latent frame, as a new generation."""
        visit.anew()
        visit.journal.note(journal.Back(frame=frame, generation=visit.generation))
        visit.say(orders.Back(visit.number, visit.generation, frame))

    def fork(self, visit: Visit) -> Visit | None:
        """A session that goes on from where this one is, or None where its engine has no room."""
        engine = visit.engine
        if engine is None or not engine.free or self.draining:
            return None
        other = self._new()
        other.begun, other.prompt, other.saved = visit.begun, visit.prompt, visit.saved
        other.image, other.save = visit.image, visit.save
        other.generation = visit.generation
        other.journal.note(journal.Fork(of=visit.name, generation=visit.generation, engine=self._served(engine)))
        visit.journal.note(journal.Forked(to=other.name))
        self._seat(other, engine, opened=True)
        events.tell("session forked", session=other.name, of=visit.name)
        engine.say(orders.Fork(visit.number, other.number))
        return other

    def lost(self, engine: Engine) -> None:
        """An engine is gone: its sessions go on where there is room, or when it is back."""
        visits = [self.visits[number] for number in sorted(engine.taken)]
        engine.taken.clear()
        suspects = [visit for visit in visits if visit.losses >= SUSPECT] or visits  # who is tried bears the blame
        for visit in visits:
            visit.engine = None
            if visit.exporting is not None:
                said, visit.exporting = visit.exporting[1], None
                visit.tell(wire.Wrong("failed", "the engine was lost meanwhile", retryable=True, id=said.id))
            visit.losses += visit in suspects
            if visit.losses >= MOST_LOSSES:
                self.fail(visit, "engine", f"{visit.losses} engines were lost one after another: {engine.why}")
            elif visit.begun is not None:
                visit.stands("recovering", f"the engine is started again ({engine.why})")
        if all(each.state == "broken" for each in self.engines):
            for visit in list(self.visits.values()):
                self.fail(visit, "engine", f"no engine works: {engine.why}")
        self.place()

    def fail(self, visit: Visit, code: wire.Code, message: str, close: int = wire.FAILED) -> None:
        """Close a session, telling why."""
        say = events.tell if code == "expired" else events.warn
        say("session failed", session=visit.name, code=code, why=message)
        visit.tell(wire.Wrong(code, message, retryable=code in ("busy", "engine")))
        self.close(visit, close, message)

    def close(self, visit: Visit, code: int, reason: str) -> None:
        """A session is over; nothing happens if it is already."""
        if visit.state == "closed":
            return
        lived = round(self.clock() - visit.born, 1)
        events.tell("session over", session=visit.name, why=reason, seconds=lived, pictures=visit.pictures)
        visit.stands("closed", reason)
        visit.journal.note(journal.End(reason=reason))
        visit.journal.end()
        self.visits.pop(visit.number)
        self.tickets.pop(visit.ticket, None)
        self.tickets.pop(visit.resume, None)
        if visit.engine is not None:
            visit.say(orders.Close(visit.number))
            visit.engine.taken.discard(visit.number)
            now = self.clock()
            took = min(600.0, now - self._freed_at)
            self._turn, self._freed_at = 0.8 * self._turn + 0.2 * took if self._turn else took, now
        visit.engine = None
        if visit.tether is not None:
            visit.tether.leave(code, reason[:100])
        self.place()

    def tick(self) -> None:
        """End leases that are over, and warn of those that soon will be."""
        now, options = self.clock(), self.options
        for engine in self.engines:
            if engine.slots < engine.most and now - engine.shrunk_at > options.steady_s:
                engine.slots, engine.shrunk_at = engine.slots + 1, now
        for visit in self.visits.values():
            patience = TRIED_S if visit.losses >= SUSPECT else options.steady_s
            if visit.losses and visit.engine is not None and now - visit.placed_at > patience:
                visit.losses = 0
        self.place()
        waits = bool(self.queue)
        for visit in list(self.visits.values()):
            if visit.tether is None:
                limit = options.detach_s if visit.greeted else options.ticket_s
                if now - visit.touched > limit:
                    self.fail(visit, "expired", f"nobody came for {limit:g} s")
                continue
            if not waits:  # nobody needs the place
                visit.warned = False
                continue
            idle, life = now - visit.used_at - options.idle_s, now - visit.born - options.lifetime_s
            why = f"{options.idle_s:g} s without a control" if idle > life else f"{options.lifetime_s:g} s in all"
            left, soon = -max(idle, life), min(WARN_S, options.idle_s / 2, options.lifetime_s / 2)
            if left <= 0 and visit.warned and now - visit.warned_at >= soon:
                self.fail(visit, "expired", f"the session has ended: {why}", wire.NORMAL)
            elif left <= soon and not visit.warned:
                visit.warned_at = now
                visit.tell(wire.Warned(f"others wait: the session ends in {max(soon, left):.0f} s, after {why}"))
            visit.warned = left <= soon
        for shelf in (self.images, self.saves, self.exports):
            shelf.sweep()

    def _served(self, engine: Engine) -> journal.Engine:
        return journal.Engine(self.options.told, engine.digest, engine.machine)

    def _new(self) -> Visit:
        self._number += 1
        name = f"{self.name}-{self._number}"
        visit = Visit(self._number, name, self.clock(), journal.Journal(self.options.logs, name))
        self.visits[visit.number] = self.tickets[visit.ticket] = self.tickets[visit.resume] = visit
        return visit

    def _seat(self, visit: Visit, engine: Engine, *, opened: bool = False) -> None:
        now = self.clock()
        engine.taken.add(visit.number)
        visit.engine, visit.placed_at = engine, now
        waited = round(now - visit.born, 2) if visit.state == "queued" else 0.0
        events.tell("session placed", session=visit.name, engine=engine.number, waited_s=waited)
        if visit.state == "queued":
            self.metrics.queued.observe(now - visit.born)
            visit.state = "starting"
            visit.born = visit.touched = visit.used_at = now
        if visit.begun is not None and not opened:
            if visit.saved is None and visit.shown:
                visit.tell(wire.Warned("the session was lost with its engine, and begins anew"))
            self.start(visit)
            visit.stands("paused" if visit.paused else "recovering")
