"""Where the time, memory and FLOPs of a training go: measured, or counted for machines that are not there."""
