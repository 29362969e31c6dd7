"""The Python `mcp` package as a client of phone-opus; run by clients.py with a Python that has the package.

argv: mode ("legacy" or "auto"), server program, environment as JSON, working directory. Prints one JSON line per check.
"""
import json
import os
import sys
import time

import anyio
from mcp import Client, MCPError, StdioServerParameters

MODE, PROGRAM, ENV, WORK = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]


def say(name, good, detail=""):
    print(json.dumps([name, bool(good), str(detail)]), flush=True)


def script(**script):
    return "@@script %s @@" % json.dumps(script)


async def until(path, within=20):
    with anyio.fail_after(within):
        while not os.path.exists(path):
            await anyio.sleep(0.02)


async def main():
    server = StdioServerParameters(command=PROGRAM, args=["mcp", "serve"], env=ENV, cwd=WORK)
    began = time.monotonic()
    async with Client(server, mode=MODE) as client:
        say("connect", client.protocol_version == ("2025-11-25" if MODE == "legacy" else "2026-07-28"),
            "%s in %.0f ms" % (client.protocol_version, (time.monotonic() - began) * 1000))
        tools = (await client.list_tools()).tools
        names = sorted(tool.name for tool in tools)
        say("list", "consult" in names and "consult_job" in names, ", ".join(names))

        seen = await client.call_tool("consult", {"prompt": script(answer="forty-two", steps=[{"tool_use": "Grep"}])})
        say("consult", not seen.is_error and seen.structured_content["response"] == "forty-two"
            and "forty-two" in seen.content[0].text, seen.structured_content["status"])

        # Several at once on one connection; a quick call does not wait for the slow ones.
        answers, order = {}, []

        async def ask(n, tool, arguments):
            answers[n] = await client.call_tool(tool, arguments)
            order.append(n)

        go = os.path.join(WORK, "go-" + MODE)
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            for n in range(3):
                tasks.start_soon(ask, n, "consult", {"prompt": script(answer="answer %d" % n, steps=[{"wait_for_file": go}])})
            for n in range(3, 20):
                tasks.start_soon(ask, n, "consult_jobs", {})
            with anyio.fail_after(20):
                while len(order) < 17:
                    await anyio.sleep(0.01)
            quick = time.monotonic() - began
            open(go, "w").close()
        good = all(answers[n].structured_content["response"] == "answer %d" % n for n in range(3)) and min(order[:17]) >= 3
        say("parallel calls", good, "17 quick ones within %.0f ms beside 3 consults" % (quick * 1000))

        progress = []

        async def on_progress(value, total, message):
            progress.append((value, message))

        seen = await client.call_tool("consult", {"prompt": script(answer="slow", steps=[{"delay_ms": 3500}])},
                                      progress_callback=on_progress)
        values = [value for value, _ in progress]
        say("progress", len(values) >= 2 and values == sorted(set(values)) and not seen.is_error, progress[-1:] and progress[-1][1])

        seen = await client.call_tool("consult", {"prompt": " ", "bogus": 1})
        say("bad arguments: a result the model can read", seen.is_error and "bogus" in seen.content[0].text
            and seen.structured_content["fault"]["code"] == "invalid_input", seen.content[0].text)
        seen = await client.call_tool("consult", {"prompt": script(answer="x", result={"is_error": True, "api_error_status": 529})})
        say("agent fails: a result with its fault", seen.is_error
            and seen.structured_content["fault"]["code"] == "agent_overloaded", seen.structured_content["fault"]["code"])
        try:
            await client.call_tool("no_such_tool", {})
            say("unknown tool: an error", False)
        except MCPError as error:
            say("unknown tool: an error", error.error.code == -32602, error.error.message)

        # The client's own cancel: of the call it is waiting in, and of a job.
        here = os.path.join(WORK, "here-" + MODE)
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "gone", "consult", {"prompt": script(steps=[{"touch": here}, "hang"])})
            await until(here)
            tasks.cancel_scope.cancel()
        with anyio.fail_after(10):
            while True:
                jobs = (await client.call_tool("consult_jobs", {})).structured_content["jobs"]
                if all(job["state"] not in ("running", "queued") for job in jobs):
                    break
                await anyio.sleep(0.05)
        say("call cancelled: its job ends", jobs[0]["state"] == "cancelled" or any(j["state"] == "cancelled" for j in jobs),
            "%.0f ms" % ((time.monotonic() - began) * 1000))
        handle = await client.call_tool("consult", {"prompt": script(steps=["hang"]), "background": True})
        job = handle.structured_content["job_id"]
        began = time.monotonic()
        ended = await client.call_tool("consult_cancel", {"job_id": job})
        say("job cancelled", ended.structured_content["status"] == "cancelled", "%.0f ms" % ((time.monotonic() - began) * 1000))
        seen = await client.call_tool("health_snapshot", {})
        say("health", not seen.is_error, "")
        began = time.monotonic()
    say("end", True, "%.0f ms" % ((time.monotonic() - began) * 1000))


anyio.run(main)
