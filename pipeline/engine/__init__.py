"""G and D as DeepSpeed ZeRO engines: batches, steps, optimisers, the objective, and what ranks must agree on."""
