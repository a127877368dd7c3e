"""One file per step that runs on campus."""
