"""Lets this process drop, delay and reorder the IP packets between clients and a listener on the same host.

A TUN device has an address of this host, ``address``, and is the route to a host that does not exist, ``far_address``.
This process receives the packets to that host, swaps source and destination, and writes them back into the device. So a
connection to ``far_address`` reaches the listener at ``address``, and both ends see losses like those of a real network.
Swapping two words of a packet does not change their sum, so every checksum stays valid.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import struct
import subprocess
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
MTU = 1500
OVERTAKEN_BY_S = 0.005


class PacketPathError(Exception):
    """Such a path is not possible on this machine; the message is a sentence that says what is missing."""


class PacketPath:
    """A path without faults until ``become`` is called. It exists as long as the process.

    Raises:
        PacketPathError: this process may not open TUN devices, or the machine has none.
    """

    def __init__(self) -> None:
        network = f"198.18.{random.randrange(256)}"  # RFC 2544: for tests of networks
        host = 2 * random.randrange(1, 127)
        self.address, self.far_address = f"{network}.{host}", f"{network}.{host + 1}"
        self._delay_s = self._loss = self._reordered = 0.0
        if not Path("/dev/net/tun").exists():
            raise PacketPathError("There is no /dev/net/tun, which lost packets need")
        try:
            self._device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            request = struct.pack("16sH22x", b"rcnn%d", IFF_TUN | IFF_NO_PI)
            name = fcntl.ioctl(self._device, TUNSETIFF, request)[:16].rstrip(b"\0").decode()
            for command in (
                ["ip", "address", "add", self.address, "peer", self.far_address, "dev", name],
                ["ip", "link", "set", name, "mtu", str(MTU), "up"],
            ):
                subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PacketPathError(f"Lost packets need root and the command ip: {error}") from error

    def start(self) -> None:
        """Let packets pass, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._device, self._pass_on)

    def become(self, delay_s: float, loss: float, reordered: float) -> None:
        """Delay all packets, drop a share of them, and let a share be overtaken by those of the next 5 ms."""
        self._delay_s, self._loss, self._reordered = delay_s, loss, reordered

    def _pass_on(self) -> None:
        packet = os.read(self._device, MTU)
        if packet[0] >> 4 != 4 or random.random() < self._loss:
            return
        swapped = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
        delay_s = self._delay_s + OVERTAKEN_BY_S * (random.random() < self._reordered)
        if delay_s:
            self._loop.call_later(delay_s, self._send, swapped)
        else:
            self._send(swapped)

    def _send(self, packet: bytes) -> None:
        with contextlib.suppress(OSError):  # the device is full: the packet is lost
            os.write(self._device, packet)
