"""Pictures of first layers that are not painted: that takes longer than all else of a short search."""

from __future__ import annotations

from ticket_search.runs.first_layer import Picture

# A white pixel.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63f80f0001010100b138f6140000000049454e44ae426082"
)


def leave_blank(picture: Picture) -> tuple[bytes, int, int]:
    """What `first_layer.draw` gives, of a white pixel."""
    return PNG, 1, 1
