"""Several processes that train one network: their start, rendezvous, collectives, heartbeats and end."""
