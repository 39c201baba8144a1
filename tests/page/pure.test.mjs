// What the page computes, without a browser: node --test tests/page/*.test.mjs

import assert from "node:assert/strict";
import { test } from "node:test";

const page = new URL("../../src/forcing/serve/page/", import.meta.url);
const load = (name) => import(new URL(name, page));
const { Decoder } = await load("decode.js");
const { Clock, Credits, delay } = await load("flow.js");
const { Keys, belongs, bindings, sign } = await load("keys.js");
const { Rate, Reactions, median } = await load("meters.js");
const { Player } = await load("player.js");
const { STATES, pack, say, unpack } = await load("protocol.js");
const { fragment, linked } = await load("settings.js");
const { describe, later } = await load("states.js");
const { Timeline } = await load("timeline.js");
const { fit } = await load("view.js");

const PICTURE = {
  generation: 3, frame: 70000, latent: 17500, made_us: 2 ** 45, event: 2 ** 40 + 1, took_us: 12, mark: 9, codec: 2,
};

test("a picture survives packing", () => {
  const image = new Uint8Array([1, 2, 3]);
  const reality = new Uint8Array([4, 5]);
  const read = unpack(pack({ ...PICTURE, image, reality }));
  for (const [name, value] of Object.entries(PICTURE)) assert.equal(read[name], value, name);
  assert.deepEqual([...read.image], [1, 2, 3]);
  assert.deepEqual([...read.reality], [4, 5]);
});

test("what is not a picture is refused", () => {
  const whole = pack({ ...PICTURE, image: new Uint8Array(8) });
  assert.throws(() => unpack(whole.slice(0, 20)), /not a picture/);
  assert.throws(() => unpack(whole.slice(0, -1)), /not a picture/);
  const other = whole.slice(0);
  new Uint8Array(other)[0] = 9;
  assert.throws(() => unpack(other), /version 9/);
});

test("a message has the fields that it should have and no others", () => {
  assert.equal(say("pause", { on: true }), '{"type":"pause","on":true}');
  assert.throws(() => say("pause", { off: true }), /pause has no off/);
});

// ---- decoding

test("pictures come in order, and one that throws stops none after it", async (t) => {
  t.after(() => {
    delete globalThis.createImageBitmap;
    delete globalThis.reportError;
  });
  const gates = [];
  const reported = [];
  globalThis.createImageBitmap = () => new Promise((done, fail) => gates.push({ done, fail }));
  globalThis.reportError = (error) => reported.push(error.message);
  const told = [];
  const hear = (what) => ({ frame }) => {
    told.push([what, frame]);
    if (frame === 1) throw new Error(`not ${frame}`);
  };
  const decoder = new Decoder(hear("ready"), hear("failed"));
  const bytes = new Uint8Array();
  for (const frame of [0, 1, 2, 3]) decoder.decode({ frame, image: bytes, reality: bytes, codec: 2 });
  gates[3].done();
  gates[2].fail(new Error("torn"));
  gates[1].done();
  gates[0].done();
  await decoder.turn;
  assert.deepEqual(told, [["ready", 0], ["ready", 1], ["failed", 2], ["ready", 3]]);
  assert.deepEqual(reported, ["not 1"]);
});

// ---- credits

const at = (latent, took_us, event = 0) => ({ latent, took_us, event });

test("two chunks are under way at most, and one more for each that was shown", () => {
  const credits = new Credits(1);
  assert.equal(credits.take(), 2);
  assert.equal(credits.take(), 0);
  for (let latent = 0; latent < 5; latent += 1) {
    const chunk = credits.arrived(at(latent, 100 + latent));
    assert.equal(chunk, latent);
    credits.showed(chunk, false);
    assert.equal(credits.take(), 1);
  }
});

test("the pictures of a chunk are one chunk, which is done when the next one is shown or nothing waits", () => {
  const credits = new Credits(3);
  credits.take();
  const chunks = [0, 0, 1, 1, 2, 2].map((latent) => credits.arrived(at(latent, 7)));
  assert.deepEqual(chunks, [0, 0, 0, 0, 0, 0]);
  credits.showed(0, true);
  assert.equal(credits.take(), 0);
  assert.equal(credits.arrived(at(3, 7)), 1); // as long as a chunk is, though it took as long
  credits.showed(1, true);
  assert.equal(credits.take(), 1);
  credits.showed(1, false);
  credits.showed(1, false);
  assert.equal(credits.take(), 1);
});

test("pictures that were skipped are granted again", () => {
  const credits = new Credits(1);
  credits.take();
  credits.arrived(at(0, 1));
  credits.showed(credits.arrived(at(1, 2)), false);
  assert.equal(credits.take(), 2);
});

// ---- the clock, and trying again

test("the quickest answer sets the clock", () => {
  const clock = new Clock();
  assert.equal(clock.age(0, 0), null);
  clock.heard(0, 400, 5_000_000); // slow: the offset is 200 ms off either way
  clock.heard(1000, 1010, 6_005_000);
  assert.equal(clock.age(6_000_000, 1000), 0);
  assert.equal(clock.age(6_000_000, 1100), 100);
});

test("the pauses between tries grow, are drawn, and end at 8 s", () => {
  assert.equal(delay(0, () => 0), 250);
  assert.equal(delay(0, () => 1), 500);
  assert.ok(delay(3, () => 0.5) > delay(1, () => 0.5));
  assert.equal(delay(99, () => 1), 8000);
  assert.equal(delay(99, () => 0), 250);
});

// ---- keys

test("keys find their places, and others get digits", () => {
  const bound = bindings(["left", "right", "forward", "wait", "fire"]);
  assert.equal(bound.ArrowLeft, "left");
  assert.equal(bound.KeyD, "right");
  assert.equal(bound.KeyW, "forward");
  assert.equal(bound.Space, "wait");
  assert.equal(bound.Digit1, "fire");
  assert.deepEqual(["left", "fire", "wait"].map((name) => sign(name, bound)), ["←", "1", "space"]);
});

test("a tap between two messages is told, a key that is still down is held", () => {
  const keys = new Keys();
  keys.down("ArrowUp", "forward");
  keys.down("KeyA", "left");
  keys.up("KeyA");
  assert.deepEqual(keys.take(), { held: ["forward"], tapped: ["left"] });
  keys.up("ArrowUp"); // it was told as held
  assert.deepEqual(keys.take(), { held: [], tapped: [] });
  keys.tap("wait");
  assert.deepEqual(keys.take(), { held: [], tapped: ["wait"] });
});

test("a key is held until the last one lets it go", () => {
  const keys = new Keys();
  assert.ok(keys.down("ArrowUp", "forward"));
  assert.ok(!keys.down("ArrowUp", "forward")); // a keyboard that repeats
  keys.down("pointer 1", "forward");
  keys.up("ArrowUp");
  assert.deepEqual(keys.held, ["forward"]);
  assert.ok(keys.release());
  assert.deepEqual(keys.held, []);
  assert.ok(!keys.release());
});

test("typing is not for the world", () => {
  const event = (tagName, code, more) => ({ code, target: { tagName }, ...more });
  assert.ok(belongs(event("TEXTAREA", "KeyA")));
  assert.ok(belongs(event("INPUT", "Digit1")));
  assert.ok(belongs(event("BUTTON", "Space")));
  assert.ok(!belongs(event("BUTTON", "ArrowUp")));
  assert.ok(!belongs(event("BODY", "Space")));
  assert.ok(belongs(event("BODY", "KeyD", { ctrlKey: true })));
});

// ---- playing

const picture = (n, chunk = n) => ({ n, chunk });

test("paced by the server, the newest is shown at once", () => {
  const dropped = [];
  const player = new Player({ fps: 10, burst: false, dropped: ({ n }) => dropped.push(n) });
  assert.equal(player.due(0), null);
  player.push(picture(0), 5);
  assert.equal(player.due(5).n, 0);
  player.push(picture(1), 6);
  player.push(picture(2), 7);
  assert.equal(player.due(7).n, 2);
  assert.deepEqual(dropped, [1]);
  assert.equal(player.skipped, 1);
});

test("pictures that come at once are spread in time", () => {
  const player = new Player({ fps: 10, burst: true });
  for (let n = 0; n < 4; n += 1) player.push(picture(n, 0), 0);
  const shown = [];
  for (let now = 0; now < 500; now += 10) {
    const due = player.due(now);
    if (due) shown.push([now, due.n]);
  }
  assert.deepEqual(shown, [[0, 0], [100, 1], [200, 2], [300, 3]]);
});

// Chunks of 4 at 10 a second that come `late(i)` ms after their time; returns waits without a picture after the 3rd.
function played(late) {
  const player = new Player({ fps: 10, burst: true });
  let next = 0;
  let last = 0;
  let longest = 0;
  for (let now = 0; now < 30_000; now += 5) {
    if (now >= next * 400 + late(next)) {
      for (let n = 0; n < 4; n += 1) player.push(picture(4 * next + n, next), now);
      next += 1;
    }
    if (player.due(now)) {
      if (next > 20) longest = Math.max(longest, now - last);
      last = now;
    }
  }
  return { longest, player };
}

test("it plays a little slower until a late chunk is not felt", () => {
  const steady = played(() => 0);
  assert.ok(steady.longest <= 115, `${steady.longest}`);
  assert.ok(steady.player.lead < 100, `${steady.player.lead}`);
  const uneven = played((i) => (i % 3) * 40);
  assert.ok(uneven.longest <= 115, `${uneven.longest}`);
  assert.ok(uneven.player.lead > 100);
});

test("a wait is said, and ends with the next picture", () => {
  const player = new Player({ fps: 10, burst: false });
  assert.ok(!player.starved(9999)); // nothing was shown yet
  player.push(picture(0), 0);
  player.due(0);
  assert.ok(!player.starved(300));
  assert.ok(player.starved(1000));
  player.push(picture(1), 1000);
  assert.ok(!player.starved(1000));
});

test("another generation forgets what waits", () => {
  const dropped = [];
  const player = new Player({ fps: 10, burst: true, dropped: ({ n }) => dropped.push(n) });
  player.push(picture(0, 0), 0);
  player.push(picture(1, 0), 0);
  player.clear();
  assert.deepEqual(dropped, [0, 1]);
  assert.equal(player.due(0), null);
});

// ---- measuring

test("a key is answered by the first picture that heard it", () => {
  const reactions = new Reactions(3);
  reactions.pressed(5, 100);
  reactions.pressed(8, 150);
  reactions.showed(4, 200);
  assert.deepEqual(reactions.latencies, []);
  reactions.showed(6, 220);
  reactions.showed(8, 250);
  assert.deepEqual(reactions.latencies, [120, 100]);
  for (let id = 9; id < 12; id += 1) {
    reactions.pressed(id, 0);
    reactions.showed(id, id);
  }
  assert.deepEqual(reactions.latencies, [9, 10, 11]);
});

test("median and rate", () => {
  assert.equal(median([]), null);
  assert.equal(median([3, 1, 2]), 2);
  assert.equal(median([4, 1, 2, 3]), 2.5);
  const rate = new Rate();
  for (let now = 0; now <= 1000; now += 100) rate.add(now);
  assert.equal(rate.at(1000), 10);
  assert.equal(rate.at(5000), 0);
});

// ---- what was applied

test("the timeline knows what was so at each picture", () => {
  const timeline = new Timeline();
  timeline.clear("hills");
  timeline.pressed(1, { held: ["left"], tapped: ["wait"] });
  timeline.pressed(2, { held: [], tapped: [] });
  timeline.showed({ frame: 0, latent: 0, event: 0 });
  timeline.showed({ frame: 1, latent: 1, event: 1 });
  timeline.showed({ frame: 2, latent: 2, event: 1 });
  timeline.applied(3, "sea");
  timeline.showed({ frame: 3, latent: 3, event: 2 });
  assert.deepEqual(timeline.columns.map(({ keys }) => keys), [[], ["left", "wait"], ["left"], []]);
  assert.deepEqual([2, 3, 9].map((latent) => timeline.promptAt(latent)), ["hills", "sea", "sea"]);
});

test("going back forgets what came after", () => {
  const timeline = new Timeline();
  timeline.clear("hills");
  for (let n = 0; n < 6; n += 1) timeline.showed({ frame: n, latent: n, event: 0 });
  timeline.applied(5, "sea");
  timeline.showed({ frame: 2, latent: 2, event: 0 });
  assert.deepEqual(timeline.columns.map(({ frame }) => frame), [0, 1, 2]);
  assert.equal(timeline.promptAt(9), "hills");
});

test("what went back has the prompt that it was told", () => {
  const timeline = new Timeline();
  timeline.clear("hills");
  for (let n = 0; n < 6; n += 1) timeline.showed({ frame: n, latent: n, event: 0 });
  timeline.applied(3, "sea");
  timeline.applied(5, "lava");
  timeline.back(4, "sea");
  assert.deepEqual(timeline.columns.map(({ frame }) => frame), [0, 1, 2, 3]);
  assert.deepEqual([2, 3, 9].map((latent) => timeline.promptAt(latent)), ["hills", "sea", "sea"]);
  timeline.back(3, "hills");
  assert.equal(timeline.promptAt(3), "hills");
});

test("the timeline shows keys that were down between two pictures only", () => {
  const timeline = new Timeline();
  timeline.clear("hills");
  timeline.pressed(1, { held: ["left"], tapped: [] });
  timeline.showed({ frame: 0, latent: 0, event: 1 });
  timeline.pressed(2, { held: ["left", "right"], tapped: [] });
  timeline.pressed(3, { held: [], tapped: [] });
  timeline.showed({ frame: 1, latent: 1, event: 3 });
  timeline.showed({ frame: 2, latent: 2, event: 3 });
  assert.deepEqual(timeline.columns.map(({ keys }) => keys), [["left"], ["right"], []]);
});

test("the timeline keeps so many pictures", () => {
  const timeline = new Timeline(4);
  for (let n = 0; n < 9; n += 1) timeline.showed({ frame: n, latent: n, event: 0 });
  assert.deepEqual(timeline.columns.map(({ frame }) => frame), [5, 6, 7, 8]);
});

// ---- the rest

test("every state has words, and says what to do where something can be done", () => {
  const own = ["joining", "full", "away", "token", "connecting", "reconnecting", "gone", "error"];
  for (const name of [...own, ...STATES.filter((state) => state !== "detached")]) {
    const said = describe(name, { wait: 1500, position: 3, eta: 20, tries: 1, message: "because" });
    assert.ok(said.status, name);
    if (said.title) assert.ok(!/undefined|NaN|null/.test(`${said.title} ${said.text}`), name);
  }
  assert.equal(describe("queued", { position: 3, eta: 20 }).status, "Queued at 3");
  assert.deepEqual(describe("closed", { message: "" }).act, ["restart", "Start again"]);
});

test("a message that names seconds counts them down", () => {
  assert.equal(later("the gateway stops in 10 s", 3100), "the gateway stops in 7 s");
  assert.equal(later("it stops in 0.5 s, they say", 9000), "it stops in 0 s, they say");
  assert.equal(later("5 sessions are open", 3000), "5 sessions are open");
});

test("small pictures get whole multiples of device pixels, large ones fit", () => {
  const room = { width: 500, height: 400 };
  assert.deepEqual(fit({ width: 56, height: 56 }, room, 1), { width: 392, height: 392, crisp: true });
  assert.deepEqual(fit({ width: 56, height: 56 }, room, 2), { width: 392, height: 392, crisp: true });
  assert.equal(fit({ width: 56, height: 56 }, room, 1.5).width, 56 * (10 / 1.5));
  assert.deepEqual(fit({ width: 1000, height: 500 }, room, 1), { width: 500, height: 250, crisp: false });
});

test("a link says how to begin, and leads a fork on", () => {
  const given = new URLSearchParams("prompt=four+rooms&seed=7&steps=x&reality=true");
  const settings = linked(given);
  assert.deepEqual(settings, { prompt: "four rooms", seed: 7, steps: null, image: null, reality: true });
  const again = new URLSearchParams(fragment("secret", settings));
  assert.equal(again.get("ticket"), "secret");
  assert.deepEqual(linked(again), settings);
  assert.ok(Number.isSafeInteger(linked(new URLSearchParams()).seed));
});
