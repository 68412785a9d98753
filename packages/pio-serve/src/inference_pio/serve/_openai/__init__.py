"""What OpenAI's clients ask for."""
