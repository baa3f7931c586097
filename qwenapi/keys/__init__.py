"""Keys: who may call, for which tenant, how much.

    key.py        one key as its file holds it: a hash, never the secret
    key_file.py   the file, read and edited
    key_ring.py   the keys in force, read anew when their file changes
    usage.py      what each key uses, in a page that all HTTP processes share
    allowance.py  one request against its key's limits
    mode.py       whether keys are asked for
    command.py    `qwenapi keys`

Knows nothing of Flask; what a request presents is read in auth.py.
"""

from qwenapi.keys.key import ANYONE, Key
from qwenapi.keys.key_ring import KeyRing
from qwenapi.keys.rate_limit import RateLimit
from qwenapi.keys.usage import KeyUsage

__all__ = ["ANYONE", "RateLimit", "Key", "KeyRing", "KeyUsage"]
