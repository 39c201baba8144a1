// When a picture is shown. No clock and no canvas of its own: times are told to it, in ms.

const LEAST_LEAD = 60;
const MOST_LEAD = 250;
const SLOWEST = 0.92;
const FASTEST = 1.12;
const PATIENCE = 400; // without pictures, before it is called a wait

const clamp = (value, least, most) => Math.min(most, Math.max(least, value));

/** fps: pictures a second that are aimed at. burst: whether several pictures come at once, and must be spread in time;
 * without it the server paces them one by one, and the newest is shown at once. dropped: told of each picture that will
 * not be shown. */
export class Player {
  constructor({ fps, burst, dropped = () => {} }) {
    this.period = 1000 / fps;
    this.burst = burst;
    this.dropped = dropped;
    this.skipped = 0;
    this.queue = [];
    this.clear();
  }

  /** Forget everything: another generation begins. */
  clear() {
    this.queue.splice(0).forEach(this.dropped);
    this.next = null; // when the next picture should be shown
    this.rate = 1;
    this.jitter = 0;
    this.chunk = null; // {chunk, at, pictures} that came last
  }

  get waiting() {
    return this.queue.length;
  }

  /** How long pictures should last when the next ones come: as long as these are usually late, and a bit. */
  get lead() {
    return this.burst ? clamp(LEAST_LEAD + 2 * this.jitter, LEAST_LEAD, MOST_LEAD) : 0;
  }

  push(picture, now) {
    if (this.burst && picture.chunk !== this.chunk?.chunk) this.#chunkComes(picture.chunk, now);
    if (this.chunk) this.chunk.pictures += 1;
    this.queue.push(picture);
  }

  /** The picture to show now, or null. */
  due(now) {
    if (!this.queue.length || (this.burst && this.next !== null && now < this.next)) return null;
    if (!this.burst) this.#skip();
    const picture = this.queue.shift();
    const onTime = this.burst && this.next !== null && now - this.next < this.period;
    const due = onTime ? this.next : now; // after a wait, no hurry to make up for it
    this.next = due + this.period / this.rate;
    return picture;
  }

  /** Whether the last picture is held because no other one came. */
  starved(now) {
    return !this.queue.length && this.next !== null && now - this.next > Math.max(PATIENCE, 2 * this.period);
  }

  #skip() {
    const late = this.queue.splice(0, this.queue.length - 1);
    late.forEach(this.dropped);
    this.skipped += late.length;
  }

  // A chunk begins to come: play a little faster or slower, so that the next one finds `lead` left to show.
  #chunkComes(chunk, now) {
    const { chunk: last } = this;
    const spare = this.queue.length * this.period + Math.max(0, (this.next ?? now) - now);
    if (last !== null) {
      const length = last.pictures * this.period;
      this.jitter += (Math.abs(now - last.at - length) - this.jitter) / 8;
      this.rate = clamp(1 + (spare - this.lead) / length, SLOWEST, FASTEST);
    }
    this.chunk = { chunk, at: now, pictures: 0 };
  }
}
