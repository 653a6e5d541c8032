"""A job from start to end, and what a person sees of it."""
