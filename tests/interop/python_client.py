"""The Python `mcp` package as a client of phone-opus; run by run_all.py with a Python that has the package.

argv: era, server program, environment as JSON, working directory. Prints one JSON line per check:
[cell, name, true | false | null, detail]; null means that the client cannot do it, the detail says why.
"""
import json
import os
import sys
import time
from typing import Any, Literal

import anyio
import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.extension import ClientExtension, ResultClaim

ERA, PROGRAM, ENV, WORK = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4]
VERSION = "2025-11-25" if ERA == "legacy" else "2026-07-28"
MODE = VERSION if ERA == "modern" else ERA


def say(cell, name, good, detail=""):
    print(json.dumps([cell, name, None if good is None else bool(good), str(detail)]), flush=True)


def script(**script):
    return "@@script %s @@" % json.dumps(script)


def response(result):
    return (result.structured_content or {}).get("response")


async def until(what, look, within=20):
    """Waits until `look` finds something."""
    end = time.monotonic() + within
    while True:
        found = await look()
        if found:
            return found
        if time.monotonic() > end:
            raise TimeoutError("waited in vain until " + what)
        await anyio.sleep(0.02)


def bridged():
    return os.environ.get("INTEROP_DOOR") == "bridge"


def server(**more):
    return StdioServerParameters(command=PROGRAM, args=["mcp", "connect" if bridged() else "serve"], env={**ENV, **more}, cwd=WORK)


# -- tasks: the package has types for those of 2025-11-25, and an interface for extensions ---------------------------


class Ask(types.Request[dict[str, Any], str]):
    """Any request the package has no verb for."""

    method: str
    params: dict[str, Any]


class Task(types.Result):
    """A task of the extension, as it is created and as it is looked at."""

    result_type: Literal["task"]
    task_id: str
    status: str


class Tasks(ClientExtension):
    identifier = "io.modelcontextprotocol/tasks"

    def __init__(self):
        self.heard = []

    def claims(self):
        return [ResultClaim(result_type="task", model=Task, resolve=self.finish)]

    async def finish(self, task, context):
        """Looks at a task until it is over, as the server asks it to."""
        self.heard.append(task.status)
        while True:
            seen = (await look(context.session, "tasks/get", taskId=task.task_id)).model_extra
            self.heard.append(seen["status"])
            if seen["status"] != "working":
                return types.CallToolResult.model_validate(seen["result"])
            await anyio.sleep(seen["pollIntervalMs"] / 1000)


class Anything(types.Result):
    model_config = {**types.Result.model_config, "extra": "allow"}


async def look(session, method, **params):
    return await session.send_request(Ask(method=method, params=params), Anything)


async def tasks_of_the_core(client):
    """The package's tables left tasks/* out, and take an answer to tools/call for a tool's result whatever was asked; so a
    task is created below them. Its types of a task are there, and are what the answers are read with."""

    async def create(call):
        raw = await client.session._dispatcher.send_raw_request("tools/call", call, {})
        return types.CreateTaskResult.model_validate(raw, by_name=False)

    call = {"name": "consult", "arguments": {"prompt": script(answer="by and by", steps=[{"delay_ms": 300}])}, "task": {"ttl": 60000}}
    created = await create(call)
    task = created.task.task_id
    result = await client.session.send_request(Ask(method="tasks/result", params={"taskId": task}), types.CallToolResult)
    state = await client.session.send_request(Ask(method="tasks/get", params={"taskId": task}), types.GetTaskResult)
    say("tasks", "created, fetched, looked at", created.task.status == "working" and response(result) == "by and by"
        and state.status == "completed", state.status)
    call["arguments"] = {"prompt": script(steps=["hang"])}
    created = await create(call)
    ended = await client.session.send_request(Ask(method="tasks/cancel", params={"taskId": created.task.task_id}), types.CancelTaskResult)
    say("tasks", "cancelled", ended.status == "cancelled", ended.status)
    say("tasks", "by its own verbs", None, "its tables leave tasks/* of 2025-11-25 out; its types and raw requests drive them")


async def tasks_of_the_extension(connect):
    extension = Tasks()
    async with connect(extensions=[extension]) as client:
        seen = await client.call_tool("consult", {"prompt": script(answer="by and by", steps=[{"delay_ms": 300}])})
        say("tasks", "created, looked at until it is over", response(seen) == "by and by" and len(extension.heard) >= 2
            and extension.heard[-1] == "completed", ", ".join(extension.heard))
        call = client.session.call_tool("consult", {"prompt": script(steps=["hang"])}, allow_claimed=True)
        task = (await call).task_id
        await look(client.session, "tasks/cancel", taskId=task)

        async def over():
            status = (await look(client.session, "tasks/get", taskId=task)).model_extra["status"]
            return status if status != "working" else None

        ended = await until("the task is over", over)
        say("tasks", "cancelled", ended == "cancelled", ended)


# -- everything else ------------------------------------------------------------------------------------------------


async def parallel(client):
    """Several at once on one connection; a quick call does not wait for the slow ones."""
    answers, order = {}, []

    async def ask(n, tool, arguments):
        answers[n] = await client.call_tool(tool, arguments)
        order.append(n)

    go = os.path.join(WORK, "go-" + ERA)
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
    good = all(response(answers[n]) == "answer %d" % n for n in range(3)) and min(order[:17]) >= 3
    say("parallel", "3 consults and 17 quick calls", good, "quick ones within %.0f ms" % (quick * 1000))


async def cancel(client):
    """The client's own cancel: of the call it is waiting in, and of a job."""
    here = os.path.join(WORK, "here-" + ERA)

    async def touched():
        return os.path.exists(here)

    async def cancelled():
        jobs = (await client.call_tool("consult_jobs", {})).structured_content["jobs"]
        return next((job for job in jobs if job["status"] == "cancelled"), None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.call_tool, "consult", {"prompt": script(steps=[{"touch": here}, "hang"])})
        await until("the agent runs", touched)
        began = time.monotonic()
        tasks.cancel_scope.cancel()
    ended = await until("the job is cancelled", cancelled)
    say("cancel", "the call and its job end", ended, "%.0f ms" % ((time.monotonic() - began) * 1000))
    handle = await client.call_tool("consult", {"prompt": script(steps=["hang"]), "background": True})
    ended = await client.call_tool("consult_cancel", {"job_id": handle.structured_content["job_id"]})
    say("cancel", "a job by its id", ended.structured_content["status"] == "cancelled", ended.structured_content["status"])


async def ordinary(client):
    say("connect", "version", client.protocol_version == VERSION, client.protocol_version)
    # Whoever adopts a version without asking is told no instructions.
    told = client.instructions or ""
    say("connect", "instructions", len(told) < 600 and ("consult_job" in told or ERA == "modern"), "%d characters" % len(told))
    names = [tool.name for tool in (await client.list_tools()).tools]
    say("list", "tools", len(names) == 6 and names[0] == "consult", ", ".join(names))

    seen = await client.call_tool("consult", {"prompt": script(answer="forty-two", steps=[{"tool_use": "Grep"}])})
    say("call", "consult", not seen.is_error and response(seen) == "forty-two" and "forty-two" in seen.content[0].text,
        seen.structured_content["status"])
    seen = await client.call_tool("consult", {"prompt": " ", "bogus": 1})
    say("call", "bad arguments: a result the model can read", seen.is_error and "bogus" in seen.content[0].text, seen.content[0].text)
    seen = await client.call_tool("consult", {"prompt": script(answer="in the end", steps=[{"delay_ms": 2500}]), "wait_s": 1})
    status, job = (seen.structured_content[name] for name in ("status", "job_id"))
    seen = await client.call_tool("consult_job", {"job_id": job, "wait_s": 20})
    say("call", "one that outlasts its wait is read on", status == "running" and response(seen) == "in the end", status)
    seen = await client.call_tool("consult", {"prompt": script(answer="x", result={"is_error": True, "api_error_status": 529})})
    code = seen.structured_content["fault"]["code"]
    say("call", "agent fails: a result with its fault", seen.is_error and code == "agent_overloaded", code)
    try:
        await client.call_tool("no_such_tool", {})
        say("call", "unknown tool: an error", False)
    except MCPError as error:
        say("call", "unknown tool: an error", error.error.code == -32602, error.error.message)

    await parallel(client)
    await cancel(client)

    progress = []

    async def on_progress(value, total, message):
        progress.append((value, message))

    seen = await client.call_tool("consult", {"prompt": script(answer="slow", steps=[{"delay_ms": 3500}])}, progress_callback=on_progress)
    values = [value for value, _ in progress]
    say("progress", "rises while the call runs", len(values) >= 2 and values == sorted(set(values)) and response(seen) == "slow",
        progress[-1:] and progress[-1][1])


async def upgrade(client, script_of_it, notes):
    """The server is replaced by another build while the consult runs; whoever started us does that, once we noted some progress."""
    told = []

    async def on_progress(value, total, message):
        told.append(value)
        with open(notes, "a") as file:
            file.write(".")

    seen = await client.call_tool("consult", {"prompt": script(**script_of_it)}, progress_callback=on_progress)
    say("upgrade", "the answer arrives", response(seen) == script_of_it["answer"], response(seen))
    say("upgrade", "progress goes on rising", len(told) >= 2 and told == sorted(set(told)), told)
    rollout = (await client.call_tool("health_snapshot", {})).structured_content["rollout"]
    say("upgrade", "health tells of it", rollout["adopted"] == 1, rollout)
    tools = (await client.list_tools()).tools
    seen = await client.call_tool("consult", {"prompt": script(answer="after it")})
    say("upgrade", "further calls", len(tools) == 6 and response(seen) == "after it", response(seen))


async def main():
    wrong = []

    async def listen_for_faults(message):
        if isinstance(message, Exception):
            wrong.append(repr(message))

    def connect(extensions=None, **more):
        return Client(server(**more), mode=MODE, extensions=extensions, message_handler=listen_for_faults)

    if "INTEROP_HANG" in os.environ:
        # To be killed in the middle of a consult.
        async with connect() as client:
            await client.call_tool("consult", {"prompt": script(steps=[{"touch": os.environ["INTEROP_HANG"]}, "hang"])})

    if "INTEROP_UPGRADE" in os.environ:
        given = json.loads(os.environ["INTEROP_UPGRADE"])
        async with connect() as client:
            await upgrade(client, given["script"], given["notes"])
        return say("upgrade", "the client has no complaint", not wrong, "; ".join(wrong))

    async with connect() as client:
        await ordinary(client)
        if ERA == "legacy":
            await tasks_of_the_core(client)
            say("subscribe", "listen", None, "of 2026-07-28 only")
        else:
            async with client.listen(tools_list_changed=True) as subscription:
                say("subscribe", "acknowledged", subscription.honored.tools_list_changed, subscription.honored)
        say("cancel", "the client has no complaint", not wrong, "; ".join(wrong))
        began = time.monotonic()
    # It sends a signal after two seconds.
    took = time.monotonic() - began
    say("shutdown", "the end of input is enough", took < 1.9, "%.0f ms" % (took * 1000))
    if ERA != "legacy":
        await tasks_of_the_extension(connect)

    if bridged():
        say("worker crash", "by a plan", None, "the plan of faults is the daemon's and no client's")
    for name, more in () if bridged() else (
        ("panic", {"PHONE_OPUS_MCP_TEST_WORKER_CRASH_ONCE_KEY": "tools/call:consult"}),
        ("SIGKILL of its process", {"PHONE_OPUS_ISOLATION": "process", "PHONE_OPUS_FAULTS": "worker.before_reply@tools/call:consult=kill"}),
    ):
        async with connect(**more) as client:
            log = os.path.join(WORK, "%s-%s" % (name[:5], ERA))
            seen = await client.call_tool("consult", {"prompt": script(answer="all the same", log=log)})
            with open(log) as file:
                runs = file.read().count('"event":"start"')
            generation = (await client.call_tool("health_snapshot", {})).structured_content["worker_generation"]
            say("worker crash", name, response(seen) == "all the same" and generation == 2 and runs == 1,
                "worker generation %s, %d run" % (generation, runs))

    async with connect(PHONE_OPUS_RESPONSE_CHARS="400000") as client:
        long = "long " * 75_000
        seen = await client.call_tool("consult", {"prompt": script(answer=long)})
        say("call", "an answer of 375 KB, in a line twice as long", (response(seen) or "").strip() == long.strip()
            and long.strip() in seen.content[0].text, "%d characters" % len(seen.content[0].text))


anyio.run(main)
