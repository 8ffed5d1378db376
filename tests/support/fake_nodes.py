"""Ray's provider of nodes for tests of its autoscaler, for a cluster at any port."""

from typing import Any

from ray.autoscaler._private.fake_multi_node import node_provider


class Nodes(node_provider.FakeMultiNodeProvider):
    """Starts a raylet on this machine for every node; Ray's own lets them all join at port 6379."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        node_provider.build_address = lambda *_: provider_config["gcs_address"]
