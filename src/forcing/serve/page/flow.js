// Keeping in step with the gateway, as plain arithmetic: credits, the other side's clock, when to try again.

import { MOST } from "./protocol.js";

export const WINDOW = 2; // chunks that may be under way or waiting

/** Counts chunks of one generation. The gateway makes none that was not granted, so that nothing can pile up. */
export class Credits {
  constructor(perChunk, window = WINDOW) {
    this.perChunk = perChunk; // latent frames of a chunk
    this.window = window;
    this.reset();
  }

  reset() {
    this.granted = 0;
    this.done = 0;
    this.chunk = -1;
    this.last = null;
  }

  /** The number of the chunk that this picture belongs to. */
  arrived(picture) {
    const { last } = this;
    const same =
      last !== null &&
      picture.event === last.event &&
      picture.took_us === last.took_us &&
      picture.latent - last.latent < this.perChunk;
    if (!same) {
      this.chunk += 1;
      this.last = picture;
    }
    return this.chunk;
  }

  /** A picture of chunk `chunk` is on screen; more: whether pictures after it wait already. */
  showed(chunk, more) {
    this.done = Math.max(this.done, more ? chunk : chunk + 1);
  }

  /** How many chunks to grant now. */
  take() {
    const chunks = Math.min(MOST.grant, Math.max(0, this.done + this.window - this.granted));
    this.granted += chunks;
    return chunks;
  }
}

/** The gateway's clock, from pings: the quickest of the last few answers is the least wrong. */
export class Clock {
  constructor(keep = 8) {
    this.keep = keep;
    this.samples = [];
  }

  /** All in ms, of this page's clock, but for clockUs. */
  heard(sent, received, clockUs) {
    this.samples.push({ trip: received - sent, offset: clockUs / 1000 - (sent + received) / 2 });
    if (this.samples.length > this.keep) this.samples.shift();
  }

  get best() {
    return this.samples.reduce((best, sample) => (best === null || sample.trip < best.trip ? sample : best), null);
  }

  /** How old, in ms, what was made at `madeUs` is at `now`; null before the first answer. */
  age(madeUs, now) {
    return this.best && Math.max(0, now + this.best.offset - madeUs / 1000);
  }
}

/** Milliseconds before try number `tries` (from 0): at most 0.25 s, then twice as long each time up to 8 s. Drawn at
 * random, so that all pages of a gateway that was restarted do not come at once. */
export function delay(tries, random = Math.random) {
  const most = Math.min(8000, 250 * 2 ** (tries + 1));
  return 250 + random() * (most - 250);
}
