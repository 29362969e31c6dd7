"""An MCP client in a few lines of another language: `python3 examples/unix_socket_client.py SOCKET`.

One JSON object a line in either direction; that is all the transport there is.
"""

import json
import socket
import sys

with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    lines = connection.makefile("rw", encoding="utf-8", newline="\n")

    def ask(number, method, **params):
        lines.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\n")
        lines.flush()
        return json.loads(lines.readline())["result"]

    client = {"name": "a-few-lines", "version": "1"}
    server = ask(1, "initialize", protocolVersion="2025-11-25", capabilities={}, clientInfo=client)
    tools = [tool["name"] for tool in ask(2, "tools/list")["tools"]]
    reply = ask(3, "tools/call", name="greet", arguments={"name": "Python"})
    print(server["serverInfo"]["name"], tools, reply["content"][0]["text"])
