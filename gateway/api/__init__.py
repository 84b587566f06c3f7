"""Routes. Handlers translate, call one service and answer; nothing else."""
