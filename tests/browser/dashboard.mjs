// The dashboard's page in a real browser; see README.md beside this.
//
//   PROGRAM=… CHROMIUM=… DASHBOARD_SHOTS=… node dashboard.mjs
//
// Each step is a sentence that is printed when it holds. The first that does not ends the run with a picture of the page.

import assert from "node:assert/strict";
import { spawn, execFileSync } from "node:child_process";
import { mkdtempSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync, copyFileSync, renameSync, chmodSync, utimesSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(process.env.MODULES ? join(process.env.MODULES, "x.js") : import.meta.url);
const { chromium } = require("playwright-core");
const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const here = dirname(fileURLToPath(import.meta.url));
const scratch = mkdtempSync(join(tmpdir(), "phone-opus-page-"));
const shots = process.env.DASHBOARD_SHOTS ?? join(scratch, "shots");
mkdirSync(shots, { recursive: true });
for (const dir of ["home", "work", "work/kettle"]) mkdirSync(join(scratch, dir));

// A copy, so that it can be replaced under the daemon.
const program = join(scratch, "phone-opus");
copyFileSync(process.env.PROGRAM, program);
chmodSync(program, 0o755);
const agent = join(scratch, "phone-opus-scripted-agent");
symlinkSync(process.env.PROGRAM, agent);
const state = join(scratch, "state");
const env = {
  HOME: join(scratch, "home"), PATH: "/usr/bin:/bin", LANG: "C.UTF-8", PHONE_OPUS_STATE_DIR: state, PHONE_OPUS_CLAUDE_BIN: agent,
  PHONE_OPUS_LOG: "error",
};
const started = [];

function run(...words) {
  return execFileSync(program, words, { env, cwd: join(scratch, "work/kettle"), encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
}

function serve(...words) {
  const child = spawn(program, words, { env, cwd: join(scratch, "work/kettle"), stdio: ["pipe", "pipe", "inherit"] });
  started.push(child);
  return child;
}

const script = (steps, more = {}) => `@@script ${JSON.stringify({ steps, ...more })} @@`;

async function until(what, look, patience = 30_000) {
  const end = Date.now() + patience;
  let seen;
  for (;;) {
    try { seen = await look(); if (seen) return seen; } catch (error) { seen = error; }
    if (Date.now() > end) throw new Error(`waited in vain until ${what}; last seen: ${seen}`);
    await new Promise((wake) => setTimeout(wake, 50));
  }
}

let dashboard;
let port;
async function open() {
  dashboard = serve("dashboard", "--json", ...(port ? ["--port", port] : []));
  let text = "";
  dashboard.stdout.on("data", (part) => { text += part; });
  await until("the dashboard serves", () => text.includes("\n"));
  const { url } = JSON.parse(text);
  port = new URL(url).port;
  return url;
}

function ended(child) {
  return child.exitCode !== null || child.signalCode !== null;
}

async function end(child, signal) {
  if (ended(child)) return;
  child.kill(signal);
  await until("a process of ours ends", () => ended(child));
}

const held = (words) => console.log(`ok  ${words}`);

// A client that speaks MCP over a server's standard streams.
class Client {
  constructor(...words) {
    this.child = serve(...words);
    this.answers = new Map();
    let rest = "";
    this.child.stdout.on("data", (part) => {
      const lines = (rest + part).split("\n");
      rest = lines.pop();
      for (const line of lines) { const said = JSON.parse(line); if (said.id !== undefined) this.answers.set(said.id, said); }
    });
    this.next = 1;
  }

  send(method, params) {
    const id = this.next++;
    this.child.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", id, method, params })}\n`);
    return id;
  }

  async ask(method, params) {
    const id = this.send(method, params);
    return until(`${method} is answered`, () => this.answers.get(id));
  }

  async greet() {
    await this.ask("initialize", { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "a-client", version: "7" } });
    this.child.stdin.write(`${JSON.stringify({ jsonrpc: "2.0", method: "notifications/initialized" })}\n`);
    return this;
  }

  consult(prompt, more = {}) {
    return this.ask("tools/call", { name: "consult", arguments: { prompt, render: "json", ...more } });
  }
}

const HOSTILE = "<script>window.broken=1</script><img src=x onerror=\"window.broken=1\"> \u001b[2J\u001b[31mred \u202eevil\u202c \u2066x\u2069 [a](javascript:window.broken=1) &lt;b&gt;";

let browser;
let page;
const problems = [];

async function newPage(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 }, ...options });
  // Files that are worked on, in the place of the program's own.
  if (process.env.PAGE_FILES) {
    await context.route(/\/(style\.css|script\/\w+\.js|)$/, async (route) => {
      const answer = await route.fetch();
      const name = new URL(route.request().url()).pathname.split("/").pop() || "index.html";
      await route.fulfill({ response: answer, body: readFileSync(join(process.env.PAGE_FILES, name), "utf8") });
    });
  }
  const fresh = await context.newPage();
  fresh.on("pageerror", (error) => problems.push(`error: ${error.message}`));
  fresh.on("console", (message) => {
    // A request that is refused, or a server that is away, is told there as well.
    if (message.type() === "error" && !/Failed to load resource|ERR_CONNECTION|net::ERR/.test(message.text())) problems.push(message.text());
  });
  fresh.on("request", (request) => {
    if (!request.url().startsWith(`http://127.0.0.1:${port}/`)) problems.push(`a request elsewhere: ${request.url()}`);
  });
  return fresh;
}

const live = (on = page) => until("the page is live", async () => (await on.getAttribute("#line", "data-line")) === "live");

async function axe(words) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const serious = violations.filter((one) => ["serious", "critical"].includes(one.impact));
  for (const one of violations) console.log(`    axe ${one.impact}: ${one.id} at ${one.nodes.map((node) => node.target).slice(0, 3).join(" ")}${one.impact === "serious" ? ` ${one.nodes[0].failureSummary}` : ""}`);
  assert.deepEqual(serious.map((one) => one.id), [], words);
}

async function steps() {
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"] });
  let url = await open();
  page = await newPage();
  await page.goto(url);
  await live();
  assert.equal(new URL(page.url()).hash, "", "the token is gone from the address");
  held("an address opens the page, and its token is gone from the address");

  const other = await newPage();
  await other.goto(url);
  await until("the other page is locked", () => other.isVisible("#locked"));
  await other.goto(`http://127.0.0.1:${port}/`);
  await until("a page without a token is locked", () => other.isVisible("#locked"));
  await other.context().close();
  held("the same address opens no second browser, and without one the page is locked");

  const daemon = serve("daemon", "run");
  await until("the daemon serves", () => { run("daemon", "status"); return true; });
  const client = await new Client("mcp", "connect").greet();
  const go = join(scratch, "go");
  const told = await client.consult(`Why does the kettle whistle? ${script([{ text: "I look at the lid." }, { tool_use: "Read" }, { text: HOSTILE }, { denied: { tool: "Write", target: "/etc/<b>passwd</b>" } }, { wait_for_file: go }, "hang"])}`, { background: true });
  const job = told.result.structuredContent?.job_id ?? JSON.parse(told.result.content[0].text).job_id;
  await until("the job is in the list", () => page.locator("[role=row] .badge.running").count());
  await page.locator("[role=row]", { hasText: "kettle" }).first().click();
  await until("its output is there", async () => (await page.locator(".events").textContent()).includes("I look at the lid."));
  await until("the hostile words are there", async () => (await page.locator(".events").textContent()).includes("<script>window.broken=1</script>"));
  const shown = await page.locator(".events").textContent();
  assert.ok(shown.includes("\u241b[2J") && shown.includes("\u27e8U+202E\u27e9evil") && !/[\u001b\u202e\u2066]/.test(shown), shown);
  assert.equal(await page.evaluate(() => window.broken), undefined);
  assert.equal(await page.locator("#job img, #job script, #job b.x, #rows img").count(), 0);
  held("a client's consult is followed live, and hostile words are text");
  await page.screenshot({ path: join(shots, "job-live-1440-light.png") });

  // An upgrade in place: another file at the daemon's path; then the page still follows.
  const next = join(scratch, "next");
  copyFileSync(process.env.PROGRAM, next);
  chmodSync(next, 0o755);
  writeFileSync(next, Buffer.concat([readFileSync(next), Buffer.from("\n")]));
  renameSync(next, program);
  utimesSync(program, new Date(), new Date());
  run("daemon", "reload");
  await page.goto(`http://127.0.0.1:${port}/#servers`);
  await live();
  const tree = () => page.locator("#servers").textContent();
  await until("the tree shows the daemon, its worker and its client", async () => /daemon.*worker generation \d+.*a-client/s.test(await tree()));
  await until("the upgrade is in the history", async () => {
    await page.goto(`http://127.0.0.1:${port}/#history`);
    return (await page.locator("#happened").textContent()).includes("upgrade adopted");
  }, 60_000);
  held("the daemon is upgraded meanwhile, and the page shows it");

  // The daemon is killed: the job goes on, the page too, and the bridge has another daemon.
  daemon.kill("SIGKILL");
  await until("the daemon is gone", () => ended(daemon));
  await client.ask("tools/call", { name: "health_snapshot", arguments: {} });
  await page.goto(`http://127.0.0.1:${port}/#job=${job}`);
  await until("the job runs on", async () => (await page.locator(".jobstate").textContent()).includes("running"));
  held("the daemon is killed meanwhile, and the job and the page go on");

  // Cancelled from the page, by keyboard alone.
  await page.locator("button", { hasText: "End this job" }).focus();
  await page.keyboard.press("Enter");
  await until("it is asked", () => page.isVisible("#sure"));
  await axe("the question");
  await page.keyboard.press("Escape");
  await until("the question is gone", async () => !(await page.isVisible("#sure")));
  assert.ok((await page.locator(".jobstate").textContent()).includes("running"), "Escape lets it run");
  // Let go and asked again before the page hears of the first: only the second is answered.
  await page.evaluate(() => {
    const end = [...document.querySelectorAll("button")].find((one) => one.textContent === "End this job");
    end.click();
    document.getElementById("sure").close();
    end.click();
  });
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await until("it is cancelled", async () => (await page.locator(".jobstate").textContent()).includes("cancelled"));
  const record = JSON.parse(run("jobs", "show", job, "--json"));
  assert.equal(record.status, "cancelled");
  held("a consult is cancelled from the page by keyboard, after a question");

  // Answers of every kind for the pictures, then a thousand.
  const answer = script([{ text: "I looked." }], { answer: `${HOSTILE}\n\nThe lid is loose.` });
  await client.consult(`What of hostile answers? ${answer}`);
  await client.consult(`A failing one ${script([{ stderr: "<i>no</i>\n" }, { exit: 3 }])}`);
  await client.consult(`Another ${script(["thinking", { tool_use: "Grep" }], { answer: "Because of the retry in upload.rs." })}`);
  await page.goto(`http://127.0.0.1:${port}/#jobs`);
  await page.locator("[role=row]", { hasText: "hostile answers" }).first().click();
  await until("the answer is there", async () => (await page.locator("pre.answer").textContent()).includes("The lid is loose."));
  const text = await page.locator("pre.answer").textContent();
  assert.ok(text.includes("<img src=x onerror=") && text.includes("\u241b[31mred") && text.includes("\u27e8U+202E\u27e9evil"), text);
  assert.equal(await page.evaluate(() => window.broken), undefined);
  await axe("a finished job");
  held("a hostile answer is text everywhere");

  // The dashboard itself is replaced: the page comes again, and needs a new address, since secrets end with the process.
  await end(dashboard, "SIGINT");
  await until("the page says that it has no connection", async () => (await page.getAttribute("#line", "data-line")) === "lost");
  client.child.stdin.end();
  await until("the client has ended", () => ended(client.child));
  try { run("daemon", "stop", "--force"); } catch { /* none runs */ }
  execFileSync("python3", [join(here, "many_jobs.py"), join(state, "phone-opus.db"), "1000"]);
  url = await open();
  await until("the page is locked", () => page.isVisible("#locked"));
  await page.goto(url);
  await page.reload();
  await live();
  held("a dashboard that starts anew locks the old page, and its address opens it");

  await page.goto(`http://127.0.0.1:${port}/#jobs`);
  await until("a thousand are there", async () => Number(await page.getAttribute("[role=grid]", "aria-rowcount")) >= 1000);
  const rows = await page.locator("[role=rowgroup].inner [role=row]").count();
  assert.ok(rows < 80, `${rows} rows are in the page`);
  const frames = await page.evaluate(async () => {
    const view = document.querySelector(".scroll");
    const times = [];
    let last = performance.now();
    for (let n = 0; n < 120; n += 1) {
      view.scrollTop += 331;
      await new Promise((next) => requestAnimationFrame(next));
      const now = performance.now();
      times.push(now - last);
      last = now;
    }
    times.sort((one, other) => one - other);
    return { median: times[60], p95: times[114], most: times[119], rows: view.querySelectorAll("[role=row]").length };
  });
  console.log(`    scrolling 1,000 jobs: median ${frames.median.toFixed(1)} ms a frame, 95 % within ${frames.p95.toFixed(1)} ms, most ${frames.most.toFixed(1)} ms, ${frames.rows} rows in the page`);
  assert.ok(frames.p95 < 50, "it scrolls smoothly");
  await page.locator("[role=row][tabindex='0']").focus();
  await page.keyboard.press("End");
  await until("the last row has the focus", () => page.evaluate(() => document.activeElement?.getAttribute("aria-rowindex") === document.querySelector("[role=grid]").getAttribute("aria-rowcount")));
  await page.keyboard.press("Home");
  await page.keyboard.press("ArrowDown");
  assert.equal(await page.evaluate(() => document.activeElement?.getAttribute("aria-rowindex")), "3");
  await page.keyboard.press("Enter");
  await until("Enter opens the job", () => page.isVisible("#job"));
  await page.keyboard.press("Escape");
  await until("Escape closes it", async () => !(await page.isVisible("#job")));
  await page.keyboard.press("/");
  await page.keyboard.type("upgrade");
  await until("what is found is shown", async () => /of/.test(await page.locator("#list-count").textContent()));
  await page.fill("#find", "");
  held("a thousand jobs scroll, and the list is used by keyboard");

  // Pictures, and what keeps people out, at three widths, dark and light.
  const servers = [await new Client("mcp", "serve").greet(), await new Client("mcp", "serve").greet()];
  for (const [n, one] of servers.entries()) {
    const hang = script([{ text: "Reading the sources of the kettle." }, { tool_use: "Grep" }, { text: "The lid is checked in three places." }, "thinking", { tool_use: "Read" }, "hang"]);
    for (const what of n ? ["Which test covers the whistle?", "Is the lock released on every path?"] : ["Why does the upload retry twice?", "Where is the timeout set?", "Review the change to the parser"]) await one.consult(`${what} ${hang}`, { background: true });
  }
  await until("some run and some wait", async () => (await page.locator("#tiles").textContent()).match(/Running[3-9]/));
  for (const scheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme: scheme });
    for (const width of [375, 768, 1440]) {
      await page.setViewportSize({ width, height: width === 375 ? 740 : 900 });
      for (const view of ["jobs", "job", "servers", "history"]) {
        await page.goto(`http://127.0.0.1:${port}/#${view === "job" ? "jobs" : view}`);
        await live();
        if (view === "job") {
          await page.locator("[role=row]", { hasText: "upload retry" }).first().click();
          await until("its events are there", async () => (await page.locator(".events li").count()) > 4);
        } else await until("it is drawn", () => page.isVisible(`#view-${view}`));
        await page.waitForTimeout(150);
        const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
        assert.ok(wide <= 0, `${view} at ${width} is ${wide} px too wide`);
        await page.screenshot({ path: join(shots, `${view}-${width}-${scheme}.png`) });
        await axe(`${view} at ${width}, ${scheme}`);
      }
    }
  }
  held("at 375, 768 and 1440 px, dark and light, nothing is too wide and axe-core finds nothing serious");

  const queued = JSON.parse(run("jobs", "list", "--all", "--limit", "50", "--json")).jobs.filter((one) => ["queued", "running"].includes(one.status));
  for (const one of queued) try { run("jobs", "cancel", one.job_id); } catch { /* over */ }
  assert.deepEqual(problems, [], "the page's console is quiet, and it asks nobody else");
  held("the console is quiet, and nothing was asked elsewhere");
}

let failed = null;
try {
  await steps();
} catch (error) {
  failed = error;
  console.error(error);
  console.error(problems.join("\n"));
  try {
    await page.screenshot({ path: join(shots, "failed.png") });
    console.error(`what the page showed: ${join(shots, "failed.png")}`);
  } catch { /* there is none */ }
}
await browser?.close();
try { run("daemon", "stop", "--force"); } catch { /* none runs */ }
for (const child of started) {
  child.stdin.end();
  await end(child, "SIGTERM");
}
if (!process.env.DASHBOARD_SHOTS || !failed) rmSync(scratch, { recursive: true, force: true, maxRetries: 5 });
process.exit(failed ? 1 : 0);
