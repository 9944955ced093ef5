"""Distillation of inhibitor students: data, teacher, student, training."""
