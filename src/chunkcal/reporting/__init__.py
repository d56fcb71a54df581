"""What a person sees: progress, figures, the page, the summary."""
