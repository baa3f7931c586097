#!/usr/bin/env python3
"""Document 001's example client, under its own name: `qwenapi ask` with that document's port."""

import os
import sys

QWENAPI = "/opt/qwenapi/bin/qwenapi"

os.execv(QWENAPI, [QWENAPI, "ask", "--url", "http://localhost:2025", *sys.argv[1:]])
