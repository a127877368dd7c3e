"""Radars and machines that are not there: the simulator of a radar, and the chain on one computer."""
