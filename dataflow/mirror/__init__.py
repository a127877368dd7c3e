"""One of the world's mirrors: from holding directories onto the mirror, and mirror to mirror."""
