// What hands do, as messages: each change is said, but no more often than the gateway listens.

import { Keys } from "./keys.js";
import { MOST } from "./protocol.js";
import { $, press } from "./view.js";

const EVERY_MS = 30; // the gateway hears so many a second, and hands are slower

export class Hands {
  /** say({held, tapped}, at): at: when the first key went down that was not said yet, or null. */
  constructor(say) {
    this.say = say;
    this.keys = new Keys();
    this.since = null;
    this.timer = null;
    this.said = 0;
  }

  down(source, name, at) {
    if (!this.keys.down(source, name)) return;
    this.since ??= at;
    this.#soon();
  }

  up(source) {
    if (this.keys.up(source)) this.#soon();
  }

  tap(name, at) {
    this.keys.tap(name);
    this.since ??= at;
    this.#soon();
  }

  /** Let go of everything. */
  release() {
    if (this.keys.release()) this.#soon();
  }

  /** Say what is so, now. */
  send() {
    clearTimeout(this.timer);
    this.timer = null;
    this.said = performance.now();
    const { held, tapped } = this.keys.take();
    this.say({ held: held.slice(-MOST.keys), tapped: tapped.slice(-MOST.keys) }, this.since);
    this.since = null;
  }

  #soon() {
    press($("pad"), this.keys.held);
    const wait = this.said + EVERY_MS - performance.now();
    if (wait <= 0) this.send();
    else this.timer ??= setTimeout(() => this.send(), wait);
  }
}
