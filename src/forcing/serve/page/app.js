// The page: what is said to the world, and what it shows.

import { Decoder } from "./decode.js";
import { Keys, belongs, bindings, sign } from "./keys.js";
import { Rate, Reactions, median } from "./meters.js";
import { Desk, Link, Refused } from "./net.js";
import { Player } from "./player.js";
import { Prompts } from "./prompts.js";
import { MOST } from "./protocol.js";
import { beginning, dice, fragment, whole } from "./settings.js";
import { describe } from "./states.js";
import { Strip, Timeline } from "./timeline.js";
import { $, Choice, Stage, dropZone, note, pad, press, save, stand, themes } from "./view.js";

const KEYS_MS = 30; // between messages of keys: the gateway hears so many a second, and hands are slower
const HUD_MS = 250;
const SAVE = ".forcing";
const EXPORTS = { film: ".mp4", session: SAVE }; // what can be saved, and how its name ends

const given = new URLSearchParams(location.hash.slice(1)); // a ticket, a token, how to begin
history.replaceState(null, "", location.pathname + location.search);

const settings = beginning(given);
const keys = new Keys();
const stage = new Stage();
const timeline = new Timeline();
const strip = new Strip($("timeline"), timeline, (frame, apart) => (apart ? fork(frame) : goBack(frame)));
const prompts = new Prompts(ask);
const decoder = new Decoder(decoded, broken);
const pending = new Map(); // id -> what was asked for
let desk = new Desk(document.baseURI, given.get("token"));
let link = null;
let world = null;
let player = null;
let bound = {};
let shown = null; // the picture on screen
let painting = false;
let leaving = false; // the gateway said that it stops
let wake = () => {};
let shownRate = new Rate();
let reactions = new Reactions();
let pressedAt = null; // of the first key that went down and was not sent yet
let keysTimer = null;
let keysSent = 0;
let stepsChoice = null;

// For tests, and for whoever is curious.
const stats = {
  state: "", message: "", session: "", generation: null, prompt: null, asked: null,
  shown: null, event: 0, age: null, queue: 0, starved: false, latencies: [], fps: { model: 0, shown: 0 },
  counts: { received: 0, shown: 0, stale: 0, skipped: 0, broken: 0, sockets: 0, granted: 0 },
};
window.forcing = stats;

// ---- where we stand

function become(name, known = {}) {
  stats.state = name;
  stats.message = known.message ?? "";
  stand(describe(name, known), { hurry, restart: () => join(), reload: () => location.reload() });
  $("token-form").hidden = name !== "token";
  $("pause").textContent = name === "paused" ? "Go on" : "Pause";
  const live = link?.ready ?? false;
  for (const control of document.querySelectorAll(".panel button, .panel input")) control.disabled = !live;
  if ([...pending.values()].some(({ kind }) => kind in EXPORTS)) exporting(true);
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
    const place = ticket ? { ticket, url: "ws" } : await desk.admit({
      queued: (position, eta) => become("queued", { position, eta }),
      full: (wait) => become("full", { wait }),
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
  become("connecting");
  link.start(address, ticket);
}

function up(ready) {
  stats.session = ready.session;
  stats.generation = null;
  leaving = false;
  world = ready.world;
  describeWorld();
  forgetWaiting();
  player = new Player({ fps: world.fps, burst: world.frames * world.chunk > 1, dropped: forget });
  become("starting");
}

function down(wait) {
  keys.release();
  reactions.forget();
  pending.clear();
  become(leaving ? "gone" : "reconnecting", { wait, tries: link.tries });
}

function closed(message) {
  reactions.forget();
  pending.clear();
  become("closed", { message });
}

// ---- what the gateway says

const HEARD = {
  accepted: ({ id }) => showPrompts(id),
  applied: ({ id, frame }) => applied(id, frame),
  state: (message) => stands(message),
  stats: ({ fps }) => { stats.fps.model = fps; },
  ticket: ({ id, ticket }) => forked(id, ticket),
  exported: ({ id, url }) => exported(id, url),
  warning: ({ message }) => note(message),
  error: (message) => wrong(message),
};

function told(message) {
  HEARD[message.type]?.(message);
}

function stands({ state, generation, message = "" }) {
  if (generation !== stats.generation) {
    stats.generation = generation;
    forgetWaiting();
    reactions.forget();
    if (generation === 0) begin();
    else sendKeys(); // those that were down for the last one may not be any more
  }
  if (state === "closed") return; // the link tells, when it has let go
  if (state === "paused") reactions.forget();
  leaving ||= state === "draining";
  if (state === "draining" && message) note(message);
  become(state === "detached" ? "starting" : state, { message });
}

function wrong({ code, message, id }) {
  if (code === "bad_image") choose(null);
  const asked = pending.get(id);
  pending.delete(id);
  if (asked?.kind in EXPORTS) exporting(false);
  showPrompts();
  note(message);
}

// ---- beginning

/** save: of a session that was saved, with the settings that it had. */
function begin(save = null) {
  const prompt = settings.prompt ?? world.prompts[0] ?? null;
  settings.prompt = stats.prompt = prompt;
  pending.clear();
  reactions.forget();
  timeline.clear(prompt);
  prompts.remember(prompt);
  showPrompts();
  $("seed").value = settings.seed;
  $("compare").setAttribute("aria-pressed", String(settings.reality));
  link.say("begin", { ...settings, save });
}

function describeWorld() {
  document.querySelector(".world").textContent = world.name;
  bound = bindings(world.keys);
  const signs = world.keys.map((name) => sign(name, bound));
  pad($("pad"), world.keys, signs, { down: keyDown, up: keyUp, tap });
  strip.lanes(world.keys, signs.map((text, i) => (text === "space" ? "…" : text || world.keys[i][0])));
  $("steps-row").hidden = world.steps.length < 2;
  const choices = world.steps.map((each) => [each, String(each)]);
  stepsChoice = new Choice($("steps"), "steps", [[null, "default"], ...choices], settings.steps, (value) => {
    settings.steps = value;
    begin();
  });
  prompts.of(world);
  $("compare-row").hidden = !world.reality;
  if (!world.reality) settings.reality = false;
  $("seed").value = settings.seed;
  stage.of(world);
  stage.compare(settings.reality);
  showPrompts();
}

function seedIs(seed) {
  if (seed === null) return;
  settings.seed = seed;
  begin();
}

async function choose(file) {
  URL.revokeObjectURL($("thumb").src);
  settings.image = null;
  if (file) {
    try {
      settings.image = await desk.upload(file);
      settings.reality = false; // an environment cannot be put where a picture is
      $("thumb").src = URL.createObjectURL(file);
    } catch (error) {
      note(`The picture was not taken: ${error.message}`);
    }
  }
  $("thumb").hidden = $("unchoose").hidden = settings.image === null;
}

/** A picture, or a session that was saved. */
async function startFrom(file) {
  if (file?.name.endsWith(SAVE)) return openSave(file);
  await choose(file);
  if (link?.ready && (settings.image !== null) === (file !== null)) begin();
  return undefined;
}

async function openSave(file) {
  try {
    const { id, prompt, seed, steps } = await desk.open(file);
    await choose(null);
    Object.assign(settings, { prompt, seed, steps, reality: false });
    stepsChoice.choose(steps);
    stage.compare(false);
    if (link?.ready) begin(id);
  } catch (error) {
    note(`The session was not opened: ${error.message}`);
  }
}

function compare() {
  settings.reality = !settings.reality;
  if (settings.reality) choose(null);
  stage.compare(settings.reality);
  begin();
}

// ---- prompts

function ask(text) {
  const id = link.id();
  if (!link.say("prompt", { id, text, switch: prompts.switch })) return;
  pending.set(id, { kind: "prompt", text });
  settings.prompt = text; // also where it begins anew
  prompts.remember(text);
  showPrompts();
}

function applied(id, latent) {
  const asked = pending.get(id);
  if (!asked) return;
  pending.delete(id);
  stats.prompt = asked.text;
  timeline.applied(latent, asked.text);
  showPrompts();
}

function showPrompts() {
  const asked = [...pending.values()].filter(({ kind }) => kind === "prompt").at(-1);
  stats.asked = asked?.text ?? null;
  prompts.show(stats.prompt, asked?.text);
}

// ---- keys

function keyDown(source, name, at) {
  if (!keys.down(source, name)) return;
  pressedAt ??= at;
  keysSoon();
}

function keyUp(source) {
  if (keys.up(source)) keysSoon();
}

function tap(name, at) {
  keys.tap(name);
  pressedAt ??= at;
  keysSoon();
}

function letGo() {
  if (keys.release()) keysSoon();
}

function keysSoon() {
  press($("pad"), keys.held);
  const wait = keysSent + KEYS_MS - performance.now();
  if (wait <= 0) sendKeys();
  else keysTimer ??= setTimeout(sendKeys, wait);
}

function sendKeys() {
  clearTimeout(keysTimer);
  keysTimer = null;
  keysSent = performance.now();
  const { held, tapped } = keys.take();
  const id = link?.id();
  const said = { held: held.slice(-MOST.keys), tapped: tapped.slice(-MOST.keys) };
  if (link?.say("keys", { id, ...said })) {
    timeline.pressed(id, said);
    if (pressedAt !== null && stats.state === "live") reactions.pressed(id, pressedAt);
  }
  pressedAt = null;
}

function onKey(event) {
  if (event.key === "Escape") return $("stage").focus({ preventScroll: true });
  if (belongs(event)) return undefined;
  const name = bound[event.code];
  if (name !== undefined) {
    event.preventDefault(); // arrows and space do not scroll
    if (!event.repeat) keyDown(event.code, name, event.timeStamp);
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
  if (!link.current(picture)) return forget(picture);
  player.push(picture, performance.now());
  return paintSoon();
}

function broken(picture) {
  stats.counts.broken += 1;
  if (link.current(picture)) link.showed(picture, player.waiting > 0, null);
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
  if (!link.current(picture)) return forget(picture);
  stage.show(picture);
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

// ---- what else can be done

function goBack(frame) {
  reactions.forget();
  link?.say("back", { frame });
}

/** frame: from before which it goes on; by default, from now. */
function fork(frame = null) {
  const id = link?.id();
  const prompt = frame === null ? stats.prompt : timeline.promptAt(frame);
  if (link?.say("fork", { id, frame })) pending.set(id, { kind: "fork", prompt });
}

function forked(id, ticket) {
  const { prompt } = pending.get(id);
  pending.delete(id);
  const href = `${location.pathname}#${fragment(ticket, { ...settings, prompt })}`;
  const tab = open(href);
  if (tab) tab.opener = null;
  else note("The fork is ready.", { href, textContent: "Open it", rel: "noopener" });
}

function makeFile(what) {
  const id = link.id();
  if (!link.say("export", { id, what })) return;
  pending.set(id, { kind: what });
  exporting(true);
}

async function exported(id, url) {
  const { kind } = pending.get(id) ?? {};
  pending.delete(id);
  try {
    const words = (stats.prompt ?? "free").toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40);
    save(await desk.fetch(url), `forcing-${words}-${settings.seed}${EXPORTS[kind]}`);
  } catch (error) {
    note(`The ${kind} could not be fetched: ${error.message}`);
  }
  exporting(false);
}

function exporting(on) {
  for (const what of Object.keys(EXPORTS)) $(what).disabled = on || !link?.ready;
  $("film").textContent = on ? "Saving…" : "Save MP4";
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
  pill(stats.starved ? "Waiting for pictures: this is the last one" : stats.state === "paused" ? "Paused" : "");
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
    desk = new Desk(document.baseURI, $("token").value);
    join();
  };
}

function wireButtons() {
  $("seed").onchange = () => seedIs(whole($("seed").value));
  $("dice").onclick = () => seedIs(dice());
  $("choose").onclick = () => $("file").click();
  $("file").onchange = () => {
    const [file] = $("file").files;
    $("file").value = ""; // the same one may be chosen again
    if (file) startFrom(file);
  };
  $("unchoose").onclick = () => startFrom(null);
  $("compare").onclick = compare;
  $("pause").onclick = () => link.say("pause", { on: stats.state !== "paused" });
  $("reset").onclick = () => begin();
  $("fork").onclick = () => fork();
  for (const what of Object.keys(EXPORTS)) $(what).onclick = () => makeFile(what);
  $("leave").onclick = () => link.leave();
}

function wireWindow() {
  addEventListener("keydown", onKey);
  addEventListener("keyup", (event) => keyUp(event.code));
  addEventListener("blur", letGo);
  document.addEventListener("visibilitychange", letGo);
  document.addEventListener("focusin", ({ target }) => target.matches("input, textarea") && letGo());
  addEventListener("online", hurry);
  addEventListener("pagehide", (event) => event.persisted || link?.leave());
  // After a click on a button, arrows and space are the world's again.
  document.addEventListener("click", (event) => {
    if (event.detail && event.target.closest("button")) $("stage").focus({ preventScroll: true });
  });
  dropZone($("stage"), startFrom);
  addEventListener("resize", () => strip.draw());
}

wireForms();
wireButtons();
wireWindow();
themes($("theme"), () => strip.draw());
setInterval(measure, HUD_MS);
join(given.get("ticket"));
