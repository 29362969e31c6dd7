#!/usr/bin/env python3
"""The real Codex with phone-opus as its exec server, against a stand-in model on loopback. See README.md."""
import json
import os
import socket
import subprocess
import sys
import threading

from codex_as_client import DONE, KEY, outputs, toml
from harness import Mock, Scratch, Table, codex, mock_responses, phone_opus, skip

# Of each of two streams at once.
STREAM = 60_000_000

# How much of it the client says that it saw; its tokens have four bytes.
WHOLE = "Original token count: %d" % ((2 * STREAM + len("\nthe very end\n") + 3) // 4)

# Both at once, from two threads.
FLOOD = ("import os, threading\n"
         "def write(fd, letter):\n"
         "    block = (letter * 99 + chr(10)).encode() * 600\n"
         "    left = %d\n"
         "    while left:\n"
         "        left -= os.write(fd, block[:left])\n"
         "both = [threading.Thread(target=write, args=a) for a in ((1, 'o'), (2, 'e'))]\n"
         "[t.start() for t in both]; [t.join() for t in both]\n"
         "print(chr(10) + 'the very end')\n" % STREAM)


class ExecServer:
    """phone-opus, serving on a loopback port."""

    def __init__(self, scratch, *words):
        self.process = subprocess.Popen(
            [phone_opus(), "exec-server", "--listen", "ws://127.0.0.1:0", *words], stdout=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, env=scratch.environment(), cwd=scratch.work)
        self.url = self.process.stdout.readline().strip()
        self.port = int(self.url.rsplit(":", 1)[1])

    def stop(self):
        self.process.terminate()
        return self.process.wait(20)


class Cutter(threading.Thread):
    """A proxy that passes bytes on, counts them, and cuts its connections when so many have come from the server."""

    def __init__(self, port, cuts=()):
        super().__init__(daemon=True)
        self.target, self.cuts, self.passed, self.connections = port, list(cuts), 0, 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "ws://127.0.0.1:%d" % self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self.target))
            pair = (client, server)
            threading.Thread(target=self.pump, args=(client, server, pair, False), daemon=True).start()
            threading.Thread(target=self.pump, args=(server, client, pair, True), daemon=True).start()

    def pump(self, source, sink, pair, counts):
        try:
            while True:
                data = source.recv(65536)
                if not data:
                    break
                sink.sendall(data)
                if counts:
                    with self.lock:
                        self.passed += len(data)
                        cut = bool(self.cuts) and self.passed >= self.cuts[0]
                        if cut:
                            self.cuts.pop(0)
                    if cut:
                        break
        except OSError:
            pass
        for end in pair:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()


def run(scratch, mock, url, steps):
    """One run of the client: its exit code, what its model saw of its calls, what it said itself."""
    mock.script(steps)
    mark = mock.mark()
    settings = {
        "model": "mock", "model_provider": "mock",
        "model_providers.mock": {"name": "mock", "base_url": mock.url + "/v1", "env_key": "MOCK_KEY", "wire_api": "responses",
                                 "request_max_retries": 0, "stream_max_retries": 0},
    }
    given = [word for name, value in settings.items() for word in ("-c", "%s=%s" % (name, toml(value)))]
    done = subprocess.run(
        [codex(), "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "--disable", "plugins",
         *given, "please"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, cwd=scratch.work,
        env=scratch.environment(MOCK_KEY=KEY, CODEX_HOME=scratch.dir("home/.codex"), CODEX_EXEC_SERVER_URL=url))
    bodies = [r["body"] for r in mock.requests(mark)]
    if not bodies:
        raise ValueError("it asked its model nothing: %s" % (done.stdout + done.stderr)[-1500:])
    return done.returncode, outputs(bodies[-1]), done.stdout + done.stderr


def command(words, **more):
    return {"call": {"name": "*exec_command*", "input": {"cmd": words, "yield_time_ms": 60000, **more}}}


def checks(scratch, mock, table):
    flood = scratch.path("flood.py")
    with open(flood, "w") as file:
        file.write(FLOOD)
    many = "%s %s" % (sys.executable, flood)
    server = ExecServer(scratch, "--lease-s", "5")
    try:
        code, seen, said = run(scratch, mock, server.url, [command("echo one; echo two >&2; exit 3"), DONE])
        good = code == 0 and "one" in seen[0] and "two" in seen[0] and "3" in seen[0]
        table.add("a command: output, standard error and exit code", good, seen[0][:300])

        code, seen, said = run(scratch, mock, server.url, [command("pwd; cat", tty=True, yield_time_ms=1000), DONE])
        table.add("a terminal in the client's directory", code == 0 and scratch.work in seen[0], seen[0][:200])

        way = Cutter(server.port)
        code, seen, said = run(scratch, mock, way.url, [command(many, max_output_tokens=500), DONE])
        good = code == 0 and WHOLE in seen[0] and way.passed > 2 * STREAM * 4 // 3
        table.add("two streams of 60 MB: complete", good,
                  "%d bytes passed, %s" % (way.passed, seen[0][:200]))

        way = Cutter(server.port, cuts=[20_000_000, 50_000_000, 90_000_000])
        code, seen, said = run(scratch, mock, way.url, [command(many, max_output_tokens=500), DONE])
        good = code == 0 and WHOLE in seen[0] and way.connections >= 4 and not way.cuts
        table.add("cut three times in the middle of it: resumed, and complete", good,
                  "%d connections, %s" % (way.connections, seen[0][:200]))

        way = Cutter(server.port, cuts=[1])
        code, seen, said = run(scratch, mock, way.url, [command("echo quick"), DONE])
        table.add("cut in the handshake", code == 0, seen[0][:200])
    finally:
        code = server.stop()
    alive = scratch.left(within=4)
    table.add("told to end: nothing left", code == 0 and not alive, alive or "exit %d" % code)


def main():
    codex(), phone_opus()
    if not os.path.isdir("/proc/self"):
        skip("no /proc here, so what is left of a run cannot be seen")
    table = Table("The real Codex with phone-opus as its exec server", "Codex")
    with Scratch() as scratch:
        mock = Mock(scratch, mock_responses(), "/responses")
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
