"""The reference: nginx with sendfile and its DAV module, one worker, as PERFORMANCE's bars are defined.

Owns the process and its directory. Debian's nginx package has the DAV module built in.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

_CONFIG = """daemon off;
user root;
worker_processes {workers};
worker_rlimit_nofile 65536;
pid {root}/nginx.pid;
error_log {root}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 10000000;
    keepalive_timeout 300;
    client_max_body_size 0;
    client_body_buffer_size 128k;
    client_body_temp_path {root}/data/.tmp;
    proxy_temp_path {root}/p; fastcgi_temp_path {root}/f; uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
    open_file_cache max=15000 inactive=60s;
    open_file_cache_valid 60s;
    types {{ }}
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {root}/data;
        location / {{ dav_methods PUT DELETE; create_full_put_path on; }}
    }}
}}
"""


def executable() -> str | None:
    """nginx's path, or None: then the ratios to it cannot be measured."""
    return shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


@dataclass
class Nginx:
    """Serves directory/data. cpu: pin the processes there."""

    directory: Path
    cpu: int | None = None
    workers: int = 1
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def start(self) -> None:
        """Start and wait until it accepts."""
        program = executable()
        if program is None:
            raise RuntimeError("nginx is not installed (Debian package nginx)")
        self.data.mkdir(parents=True, exist_ok=True)
        if not self.port:
            with socket.socket() as sock:
                sock.bind(("127.0.0.1", 0))
                self.port = sock.getsockname()[1]
        config = self.directory / "nginx.conf"
        config.write_text(_CONFIG.format(root=self.directory, port=self.port, workers=self.workers))
        command = [program, "-c", str(config), "-p", str(self.directory)]
        if self.cpu is not None:
            command = ["taskset", "-c", str(self.cpu), *command]
        self.process = subprocess.Popen(command)
        end = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 0.5).close()
                return
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    self.stop()
                    raise RuntimeError("nginx did not start") from None
                time.sleep(0.02)

    def stop(self) -> None:
        """End it and wait."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
