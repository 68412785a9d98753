"""What Anthropic's clients ask for."""
