// To the gateway and back: a place, the socket, and the same session again when the socket was lost.

import { Clock, Credits, delay } from "./flow.js";
import { CLOSE, PROTOCOL, say, unpack } from "./protocol.js";

const PING_MS = 2000;
const SILENCE_MS = 10_000; // without a word, not even a pong, the socket is dead
const STEADY_MS = 5000; // a socket that lasted so long was a good one: the next try is soon again
const POLL_MS = 1000;
const FINAL_CODES = ["bad_ticket", "expired", "protocol"];
const FINAL_CLOSES = [CLOSE.UNSUPPORTED, CLOSE.POLICY, CLOSE.TOO_BIG];

/** What the gateway said instead of yes. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function asked(response) {
  const text = await response.text();
  if (response.ok) return JSON.parse(text);
  const json = response.headers.get("content-type")?.includes("json");
  throw new Refused(response.status, (json && JSON.parse(text).message) || `${response.status} ${response.statusText}`);
}

/** The gateway over HTTP. token: of whoever may use it, or null. */
export class Entrance {
  constructor(base, token, get = (...args) => fetch(...args)) {
    this.base = base;
    this.token = token;
    this.get = get;
  }

  async #ask(path, options = {}) {
    const authorization = this.token === null ? {} : { Authorization: `Bearer ${this.token}` };
    return this.get(new URL(path, this.base), { ...options, headers: { ...options.headers, ...authorization } });
  }

  /** A place: {ticket, url}. Waits as long as it takes. on: {loading(), queued(position, etaSeconds), full(ms), broken(message, ms), away(ms)};
   * wait(ms): returns after that, or sooner. Refused where waiting does not help. */
  async admit(on, wait) {
    for (let tries = 0; ; ) {
      try {
        const place = await this.#place(on, wait);
        if (place) return place;
        tries = 0;
      } catch (error) {
        if (error instanceof Refused) throw error;
        const pause = delay(tries++); // nobody answered
        on.away(pause);
        await wait(pause);
      }
    }
  }

  async #place(on, wait) {
    const response = await this.#ask("api/sessions", { method: "POST" });
    if (response.status === 503) {
      const pause = 1000 * (Number(response.headers.get("Retry-After")) || 5) * (1 + Math.random() / 4);
      const { error, message } = await response.json().catch(() => ({}));
      if (error === "engine") on.broken(sentence(message), pause);
      else on.full(pause);
      await wait(pause);
      return null;
    }
    let place = await asked(response);
    while (!place.url) {
      if (place.loading) on.loading();
      else on.queued(place.position, place.eta_s);
      await wait(POLL_MS);
      const next = await this.#ask(`api/sessions/${encodeURIComponent(place.ticket)}`);
      if (next.status === 404 || next.status === 410) return null; // we were forgotten: queue again
      place = { ...place, ...(await asked(next)) };
    }
    return place;
  }

  /** The id of an uploaded picture. */
  async upload(file) {
    const headers = { "Content-Type": file.type || "application/octet-stream" };
    return (await asked(await this.#ask("api/images", { method: "POST", body: file, headers }))).id;
  }

  /** What a session that was saved begins with: {id, prompt, seed, steps}. */
  async open(file) {
    const headers = { "Content-Type": "application/octet-stream" };
    return asked(await this.#ask("api/saves", { method: "POST", body: file, headers }));
  }

  /** What was exported, as a Blob. */
  async fetch(url) {
    const response = await this.#ask(url);
    return response.ok ? response.blob() : asked(response);
  }
}

/** As a sentence. */
export function sentence(text = "") {
  const said = text.slice(0, 1).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(said) || !said ? said : `${said}.`;
}

/** One session, over as many sockets as it takes. on: {up(ready), down(ms), over(why), told(message), picture(picture)}.
 * Pictures of another generation than the newest are counted, and not handed on. Generation 0: nothing has begun. */
export class Link {
  constructor(on, open = (url) => new WebSocket(url)) {
    this.on = on;
    this.open = open;
    this.clock = new Clock();
    this.stale = this.sockets = this.tries = this.ids = 0;
    this.generation = null;
    this.socket = this.credits = this.timer = null;
    this.over = false;
  }

  start(url, ticket) {
    this.url = url;
    this.ticket = ticket;
    this.#connect();
  }

  /** A number that no message had before, and no picture's event has reached. */
  id() {
    this.ids += 1;
    return this.ids;
  }

  /** False where there is no socket to say it to. */
  say(type, fields) {
    if (!this.ready) return false;
    this.socket.send(say(type, fields));
    if (type === "begin" || type === "back") this.turning = true;
    return true;
  }

  /** Connect now instead of later. */
  hurry() {
    if (this.timer === null) return;
    clearTimeout(this.timer);
    this.#connect();
  }

  /** The session is not wanted any more. */
  leave() {
    this.say("bye");
    this.#end("");
  }

  /** A picture of the present generation is on screen, made `age` ms ago; more: others wait already. */
  showed(picture, more, age) {
    this.credits.showed(picture.chunk, more);
    this.#grant(picture.frame, age);
  }

  /** Whether a picture may be shown now: it is of this session, and of its present generation. */
  current(picture) {
    return picture.link === this && this.#fresh(picture);
  }

  #fresh({ generation }) {
    const fresh = generation === this.generation;
    if (!fresh) this.stale += 1;
    return fresh;
  }

  #connect() {
    this.timer = null;
    this.ready = false;
    this.sockets += 1;
    this.heardAt = this.pingedAt = performance.now();
    const socket = this.open(this.url);
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    const mine = (react) => (event) => this.socket === socket && react(event);
    socket.onopen = mine(() => socket.send(say("hello", { ticket: this.ticket, protocol: PROTOCOL })));
    socket.onmessage = mine(({ data }) => this.#heard(data));
    socket.onclose = mine(({ code, reason }) => this.#lost(code, reason));
    this.pings = new Map();
    this.beat = setInterval(() => this.#ping(), PING_MS);
  }

  #ping() {
    const now = performance.now();
    if (now - this.heardAt > SILENCE_MS) return this.#lost(0, "nothing was heard for a while");
    const id = this.id();
    this.pingedAt = now;
    if (this.say("ping", { id })) this.pings.set(id, now);
    return undefined;
  }

  // A hidden tab's timers are slowed to one a minute, which is no sign of life; what is heard is not.
  #beaten() {
    if (performance.now() - this.pingedAt >= PING_MS) this.#ping();
  }

  #heard(data) {
    this.heardAt = performance.now();
    if (typeof data === "string") this.#told(JSON.parse(data));
    else this.#pictured(unpack(data));
  }

  #pictured(picture) {
    if (!this.#fresh(picture)) return;
    this.ids = Math.max(this.ids, picture.event); // a fork goes on from the events of another page
    this.on.picture({ ...picture, chunk: this.credits.arrived(picture), link: this });
  }

  #told(message) {
    const react = {
      ready: () => this.#up(message),
      pong: () => this.#pong(message),
      stats: () => this.#beaten(),
      state: () => this.#stands(message),
      error: () => this.#refused(message),
    };
    react[message.type]?.();
    if (!this.over) this.on.told(message);
  }

  #refused({ code, message }) {
    if (FINAL_CODES.includes(code)) return this.#end(message, code);
    this.turning = this.generation === 0;
    return this.#grant();
  }

  #up(message) {
    this.ready = true;
    this.turning = false; // between two generations: what is granted now would count for either
    this.readyAt = this.heardAt;
    this.ticket = message.resume;
    this.credits = new Credits(message.world.chunk);
    this.generation = null; // nothing is shown, and nothing granted, before it is said
    this.on.up(message);
    this.#ping();
  }

  #pong({ id, clock_us: clock }) {
    if (this.pings.has(id)) this.clock.heard(this.pings.get(id), this.heardAt, clock);
    this.pings.delete(id);
  }

  #stands({ state, generation, message }) {
    if (generation !== this.generation) {
      this.generation = generation;
      this.credits.reset();
      this.turning = generation === 0;
      this.#grant();
    }
    if (state === "closed") this.#end(message);
  }

  #grant(frame = null, age = null) {
    if (!this.credits || this.turning) return; // refused before it was welcome, or not yet
    const chunks = this.credits.take();
    if (chunks) this.say("grant", { chunks, frame, age_ms: age });
  }

  #lost(code, reason) {
    this.#drop();
    if (FINAL_CLOSES.includes(code) || code === CLOSE.NORMAL) return this.#end(reason);
    if (this.readyAt && this.heardAt - this.readyAt > STEADY_MS) this.tries = 0;
    this.readyAt = 0;
    const pause = delay(this.tries++);
    this.timer = setTimeout(() => this.#connect(), pause);
    return this.on.down(pause);
  }

  #drop() {
    clearInterval(this.beat);
    clearTimeout(this.timer);
    const { socket } = this;
    this.socket = this.timer = null;
    this.ready = false;
    socket?.close();
  }

  #end(why, code = null) {
    if (this.over) return;
    this.over = true;
    this.#drop();
    this.on.over(why, code);
  }
}
