// What was applied lately: prompts as a band, keys as marks below it, one column for each picture.

export const KEPT = 512; // pictures
const LANES = 6;
const BAND = 24;
const GLYPH = 18; // for the keys' signs, on the left
const COLUMN = 6;

/** What there is to draw. */
export class Timeline {
  constructor(keep = KEPT) {
    this.keep = keep;
    this.clear(null);
  }

  /** A beginning, under this prompt. */
  clear(prompt) {
    this.columns = []; // {frame, latent, keys}
    this.prompts = [{ latent: 0, text: prompt }];
    this.told = new Map(); // id of a message -> {held, tapped}
    this.heard = 0;
  }

  /** These keys were sent as message `id`. */
  pressed(id, keys) {
    this.told.set(id, keys);
  }

  /** From latent frame `latent` on it is this prompt. */
  applied(latent, text) {
    this.prompts = [...this.prompts.filter((prompt) => prompt.latent < latent), { latent, text }];
  }

  /** It went back: what comes next is latent frame `latent`, under this prompt. */
  back(latent, text) {
    this.columns = this.columns.filter((column) => column.latent < latent);
    this.applied(latent, text);
  }

  /** A picture was shown. Where it is one that was there before, the session went back: forget what came after. */
  showed({ frame, latent, event }) {
    if (this.columns.length && frame <= this.columns.at(-1).frame) {
      this.columns = this.columns.filter((column) => column.frame < frame);
      const later = this.prompts.findIndex((prompt) => prompt.latent > latent);
      if (later > 0) this.prompts.length = later;
    }
    this.columns.push({ frame, latent, keys: this.#keys(event) });
    if (this.columns.length > this.keep) this.columns.shift();
  }

  promptAt(latent) {
    return this.prompts.findLast((prompt) => prompt.latent <= latent)?.text ?? null;
  }

  // A tap counts for the first picture that was made with it; so does a key that was down between two pictures only.
  #keys(event) {
    const heard = this.told.get(event);
    const before = this.told.get(this.heard)?.held ?? [];
    const between = [...this.told].filter(([id]) => id > this.heard && id < event).map(([, keys]) => keys);
    const missed = between.flatMap(({ held, tapped }) => [...tapped, ...held.filter((name) => !before.includes(name))]);
    const first = event !== this.heard;
    this.heard = event;
    for (const id of this.told.keys()) if (id < event) this.told.delete(id);
    // of the keys that are down, the world hears the one that went down last
    return heard ? [...new Set([...heard.held.slice(-1), ...(first ? [...heard.tapped, ...missed] : [])])] : [];
  }
}

/** The canvas. picked(latent frame, apart): a moment was clicked; apart: with the shift key. */
export class Strip {
  constructor(canvas, timeline, picked) {
    this.canvas = canvas;
    this.timeline = timeline;
    this.names = [];
    this.pointed = null; // x in CSS pixels
    canvas.onpointermove = (event) => this.#point(event.offsetX);
    canvas.onpointerleave = () => this.#point(null);
    canvas.onclick = (event) => {
      const column = this.at(event.offsetX);
      if (column) picked(column.latent, event.shiftKey);
    };
  }

  /** names: the world's keys; signs: what to draw for them. */
  lanes(names, signs) {
    this.names = names.slice(0, LANES);
    this.signs = signs;
  }

  /** The column under x, or undefined. */
  at(x) {
    const shown = this.#shown();
    return shown[Math.floor((x - GLYPH) / COLUMN)];
  }

  #point(x) {
    this.pointed = x;
    const column = x === null ? undefined : this.at(x);
    this.canvas.title = column ? `Go back to frame ${column.latent} (with shift: in a fork)` : "";
    this.draw();
  }

  #shown() {
    const room = Math.max(1, Math.floor((this.canvas.clientWidth - GLYPH) / COLUMN));
    return this.timeline.columns.slice(-room);
  }

  draw() {
    const { canvas } = this;
    const ratio = devicePixelRatio;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const brush = canvas.getContext("2d");
    brush.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(`--${name}`);
    brush.font = `12px ${style.fontFamily}`;
    brush.textBaseline = "middle";
    const shown = this.#shown();
    this.#band(brush, colour, shown, width);
    this.#marks(brush, colour, shown, width, height);
    this.#pointer(brush, colour, height);
  }

  #band(brush, colour, shown, width) {
    let from = 0;
    while (from < shown.length) {
      const text = this.timeline.promptAt(shown[from].latent);
      let to = from + 1;
      while (to < shown.length && this.timeline.promptAt(shown[to].latent) === text) to += 1;
      const left = GLYPH + from * COLUMN;
      const right = to === shown.length ? width : GLYPH + to * COLUMN;
      brush.fillStyle = colour("soft");
      brush.fillRect(left, 0, right - left - 2, BAND - 4);
      brush.fillStyle = colour("accent");
      brush.fillRect(left, 0, 2, BAND - 4);
      brush.save();
      brush.beginPath();
      brush.rect(left, 0, right - left - 8, BAND);
      brush.clip();
      brush.fillStyle = colour("ink");
      brush.fillText(text ?? "no prompt", left + 8, (BAND - 4) / 2 + 0.5);
      brush.restore();
      from = to;
    }
  }

  #marks(brush, colour, shown, width, height) {
    const lane = (height - BAND) / Math.max(1, this.names.length);
    this.names.forEach((name, row) => {
      const middle = BAND + lane * (row + 0.5);
      brush.fillStyle = colour("faint");
      brush.fillText(this.signs[row], 2, middle);
      brush.fillStyle = colour("line");
      brush.fillRect(GLYPH, middle - 0.5, width - GLYPH, 1);
      brush.fillStyle = colour("accent");
      const thick = Math.min(6, lane - 3);
      shown.forEach((column, i) => {
        if (column.keys.includes(name)) brush.fillRect(GLYPH + i * COLUMN, middle - thick / 2, COLUMN - 1, thick);
      });
    });
  }

  #pointer(brush, colour, height) {
    if (this.pointed === null || !this.at(this.pointed)) return;
    const x = GLYPH + Math.floor((this.pointed - GLYPH) / COLUMN) * COLUMN;
    brush.fillStyle = colour("ink");
    brush.fillRect(x, 0, 1.5, height);
  }
}
