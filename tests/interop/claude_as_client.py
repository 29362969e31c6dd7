#!/usr/bin/env python3
"""The real Claude Code as an MCP client of phone-opus, against a stand-in model on loopback. See README.md."""
import json
import os
import subprocess
import sys
import time

from harness import Mock, Scratch, Table, claude, mock_model, phone_opus, scripted, skip

KEY = "sk-dummy-key-0451"


def ask(scratch, mock, steps, tools, env=None, inner=None, text="please"):
    """Runs Claude Code with phone-opus as its server. Returns (exit code, its events, the model requests, seconds)."""
    servers = {"mcpServers": {"phone-opus": {
        "command": phone_opus(), "args": ["mcp", "serve"], "env": inner or {}, "alwaysLoad": True}}}
    mark = mock.mark()
    began = time.monotonic()
    done = subprocess.run(
        [claude(), "-p", "--output-format", "stream-json", "--verbose", "--strict-mcp-config", "--mcp-config",
         json.dumps(servers), "--setting-sources", "", "--permission-mode", "dontAsk", "--allowedTools", ",".join(tools)],
        input=scripted(text, steps), capture_output=True, text=True, timeout=120, cwd=scratch.work,
        env=scratch.environment(ANTHROPIC_BASE_URL=mock.url, ANTHROPIC_API_KEY=KEY, DISABLE_AUTOUPDATER="1",
                                CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", CLAUDE_CODE_MAX_RETRIES="1", **(env or {})))
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


CONSULT = ["mcp__phone-opus__" + name for name in ("consult", "consult_job", "consult_jobs", "consult_cancel", "health_snapshot")]


def checks(scratch, mock, table):
    with open(os.path.join(scratch.work, "notes.txt"), "w") as file:
        file.write("The heron stands in the reeds.\n")
    agent = scratch.path("phone-opus-scripted-agent")
    os.symlink(os.path.realpath(phone_opus()), agent)
    played = {"PHONE_OPUS_CLAUDE_BIN": agent}

    def left(name):
        alive = scratch.left(within=4)
        return table.add(name + ": nothing left", not alive, alive)

    code, events, bodies, took = ask(
        scratch, mock, [call("consult", agent="offline", prompt="Where does the heron stand?"), {"text": "In the reeds."}], CONSULT)
    init = next(e for e in events if e.get("subtype") == "init")
    table.add("server connected", {"name": "phone-opus", "status": "connected"}.items() <= init["mcp_servers"][0].items(), init["mcp_servers"])
    offered = [t["name"] for t in bodies[0].get("tools", []) if t["name"].startswith("mcp__phone-opus__")]
    table.add("tools offered to the model", len(offered) >= 5, ", ".join(name.split("__")[2] for name in offered))
    system = json.dumps(bodies[0].get("system")) + json.dumps(bodies[0]["messages"])
    table.add("instructions reach the model", "second opinion" in system)
    answers = tool_results(bodies[-1])
    table.add("consult (offline): answer seen by the model", code == 0 and len(answers) == 1 and "notes.txt" in answers[0],
              "%.1f s; %d bytes: %s" % (took, len(answers[0]) if answers else 0, (answers or [""])[0][:80]))
    left("consult (offline)")

    # Two tool calls in one turn, the agent played: both wait for a file that the first one to start makes. Only calls that
    # run beside each other can both end.
    one, two = scratch.path("one"), scratch.path("two")
    prompts = ['@@script %s @@' % json.dumps({"answer": "answer " + mine[-3:], "steps": [{"touch": mine}, {"wait_for_file": other}]})
               for mine, other in ((one, two), (two, one))]
    step = {"tool_use": [call("consult", prompt=prompt)["tool_use"] for prompt in prompts]}
    # The script of an agent must not end the script of the model, which rides in the same text.
    mock.script([step, {"text": "Both."}])
    code, events, bodies, took = ask(scratch, mock, None, CONSULT, inner=played)
    answers = tool_results(bodies[-1])
    table.add("two consults in one turn run together", code == 0 and len(answers) == 2 and "answer one" in answers[0]
              and "answer two" in answers[1], "%.1f s" % took)
    left("two consults")

    # Background, and one waiting read by the id the model was given: here by list, since a script knows no ids.
    mock.script([call("consult", prompt='@@script {"answer":"later"} @@', background=True), call("consult_jobs"), {"text": "ok"}])
    code, events, bodies, took = ask(scratch, mock, None, CONSULT, inner=played)
    answers = tool_results(bodies[-1])
    handle = json.loads(answers[0]) if answers and answers[0].startswith("{") else {}
    table.add("background: the model gets a job id and what to do", code == 0 and "job_id" in handle and "consult_job" in handle.get("next", ""),
              handle.get("next") or answers[:1])
    alive = scratch.left(within=6)
    table.add("background: the job ends by itself", not alive, alive)
    mock.script([call("consult_job", job_id=handle.get("job_id", ""), wait_s=20), {"text": "ok"}])
    code, events, bodies, took = ask(scratch, mock, None, CONSULT, inner=played)
    answers = tool_results(bodies[-1])
    table.add("background: read by another client process", bool(answers) and "later" in answers[0], (answers or [""])[0][:80])
    left("background")

    # Failures: what the model is told.
    mock.script([call("consult", prompt=" ", bogus=True), {"text": "ok"}])
    code, events, bodies, took = ask(scratch, mock, None, CONSULT, inner=played)
    answers = tool_results(bodies[-1])
    table.add("bad arguments: the model reads why", bool(answers) and "bogus" in answers[0] and "blank" in answers[0], (answers or [""])[0][:160])
    mock.script([call("consult", prompt='@@script %s @@' % json.dumps({"answer": "x", "result": {"is_error": True, "api_error_status": 429}})), {"text": "ok"}])
    code, events, bodies, took = ask(scratch, mock, None, CONSULT, inner=played)
    answers = tool_results(bodies[-1])
    table.add("agent fails: the model reads why", bool(answers) and "agent_rate_limited" in answers[0], (answers or [""])[0][:160])

    # A long answer is not put into a file.
    mock.script([call("consult", prompt='@@script %s @@' % json.dumps({"answer": "w " * 40_000})), {"text": "ok"}])
    code, events, bodies, took = ask(scratch, mock, None, CONSULT, inner=dict(played, PHONE_OPUS_RESPONSE_CHARS="150000"))
    answers = tool_results(bodies[-1])
    table.add("80 KB answer stays in the conversation", bool(answers) and answers[0].count("w ") >= 40_000, "%d characters" % len((answers or [""])[0]))

    # Claude Code asks Claude Code: the inner one gets its own key and script.
    inner = {"PHONE_OPUS_CLAUDE_BIN": claude(), "PHONE_OPUS_BILLING": "api_key"}
    mock.script([call("consult", prompt=scripted("inner", {"text": "From the inner one."})), {"text": "Outer is done."}])
    code, events, bodies, took = ask(scratch, mock, None, CONSULT, inner=inner)
    result = next((e for e in events if e.get("type") == "result"), {})
    answers = tool_results(bodies[-1])
    table.add("Claude Code asks Claude Code", code == 0 and result.get("result") == "Outer is done." and bool(answers)
              and "From the inner one." in answers[0], "%.1f s, %d model requests" % (took, len(bodies)))
    left("nested")

    # The client is killed while it waits.
    mock.script([call("consult", prompt='@@script {"steps":["hang"]} @@'), {"text": "ok"}])
    for signal in ("SIGINT", "SIGTERM", "SIGKILL"):
        killed(scratch, mock, table, played, signal)


def killed(scratch, mock, table, inner, how):
    import signal
    servers = {"mcpServers": {"phone-opus": {"command": phone_opus(), "args": ["mcp", "serve"], "env": inner, "alwaysLoad": True}}}
    mock.script([call("consult", prompt='@@script {"steps":["hang"]} @@'), {"text": "ok"}])
    client = subprocess.Popen(
        [claude(), "-p", "--strict-mcp-config", "--mcp-config", json.dumps(servers), "--setting-sources", "",
         "--permission-mode", "dontAsk", "--allowedTools", ",".join(CONSULT)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=scratch.work,
        env=scratch.environment(ANTHROPIC_BASE_URL=mock.url, ANTHROPIC_API_KEY=KEY, DISABLE_AUTOUPDATER="1",
                                CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1"))
    client.stdin.write(b"please")
    client.stdin.close()
    end = time.monotonic() + 20
    while time.monotonic() < end and not any("stream-json" in line for line in scratch.processes().values()):
        time.sleep(0.02)
    reached = time.monotonic() < end
    began = time.monotonic()
    client.send_signal(getattr(signal, how))
    code = client.wait(20)
    alive = scratch.left(within=6)
    table.add("client gets %s in a consult: nothing left" % how, reached and not alive,
              "exit %s, all gone after %.1f s%s" % (code, time.monotonic() - began, "; left: %s" % alive if alive else ""))


def main():
    if not os.path.isdir("/proc/self"):
        skip("no /proc here, so what is left of a run cannot be seen")
    mock_model(), claude(), phone_opus()
    table = Table("The real Claude Code as a client of phone-opus")
    with Scratch() as scratch:
        mock = Mock(scratch)
        try:
            checks(scratch, mock, table)
        except (subprocess.TimeoutExpired, OSError, KeyError, IndexError, ValueError, StopIteration) as error:
            table.add("went through", False, repr(error))
        finally:
            mock.stop()
            scratch.end_all()
    return table.end()


if __name__ == "__main__":
    sys.exit(main())
