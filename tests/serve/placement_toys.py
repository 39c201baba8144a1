"""Ray as far as placement knows it: one whose workers say what a test wants, and one whose workers are threads here.

As a program, it is the command that places workers: `placement_toys.py toy|ray DRAIN_S`.
"""

import concurrent.futures
import signal
import sys
from types import SimpleNamespace

from forcing.serve import mock, placement
from forcing.serve.options import Options
from forcing.serve.placement import Plan, Status, Worker


class RayError(Exception):
    pass


class ActorDiedError(RayError):
    pass


EXCEPTIONS = SimpleNamespace(RayError=RayError, ActorDiedError=ActorDiedError)


class Actor:
    """says: its status, an error, or None while it does not answer. over: its gateway has stopped."""

    def __init__(self, args):
        self.args, self.says, self.over = args, None, False
        self.asked, self.drained, self.killed = 0, False, False
        self.status = SimpleNamespace(remote=lambda: Answer(self, "status"))
        self.drain = SimpleNamespace(remote=lambda: Answer(self, "drain"))


class Answer:
    def __init__(self, actor, what):
        self.actor, self.what = actor, what
        actor.asked += what == "status"
        actor.drained |= what == "drain"

    @property
    def there(self):
        return self.actor.over if self.what == "drain" else self.actor.says is not None


class Made:
    def __init__(self, begin):
        self.begin, self.wanted = begin, None

    def options(self, **wanted):
        self.wanted = wanted
        return SimpleNamespace(remote=self.begin)


class Told:
    """Ray whose time passes only while somebody waits. at: what happens then, by time."""

    exceptions = EXCEPTIONS

    def __init__(self):
        self.now, self.actors, self.at = 100.0, [], {}

    def clock(self):
        return self.now

    def remote(self, kind):
        assert kind is Worker
        self.made = Made(self.begin)
        return self.made

    def begin(self, *args):
        self.actors.append(Actor(args))
        return self.actors[-1]

    def wait(self, answers, num_returns, timeout):
        assert len(set(answers)) == len(answers) == num_returns > 0
        if not all(each.there for each in answers):
            self.now += timeout
            for when in [when for when in self.at if when <= self.now]:
                self.at.pop(when)()
        return [each for each in answers if each.there], [each for each in answers if not each.there]

    def get(self, answer):
        assert answer.there and answer.what == "status"
        if isinstance(answer.actor.says, Exception):
            raise answer.actor.says
        return answer.actor.says

    def kill(self, actor, no_restart):
        assert no_restart and not actor.killed
        actor.killed = True


class Threads:
    """Ray whose actors live in threads of this process. Like the real one, it takes SIGTERM for itself."""

    exceptions = EXCEPTIONS

    def __init__(self):
        self.pool = concurrent.futures.ThreadPoolExecutor()

    def init(self, **_where):
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))

    def shutdown(self):
        self.pool.shutdown()

    def remote(self, kind):
        def begin(*args):
            actor = kind(*args)
            calls = {name: getattr(actor, name) for name in ("status", "drain")}
            bound = {
                name: SimpleNamespace(remote=lambda call=call: self.pool.submit(call)) for name, call in calls.items()
            }
            return SimpleNamespace(actor=actor, **bound)

        return Made(begin)

    def wait(self, answers, num_returns, timeout):
        done, rest = concurrent.futures.wait(answers, timeout)
        return list(done), list(rest)

    def get(self, answer):
        return answer.result()

    def kill(self, actor, no_restart):
        actor.actor._begun.wait()
        actor.actor.server.leave()


def ready(number, free=4, taken=0, queue=0, newest=0):
    return Status("ready", f"http://10.0.0.{number}:8000", taken, free, queue, newest)


def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if sys.argv[1] == "toy":
        sys.modules["ray"] = Threads()
    options = Options(port=0, sessions=2, drain_s=float(sys.argv[2]), in_process=sys.argv[1] == "toy", events=True)
    told = placement.run("local", options, Plan(cpus=0.5), mock.main, say, lambda *rest: say("leaving", *rest))
    sys.exit(told)
