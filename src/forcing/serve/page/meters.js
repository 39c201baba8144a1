// What the page measures of itself.

/** The middle of `values`, or null. */
export function median(values) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** How often a second something happened lately. */
export class Rate {
  constructor(span = 2000) {
    this.span = span;
    this.times = [];
  }

  add(now) {
    this.times.push(now);
    this.#forget(now);
  }

  at(now) {
    this.#forget(now);
    const [first] = this.times;
    return this.times.length < 2 ? 0 : (1000 * (this.times.length - 1)) / Math.max(now - first, 1);
  }

  #forget(now) {
    while (this.times.length && now - this.times[0] > this.span) this.times.shift();
  }
}

/** From a key to the first picture on screen that was made with it heard. */
export class Reactions {
  constructor(keep = 50) {
    this.keep = keep;
    this.pending = [];
    this.latencies = []; // ms, the newest last
  }

  pressed(id, at) {
    this.pending.push({ id, at });
  }

  showed(event, now) {
    const heard = this.pending.filter(({ id }) => id <= event);
    if (!heard.length) return;
    this.pending = this.pending.filter(({ id }) => id > event);
    this.latencies = [...this.latencies, ...heard.map(({ at }) => now - at)].slice(-this.keep);
  }

  /** What is not answered now will not be: paused, or begun anew. */
  forget() {
    this.pending = [];
  }
}
