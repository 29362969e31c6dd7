#!/usr/bin/env python3
"""phone-opus as the server of MCP clients it did not bring along: the Inspector, the Python `mcp` package. See README.md."""
import json
import os
import subprocess
import sys

from harness import Scratch, Table, phone_opus, program, skip

HERE = os.path.dirname(os.path.abspath(__file__))
ERAS = {"legacy": "2025-11-25", "auto": "2026-07-28", "modern": "2026-07-28"}


def scripted_agent(scratch):
    """The agent of these checks: phone-opus under the name that makes it play Claude Code."""
    path = scratch.path("phone-opus-scripted-agent")
    os.symlink(os.path.realpath(phone_opus()), path)
    return path


def server_environment(scratch):
    return scratch.environment(PHONE_OPUS_CLAUDE_BIN=scripted_agent(scratch), PHONE_OPUS_PROGRESS_S="1")


def inspector(scratch, table):
    command = program("INTEROP_INSPECTOR", "mcp-inspector")
    if not command:
        return table.skipped("Inspector", "install it or set INTEROP_INSPECTOR")
    with open(os.path.join(scratch.work, "notes.txt"), "w") as file:
        file.write("The heron stands in the reeds.\n")
    env = server_environment(scratch)
    given = [word for name, value in env.items() if name.startswith("PHONE_OPUS") for word in ("-e", name + "=" + value)]

    def run(era, method, *more):
        done = subprocess.run(
            [command, "--cli", *given, phone_opus(), "mcp", "serve", "--protocol-era", era, "--method", method, *more,
             "--format", "json", "-q"],
            env=scratch.environment(), cwd=scratch.work, capture_output=True, text=True, timeout=120)
        try:
            result = json.loads(done.stdout)["result"]
        except (ValueError, KeyError):
            result = {}
        return done.returncode, result, done.stderr.strip()

    def call(era, arguments):
        return run(era, "tools/call", "--tool-name", "consult", "--tool-args-json", json.dumps(arguments))

    for era, version in ERAS.items():
        name = "Inspector, %s: " % era
        code, result, stderr = run(era, "initialize")
        table.add(name + "version", code == 0 and result.get("protocolVersion") == version, result.get("protocolVersion") or stderr)
        code, result, stderr = run(era, "tools/list", "--strict")
        table.add(name + "tools/list --strict", code == 0 and len(result.get("tools", [])) >= 5,
                  "%d tools, %d bytes%s" % (len(result.get("tools", [])), len(json.dumps(result, separators=(",", ":"))),
                                            "; " + stderr if stderr else ""))
        code, result, stderr = call(era, {"prompt": '@@script {"answer":"from the script"} @@'})
        table.add(name + "consult", code == 0 and result["structuredContent"]["response"] == "from the script", stderr or "exit 0")
        code, result, stderr = call(era, {"agent": "offline", "prompt": "Where does the heron stand?"})
        table.add(name + "consult offline", code == 0 and "notes.txt" in result["content"][0]["text"], stderr or "exit 0")
        code, result, stderr = call(era, {"prompt": " ", "cwd": "relative"})
        table.add(name + "bad arguments", code == 5 and result.get("isError") is True, "exit %d" % code)
    code, result, _ = run("modern", "tools/call", "--tool-name", "health_snapshot", "--tool-args-json", "{}", "--load",
                          "--load-requests", "1000", "--load-concurrency", "16")
    table.add("Inspector: 1000 calls, 16 at once", code == 0 and result.get("errorRate") == 0 and result.get("ok") == 1000,
              "%.0f a second, %s" % (result.get("throughput", 0), result.get("latencyMs")))
    left = scratch.left(within=3)
    table.add("Inspector: nothing left", not left, left)


def python(scratch, table):
    command = program("INTEROP_PYTHON", "python3")
    if not command or subprocess.run([command, "-c", "import mcp"], capture_output=True).returncode:
        return table.skipped("Python mcp package", "install it for the Python that INTEROP_PYTHON names")
    env = server_environment(scratch)
    for mode in ("legacy", "auto"):
        done = subprocess.run(
            [command, os.path.join(HERE, "python_client.py"), mode, phone_opus(), json.dumps(env), scratch.work],
            env=scratch.environment(), cwd=scratch.work, capture_output=True, text=True, timeout=300)
        for line in done.stdout.splitlines():
            name, good, detail = json.loads(line)
            table.add("Python, %s: %s" % (mode, name), good, detail)
        table.add("Python, %s: exit" % mode, done.returncode == 0, done.stderr.strip()[-4000:] if done.returncode else "0")
        left = scratch.left(within=3)
        table.add("Python, %s: nothing left" % mode, not left, left)


def main():
    if not os.path.isdir("/proc/self"):
        skip("no /proc here, so what is left of a run cannot be seen")
    phone_opus()
    table = Table("MCP clients of phone-opus")
    only = sys.argv[1:]
    for part in (inspector, python):
        if only and part.__name__ not in only:
            continue
        with Scratch() as scratch:
            try:
                part(scratch, table)
            except (subprocess.TimeoutExpired, OSError, KeyError, IndexError, ValueError) as error:
                table.add(part.__name__ + " went through", False, repr(error))
            finally:
                scratch.end_all()
    return table.end()


if __name__ == "__main__":
    sys.exit(main())
