// The prompts: those of the world to choose from, or a box for any text and what was written there before.

import { $, Choice, make } from "./view.js";
import { SWITCHES } from "./protocol.js";

const HISTORY = 6;
const PAST = {
  blend: "The old scene turns into the new one.",
  cut: "A new scene begins with the next frame.",
  recache: "The scene stays; the prompt takes over sooner.",
};

export class Prompts {
  /** said(text or null): a prompt was chosen or written. */
  constructor(said) {
    this.said = said;
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

  remember(text) {
    if (text !== null) this.earlier = [text, ...this.earlier.filter((each) => each !== text)].slice(0, HISTORY);
  }

  /** now: what is so; asked: what was asked for and is not so yet, undefined for nothing. */
  show(now, asked) {
    const offered = this.free ? this.earlier : this.offered;
    const chips = [...$("chips").children];
    if (chips.map(({ title }) => title).join("\n") !== offered.join("\n")) {
      $("chips").replaceChildren(...offered.map((text, i) => this.#chip(text, i)));
    }
    for (const chip of $("chips").children) {
      chip.setAttribute("aria-pressed", String(chip.title === now));
      chip.classList.toggle("asked", chip.title === asked);
    }
  }

  #chip(text, i) {
    const chip = make("button", { type: "button", textContent: text, title: text });
    chip.dataset.testid = `prompt-${i}`;
    chip.onclick = () => this.said(text);
    return chip;
  }

  #written(event) {
    event.preventDefault();
    this.said($("prompt").value.trim() || null);
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
