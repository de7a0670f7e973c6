"""A name server (DNS) with addresses that a test changes."""

from __future__ import annotations

import socket
import struct
import threading

A, NXDOMAIN = 1, 3


class NameServer:
    """Answers queries for IPv4 addresses over UDP at `address`; `addresses` maps a name to its addresses.

    A name without addresses does not exist. While `mute`, no query is answered.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.mute = False
        self.num_queries = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._answer, daemon=True)
        self._thread.start()

    def url(self, name: str) -> str:
        """The URL by which gRPC resolves this name (host:port) at this name server."""
        return f"dns://{self.address}/{name}"

    def close(self) -> None:
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()

    def _answer(self) -> None:
        while (received := self._socket.recvfrom(512))[0]:
            query, sender = received
            self.num_queries += 1
            if not self.mute:
                self._socket.sendto(self._reply(query), sender)

    def _reply(self, query: bytes) -> bytes:
        """A reply as in RFC 1035: a header of 12 bytes, the question, and a resource record for each address."""
        labels, position = [], 12
        while length := query[position]:
            labels.append(query[position + 1 : position + 1 + length].decode())
            position += 1 + length
        (kind,) = struct.unpack_from("!H", query, position + 1)
        found = self.addresses.get(".".join(labels), [])
        answers = found if kind == A else []
        flags = 0x8580 | (0 if found else NXDOMAIN)
        header = query[:2] + struct.pack("!5H", flags, 1, len(answers), 0, 0)
        records = [
            struct.pack("!3HIH", 0xC00C, A, 1, 1, 4) + socket.inet_aton(address)  # valid for 1 s
            for address in answers
        ]
        return header + query[12 : position + 5] + b"".join(records)
