// Puts the page together: the stream of the picture, the views, the one job that is open, where the address leads.

import { change, Locked, open, Stream } from "./line.js";
import { Rows } from "./rows.js";
import { COLUMNS, cost, fillRow, happened, JobView, limits, queue, servers, summary } from "./views.js";
import { isOver, line } from "./words.js";

const at = (id) => document.getElementById(id);
const JOB = /^#job=([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})$/;

const picture = { sections: {}, jobs: new Map(), now: Date.now() };
let order = [];
let waits = new Map();
let view = "jobs";
let live = null;
let job = null;
let dirty = false;

const rows = new Rows(at("rows"), {
  label: "Jobs, newest first",
  columns: COLUMNS,
  key: (one) => one.id,
  open: (one) => { location.hash = `#job=${one.id}`; },
  fill: (row, one) => fillRow(row, one, { now: picture.now, waits: waits.get(one.id) }),
});

function say(words) {
  at("said").textContent = words;
}

function lineIs(state, words) {
  const place = at("line");
  if (place.dataset.line === state && place.textContent === words) return;
  place.dataset.line = state;
  place.textContent = words;
}

function lock(why) {
  live?.stop();
  job?.stream.stop();
  lineIs("lost", "locked");
  at("locked").hidden = false;
  at("locked-why").textContent = why;
  for (const id of ["summary", "view-jobs", "view-servers", "view-history"]) at(id).hidden = true;
}

// What the streams' ways say of themselves.
function tell(state, words) {
  if (state === "locked") lock(words);
  else if (state === "live") lineIs("live", "live");
  else lineIs("lost", "no connection, trying again");
}

// A job as the page speaks of it.
const jobOf = (row) => ({ ...row, id: row.job_id, state: row.status });

function heard(name, data) {
  if (name === "whole") {
    picture.sections = {};
    picture.jobs.clear();
  }
  Object.assign(picture.sections, data.sections);
  for (const row of data.jobs ?? []) {
    const one = jobOf(row);
    announce(picture.jobs.get(one.id), one);
    picture.jobs.set(one.id, one);
  }
  for (const id of data.gone ?? []) picture.jobs.delete(id);
  order = [...picture.jobs.values()].sort((one, other) => other.accepted_at - one.accepted_at || (one.id < other.id ? 1 : -1));
  waits = new Map((picture.sections.queue ?? []).map((row) => [row.job_id, row]));
  later();
}

// The end of a job is news; the rest is there for who looks.
function announce(before, now) {
  if (before && !isOver(before.state) && isOver(now.state)) say(`A job has ${now.state === "succeeded" ? "succeeded" : `ended: ${now.state}`}: ${line(now.prompt, 60)}`);
}

function matches(one, words, state) {
  if (state === "open" ? isOver(one.state) : state === "unread" ? !one.unread : state && one.state !== state) return false;
  return !words || `${one.prompt}\n${one.workspace}\n${one.agent}\n${one.id}`.toLowerCase().includes(words);
}

function later() {
  if (dirty) return;
  dirty = true;
  requestAnimationFrame(() => { dirty = false; draw(); });
}

function draw() {
  picture.now = Date.now();
  const about = picture.sections.about;
  if (about) at("place").textContent = line(about.state_dir, 200);
  const store = picture.sections.store;
  at("trouble").hidden = store?.status !== "unavailable";
  if (store?.status === "unavailable") at("trouble").textContent = `The job store cannot be read: ${line(store.why)} ${line(store.hint ?? "")}`;
  if (!at("locked").hidden) return;
  at("summary").hidden = !about;
  summary(at("tiles"), picture);
  if (view === "servers") {
    servers(at("servers"), picture);
    queue(at("queue"), picture);
    limits(at("limits"), picture);
  } else if (view === "history") {
    happened(at("happened"), picture);
    cost(at("cost"), picture);
  } else {
    const words = at("find").value.trim().toLowerCase();
    const found = order.filter((one) => matches(one, words, at("state").value));
    at("list-count").textContent = found.length === order.length ? String(order.length) : `${found.length} of ${order.length}`;
    rows.show(found, order.length ? "No job is like that." : "Nothing was asked here yet.");
    job?.view.clock(picture.now);
  }
}

function leave() {
  job?.stream.stop();
  job = null;
  at("job").hidden = true;
  at("job").replaceChildren();
  at("view-jobs").classList.remove("with-job");
  rows.mark(null);
}

function enter(id) {
  if (job?.id === id) return;
  leave();
  at("job").hidden = false;
  at("view-jobs").classList.add("with-job");
  rows.mark(id);
  const shown = new JobView(at("job"), { cancel, close: () => { location.hash = "#jobs"; } });
  const stream = new Stream(`/api/jobs/${id}/live`, (name, data) => {
    if (name === "entries") shown.add(data);
    else if (name === "record" || name === "end") shown.show(jobOf(data), Date.now());
    else if (name === "lost") shown.state.textContent = line(data.detail);
    if (name === "end") say(`The open job is ${data.status}.`);
    return !(name === "end" || name === "lost");
  }, tell);
  job = { id, view: shown, stream };
  shown.title.textContent = `Job ${id.slice(0, 8)}`;
  shown.title.focus({ preventScroll: true });
  if (matchMedia("(max-width: 1099px)").matches) scrollTo(0, 0);
}

// The job that the question is about.
let asked = null;

function cancel(record) {
  const sure = at("sure");
  at("sure-what").textContent = line(record.prompt, 200);
  asked = record;
  sure.showModal();
}

// The answer is what is pressed. That the question was closed is told later, perhaps when it has been asked again.
at("sure").querySelector("form").addEventListener("submit", async (event) => {
  if (event.submitter?.value !== "yes") return;
  say("The job is being ended.");
  try {
    const done = await change(`/api/jobs/${asked.id}/cancel`);
    if (!done.changed) say(`The job was over already: ${done.status}.`);
  } catch (error) {
    if (error instanceof Locked) lock(error.message);
    else say(`The job was not ended: ${line(error.message)}`);
  }
});

function route() {
  const open = JOB.exec(location.hash);
  const before = view;
  view = open || location.hash === "" ? "jobs" : { "#servers": "servers", "#history": "history" }[location.hash] ?? "jobs";
  if (!at("locked").hidden) return;
  for (const name of ["jobs", "servers", "history"]) at(`view-${name}`).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view !== before) scrollTo(0, 0);
  if (open) enter(open[1]);
  else if (job) {
    leave();
    if (view === "jobs") rows.reveal();
    else at("main").focus({ preventScroll: true });
  }
  later();
}

function begin() {
  live = new Stream("/api/live", heard, tell);
  addEventListener("hashchange", route);
  at("find").addEventListener("input", later);
  at("state").addEventListener("change", later);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && job && !at("sure").open) location.hash = "#jobs";
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && view === "jobs") {
      event.preventDefault();
      at("find").focus();
    }
  });
  let hidden;
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hidden);
    const rest = (paused) => { live.rest(paused); job?.stream.rest(paused); };
    if (document.hidden) hidden = setTimeout(() => rest(true), 60_000);
    else rest(false);
  });
  setInterval(later, 1000);
  route();
}

try {
  await open();
  begin();
} catch (error) {
  lock(error.message);
}
