// What page and gateway say to each other: the names and numbers of wire.py. A test compares the two.

export const PROTOCOL = 1;
export const MOST = { control: 16 * 1024, prompt: 2000, keys: 16, grant: 8 };

export const SWITCHES = ["blend", "cut", "recache"];
export const STATES = ["queued", "starting", "live", "paused", "detached", "recovering", "draining", "closed"];
export const CODES = [
  "bad_message", "bad_ticket", "bad_prompt", "bad_key", "bad_image", "bad_save", "bad_steps", "too_fast", "not_begun",
  "not_kept", "busy", "failed", "engine", "expired", "draining", "protocol",
];
export const CLOSE = {
  NORMAL: 1000, GOING_AWAY: 1001, UNSUPPORTED: 1003, POLICY: 1008, TOO_BIG: 1009, FAILED: 1011, TRY_LATER: 1013,
};

// Fields of each message, by its type.
export const SAID = {
  hello: ["ticket", "protocol"],
  begin: ["prompt", "seed", "steps", "image", "reality", "save"],
  prompt: ["id", "text", "switch"],
  keys: ["id", "held", "tapped"],
  grant: ["chunks", "frame", "age_ms"],
  pause: ["on"],
  back: ["frame"],
  fork: ["id", "frame"],
  export: ["id", "what"],
  ping: ["id"],
  bye: [],
};
export const TOLD = {
  ready: ["session", "resume", "world", "protocol"],
  accepted: ["id"],
  applied: ["id", "frame", "generation"],
  went: ["frame", "prompt", "generation"],
  state: ["state", "generation", "message"],
  stats: ["fps", "pass_ms", "sessions"],
  ticket: ["id", "ticket"],
  exported: ["id", "url"],
  pong: ["id", "clock_us"],
  warning: ["message"],
  error: ["code", "message", "retryable", "id"],
};
export const WORLD = [
  "name", "prompts", "keys", "width", "height", "fps", "frames", "chunk", "steps", "reality", "hint", "first",
];

// A picture's header, little-endian and without gaps, as Python's struct calls the types.
export const VERSION = 1;
export const CODECS = { 1: "image/jpeg", 2: "image/png" };
export const HEADER = [
  ["version", "B"], ["codec", "B"], ["spare0", "B"], ["spare1", "B"],
  ["generation", "I"], ["frame", "I"], ["latent", "I"], ["made_us", "Q"], ["event", "Q"],
  ["took_us", "I"], ["mark", "I"], ["length", "I"],
];
const TYPES = {
  B: { bytes: 1, get: (view, at) => view.getUint8(at), set: (view, at, n) => view.setUint8(at, n) },
  I: { bytes: 4, get: (view, at) => view.getUint32(at, true), set: (view, at, n) => view.setUint32(at, n, true) },
  Q: {
    bytes: 8,
    get: (view, at) => Number(view.getBigUint64(at, true)),
    set: (view, at, n) => view.setBigUint64(at, BigInt(n), true),
  },
};
export const HEADER_BYTES = HEADER.reduce((bytes, [, type]) => bytes + TYPES[type].bytes, 0);

/** A message as text. */
export function say(type, fields = {}) {
  const unknown = Object.keys(fields).filter((name) => !SAID[type].includes(name));
  if (unknown.length) throw new Error(`${type} has no ${unknown.join(", ")}`);
  return JSON.stringify({ type, ...fields });
}

/** The header's numbers with `image` and `reality` (empty where there is none): views of the ArrayBuffer `data`. */
export function unpack(data) {
  if (data.byteLength < HEADER_BYTES) throw new Error(`not a picture: ${data.byteLength} bytes`);
  const view = new DataView(data);
  const picture = {};
  let at = 0;
  for (const [name, type] of HEADER) {
    picture[name] = TYPES[type].get(view, at);
    at += TYPES[type].bytes;
  }
  if (picture.version !== VERSION || !(picture.codec in CODECS) || data.byteLength < at + picture.length) {
    throw new Error(`not a picture: version ${picture.version}, codec ${picture.codec}, ${data.byteLength} bytes`);
  }
  picture.image = new Uint8Array(data, at, picture.length);
  picture.reality = new Uint8Array(data, at + picture.length);
  return picture;
}

/** What `unpack` reads. */
export function pack({ image, reality = new Uint8Array(), ...numbers }) {
  const data = new Uint8Array(HEADER_BYTES + image.length + reality.length);
  const view = new DataView(data.buffer);
  const values = { version: VERSION, codec: 1, spare0: 0, spare1: 0, ...numbers, length: image.length };
  let at = 0;
  for (const [name, type] of HEADER) {
    TYPES[type].set(view, at, values[name]);
    at += TYPES[type].bytes;
  }
  data.set(image, at);
  data.set(reality, at + image.length);
  return data.buffer;
}
