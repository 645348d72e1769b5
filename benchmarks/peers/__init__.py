"""Small programs that stand beside Outpost in a benchmark."""
