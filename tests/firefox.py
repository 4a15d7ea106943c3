"""Firefox without a window or a driver program, over WebDriver BiDi (https://w3c.github.io/webdriver-bidi)."""

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import websocket  # selenium needs it too


class Firefox:
    """As much of a selenium browser as the tests of the page use."""

    def __init__(self, program: str, profile: Path, port: int):
        flags = [
            "--headless",
            "--no-remote",
            "--profile",
            str(profile),
            "--remote-debugging-port",
            str(port),
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([program, *flags, "about:blank"], **quiet)
        self.count, deadline = 0, time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(OSError, websocket.WebSocketException):
                url = f"ws://127.0.0.1:{port}/session"
                self.socket = websocket.create_connection(url, timeout=60, suppress_origin=True)
                break
            time.sleep(0.2)
        self.call("session.new", capabilities={})
        self.context = self.call("browsingContext.getTree")["contexts"][0]["context"]

    def call(self, method: str, **parameters) -> dict:
        self.count += 1
        self.socket.send(json.dumps({"id": self.count, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                return answer["result"]

    def get(self, url: str) -> None:
        self.call("browsingContext.navigate", context=self.context, url=url, wait="complete")

    def execute_script(self, script: str, *arguments):
        code = f"JSON.stringify((function () {{ {script} }})(...{json.dumps(arguments)}) ?? null)"
        target = {"context": self.context}
        result = self.call("script.evaluate", expression=code, target=target, awaitPromise=True)
        return json.loads(result["result"]["value"])

    def quit(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)
