"""An endpoint of the tests: a server in this process that speaks as much of OpenAI's protocol as is asked of it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeEndpoint:
    """`reply(body)` says what it answers: a text, a whole completion, or a status code with a message.

    `seen` has every request.
    """

    def __init__(self, reply):
        self.reply, self.seen, self.keys = reply, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                said = outer.reply(body)
                status, message = said if isinstance(said, tuple) else (200, said)
                content = message if isinstance(message, dict) else outer.completion(body, message)
                content = {"error": {"message": message}} if status != 200 else content
                payload = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.send_header("Retry-After-Ms", "1")
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *parts):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @staticmethod
    def completion(body, said):
        """100 tokens read, 10 written."""
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return {
            "id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice],
            "usage": usage,
        }  # fmt: skip

    def questions(self):
        """The last user message of each request."""
        return [body["messages"][-1]["content"] for body in self.seen]

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
