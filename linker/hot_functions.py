#!/usr/bin/env python3
"""Writes `hot.ld`: the functions a server uses from its start to its first answers, for the linker to put side by side.

    cargo build --release --features bench-server
    python3 linker/hot_functions.py target/release/bench_phone_opus target/release/phone-opus > hot.ld.new
    mv hot.ld.new linker/hot.ld

Needs valgrind. Functions of the first program come first, then what the next one uses beside them. What it runs is asked
for a handshake, the list of tools and two hundred calls. Names are made patterns without what differs from compiler to
compiler, so the list need not be made anew for each; what it names and is not there costs nothing. It needs the names that
`.cargo/config.toml` asks for: the older ones are the same for all that a generic function was made into.
"""
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

# Calls one after another.
CALLS = 200

# How often a worker process is lost, and with how many calls.
LOSSES = 3
WINDOW = 64

HEAD = """/* The functions a server uses from its start to its first answers, put side by side: the kernel maps code 64 KiB at a
   time, and what is used only once in a while would be mapped along with what lies beside it. Made by hot_functions.py. */
SECTIONS {
  .text.hot_at_start : {
    *crt1.o(.text) *crtbegin*.o(.text)
"""
TAIL = """  }
} INSERT BEFORE .text;
"""


def lose_workers(pid):
    with open("/proc/%d/task/%d/children" % (pid, pid)) as children:
        for child in children.read().split():
            os.kill(int(child), signal.SIGKILL)


def drive(command, output, **more):
    with tempfile.TemporaryDirectory() as home:
        environment = {"HOME": home, "PATH": os.environ["PATH"], "PHONE_OPUS_STATE_DIR": os.path.join(home, "state"), **more}
        server = subprocess.Popen(
            ["valgrind", "--tool=callgrind", "--demangle=no", "--callgrind-out-file=" + output] + command,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, cwd=home)
        numbers = itertools.count()

        def send(*requests):
            lines = [{"jsonrpc": "2.0", "id": next(numbers), "method": method, "params": params} for method, params in requests]
            server.stdin.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            server.stdin.flush()

        def answer():
            return json.loads(server.stdout.readline())

        send(("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "measure", "version": "1"}}))
        answer()
        server.stdin.write(b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n')
        send(("tools/list", {}))
        names = [tool["name"] for tool in answer()["result"]["tools"]]
        # Of the tools of the first program, one may be asked again when its worker was lost and one may not.
        asked = [("echo", {"text": "hello"}), ("sink", {"text": "hello"})] if "echo" in names else [("consult_jobs", {})]
        calls = [("tools/call", {"name": name, "arguments": arguments}) for name, arguments in asked]
        for _ in range(CALLS):
            send(calls[0])
            answer()
        # Where tools have a process of their own, it is lost while it has calls.
        for _ in range(LOSSES if more else 0):
            send(*(calls * (WINDOW // len(calls))))
            lose_workers(server.pid)
            for _ in range(WINDOW):
                answer()
        # Long enough for the last batch of telemetry.
        time.sleep(2)
        # What a stop uses is not wanted: it is used once, when memory no longer matters.
        subprocess.run(["callgrind_control", "--dump", str(server.pid)], stdout=subprocess.DEVNULL, check=True)
        server.stdin.close()
        server.wait()


def pattern(name):
    """The name without the hashes of one compiler."""
    if name.startswith("_R"):
        return re.sub(r"Cs[0-9A-Za-z]+_", "Cs*_", re.sub(r"\.[0-9.a-z]+$", "", name)) + "*"
    return name


def executed(path):
    """The functions of a profile, and how often each was called."""
    names, times, called = {}, {}, None
    with open(path + ".1") as profile:
        for line in profile:
            found = re.match(r"(c?)fn=\((\d+)\)(?: (\S+))?", line)
            if found:
                names.setdefault(found.group(2), (found.group(3) or "").split("'")[0])
                times.setdefault(names[found.group(2)], 0)
                called = names[found.group(2)] if found.group(1) else None
            elif line.startswith("calls=") and called:
                times[called] += int(line.split()[0][len("calls="):])
    return times


def defined(program):
    """The functions of a program itself, without those of the libraries it loads."""
    listed = subprocess.run(["nm", "--defined-only", program], capture_output=True, text=True, check=True)
    return set(re.findall(r"^[0-9a-f]+ [tTwW] (\S+)$", listed.stdout, re.MULTILINE))


def main():
    groups, known = [], set()
    runs = [(program, {}) for program in sys.argv[1:]]
    # Last what takes up the work of a worker process that was lost.
    apart = {"BENCH_ISOLATION": "process", "BENCH_RESTARTS": "any", "PHONE_OPUS_ISOLATION": "process"}
    runs += [(program, apart) for program in sys.argv[1:]]
    for program, more in runs:
        command = [os.path.abspath(program)] + (["mcp", "serve"] if os.path.basename(program) == "phone-opus" else [])
        with tempfile.TemporaryDirectory() as directory:
            output = os.path.join(directory, "profile")
            drive(command, output, **more)
            times = executed(output)
        # What each call uses comes before what a start uses once: the less it is strewn about, the more of it is at hand.
        often = {pattern(name): times[name] < CALLS for name in times.keys() & defined(program)}
        group = often.keys() - known
        groups.append(sorted(group, key=lambda name: (often[name], name)))
        known |= group
    sys.stdout.write(HEAD)
    for group in groups:
        for name in group:
            # What is marked as cold is used at a start all the same.
            sys.stdout.write("    *(.text.%s .text.unlikely.%s)\n" % (name, name))
    sys.stdout.write(TAIL)


if __name__ == "__main__":
    main()
