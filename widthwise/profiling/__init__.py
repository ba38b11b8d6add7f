"""The only floor that touches clocks and hardware."""
