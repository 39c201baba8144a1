// What is kept of a session, as files: a film of it, or the session itself.

import { $, note, save } from "./view.js";

export const ENDS = { film: ".mp4", session: ".forcing" }; // what can be saved, and how its name ends

export class Exports {
  /** ask(what): returns the id that the answer will have, or null where nobody hears. fetch(url): a Blob. named(): what
   * a file is called. */
  constructor(ask, fetch, named) {
    this.ask = ask;
    this.fetch = fetch;
    this.named = named;
    this.asked = new Map(); // id -> what
    this.awaited = null; // the id that the buttons wait for
    this.live = false;
    this.words = {};
    for (const what of Object.keys(ENDS)) {
      this.words[what] = $(what).textContent;
      $(what).onclick = () => this.#make(what);
    }
  }

  /** live: whether a session is there to be asked. */
  show(live = this.live) {
    this.live = live;
    for (const [what, words] of Object.entries(this.words)) {
      $(what).disabled = !live || this.awaited !== null;
      $(what).textContent = this.asked.get(this.awaited) === what ? "Saving…" : words;
    }
  }

  /** Whoever was asked may be gone: wait no longer. An answer that comes all the same is taken. */
  lost() {
    this.awaited = null;
    this.show();
  }

  /** Another session: ids begin anew. */
  clear() {
    this.asked.clear();
    this.lost();
  }

  refused(id) {
    this.asked.delete(id);
    this.#done(id);
  }

  async exported(id, url) {
    const what = this.asked.get(id);
    if (what === undefined) return;
    try {
      save(await this.fetch(url), this.named() + ENDS[what]);
    } catch (error) {
      note(`The ${what} could not be fetched: ${error.message}`);
    }
    this.asked.delete(id);
    this.#done(id);
  }

  #make(what) {
    const id = this.ask(what);
    if (id === null) return;
    this.asked.set(id, what);
    this.awaited = id;
    this.show();
  }

  #done(id) {
    if (this.awaited === id) this.awaited = null;
    this.show();
  }
}
