#!/usr/bin/env python3
"""phone-opus with the real Claude Code as its agent, against a stand-in model on loopback. See README.md."""
import json
import os
import signal
import statistics
import subprocess
import sys
import time

from harness import ArgvWatch, Mock, Scratch, Server, Table, claude, mock_model, phone_opus, scripted, skip

CANARY = "canary-6b1f7d"
KEY = "sk-dummy-key-0451"
LOGIN = {"claudeAiOauth": {
    "accessToken": "sk-ant-oat01-dummy", "refreshToken": "sk-ant-ort01-dummy",
    "expiresAt": int(time.time() * 1000) + 86_400_000, "scopes": ["user:inference", "user:profile"],
    "subscriptionType": "max"}}
TERMINAL = ("succeeded", "failed", "cancelled", "interrupted")


def server(scratch, **more):
    return Server([phone_opus(), "mcp", "serve"], scratch.environment(**more), scratch.work)


def paying(scratch, mock, **more):
    """A server that may use the dummy key."""
    return server(scratch, PHONE_OPUS_CLAUDE_BIN=claude(), PHONE_OPUS_BILLING="api_key", ANTHROPIC_API_KEY=KEY,
                  ANTHROPIC_BASE_URL=mock.url, **more)


def agent_behind(scratch, mock):
    """Claude Code behind a script that notes the environment it is given and keeps it on loopback: under `subscription`
    the server hands on no address."""
    path, noted = scratch.path("claude-on-loopback"), scratch.path("environment")
    with open(path, "w") as file:
        file.write("#!/bin/sh\ncase \"$1\" in -p) env > '%s' ;; esac\nexport ANTHROPIC_BASE_URL='%s'\nexec '%s' \"$@\"\n"
                   % (noted, mock.url, claude()))
    os.chmod(path, 0o700)
    return path, noted


def gone(scratch, srv, table, name):
    """Nothing but the server is left of a run."""
    left = scratch.left(allowed={srv.process.pid})
    if left:
        table.add(name + ": nothing left", False, left)
    return not left


def first_byte(srv, job):
    """Milliseconds from the job's acceptance to its agent's process, first event, first text; and the whole job's."""
    seen = srv.call("consult_job", job_id=job, after_seq=0, detail="full")
    accepted = seen["timings"]["accepted_at"]
    at = {}
    for entry in seen.get("events", []):
        event = entry["event"]
        word = json.dumps(event)
        for name, mark in (("process", '"process_started"'), ("first", '"agent"'), ("text", '"text"')):
            if mark in word:
                at.setdefault(name, entry["at"] - accepted)
    at["whole"] = seen["timings"]["finished_at"] - accepted
    return at


def wait_for_request(mock, since, within=10.0):
    end = time.monotonic() + within
    while time.monotonic() < end:
        if mock.requests(since):
            return True
        time.sleep(0.02)
    return False


def answers(scratch, mock, table):
    srv = paying(scratch, mock)
    watch = ArgvWatch(scratch, [CANARY, KEY])
    watch.start()
    table.note("initialize", "%.0f ms" % srv.ready_ms)

    # (a) sync
    mark = mock.mark()
    seen = srv.call("consult", prompt=scripted(CANARY + " what is it?", {"text": "It is the mock."}))
    table.add("sync: the model's text is the answer", seen.get("response") == "It is the mock." and not seen["is_error"],
              "%s, %s, source %s, $%s" % (seen.get("status"), seen.get("model"), seen.get("billing"), seen.get("cost_usd")))
    table.add("sync: one model request", len(mock.requests(mark)) == 1)
    gone(scratch, srv, table, "sync")
    session = seen["session_id"]

    # (b) background
    handle = srv.call("consult", prompt=scripted("in the back", {"text": "From the back.", "delay": 0.5}), background=True)
    done = srv.call("consult_job", job_id=handle["job_id"], wait_s=30)
    table.add("background: handle, then one waiting read",
              handle.get("status") in ("queued", "running") and done.get("response") == "From the back.", done.get("status"))

    # (c) resume
    mark = mock.mark()
    again = srv.call("consult", prompt=scripted("and then?", {"text": "Then this."}), session_id=session)
    history = json.dumps(mock.requests(mark)[-1]["body"]["messages"])
    table.add("resume: same session, history sent",
              again.get("session_id") == session and again.get("session_mode") == "resumed"
              and again.get("response") == "Then this." and "It is the mock." in history, again.get("session_mode"))

    # (d) what it may not do
    steps = [{"tool_use": {"name": "Write", "input": {"file_path": os.path.join(scratch.work, "evil.txt"), "content": "x"}}},
             {"tool_use": {"name": "Bash", "input": {"command": "touch %s/evil.txt" % scratch.work}}}, {"text": "I tried."}]
    mark = mock.mark()
    seen = srv.call("consult", prompt=scripted("write", steps))
    refused = json.dumps(mock.requests(mark)[-1]["body"]["messages"]).count("No such tool available")
    table.add("write, shell: nothing written, run fine",
              seen.get("status") == "succeeded" and seen.get("response") == "I tried."
              and not os.path.exists(os.path.join(scratch.work, "evil.txt")) and refused == 2,
              "denials %s, stop %s, refusals the model saw %d" % (seen.get("permission_denial_count"), seen.get("stop_reason"), refused))
    outside = scratch.path("outside.txt")
    with open(outside, "w") as file:
        file.write("secret-of-outside")
    with open(os.path.join(scratch.work, "inside.txt"), "w") as file:
        file.write("word-of-inside")
    steps = [{"tool_use": {"name": "Read", "input": {"file_path": outside}}},
             {"tool_use": {"name": "Grep", "input": {"pattern": "secret", "path": scratch.root}}},
             {"tool_use": {"name": "Read", "input": {"file_path": os.path.join(scratch.work, "inside.txt")}}}, {"text": "Read it."}]
    mark = mock.mark()
    seen = srv.call("consult", prompt=scripted("read", steps), detail="full")
    told = json.dumps([r["body"] for r in mock.requests(mark)])
    table.add("read outside: denied and counted; inside: read",
              seen.get("permission_denial_count") == 2 and "secret-of-outside" not in told and "word-of-inside" in told
              and seen.get("status") == "succeeded", seen.get("permission_denials"))

    # (h) a prompt that looks like a command and an attachment
    for text in ("/clear %s and @/etc/passwd please" % CANARY, "@/etc/passwd %s" % CANARY, "/model haiku"):
        mark = mock.mark()
        seen = srv.call("consult", prompt=scripted(text, {"text": "As text."}))
        sent = mock.requests(mark)
        body = json.dumps(sent[0]["body"]) if sent else ""
        table.add("prompt %r is text" % text.split(" ")[0], seen.get("response") == "As text." and len(sent) == 1
                  and json.dumps(text)[1:-1] in body and "root:x:0:0" not in body, seen.get("status"))
    big = scripted("x" * 900_000, {"text": "Big."})
    table.add("prompt of 900 KB", srv.call("consult", prompt=big).get("response") == "Big.")
    odd = srv.call("consult", prompt=scripted("odd", {"text": "half \ud83d a pair"}))
    table.add("half a surrogate pair in the answer", odd.get("status") == "succeeded", repr(odd.get("response")))

    # Times, of ten consults one after the other.
    firsts = []
    for _ in range(10):
        seen = srv.call("consult", prompt=scripted("time", {"text": "t"}))
        firsts.append(first_byte(srv, seen["job_id"]))
    for name, what in (("process", "accepted to agent's process"), ("first", "accepted to agent's first event"),
                       ("text", "accepted to first text"), ("whole", "whole consult")):
        times = [f[name] for f in firsts if name in f]
        if times:
            table.note(what, "median %.0f ms, worst %.0f ms of %d" % (statistics.median(times), max(times), len(times)))

    gone(scratch, srv, table, "answers")
    bad = watch.stop()
    table.add("no prompt and no key in any argv", not bad, "%d command lines seen" % len(watch.seen) if not bad else bad[:2])
    code, took = srv.close()
    table.add("end of input: exit 0, nothing left", code == 0 and not scratch.left(), "%.0f ms" % (took * 1000))
    table.add("no file wider than its owner", not scratch.wide_files(), scratch.wide_files())
    for name in os.listdir(scratch.state):
        path = os.path.join(scratch.state, name)
        if name.endswith((".jsonl", ".log")) or os.path.isdir(path) and "telemetry" in name:
            files = [path] if os.path.isfile(path) else [os.path.join(path, f) for f in os.listdir(path)]
            text = "".join(open(f, errors="replace").read() for f in files)
            table.add("no prompt in %s" % name, CANARY not in text, "%d bytes" % len(text))
    table.add("no line on stdout that is not JSON", not srv.bad_lines, srv.bad_lines[:2])


def cancels(scratch, mock, table):
    srv = paying(scratch, mock)
    # The probe's answer is cached from here on, so that the moments below mean the run itself.
    srv.call("consult", prompt=scripted("warm", {"text": "w"}))
    took_all = []
    for delay in (0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0):
        job = srv.call("consult", prompt=scripted("stall", {"stall": "start"}), background=True)["job_id"]
        time.sleep(delay)
        waiting = srv.start("consult_job", job_id=job, wait_s=20)
        began = time.time()
        ended = srv.call("consult_cancel", job_id=job)
        seen = srv.result(waiting)
        took = seen["at"] - began
        took_all.append(took)
        left = scratch.left(allowed={srv.process.pid}, within=0.5)
        good = seen.get("status") == "cancelled" and took < 1.0 and not left
        note = "%.0f ms, %s" % (took * 1000, ended["text"].split(";")[-1].strip())
        if ended.get("resumable"):
            again = srv.call("consult", prompt=scripted("go on", {"text": "resumed"}), session_id=ended["session_id"])
            good &= again.get("response") == "resumed" and again.get("session_mode") == "resumed"
            note += "; said resumable: %s" % (again.get("response") if not again["is_error"] else again.get("fault"))
        else:
            note += "; resumable %s, session %s" % (ended.get("resumable"), "known" if ended.get("session_id") else "unknown")
        table.add("cancelled after %.2f s" % delay, good, note if not left else "%s; left: %s" % (note, left))
    table.note("cancel to terminal", "median %.0f ms, worst %.0f ms" % (statistics.median(took_all) * 1000, max(took_all) * 1000))

    # The call itself is cancelled, in the middle of an answer.
    mark = mock.mark()
    number = srv.start("consult", prompt=scripted("stall", {"text": "abc " * 200, "stall": "mid"}))
    wait_for_request(mock, mark)
    srv.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": number}})
    left = scratch.left(allowed={srv.process.pid}, within=5)
    table.add("call cancelled by its client: agent ended", not left and number not in srv.answers, left)

    srv.close()


def stops(scratch, mock, table):
    """Every way a client ends its server, idle and in the middle of a consult. Claude Code itself gives SIGINT, 100 ms
    later SIGTERM, 400 ms later SIGKILL."""
    for busy in ("idle", "busy"):
        for how in ("end of input", signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
            srv = paying(scratch, mock)
            if busy == "busy":
                mark = mock.mark()
                srv.start("consult", prompt=scripted("stall", {"stall": "headers"}))
                wait_for_request(mock, mark)
            began = time.monotonic()
            if how == "end of input":
                srv.process.stdin.close()
            else:
                srv.process.send_signal(how)
            code = srv.process.wait(10)
            server_ms = (time.monotonic() - began) * 1000
            left = scratch.left(within=6)
            name = how if isinstance(how, str) else how.name
            good = not left and code == (-9 if how == signal.SIGKILL else 0)
            table.add("%s, %s" % (name, busy), good, "server %.0f ms, all of it %.0f ms%s" % (
                server_ms, (time.monotonic() - began) * 1000, "; left: %s" % left if left else ""))


def failures(scratch, mock, table):
    srv = paying(scratch, mock)

    def fails(name, code, step, hint=None, **arguments):
        began = time.monotonic()
        mark = mock.mark()
        seen = srv.call("consult", prompt=scripted(name, step), **arguments)
        fault = seen.get("fault") or {}
        good = seen["is_error"] and fault.get("code") == code and (hint is None or hint in json.dumps(fault) + seen["text"])
        table.add(name, good, "%s (%s) in %.1f s, %d tries, session %s, resumable %s: %s" % (
            fault.get("code"), seen.get("status"), time.monotonic() - began, len(mock.requests(mark)),
            "known" if seen.get("session_id") else "none", seen.get("resumable"), seen["text"].split("\n")[0][:120]))
        gone(scratch, srv, table, name)
        return seen

    fails("401", "agent_not_logged_in", {"status": 401})
    fails("403", "agent_not_logged_in", {"status": 403})
    fails("404 model", "agent_model", {"status": 404})
    fails("429 with retry-after 1", "agent_rate_limited", {"status": 429, "headers": {"retry-after": "1"}})
    fails("500", "agent_upstream", {"status": 500})
    fails("529", "agent_overloaded", {"status": 529})
    fails("connection reset", "agent_upstream", {"drop": "accept"})
    fails("credit used up", "agent_billing", {"status": 400, "message": "Your credit balance is too low to access the Anthropic API."})
    fails("prompt too long for the model", "input_too_large", {"status": 400, "message": "prompt is too long: 1000001 tokens > 1000000 maximum"})
    fails("refusal", "refused", {"text": "no", "stop_reason": "refusal"})
    fails("blank answer", "empty_answer", {"text": "  "})
    fails("unknown session", "unknown_session", {"text": "x"}, session_id="11111111-1111-4111-8111-111111111111")
    turns = fails("turn limit", "turn_limit", [{"tool_use": {"name": "Glob", "input": {"pattern": "*"}}}, {"text": "x"}], max_turns=1)
    again = srv.call("consult", prompt=scripted("go on", {"text": "went on"}), session_id=turns.get("session_id"))
    table.add("turn limit: the session goes on", again.get("response") == "went on")
    fails("budget", "budget_exhausted", [{"tool_use": {"name": "Glob", "input": {"pattern": "*"}}, "usage": {"output_tokens": 900000}}, {"text": "x"}],
          max_budget_usd=0.01)
    fails("timeout_s 2", "deadline_exceeded", {"stall": "headers"}, timeout_s=2)
    fails("model name of no model", "agent_model", {"status": 404}, model="no-such-model")
    srv.close()


def bills(scratch, mock, table):
    path, noted = agent_behind(scratch, mock)

    def environment():
        with open(noted) as file:
            return file.read()

    # (g) a key, but the subscription is to pay, and nobody is logged in.
    srv = server(scratch, PHONE_OPUS_CLAUDE_BIN=path, ANTHROPIC_API_KEY=KEY, ANTHROPIC_AUTH_TOKEN=KEY)
    mark = mock.mark()
    seen = srv.call("consult", prompt=scripted("who pays", {"text": "x"}))
    fault = seen.get("fault") or {}
    table.add("subscription, key in the environment, no login",
              fault.get("code") == "agent_not_logged_in" and "api_key" in (fault.get("hint") or ""), fault)
    table.add("  the key was not handed on, no model asked", KEY not in environment() and not mock.requests(mark),
              sorted(line.split("=")[0] for line in environment().splitlines() if line.startswith(("ANTHROPIC", "CLAUDE", "DISABLE"))))
    srv.close()

    # Nobody logged in, no key.
    srv = server(scratch, PHONE_OPUS_CLAUDE_BIN=path)
    fault = srv.call("consult", prompt="who pays").get("fault") or {}
    table.add("subscription, no login, no key", fault.get("code") == "agent_not_logged_in" and "api_key" not in fault.get("hint", ""), fault)
    srv.close()

    # A login pays; the key stays here.
    os.makedirs(os.path.join(scratch.home, ".claude"), exist_ok=True)
    credentials = os.path.join(scratch.home, ".claude", ".credentials.json")
    with open(credentials, "w") as file:
        json.dump(LOGIN, file)
    srv = server(scratch, PHONE_OPUS_CLAUDE_BIN=path, ANTHROPIC_API_KEY=KEY)
    mark = mock.mark()
    seen = srv.call("consult", prompt=scripted("who pays", {"text": "The login."}))
    headers = mock.requests(mark)[-1]["headers"] if mock.requests(mark) else {}
    table.add("subscription, login and key: the login pays", seen.get("response") == "The login."
              and "authorization" in headers and "x-api-key" not in headers, "key source %s" % seen.get("billing"))
    until = int(time.time()) + 3600
    window = {"status": "rejected", "reset": until, "representative-claim": "five_hour", "5h-status": "rejected",
              "5h-reset": until, "5h-utilization": "1.0", "overage-status": "rejected"}
    step = {"status": 429, "message": "This request would exceed your account's rate limit.",
            "headers": {"anthropic-ratelimit-unified-" + name: str(value) for name, value in window.items()}}
    fault = srv.call("consult", prompt=scripted("limit", step)).get("fault") or {}
    table.add("subscription's limit: says when it is lifted",
              fault.get("code") == "agent_rate_limited" and fault.get("retry_at") == until * 1000, fault)
    # Until then nothing is started, by this server or another one, unless somebody knows better.
    mark = mock.mark()
    fault = srv.call("consult", prompt=scripted("too early", {"text": "x"})).get("fault") or {}
    table.add("  until then no model is asked", fault.get("code") == "agent_rate_limited" and not mock.requests(mark), fault.get("code"))
    cleared = subprocess.run([phone_opus(), "jobs", "limits", "--clear"], env=scratch.environment(), capture_output=True, text=True)
    seen = srv.call("consult", prompt=scripted("who pays", {"text": "Once more."}))
    table.add("  forgotten by `jobs limits --clear`", cleared.returncode == 0 and seen.get("response") == "Once more.", cleared.stdout.strip())
    srv.close()
    os.remove(credentials)

    # The OAuth token of machines without a browser.
    srv = server(scratch, PHONE_OPUS_CLAUDE_BIN=path, CLAUDE_CODE_OAUTH_TOKEN="sk-ant-oat01-dummy")
    seen = srv.call("consult", prompt=scripted("who pays", {"text": "The token."}))
    table.add("subscription by OAuth token", seen.get("response") == "The token.", "key source %s" % seen.get("billing"))
    srv.close()

    # A key that `claude` itself keeps: not the subscription.
    with open(os.path.join(scratch.home, ".claude.json")) as file:
        settings = json.load(file)
    with open(os.path.join(scratch.home, ".claude.json"), "w") as file:
        json.dump(dict(settings, primaryApiKey=KEY), file)
    srv = server(scratch, PHONE_OPUS_CLAUDE_BIN=path)
    mark = mock.mark()
    codes = [(srv.call("consult", prompt=scripted("who pays", {"text": "x"})).get("fault") or {}).get("code") for _ in range(5)]
    # It says who pays 40 ms before it asks its model; the server must have killed it by then.
    table.add("subscription, but a managed key would pay", set(codes) == {"billing_mismatch"} and not mock.requests(mark),
              "%s; model requests: %d of 5" % (codes[0], len(mock.requests(mark))))
    srv.close()
    with open(os.path.join(scratch.home, ".claude.json"), "w") as file:
        json.dump(settings, file)

    # The key is to pay, and there is none.
    srv = server(scratch, PHONE_OPUS_CLAUDE_BIN=path, PHONE_OPUS_BILLING="api_key")
    fault = srv.call("consult", prompt="who pays").get("fault") or {}
    table.add("api_key without a key", fault.get("code") == "billing_mismatch", fault.get("code"))
    srv.close()
    srv = server(scratch, PHONE_OPUS_CLAUDE_BIN=path, PHONE_OPUS_BILLING="api_key", ANTHROPIC_AUTH_TOKEN="dummy")
    seen = srv.call("consult", prompt=scripted("who pays", {"text": "The gateway."}))
    table.add("api_key by a gateway's token", seen.get("response") == "The gateway.", "key source %s" % seen.get("billing"))
    srv.close()
    table.add("bills: nothing left", not scratch.left(), scratch.left(within=0))


def many(scratch, mock, table):
    srv = paying(scratch, mock)
    most, last, numbers = 0, set(), [srv.start("consult", prompt=scripted("n%d" % n, {"text": "answer %d" % n, "delay": 0.3}), wait_s=60) for n in range(20)]
    began = time.monotonic()
    while time.monotonic() - began < 50 and any(n not in srv.answers for n in numbers):
        # Who is seen twice running lived all the time between; a look is not one moment. An agent that is about to start
        # a helper has a child with its own command line.
        agents = {pid for pid, line in scratch.processes().items() if "stream-json" in line}
        agents = {pid for pid in agents if scratch.parent(pid) not in agents}
        most, last = max(most, len(agents & last)), agents
    seen = [srv.result(n) for n in numbers]
    good = [s.get("response") for s in seen] == ["answer %d" % n for n in range(20)]
    table.add("20 at once, 3 may run", good and most <= 3, "at most %d at a time, %.1f s" % (most, time.monotonic() - began))
    gone(scratch, srv, table, "20 at once")
    srv.close()


def main():
    if not os.path.isdir("/proc/self"):
        skip("no /proc here, so what is left of a run cannot be seen")
    mock_model(), claude(), phone_opus()
    table = Table("phone-opus and the real Claude Code")
    only = sys.argv[1:]
    for part in (answers, cancels, stops, failures, bills, many):
        if only and part.__name__ not in only:
            continue
        print("\n-- " + part.__name__, flush=True)
        with Scratch() as scratch:
            mock = Mock(scratch)
            try:
                part(scratch, mock, table)
            except (TimeoutError, RuntimeError, OSError, KeyError, IndexError) as error:
                table.add(part.__name__ + " went through", False, repr(error))
            finally:
                mock.stop()
                scratch.end_all()
    return table.end()


if __name__ == "__main__":
    sys.exit(main())
