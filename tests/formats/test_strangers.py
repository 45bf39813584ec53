"""All hostile files in one fresh process that watches itself: nothing is imported, run, written or connected to, and
time and memory are bounded."""

import json
import os
import subprocess
import sys

WATCH = """
import json, re, sys, time
from pathlib import Path
from sdjax.errors import SdjaxError
from sdjax.formats.tensors import read_tensors
from tests.formats import assembler
from tests.formats import test_tensors

corpus = {f"ckpt {name}": make for name, make in assembler.HOSTILE.items()}
corpus |= {f"safetensors {name}": lambda content=content: content for name, content in test_tensors.HOSTILE.items()}
path, events, watching = Path(sys.argv[1]), [], False

def watch(event, arguments):
    reads = event == "open" and arguments[0] == str(path) and arguments[1] in ("r", "rb")
    if watching and not reads and event not in ("mmap.__new__", "object.__getattr__", "object.__setattr__"):
        events.append(f"{event} {arguments}")

def attempt(content):
    global watching
    path.write_bytes(content)
    watching, begun = True, time.process_time()
    try:
        read_tensors(path)
        return "read", time.process_time() - begun
    except SdjaxError:
        return "refused", time.process_time() - begun
    finally:
        watching = False

attempt(b"nothing")
sys.addaudithook(watch)
results = {}
for name, make in corpus.items():
    results[name] = attempt(make())
watching = False
peak = re.search("VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1]  # ru_maxrss has the parent's in it
print(json.dumps({"results": results, "events": events, "megabytes": int(peak) / 1024}))
"""


def test_hostile_files_cost_little_and_reach_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", WATCH, str(tmp_path / "file")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    names = list(found["results"])
    assert sum(name.startswith("ckpt ") for name in names) >= 80
    assert sum(name.startswith("safetensors ") for name in names) >= 30
    assert [name for name, (outcome, _) in found["results"].items() if outcome != "refused"] == []
    assert [(name, seconds) for name, (_, seconds) in found["results"].items() if seconds > 2] == []
    assert found["events"] == [] and found["megabytes"] < 600
