"""The files for TLS between machines, as the settings name them."""

from qwenapi.settings.table import Settings
from workers.wire.tls import TlsFiles


def wire_tls(settings: Settings) -> TlsFiles | None:
    """Return them, or None where none are named; raise ConfigError where some are missing."""
    return TlsFiles.of(settings.wire_tls_cert, settings.wire_tls_key, settings.wire_tls_ca)
