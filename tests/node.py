"""Node and Chromium as tests call them: to run scripts that use riq's JavaScript."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.zoo import ZooUnavailable, fetch

ROOT = Path(__file__).parent.parent
MODULE = ROOT / "riq_cli" / "web" / "riqz.js"
_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def _node() -> str | None:
    """Node's path, if it is at least 20.16, the first with what workers need."""
    path = shutil.which("node")
    shown = path and subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    found = re.match(r"v(\d+)\.(\d+)", shown or "")
    return path if found and tuple(map(int, found.groups())) >= (20, 16) else None


NODE = _node()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_node = pytest.mark.skipif(NODE is None, reason="needs Node 20.16 or newer")
needs_chromium = pytest.mark.skipif(NODE is None or CHROMIUM is None, reason="needs Node 20.16 or newer and Chromium")

PRELUDE = f"""
import * as riqz from {json.dumps(MODULE.as_uri())};
import {{ createHash }} from "node:crypto";
import {{ createReadStream, readFileSync, rmSync, writeFileSync }} from "node:fs";
const {{ decode, restore }} = riqz;
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const failure = (promise) => promise.then(() => "nothing", ({{ name, message }}) => `${{name}}: ${{message}}`);
async function* chunks(bytes, size) {{
  for (let begin = 0; begin < bytes.length; begin += size) yield bytes.subarray(begin, begin + size);
}}
"""


def sha256(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()


def answers(how: str, archives: list[bytes], **options: Any) -> list[dict[str, Any]]:
    """What `decode` or `restore` does with archives, in one process of Node."""
    assert NODE is not None
    requests = [{"data": base64.b64encode(data).decode(), "how": how, "options": options} for data in archives]
    command = [NODE, str(ROOT / "tests" / "decode.mjs")]
    done = subprocess.run(command, input=json.dumps(requests).encode(), capture_output=True, check=True)
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


def run(script: str, *arguments: object, prelude: str = PRELUDE, folder: Path | None = None) -> Any:
    """The value that a script returns; it has what `prelude` imports and defines, and arguments in `given`, as text."""
    assert NODE is not None
    text = f"""{prelude}
const work = async (...given) => {{ {script} }};
console.log(JSON.stringify(await work(...process.argv.slice(1))));
"""
    command = [NODE, "--input-type=module", "-e", text, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def npm() -> Path:
    """The folder with the pinned npm packages, or a skipped test."""
    try:
        return fetch.npm()
    except ZooUnavailable as error:
        pytest.skip(str(error))


def browse(url: str, script: str, *arguments: object) -> Any:
    """The value that a script returns; it has playwright's `page` at a URL, of phone size, and `given` as `run` has.

    An error in the page, or a request to another server, fails.
    """
    prelude = f"""
import {{ chromium }} from "playwright-core";
const browser = await chromium.launch({{ executablePath: {json.dumps(CHROMIUM)}, args: {json.dumps(_FLAGS)} }});
const page = await browser.newPage({{ viewport: {{ width: 400, height: 800 }} }});
const {{ origin }} = new URL({json.dumps(url)});
const fail = (error) => {{ console.error(error); process.exit(1); }};
page.on("pageerror", fail);
page.on("request", (request) => ["null", origin].includes(new URL(request.url()).origin) || fail(request.url()));
await page.goto({json.dumps(url)});
"""
    script = f"const visit = async () => {{ {script} }}; return visit().finally(() => browser.close());"
    return run(script, *arguments, prelude=prelude, folder=npm())


class _Handler(http.server.SimpleHTTPRequestHandler):
    """A static server whose downloads can be cut off half-way.

    `?cut` ends with fewer bytes than were announced, `?short` announces none. `?held` with anything behind it goes on
    when `/release` is asked for with the same query.
    """

    released: defaultdict[str, threading.Event]

    def do_GET(self) -> None:
        path, _, wanted = self.path.partition("?")
        if path == "/release":
            self.released[wanted].set()
            self.send_error(404)
        elif not wanted:
            super().do_GET()
        else:
            data = Path(self.translate_path(path)).read_bytes()
            self.send_response(200)
            if wanted != "short":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            if wanted.startswith("held") and self.released[wanted].wait(60):
                with contextlib.suppress(OSError):  # a reader that has gone
                    self.wfile.write(data[len(data) // 2 :])

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL at which a folder is served."""
    events: defaultdict[str, threading.Event] = defaultdict(threading.Event)
    handler = type("Handler", (_Handler,), {"released": events})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            for event in events.values():
                event.set()
            server.shutdown()
            thread.join()
