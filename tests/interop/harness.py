"""What the interop checks share: a plain MCP client over stdio, the stand-in model, process checks, a result table.

Standard library only. Nothing here knows how phone-opus works inside; it sees what any client sees, and /proc.
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Longest any single step may take. The slowest real one, three refused tries, takes four seconds.
STEP_S = 60


def skip(why):
    """Ends the script as skipped: exit code 77, and loudly, so that nobody takes it for a pass."""
    print("\n*** SKIPPED: %s ***\n" % why, file=sys.stderr, flush=True)
    print("SKIPPED: %s" % why)
    raise SystemExit(77)


def program(variable, *names):
    """The program a variable names, else the first of these names on PATH; None when there is none."""
    named = os.environ.get(variable)
    if named:
        return shutil.which(named) or skip("%s names %s, which is no program" % (variable, named))
    return next((path for path in map(shutil.which, names) if path), None)


def phone_opus():
    """The server under test: INTEROP_PHONE_OPUS, else the release build of this repository."""
    built = os.path.join(ROOT, "target", "release", "phone-opus")
    found = program("INTEROP_PHONE_OPUS") or (built if os.access(built, os.X_OK) else None)
    return found or skip("no phone-opus: `cargo build --release`, or set INTEROP_PHONE_OPUS")


def bridged():
    """Whether clients reach a daemon through a bridge, as INTEROP_DOOR=bridge says, and not a server of their own."""
    return os.environ.get("INTEROP_DOOR") == "bridge"


def words():
    """What a client starts phone-opus with."""
    return ["mcp", "connect" if bridged() else "serve"]


def crashes():
    """What makes a server's worker crash, as (name, variables); nothing where the plan of faults is a daemon's and no client's."""
    return () if bridged() else (
        ("panic", {"PHONE_OPUS_MCP_TEST_WORKER_CRASH_ONCE_KEY": "tools/call:consult"}),
        ("SIGKILL of its process",
         {"PHONE_OPUS_ISOLATION": "process", "PHONE_OPUS_FAULTS": "worker.before_reply@tools/call:consult=kill"}),
    )


def claude():
    return program("INTEROP_CLAUDE", "claude") or skip("no Claude Code: install it, or set INTEROP_CLAUDE (see README.md)")


def mock_model():
    path = os.environ.get("INTEROP_MOCK_MODEL")
    if not path or not os.path.isfile(path):
        skip("no stand-in model: set INTEROP_MOCK_MODEL to its Python program (see README.md)")
    return path


def beside(variable, name):
    """Another stand-in model, which lies beside the first one unless a variable names it."""
    path = os.environ.get(variable, os.path.join(os.path.dirname(os.environ.get("INTEROP_MOCK_MODEL", "")), name))
    return path if os.path.isfile(path) else skip("no stand-in model %s: set %s (see README.md)" % (name, variable))


def mock_responses():
    return beside("INTEROP_MOCK_RESPONSES", "responses_mock.py")


def mock_gemini():
    return beside("INTEROP_MOCK_GEMINI", "gemini_mock.py")


def mock_chat():
    return os.path.join(ROOT, "tests", "interop", "mock_chat.py")


def codex():
    return program("INTEROP_CODEX", "codex") or skip("no Codex: install it, or set INTEROP_CODEX (see README.md)")


def gemini():
    return program("INTEROP_GEMINI", "gemini") or skip("no Gemini CLI: install it, or set INTEROP_GEMINI (see README.md)")


class Scratch:
    """One folder that holds everything a check writes: home, state, work, logs. Gone at the end."""

    def __init__(self):
        # Short, since it may hold sockets.
        self.root = os.path.realpath(tempfile.mkdtemp(prefix="po-"))
        self.home = self.dir("home")
        self.work = self.dir("work")
        self.state = os.path.join(self.root, "state")

    def dir(self, name):
        path = os.path.join(self.root, name)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def path(self, name):
        return os.path.join(self.root, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end_daemon()
        shutil.rmtree(self.root, ignore_errors=True)

    # -- the daemon, where clients come through a bridge ----------------------------------------------------------

    def daemons(self):
        """The pids of the daemons of this scratch home."""
        return [pid for pid, line in self.processes().items() if " daemon run" in line]

    def end_daemon(self):
        """The next bridge starts a daemon of its own."""
        if bridged() and self.daemons():
            subprocess.run([phone_opus(), "daemon", "stop", "--force"], env=self.environment(), cwd=self.home,
                           capture_output=True, timeout=STEP_S)

    def agent(self):
        """The agent of checks that need no real one: phone-opus under the name that makes it play Claude Code."""
        path = self.path("phone-opus-scripted-agent")
        if not os.path.lexists(path):
            os.symlink(os.path.realpath(phone_opus()), path)
        return path

    def environment(self, **more):
        """The whole environment of a server: nothing of ours but PATH."""
        env = {"PATH": os.environ.get("PATH", ""), "HOME": self.home, "PHONE_OPUS_STATE_DIR": self.state, "LANG": "C.UTF-8"}
        env.update(more)
        return {name: value for name, value in env.items() if value is not None}

    # -- processes: whoever has this scratch home is of this check -----------------------------------------------

    def processes(self):
        """{pid: command line} of everything that was started with this home."""
        marks = {b"HOME=" + self.home.encode()}
        found = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/environ" % pid, "rb") as file:
                    if not marks & set(file.read().split(b"\0")):
                        continue
                with open("/proc/%s/stat" % pid) as file:
                    if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                        continue
                with open("/proc/%s/cmdline" % pid, "rb") as file:
                    found[int(pid)] = file.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            except OSError:
                continue
        return found

    @staticmethod
    def parent(pid):
        try:
            with open("/proc/%d/stat" % pid) as file:
                return int(file.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            return None

    def left(self, allowed=(), within=3.0):
        """What is still alive after `within` seconds, but for the allowed pids. Waits no longer than it must."""
        end = time.monotonic() + within
        while True:
            # A daemon outlives its clients: it goes when nobody has needed it for half an hour.
            alive = {pid: line for pid, line in self.processes().items()
                     if pid not in allowed and not (bridged() and " daemon run" in line)}
            if not alive or time.monotonic() > end:
                return alive
            time.sleep(0.02)

    def end_all(self):
        """Ends what a failed check left behind; only what was started with this scratch home."""
        self.end_daemon()
        self.left(within=1)
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def wide_files(self):
        """Files and folders of the state directory that others could read."""
        wide = []
        for folder, folders, files in os.walk(self.state):
            for name in folders + files:
                path = os.path.join(folder, name)
                if os.lstat(path).st_mode & 0o077 and not os.path.islink(path):
                    wide.append(os.path.relpath(path, self.state))
        return wide


class Tapped:
    """What a client and its server said to each other, by tap.py."""

    def __init__(self, scratch, name, server=None):
        self.path = scratch.path(name + ".tap")
        self.command = sys.executable
        tap = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tap.py")
        self.arguments = [tap, self.path, server or phone_opus(), *words()]

    def lines(self):
        """All lines of its log but one that is still being written."""
        try:
            with open(self.path) as file:
                return [json.loads(line) for line in file if line.endswith("\n")]
        except FileNotFoundError:
            return []

    def starts(self):
        """How often the client started a server."""
        return sum("started" in line for line in self.lines())

    def said(self, to, method=None):
        """The messages to the "server" or to the "client", those of one method if it is named, in order."""
        messages = [line["message"] for line in self.lines() if line.get("to") == to and isinstance(line["message"], dict)]
        return [message for message in messages if method is None or message.get("method") == method]

    def progress(self):
        """What the client was told of how far its call is, in order."""
        return [note["params"]["progress"] for note in self.said("client", "notifications/progress")]

    def upgrade_checks(self, upgrade, add):
        """What holds of an upgrade whatever the client: `add(cell, name, good, detail)` is told."""
        upgrade.checks(add)
        # Some ask twice as they connect; what counts is that nobody does once there was a call.
        asked = [message.get("method") for message in self.said("server")]
        greetings = [at for at, method in enumerate(asked) if method in ("initialize", "server/discover", "subscriptions/listen")]
        good = self.starts() == 1 and greetings and max(greetings) < asked.index("tools/call")
        add("upgrade", "one server, greeted once", good, "%d start; %s" % (self.starts(), ", ".join(map(str, asked))))
        values = self.progress()
        add("upgrade", "progress goes on rising", len(values) >= 2 and values == sorted(set(values)), values)

    def answer(self, request):
        """What a request was answered with, if it was."""
        return next((m for m in self.said("client") if "method" not in m and m.get("id") == request["id"]), None)


class Upgrade(threading.Thread):
    """Another build, put in the server's place in the middle of a consult.

    `program` is what the client is to start as its server, and `script` what the agent of that consult does: it says that
    it runs, waits for a sign, and then answers. This thread does the rest: it waits for the agent, installs the other build
    as an installer does, asks the server for it, waits for the new image in the same process, and gives the sign. Where
    `heard` counts what the client was told of progress, that must be something before the upgrade and more after it.

    Through a bridge the daemon is first killed, without a word, and the one that comes after it is upgraded.
    """

    ANSWER = "from before and after"

    def __init__(self, scratch, name, heard=None):
        super().__init__(daemon=True)
        self.scratch, self.heard = scratch, heard
        # A path with a component `target` is no place where versions are installed.
        self.program = os.path.join(scratch.dir("installed-" + name), "phone-opus")
        shutil.copy(phone_opus(), self.program)
        scratch.end_daemon()
        self.here, self.go, self.log = (scratch.path("%s-%s" % (name, what)) for what in ("here", "go", "log"))
        self.script = {"answer": self.ANSWER, "log": self.log, "steps": [{"touch": self.here}, {"wait_for_file": self.go}]}
        self.good, self.detail = False, "did not come so far"
        self.given_up = threading.Event()

    def servers(self):
        words = self.program + (" daemon run" if bridged() else " mcp serve")
        # What is told to detach only starts the daemon.
        return [pid for pid, line in self.scratch.processes().items() if line.startswith(words) and " --detach " not in line]

    def kill_daemon(self):
        """Kills the daemon; the bridge sees to it that there is another one."""
        [killed] = self.servers()
        os.kill(killed, signal.SIGKILL)
        began = time.monotonic()
        self.until("there is another daemon", lambda: self.servers() not in ([], [killed]))
        told = self.heard and self.heard()
        self.until("the client hears of it again", lambda: not self.heard or self.heard() > told)
        return "another daemon after %.0f ms; " % ((time.monotonic() - began) * 1000)

    def until(self, what, look):
        """Waits until `look` finds something, for 20 s at most."""
        end = time.monotonic() + 20
        while not look():
            if self.given_up.is_set() or time.monotonic() > end:
                raise TimeoutError("waited in vain until " + what)
            time.sleep(0.01)

    def run(self):
        try:
            self.until("the agent runs", lambda: os.path.exists(self.here))
            self.until("the client hears of it", lambda: not self.heard or self.heard())
            killed = self.kill_daemon() if bridged() else ""
            before = self.servers()
            new = self.program + ".new"
            shutil.copy(self.program, new)
            # What follows the end of a program makes it another file, and the same program.
            with open(new, "ab") as file:
                file.write(b"another build")
            os.rename(new, self.program)
            began = time.monotonic()
            os.kill(before[0], signal.SIGUSR2)
            self.until("the new image runs", lambda: "--restore" in self.scratch.processes().get(before[0], ""))
            took = time.monotonic() - began
            told = self.heard and self.heard()
            self.until("the client hears of it again", lambda: not self.heard or self.heard() > told)
            after = self.servers()
            self.good = len(before) == 1 and before == after
            self.detail = killed + ("%.0f ms, the same process" % (took * 1000) if self.good else "%s, then %s" % (before, after))
        except (OSError, IndexError, TimeoutError) as error:
            self.detail = repr(error)
        finally:
            # Whatever went wrong, the consult is not to wait for ever.
            open(self.go, "w").close()

    def checks(self, add):
        """Once the client is done: whether one server became another one in its own process, at no cost."""
        self.given_up.set()
        self.join()
        add("upgrade", "in place", self.good, self.detail)
        try:
            with open(self.log) as file:
                runs = file.read().count('"event":"start"')
        except FileNotFoundError:
            runs = 0
        add("upgrade", "one run of the agent", runs == 1, "%d run" % runs)
        alive = self.scratch.left(within=4)
        add("upgrade", "nothing left", not alive, alive or "")


class ArgvWatch(threading.Thread):
    """Looks at the command line of every process of the scratch home, all the time, for words that must not be there."""

    def __init__(self, scratch, words):
        super().__init__(daemon=True)
        self.scratch, self.words = scratch, list(words)
        self.seen, self.bad, self.done = set(), [], threading.Event()

    def run(self):
        while not self.done.wait(0.03):
            for pid, line in self.scratch.processes().items():
                self.seen.add((pid, line))
                self.bad += [(pid, line) for word in self.words if word in line]

    def stop(self):
        self.done.set()
        self.join()
        return self.bad


class Mock:
    """The stand-in model: a script rides in each prompt between `@@mock` and `@@`."""

    def __init__(self, scratch, model=None, path="/v1/messages", arguments=()):
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, model or mock_model(), *arguments], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        word, port = self.process.stdout.readline().split()
        assert word == "PORT"
        self.url = "http://127.0.0.1:" + port

    def log(self):
        with urllib.request.urlopen(self.url + "/__mock/log") as answer:
            return json.load(answer)

    def requests(self, since=0):
        """The model requests from the `since`-th entry of the log on."""
        return [e for e in self.log()[since:] if e.get("method") == "POST" and self.path in e.get("path", "")]

    def script(self, steps):
        """What it answers from now on when a prompt holds no script of its own, one step a request."""
        data = json.dumps(steps).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + "/__mock/script", data=data, method="PUT")):
            pass

    def mark(self):
        return len(self.log())

    def stop(self):
        self.process.kill()
        self.process.wait()


def check_client(name, stand_in, checks):
    """Has a real client checked against a stand-in model; returns the exit code. Nothing of either is left behind."""
    if not os.path.isdir("/proc/self"):
        skip("no /proc here, so what is left of a run cannot be seen")
    table = Table("The real %s as a client of phone-opus" % name, name)
    with Scratch() as scratch:
        mock = stand_in(scratch)
        try:
            checks(scratch, mock, table)
        except (subprocess.TimeoutExpired, OSError, KeyError, IndexError, ValueError, StopIteration) as error:
            table.add("went through", False, repr(error), cell="call")
        finally:
            mock.stop()
            scratch.end_all()
    return table.end()


def end_in_a_consult(scratch, table, how, client, waits, within=20):
    """Ends a client by a signal as soon as it waits for a consult that never ends; nothing may be left of it."""
    end = time.monotonic() + within
    reached = waits()
    while not reached and time.monotonic() < end:
        time.sleep(0.02)
        reached = waits()
    began = time.monotonic()
    client.send_signal(how)
    code = client.wait(20)
    alive = scratch.left(within=6)
    table.add("client gets %s in a consult: nothing left" % how.name, reached and not alive,
              "exit %s, all gone after %.1f s%s" % (code, time.monotonic() - began, "; left: %s" % alive if alive else ""),
              cell="shutdown")


def scripted(text, steps):
    """A prompt with its script; without steps the server-wide script counts."""
    return text if steps is None else "%s @@mock %s @@" % (text, json.dumps(steps))


class Server:
    """A server process and a client of it. `call` blocks; `start` gives a handle to wait on."""

    def __init__(self, command, env, cwd, client="interop"):
        began = time.monotonic()
        self.process = subprocess.Popen(
            command, env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.lock = threading.Condition()
        self.answers, self.notes, self.bad_lines, self.next = {}, [], [], 0
        self.stderr = b""
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._drain, daemon=True).start()
        self.hello = self.request("initialize", {
            "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": client, "version": "1"}})
        self.ready_ms = (time.monotonic() - began) * 1000
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def _read(self):
        for line in self.process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                self.bad_lines.append(line)
                continue
            with self.lock:
                if "id" in message:
                    self.answers[message["id"]] = (message, time.time())
                else:
                    self.notes.append(message)
                self.lock.notify_all()

    def _drain(self):
        for line in self.process.stderr:
            self.stderr = (self.stderr + line)[-8000:]

    def send(self, message):
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def post(self, method, params):
        with self.lock:
            number = self.next
            self.next += 1
        self.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        return number

    def wait(self, number, within=STEP_S):
        """(answer, when it came)"""
        with self.lock:
            if not self.lock.wait_for(lambda: number in self.answers, within):
                raise TimeoutError("no answer to request %d within %d s; stderr: %r" % (number, within, self.stderr))
            return self.answers.pop(number)

    def request(self, method, params):
        message, _ = self.wait(self.post(method, params))
        if "error" in message:
            raise RuntimeError("%s: %s" % (method, message["error"]))
        return message["result"]

    def start(self, tool, **arguments):
        return self.post("tools/call", {"name": tool, "arguments": arguments})

    def result(self, number):
        """The structured content of a call's answer, with `is_error` and `text` beside it."""
        message, at = self.wait(number)
        if "error" in message:
            return {"is_error": True, "text": message["error"]["message"], "fault": {"code": message["error"]["code"]}}
        result = message["result"]
        seen = dict(result.get("structuredContent") or {})
        seen.update(is_error=bool(result.get("isError")), at=at,
                    text="\n".join(c.get("text", "") for c in result.get("content", [])))
        return seen

    def call(self, tool, **arguments):
        return self.result(self.start(tool, **arguments))

    def close(self):
        """Ends the client's side; returns (exit code, seconds it took)."""
        began = time.monotonic()
        self.process.stdin.close()
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = "did not end"
        return code, time.monotonic() - began


class Table:
    """Checks and figures, printed as they come and once more as a table.

    A check that names a cell is one of an MCP client: run_all.py reads it from the file INTEROP_ROWS names."""

    def __init__(self, title, client=None):
        self.title, self.client, self.era, self.rows = title, client, None, []

    def add(self, name, good, detail="", cell=None):
        self.rows.append((name, "ok" if good else "FAIL", str(detail)))
        print("%-4s %-42s %s" % (self.rows[-1][1], name, self.rows[-1][2][:400]), flush=True)
        self._tell(cell, name, bool(good), detail)
        return good

    def cannot(self, cell, why):
        """What a client cannot do is no failure of ours."""
        self.note("%s: %s" % (self.era, cell), why)
        self._tell(cell, cell, None, why)

    def _tell(self, cell, name, good, detail):
        path = os.environ.get("INTEROP_ROWS")
        if path and cell:
            with open(path, "a") as file:
                file.write(json.dumps([self.client, self.era, cell, name, good, str(detail)]) + "\n")

    def cannot_crash(self):
        """Said of a client whose worker is a daemon's."""
        if bridged():
            self.cannot("worker crash", "the plan of faults is the daemon's and no client's")

    def note(self, name, detail):
        self.rows.append((name, "-", str(detail)))
        print("     %-42s %s" % (name, detail), flush=True)

    def skipped(self, name, why):
        print("\n*** SKIPPED: %s: %s ***\n" % (name, why), file=sys.stderr, flush=True)
        self.rows.append((name, "SKIPPED", why))

    def end(self):
        """Prints the table; returns the exit code: 1 when a check failed, 77 when something was skipped."""
        print("\n## %s\n\n| check | result | detail |\n|---|---|---|" % self.title)
        for name, state, detail in self.rows:
            print("| %s | %s | %s |" % (name, state, detail.replace("\n", " ").replace("|", "\\|")[:160]))
        failed = sum(state == "FAIL" for _, state, _ in self.rows)
        print("\n%d checks, %d failed" % (sum(state in ("ok", "FAIL") for _, state, _ in self.rows), failed), flush=True)
        skipped = [name for name, state, _ in self.rows if state == "SKIPPED"]
        if skipped:
            print("SKIPPED: " + ", ".join(skipped), flush=True)
        return 1 if failed else 77 if skipped else 0
