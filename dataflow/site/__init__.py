"""One file per step that runs at a radar site: on the radar computer or on site-linux."""
