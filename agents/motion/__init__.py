"""Motion: the only code that moves image bytes."""
