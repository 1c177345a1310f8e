"""`accelerate launch` whose processes meet in the store that `biggan` keeps on the loopback (`pipeline.messaging.store_relay`).

torchrun by itself would open a store to every address of the main node, and to everybody who reaches it.
"""

from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters, static_tcp_rendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

_SECONDS = 600


class _Meeting(static_tcp_rendezvous.StaticTCPRendezvous):
    """torchrun's static rendezvous, for which somebody else keeps the store."""

    def next_rendezvous(self) -> RendezvousInfo:
        if not self._store:
            limit = timedelta(seconds=_SECONDS)
            self._store = TCPStore(self.master_addr, self.master_port, self.world_size, is_master=False, timeout=limit)
        return super().next_rendezvous()


def _meeting(params: RendezvousParameters) -> _Meeting:
    address, port = parse_rendezvous_endpoint(params.endpoint, -1)
    rank, nodes = int(params.config["rank"]), params.max_nodes
    return _Meeting(address, port, rank, nodes, run_id=params.run_id, timeout=_SECONDS)


def main() -> None:
    """Be `accelerate launch`."""
    import accelerate.utils.launch
    from accelerate.commands import launch

    accelerate.utils.launch.is_port_in_use = lambda _: False  # it is, by the store
    static_tcp_rendezvous.create_rdzv_handler = _meeting
    launch.main()


if __name__ == "__main__":
    main()
