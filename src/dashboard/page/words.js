// Text and numbers as a person reads them. Whatever an agent or a client said becomes text here, and nothing but text.

// Characters that move, hide or turn round what stands beside them: shown by name, so that nobody is deceived by an answer.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g;

function named(letter) {
  const code = letter.codePointAt(0);
  if (code === 13) return "";
  if (code < 32) return String.fromCodePoint(0x2400 + code);
  if (code === 127) return "\u2421";
  return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
}

export function shown(text) {
  return String(text ?? "").replace(/\r\n/g, "\n").replace(HIDDEN, named);
}

export function line(text, most = 300) {
  const flat = shown(text).replace(/\s+/g, " ").trim();
  return flat.length > most ? `${flat.slice(0, most)}…` : flat;
}

// An element with text in it; never markup.
export function make(tag, set = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(set)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, does] of Object.entries(value)) element.addEventListener(event, does);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function elapsed(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return "";
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return ms < 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return seconds % 60 ? `${minutes} min ${seconds % 60} s` : `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} days`;
}

export function ago(at, now) {
  const ms = Math.max(0, now - at);
  if (ms < 5000) return "now";
  if (ms < 60_000) return `${Math.floor(ms / 1000)} s ago`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ago`;
  if (ms < 172_800_000) return `${Math.floor(ms / 3_600_000)} h ago`;
  return `${Math.floor(ms / 86_400_000)} days ago`;
}

// How long something has been so, as roughly as `ago`.
export function lasting(at, now) {
  const words = ago(at, now);
  return words === "now" ? "a moment" : words.replace(/ ago$/, "");
}

const CLOCK = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const TIME = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
export const when = (at) => (at === null || at === undefined ? "" : CLOCK.format(at));
export const timeOf = (at) => TIME.format(at);

export function money(usd) {
  if (usd === null || usd === undefined) return "not known";
  return usd !== 0 && Math.abs(usd) < 0.1 ? `$${usd.toFixed(4)}` : `$${usd.toFixed(2)}`;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

export const last = (path) => String(path ?? "").split("/").filter(Boolean).pop() ?? String(path ?? "");

// A sign beside each word of a state, so that it is never told by colour alone.
export const SIGNS = { queued: "◔", running: "▶", succeeded: "✓", failed: "✕", cancelled: "◼", interrupted: "⚡" };
export const isOver = (state) => state !== "queued" && state !== "running";

export function badge(state) {
  return make("span", { class: `badge ${state}` }, make("span", { "aria-hidden": "true", text: SIGNS[state] ?? "?" }), ` ${line(state)}`);
}

export function waitsFor(what) {
  if (!what) return "";
  if (what.what === "start") return "begins";
  if (what.what === "place") return "waits for a place";
  if (what.what === "turn") return `waits for its turn, as number ${what.place}`;
  if (what.what === "session") return `waits for ${String(what.job_id).slice(0, 8)} of its conversation`;
  return line(what.what);
}

// What happened, in words: [kind for its look, words, longer text if there is one].
export function told(event) {
  switch (event.kind) {
    case "dispatched": return ["step", "the runner took the job"];
    case "process_started": return ["step", `the agent started, process ${event.pid}`];
    case "process_exited": return ["step", `the agent exited with code ${event.code}`];
    case "process_closed": return ["step", "nothing of it is left"];
    case "truncated": return ["doubt", "the journal is full; the rest is in the outcome only"];
    case "agent": return said(event.event ?? {});
    default: return ["step", line(JSON.stringify(event))];
  }
}

function said(event) {
  switch (event.type) {
    case "started": {
      const parts = [["session", event.session_id], ["model", event.model], ["key source", event.key_source], ["version", event.version]];
      return ["step", `introduces itself${parts.filter(([, value]) => value).map(([name, value]) => `, ${name} ${line(value)}`).join("")}`];
    }
    case "text": return ["says", "says", shown(event.text)];
    case "thinking": return ["dim", "thinks"];
    case "tool_use": return ["busy", `uses ${line(event.tool)}`];
    case "tool_result": return ["dim", "got a tool's result"];
    case "denied": return ["doubt", `was refused ${line(event.denial?.tool)}${event.denial?.target ? ` for ${line(event.denial.target)}` : ""}`];
    case "retrying": return ["doubt", `asks its provider again in ${elapsed(event.delay_ms)}, ${event.attempt} of ${event.max}${event.status ? `, which answered ${event.status}` : ""}`];
    case "provider_error": return ["bad", `its provider failed: ${line(event.class)}`];
    case "limited": return ["bad", `a usage limit is reached${event.limit ? ` (${line(event.limit)})` : ""}${event.retry_at ? `, until ${when(event.retry_at)}` : ""}`];
    case "extra_usage": return ["doubt", "the plan is used up; from here on it is paid for besides"];
    case "result": {
      const result = event.result ?? {};
      if (result.is_error) return ["bad", `ends with an error: ${line(result.subtype ?? result.error ?? "it does not say why")}`];
      return ["good", `has answered${result.num_turns ? `, ${count(result.num_turns, "turn")}` : ""}${result.cost_usd != null ? `, ${money(result.cost_usd)}` : ""}`];
    }
    case "other": return ["dim", line(event.kind)];
    case "garbage": return ["doubt", `wrote ${count(event.bytes, "byte")} that are not its language`];
    default: return ["step", line(JSON.stringify(event))];
  }
}
