#!/usr/bin/env python3
"""The real Claude Code as an MCP client of phone-opus, against a stand-in model on loopback. See README.md."""
import json
import os
import re
import signal
import subprocess
import sys
import time

from harness import Mock, Tapped, Upgrade, check_client, crashes, claude, end_in_a_consult, mock_model, phone_opus, scripted, words

KEY = "sk-dummy-key-0451"


CONSULT = ["mcp__phone-opus__" + name for name in ("consult", "consult_job", "consult_jobs", "consult_cancel", "health_snapshot")]


def command(output, inner, tap=None, server=None):
    """Claude Code with phone-opus as its only server; `inner` is the server's own environment."""
    program, arguments = (tap.command, tap.arguments) if tap else (server or phone_opus(), words())
    servers = {"mcpServers": {"phone-opus": {
        "command": program, "args": arguments, "env": inner or {}, "alwaysLoad": True}}}
    return [claude(), "-p", "--output-format", output, "--verbose", "--strict-mcp-config", "--mcp-config",
            json.dumps(servers), "--setting-sources", "", "--permission-mode", "dontAsk", "--allowedTools", ",".join(CONSULT)]


def environment(scratch, mock, **more):
    return scratch.environment(
        **more,
        ANTHROPIC_BASE_URL=mock.url, ANTHROPIC_API_KEY=KEY, DISABLE_AUTOUPDATER="1",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", CLAUDE_CODE_MAX_RETRIES="1")


def ask(scratch, mock, steps, inner=None, tap=None, server=None, **more):
    """One run of it against these steps. Returns (exit code, its events, the model requests, seconds).

    The steps are the mock's own, not the prompt's: the script of an inner agent rides in a prompt and would end them."""
    mock.script(steps)
    mark = mock.mark()
    began = time.monotonic()
    done = subprocess.run(command("stream-json", inner, tap, server), input="please", capture_output=True, text=True, timeout=120,
                          cwd=scratch.work, env=environment(scratch, mock, **more))
    took = time.monotonic() - began
    events = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, events, [r["body"] for r in mock.requests(mark)], took


def tool_results(body):
    """What the model saw of its tool calls, newest last."""
    seen = []
    for message in body.get("messages", []):
        for block in message["content"] if isinstance(message["content"], list) else []:
            if block.get("type") == "tool_result":
                content = block["content"]
                seen.append(content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content))
    return seen


def call(tool, **arguments):
    return {"tool_use": {"name": "mcp__phone-opus__" + tool, "input": arguments}}


def played_by(script):
    return "@@script %s @@" % json.dumps(script)


def era_checks(scratch, mock, table, variables):
    """What holds in either era, seen by the model and by a tap between client and server."""
    era, agent = table.era, scratch.agent()
    done = {"text": "Done."}

    def add(cell, name, good, detail=""):
        table.add("%s: %s" % (era, name), good, detail, cell=cell)

    def ran(name, steps, inner=(), **more):
        tap = Tapped(scratch, "%s-%s" % (era, name))
        inner = {"PHONE_OPUS_CLAUDE_BIN": agent, "PHONE_OPUS_PROGRESS_S": "1", **dict(inner)}
        code, events, bodies, _ = ask(scratch, mock, steps, inner, tap, **variables, **more)
        return tap, code, next(e for e in events if e.get("subtype") == "init"), bodies

    slow = call("consult", prompt=played_by({"answer": "a slow answer", "steps": [{"delay_ms": 3500}]}))
    tap, code, init, bodies = ran("slow", [slow, done])
    server = init["mcp_servers"][0]
    hello = tap.said("server", "initialize")
    add("connect", "in its era", server["status"] == "connected" and bool(hello) == (era == "legacy"),
        hello[0]["params"]["protocolVersion"] if hello else "no initialize")
    told = json.dumps(bodies[0].get("system")) + json.dumps(bodies[0]["messages"])
    add("connect", "instructions reach the model", "second opinion" in told)
    offered = [tool["name"] for tool in bodies[0]["tools"] if tool["name"].startswith("mcp__phone-opus__")]
    add("list", "tools offered to the model", len(offered) >= 5, ", ".join(name.split("__")[2] for name in offered))
    add("call", "answer seen by the model", code == 0 and "a slow answer" in (tool_results(bodies[-1]) or [""])[0])
    values = [note["params"]["progress"] for note in tap.said("client", "notifications/progress")]
    add("progress", "sent to its token, which it shows nobody", len(values) >= 2 and values == sorted(set(values)), values)
    table.cannot("tasks", "declares none, in either era")
    if era == "legacy":
        table.cannot("subscribe", "of 2026-07-28 only")
    else:
        asked = tap.said("server", "subscriptions/listen")
        heard = tap.said("client", "notifications/subscriptions/acknowledged")
        add("subscribe", "acknowledged", len(asked) == len(heard) == 1, asked[0]["params"]["notifications"] if asked else "")

    # Its own limit for a call: it gives up, tells the server, and the job is over some 300 ms later, which is asked for until it
    # is seen.
    hanging = call("consult", prompt=played_by({"steps": ["hang"]}))
    looks = [call("consult_jobs", limit=1)] * 6
    tap, code, _, bodies = ran("cancel", [hanging, *looks, done], MCP_TOOL_TIMEOUT="2000")
    gone, *lists = tool_results(bodies[-1]) or [""]
    listed = next((seen for seen in lists if "cancel" in seen), lists[-1] if lists else "")
    request = next(m for m in tap.said("server", "tools/call") if m["params"]["name"] == "consult")
    cancelled = tap.said("server", "notifications/cancelled")
    add("cancel", "its own limit", bool(cancelled) and tap.answer(request) is None and "cancel" in listed, gone[:100] + " / " + listed[:100])

    table.cannot_crash()
    for name, inner in crashes():
        answered = call("consult", prompt=played_by({"answer": "all the same"}))
        _, code, _, bodies = ran(name[:5], [answered, call("health_snapshot"), done], inner)
        seen = (tool_results(bodies[-1]) + ["", ""])[:2]
        add("worker crash", name, "all the same" in seen[0] and '"worker_generation":2' in seen[1].replace(" ", ""), seen[0][:60])
    alive = scratch.left(within=4)
    add("shutdown", "nothing left", not alive, alive or "")


def checks(scratch, mock, table):
    with open(os.path.join(scratch.work, "notes.txt"), "w") as file:
        file.write("The heron stands in the reeds.\n")
    agent = scratch.agent()
    for table.era, variables in (("legacy", {"MCP_PROTOCOL_NEGOTIATION": "legacy"}), ("auto", {})):
        era_checks(scratch, mock, table, variables)
        parallel_checks(scratch, mock, table, variables)
        for tapped in (True, False):
            upgrade_checks(scratch, mock, table, variables, tapped)

    def left(name):
        alive = scratch.left(within=4)
        return table.add(name + ": nothing left", not alive, alive, cell="shutdown")

    def ran(steps, **inner):
        """One run: its exit code, its last word, what the model saw of its tools, the requests, the seconds, the start."""
        code, events, bodies, took = ask(scratch, mock, steps, inner or {"PHONE_OPUS_CLAUDE_BIN": agent})
        init = next(event for event in events if event.get("subtype") == "init")
        result = next((event.get("result") for event in events if event.get("type") == "result"), None)
        return code, result, tool_results(bodies[-1]) or [""], bodies, took, init

    done = {"text": "Done."}
    question = "Where does the heron stand?"
    code, _, answers, bodies, took, init = ran([call("consult", agent="offline", prompt=question), done])
    server = init["mcp_servers"][0]
    table.add("server connected", server["name"] == "phone-opus" and server["status"] == "connected", server)
    offered = [tool["name"] for tool in bodies[0]["tools"] if tool["name"].startswith("mcp__phone-opus__")]
    table.add("tools offered to the model", len(offered) >= 5, ", ".join(name.split("__")[2] for name in offered))
    told = json.dumps(bodies[0].get("system")) + json.dumps(bodies[0]["messages"])
    table.add("instructions reach the model", "second opinion" in told)
    table.add("consult (offline): answer seen by the model", code == 0 and len(answers) == 1 and "notes.txt" in answers[0],
              "%.1f s; %d bytes: %s" % (took, len(answers[0]), answers[0][:80]))
    left("consult (offline)")

    # In the background, read by a second run of the client.
    code, _, answers, _, _, _ = ran([call("consult", prompt=played_by({"answer": "later"}), background=True), done])
    job = re.search(r'consult_job \{"job_id":"([0-9a-f-]{36})"', answers[0])
    table.add("background: the model gets a job and what to do", code == 0 and bool(job), answers[0][-160:])
    left("background")
    _, _, answers, _, _, _ = ran([call("consult_job", job_id=job.group(1) if job else "", wait_s=20), done])
    table.add("background: read by another run of the client", "later" in answers[0], answers[0][:80])

    # What the model is told of failures.
    _, _, answers, _, _, _ = ran([call("consult", prompt=" ", bogus=True), done])
    table.add("bad arguments: the model reads why", "bogus" in answers[0] and "blank" in answers[0], answers[0][:160])
    limited = played_by({"answer": "x", "result": {"is_error": True, "api_error_status": 429}})
    _, _, answers, _, _, _ = ran([call("consult", prompt=limited), done])
    table.add("agent fails: the model reads why", "agent_rate_limited" in answers[0], answers[0][:160])

    # A long answer is not moved into a file.
    long = played_by({"answer": "w " * 40_000})
    _, _, answers, _, _, _ = ran([call("consult", prompt=long), done],
                                 PHONE_OPUS_CLAUDE_BIN=agent, PHONE_OPUS_RESPONSE_CHARS="150000")
    table.add("answer of 80 KB stays in the conversation", answers[0].count("w ") >= 40_000, "%d characters" % len(answers[0]))

    # Claude Code asks Claude Code.
    nested = scripted("inner", {"text": "From the inner one."})
    code, result, answers, bodies, took, _ = ran([call("consult", prompt=nested), done],
                                                 PHONE_OPUS_CLAUDE_BIN=claude(), PHONE_OPUS_BILLING="api_key")
    table.add("Claude Code asks Claude Code", code == 0 and result == "Done." and "From the inner one." in answers[0],
              "%.1f s, %d model requests" % (took, len(bodies)))
    left("nested")

    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        killed(scratch, mock, table, {"PHONE_OPUS_CLAUDE_BIN": agent}, how)


def parallel_checks(scratch, mock, table, variables):
    """Each waits for what the other one makes, so both can end only if they run side by side."""
    one, two = scratch.path(table.era + "-one"), scratch.path(table.era + "-two")
    prompts = [played_by({"answer": "answer " + mine[-3:], "steps": [{"touch": mine}, {"wait_for_file": other}]})
               for mine, other in ((one, two), (two, one))]
    both = {"tool_use": [call("consult", prompt=prompt)["tool_use"] for prompt in prompts]}
    code, _, bodies, took = ask(scratch, mock, [both, {"text": "Done."}], {"PHONE_OPUS_CLAUDE_BIN": scratch.agent()}, **variables)
    # The answers come in the order in which they were ready; each must be that of its own question.
    blocks = [block for message in bodies[-1]["messages"] if isinstance(message["content"], list) for block in message["content"]]
    asked = {block["id"]: block["input"]["prompt"] for block in blocks if block["type"] == "tool_use"}
    paired = [(asked[block["tool_use_id"]], json.dumps(block["content"])) for block in blocks if block["type"] == "tool_result"]
    good = len(paired) == 2 and all(("answer one" in question) == ("answer one" in answer) for question, answer in paired)
    table.add("%s: two consults in one turn run side by side" % table.era, code == 0 and good, "%.1f s" % took if good else paired,
              cell="parallel")


def upgrade_checks(scratch, mock, table, variables, tapped):
    """Another build is installed while the model waits for a consult. With a tap between them it is seen what was said; without
    one the server has the client's own descriptors to pass on."""
    way = "seen by a tap" if tapped else "without a tap"
    heard = (lambda: len(tap.progress())) if tapped else None
    upgrade = Upgrade(scratch, "%s-%s" % (table.era, "tapped" if tapped else "alone"), heard)
    tap = Tapped(scratch, table.era + "-upgrade", upgrade.program) if tapped else None

    def add(cell, name, good, detail=""):
        table.add("%s: upgrade, %s: %s" % (table.era, way, name), good, detail, cell=cell)

    steps = [call("consult", prompt=played_by(upgrade.script)), call("health_snapshot"),
             call("consult", prompt=played_by({"answer": "after it"})), {"text": "Done."}]
    upgrade.start()
    code, events, bodies, _ = ask(
        scratch, mock, steps, {"PHONE_OPUS_CLAUDE_BIN": scratch.agent(), "PHONE_OPUS_PROGRESS_S": "1"}, tap, upgrade.program, **variables)
    (tap.upgrade_checks if tapped else Upgrade.checks)(upgrade, add)
    seen, health, after = (tool_results(bodies[-1]) + [""] * 3)[:3]
    add("upgrade", "the model sees the answer", code == 0 and upgrade.ANSWER in seen, seen[:80])
    # A client that had connected anew would ask a server of its own, which has adopted nothing.
    add("upgrade", "health tells of it on the same connection", '"adopted":1,' in health.replace(" ", ""), health[health.find('"rollout"'):][:80])
    add("upgrade", "further calls", "after it" in after, after[:80])


def killed(scratch, mock, table, inner, how):
    """The client is ended while it waits for a consult that never ends."""
    mock.script([call("consult", prompt='@@script {"steps":["hang"]} @@'), {"text": "ok"}])
    client = subprocess.Popen(
        command("text", inner), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=scratch.work, env=environment(scratch, mock))
    client.stdin.write(b"please")
    client.stdin.close()
    end_in_a_consult(scratch, table, how, client, lambda: any("stream-json" in line for line in scratch.processes().values()))


def main():
    mock_model(), claude(), phone_opus()
    return check_client("Claude Code", Mock, checks)


if __name__ == "__main__":
    sys.exit(main())
