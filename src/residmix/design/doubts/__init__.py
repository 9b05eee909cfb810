"""What is odd about columns: codes among numbers, numbers among labels, labels that are alike."""
