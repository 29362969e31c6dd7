#!/usr/bin/env python3
"""The real Codex as an MCP client of phone-opus, against a stand-in model on loopback. See README.md."""
import json
import os
import signal
import subprocess
import sys

from harness import Mock, Tapped, Upgrade, check_client, crashes, codex, end_in_a_consult, mock_responses, phone_opus, words

KEY = "dummy-key-0452"
DONE = {"text": "Done."}


def command(scratch, mock, tap=None, inner=(), **options):
    """Codex with phone-opus as its only server; `inner` is the server's own environment."""
    program, arguments = (tap.command, tap.arguments) if tap else (phone_opus(), words())
    env = {"PHONE_OPUS_CLAUDE_BIN": scratch.agent(), "PHONE_OPUS_STATE_DIR": scratch.state, "PHONE_OPUS_PROGRESS_S": "1", **dict(inner)}
    settings = {
        "model": "mock", "model_provider": "mock",
        "model_providers.mock": {"name": "mock", "base_url": mock.url + "/v1", "env_key": "MOCK_KEY", "wire_api": "responses",
                                 "request_max_retries": 0, "stream_max_retries": 0},
        "mcp_servers.phone-opus": {"command": program, "args": arguments, "env": env, "required": True, **options},
    }
    given = [word for name, value in settings.items() for word in ("-c", "%s=%s" % (name, toml(value)))]
    return [codex(), "exec", "--json", "--skip-git-repo-check", "-s", "read-only", "--disable", "plugins", *given, "-"]


def toml(value):
    """A value as Codex takes it on its command line; JSON but for its tables."""
    if isinstance(value, dict):
        return "{%s}" % ", ".join("%s = %s" % (json.dumps(name), toml(item)) for name, item in value.items())
    return json.dumps(value)


def environment(scratch):
    return scratch.environment(MOCK_KEY=KEY, CODEX_HOME=scratch.dir("home/.codex"))


def call(tool, **arguments):
    return {"name": "*phone*" + tool, "input": arguments}


def played_by(script):
    return "@@script %s @@" % json.dumps(script)


def outputs(body):
    """What the model saw of its calls, in their order."""
    calls = [item["call_id"] for item in body["input"] if item.get("type") == "function_call"]
    seen = {item["call_id"]: item["output"] for item in body["input"] if item.get("type") == "function_call_output"}
    texts = [seen.get(number, "") for number in calls]
    return [text if isinstance(text, str) else json.dumps(text) for text in texts] + [""] * 3


def checks(scratch, mock, table):
    table.era = "legacy"

    def add(cell, name, good, detail=""):
        return table.add(name, good, detail, cell=cell)

    def ran(name, steps, inner=(), server=None, **options):
        """One run: what was said, its exit code, its model requests, its events."""
        tap = Tapped(scratch, name, server)
        mock.script(steps)
        mark = mock.mark()
        done = subprocess.run(command(scratch, mock, tap, inner, **options), input="please", capture_output=True, text=True,
                              timeout=120, cwd=scratch.work, env=environment(scratch))
        bodies = [r["body"] for r in mock.requests(mark)]
        if not bodies:
            raise ValueError("%s asked its model nothing: %s" % (name, (done.stdout + done.stderr)[-1500:]))
        return tap, done.returncode, bodies, [json.loads(line) for line in done.stdout.splitlines()]

    slow = played_by({"answer": "a slow answer", "steps": [{"delay_ms": 3500}]})
    tap, code, bodies, events = ran("slow", [{"call": call("consult", prompt=slow)}, DONE])
    hello = tap.said("server", "initialize")[0]
    version = (tap.answer(hello) or {}).get("result", {}).get("protocolVersion")
    add("connect", "version", hello["params"]["protocolVersion"] == version, version)
    add("connect", "instructions reach the model", "second opinion" in json.dumps(bodies[0]))
    spaces = [tool for tool in bodies[0]["tools"] if "phone" in tool.get("name", "")]
    offered = [tool["name"] for space in spaces for tool in space.get("tools", [space])]
    add("list", "tools offered to the model", len(offered) == 6, ", ".join(offered))
    seen = outputs(bodies[-1])[0]
    add("call", "answer seen by the model", code == 0 and "a slow answer" in seen, seen[:120])
    values = [note["params"]["progress"] for note in tap.said("client", "notifications/progress")]
    add("progress", "sent to its token, which it shows nobody", len(values) >= 2 and values == sorted(set(values)), values)
    table.cannot("tasks", "declares none")
    table.cannot("subscribe", "of 2026-07-28 only")

    # What the model is told of failures.
    limited = played_by({"answer": "x", "result": {"is_error": True, "api_error_status": 429}})
    _, _, bodies, _ = ran("fails", [{"call": call("consult", prompt=" ", bogus=True)}, {"call": call("consult", prompt=limited)}, DONE])
    bad, failed, *_ = outputs(bodies[-1])
    add("call", "bad arguments: the model reads why", "bogus" in bad and "blank" in bad, bad[:120])
    add("call", "agent fails: the model reads why", "agent_rate_limited" in failed, failed[:120])

    # Each waits for what the other one makes, so both can end only if they run side by side.
    one, two = scratch.path("one"), scratch.path("two")
    both = [call("consult", prompt=played_by({"answer": "answer " + mine[-3:], "steps": [{"touch": mine}, {"wait_for_file": other}]}))
            for mine, other in ((one, two), (two, one))]
    _, code, bodies, _ = ran("both", [{"call": both}, DONE])
    first, second, *_ = outputs(bodies[-1])
    add("parallel", "two consults in one turn run side by side", code == 0 and "answer one" in first and "answer two" in second)

    # In the background, read by a second run of the client.
    _, _, bodies, _ = ran("begin", [{"call": call("consult", prompt=played_by({"answer": "later"}), background=True)}, DONE])
    handle = outputs(bodies[-1])[0]
    at = handle.find('"job_id')
    job = handle[at:].replace("\\", "").split('"')[3] if at >= 0 else ""
    _, _, bodies, _ = ran("read", [{"call": call("consult_job", job_id=job, wait_s=20)}, DONE])
    add("call", "a background job is read by another run", "later" in outputs(bodies[-1])[0], outputs(bodies[-1])[0][:120])

    # Its own limit for a call: it gives up, tells the server, and the job is over.
    hanging = call("consult", prompt=played_by({"steps": ["hang"]}))
    tap, _, bodies, _ = ran("limit", [{"call": hanging}, {"call": call("consult_jobs", limit=1)}, DONE], tool_timeout_sec=2)
    gone, listed, *_ = outputs(bodies[-1])
    request = next(m for m in tap.said("server", "tools/call") if m["params"]["name"] == "consult")
    add("cancel", "its own limit", bool(tap.said("server", "notifications/cancelled")) and tap.answer(request) is None
        and "cancel" in listed, gone[:80] + " / " + listed[:80])

    table.cannot_crash()
    for name, inner in crashes():
        answered = call("consult", prompt=played_by({"answer": "all the same"}))
        _, _, bodies, _ = ran(name[:5], [{"call": answered}, {"call": call("health_snapshot")}, DONE], inner)
        seen, health, *_ = outputs(bodies[-1])
        good = "all the same" in seen and 'worker_generation":2' in health.replace("\\", "").replace(" ", "")
        add("worker crash", name, good, seen[:80])
    # Another build is installed while the model waits for a consult.
    upgrade = Upgrade(scratch, "upgrade", lambda: len(Tapped(scratch, "upgrade").progress()))
    upgrade.start()
    tap, code, bodies, _ = ran("upgrade", [{"call": call("consult", prompt=played_by(upgrade.script))}, {"call": call("health_snapshot")},
                                           {"call": call("consult", prompt=played_by({"answer": "after it"}))}, DONE], server=upgrade.program)
    seen, health, after, *_ = outputs(bodies[-1])
    tap.upgrade_checks(upgrade, add)
    add("upgrade", "the model sees the answer", code == 0 and upgrade.ANSWER in seen, seen[:80])
    add("upgrade", "health tells of it", 'adopted":1,' in health.replace("\\", "").replace(" ", ""))
    add("upgrade", "further calls", "after it" in after, after[:80])

    # Without a tap, so that its signals reach the server itself.
    mock.script([{"call": call("consult", prompt=played_by({"answer": "and out"}))}, DONE])
    mark = mock.mark()
    done = subprocess.run(command(scratch, mock), input="please", capture_output=True, text=True, timeout=120, cwd=scratch.work,
                          env=environment(scratch))
    seen = outputs(mock.requests(mark)[-1]["body"])[0]
    alive = scratch.left(within=4)
    add("shutdown", "after its last turn: nothing left", done.returncode == 0 and "and out" in seen and not alive, alive or seen[:60])
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        killed(scratch, mock, table, how)


def killed(scratch, mock, table, how):
    """The client is ended while it waits for a consult that never ends."""
    here = scratch.path("here-" + how.name)
    mock.script([{"call": call("consult", prompt=played_by({"steps": [{"touch": here}, "hang"]}))}, DONE])
    client = subprocess.Popen(
        command(scratch, mock), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=scratch.work, env=environment(scratch))
    client.stdin.write(b"please")
    client.stdin.close()
    end_in_a_consult(scratch, table, how, client, lambda: os.path.exists(here))


def main():
    codex(), phone_opus()
    return check_client("Codex", lambda scratch: Mock(scratch, mock_responses(), "/responses"), checks)


if __name__ == "__main__":
    sys.exit(main())
