// What the page shows of the picture, part by part. Each takes the picture and writes elements with text in them.

import { ago, badge, count, elapsed, isOver, last, lasting, line, make, money, shown, timeOf, told, waitsFor, when } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, set, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(set)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function replace(place, ...children) {
  place.replaceChildren(...children.filter(Boolean));
}

// Writes only what is different, so that a reader's place and selection stay.
const written = new WeakMap();
function unless(place, stamp, write) {
  const said = JSON.stringify(stamp);
  if (written.get(place) === said) return;
  written.set(place, said);
  write();
}

function tile(name, value, note, look) {
  return make("div", { class: `tile ${look ?? ""}` }, make("dt", { text: name }), make("dd", {}, make("strong", { text: value }), note ? make("span", { class: "quiet", text: note }) : null));
}

export function summary(place, { sections }) {
  const { counts, places, cost, servers, store } = sections;
  unless(place, [counts, places, cost?.at(-1), store, servers?.map((server) => [server.kind, server.health?.ready, server.health?.restart_count, server.state])], () => {
    const today = new Date().toISOString().slice(0, 10);
    const spent = cost?.find((day) => day.day === today);
    const daemon = servers?.find((server) => server.kind === "daemon");
    const health = store?.status === "unavailable" ? ["job store unavailable", "", "bad"]
      : !daemon ? [count(servers?.length ?? 0, "server"), "no daemon", ""]
        : daemon.health?.ready === false ? ["not ready", "the daemon says so", "bad"]
          : [daemon.state ?? "serving", daemon.health ? count(daemon.health.restart_count ?? 0, "restart") : "daemon", daemon.state === "serving" ? "good" : "doubt"];
    replace(place,
      tile("Running", `${places?.used ?? 0} of ${places?.of ?? "?"}`, "", places?.used ? "busy" : ""),
      tile("Waiting", String(counts?.queued ?? 0), ""),
      tile("Succeeded", String(counts?.succeeded ?? 0), ""),
      tile("Failed", String((counts?.failed ?? 0) + (counts?.interrupted ?? 0)), [counts?.interrupted && `${counts.interrupted} interrupted`, `${counts?.cancelled ?? 0} cancelled`].filter(Boolean).join(", "), (counts?.failed ?? 0) + (counts?.interrupted ?? 0) ? "bad" : ""),
      tile("Cost today", spent ? money(spent.cost_usd) : "$0.00", spent?.unknown ? `${spent.unknown} not known` : "UTC day"),
      tile("Health", health[0], health[1], health[2]));
  });
}

// The columns of the job list, and how a job is written into a row.
export const COLUMNS = [
  { name: "state", title: "Status" }, { name: "prompt", title: "Question" }, { name: "agent", title: "Agent" },
  { name: "where", title: "Directory" }, { name: "asked", title: "Asked" }, { name: "took", title: "Took" }, { name: "cost", title: "Cost" },
];

export function fillRow(row, job, { now, waits }) {
  const over = isOver(job.state);
  const start = job.started_at ?? job.accepted_at;
  const took = over ? elapsed((job.finished_at ?? now) - start) : job.state === "running" ? elapsed(Math.floor((now - start) / 1000) * 1000) : "";
  const note = waits ? waitsFor(waits.waits_for) : "";
  const stamp = `${job.id}|${job.state}|${job.unread}|${took}|${ago(job.accepted_at, now)}|${note}|${job.cost_usd}|${waits?.cancel}`;
  if (row.stamp === stamp) return;
  row.stamp = stamp;
  const [state, prompt, agent, where, asked, time, cost] = row.children;
  state.replaceChildren(badge(job.state));
  if (job.unread) state.append(make("span", { class: "new", text: " unread" }));
  const words = line(job.prompt) || "(no text)";
  prompt.textContent = words;
  prompt.title = words;
  if (note || (waits?.cancel && !over)) prompt.prepend(make("span", { class: "note", text: `${waits.cancel && !over ? "is being ended" : note} ` }));
  agent.textContent = line(job.agent);
  where.textContent = line(last(job.workspace));
  where.title = shown(job.workspace);
  asked.textContent = ago(job.accepted_at, now);
  asked.title = when(job.accepted_at);
  time.textContent = took;
  cost.textContent = job.cost_usd === null || job.cost_usd === undefined ? "" : money(job.cost_usd);
}

function jobLink(id) {
  return make("a", { href: `#job=${id}`, text: String(id).slice(0, 8) });
}

function branch(head, ...children) {
  const rest = children.filter(Boolean);
  return make("li", {}, head, rest.length ? make("ul", {}, ...rest) : null);
}

function words(...parts) {
  return make("span", {}, ...parts.filter(Boolean));
}

function session(seen, now) {
  const client = line(seen.client ?? "a client");
  const rest = [seen.version && line(seen.version), seen.protocol && line(seen.protocol), seen.directory && `in ${line(seen.directory)}`,
    `for ${lasting(seen.since, now)}`, seen.calls ? `${count(seen.calls, "call")} in flight` : null];
  return branch(words(make("b", { text: `session ${seen.session}` }), ` ${client} `, make("span", { class: "quiet", text: rest.filter(Boolean).join(", ") })));
}

// How a server's parts are: a daemon says it by its health, another server by its row.
function partsOf(server) {
  const { health, tree } = server;
  if (health) {
    return {
      generation: health.worker_generation, alive: health.worker_alive, restarts: health.restart_count, code: health.last_fault?.fault?.code,
      detail: health.last_fault?.fault?.detail, at: health.last_fault?.at, adopted: health.rollout?.adopted, rollout: health.rollout?.state,
      refused: health.rollout?.rejected?.verdict,
    };
  }
  if (!tree) return null;
  return {
    generation: tree.worker_generation, alive: tree.worker_alive, restarts: tree.worker_restarts, code: tree.last_fault, at: tree.last_fault_at,
    adopted: tree.upgrades, rollout: tree.rollout, refused: server.rollout_rejected,
  };
}

function worker(parts) {
  const state = parts.alive ? "up" : "down";
  return branch(
    words(make("b", { text: "worker" }), parts.generation ? ` generation ${parts.generation}, ${state}, ${count(parts.restarts ?? 0, "restart")}` : " not needed yet"),
    parts.code ? branch(words(make("span", { class: "badtext", text: line(parts.code) }), ` ${line(parts.detail ?? "")} `, make("span", { class: "quiet", text: when(parts.at) }))) : null);
}

function upgrades(parts) {
  const refused = parts.refused ? `, refused: ${line(parts.refused)}` : "";
  return branch(words(make("b", { text: "upgrades" }), ` ${parts.adopted ?? 0} adopted, ${line(parts.rollout || "idle")}${refused}`));
}

export function servers(place, { sections, jobs, now }) {
  const all = sections.servers ?? [];
  unless(place, [all, Math.floor(now / 30_000)], () => {
    if (!all.length) return replace(place, make("p", { class: "quiet", text: "No server of this directory is alive." }));
    replace(place, make("ul", { class: "tree" }, ...all.map((server) => {
      const state = server.state ?? "serving";
      const head = words(make("b", { text: line(server.kind ?? "server") }), " ",
        make("span", { class: `badge ${state === "serving" ? "succeeded" : "queued"}`, text: line(state) }),
        make("span", { class: "quiet", text: ` process ${server.pid}, ${line(server.build)}, for ${lasting(server.started_at, now)}` }));
      const parts = partsOf(server);
      const attached = (server.jobs ?? []).map((held) => {
        const job = jobs.get(held.job_id);
        return branch(words(make("b", { text: "job" }), " ", jobLink(held.job_id), " ", job ? badge(job.state) : null, job ? ` ${line(job.prompt, 80)}` : null));
      });
      return branch(head, parts && worker(parts), parts && upgrades(parts), ...(server.sessions ?? []).map((seen) => session(seen, now)),
        server.more_sessions ? branch(words(`and ${server.more_sessions} more sessions`)) : null, ...attached);
    })));
  });
}

export function queue(place, { sections, jobs, now }) {
  const rows = sections.queue ?? [];
  unless(place, [rows, Math.floor(now / 5000)], () => {
    if (!rows.length) return replace(place, make("p", { class: "quiet", text: "Nothing is asked." }));
    replace(place, make("ol", { class: "queue" }, ...rows.slice(0, 200).map((row) => {
      const job = jobs.get(row.job_id);
      return make("li", {}, jobLink(row.job_id), " ", badge(row.status), ` ${row.cancel ? "is being ended" : waitsFor(row.waits_for)} `,
        job ? make("span", { class: "quiet", text: `${line(last(job.workspace))}, ${ago(job.accepted_at, now)}: ${line(job.prompt, 100)}` }) : null);
    }), rows.length > 200 ? make("li", { class: "quiet", text: `and ${rows.length - 200} more` }) : null));
  });
}

export function limits(place, { sections }) {
  const rows = sections.limits ?? [];
  unless(place, rows, () => replace(place, rows.length
    ? make("ul", {}, ...rows.map((row) => make("li", { text: `${line(row.agent)}${row.models ? `, ${line(row.models)} models` : ""}: until ${when(row.until)}` })))
    : make("p", { class: "quiet", text: "No agent has reached a usage limit." })));
}

const HAPPENED = { fault: "fault", restart: "restart", upgrade: "upgrade" };

function happening(one) {
  if (one.what === "fault") return `${line(one.code ?? "a fault")}${one.stage ? ` in ${line(one.stage)}` : ""}${one.generation ? `, generation ${one.generation}` : ""}`;
  if (one.what === "restart") return `the worker was started again, generation ${one.generation}`;
  return `upgrade ${line(one.outcome)}${one.verdict ? `: ${line(one.verdict)}` : ""}${one.gap_ms != null ? `, nobody served for ${elapsed(one.gap_ms)}` : ""}`;
}

// Steps of the plot, from a minute to a day; the first that fits what there is into sixty bars.
const STEPS = [60_000, 300_000, 900_000, 3_600_000, 10_800_000, 43_200_000, 86_400_000];

export function happened(place, { sections, now }) {
  const all = sections.happened ?? [];
  unless(place, [all, Math.floor(now / 60_000)], () => {
    if (!all.length) return replace(place, make("p", { class: "quiet", text: "Nothing broke and nothing was replaced, as far as the log goes back." }));
    const step = STEPS.find((each) => (now - all[0].at) / each <= 60) ?? STEPS.at(-1);
    const end = Math.ceil((now + 1) / step) * step;
    const bars = 60;
    const counts = Array.from({ length: bars }, () => ({ fault: 0, restart: 0, upgrade: 0 }));
    for (const one of all) {
      const bar = bars - 1 - Math.floor((end - 1 - one.at) / step);
      if (bar >= 0 && bar < bars && HAPPENED[one.what]) counts[bar][one.what] += 1;
    }
    const most = Math.max(1, ...counts.map((each) => each.fault + each.restart + each.upgrade));
    const total = (kind) => counts.reduce((sum, each) => sum + each[kind], 0);
    const words = `${count(total("fault"), "fault")}, ${count(total("restart"), "restart")}, ${count(total("upgrade"), "upgrade")} in the last ${elapsed(step * bars)}`;
    const plot = svg("svg", { viewBox: "0 0 600 120", role: "img", "aria-label": words, class: "plot", preserveAspectRatio: "none" });
    counts.forEach((each, at) => {
      let top = 110;
      for (const kind of ["fault", "restart", "upgrade"]) {
        const height = (each[kind] / most) * 100;
        if (!height) continue;
        top -= height;
        plot.append(svg("rect", { x: at * 10 + 1, y: top, width: 8, height, class: kind }));
      }
    });
    plot.append(svg("line", { x1: 0, x2: 600, y1: 110, y2: 110, class: "axis" }));
    const legend = make("p", { class: "legend" }, ...Object.keys(HAPPENED).map((kind) => make("span", { class: `key ${kind}`, text: `${total(kind)} ${kind}${total(kind) === 1 ? "" : "s"}` })));
    replace(place, legend, plot, make("p", { class: "scale quiet" }, make("span", { text: when(end - step * bars) }), make("span", { text: `most in ${elapsed(step)}: ${most}` }), make("span", { text: "now" })),
      make("ol", { class: "happenings", reversed: true }, ...all.slice(-100).reverse().map((one) =>
        make("li", { class: one.what }, make("time", { datetime: new Date(one.at).toISOString(), text: when(one.at) }), ` ${happening(one)}`))));
  });
}

export function cost(place, { sections }) {
  const days = sections.cost ?? [];
  unless(place, days, () => {
    if (!days.length) return replace(place, make("p", { class: "quiet", text: "No job ended in the last two weeks." }));
    const most = Math.max(0.0001, ...days.map((day) => day.cost_usd));
    replace(place, make("table", { class: "costs" },
      make("thead", {}, make("tr", {}, ...["Day (UTC)", "Jobs", "Known cost", "Not known", ""].map((title) => make(title ? "th" : "td", title ? { scope: "col", text: title } : {})))),
      make("tbody", {}, ...[...days].reverse().map((day) => {
        const bar = svg("svg", { viewBox: "0 0 100 10", class: "costbar", "aria-hidden": "true", preserveAspectRatio: "none" },
          svg("rect", { x: 0, y: 0, height: 10, width: Math.max(0.5, (day.cost_usd / most) * 100) }));
        return make("tr", {}, make("th", { scope: "row", text: day.day }), make("td", { text: day.jobs }), make("td", { text: money(day.cost_usd) }), make("td", { text: day.unknown || "" }), make("td", { class: "wide" }, bar));
      }))));
  });
}

// One job: what was asked, its way from accepting to the end, what happened, the answer.
const ENTRIES = 1500;

export class JobView {
  constructor(place, { cancel, close }) {
    this.entries = 0;
    this.dropped = 0;
    this.record = null;
    this.title = make("h2", { id: "job-title", tabindex: "-1" });
    this.state = make("p", { class: "jobstate" });
    this.end = make("button", { type: "button", class: "danger", text: "End this job", on: { click: () => cancel(this.record) } });
    this.close = make("button", { type: "button", text: "Close", on: { click: close } });
    this.facts = make("dl", { class: "facts" });
    this.way = make("div", { class: "way" });
    this.prompt = make("pre", { class: "text", tabindex: "0", "aria-label": "What was asked" });
    this.promptMore = make("p", { class: "quiet" });
    this.answerTitle = make("h3", { text: "Answer" });
    this.answer = make("pre", { class: "text answer", tabindex: "0", "aria-label": "The answer" });
    this.answerMore = make("p", { class: "quiet" });
    this.fault = make("div", { class: "trouble", hidden: true });
    this.follow = make("input", { type: "checkbox", id: "follow", checked: true });
    this.skipped = make("p", { class: "quiet", hidden: true });
    this.list = make("ol", { class: "events", tabindex: "0", "aria-label": "Events" });
    replace(place,
      make("div", { class: "bar" }, this.title, make("div", { class: "buttons" }, this.end, this.close)),
      this.state, this.fault, this.facts,
      make("h3", { text: "Timeline" }), this.way,
      this.answerTitle, this.answer, this.answerMore,
      make("div", { class: "bar" }, make("h3", { text: "Events" }), make("label", { class: "check" }, this.follow, " follow")),
      this.skipped, this.list,
      make("h3", { text: "Question" }), this.prompt, this.promptMore);
    this.marks = [];
  }

  show(record, now) {
    this.record = record;
    const outcome = record.outcome ?? {};
    const over = isOver(record.state);
    this.title.textContent = `Job ${record.id.slice(0, 8)}`;
    this.state.replaceChildren(badge(record.state), record.cancel && !over ? " is being ended" : "");
    this.end.hidden = over;
    this.end.disabled = Boolean(record.cancel);
    const facts = [
      ["Agent", [record.agent, outcome.model ?? record.model, record.effort].filter(Boolean).map((word) => line(word)).join(", ")],
      ["Directory", shown(record.cwd)],
      ["Machine", record.machine && line(record.machine)],
      ["Mode", record.mode === "sync" ? "its caller waits" : "in the background"],
      ["Cost", over ? money(outcome.cost_usd) : null],
      ["Paid by", outcome.billing && line(outcome.billing)],
      ["Turns", outcome.num_turns],
      ["Session", outcome.session_id && line(outcome.session_id)],
      ["Refused tools", outcome.permission_denials?.length ? outcome.permission_denials.map((denial) => line(`${denial.tool} ${denial.target ?? ""}`, 120)).join("; ") : null],
      ["Chain", record.depth ? `${record.chain.slice(0, 8)}, depth ${record.depth}` : null],
      ["Id", record.id],
    ];
    replace(this.facts, ...facts.filter(([, value]) => value !== null && value !== undefined && value !== "" && value !== false)
      .flatMap(([name, value]) => [make("dt", { text: name }), make("dd", { text: value })]));
    this.prompt.textContent = shown(record.prompt);
    this.promptMore.textContent = record.prompt_bytes ? `${record.prompt_bytes} bytes; the whole: phone-opus jobs show ${record.id.slice(0, 8)} --full` : "";
    const fault = outcome.fault;
    this.fault.hidden = !fault;
    if (fault) replace(this.fault, make("b", { text: line(fault.code) }), ` ${line(fault.detail, 2000)} `, fault.hint ? make("span", { text: line(fault.hint, 500) }) : null,
      outcome.stderr_tail ? make("pre", { class: "text", tabindex: "0", text: shown(outcome.stderr_tail) }) : null);
    const has = Boolean(outcome.response);
    for (const part of [this.answerTitle, this.answer, this.answerMore]) part.hidden = !has;
    this.answer.textContent = has ? shown(outcome.response) : "";
    this.answerMore.textContent = outcome.response_bytes ? `${outcome.response_bytes} bytes; the whole: phone-opus jobs show ${record.id.slice(0, 8)}` : "";
    this.clock(now);
  }

  // What moves while time passes.
  clock(now) {
    const record = this.record;
    if (!record) return;
    const end = record.finished_at ?? now;
    const begin = record.accepted_at;
    const whole = Math.max(1, end - begin);
    const started = record.started_at ?? (isOver(record.state) ? end : now);
    const share = (at) => Math.max(0, Math.min(600, ((at - begin) / whole) * 600));
    const plot = svg("svg", { viewBox: "0 0 600 40", class: "wayplot", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { x: 0, y: 12, width: share(started), height: 16, class: "waited" }),
      svg("rect", { x: share(started), y: 12, width: Math.max(record.started_at ? 2 : 0, 600 - share(started)), height: 16, class: `ran ${record.state}` }));
    for (const [at, look] of this.marks) plot.append(svg("rect", { x: Math.max(0, share(at) - 1), y: 4, width: 2, height: 32, class: `mark ${look}` }));
    const steps = [
      ["accepted", begin, when(begin)],
      record.started_at ? ["started", record.started_at, `after ${elapsed(record.started_at - begin)}`] : ["waits", now, `for ${elapsed(Math.floor((started - begin) / 1000) * 1000)}`],
      record.finished_at ? [record.state, record.finished_at, `${record.started_at ? `ran ${elapsed(record.finished_at - record.started_at)}` : ""}`]
        : record.started_at ? ["runs", now, `for ${elapsed(Math.floor((now - record.started_at) / 1000) * 1000)}`] : null,
    ];
    replace(this.way, plot, make("ol", { class: "steps" }, ...steps.filter((step) => step && !(step[0] === "waits" && isOver(record.state))).map(([name, at, note]) =>
      make("li", {}, make("b", { text: name }), ` ${name === "accepted" ? "" : timeOf(at)} `, make("span", { class: "quiet", text: note })))));
  }

  add(entries) {
    const list = this.list;
    const batch = document.createDocumentFragment();
    for (const entry of entries) {
      const [look, what, text] = told(entry.event);
      if (look === "bad" || look === "doubt" || look === "busy" || look === "good") this.marks.push([entry.at, look]);
      batch.append(make("li", { class: look, value: entry.seq },
        make("time", { datetime: new Date(entry.at).toISOString(), text: `+${elapsed(Math.max(0, entry.at - (this.record?.accepted_at ?? entry.at)))}` }),
        make("span", { class: "what", text: what }), text !== undefined ? make("pre", { class: "text", text }) : null));
    }
    if (this.marks.length > 400) this.marks.splice(0, this.marks.length - 400);
    list.append(batch);
    this.entries += entries.length;
    while (this.entries > ENTRIES) {
      list.firstElementChild.remove();
      this.entries -= 1;
      this.dropped += 1;
    }
    this.skipped.hidden = this.dropped === 0;
    this.skipped.textContent = `${count(this.dropped, "earlier event")} left out here; all of them: phone-opus jobs tail ${this.record?.id.slice(0, 8)}`;
    if (this.follow.checked) list.scrollTop = list.scrollHeight;
  }
}
