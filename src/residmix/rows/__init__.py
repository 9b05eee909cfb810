"""The ground floor: rows in blocks, worked on by several threads, summed in one order."""
