"""The job: one resource and one state machine, whose table is the queue."""
