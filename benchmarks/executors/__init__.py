"""What each executor is worth at equal measured latency."""
