#!/usr/bin/env python3
"""A stand-in for models that speak OpenAI's chat completions, as much of it as Copilot CLI, OpenCode and Qwen Code use.

Standard library only, loopback only. Prints `PORT <n>` when ready. What it answers rides in the newest user text that holds
`@@mock <JSON> @@`: one step, or a list of steps of which each answers one request. A step is an object, all of it optional:

  text                   what it says ("ok" where it says nothing else)
  call                   a tool it asks for: {"name": ..., "input": {...}}
  status, message        an error of the provider
  headers                of the answer to that error
  delay                  seconds before it answers
  stall                  "headers": it never answers; "start": it begins, and says nothing
  drop                   "mid": the connection is cut in the middle of the text

`GET /__mock/log` is everything it was asked, without what logs in. `--log FILE` writes the same, a line for each.
"""
import argparse
import json
import re
import socket
import struct
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DIRECTIVE = re.compile(r"@@mock\s+(.*?)\s*@@", re.S)
SECRETS = ("authorization", "api-key", "x-api-key", "cookie")
PIECE = 40


def texts(message):
    content = message.get("content")
    if isinstance(content, str):
        return [content]
    return [part.get("text") or "" for part in content or [] if isinstance(part, dict)]


def step_for(body):
    """The step that answers this request: as many as the model has answered since the script was given are behind it."""
    messages = body.get("messages") or []
    for at in range(len(messages) - 1, -1, -1):
        if messages[at].get("role") != "user":
            continue
        found = [script for text in texts(messages[at]) for script in DIRECTIVE.findall(text)]
        if not found:
            continue
        try:
            steps = json.loads(found[-1])
        except ValueError as error:
            return {"status": 400, "message": "the script is wrong: %s" % error}
        steps = steps if isinstance(steps, list) else [steps]
        answered = sum(message.get("role") == "assistant" for message in messages[at + 1:])
        return steps[min(answered, len(steps) - 1)]
    return {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if (self.headers.get("transfer-encoding") or "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        whole = b""
        while True:
            size = int(self.rfile.readline().split(b";")[0].strip() or b"0", 16)
            whole += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                return whole

    def record(self, body):
        headers = {name.lower(): "(a secret)" if name.lower() in SECRETS else value for name, value in self.headers.items()}
        entry = {"t": round(time.time(), 3), "method": self.command, "path": self.path, "headers": headers, "body": body}
        with self.server.lock:
            self.server.entries.append(entry)
            if self.server.file:
                with open(self.server.file, "a") as file:
                    file.write(json.dumps(entry) + "\n")

    def send_json(self, status, answer, headers=None):
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(data)

    def hold(self):
        """Says nothing until the other side has gone."""
        self.connection.settimeout(0.5)
        while True:
            try:
                if self.connection.recv(1) == b"":
                    break
            except socket.timeout:
                continue
            except OSError:
                break
        self.close_connection = True

    def do_GET(self):
        if self.path.startswith("/__mock/log"):
            with self.server.lock:
                entries = list(self.server.entries)
            return self.send_json(200, entries)
        self.record(None)
        if self.path.split("?")[0].endswith("/models"):
            return self.send_json(200, {"object": "list", "data": [{"id": "mock-model", "object": "model"}]})
        self.send_json(404, {"error": {"message": "there is nothing here"}})

    def do_POST(self):
        raw = self.body()
        try:
            body = json.loads(raw)
        except ValueError:
            body = {}
        self.record(body)
        if not self.path.split("?")[0].endswith("/chat/completions"):
            return self.send_json(404, {"error": {"message": "there is nothing here"}})
        try:
            self.answer(step_for(body), body)
        except OSError:
            self.close_connection = True

    def answer(self, step, body):
        time.sleep(step.get("delay", 0))
        if step.get("stall") == "headers":
            return self.hold()
        status = step.get("status", 200)
        if status != 200:
            error = {"message": step.get("message", "refused with %d" % status), "type": "mock", "code": str(status)}
            return self.send_json(status, {"error": error}, step.get("headers"))
        # A request for a title offers no tools.
        call = step.get("call") if body.get("tools") else None
        text = step.get("text", "" if call else "ok")
        calls = []
        if call:
            function = {"name": call["name"], "arguments": json.dumps(call.get("input", {}))}
            calls = [{"index": 0, "id": "call_" + uuid.uuid4().hex[:20], "type": "function", "function": function}]
        usage = {"prompt_tokens": 10, "completion_tokens": max(1, len(text) // 4)}
        usage["total_tokens"] = sum(usage.values())
        head = {"id": "chatcmpl-" + uuid.uuid4().hex[:20], "created": int(time.time()), "model": body.get("model", "mock-model")}
        end = "tool_calls" if calls else "stop"
        if not body.get("stream"):
            message = dict({"role": "assistant", "content": text or None}, **({"tool_calls": calls} if calls else {}))
            choice = {"index": 0, "message": message, "finish_reason": end}
            return self.send_json(200, dict(head, object="chat.completion", choices=[choice], usage=usage))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

        def write(data):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def say(delta, finish=None):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            write(b"data: %s\n\n" % json.dumps(dict(head, object="chat.completion.chunk", choices=[choice])).encode())

        say({"role": "assistant", "content": ""})
        if step.get("stall") == "start":
            return self.hold()
        for at in range(0, len(text), PIECE):
            say({"content": text[at:at + PIECE]})
            if step.get("drop") == "mid":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
        if calls:
            say({"tool_calls": calls})
        say({}, end)
        write(b"data: %s\n\n" % json.dumps(dict(head, object="chat.completion.chunk", choices=[], usage=usage)).encode())
        write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()


class Model(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", help="a file that every request is appended to")
    arguments = parser.parse_args()
    model = Model(("127.0.0.1", arguments.port), Handler)
    model.lock, model.entries, model.file = threading.Lock(), [], arguments.log
    print("PORT %d" % model.server_address[1], flush=True)
    try:
        model.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
