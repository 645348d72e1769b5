"""What judges texts: personal data, toxicity, prompt injection; models, patterns, and how good they are."""
