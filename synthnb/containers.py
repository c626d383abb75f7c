"""What libsndfile needs of a sound file beyond decoding it: mending what other programs read and it does not, and
telling what is cut, which it seldom does.

RIFF and AIFF are chunks, each with a name and a size; Ogg is pages (RFC 3533); mp3 and others may have ID3v2 tags in
front.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from soundfile import SoundFile

CONTAINERS = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"OggS")
TRUNCATED = "is truncated (its end is missing)"
ENDLESS = "does not say how long it is, and cannot be read to its end"


class Memory(io.BytesIO):
    """A file in memory that libsndfile may seek in as it likes: in a damaged one it goes to before the beginning."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (
            ValueError,
            OverflowError,
        ):  # raised in libsndfile's callback, it would be printed and ignored
            return self.tell()


def mend(data: bytes) -> bytes:
    """The bytes of a sound file so that libsndfile reads all its samples, if other programs do."""
    start = _after_tags(data)
    if data.startswith(CONTAINERS, start):  # it would leave out as many bytes at the end as the tags have
        data = data[start:]
    if data.startswith(b"OggS"):
        return _mend_ogg(data)
    if data.startswith(b"RF64") and not any(data[28:36]):  # its size of 64 bits was never written: a crash
        data = b"RIFF" + data[4:]
    for name, start, size in _chunks(data):
        if name == b"data":
            follows = data[start : start + 4].strip()
            if size == 0 and follows and not follows.isalnum():  # no further chunk but samples: a crash
                data = data[: start - 4] + b"\xff" * 4 + data[start:]
            break
    return data


def defect(data: bytes, sound: SoundFile, samples: int, unread: int) -> str:
    """What is wrong with a file that gave so many samples and left so many bytes unread; "" if nothing."""
    for name, start, size in _chunks(data):
        if name in (b"data", b"SSND"):
            # Pipes state a size near 2 or 4 GiB; sloppy writers count their header of 44 bytes or so as data.
            return TRUNCATED if len(data) - start + 64 < size < 0x7FFF_0000 else ""
    if sound.format == "OGG":
        return "" if _page_end(data, max(0, data.rfind(b"OggS"))) <= len(data) else TRUNCATED
    if sound.format == "MP3":
        start = _after_tags(data)
        if any(mark in data[start : start + 256] for mark in (b"Xing", b"Info", b"VBRI")):
            # Some encoders also count the frame of 1152 samples that holds the mark.
            return TRUNCATED if samples + 1152 < sound.frames else ""
        if samples == sound.frames and unread > 4096:  # libsndfile guessed, and stopped in the middle
            return ENDLESS
    return ""  # flac: libsndfile itself raises an error


def _after_tags(data: bytes) -> int:
    """Where a file begins after the ID3v2 tags in front."""
    start = 0
    while data.startswith(b"ID3", start):
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 127
        start += 10 + size
    return start


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and stated size of each chunk of a RIFF or AIFF file."""
    if data.startswith((b"RIFF", b"RIFX", b"FORM")):
        order, start = "little" if data.startswith(b"RIFF") else "big", 20
        while start <= len(data) and any(name := data[start - 8 : start - 4]):
            size = int.from_bytes(data[start - 4 : start], order)
            yield name, start, size
            start += size + size % 2 + 8


def _mend_ogg(data: bytes) -> bytes:
    if data[28:33] == b"\x7fFLAC":  # needs to state its length in Ogg; without the pages around it does not
        parts, start = [], 0
        while data.startswith(b"OggS", start) and (end := _page_end(data, start)) <= len(data):
            parts.append(data[start + 27 + data[start + 26] : end])
            start = end
        return b"".join(parts)[9:] if start == len(data) else data
    last = data.rfind(b"OggS")
    page = bytearray(data[last : _page_end(data, last)])
    if len(page) > 26:  # a short Opus must mark its last page, which some writers don't
        page[5] |= 4
        page[22:26] = bytes(4)
        page[22:26] = _ogg_checksum(page).to_bytes(4, "little")
    return data[:last] + page


def _page_end(data: bytes, start: int) -> int:
    """Where an Ogg page ends: beyond the data if that was cut."""
    body = start + 27 + sum(data[start + 26 : start + 27])
    return body + sum(data[start + 27 : body])


def _ogg_checksum(page: bytearray) -> int:
    """Ogg's CRC is zlib's with all bits the other way round, and without its inversions."""
    turned = page.translate(bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256)))
    return int(f"{zlib.crc32(turned, 0xFFFF_FFFF) ^ 0xFFFF_FFFF:032b}"[::-1], 2)
