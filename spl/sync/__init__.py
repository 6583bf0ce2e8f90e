"""Replication, both sides: serving records to a peer, and taking in what a peer sends."""
