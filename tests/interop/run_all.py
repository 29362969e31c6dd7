#!/usr/bin/env python3
"""phone-opus as the server of every MCP client it did not bring along; writes RESULTS.md. See README.md.

Arguments: the clients to run (rmcp, ts1, ts2, python, inspector, claude, codex, gemini) and the doors they come by (server,
bridge), otherwise all. RESULTS.md is written only when all were asked for.
"""
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

from harness import ROOT, Scratch, Table, Tapped, Upgrade, bridged, crashes, phone_opus, program, skip, words

HERE = os.path.dirname(os.path.abspath(__file__))
CELLS = ["connect", "list", "call", "parallel", "cancel", "progress", "tasks", "subscribe", "worker crash", "upgrade", "shutdown"]

# How clients come to phone-opus: each to a server of its own, or all to one daemon.
DOORS = ["server", "bridge"]

# What each test of tests/it/protocol/rmcp_client.rs shows.
RMCP = {
    "connects_and_ends_in_order": ["connect", "shutdown"],
    "lists_the_tools": ["list"],
    "consults_and_reads_errors": ["call"],
    "calls_in_parallel": ["parallel"],
    "cancels_by_giving_up": ["cancel"],
    "hears_progress": ["progress"],
    "is_given_tasks_where_it_knows_them": ["tasks", "subscribe"],
    "walks_the_pages_of_an_embedding_program_and_hears_that_they_changed": ["list", "subscribe"],
    "hears_nothing_of_a_worker_that_crashed": ["worker crash"],
    "hears_nothing_of_a_worker_process_that_was_killed": ["worker crash"],
    "stays_connected_through_an_upgrade": ["upgrade"],
}


class Grid(Table):
    """A table that also knows what each client can do, era by era."""

    def __init__(self):
        super().__init__("MCP clients of phone-opus")
        self.cells, self.clients, self.missing = {}, [], []

    def begin(self, client, version):
        self.client = client
        self.clients.append((client, version))

    def fill(self, client, era, cell, name, good, detail):
        era += ", bridge" if bridged() else ""
        self.cells.setdefault((client, era), {}).setdefault(cell, []).append((name, good, str(detail)))

    def _tell(self, cell, name, good, detail):
        if cell:
            self.fill(self.client, self.era, cell, name, good, detail)

    def check(self, cell, name, good, detail):
        """A line of a driver: true, false, or null for what its client cannot do."""
        if good is None:
            return self.cannot(cell, detail)
        return self.add("%s, %s: %s: %s" % (self.client, self.era, cell, name), good, detail, cell=cell)

    def absent(self, client, why):
        self.missing.append((client, why))
        self.skipped(client, why)

    def markdown(self):
        notes, rows = [], []

        def note(text):
            # Where something lies on this machine is nobody's business.
            text = re.sub(r"(file://)?/[\w.@+-]+(/[\w.@+-]+)+", "(path)", " ".join(text.split()))
            if text not in notes:
                notes.append(text)
            return " [%d]" % (notes.index(text) + 1)

        for client, version in dict.fromkeys(self.clients):
            for era in [era for known, era in self.cells if known == client]:
                row = []
                for cell in CELLS:
                    checks = self.cells[client, era].get(cell, [])
                    wrong = [c for c in checks if c[1] is False]
                    why = "".join(note(c[2]) for c in checks if c[1] is None)
                    if wrong:
                        row.append("**FAIL**" + "".join(note("%s: %s" % (c[0], c[2][:200])) for c in wrong))
                    else:
                        row.append(("pass" if any(c[1] for c in checks) else "-" if why else "not run") + why)
                rows.append("| %s %s | %s | %s |" % (client, version, era, " | ".join(row)))
        checks = [c for cells in self.cells.values() for of in cells.values() for c in of]
        failed = sum(c[1] is False for c in checks)
        lines = [
            "# Interop: what each client was served", "",
            "Written by `tests/interop/run_all.py` on %s, %s %s; %d checks held, %d did not." % (
                time.strftime("%Y-%m-%d", time.gmtime()), platform.system(), platform.machine(),
                sum(c[1] is True for c in checks), failed), "",
            "| client | era | %s |" % " | ".join(CELLS), "|---|---|%s" % ("---|" * len(CELLS)), *rows, "",
            "`pass`: every check of the cell held. `-`: the client cannot do it. `legacy`: its newest version with `initialize`. `auto`: the client asks first with "
            "`server/discover` and may fall back. A date: the client knows that version only. `bridge`: through `mcp connect`, with one daemon "
            "behind it.", ""]
        lines += ["- [%d] %s" % (number, text) for number, text in enumerate(notes, 1)]
        lines += ["- **Not run**: %s: %s" % pair for pair in self.missing]
        lines += [
            "", "## What the cells mean", "",
            "- **connect**: the version of the era is agreed on; the instructions arrive.",
            "- **list**: all tools arrive and satisfy the client's own checks; for the Inspector `--strict`.",
            "- **call**: a consult is answered in text and structure; bad arguments, a failing agent and an unknown tool are "
            "seen as what they are.",
            "- **parallel**: consults at the same time on one connection, and quick calls that do not wait for them.",
            "- **cancel**: the client's own way of giving up ends the job and its agent; nothing more is said about the call.",
            "- **progress**: reported while the call runs, rising.",
            "- **tasks**: created, looked at, fetched and cancelled in the client's own way.",
            "- **subscribe**: `subscriptions/listen` is acknowledged.",
            "- **worker crash**: the worker panics in the call, and its process is killed before it answers; the call is "
            "answered all the same by the next generation (after one run of the agent, as counted through rmcp and the SDKs).",
            "- **upgrade**: another build is installed in the middle of a consult; the server becomes it in its own process, the "
            "answer comes on the same connection after one run of the agent, progress goes on rising where there is some, and "
            "further calls are served (the Inspector makes one call a connection). Through a bridge the daemon is killed before, in the "
            "same consult.",
            "- **shutdown**: the server goes when its client does, in the client's own way; no process is left.", ""]
        return "\n".join(lines)


def server_environment(scratch):
    return scratch.environment(PHONE_OPUS_CLAUDE_BIN=scratch.agent(), PHONE_OPUS_PROGRESS_S="1")


def left(grid, scratch, era):
    alive = scratch.left(within=3)
    grid.add("%s, %s: nothing left" % (grid.client, era), not alive, alive or "", cell="shutdown")


def drive(grid, scratch, command, era):
    """Runs a driver of one era in its own language; it prints a JSON line per check."""
    grid.era = era
    env = server_environment(scratch)

    def run(cell, server, **variables):
        done = subprocess.run(
            [*command, era, server, json.dumps(env), scratch.work], env=scratch.environment(PYTHONDONTWRITEBYTECODE="1", INTEROP_DOOR=os.environ.get("INTEROP_DOOR"), **variables),
            cwd=scratch.work, capture_output=True, text=True, timeout=300)
        for line in done.stdout.splitlines():
            grid.check(*json.loads(line))
        if done.returncode:
            grid.add("%s, %s: %s: went through" % (grid.client, era, cell), False, done.stderr.strip()[-2000:], cell=cell)

    run("call", phone_opus())
    left(grid, scratch, era)

    # Once more, to be upgraded; the driver notes what it hears of progress where we can see it.
    notes = scratch.path("progress")
    upgrade = Upgrade(scratch, era, lambda: os.path.exists(notes) and os.path.getsize(notes))
    upgrade.start()
    run("upgrade", upgrade.program, INTEROP_UPGRADE=json.dumps({"script": upgrade.script, "notes": notes}))
    upgrade.checks(grid.check)

    # Once more, to be killed: whatever a client promises about its servers, this one keeps none of it.
    here = scratch.path("hangs")
    driver = subprocess.Popen(
        [*command, era, phone_opus(), json.dumps(env), scratch.work], env=scratch.environment(PYTHONDONTWRITEBYTECODE="1", INTEROP_DOOR=os.environ.get("INTEROP_DOOR"), INTEROP_HANG=here),
        cwd=scratch.work, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not os.path.exists(here) and time.monotonic() < end:
        time.sleep(0.02)
    reached = os.path.exists(here)
    driver.kill()
    driver.wait()
    alive = scratch.left(within=6)
    grid.add("%s, %s: killed in a consult: nothing left" % (grid.client, era), reached and not alive, alive or "", cell="shutdown")


def fresh(part):
    """Each era of each client has a world of its own."""
    with Scratch() as scratch:
        try:
            part(scratch)
        finally:
            scratch.end_all()


# -- the clients ----------------------------------------------------------------------------------------------------


def rmcp(grid):
    cargo = shutil.which("cargo")
    if not cargo:
        return grid.absent("rmcp", "no cargo on PATH")
    with open(os.path.join(ROOT, "Cargo.lock")) as file:
        grid.begin("rmcp", re.search(r'name = "rmcp"\nversion = "([^"]+)"', file.read()).group(1))
    done = subprocess.run([cargo, "test", "--test", "it", "protocol::rmcp_client"], cwd=ROOT, capture_output=True, text=True)
    seen = re.findall(r"^test protocol::rmcp_client::(\w+)::(\w+) \.\.\. (\w+)", done.stdout, re.M)
    for era in ("legacy", "auto", "modern"):
        grid.era = era
        laws = {law: state for module, law, state in seen if module == era}
        for law, cells in RMCP.items():
            for cell in cells:
                if era == "legacy" and cell in ("tasks", "subscribe"):
                    continue
                grid.add("rmcp, %s: %s: %s" % (era, cell, law), laws.get(law) == "ok", laws.get(law, done.stderr[-1000:]), cell=cell)
        # Its rig looks for processes at the end of each of them.
        if era == "legacy":
            grid.cannot("tasks", "knows no tasks of 2025-11-25; declares the extension without effect")
            grid.cannot("subscribe", "of 2026-07-28 only")


def typescript(grid, client, package, driver, eras, extra=()):
    node = program("INTEROP_NODE", "node")
    modules = os.environ.get("INTEROP_NODE_MODULES", "")
    wanted = [package, *extra]
    if not node or not all(os.path.isdir(os.path.join(modules, name)) for name in wanted):
        return grid.absent(client, "needs Node, and %s in the folder INTEROP_NODE_MODULES names" % " and ".join(wanted))
    with open(os.path.join(modules, package, "package.json")) as file:
        grid.begin(client, json.load(file)["version"])

    def part(scratch, era):
        # Node looks for packages beside the script.
        scripts = scratch.dir("scripts")
        os.symlink(modules, os.path.join(scripts, "node_modules"))
        for name in ("checks.mjs", driver):
            shutil.copy(os.path.join(HERE, name), scripts)
        drive(grid, scratch, [node, os.path.join(scripts, driver)], era)

    for era in eras:
        fresh(lambda scratch, era=era: part(scratch, era))


def ts1(grid):
    typescript(grid, "TypeScript SDK", "@modelcontextprotocol/sdk", "ts1_client.mjs", ["legacy"])


def ts2(grid):
    typescript(grid, "TypeScript client", "@modelcontextprotocol/client", "ts2_client.mjs",
               ["2024-11-05", "2025-03-26", "2025-06-18", "legacy", "auto", "modern"],
               ["@modelcontextprotocol/ext-tasks"])


def python(grid):
    command = program("INTEROP_PYTHON", "python3")
    version = command and subprocess.run(
        [command, "-c", "import mcp, importlib.metadata as m; print(m.version('mcp'))"], capture_output=True, text=True).stdout.strip()
    if not version:
        return grid.absent("Python mcp", "install it for the Python that INTEROP_PYTHON names")
    grid.begin("Python mcp", version)
    for era in ("legacy", "auto", "modern"):
        fresh(lambda scratch, era=era: drive(grid, scratch, [command, os.path.join(HERE, "python_client.py")], era))


def inspector(grid):
    command = program("INTEROP_INSPECTOR", "mcp-inspector")
    if not command:
        return grid.absent("Inspector", "install it or set INTEROP_INSPECTOR")
    version = subprocess.run([command, "--cli", "--version"], capture_output=True, text=True).stdout.strip().split()
    grid.begin("Inspector", version[-1] if version else "?")
    for era in ("legacy", "auto", "modern"):
        grid.era = era
        fresh(lambda scratch, era=era: inspect(grid, scratch, command, era))


def inspect(grid, scratch, command, era):
    def start(method, *more, server=(), **variables):
        env = dict(server_environment(scratch), **variables)
        given = [word for name, value in env.items() if name.startswith("PHONE_OPUS") for word in ("-e", name + "=" + value)]
        return subprocess.Popen(
            [command, "--cli", *given, *(server or [phone_opus(), *words()]), "--protocol-era", era, "--method", method,
             *more, "--format", "json", "-q"],
            env=scratch.environment(), cwd=scratch.work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(method, *more, **how):
        process = start(method, *more, **how)
        stdout, stderr = process.communicate(timeout=120)
        try:
            result = json.loads(stdout)["result"]
        except (ValueError, KeyError):
            result = {}
        return process.returncode, result, stderr.strip()

    def called(tool, arguments):
        return ["--tool-name", tool, "--tool-args-json", json.dumps(arguments)]

    def consult(script, **how):
        return run("tools/call", *called("consult", {"prompt": "@@script %s @@" % json.dumps(script)}), **how)

    def add(cell, name, good, detail=""):
        grid.add("Inspector, %s: %s" % (era, name), good, detail, cell=cell)

    code, result, stderr = run("initialize")
    want = "2025-11-25" if era == "legacy" else "2026-07-28"
    add("connect", "version", code == 0 and result.get("protocolVersion") == want, result.get("protocolVersion") or stderr)
    code, result, stderr = run("tools/list", "--strict")
    size = len(json.dumps(result, separators=(",", ":"), ensure_ascii=False).encode())
    add("list", "tools/list --strict", code == 0 and len(result.get("tools", [])) == 6 and size < 6000,
        "%d tools, %d bytes%s" % (len(result.get("tools", [])), size, "; " + stderr if stderr else ""))
    code, result, stderr = run("tools/call", *called("consult", {"prompt": " ", "cwd": "relative"}))
    add("call", "bad arguments", code == 5 and result.get("isError") is True, "exit %d" % code)
    code, result, stderr = run("tools/call", *called("no_such_tool", {}))
    add("call", "unknown tool", code in (1, 4, 5), "exit %d" % code)

    tap = Tapped(scratch, "inspector-" + era)
    code, result, stderr = consult({"answer": "from the script", "steps": [{"delay_ms": 2500}]}, server=[tap.command, *tap.arguments])
    add("call", "consult", code == 0 and result.get("structuredContent", {}).get("response") == "from the script", stderr or "exit 0")
    call = tap.said("server", "tools/call")[0]
    looks = tap.said("server", "tasks/get")
    if looks:
        add("tasks", "given one, looks at it until it is over", "task" in json.dumps(tap.answer(call)) and len(looks) >= 1,
            "%d looks" % len(looks))
        grid.cannot("progress", "a task of the extension has none")
    else:
        if call["params"].get("_meta", {}).get("progressToken") is None:
            grid.cannot("progress", "the CLI asks for none")
        grid.cannot("tasks", "the CLI makes none in this era")
    if tap.said("server", "subscriptions/listen"):
        acknowledged = tap.said("client", "notifications/subscriptions/acknowledged")
        add("subscribe", "acknowledged", len(acknowledged) >= 1, len(acknowledged))
    else:
        grid.cannot("subscribe", "of 2026-07-28 only" if era == "legacy" else "the CLI subscribes to nothing")

    code, result, _ = run("tools/call", *called("health_snapshot", {}), "--load", "--load-requests", "1000", "--load-concurrency", "16")
    add("parallel", "1000 calls, 16 at once", code == 0 and result.get("errorRate") == 0 and result.get("ok") == 1000,
        "%.0f a second, %s" % (result.get("throughput", 0), result.get("latencyMs")))

    grid.cannot_crash()
    for name, more in crashes():
        code, result, stderr = consult({"answer": "all the same"}, **more)
        add("worker crash", name, code == 0 and result.get("structuredContent", {}).get("response") == "all the same", stderr or "exit 0")

    # A connection has one call here, so the next one cannot be asked what became of its server.
    upgrade = Upgrade(scratch, era)
    upgrade.start()
    code, result, stderr = consult(upgrade.script, server=[upgrade.program, *words()])
    answer = result.get("structuredContent", {}).get("response")
    add("upgrade", "the answer arrives", code == 0 and answer == upgrade.ANSWER, stderr or answer)
    upgrade.checks(grid.check)

    here = scratch.path("here")
    process = start("tools/call", *called("consult", {"prompt": "@@script %s @@" % json.dumps({"steps": [{"touch": here}, "hang"]})}))
    end = time.monotonic() + 20
    while not os.path.exists(here) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    if looks:
        # A task outlives the connection; it is ended from the next one, as any job.
        code, result, _ = run("tools/call", *called("consult_jobs", {"limit": 1}))
        job = result.get("structuredContent", {}).get("jobs", [{}])[0]
        add("tasks", "outlives its client", job.get("status") == "running", job.get("status"))
        code, result, _ = run("tools/call", *called("consult_cancel", {"job_id": job.get("job_id", "")}))
        ended = result.get("structuredContent", {}).get("status")
        add("tasks", "is ended by another one", ended == "cancelled", ended)
    alive = scratch.left(within=6)
    add("shutdown", "interrupted in a consult: nothing left", os.path.exists(here) and not alive, alive or "exit %d" % process.returncode)
    grid.cannot("cancel", "the CLI has no way to give up but to end")


def agent(grid, client, variable, name, script):
    """A script of its own, whose checks name their cells."""
    command = program(variable, name)
    if not command:
        return grid.absent(client, "install it or set " + variable)
    words = subprocess.run([command, "--version"], capture_output=True, text=True).stdout.split()
    grid.begin(client, next((word for word in words if word[:1].isdigit()), "?"))
    with Scratch() as scratch:
        rows = scratch.path("rows")
        done = subprocess.run([sys.executable, os.path.join(HERE, script)], env=dict(os.environ, INTEROP_ROWS=rows))
        if done.returncode == 77:
            grid.clients.pop()
            return grid.absent(client, "see above")
        with open(rows) as file:
            for line in file:
                _, grid.era, cell, check, good, detail = json.loads(line)
                grid.fill(client, grid.era, cell, check, good, detail)
        grid.rows.append((script, "ok" if done.returncode == 0 else "FAIL", "exit %d" % done.returncode))


def claude(grid):
    agent(grid, "Claude Code", "INTEROP_CLAUDE", "claude", "claude_as_client.py")


def codex(grid):
    agent(grid, "Codex", "INTEROP_CODEX", "codex", "codex_as_client.py")


def gemini(grid):
    agent(grid, "Gemini CLI", "INTEROP_GEMINI", "gemini", "gemini_as_client.py")


def main():
    if not os.path.isdir("/proc/self"):
        skip("no /proc here, so what is left of a run cannot be seen")
    phone_opus()
    grid = Grid()
    only, doors = [word for word in sys.argv[1:] if word not in DOORS], [word for word in sys.argv[1:] if word in DOORS]
    for door in doors or DOORS:
        os.environ["INTEROP_DOOR"] = door
        for part in (rmcp, ts1, ts2, python, inspector, claude, codex, gemini):
            # The tests of rmcp start their own server.
            if only and part.__name__ not in only or bridged() and part is rmcp:
                continue
            try:
                part(grid)
            except (subprocess.TimeoutExpired, OSError, KeyError, IndexError, ValueError) as error:
                grid.add(part.__name__ + " went through", False, repr(error), cell="call")
    table = grid.markdown()
    print("\n" + table)
    if not only and not doors:
        with open(os.path.join(HERE, "RESULTS.md"), "w") as file:
            file.write(table)
    return grid.end()


if __name__ == "__main__":
    sys.exit(main())
