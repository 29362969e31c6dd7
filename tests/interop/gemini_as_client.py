#!/usr/bin/env python3
"""The real Gemini CLI as an MCP client of phone-opus, against a stand-in model on loopback. See README.md."""
import json
import os
import signal
import subprocess
import sys

from harness import Mock, Tapped, Upgrade, check_client, crashes, end_in_a_consult, gemini, mock_gemini, phone_opus, words

KEY = "dummy-key-0453"
DONE = {"text": "Done."}


def settle(scratch, tap=None, inner=(), **options):
    """Makes phone-opus its only server; `inner` is the server's own environment."""
    program, arguments = (tap.command, tap.arguments) if tap else (phone_opus(), words())
    env = {"PHONE_OPUS_CLAUDE_BIN": scratch.agent(), "PHONE_OPUS_STATE_DIR": scratch.state, "PHONE_OPUS_PROGRESS_S": "1", **dict(inner)}
    settings = {
        "security": {"auth": {"selectedType": "gemini-api-key"}}, "general": {"disableAutoUpdate": True}, "telemetry": {"enabled": False},
        "privacy": {"usageStatisticsEnabled": False},
        "mcpServers": {"phone-opus": {"command": program, "args": arguments, "env": env, "trust": True, **options}}}
    with open(os.path.join(scratch.dir("home/.gemini"), "settings.json"), "w") as file:
        json.dump(settings, file)


def command(steps):
    # A script of the inner agent rides in the model's script; its marks must not end that one.
    script = json.dumps(steps).replace("@", "\\u0040")
    return [gemini(), "-p", "please @@mock %s @@" % script, "-o", "json", "--skip-trust", "--approval-mode", "yolo", "-m", "gemini-2.5-pro"]


def environment(scratch, mock):
    return scratch.environment(GOOGLE_GEMINI_BASE_URL=mock.url, GEMINI_API_KEY=KEY, GEMINI_CLI_NO_RELAUNCH="true")


def call(tool, **arguments):
    return {"name": "*phone*" + tool, "args": arguments}


def played_by(script):
    return "@@script %s @@" % json.dumps(script)


def outputs(body):
    """What the model saw of its calls, in their order."""
    parts = [part for content in body.get("contents", []) for part in content.get("parts", [])]
    return [json.dumps(part["functionResponse"]["response"]) for part in parts if "functionResponse" in part] + [""] * 3


def checks(scratch, mock, table):
    table.era = "legacy"

    def add(cell, name, good, detail=""):
        return table.add(name, good, detail, cell=cell)

    def ran(name, steps, inner=(), tapped=True, server=None, **options):
        """One run: what was said, its exit code, its model requests."""
        tap = Tapped(scratch, name, server) if tapped else None
        settle(scratch, tap, inner, **options)
        mark = mock.mark()
        done = subprocess.run(command(steps), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
                              cwd=scratch.work, env=environment(scratch, mock))
        bodies = [body for body in mock.bodies(mark) if body.get("tools")]
        if not bodies:
            raise ValueError("%s asked its model nothing: %s" % (name, (done.stdout + done.stderr)[-1500:]))
        return tap, done.returncode, bodies

    slow = played_by({"answer": "a slow answer", "steps": [{"delay_ms": 3500}]})
    tap, code, bodies = ran("slow", [{"call": call("consult", prompt=slow)}, DONE])
    hello = tap.said("server", "initialize")[0]
    version = (tap.answer(hello) or {}).get("result", {}).get("protocolVersion")
    add("connect", "version", hello["params"]["protocolVersion"] == version, version)
    add("connect", "instructions reach the model", "second opinion" in json.dumps(bodies[0]))
    offered = [one["name"] for tool in bodies[0]["tools"] for one in tool.get("functionDeclarations", []) if "phone" in one["name"]]
    add("list", "tools offered to the model", len(offered) == 6, ", ".join(offered))
    seen = outputs(bodies[-1])[0]
    add("call", "answer seen by the model", code == 0 and "a slow answer" in seen, seen[:120])
    request = tap.said("server", "tools/call")[0]
    values = [note["params"]["progress"] for note in tap.said("client", "notifications/progress")]
    if request["params"].get("_meta", {}).get("progressToken") is None:
        table.cannot("progress", "asks for none")
    else:
        add("progress", "sent to its token", len(values) >= 2 and values == sorted(set(values)), values)
    table.cannot("tasks", "declares none")
    table.cannot("subscribe", "of 2026-07-28 only")

    # What the model is told of failures. An argument no schema has does not get past the client.
    limited = played_by({"answer": "x", "result": {"is_error": True, "api_error_status": 429}})
    _, _, bodies = ran("fails", [{"call": call("consult", prompt=" ", cwd="relative")}, {"call": call("consult", prompt=limited)}, DONE])
    bad, failed, *_ = outputs(bodies[-1])
    add("call", "bad arguments: the model reads why", "blank" in bad and "not absolute" in bad, bad[-160:])
    add("call", "agent fails: the model reads why", "agent_rate_limited" in failed, failed[:160])

    # Two in one turn, each answered with its own.
    both = [call("consult", prompt=played_by({"answer": "answer " + name, "steps": [{"delay_ms": 300}]})) for name in ("one", "two")]
    _, code, bodies = ran("both", [{"call": both}, DONE])
    first, second, *_ = outputs(bodies[-1])
    add("parallel", "two consults in one turn, each with its own answer", code == 0 and "answer one" in first and "answer two" in second)

    # Its own limit for a call: it gives up, tells the server, and the job is over.
    hanging = call("consult", prompt=played_by({"steps": ["hang"]}))
    tap, _, bodies = ran("limit", [{"call": hanging}, {"call": call("consult_jobs", limit=1)}, DONE], timeout=3000)
    gone, listed, *_ = outputs(bodies[-1])
    request = next(m for m in tap.said("server", "tools/call") if m["params"]["name"] == "consult")
    add("cancel", "its own limit", bool(tap.said("server", "notifications/cancelled")) and tap.answer(request) is None
        and "cancel" in listed, gone[:80] + " / " + listed[:80])

    table.cannot_crash()
    for name, inner in crashes():
        answered = call("consult", prompt=played_by({"answer": "all the same"}))
        _, _, bodies = ran(name[:5], [{"call": answered}, {"call": call("health_snapshot")}, DONE], inner)
        seen, health, *_ = outputs(bodies[-1])
        add("worker crash", name, "all the same" in seen and '"worker_generation":2' in health.replace("\\", "").replace(" ", ""),
            seen[:80])

    # Another build is installed while the model waits for a consult.
    upgrade = Upgrade(scratch, "upgrade", lambda: len(Tapped(scratch, "upgrade").progress()))
    upgrade.start()
    tap, code, bodies = ran("upgrade", [{"call": call("consult", prompt=played_by(upgrade.script))}, {"call": call("health_snapshot")},
                                        {"call": call("consult", prompt=played_by({"answer": "after it"}))}, DONE], server=upgrade.program)
    seen, health, after, *_ = outputs(bodies[-1])
    tap.upgrade_checks(upgrade, add)
    add("upgrade", "the model sees the answer", code == 0 and upgrade.ANSWER in seen, seen[:80])
    add("upgrade", "health tells of it", 'adopted":1,' in health.replace("\\", "").replace(" ", ""))
    add("upgrade", "further calls", "after it" in after, after[:80])

    # Without a tap, so that its signals reach the server itself.
    _, code, bodies = ran("out", [{"call": call("consult", prompt=played_by({"answer": "and out"}))}, DONE], tapped=False)
    seen = outputs(bodies[-1])[0]
    alive = scratch.left(within=4)
    add("shutdown", "after its last turn: nothing left", code == 0 and "and out" in seen and not alive, alive or seen[:60])
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        killed(scratch, mock, table, how)


def killed(scratch, mock, table, how):
    """The client is ended while it waits for a consult that never ends."""
    here = scratch.path("here-" + how.name)
    settle(scratch)
    client = subprocess.Popen(
        command([{"call": call("consult", prompt=played_by({"steps": [{"touch": here}, "hang"]}))}, DONE]),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=scratch.work, env=environment(scratch, mock))
    end_in_a_consult(scratch, table, how, client, lambda: os.path.exists(here), within=30)


class Model(Mock):
    """This stand-in keeps its log in a file."""

    def __init__(self, scratch):
        self.file = scratch.path("model.log")
        super().__init__(scratch, mock_gemini(), arguments=["--log", self.file])

    def log(self):
        if not os.path.exists(self.file):
            return []
        with open(self.file) as file:
            return [json.loads(line) for line in file]

    def bodies(self, since):
        return [entry["body"] for entry in self.log()[since:] if "enerateContent" in entry["path"]]


def main():
    gemini(), phone_opus()
    return check_client("Gemini CLI", Model, checks)


if __name__ == "__main__":
    sys.exit(main())
