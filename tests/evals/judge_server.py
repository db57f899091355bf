"""A local server of OpenAI's chat completions that answers, or fails, as it is told."""

import contextlib
import http.server
import json
import threading
import time


def completion(text, **choice):
    """The body of an answer."""
    message = {"role": "assistant", "content": text} | choice.pop("message", {})
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | choice
    return {"object": "chat.completion", "choices": [choice], "usage": usage}


class Server(http.server.ThreadingHTTPServer):
    """`reply(body, count)` -> text of the reply, or (status, body, headers); `count`: the requests
    with the same body before. `seen`: (path, headers, body) of each request; `most`: how many were
    under way at a time."""

    daemon_threads = True

    def __init__(self, reply):
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.seen, self.lock, self.now, self.most = reply, [], threading.Lock(), 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            count = sum(b == body for _, _, b in server.seen)
            server.seen.append((self.path, dict(self.headers), body))
            server.now += 1
            server.most = max(server.most, server.now)
        found = server.reply(body, count)
        with server.lock:
            server.now -= 1
        status, answer, headers = found if isinstance(found, tuple) else (200, found, {})
        if isinstance(answer, str) and status == 200 and not headers.get("raw"):
            answer = completion(answer)
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        with contextlib.suppress(OSError):  # the client may have gone
            self.send_response(status)
            for name, value in {**headers, "content-length": len(data)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *_):
        """Silence."""


@contextlib.contextmanager
def serving(reply):
    """A running `Server`."""
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def slow(seconds, text):
    """A reply that takes its time."""
    time.sleep(seconds)
    return text
