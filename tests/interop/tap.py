#!/usr/bin/env python3
"""Stands between a client and its server and notes every line: `tap.py LOG PROGRAM ARGUMENT...`.

For clients that do not tell what they sent or heard. A line of the log is {"to": "server" | "client", "at": seconds,
"message": ...}; its first one {"started": pid, "at": seconds}. Signals are passed on, and it ends when its server has.
"""
import json
import signal
import subprocess
import sys
import threading
import time

log = open(sys.argv[1], "a", buffering=1)
server = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
log.write(json.dumps({"started": server.pid, "at": time.time()}) + "\n")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: server.send_signal(number))


def copy(source, target, to):
    for line in iter(source.readline, b""):
        try:
            message = json.loads(line)
        except ValueError:
            message = line.decode("utf-8", "replace")
        log.write(json.dumps({"to": to, "at": time.time(), "message": message}) + "\n")
        try:
            target.write(line)
            target.flush()
        except OSError:
            break
    try:
        target.close()
    except OSError:
        pass


threading.Thread(target=copy, args=(sys.stdin.buffer, server.stdin, "server"), daemon=True).start()
threading.Thread(target=copy, args=(server.stdout, sys.stdout.buffer, "client"), daemon=True).start()
code = server.wait()
time.sleep(0.05)
sys.exit(code if code >= 0 else 128 - code)
