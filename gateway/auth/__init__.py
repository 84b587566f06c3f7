"""Who is asking: keys, principals and the check in front of every `/v1` route."""
