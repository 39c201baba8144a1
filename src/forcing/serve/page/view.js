// What is on the page: finding it, filling it, and how large a picture is.

const SMALL = 256; // pixels: what is no wider is made of pixels that should be seen as such

export const $ = (id) => document.getElementById(id);

export function make(kind, properties = {}, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
}

/** CSS size of a picture in a room; ratio: device pixels of a CSS pixel. Small ones get whole multiples. */
export function fit({ width, height }, room, ratio) {
  const most = Math.min(room.width / width, room.height / height) * ratio;
  const crisp = width <= SMALL && most >= 1;
  const scale = (crisp ? Math.floor(most) : most) / ratio;
  return { width: width * scale, height: height * scale, crisp };
}

/** Buttons of which one is chosen. choices: [value, label]. */
export class Choice {
  constructor(parent, testid, choices, chosen, changed) {
    this.buttons = choices.map(([value, label]) => {
      const button = make("button", { type: "button", textContent: label });
      button.dataset.testid = `${testid}-${value}`;
      button.onclick = () => {
        this.choose(value);
        changed(value);
      };
      return [value, button];
    });
    parent.replaceChildren(...this.buttons.map(([, button]) => button));
    this.choose(chosen);
  }

  choose(value) {
    this.value = value;
    for (const [each, button] of this.buttons) button.setAttribute("aria-pressed", String(each === value));
  }
}

/** The picture, the environment beside it, and what covers them. */
export class Stage {
  constructor() {
    this.picture = $("picture");
    this.reality = $("reality");
    this.size = { width: 56, height: 56 };
    new ResizeObserver(() => this.measure()).observe($("stage").parentElement);
    addEventListener("resize", () => this.measure());
  }

  show({ bitmap, beside }) {
    this.#draw(this.picture, bitmap);
    if (beside) this.#draw(this.reality, beside);
    this.compare(beside !== null);
  }

  compare(on) {
    if ($("beside").hidden === !on) return;
    $("beside").hidden = $("imagined").hidden = !on;
    this.measure();
  }

  of(size) {
    this.size = size;
    this.measure();
  }

  measure() {
    const pictures = $("beside").hidden ? 1 : 2;
    const wide = matchMedia("(min-width: 901px)").matches;
    const low = matchMedia("(max-height: 500px) and (orientation: landscape)").matches; // a phone on its side
    const height = wide ? Math.max(224, innerHeight - 350) : Math.max(200, low ? innerHeight - 90 : 0.5 * innerHeight);
    const style = getComputedStyle($("stage"));
    const around = 2 * parseFloat(style.paddingLeft) + parseFloat(style.columnGap) * (pictures - 1);
    const room = { width: ($("stage").parentElement.clientWidth - around) / pictures, height };
    const { width, height: tall, crisp } = fit(this.size, room, devicePixelRatio);
    for (const canvas of [this.picture, this.reality]) {
      canvas.style.width = `${width}px`;
      canvas.style.height = `${tall}px`;
      canvas.classList.toggle("crisp", crisp);
    }
  }

  #draw(canvas, bitmap) {
    if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
  }
}

/** Say where we stand, as `describe` put it; acts: what its button may do, by name. */
export function stand({ tone, status, title, text, act, held }, acts) {
  document.title = tone === "good" ? "forcing" : `${status} – forcing`;
  $("status").parentElement.dataset.tone = tone;
  $("status").textContent = status;
  $("veil").hidden = !title;
  $("veil").classList.toggle("light", held);
  $("veil-title").textContent = title;
  $("veil-text").textContent = text ?? "";
  $("veil-do").hidden = act === null;
  if (act) {
    $("veil-do").textContent = act[1];
    $("veil-do").onclick = acts[act[0]];
  }
}

const NOTES = 3;
const NOTE_MS = 10_000;

/** Something to know, for a while; the same again replaces it. link: {href, text}. */
export function note(text, link = null) {
  const notes = $("notes");
  for (const old of [...notes.children]) if (old.dataset.text === text) old.remove();
  const close = make("button", { type: "button", className: "quiet", textContent: "×", ariaLabel: "Close" });
  const said = make("div", { className: "note" }, text, ...(link ? [make("a", { ...link, target: "_blank" })] : []), close);
  said.dataset.text = text;
  close.onclick = () => said.remove();
  notes.append(said);
  while (notes.children.length > NOTES) notes.firstChild.remove();
  setTimeout(() => said.remove(), NOTE_MS);
}

/** Hand a Blob to the viewer as a file. */
export function save(blob, name) {
  const href = URL.createObjectURL(blob);
  make("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}

/** The on-screen keys. names: of the world; signs: what to press on a keyboard; on: {down(source, name,
 * at), up(source), tap(name, at)}. */
export function pad(parent, names, signs, on) {
  parent.replaceChildren(...names.map((name, i) => {
    const button = make("button", { type: "button", title: name, ariaLabel: name });
    button.dataset.testid = `key-${name}`;
    button.dataset.place = name.toLowerCase();
    const known = $(`sign-${button.dataset.place}`);
    if (known) button.innerHTML = `<svg aria-hidden="true"><use href="#${known.id}"/></svg>`;
    else button.append(name);
    if (signs[i]) button.append(make("small", { textContent: signs[i] }));
    hold(button, name, on);
    return button;
  }));
}

function hold(button, name, on) {
  button.onpointerdown = (event) => {
    if (event.button) return;
    button.setPointerCapture(event.pointerId); // a finger that slides off still lets go here
    on.down(`pointer ${event.pointerId}`, name, event.timeStamp);
  };
  button.onpointerup = button.onpointercancel = (event) => on.up(`pointer ${event.pointerId}`);
  button.oncontextmenu = (event) => event.preventDefault(); // a long touch is a held key
  button.onclick = (event) => {
    if (event.detail) return; // a pointer's click was heard above
    on.tap(name, event.timeStamp);
  };
}

/** Which on-screen keys look pressed. */
export function press(parent, held) {
  for (const button of parent.children) button.classList.toggle("held", held.includes(button.title));
}

const THEMES = ["auto", "light", "dark"];

/** The button that goes through the themes; changed(): colours are others now. */
export function themes(button, changed) {
  const { dataset } = document.documentElement;
  const show = () => { button.textContent = `Theme: ${dataset.theme}`; };
  button.onclick = () => {
    dataset.theme = THEMES[(THEMES.indexOf(dataset.theme) + 1) % THEMES.length];
    show();
    changed();
    try {
      localStorage.setItem("theme", dataset.theme);
    } catch {
      note("This browser keeps nothing: the theme lasts until the page is closed.");
    }
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  show();
}

/** Files dropped anywhere go to dropped(file); `zone` shows that they may. */
export function dropZone(zone, dropped) {
  const over = (on) => zone.classList.toggle("dropping", on);
  addEventListener("dragover", (event) => {
    event.preventDefault();
    over(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? over(false)); // null: out of the window
  addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    const [file] = event.dataTransfer.files;
    if (file) dropped(file);
  });
}
