// The way to the server: the token for a session, requests with the key, streams that come again where they broke off.
// Every request goes to this page's own origin, and has the header that only this page can send.

const KEY = "phone-opus-key";
const OURS = "X-Phone-Opus";

// Why nothing is shown: somebody has to open the address that the program prints.
export class Locked extends Error {}

function kept() {
  try { return localStorage.getItem(KEY) ?? ""; } catch { return ""; }
}

let key = kept();

// What stands behind # in an address that opens the page. It is gone from the address before anything else is done.
function token() {
  const said = location.hash.slice(1);
  if (!/^[0-9a-f]{64}$/.test(said)) return null;
  history.replaceState(null, "", location.pathname);
  return said;
}

// Exchanges the token of the address, where it has one.
export async function open() {
  const said = token();
  if (said === null) return;
  const answer = await fetch("/api/session", {
    method: "POST",
    headers: { "Content-Type": "application/json", [OURS]: "1" },
    body: JSON.stringify({ token: said }),
  });
  if (!answer.ok) {
    // A page that was open before may go on.
    if (key) return;
    throw new Locked("This address was used already, or its dashboard has ended.");
  }
  key = (await answer.json()).key;
  try { localStorage.setItem(KEY, key); } catch { /* this tab has it */ }
}

async function refusal(answer) {
  let error = {};
  try { error = (await answer.json()).error ?? {}; } catch { /* no JSON */ }
  const words = error.detail ?? `the server answered ${answer.status}`;
  return answer.status === 401 || error.code === "header_missing" ? new Locked(words) : new Error(words);
}

export async function change(path) {
  const answer = await fetch(path, { method: "POST", headers: { [OURS]: key || "1" } });
  if (!answer.ok) throw await refusal(answer);
  return answer.json();
}

// Reads a stream of events: lines until an empty one, `field: value`; what begins with a colon is a sign of life.
export class Events {
  constructor(hear) {
    this.hear = hear;
    this.rest = "";
    this.event = { id: null, name: "message", data: "" };
  }

  take(text) {
    const lines = (this.rest + text).split("\n");
    this.rest = lines.pop();
    for (const line of lines) this.line(line);
  }

  line(line) {
    if (line === "") {
      if (this.event.data !== "") this.hear(this.event.name, JSON.parse(this.event.data), this.event.id);
      this.event = { id: null, name: "message", data: "" };
      return;
    }
    const at = line.indexOf(":");
    if (at <= 0) return;
    const value = line.slice(at + 1).replace(/^ /, "");
    const field = line.slice(0, at);
    if (field === "data") this.event.data += value;
    else if (field === "event") this.event.name = value;
    else if (field === "id") this.event.id = value;
  }
}

// Nothing for so long, not even a sign of life: the way is broken.
const SILENCE = 40_000;
const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 10_000;

// Follows a stream until `stop()`, or until an event is heard after which `hear` returns false.
export class Stream {
  constructor(path, hear, tell) {
    Object.assign(this, { path, hear, tell, last: null, pause: FIRST_PAUSE, ended: false, paused: false });
    this.run();
  }

  stop() {
    this.ended = true;
    this.abort?.abort();
    this.wake?.();
  }

  // A page that nobody looks at needs no stream.
  rest(paused) {
    if (this.paused === paused || this.ended) return;
    this.paused = paused;
    if (paused) this.abort?.abort();
    else this.wake?.();
  }

  async run() {
    while (!this.ended) {
      if (this.paused) await new Promise((wake) => { this.wake = wake; });
      if (this.ended) return;
      try {
        await this.once();
      } catch (error) {
        if (this.ended) return;
        if (error instanceof Locked) {
          this.ended = true;
          this.tell("locked", error.message);
          return;
        }
        if (!this.paused) this.tell("lost", error.message);
      }
      if (this.ended || this.paused) continue;
      await new Promise((wake) => { this.wake = wake; setTimeout(wake, this.pause); });
      this.pause = Math.min(this.pause * 2, LONGEST_PAUSE);
    }
  }

  async once() {
    this.abort = new AbortController();
    let silence;
    const heard = () => {
      clearTimeout(silence);
      silence = setTimeout(() => this.abort.abort(), SILENCE);
    };
    heard();
    try {
      const headers = { [OURS]: key || "1", Accept: "text/event-stream" };
      if (this.last !== null) headers["Last-Event-ID"] = this.last;
      const answer = await fetch(this.path, { headers, signal: this.abort.signal, cache: "no-store" });
      if (!answer.ok) throw await refusal(answer);
      this.pause = FIRST_PAUSE;
      this.tell("live");
      const events = new Events((name, data, id) => {
        if (id !== null) this.last = id;
        if (this.hear(name, data) === false) this.ended = true;
      });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done || this.ended) return;
        heard();
        events.take(value);
      }
    } finally {
      clearTimeout(silence);
    }
  }
}
