// The page: what is said to the world, and what it shows.

import { Beginning } from "./beginning.js";
import { Decoder } from "./decode.js";
import { Exports } from "./exports.js";
import { Hands } from "./hands.js";
import { belongs, bindings, sign } from "./keys.js";
import { Rate, Reactions, median } from "./meters.js";
import { Entrance, Link, Refused, sentence } from "./net.js";
import { Player } from "./player.js";
import { Prompts } from "./prompts.js";
import { fragment, linked } from "./settings.js";
import { describe, later } from "./states.js";
import { Strip, Timeline } from "./timeline.js";
import { $, Stage, dropZone, note, pad, stand, themes } from "./view.js";

const HUD_MS = 250;
const SURE = "Sure?";
const SURE_MS = 3000;

const given = new URLSearchParams(location.hash.slice(1)); // a ticket, a token, how to begin
history.replaceState(null, "", location.pathname + location.search);

const settings = linked(given);
const hands = new Hands(sayKeys);
const stage = new Stage();
const timeline = new Timeline();
const strip = new Strip($("timeline"), timeline, (frame, apart) => (apart ? fork(frame) : goBack(frame)));
const prompts = new Prompts(timeline, ask, (prompt) => { settings.prompt = prompt; }); // also where it begins anew
const decoder = new Decoder(decoded, broken);
const entrance = new Entrance(document.baseURI, given.get("token"));
const beginning = new Beginning(settings, entrance, stage, (save) => link?.ready && begin(save));
const exports = new Exports((what) => request("export", { what }), (url) => entrance.fetch(url), called);
const forks = new Map(); // id -> the prompt that it goes on with
let link = null;
let world = null;
let player = null;
let bound = {};
let shown = null; // the picture on screen
let painting = false;
let begun = false; // this session is, as far as the page knows
let beside = false; // so is the environment, which this generation was begun with
let touched = false; // a key was pressed: whoever does that needs no hint
let closing = null; // {message, at}: the gateway said that it stops
let wake = () => {};
let shownRate = new Rate();
let reactions = new Reactions();

// For tests, and for whoever is curious.
const stats = {
  get prompt() { return prompts.now; },
  get asked() { return prompts.asked?.text ?? null; },
  state: "", message: "", session: "", generation: null,
  shown: null, event: 0, age: null, queue: 0, starved: false, latencies: [], fps: { model: 0, shown: 0 },
  counts: { received: 0, shown: 0, stale: 0, skipped: 0, broken: 0, sockets: 0, granted: 0 },
};
window.forcing = stats;

// ---- where we stand

function become(name, known = {}) {
  stats.state = name;
  stats.message = known.message ?? "";
  const seems = closing && name === "live" ? "draining" : name;
  stand(describe(seems, known), { hurry, restart: () => join(), reload: () => location.reload() });
  $("token-form").hidden = name !== "token";
  $("pause").textContent = name === "paused" ? "Go on" : "Pause";
  const live = link?.ready ?? false;
  for (const control of document.querySelectorAll(".panel button, .panel input")) control.disabled = !live;
  exports.show(live);
  measure();
}

function hurry() {
  wake();
  link?.hurry();
}

function sleep(ms) {
  return new Promise((done) => {
    const timer = setTimeout(done, ms);
    wake = () => {
      clearTimeout(timer);
      done();
    };
  });
}

/** A place, and a session in it; ticket: of a fork. */
async function join(ticket = null) {
  link = null;
  become("joining");
  try {
    const place = ticket ? { ticket, url: "ws" } : await entrance.admit({
      loading: () => become("loading"),
      queued: (position, eta) => become("queued", { position, eta }),
      full: (wait) => become("full", { wait }),
      broken: (message, wait) => become("broken", { message, wait }),
      away: (wait) => become("away", { wait }),
    }, sleep);
    connect(place);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    become(error.status === 401 ? "token" : "error", { message: error.message });
  }
}

function connect({ ticket, url }) {
  const address = new URL(url, document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  link = new Link({
    up,
    down,
    over: closed,
    told,
    picture: received,
  });
  begun = false;
  closing = null;
  shown = stats.shown = null;
  forks.clear();
  exports.clear();
  become("connecting");
  link.start(address, ticket);
}

function up(ready) {
  stats.session = ready.session;
  stats.generation = null;
  closing = null;
  world = ready.world;
  describeWorld();
  forgetWaiting();
  player = new Player({ fps: world.fps, burst: world.frames * world.chunk > 1, dropped: forget });
  become("starting");
}

function down(wait) {
  hands.release();
  reactions.forget();
  exports.lost();
  become(closing ? "gone" : "reconnecting", { wait, tries: link.tries });
}

function closed(message, code) {
  reactions.forget();
  exports.lost();
  if (code === "bad_ticket" && begun) { // the server was started again meanwhile, and knows nothing of it
    note("The server was started again, and your session ended with it: here is a new one.");
    return join();
  }
  return become("closed", { message: sentence(message) });
}

// ---- what the gateway says

const HEARD = {
  accepted: ({ id }) => prompts.accepted(id),
  applied: ({ id, frame }) => prompts.applied(id, frame),
  went: (message) => went(message),
  state: (message) => stands(message),
  stats: ({ fps }) => { stats.fps.model = fps; },
  ticket: ({ id, ticket }) => forked(id, ticket),
  exported: ({ id, url }) => exports.exported(id, url),
  warning: ({ message }) => note(message),
  error: (message) => wrong(message),
};

function told(message) {
  HEARD[message.type]?.(message);
}

function stands({ state, generation, message = "" }) {
  if (generation !== stats.generation) turn(generation);
  if (state === "closed") return; // the link tells, when it has let go
  if (state === "paused") reactions.forget();
  if (state === "recovering") exports.lost(); // with the engine that made them
  if (state === "draining") {
    if (!closing) note("The server is about to close: save what should be kept.");
    closing = { message, at: performance.now() };
  }
  become(state === "detached" ? "starting" : state, { message });
}

function turn(generation) {
  const resumed = stats.generation === null && begun;
  stats.generation = generation;
  forgetWaiting();
  reactions.forget();
  if (generation === 0) return begin();
  if (!begun) opened(settings.prompt); // a fork: how it was begun is in its link
  beside = settings.reality;
  if (resumed) prompts.resume();
  return hands.send(); // those that were down for the last one may not be any more
}

function wrong({ code, message, id }) {
  if (stats.generation === 0 && beginning.concerns(code)) return unbegun(code, message);
  if (code === "bad_image") beginning.forget();
  prompts.refused(id);
  forks.delete(id);
  exports.refused(id);
  return note(message);
}

// ---- beginning

/** save: of a session that was saved, with the settings that it had. */
function begin(save = null) {
  opened(settings.prompt ?? world.first ?? world.prompts[0] ?? null);
  link.say("begin", { ...settings, save });
}

/** It begins here, or, of a fork, is first seen here. */
function opened(prompt) {
  begun = true;
  settings.prompt = prompt;
  reactions.forget();
  prompts.begin(prompt);
  beginning.show();
  $("reality-title").textContent = prompt ? `The real environment: ${prompt}` : "The real environment";
  history.replaceState(null, "", `#${fragment(null, settings)}`); // to be kept, or sent to someone
}

function unbegun(code, message) {
  if (!beginning.mend(code)) return become("error", { message });
  note(`This could not begin as it was asked: ${message.replace(/\.$/, "")}. It begins with the world's own instead.`);
  return begin();
}

function describeWorld() {
  document.querySelector(".world").textContent = world.name;
  bound = bindings(world.keys);
  const signs = world.keys.map((name) => sign(name, bound));
  pad($("pad"), world.keys, signs, hands);
  $("hud-reaction").hidden = !world.keys.length;
  $("timeline").classList.toggle("low", !world.keys.length);
  strip.lanes(world.keys, signs.map((text, i) => (text === "space" ? "…" : text || world.keys[i][0])));
  prompts.of(world);
  stage.of(world);
  beginning.of(world);
  prompts.show();
}

// ---- asking, and steering

/** Say what is answered: its id, or null where nobody hears. */
function request(type, fields) {
  const id = link?.id();
  return link?.say(type, { id, ...fields }) ? id : null;
}

function ask(text, how) {
  return request("prompt", { text, switch: how });
}

function sayKeys(said, at) {
  const id = request("keys", said);
  if (id === null) return;
  touched ||= said.held.length + said.tapped.length > 0;
  timeline.pressed(id, said);
  if (at !== null && stats.state === "live") reactions.pressed(id, at);
}

function onKey(event) {
  if (event.key === "Escape") return $("stage").focus({ preventScroll: true });
  if (belongs(event)) return undefined;
  const name = bound[event.code];
  if (name !== undefined) {
    event.preventDefault(); // arrows and space do not scroll
    if (!event.repeat) hands.down(event.code, name, event.timeStamp);
  } else if (event.key === "/") {
    event.preventDefault();
    prompts.focus();
  } else if (event.code === "KeyP" && !event.repeat) {
    $("pause").click();
  }
  return undefined;
}

// ---- pictures

function received(picture) {
  stats.counts.received += 1;
  decoder.decode(picture);
}

function decoded(picture) {
  if (!link?.current(picture)) return forget(picture);
  player.push(picture, performance.now());
  return paintSoon();
}

function broken(picture) {
  stats.counts.broken += 1;
  if (link?.current(picture)) link.showed(picture, player.waiting > 0, null);
}

function forget({ bitmap, beside }) {
  bitmap.close();
  beside?.close();
}

function forgetWaiting() {
  link.stale += player?.waiting ?? 0;
  player?.clear();
}

function paintSoon() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(paint);
}

function paint() {
  painting = false;
  const picture = player.due(performance.now());
  if (picture) show(picture);
  if (player.waiting) paintSoon();
}

function show(picture) {
  if (!link?.current(picture)) return forget(picture);
  stage.show(picture);
  if (beside && !picture.beside) lonely();
  const now = performance.now();
  shownRate.add(now);
  reactions.showed(picture.event, now);
  timeline.showed(picture);
  shown = picture;
  stats.shown = {
    generation: picture.generation, frame: picture.frame, latent: picture.latent, event: picture.event, mark: picture.mark,
  };
  stats.event = picture.event;
  stats.counts.shown += 1;
  link.showed(picture, player.waiting > 0, link.clock.age(picture.made_us, now));
  forget(picture);
  return strip.draw();
}

function lonely() {
  beside = false;
  if (settings.reality) beginning.alone(); // or comparing was ended meanwhile
}

// ---- what else can be done

function goBack(frame) {
  reactions.forget();
  if (link?.say("back", { frame })) prompts.back(frame);
}

function went({ frame, prompt, generation }) {
  if (generation < stats.generation) return; // it was begun anew meanwhile
  prompts.went(frame, prompt);
  strip.draw();
}

/** frame: from before which it goes on; by default, from now. */
function fork(frame = null) {
  const id = request("fork", { frame });
  if (id !== null) forks.set(id, frame === null ? prompts.now : prompts.before(frame));
}

function forked(id, ticket) {
  if (!forks.has(id)) return;
  const prompt = forks.get(id);
  forks.delete(id);
  const href = `${location.pathname}#${fragment(ticket, { ...settings, prompt })}`;
  const tab = open(href);
  if (tab) tab.opener = null;
  else note("The fork is ready.", { href, textContent: "Open it", rel: "noopener" });
}

/** Asked twice: what is not saved is gone then. */
function leave() {
  if ($("leave").textContent === SURE) return link.leave();
  $("leave").textContent = SURE;
  return setTimeout(() => { $("leave").textContent = "End"; }, SURE_MS);
}

/** The name of a file. */
function called() {
  const words = (prompts.now ?? "free").toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40);
  return `forcing-${words}-${settings.seed}`;
}

// ---- numbers

function measure() {
  const now = performance.now();
  const middle = median(reactions.latencies);
  stats.latencies = reactions.latencies;
  stats.fps.shown = shownRate.at(now);
  stats.age = shown && link ? link.clock.age(shown.made_us, now) : null;
  stats.queue = player?.waiting ?? 0;
  stats.starved = stats.state === "live" && player.starved(now);
  stats.counts.stale = link?.stale ?? 0;
  stats.counts.sockets = link?.sockets ?? 0;
  stats.counts.skipped = player?.skipped ?? 0;
  stats.counts.granted = link?.credits?.granted ?? 0;
  hud("model", shown ? stats.fps.model.toFixed(1) : "–");
  hud("shown", shown ? stats.fps.shown.toFixed(1) : "–");
  hud("reaction", middle === null ? "–" : Math.round(middle));
  hud("age", stats.age === null || stats.state !== "live" ? "–" : Math.round(stats.age));
  hud("queue", stats.queue);
  pill(inShort(now));
}

/** What should be known while pictures are seen. */
function inShort(now) {
  if (closing && ["live", "paused", "draining"].includes(stats.state)) {
    return sentence(later(closing.message, now - closing.at)).slice(0, -1);
  }
  if (stats.starved) return "Waiting for pictures: this is the last one";
  if (stats.state === "paused") return "Paused";
  return stats.state === "live" && shown && !touched ? world.hint : "";
}

function hud(name, value) {
  document.querySelector(`[data-testid="hud-${name}"]`).textContent = value;
}

function pill(text) {
  $("pill").hidden = !text;
  $("pill").textContent = text;
}

// ---- wiring

function wireForms() {
  $("back-form").onsubmit = (event) => {
    event.preventDefault();
    if (!shown) return;
    const frame = Math.max(0, shown.latent + 1 - Number($("back-frames").value));
    if (event.submitter === $("back-fork")) fork(frame);
    else goBack(frame);
  };
  $("token-form").onsubmit = (event) => {
    event.preventDefault();
    entrance.token = $("token").value;
    join();
  };
}

function wireButtons() {
  $("pause").onclick = () => link.say("pause", { on: stats.state !== "paused" });
  $("reset").onclick = () => begin();
  $("fork").onclick = () => fork();
  $("leave").onclick = leave;
}

function wireWindow() {
  addEventListener("keydown", onKey);
  addEventListener("keyup", (event) => hands.up(event.code));
  addEventListener("blur", () => hands.release());
  document.addEventListener("visibilitychange", () => hands.release());
  document.addEventListener("focusin", ({ target }) => target.matches("input, textarea") && hands.release());
  addEventListener("online", hurry);
  addEventListener("pagehide", (event) => event.persisted || link?.leave());
  // After a click on a button, arrows and space are the world's again.
  document.addEventListener("click", (event) => {
    if (event.detail && event.target.closest("button")) $("stage").focus({ preventScroll: true });
  });
  dropZone($("stage"), (file) => beginning.from(file));
  addEventListener("resize", () => strip.draw());
}

wireForms();
wireButtons();
wireWindow();
themes($("theme"), () => strip.draw());
setInterval(measure, HUD_MS);
join(given.get("ticket"));
