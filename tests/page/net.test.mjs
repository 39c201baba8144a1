// Admission and the socket, against a gateway of a few lines.

import assert from "node:assert/strict";
import { test } from "node:test";

const page = new URL("../../src/forcing/serve/page/", import.meta.url);
const { Entrance, Link, Refused } = await import(new URL("net.js", page));
const { pack } = await import(new URL("protocol.js", page));

const answer = (status, body, headers = {}) =>
  new Response(JSON.stringify(body), { status, headers: { "content-type": "application/json", ...headers } });

function entrance(answers, token = null) {
  const asked = [];
  const get = async (url, options) => {
    asked.push({ path: url.pathname, ...options });
    const next = answers.shift();
    if (next instanceof Error) throw next;
    return next;
  };
  return { asked, entrance: new Entrance("http://here/", token, get) };
}

async function admitted(answers, token) {
  const said = [];
  const { asked, entrance: at } = entrance(answers, token);
  const on = {
    queued: (position, eta) => said.push(["queued", position, eta]),
    full: (ms) => said.push(["full", ms]),
    away: (ms) => said.push(["away", ms]),
  };
  const place = await at.admit(on, async () => {});
  return { place, said, asked };
}

test("a place at once", async () => {
  const { place, asked } = await admitted([answer(201, { ticket: "a", url: "ws" })], "secret");
  assert.deepEqual(place, { ticket: "a", url: "ws" });
  assert.equal(asked[0].headers.Authorization, "Bearer secret");
});

test("the queue is told position by position", async () => {
  const { place, said, asked } = await admitted([
    answer(202, { ticket: "a", position: 2, eta_s: 9 }),
    answer(200, { ticket: "a", position: 1, eta_s: 4 }),
    answer(200, { ticket: "a", url: "ws" }),
  ]);
  assert.equal(place.url, "ws");
  assert.deepEqual(said, [["queued", 2, 9], ["queued", 1, 4]]);
  assert.equal(asked[2].path, "/api/sessions/a");
});

test("who is turned away, forgotten or not answered asks again", async () => {
  const { said, place } = await admitted([
    answer(503, { message: "full" }, { "Retry-After": "7" }),
    answer(202, { ticket: "a", position: 1 }),
    answer(404, {}),
    new TypeError("no network"),
    answer(201, { ticket: "b", url: "ws" }),
  ]);
  assert.equal(place.ticket, "b");
  assert.deepEqual(said.map(([what]) => what), ["full", "queued", "away"]);
  assert.ok(said[0][1] >= 7000);
});

test("a refusal is told", async () => {
  await assert.rejects(admitted([answer(401, { message: "no token" })]), (error) => {
    assert.ok(error instanceof Refused);
    assert.equal(error.status, 401);
    return error.message === "no token";
  });
});

// ---- the socket

class Socket {
  constructor(url) {
    this.url = url;
    this.said = [];
    Socket.all.push(this);
  }

  send(text) {
    this.said.push(JSON.parse(text));
  }

  close() {
    this.closed = true;
  }

  tell(message) {
    this.onmessage({ data: JSON.stringify(message) });
  }

  show(numbers) {
    const some = { made_us: 0, event: 0, took_us: numbers.frame, mark: 1, latent: numbers.frame };
    this.onmessage({ data: pack({ ...some, ...numbers, image: new Uint8Array(1) }) });
  }

  of(type) {
    return this.said.filter((message) => message.type === type);
  }
}

const READY = { type: "ready", session: "s", resume: "again", world: { chunk: 1 }, protocol: 1 };

function linked(t) {
  t.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  Socket.all = [];
  const heard = [];
  const on = {};
  for (const what of ["up", "down", "over", "told", "picture"]) on[what] = (value) => heard.push([what, value]);
  const link = new Link(on, (url) => new Socket(url));
  link.start("ws://here/ws", "ticket");
  const [socket] = Socket.all;
  socket.onopen();
  const names = () => heard.map(([what]) => what);
  return { link, socket, heard, names, pictures: () => heard.filter(([what]) => what === "picture").map(([, p]) => p) };
}

test("hello comes first, and nothing is granted before something begins", (t) => {
  const { link, socket } = linked(t);
  assert.deepEqual(socket.said, [{ type: "hello", ticket: "ticket", protocol: 1 }]);
  assert.ok(!link.say("pause", { on: true }));
  socket.tell(READY);
  socket.tell({ type: "state", state: "starting", generation: 0 });
  link.say("begin", { seed: 3 });
  assert.equal(socket.of("grant").length, 0);
  socket.tell({ type: "state", state: "starting", generation: 1 });
  assert.deepEqual(socket.of("grant").map(({ chunks }) => chunks), [2]);
});

test("pictures of another generation are counted and not shown", (t) => {
  const { link, socket, pictures } = linked(t);
  socket.tell(READY);
  socket.show({ generation: 1, frame: 0 });
  socket.tell({ type: "state", state: "live", generation: 2 });
  socket.show({ generation: 1, frame: 1 });
  socket.show({ generation: 2, frame: 0 });
  assert.deepEqual(pictures().map(({ generation, frame }) => [generation, frame]), [[2, 0]]);
  assert.equal(link.stale, 2);
  const [picture] = pictures();
  assert.ok(link.current(picture));
  socket.tell({ type: "state", state: "live", generation: 3 });
  assert.ok(!link.current(picture));
});

test("each chunk that is shown grants another, but not between two generations", (t) => {
  const { link, socket, pictures } = linked(t);
  socket.tell(READY);
  socket.tell({ type: "state", state: "live", generation: 1 });
  socket.show({ generation: 1, frame: 0 });
  link.showed(pictures()[0], false, 12);
  assert.deepEqual(socket.of("grant").at(-1), { type: "grant", chunks: 1, frame: 0, age_ms: 12 });
  link.say("back", { frame: 0 });
  socket.show({ generation: 1, frame: 1 });
  link.showed(pictures()[1], false, 12);
  assert.equal(socket.of("grant").length, 2);
  socket.tell({ type: "error", code: "not_kept", message: "gone" });
  assert.equal(socket.of("grant").length, 3);
});

test("who is heard is answered, where timers are slowed", (t) => {
  let now = 1000;
  t.mock.method(performance, "now", () => now);
  const { socket } = linked(t);
  socket.tell(READY);
  const pings = () => socket.of("ping").length;
  assert.equal(pings(), 1);
  const stats = { type: "stats", fps: 10, pass_ms: 1, sessions: 1 };
  for (const [at, sent] of [[1900, 1], [3000, 2], [4000, 2], [5001, 3], [60_000, 4]]) {
    now = at;
    socket.tell(stats);
    assert.equal(pings(), sent, `${at}`);
  }
  assert.ok(!socket.closed);
});

test("a lost socket is opened again, with the session's own token", (t) => {
  const { link, socket, names } = linked(t);
  socket.tell(READY);
  socket.onclose({ code: 1006, reason: "" });
  assert.equal(names().at(-1), "down");
  assert.ok(!link.say("pause", { on: true }));
  t.mock.timers.tick(500);
  const again = Socket.all[1];
  again.onopen();
  assert.equal(again.said[0].ticket, "again");
  again.tell(READY);
  again.tell({ type: "state", state: "live", generation: 1 });
  assert.deepEqual(again.of("grant").map(({ chunks }) => chunks), [2]);
  socket.tell({ type: "state", state: "closed", generation: 1 }); // the old one has no say
  assert.ok(!link.over);
});

test("what cannot be resumed is over", (t) => {
  for (const end of [
    (socket) => socket.tell({ type: "error", code: "bad_ticket", message: "who?" }),
    (socket) => socket.tell({ type: "state", state: "closed", generation: 1, message: "who?" }),
    (socket) => socket.onclose({ code: 1008, reason: "who?" }),
  ]) {
    const { link, socket, heard } = linked(t);
    socket.tell(READY);
    end(socket);
    assert.deepEqual(heard.at(-1), ["over", "who?"]);
    assert.ok(link.over);
    t.mock.timers.tick(60_000);
    assert.equal(Socket.all.length, 1);
    t.mock.timers.reset();
  }
});

test("ids go on from what a fork had heard", (t) => {
  const { link, socket } = linked(t);
  socket.tell(READY);
  socket.tell({ type: "state", state: "live", generation: 1 });
  socket.show({ generation: 1, frame: 9, event: 40 });
  assert.equal(link.id(), 41);
});
