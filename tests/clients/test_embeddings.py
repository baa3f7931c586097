"""Real clients of embeddings, unmodified, against a tiny model of the real server."""

import json

import pytest

from tests.clients.clients import Client, output
from tests.pooling_folders import write_folder
from tests.running_server import RunningServer

TEXTS = ["hello", "你好，世界 🙂", "the sea " * 30]
CLIENTS = Client("embeddings", "embeddings.py", "embeddings")


@pytest.mark.slow
def test_all_clients_read_the_same_vectors(tmp_path, pytestconfig):
    write_folder(tmp_path / "model", "embed")
    flags = ("--model", str(tmp_path / "model"), "--served-model-name", "embedder")
    server = RunningServer(tmp_path / "run", *flags, "--dtype", "float32", "--threads", "1")
    try:
        server.wait_until_ready()
        data = server.post("/v1/embeddings", {"input": TEXTS}).json()["data"]
        told = output(CLIENTS, server.url, tmp_path, pytestconfig.cache, TEXTS=json.dumps(TEXTS))
        assert server.stop() == 0
    finally:
        server.close()
    vectors = json.loads(told)
    assert len(vectors) == 6
    for client, found in vectors.items():
        for numbers, item in zip(found, data, strict=True):
            assert numbers == pytest.approx(item["embedding"], abs=1e-5), client
