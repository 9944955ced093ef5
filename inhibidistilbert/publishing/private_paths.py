"""Looks for paths that tell where something lay on the maintainer's machines and in their storage."""

import re
from collections.abc import Collection, Iterator
from functools import lru_cache

from .contents import readings

_REST = r"[^\s\"'`<>|)\]},;]*"
_ADDRESS = re.compile(rf"\b(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{1,20}})://+|(?P<one>(?i:file|dbfs|hdfs)):/){_REST}")
# What everybody can open, or is sent elsewhere than to storage.
_PUBLIC = {
    *(
        "http",
        "https",
        "ftp",
        "git",
        "git+https",
        "git+http",
        "doi",
        "arxiv",
        "swh",
        "ipfs",
        "docker",
        "pypi",
        "conda",
        "ws",
        "wss",
    ),
    *("grpc", "tcp", "udp", "redis", "rediss", "postgres", "postgresql", "mysql", "mongodb", "mongodb+srv", "amqp", "kafka"),
}
_HUB = re.compile(r"hf://(?:(?:datasets|models|spaces)/)?([\w.-]+/[\w.-]+?)(?:@[\w./-]+)?(?:/.*)?")
# The first folder of what belongs to a system, and of routes on a server: the same everywhere.
_SHARED = (
    r"(?:usr(?!/(?:people|users|scratch|home|local/(?:home|data|scratch)))|bin|sbin|lib|lib64|etc|proc|sys|dev(?!/shm)|path|your|some|absolute|full"
    r"|api|v\d+|docs?|datasets|models|spaces|blob|tree|resolve|main|en|wiki|example)"
)
_ROOTS = (
    r"home\d*|root|users?|mnt|media|tmp|var|data\d*|work\d*|scratch\d*|opt|srv|lustre\w*|gpfs\w*|nfs\w*|fsx|efs|beegfs|ceph\w*|cephfs|glusterfs"
    r"|afs|panfs|weka\w*|vast|cluster|clusterfs|hpc\w*|projects?|proj|workspaces?|content|kaggle|dbfs|databricks|volumes|teamspace"
    r"|export|exports|net|netscratch|nobackup|shared?|storage\d*|raid\d*|ssd\d*|hdd\d*|nvme\d*|disks?\d*|local|private|gscratch|pscratch"
    r"|ptmp|p/(?:scratch|project\w*|home|data\d*|\w+data)|dev/shm|cygdrive|usr/(?:people|users|scratch|home|local/(?:home|data|scratch))|notebooks?|app|runpod-volume|run/user"
)
_VARIABLES = (
    r"(?:HOME|USER|LOGNAME|USERNAME|USERPROFILE|SCRATCH|PSCRATCH|WORK|TMP|TEMP|DATA|STORE|PROJECTS?|PWD|OLDPWD|(?:SLURM|PBS|LSB|SGE|XDG)_\w+"
    r"|\w+_(?:DIR|HOME|ROOT|PATH|TMPDIR|WORKSPACE)|TMPDIR|APPDATA|LOCALAPPDATA|PUBLIC|ONEDRIVE|HOMEPATH|HOMEDRIVE)"
)
_START = r"(?<![\w/~.\\-])"
_NAME = r"(?:[a-z]|[^\W\d][\w.@+-]+)"
_PATTERNS = (
    # /home/someone, /scratch/x; any other absolute path of three parts, or of two as a whole: in text those are routes
    rf"(?:(?<=\s-[A-Za-z])|{_START})/+(?:{_ROOTS})/+[^\s\"'`<>|)\]}},;]{_REST}",
    rf"(?<!\]\(){_START}/(?!{_SHARED}/){_NAME}/{_NAME}/[\w.@+-]*[^\W\d]{_REST}",
    rf"\A/(?!{_SHARED}/){_NAME}/[\w.@+-]*[^\W\d]\S*\Z",
    # C:\Users, C:/Users, \\server\share, //server/share as a whole, \\?\C:\
    rf"(?<![\w:/\\])[A-Za-z]:(?:\\+|/(?!/))[\w.$~ -]{{0,80}}[\w$]{_REST}",
    rf"(?<![\w\\])\\\\[\w.$?-]+\\+[\w.$:-]+{_REST}",
    r"\A//[\w.-]+/[\w.$-]+\S*\Z",
    # ~/x, ~someone/x, $HOME/x, ${HOME}, %USERPROFILE%, $env:USERPROFILE
    rf"{_START}~(?!/\.cache/huggingface)(?:[^\W\d][\w.-]*)?[/\\]+[\w.]{_REST}",
    rf"(?:\$\{{?(?:env:)?{_VARIABLES}\}}?|%{_VARIABLES}%)[/\\]{_REST}",
    # ../x: out of the folder
    rf"(?<![\w.])\.\.[/\\]+[\w.]{_REST}",
)
_PRIVATE = re.compile("|".join(f"(?:{pattern})" for pattern in _PATTERNS), flags=re.IGNORECASE)


def find_private_paths(text: str, published: Collection[str] = ()) -> Iterator[str]:
    """The private paths in `text`, in whatever way they are escaped.

    published: ids on the Hub, `hf://` addresses of which are no secret.
    """
    yield from _found(text, frozenset(published))


@lru_cache(maxsize=128)
def _found(text: str, published: Collection[str]) -> list[str]:
    """Source files are always the same: they are looked through once."""
    found = []
    for reading in readings(text):
        found += [match[0] for match in _ADDRESS.finditer(reading) if _is_private_address(match, published)]
        for line in _ADDRESS.sub(" ", reading).splitlines():  # where a line ends a path does
            found += [match[0] for match in _PRIVATE.finditer(line)]
    return found


def _is_private_address(match: re.Match[str], published: Collection[str]) -> bool:
    """Every address of storage is: of a bucket, a file, a cluster's file system; the protocols of the web are not."""
    address = match[0]
    if (match["scheme"] or "").lower() in _PUBLIC or "/path/to/" in address:
        return False
    # An id on the Hub that the card names is known to all.
    hub = _HUB.fullmatch(address)
    return not (hub and hub[1] in published)
