"""Results for people: terminal tables. Together with the command line the only place that prints."""
