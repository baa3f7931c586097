"""Certificates for tests, made by openssl: an authority's, and one that it has signed."""

import subprocess

from workers.wire.tls import TlsFiles

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def make_certificates(folder):
    """Return a new authority's files in a folder."""
    folder.mkdir(exist_ok=True)

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    ca = ("-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *KEY, *ca)
    openssl("req", *KEY, "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    openssl("x509", "-req", "-in", "node.csr", *signing, "-out", "node.pem")
    return TlsFiles(*(str(folder / name) for name in ("node.pem", "node.key", "ca.pem")))
