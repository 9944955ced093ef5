"""What several rooms need: errors, files, foreign checkpoints, texts and labels, and the machine."""
