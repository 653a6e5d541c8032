"""Episodes: how they are drawn, kept and weighed."""
