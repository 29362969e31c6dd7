#!/usr/bin/env python3
"""`phone-opus install` and `uninstall` as the real clients see them, by their own `mcp list`. See README.md.

For each client that is there, in a scratch home: a configuration file with a comment and a foreign server in it, the install, the
client's list, the uninstall, the list again. Nothing is asked of a model.
"""
import os
import shutil
import subprocess
import sys

from harness import STEP_S, Scratch, Table, phone_opus, program, skip

FOREIGN = "docs-of-somebody-else"


class Client:
    """A client: how its program is found and asked, where its files are, and what it makes of a server that it reached."""

    def __init__(self, word, variable, name, user, project, text, sees, **variables):
        self.word, self.variable, self.name = word, variable, name
        self.files = {"user": user, "project": project}
        self.text, self.sees, self.variables = text, sees, variables


def json_text(key, entry, comment="  // kept as it is\n"):
    return '{\n%s  "%s": {\n    "%s": %s\n  }\n}\n' % (comment, key, FOREIGN, entry)


PLAIN = '{"command": "/bin/false", "args": []}'

CLIENTS = [
    # Its own reader takes no comments. A project's server waits for its user's yes, and is listed all the same.
    Client("claude", "INTEROP_CLAUDE", "claude", "home/.claude.json", "work/.mcp.json", json_text("mcpServers", PLAIN, ""),
           {"user": ["Connected"], "project": ["Pending approval"]}, CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1", DISABLE_AUTOUPDATER="1"),
    # It starts no server for its list, and reads a project's file where the project is trusted.
    Client("codex", "INTEROP_CODEX", "codex", "home/.codex/config.toml", "work/.codex/config.toml",
           "# kept as it is\n[mcp_servers.%s]\ncommand = \"/bin/false\"" % FOREIGN, {"user": ["enabled"], "project": ["enabled"]}),
    Client("gemini", "INTEROP_GEMINI", "gemini", "home/.gemini/settings.json", "work/.gemini/settings.json", json_text("mcpServers", PLAIN),
           {"user": ["Connected"], "project": ["Connected"]}, GEMINI_CLI_TRUST_WORKSPACE="true", GEMINI_CLI_NO_RELAUNCH="true"),
    Client("opencode", "INTEROP_OPENCODE", "opencode", "home/.config/opencode/opencode.json", "work/opencode.jsonc",
           json_text("mcp", '{"type": "local", "command": ["/bin/false"], "enabled": false},').replace("},\n  }", "},\n  },"),
           {"user": ["connected"], "project": ["connected"]}, OPENCODE_DISABLE_AUTOUPDATE="1", OPENCODE_DISABLE_MODELS_FETCH="1"),
]


def check(client, real, scope, table):
    with Scratch() as scratch:
        # A path with a component `target` is no place where versions are installed.
        ours = os.path.join(scratch.dir("installed"), "phone-opus")
        shutil.copy(phone_opus(), ours)
        env = scratch.environment(PHONE_OPUS_CLAUDE_BIN=scratch.agent(), **client.variables)
        file = scratch.path(client.files[scope])
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "w") as opened:
            opened.write(client.text)
        if client.word == "codex" and scope == "project":
            with open(os.path.join(scratch.dir("home/.codex"), "config.toml"), "w") as opened:
                opened.write('[projects."%s"]\ntrust_level = "trusted"\n' % scratch.work)

        def add(name, good, detail=""):
            table.add("%s, %s: %s" % (client.word, scope, name), good, " ".join(str(detail).split()))

        def run(command):
            done = subprocess.run(command, env=env, cwd=scratch.work, capture_output=True, text=True, timeout=STEP_S, stdin=subprocess.DEVNULL)
            return done.returncode, done.stdout + done.stderr

        def set_up(act):
            return run([ours, act, "--client", client.word, "--scope", scope, "--yes"])

        def listed():
            code, said = run([real, "mcp", "list"])
            # Where something lies on this machine is nobody's business.
            return said.replace(ours, "(path)/phone-opus").replace(scratch.root, "(path)")

        def now():
            with open(file) as opened:
                return opened.read()

        try:
            before = listed()
            add("not there before", FOREIGN in before and "phone-opus mcp serve" not in words(before), before)
            # What a client has made of its own file by reading it.
            text = now()
            code, said = set_up("install")
            add("installed", code == 0 and ours in now(), said)
            after = listed()
            line = next((line for line in after.splitlines() if "phone-opus" in line), "")
            add("its list has both", FOREIGN in after and all(word in after for word in client.sees[scope]) and line, line)
            read = now()
            code, said = set_up("install")
            add("twice is once", code == 0 and now() == read, said)
            code, said = set_up("uninstall")
            # Claude Code keeps other things in the same file, and writes them as it goes.
            back = now() == text or client.word == "claude" and scope == "user" and "phone-opus" not in now()
            add("put back", code == 0 and back, "byte for byte" if now() == text else "the entry is gone; the client has written besides")
            gone = listed()
            add("not there after", FOREIGN in gone and "phone-opus mcp serve" not in words(gone), gone)
            alive = scratch.left(within=4)
            add("nothing left", not alive, alive or "")
        finally:
            scratch.end_all()


def words(text):
    return " ".join(text.split())


def main():
    if not os.path.isdir("/proc/self"):
        skip("no /proc here, so what is left of a run cannot be seen")
    phone_opus()
    table = Table("`phone-opus install` as the real clients see it")
    for client in CLIENTS:
        real = program(client.variable, client.name)
        if not real:
            table.skipped(client.word, "no program: install it, or set %s" % client.variable)
            continue
        version = subprocess.run([real, "--version"], capture_output=True, text=True, timeout=STEP_S).stdout.split("\n")[0]
        table.note(client.word, version)
        for scope in ("user", "project"):
            check(client, real, scope, table)
    return table.end()


if __name__ == "__main__":
    sys.exit(main())
