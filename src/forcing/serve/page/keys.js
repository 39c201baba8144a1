// Which keys of the world are held and which were tapped, from keyboard, on-screen buttons and touch.

// Where a key of a world is expected on a keyboard, by its name; any other one gets a digit.
const PLACES = {
  left: ["ArrowLeft", "KeyA"],
  right: ["ArrowRight", "KeyD"],
  forward: ["ArrowUp", "KeyW"],
  up: ["ArrowUp", "KeyW"],
  back: ["ArrowDown", "KeyS"],
  backward: ["ArrowDown", "KeyS"],
  down: ["ArrowDown", "KeyS"],
  wait: ["Space"],
  noop: ["Space"],
};
const SIGNS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", Space: "space" };

/** {code of a keyboard's key: name of a world's key}. */
export function bindings(names) {
  const found = {};
  let digit = 1;
  for (const name of names) {
    const codes = (PLACES[name.toLowerCase()] ?? []).filter((code) => !(code in found));
    if (!codes.length && digit <= 9) codes.push(`Digit${digit++}`);
    for (const code of codes) found[code] = name;
  }
  return found;
}

/** What to print on the on-screen key `name`. */
export function sign(name, bound) {
  const code = Object.keys(bound).find((each) => bound[each] === name);
  return code === undefined ? "" : (SIGNS[code] ?? code.replace(/^(Key|Digit)/, ""));
}

/** Whether a key event means something to what has the focus, and so not to the world. */
export function belongs({ code, ctrlKey, metaKey, altKey, target }) {
  if (ctrlKey || metaKey || altKey) return true;
  const kind = target?.tagName?.toLowerCase();
  if (target?.isContentEditable || ["input", "textarea", "select"].includes(kind)) return true;
  return ["button", "a", "summary"].includes(kind) && (code === "Space" || code === "Enter");
}

/** A key is held while anything holds it: a finger on the screen and one on the keyboard are two sources. */
export class Keys {
  constructor() {
    this.sources = new Map();
    this.forget();
  }

  get held() {
    return [...new Set(this.sources.values())];
  }

  /** `source` (anything that is equal to itself) begins to hold `name`; false where it did already. */
  down(source, name) {
    if (this.sources.has(source)) return false;
    if (!this.held.includes(name)) this.fresh.add(name);
    this.sources.set(source, name);
    return true;
  }

  up(source) {
    const name = this.sources.get(source);
    if (name === undefined) return false;
    this.sources.delete(source);
    if (this.fresh.delete(name) && !this.held.includes(name)) this.tapped.add(name);
    return true;
  }

  /** Down and up at once. */
  tap(name) {
    this.tapped.add(name);
  }

  /** Let go of everything: the focus is elsewhere, and no key-up will come. */
  release() {
    const any = this.sources.size > 0;
    for (const source of [...this.sources.keys()]) this.up(source);
    return any;
  }

  /** What to say: the keys that are down, and those that went down and up since this was last asked. */
  take() {
    const said = { held: this.held, tapped: [...this.tapped].filter((name) => !this.held.includes(name)) };
    this.forget();
    return said;
  }

  forget() {
    this.fresh = new Set(); // went down since `take`
    this.tapped = new Set();
  }
}
