#!/bin/sh
# The check of document 002, under its own name.
exec /opt/qwenapi/bin/check-service "$@"
