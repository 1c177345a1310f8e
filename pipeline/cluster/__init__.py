"""From one process on each node to a training on many: launch, rendezvous, schedulers, restarts, job specifications."""
