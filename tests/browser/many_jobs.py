"""Makes many finished jobs of the ones there are: many_jobs.py DATABASE COUNT. For looks at long lists; nothing serves meanwhile."""

import sqlite3
import sys
import time
import uuid

WORDS = "why where which how retry lock socket cache parser build test queue worker upgrade journal signal".split()

database = sqlite3.connect(sys.argv[1])
database.row_factory = sqlite3.Row
templates = database.execute("SELECT * FROM jobs WHERE finished_at IS NOT NULL").fetchall()
now = int(time.time() * 1000)
for n in range(int(sys.argv[2])):
    job = dict(templates[n % len(templates)])
    old = job.pop("sequence")
    accepted = now - 60_000 - n * 400_000
    started = accepted + (n * 37) % 9_000
    job |= {
        "id": str(uuid.uuid4()), "invocation": None, "request_key": None, "accepted_at": accepted, "started_at": started,
        "finished_at": started + 1_000 + (n * 7919) % 400_000, "unread": int(n % 9 == 0), "last_event": 0,
        "cost_usd": None if n % 7 == 0 else (n * 13 % 100) / 400,
        "prompt_head": f"{n}: {WORDS[n % 16]} {WORDS[n * 5 % 16]} {WORDS[n * 7 % 16]} {WORDS[n * 11 % 16]}?",
    }
    names = ", ".join(job)
    marks = ", ".join("?" * len(job))
    new = database.execute(f"INSERT INTO jobs ({names}) VALUES ({marks})", list(job.values())).lastrowid
    database.execute("INSERT INTO requests SELECT ?, request FROM requests WHERE job = ?", (new, old))
    database.execute("INSERT INTO outcomes SELECT ?, outcome FROM outcomes WHERE job = ?", (new, old))
database.commit()
