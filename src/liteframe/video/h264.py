"""What H.264 packets say of themselves (ITU-T H.264, 7.3.1 and 7.4.1; ISO/IEC 14496-15, 5.3.3.1)."""

from __future__ import annotations


def length_bytes(extradata: bytes | None) -> int | None:
    """How many bytes tell the length of each unit of a packet; None where units begin with a start code (TS, raw)."""
    if extradata is None or len(extradata) < 7 or extradata[0] != 1:
        return None
    return (extradata[4] & 3) + 1


def is_disposable(packet: memoryview, num_bytes: int) -> bool:
    """Whether no other picture refers to this one: nal_ref_idc is 0 in every slice. False for what is damaged.

    Args:
        packet: one access unit, each of its units behind its length.
        num_bytes: of that length, see `length_bytes`.
    """
    at, has_slice = 0, False
    while at + num_bytes < len(packet):
        head = packet[at + num_bytes]
        if 1 <= head & 0x1F <= 5:
            if head & 0x60:
                return False
            has_slice = True
        at += num_bytes + int.from_bytes(packet[at : at + num_bytes], "big")
    return has_slice and at == len(packet)
