"""What the process tells of itself: metrics, traces, logs; and what it never tells: secrets."""
