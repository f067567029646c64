"""What an error of redis-py means to us, in words that show no secret."""

from __future__ import annotations

import re
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    DataError,
    MasterDownError,
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from sandbox_adapters.outage_reasons import reason_of
from sandbox_core.domain.errors import StoredDataCorrupt, StoreUnavailable

UNREACHABLE: Final = "cannot be reached"
"""What the message says of a Redis that nobody answers for."""

_REFUSED: Final = {
    "OOM": "is out of memory (maxmemory) and takes no more",
    "READONLY": "is read-only: it is a replica, or a failover is under way",
    "LOADING": "is still loading its data",
    "MASTERDOWN": "is a replica that has lost its master",
    "NOREPLICAS": "has too few replicas to take writes",
    "MISCONF": "cannot save to disk and takes no writes",
    "CLUSTERDOWN": "is a cluster that is down",
    "CROSSSLOT": "is a cluster, and our keys are in several of its slots: set SANDBOX_REDIS_HASH_TAG=true",
    "BUSY": "is busy with a script",
    "NOAUTH": "wants a password, and REDIS_URL has none",
    "WRONGPASS": "refuses the user or the password of REDIS_URL",
    "NOPERM": "does not permit its user what is needed (~* &* +@all -@dangerous)",
    "MOVED": "is a cluster that keeps our keys on another node: name that one in REDIS_URL",
    "TRYAGAIN": "is a cluster that is moving our keys to another node",
    "UNKILLABLE": "is busy with a script",
}
_WRONG_TYPE = re.compile(r"\bWRONGTYPE\b")
_NO_PERMISSION_IN_SCRIPT = re.compile(r"\buser executing the script can't\b")
_CODE = re.compile(r"(?:^|-|\s)(" + "|".join(_REFUSED) + r")\b")


def translated(error: BaseException, address: str, timeout_seconds: float) -> Exception:
    """Return StoreUnavailable, or StoredDataCorrupt when a key holds another type than ours do."""
    where = f"Redis at {address}"
    match error:
        case RedisTimeoutError() | TimeoutError():
            return StoreUnavailable(f"{where} did not answer within {timeout_seconds:g} s")
        case MaxConnectionsError():
            return StoreUnavailable(f"all connections to {where} are in use")
        case BusyLoadingError():
            return StoreUnavailable(f"{where} {_REFUSED['LOADING']}")
        case OutOfMemoryError():
            return StoreUnavailable(f"{where} {_REFUSED['OOM']}")
        case ReadOnlyError():
            return StoreUnavailable(f"{where} {_REFUSED['READONLY']}")
        case AuthenticationError() | AuthorizationError():
            return StoreUnavailable(f"{where} {_REFUSED['WRONGPASS']}, or wants one")
        case NoPermissionError():
            return StoreUnavailable(f"{where} {_REFUSED['NOPERM']}")
        case MovedError():
            return StoreUnavailable(f"{where} {_REFUSED['MOVED']}")
        case AskError() | TryAgainError():
            return StoreUnavailable(f"{where} {_REFUSED['TRYAGAIN']}")
        case ClusterCrossSlotError():
            return StoreUnavailable(f"{where} {_REFUSED['CROSSSLOT']}")
        case MasterDownError():
            return StoreUnavailable(f"{where} {_REFUSED['MASTERDOWN']}")
        case ClusterDownError():
            return StoreUnavailable(f"{where} {_REFUSED['CLUSTERDOWN']}")
        case ResponseError() | DataError():
            return _refusal(error, where)
        case _:
            return StoreUnavailable(f"{where} {UNREACHABLE} ({reason_of(error)})")


def _refusal(error: ResponseError | DataError, where: str) -> Exception:
    # Redis before 7 puts the code of an error inside a script behind "ERR Error running script".
    said = str(error)
    if _WRONG_TYPE.search(said):
        return StoredDataCorrupt(where, "a key of ours holds a value of another type")
    if _NO_PERMISSION_IN_SCRIPT.search(said):  # Redis 7 gives it no code there
        return StoreUnavailable(f"{where} {_REFUSED['NOPERM']}")
    found = _CODE.search(said)
    if found is not None:
        return StoreUnavailable(f"{where} {_REFUSED[found.group(1)]}")
    return StoreUnavailable(f"{where} refused a command ({said.split(' ', 1)[0]})")
