// The prompts: what is so, what is asked for, and what can be: those of the world to choose from, or a box for any text
// and what was written there before.

import { $, Choice, make } from "./view.js";
import { SWITCHES } from "./protocol.js";

const HISTORY = 6;
const PAST = {
  blend: "The old scene turns into the new one.",
  cut: "A new scene begins with the next frame.",
  recache: "The scene stays; the prompt takes over sooner.",
};

export class Prompts {
  /** say(text or null, switch): returns the id that answers will have, or null where nobody hears. changed(prompt):
   * that is so now, or soon. */
  constructor(timeline, say, changed) {
    this.timeline = timeline;
    this.say = say;
    this.changed = changed;
    this.now = null; // what is so
    this.asks = new Map(); // id -> {text, how, accepted}: what is not applied yet
    this.returning = false; // going back, which is not sure yet
    this.offered = [];
    this.free = false;
    this.earlier = []; // the newest first
    const explain = (value) => { $("switch-hint").textContent = PAST[value]; };
    this.switches = new Choice($("switches"), "switch", SWITCHES.map((each) => [each, each]), "blend", explain);
    explain("blend");
    $("prompt-form").onsubmit = (event) => this.#written(event);
    $("prompt").onkeydown = (event) => this.#typed(event);
  }

  of(world) {
    this.free = world.prompts.length === 0;
    this.offered = world.prompts;
    $("prompt-form").hidden = !this.free;
  }

  get switch() {
    return this.switches.value;
  }

  focus() {
    (this.free ? $("prompt") : $("chips").firstChild)?.focus();
  }

  /** What was asked for last and is not so yet: {text}, or undefined. */
  get asked() {
    return [...this.asks.values()].at(-1);
  }

  /** A beginning, under this prompt. */
  begin(text) {
    this.now = text;
    this.asks.clear();
    this.returning = false;
    this.timeline.clear(text);
    this.#remember(text);
    this.show();
  }

  ask(text, how = this.switch) {
    const id = this.say(text, how);
    if (id === null) return;
    this.asks.set(id, { text, how, accepted: false });
    this.#remember(text);
    this.#turn();
  }

  /** On another socket: what was said into the one that was lost may not have been heard. */
  resume() {
    if (this.returning) this.#stay();
    for (const [id, { text, how, accepted }] of [...this.asks]) {
      if (accepted) continue;
      this.asks.delete(id);
      this.ask(text, how);
    }
  }

  accepted(id) {
    if (this.asks.has(id)) this.asks.get(id).accepted = true;
  }

  /** From latent frame `latent` on it is so. */
  applied(id, latent) {
    const asked = this.asks.get(id);
    if (!asked) return;
    for (const each of [...this.asks.keys()]) if (each <= id) this.asks.delete(each); // an earlier answer was lost
    this.now = asked.text;
    this.timeline.applied(latent, asked.text);
    this.#turn();
  }

  /** id: of what was refused; undefined: it had none. */
  refused(id) {
    if (this.asks.delete(id)) this.#turn();
    else if (id === undefined && this.returning) this.#stay();
  }

  /** What a frame that is made again goes on with: the prompt of the one before. */
  before(latent) {
    return this.timeline.promptAt(Math.max(0, latent - 1));
  }

  /** Going back to before latent frame `latent` was asked for: as it seems from here. */
  back(latent) {
    this.returning = true;
    this.now = this.before(latent);
    this.show();
  }

  /** It went back: what comes next is latent frame `latent`, under this prompt. */
  went(latent, text) {
    this.returning = false;
    this.now = text;
    this.timeline.back(latent, text);
    this.#turn();
  }

  show() {
    const { now, asked } = this;
    const offered = this.free ? this.earlier : this.offered;
    const chips = [...$("chips").children];
    if (chips.map(({ title }) => title).join("\n") !== offered.join("\n")) {
      $("chips").replaceChildren(...offered.map((text, i) => this.#chip(text, i)));
    }
    for (const chip of $("chips").children) {
      chip.setAttribute("aria-pressed", String(chip.title === now));
      chip.classList.toggle("asked", chip.title === asked?.text);
    }
  }

  #stay() {
    this.returning = false;
    this.now = this.timeline.promptAt(Infinity);
    this.#turn();
  }

  #turn() {
    this.changed((this.asked ?? { text: this.now }).text);
    this.show();
  }

  #remember(text) {
    if (text !== null) this.earlier = [text, ...this.earlier.filter((each) => each !== text)].slice(0, HISTORY);
  }

  #chip(text, i) {
    const chip = make("button", { type: "button", textContent: text, title: text });
    chip.dataset.testid = `prompt-${i}`;
    chip.onclick = () => this.ask(text);
    return chip;
  }

  #written(event) {
    event.preventDefault();
    this.ask($("prompt").value.trim() || null);
    $("stage").focus({ preventScroll: true }); // the next key is for the world
  }

  #typed(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      $("prompt-form").requestSubmit();
    } else this.#recall(event);
  }

  // Earlier prompts by the arrows, at the ends of the box.
  #recall(event) {
    const box = $("prompt");
    const up = event.key === "ArrowUp" && box.selectionEnd === 0;
    const down = event.key === "ArrowDown" && box.selectionStart === box.value.length;
    if (!up && !down) return;
    const next = this.earlier.indexOf(box.value) + (up ? 1 : -1);
    if (next >= this.earlier.length) return;
    event.preventDefault();
    box.value = this.earlier[next] ?? "";
    const caret = up ? 0 : box.value.length;
    box.setSelectionRange(caret, caret);
  }
}
