"""A fake of W&B's server: healthy, and it keeps what it gets, unless a test asks for a fault."""

import http.server
import json
import re
import threading
import time
from collections import defaultdict
from urllib.parse import quote, unquote

FAULTS = (
    "refuses connections",
    "is silent",
    "answers 500",
    "refuses the key",
    "answers slowly",
    "dies in mid-run",
    "falls silent in mid-run",
    "falls silent at the end",
    "refuses the losses",
    "refuses the files",
    "stops the run",
)

REFUSED = {"refuses the losses": "/file_stream", "refuses the files": "/upload/"}  # part of the address
SILENT_FROM = {"run_table": "falls silent in mid-run", "model": "falls silent at the end"}


class WandbServer(http.server.ThreadingHTTPServer):
    """Answers what wandb-core asks in an online run. Use it in a `with` statement.

    requests: each GraphQL request as (operation, variables), in order of arrival.
    lines: the lines that the run put into each of its files, such as wandb-history.jsonl, by file name.
    files: the bytes of each other file of the run, by name.
    artifacts: the input of each CreateArtifact, with the artifact's "files" and whether it is "committed".
    """

    request_queue_size = 100  # wandb-core opens a connection for each file at once

    def __init__(self, fault: str | None = None):
        assert fault is None or fault in FAULTS
        self.fault, self.dead, self.silent = fault, False, False
        self.requests, self.artifacts = [], []
        self.files, self.lines = {}, defaultdict(list)
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.env = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": self.url}  # for a run that uses this server
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        if fault == "refuses connections":
            self.socket.close()
        elif fault != "is silent":
            self.thread.start()

    def __exit__(self, *_):
        if self.thread.is_alive():
            self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass  # a client that leaves is not a failure of the test

    def asked(self, operation: str) -> list[dict]:
        """The variables of each GraphQL request of a kind."""
        return [variables for name, variables in self.requests if name == operation]

    def upload(self, owner: str, name: str) -> dict:
        """Where the client may PUT a file: of artifact number `owner`, or of the run."""
        return {"name": name, "uploadUrl": f"{self.url}/upload/{owner}/{quote(name)}", "uploadHeaders": []}

    def answer(self, operation: str, variables: dict) -> dict:
        """The data that answer a GraphQL request. An artifact's id is its place in `artifacts`."""
        entity = {"id": "e", "name": "someone"}
        match operation:
            case "Viewer":
                return {"viewer": {"id": "v", "entity": "someone", "username": "u", "teams": {"edges": []}}}
            case "UpsertBucket":
                project = {"id": "p", "name": variables["project"], "entity": entity}
                bucket = {"id": "b", "name": variables["name"], "config": variables["config"]}
                return {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}
            case "RunResumeStatus":
                known = [each for each in self.asked("UpsertBucket") if each["name"] == variables["name"]]
                if not known:
                    return {"model": {"bucket": None}}
                history, events = (self.lines[f"wandb-{name}.jsonl"] for name in ("history", "events"))
                bucket = {"id": "b", "name": variables["name"], "config": known[-1]["config"]}
                bucket |= {"historyLineCount": len(history), "historyTail": json.dumps(history[-1:])}
                bucket |= {"eventsLineCount": len(events), "eventsTail": json.dumps(events[-1:])}
                summary = self.lines["wandb-summary.json"] or ["{}"]
                bucket |= {"logLineCount": 0, "summaryMetrics": summary[-1], "wandbConfig": '{"t": 1}'}
                return {"model": {"id": "p", "name": "p", "entity": entity, "bucket": bucket}}
            case "CreateRunFiles":
                files = [self.upload("run", name) for name in variables["files"]]
                return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
            case "ArtifactType":
                return {"project": {"artifact": None}}
            case "CreateArtifact":
                wanted = variables["input"]
                for number, each in enumerate(self.artifacts):  # the same content is no new version
                    same = all(each[key] == wanted[key] for key in ("artifactCollectionName", "digest"))
                    if same and each["committed"]:
                        artifact = {"id": str(number), "state": "COMMITTED", "artifactSequence": {}}
                        return {"createArtifact": {"artifact": artifact}}
                self.artifacts.append({**wanted, "files": {}, "committed": False})
                artifact = {"id": str(len(self.artifacts) - 1), "state": "PENDING", "artifactSequence": {}}
                return {"createArtifact": {"artifact": artifact}}
            case "CreateArtifactManifest":
                number = variables["artifactID"]
                file = {"id": "m", **self.upload(number, "wandb_manifest.json")}
                return {"createArtifactManifest": {"artifactManifest": {"id": number, "file": file}}}
            case "CreateArtifactFiles":
                nodes = []
                for file in variables["input"]["artifactFiles"]:
                    number = file["artifactID"]
                    node = {"id": "f", "storagePath": None, "artifact": {"id": number}}
                    nodes.append({"node": {**node, **self.upload(number, file["name"])}})
                return {"createArtifactFiles": {"files": {"edges": nodes}}}
            case "CommitArtifact":
                artifact = self.artifacts[int(variables["artifactID"])]
                artifact["committed"] = True
                return {"commitArtifact": {"artifact": {"id": "a", "digest": artifact["digest"]}}}
        return {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        operation, answer = None, {}
        if server.dead:
            self.close_connection = True
            return
        if server.silent:
            time.sleep(1000)  # in a thread that ends with the process
        if server.fault in REFUSED and REFUSED[server.fault] in self.path:
            return self.reply(403, {})
        if self.path == "/graphql":
            request = json.loads(body)
            operation = re.search(r"(?:query|mutation) (\w+)", request["query"])[1]
            variables = request.get("variables") or {}
            if server.fault and server.fault == SILENT_FROM.get(
                variables.get("input", {}).get("artifactTypeName")
            ):
                server.silent = True
            server.requests.append((operation, variables))
            with server.lock:
                answer = {"data": server.answer(operation, variables)}
        elif self.path.endswith("/file_stream"):
            for name, chunk in (json.loads(body).get("files") or {}).items():
                lines = server.lines[name]
                lines[chunk["offset"] :] = chunk["content"]
            answer = {"stopped": server.fault == "stops the run"}  # as if somebody had pressed the button
        elif self.path.startswith("/upload/"):
            owner, name = self.path.removeprefix("/upload/").split("/", 1)
            files = server.files if owner == "run" else server.artifacts[int(owner)]["files"]
            files[unquote(name)] = body
        if server.fault == "answers slowly":
            time.sleep(1)
        self.reply({"answers 500": 500, "refuses the key": 401}.get(server.fault, 200), answer)
        if server.fault == "dies in mid-run" and operation == "UpsertBucket":
            server.dead = True
            threading.Thread(target=server.shutdown).start()
            server.socket.close()

    do_GET = do_PUT = do_POST

    def reply(self, status: int, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass
