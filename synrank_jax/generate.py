"""Write graded lists with an LLM (under way)."""
