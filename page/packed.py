"""Unpack a file that pandas, gzip or a file manager has packed."""

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile

COMPRESSED = {rb"\x1f\x8b\x08": gzip, rb"BZh[1-9]1AY&SY": bz2, rb"\xfd7zXZ\0": lzma}  # by their first bytes


def unpack(content: bytes, limit: int) -> bytes:
    """The content of what is compressed (.gz, .bz2, .xz), or of the only file in an archive (.zip, .tar).

    What is not packed, or holds several files, is returned as it is. What unpacks to more than `limit` bytes
    is cut behind them. Raises errors of many types if the file is damaged.
    """
    for _ in ("gz", "tar"):  # a .tar.gz is both
        if stream := open_packed(content):
            with stream:
                content = stream.read(limit + 1)
    return content


def open_packed(content: bytes):
    """A stream of what is packed in a file. None if it is not packed, or holds several files."""
    file = io.BytesIO(content)
    for start, module in COMPRESSED.items():
        if re.match(start, content):
            return module.open(file)
    if content.startswith(b"PK\3\4"):
        archive = zipfile.ZipFile(file)
        members, opened = [name for name in archive.namelist() if name[-1] != "/"], archive.open
    elif content[257:262] == b"ustar":
        archive = tarfile.open(fileobj=file)
        members, opened = [m.name for m in archive.getmembers() if m.isfile()], archive.extractfile
    else:
        return None
    members = [name for name in members if not re.search(r"(^|/)\._[^/]*$", name)]  # what macOS adds
    return opened(members[0]) if len(members) == 1 else None
