import pytest

from tests.cluster.ray_nodes import RayNodes


@pytest.fixture(scope="module")
def ray_nodes(tmp_path_factory):
    """A cluster of a head and two nodes, `a` and `b`; who loses one brings it back."""
    cluster = RayNodes(tmp_path_factory.mktemp("ray"))
    try:
        cluster.nodes["head"].wait_until_up()
        for name, number in (("a", 21), ("b", 22)):
            cluster.add(name, number).wait_until_up()
        yield cluster
    finally:
        cluster.stop()
