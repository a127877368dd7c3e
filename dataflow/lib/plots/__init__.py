"""Pictures of radar data: each antenna of antennas_iq, the contact sheet of all, and the quick-look of rawacf."""
