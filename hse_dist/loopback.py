"""What keeps a cluster of this machine alone to this machine.

In: nothing. Out: environment variables that Ray, gloo and the processes that they start inherit; what the user has set
stays. To be called before Ray is imported, which reads them once. A cluster of several machines gets none of it.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys

LOOPBACK = ("lo", "lo0")
"""Names of the interface, on Linux and elsewhere."""


def keep_to_loopback() -> None:
    """Ray's and gloo's sockets are on loopback alone."""
    # else Ray takes 127.0.0.1 for the address of the first interface, which other machines reach; the variable's name
    # says for whom it was made
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    there = [name for _, name in socket.if_nameindex() if name in LOOPBACK]
    if there:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", there[0])


def keep_to_ourselves() -> None:
    """A token that only processes of this one have: loopback is open to all users of the machine."""
    if "ray" in sys.modules:  # it has read the mode; by itself it would take the token of the home folder
        return
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token" and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
