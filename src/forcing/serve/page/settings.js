// What a session begins with, as it is kept in a link: page.html#prompt=four+rooms&seed=3.

export function dice() {
  return Math.floor(Math.random() * 1e6);
}

/** The whole number that a text is, or null. */
export function whole(text) {
  return /^\d{1,15}$/.test(text) ? Number(text) : null;
}

/** What a link says; a seed is drawn where it says none. given: URLSearchParams. */
export function linked(given) {
  return {
    prompt: given.get("prompt"),
    seed: whole(given.get("seed")) ?? dice(),
    steps: whole(given.get("steps")),
    image: null,
    reality: given.get("reality") === "true",
  };
}

/** A link's end for a session that goes on elsewhere, with what began it. An uploaded image is not ours to hand on. */
export function fragment(ticket, { prompt, seed, steps, reality }) {
  const said = Object.entries({ ticket, prompt, seed, steps, reality }).filter(([, value]) => value !== null);
  return new URLSearchParams(said).toString();
}
