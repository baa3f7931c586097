"""Keys: who may call, for which tenant, how much.

    key.py        one key as its file holds it: a hash, never the secret
    key_file.py   the file, read and edited
    key_ring.py   the keys in force, read anew when their file changes
    usage.py      what each key uses, in memory that all HTTP processes share
    rate_limit.py one request against its key's limits
    mode.py       whether keys are asked for
    command.py    `qwenapi keys`

Knows nothing of Flask; what a request presents is read in request_context/auth.py.
"""

from qwenapi.keys.key import ANYONE, Key
from qwenapi.keys.key_ring import KeyRing
from qwenapi.keys.rate_limit import KeyQueue, RateLimit
from qwenapi.keys.usage import KeyUsage

__all__ = ["ANYONE", "Key", "KeyQueue", "KeyRing", "KeyUsage", "RateLimit"]
