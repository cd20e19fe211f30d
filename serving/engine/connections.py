"""How many connections clients have open to a port of this machine, from the kernel's own table."""

from __future__ import annotations

import ipaddress
import struct
from pathlib import Path

ESTABLISHED = "01"
_TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}


def count_connections(host: str, port: int) -> int:
    """Established connections to exactly this address. 0 where the kernel shows no table."""
    address = ipaddress.ip_address(host)
    try:
        table = _TABLES[address.version].read_text()
    except OSError:
        return 0
    return count_in_table(table, host, port)


def count_in_table(table: str, host: str, port: int) -> int:
    """The same, in the text of `/proc/net/tcp` or `tcp6`, whose addresses are words of 32 bits in the machine's byte order."""
    packed = ipaddress.ip_address(host).packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    local = "".join(f"{word:08X}" for word in words) + f":{port:04X}"
    rows = (line.split() for line in table.splitlines()[1:])
    return sum(1 for row in rows if len(row) > 3 and row[1] == local and row[3] == ESTABLISHED)
