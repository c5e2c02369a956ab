"""What knows nothing of medicine or of learning: errors, files, processes, tensors on disk."""
