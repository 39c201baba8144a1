// Where the page stands, in words: what is wrong, and what can be done.

const seconds = (ms) => `${Math.max(1, Math.round(ms / 1000))} s`;

/** name -> what is known of it -> {tone, status, title, text, act, held}. With a title, it covers the picture (held:
 * lightly, as the last one is still good); act: the name of what a button offers, and what it says. */
const STATES = {
  joining: () => ({ tone: "busy", status: "Joining", title: "Asking for a place" }),
  loading: () => ({
    tone: "busy",
    status: "Loading",
    title: "Loading the world",
    text: "It has just been started: this takes a few seconds, of a large model a minute or two.",
  }),
  queued: ({ position, eta }) => ({
    tone: "busy",
    status: position ? `Queued at ${position}` : "Queued",
    title: position ? `Number ${position} in the queue` : "In the queue",
    text: eta ? `Your turn comes in about ${seconds(1000 * eta)}.` : "Everyone is served in turn.",
  }),
  broken: ({ message, wait }) => ({
    tone: "bad",
    status: "Out of order",
    title: "The world could not be started",
    text: `${message} Looking again in ${seconds(wait)}.`,
    act: ["hurry", "Try now"],
  }),
  full: ({ wait }) => ({
    tone: "busy",
    status: "Full",
    title: "Every place is taken",
    text: `The queue is full, too. Trying again in ${seconds(wait)}.`,
    act: ["hurry", "Try now"],
  }),
  away: ({ wait }) => ({
    tone: "bad",
    status: "No answer",
    title: "The server does not answer",
    text: `Is it running? Trying again in ${seconds(wait)}.`,
    act: ["hurry", "Try now"],
  }),
  token: ({ message }) => ({ tone: "bad", status: "Token needed", title: "A token is needed", text: message }),
  connecting: () => ({ tone: "busy", status: "Connecting", title: "Connecting" }),
  starting: ({ message }) => ({ tone: "busy", status: "Starting", title: "The world begins", text: message }),
  live: () => ({ tone: "good", status: "Live" }),
  paused: () => ({ tone: "calm", status: "Paused" }),
  reconnecting: ({ wait, tries }) => ({
    tone: "busy",
    status: "Reconnecting",
    title: "The connection was lost",
    text: `Your session is kept for a while. Try ${tries} in ${seconds(wait)}.`,
    act: ["hurry", "Try now"],
    held: true,
  }),
  gone: ({ wait }) => ({
    tone: "bad",
    status: "Server closed",
    title: "The server was closed",
    text: `Its sessions ended with it. Looking whether it is back in ${seconds(wait)}.`,
    act: ["hurry", "Try now"],
    held: true,
  }),
  recovering: ({ message }) => ({
    tone: "busy",
    status: "Recovering",
    title: "Recovering",
    text: message || "The engine had to be restarted. Your session goes on in a moment.",
    held: true,
  }),
  draining: () => ({ tone: "bad", status: "Server is closing" }),
  closed: ({ message }) => ({
    tone: "calm",
    status: "Closed",
    title: "The session is over",
    text: message,
    act: ["restart", "Start again"],
    held: true,
  }),
  error: ({ message }) => ({
    tone: "bad",
    status: "Error",
    title: "This did not work",
    text: message,
    act: ["reload", "Reload the page"],
  }),
};

/** A message that names seconds, so many ms after it was told: "in 10 s" is "in 7 s" by then. */
export function later(message, ms) {
  return message.replace(/\d+(\.\d+)?(?= s\b)/, (seconds) => Math.max(0, Math.round(seconds - ms / 1000)));
}

export function describe(name, known = {}) {
  return { title: "", text: "", act: null, held: false, ...STATES[name](known) };
}
